"""What a study of a given size can tell, and how large one must be."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from diffalign.stats.tables import Floats, Scores, align

__all__ = [
    "effective_votes",
    "intraclass_correlation",
    "minimum_detectable_win_rate",
    "prompts_for_difference",
    "prompts_for_win_rate",
]


def effective_votes(num_prompts: float, votes_per_prompt: float, correlation: float) -> float:
    """How many independent votes the votes of a study are worth.

        P K / (1 + (K - 1) rho),    at most P / rho

    Args:
        num_prompts: P.
        votes_per_prompt: K, votes or seeds of each prompt.
        correlation: rho, within-prompt correlation of the outcomes.

    Source:
        Kish 1965, Survey Sampling, section 5.4.

    Example:
        >>> round(effective_votes(60, 35, 0.27)), round(effective_votes(400, 3, 0.27))
        (206, 779)
    """
    design_effect = 1 + (votes_per_prompt - 1) * correlation
    if design_effect <= 0:
        raise ValueError(
            f"expected 1 + (K - 1) rho above 0, got {design_effect} from a correlation of {correlation}; "
            "take 0 for one that is negative by chance"
        )
    return num_prompts * votes_per_prompt / design_effect


def minimum_detectable_win_rate(
    num_prompts: float,
    votes_per_prompt: float,
    correlation: float,
    *,
    power: float = 0.8,
    significance: float = 0.05,
) -> float:
    """The smallest true win rate that a study of this size tells from 1/2, ties aside.

        1/2 + (z_{1-alpha/2} + z_power) / 2 * sqrt((1 + (K - 1) rho) / (P K))

    Args:
        num_prompts: P.
        votes_per_prompt: K, votes or seeds of each prompt.
        correlation: rho, within-prompt correlation of the outcomes; irrelevant at K = 1.
        power: probability of telling it.
        significance: alpha, two-sided.

    Returns:
        A rate; above 1 where no win rate can be told.

    Example:
        >>> round(minimum_detectable_win_rate(200, 1, 0.0), 3)
        0.599
    """
    return 0.5 + _quantiles(power, significance) / 2 / math.sqrt(
        effective_votes(num_prompts, votes_per_prompt, correlation)
    )


def prompts_for_win_rate(
    win_rate: float,
    votes_per_prompt: float = 1,
    correlation: float = 0.0,
    *,
    power: float = 0.8,
    significance: float = 0.05,
) -> int:
    """How many prompts tell ``win_rate`` from 1/2.

        P = (z_{1-alpha/2} / 2 + z_power sqrt(w (1 - w)))^2 / (w - 1/2)^2 * (1 + (K - 1) rho) / K

    Args:
        win_rate: w, the true one, not 1/2.
        votes_per_prompt: K, votes or seeds of each prompt.
        correlation: rho, within-prompt correlation of the outcomes.
        power: probability of telling it.
        significance: alpha, two-sided.

    Example:
        >>> prompts_for_win_rate(0.55)
        783
    """
    if not 0 <= win_rate <= 1 or win_rate == 0.5:
        raise ValueError(f"expected a win rate in [0, 1] other than 1/2, got {win_rate}")
    spread = float(norm.ppf(1 - significance / 2) / 2 + norm.ppf(power) * math.sqrt(win_rate * (1 - win_rate)))
    return math.ceil((spread / (win_rate - 0.5)) ** 2 / effective_votes(1, votes_per_prompt, correlation))


def prompts_for_difference(standardised: float, *, power: float = 0.8, significance: float = 0.05) -> int:
    """How many prompts tell a paired difference from 0.

        P = ((z_{1-alpha/2} + z_power) / delta)^2

    Args:
        standardised: delta = mean(d_p) / sd(d_p), not 0.
        power: probability of telling it.
        significance: alpha, two-sided.

    Example:
        >>> prompts_for_difference(0.2)
        197
    """
    if standardised == 0:
        raise ValueError("expected a standardised difference other than 0: no number of prompts tells 0 from 0")
    return math.ceil((_quantiles(power, significance) / standardised) ** 2)


def intraclass_correlation(scores: Scores, *, allow_missing: bool = False) -> float | None:
    """Within-prompt correlation of values or outcomes, by one-way analysis of variance.

        rho = (MSB - MSW) / (MSB + (k0 - 1) MSW),    k0 = (N - sum k_p^2 / N) / (P - 1)

    Args:
        scores: (P, K) prompts x seeds, or {(prompt_id, seed): value}; seeds may differ in number. NaN is missing.
        allow_missing: leave out missing values instead of refusing.

    Returns:
        rho, at most 1; can be below 0 by chance. None when no prompt has two values or all values are equal.

    Raises:
        DiffalignError: missing or infinite values, or fewer than 2 prompts.

    Source:
        Shrout and Fleiss 1979, Psychological Bulletin 86, ICC(1,1); k0 for unequal sizes: Donner 1986,
        International Statistical Review 54.

    Example:
        >>> intraclass_correlation([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
        0.6666666666666666
    """
    table = align(scores, allow_missing=allow_missing)
    return one_way_correlation(table.columns[0], table.prompts)


def one_way_correlation(values: Floats, prompts: NDArray[np.intp]) -> float | None:
    """``intraclass_correlation`` of ``values`` (N,) whose prompts are numbered 0..P-1 in ``prompts`` (N,)."""
    sizes = np.bincount(prompts)
    means = np.bincount(prompts, weights=values) / sizes
    if (sizes == 1).all() or np.ptp(values) == 0:
        return None
    between = (sizes * (means - values.mean()) ** 2).sum() / (len(sizes) - 1)
    within = ((values - means[prompts]) ** 2).sum() / (len(values) - len(sizes))
    k0 = (len(values) - (sizes**2).sum() / len(values)) / (len(sizes) - 1)
    return float((between - within) / (between + (k0 - 1) * within))


def _quantiles(power: float, significance: float) -> float:
    return float(norm.ppf(1 - significance / 2) + norm.ppf(power))
