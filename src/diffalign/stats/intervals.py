"""Intervals over prompts: of one model's metric, of a paired difference, of a win rate.

The prompt is the unit, since the images of one prompt resemble each other. At a within-prompt correlation of 0.33 an
interval that counts 60 prompts x 18 votes as 1080 votes holds the truth in 55 % of studies instead of 95 %.
The prompts themselves must be independent: each with its own noise, not one noise tensor for all of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from diffalign.core import numpy_generator
from diffalign.stats.power import one_way_correlation
from diffalign.stats.significance import sign_flip_test, sign_test
from diffalign.stats.tables import Floats, Scores, align

__all__ = [
    "Estimate",
    "Method",
    "WinRate",
    "mean_interval",
    "paired_difference",
    "ratio_interval",
    "resampled_interval",
    "win_rate",
]

Method: TypeAlias = Literal["auto", "cluster_t", "bca", "percentile"]

_NUM_RESAMPLES = 10_000
_BATCH = 1000  # resamples held in memory at once


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number with its interval.

    "No worse than by m" is claimed when ``low > -m``; an interval that holds 0 does not show that two models are equal.
    ``mean / (se * sqrt(num_prompts))`` is the standardised difference.

    Attributes:
        mean: the estimate, in the metric's unit.
        low: lower end of the interval.
        high: upper end of the interval.
        se: standard error, in the metric's unit.
        num_prompts: prompts (or other clusters) that entered.
        method: cluster_t, bca, percentile, wilson; constant where all prompts have the same value: then low and high
            are that value, for nothing can be told of its spread. That is no interval, and no claim can rest on it.
        p_value: two-sided, of "no difference"; None where nothing is tested.
        num_missing: (prompt, seed) rows left out because a value was missing.
    """

    mean: float
    low: float
    high: float
    se: float
    num_prompts: int
    method: str
    p_value: float | None = None
    num_missing: int = 0


@dataclass(frozen=True, kw_only=True)
class WinRate(Estimate):
    """A win rate in [0, 1] and what it counts; a tie is half a win.

    Attributes:
        wins: (prompt, seed) rows where the first model is above the second.
        ties: rows where they are equal.
        losses: rows where it is below.
        correlation: within-prompt correlation of the outcomes, for ``minimum_detectable_win_rate``; None when no
            prompt has two rows or all outcomes are equal.
    """

    wins: int
    ties: int
    losses: int
    correlation: float | None


def mean_interval(
    scores: Scores, *, method: Method = "auto", confidence: float = 0.95, seed: int = 0, allow_missing: bool = False
) -> Estimate:
    """The mean of one model's metric over prompts.

        m_p = mean_s x_ps,    mean = mean_p m_p,    se = sd(m_p) / sqrt(P),    mean +- t_{P-1} se

    Args:
        scores: (P, K) prompts x seeds, or {(prompt_id, seed): value}; seeds may differ in number. NaN is missing.
        method: ``"auto"`` and ``"cluster_t"`` are the interval above; ``"bca"`` and ``"percentile"`` resample prompts
            10,000 times, a prompt's seeds travelling together. The percentile interval is too short below about 50
            prompts.
        confidence: probability that the interval should hold the truth.
        seed: of the resampling.
        allow_missing: leave out missing values, and count them, instead of refusing.

    Raises:
        DiffalignError: missing or infinite values, or fewer than 2 prompts.
        ValueError: wrong shape, or unknown method.

    Source:
        Cluster t: Miller 2024, arXiv 2411.00640; BCa: Efron 1987, JASA 82.

    Example:
        >>> estimate = mean_interval([[0.1, 0.3], [0.4, 0.6], [0.5, 1.1]])
        >>> round(estimate.mean, 3), round(estimate.low, 3), round(estimate.high, 3)
        (0.5, -0.245, 1.245)
    """
    table = align(scores, allow_missing=allow_missing)
    estimate = _interval(table.prompt_means(table.columns[0]), method, confidence, seed)
    return replace(estimate, num_missing=table.num_missing)


def paired_difference(
    a: Scores,
    b: Scores,
    *,
    method: Method = "auto",
    confidence: float = 0.95,
    seed: int = 0,
    allow_missing: bool = False,
) -> Estimate:
    """How much higher model a scores than model b on the same prompts and seeds.

        d_p = mean_s (a_ps - b_ps),    D = mean_p d_p,    interval as in ``mean_interval``

    The p value flips signs of the d_p.

    Args:
        a: (P, K) prompts x seeds, or {(prompt_id, seed): value}. NaN, or a key that the other lacks, is missing.
        b: like ``a``.
        method: as in ``mean_interval``; ``"auto"`` is the cluster t interval, which holds its level at 20 prompts too.
        confidence: probability that the interval should hold the truth.
        seed: of the resampling and of the sign flips.
        allow_missing: leave out rows that lack a partner, and count them, instead of refusing.

    Raises:
        DiffalignError: missing or infinite values, or fewer than 2 prompts.
        ValueError: shapes differ, or unknown method.

    Source:
        Miller 2024, arXiv 2411.00640.

    Example:
        >>> paired_difference([[3.0], [5.0], [4.0], [6.0]], [[2.0], [3.0], [3.5], [3.5]]).mean
        1.5
    """
    table = align(a, b, allow_missing=allow_missing)
    differences = table.prompt_means(table.columns[0] - table.columns[1])
    estimate = _interval(differences, method, confidence, seed)
    return replace(estimate, p_value=sign_flip_test(differences, seed=seed), num_missing=table.num_missing)


