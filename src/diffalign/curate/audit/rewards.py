"""Whether rewards agree with the labels and with each other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
from scipy.stats import kendalltau

from diffalign.curate.audit.result import BetweenRewards
from diffalign.curate.audit.traces import Floats
from diffalign.stats import WinRate, win_rate

__all__ = ["cohen_kappa", "compare_rewards"]

Scores = Mapping[str, tuple[float, float]]


def compare_rewards(scores: Sequence[Scores]) -> tuple[dict[str, WinRate], tuple[BetweenRewards, ...]]:
    """How often each reward's gap is above 0, and how each two agree.

    Args:
        scores: (N,) by identity, of the chosen and of the rejected image; a pair may lack some.

    Returns:
        By reward that scored at least 2 pairs, ties half; and each two rewards that share at least 2 pairs.
    """
    names = sorted({name for one in scores for name in one})
    table = np.array([[one.get(name, (math.nan, math.nan)) for name in names] for one in scores]).reshape(
        len(scores), len(names), 2
    )
    there = np.isfinite(table).all(axis=2)
    rates = {}
    for column, name in enumerate(names):
        own = table[there[:, column], column]
        if len(own) >= 2:
            rates[name] = win_rate(own[:, :1], own[:, 1:])
    between = []
    for first, second in combinations(range(len(names)), 2):
        both = table[there[:, first] & there[:, second]]
        if len(both) >= 2:
            gaps = both[:, :, 0] - both[:, :, 1]
            between.append(_between(names[first], names[second], gaps[:, first], gaps[:, second]))
    return rates, tuple(between)


def cohen_kappa(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Agreement of two raters beyond chance.

        (p_o - p_e) / (1 - p_e),    p_o = share of equal ratings,    p_e = sum over ratings of the product of shares

    Args:
        first: (N,) ratings.
        second: (N,) ratings.

    Returns:
        At most 1; None where chance explains everything, since both give one and the same rating throughout.

    Source:
        Cohen 1960, Educational and Psychological Measurement 20.

    Example:
        >>> round(cohen_kappa([1, 1, 1, -1], [1, 1, -1, -1]), 3)
        0.5
    """
    one, two = np.asarray(first), np.asarray(second)
    chance = sum(float((one == rating).mean() * (two == rating).mean()) for rating in np.union1d(one, two))
    return None if chance == 1 else (float((one == two).mean()) - chance) / (1 - chance)


def _between(first: str, second: str, ours: Floats, theirs: Floats) -> BetweenRewards:
    signs, others = np.sign(ours), np.sign(theirs)
    varies = np.ptp(ours) > 0 and np.ptp(theirs) > 0
    return BetweenRewards(
        first=first,
        second=second,
        num_pairs=len(ours),
        agreement=float((signs == others).mean()),
        kappa=cohen_kappa(signs.tolist(), others.tolist()),
        tau=float(kendalltau(ours, theirs).statistic) if varies else None,
    )