def win_rate(
    a: Scores,
    b: Scores,
    *,
    method: Method = "auto",
    confidence: float = 0.95,
    seed: int = 0,
    allow_missing: bool = False,
) -> WinRate:
    """How often model a beats model b on the same prompts and seeds, ties half.

        w_p = mean_s ([a_ps > b_ps] + 1/2 [a_ps = b_ps]),    W = mean_p w_p

    The p value is that of W = 1/2: the exact sign test over prompts where every w_p is 0, 1/2 or 1 (for outcomes that
    are right or wrong this is McNemar's exact test), otherwise sign flips of w_p - 1/2.

    Args:
        a: (P, K) prompts x seeds, or {(prompt_id, seed): value}. NaN, or a key that the other lacks, is missing.
        b: like ``a``.
        method: as in ``mean_interval``, save that ``"auto"`` is Wilson's interval where every w_p is 0 or 1, as with
            one seed and no ties. Where all w_p are equal every method is Wilson's, of P outcomes: no rates in
            [0, 1] with that mean vary more.
        confidence: probability that the interval should hold the truth.
        seed: of the resampling and of the sign flips.
        allow_missing: leave out rows that lack a partner, and count them, instead of refusing.

    Returns:
        The rate with an interval within [0, 1], and the counts of wins, ties and losses.

    Raises:
        DiffalignError: missing or infinite values, or fewer than 2 prompts.
        ValueError: shapes differ, or unknown method.

    Source:
        Wilson 1927, JASA 22; McNemar 1947, Psychometrika 12.

    Example:
        >>> rate = win_rate([[3.0], [5.0], [4.0]], [[2.0], [6.0], [4.0]])
        >>> rate.mean, rate.wins, rate.ties, rate.losses
        (0.5, 1, 1, 1)
    """
    table = align(a, b, allow_missing=allow_missing)
    outcomes = (np.sign(table.columns[0] - table.columns[1]) + 1) / 2
    rates = table.prompt_means(outcomes)
    estimate = _interval(rates, method, confidence, seed)
    if estimate.method == "constant" or (method == "auto" and np.isin(rates, (0, 1)).all()):
        estimate = _wilson(estimate, confidence)
    if np.isin(rates, (0, 0.5, 1)).all():
        p_value = sign_test(int((rates == 1).sum()), int((rates == 0).sum()))
    else:
        p_value = sign_flip_test(rates - 0.5, seed=seed)
    return WinRate(
        mean=estimate.mean,
        low=max(0.0, estimate.low),
        high=min(1.0, estimate.high),
        se=estimate.se,
        num_prompts=estimate.num_prompts,
        method=estimate.method,
        p_value=p_value,
        num_missing=table.num_missing,
        wins=int((outcomes == 1).sum()),
        ties=int((outcomes == 0.5).sum()),
        losses=int((outcomes == 0).sum()),
        correlation=one_way_correlation(outcomes, table.prompts),
    )


def ratio_interval(totals: Floats, counts: Floats, *, confidence: float = 0.95) -> Estimate:
    """A pooled mean, prompts as clusters of unequal size.

        R = sum_p t_p / sum_p n_p,    e_p = (t_p - R n_p) / mean(n),    se = sd(e_p) / sqrt(P),    R +- t_{P-1} se

    Args:
        totals: (P,) sum of the values of each prompt.
        counts: (P,) number of its values, above 0.
        confidence: probability that the interval should hold the truth.

    Source:
        Cochran 1977, Sampling Techniques, section 2.11.
    """
    ratio = totals.sum() / counts.sum()
    estimate = _cluster_t((totals - ratio * counts) / counts.mean(), confidence)
    return replace(estimate, mean=float(ratio), low=float(ratio + estimate.low), high=float(ratio + estimate.high))


def resampled_interval(mean: float, draws: Floats, *, confidence: float, num_prompts: int) -> Estimate:
    """The percentile interval of ``draws`` (N,), the estimate on N resamples of the prompts."""
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(
        mean=float(mean),
        low=float(low),
        high=float(high),
        se=float(draws.std(ddof=1)),
        num_prompts=num_prompts,
        method="percentile",
    )


def _interval(values: Floats, method: Method, confidence: float, seed: int) -> Estimate:
    if not 0 < confidence < 1:
        raise ValueError(f"expected a confidence between 0 and 1, got {confidence}")
    if method not in ("auto", "cluster_t", "bca", "percentile"):
        raise ValueError(f"expected method auto, cluster_t, bca or percentile, got {method!r}")
    estimate = _cluster_t(values, confidence)
    if method in ("auto", "cluster_t") or estimate.method == "constant":  # equal values have one resample only
        return estimate
    interval = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=_NUM_RESAMPLES,
        batch=_BATCH,
        confidence_level=confidence,
        method="BCa" if method == "bca" else method,
        rng=numpy_generator("interval over prompts", seed),
    ).confidence_interval
    return replace(estimate, low=float(interval.low), high=float(interval.high), method=method)


def _cluster_t(values: Floats, confidence: float) -> Estimate:
    mean, se = float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))
    half = float(stats.t.ppf((1 + confidence) / 2, len(values) - 1)) * se
    estimate = Estimate(
        mean=mean, low=mean - half, high=mean + half, se=se, num_prompts=len(values), method="cluster_t"
    )
    return replace(estimate, low=mean, high=mean, se=0.0, method="constant") if np.ptp(values) == 0 else estimate


def _wilson(estimate: Estimate, confidence: float) -> Estimate:
    """Of a rate over P prompts, as if each were won or lost whole."""
    wins = estimate.mean * estimate.num_prompts
    low, high = proportion_confint(wins, estimate.num_prompts, alpha=1 - confidence, method="wilson")
    low, high = min(float(low), estimate.mean), max(float(high), estimate.mean)  # rounding aside, it holds the rate
    return replace(estimate, low=low, high=high, method="wilson")
