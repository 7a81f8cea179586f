"""Scores to labels: one short function per formula, on plain arrays.

A label is the probability, in [0, 1], that the first of two images is the better one. K counts the candidates of one
prompt, M the metrics that scored them, and a gap is the score of the first image less that of the second.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

__all__ = [
    "Floats",
    "against_others",
    "best_and_worst",
    "binary_labels",
    "bradley_terry_labels",
    "calibrated_win_rates",
    "leads",
    "majority_vote",
    "mixture",
    "pareto_pairs",
    "pareto_sets",
    "win_fractions",
]

Floats: TypeAlias = NDArray[np.float64]

_ROUNDED = 12  # digits after which two means over other orders of the same numbers are equal


def binary_labels(gaps: ArrayLike, *, ties: ArrayLike = 0.0) -> Floats:
    """1 where the first image scores higher, 0 where lower, 0.5 where they are as good as equal.

        p = 1 if gap > tie,    0.5 if |gap| <= tie,    0 if gap < -tie

    Args:
        gaps: (...) in the unit of the metric.
        ties: the largest gap that counts as none; a number, or one for each metric on the last axis.

    Returns:
        (...) in {0, 0.5, 1}.

    Raises:
        ValueError: a gap is not finite, or a tie is below 0.

    Example:
        >>> binary_labels([0.3, 0.1, -0.1, -0.3], ties=0.1)
        array([1. , 0.5, 0.5, 0. ])
    """
    gaps, tolerance = _finite(gaps), _at_least_zero("ties", ties)
    return np.where(np.abs(gaps) <= tolerance, 0.5, (gaps > 0).astype(np.float64))


def bradley_terry_labels(gaps: ArrayLike, *, temperatures: ArrayLike = 1.0) -> Floats:
    """The probability of a logistic choice between two images.

        p = sigmoid(gap / temperature)

    Args:
        gaps: (...) in the unit of the metric.
        temperatures: the gap that makes odds of e to 1, above 0; a number, or one for each metric on the last axis.

    Returns:
        (...) in [0, 1].

    Raises:
        ValueError: a gap is not finite, or a temperature is not above 0.

    Source:
        Bradley, Terry 1952, Rank analysis of incomplete block designs. SmPO's softmax of two min-max scaled PickScores
        (Lu et al. 2025, arXiv 2506.02698) is this with a temperature of the range, 0.2820 - 0.1154 as a cosine: 16.66
        in raw PickScores, which are 100 times as large.

    Example:
        >>> bradley_terry_labels([0.0, 2.0, -2.0], temperatures=2.0).round(4)
        array([0.5   , 0.7311, 0.2689])
    """
    return np.asarray(expit(_finite(gaps) / _above_zero("temperatures", temperatures)), dtype=np.float64)


def majority_vote(gaps: ArrayLike, *, ties: ArrayLike = 0.0) -> Floats:
    """Which of two images more metrics prefer; a metric that sees a tie abstains.

    Args:
        gaps: (..., M).
        ties: as of ``binary_labels``.

    Returns:
        (...) 1 or 0, and 0.5 where as many are for as against.

    Raises:
        ValueError: as of ``binary_labels``.

    Source:
        BalancedDPO 2025, arXiv 2503.12575: the vote of HPS, CLIP, PickScore and an aesthetic score for each pair. What
        it does with a tied vote of its four is not published.

    Example: two to one; one to one and an abstention; nobody.
        >>> majority_vote([[0.2, 3.0, -1.0], [0.2, 0.0, -1.0], [0.0, 0.0, 0.0]])
        array([1. , 0.5, 0.5])
    """
    votes = 2 * binary_labels(gaps, ties=ties) - 1
    return np.asarray((1 + np.sign(votes.sum(-1))) / 2, dtype=np.float64)


def mixture(labels: ArrayLike, weights: Sequence[float]) -> Floats:
    """The weighted mean of several labels of the same pairs.

    Args:
        labels: (..., R) labels by R metrics or rules.
        weights: R weights at or above 0 that add up to 1.

    Returns:
        (...) in [0, 1]; exactly 0.5 where rounding alone keeps it from a tie.

    Raises:
        ValueError: the weights are not R, one is below 0, or they do not add up to 1.

    Example:
        >>> mixture([[0.9, 0.6], [1.0, 0.0]], [0.25, 0.75])
        array([0.675, 0.25 ])
    """
    labels, shares = np.asarray(labels, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    if labels.shape[-1:] != shares.shape:
        raise ValueError(f"expected a weight for each of the labels {labels.shape}, got {list(weights)}")
    if not ((shares >= 0).all() and abs(shares.sum() - 1) <= 1e-6):
        raise ValueError(f"expected weights at or above 0 that add up to 1, got {list(weights)}")
    mixed = (labels * shares).sum(-1)
    return np.where(np.abs(mixed - 0.5) < 10.0**-_ROUNDED, 0.5, mixed)


def leads(scores: ArrayLike) -> Floats:
    """The gap of every candidate to every other.

    Args:
        scores: (K, M), K >= 2 and M >= 1.

    Returns:
        (K, K, M) ``scores[i] - scores[j]``.

    Raises:
        ValueError: another shape, or a score is not finite.
    """
    table = _finite(scores)
    if table.ndim != 2 or table.shape[0] < 2 or table.shape[1] < 1:
        raise ValueError(f"expected scores (K, M) of K >= 2 candidates and M >= 1 metrics, got {table.shape}")
    return table[:, None] - table[None]


def against_others(labels: ArrayLike) -> Floats:
    """The mean label of every candidate against the others of its set.

    Args:
        labels: (K, K, ...) of i against j, 0.5 of each against itself.

    Returns:
        (K, ...) in [0, 1]; they add up to K/2 where ``labels[i, j] + labels[j, i]`` is 1.
    """
    labels = np.asarray(labels, dtype=np.float64)
    return np.asarray((labels.sum(1) - 0.5) / (len(labels) - 1), dtype=np.float64)


def win_fractions(scores: ArrayLike, *, ties: ArrayLike = 0.0) -> Floats:
    """The share of the others of its set that a candidate beats, for each metric; a tie is half a win.

    Args:
        scores: (K, M), K >= 2.
        ties: as of ``binary_labels``.

    Returns:
        (K, M) in [0, 1]; each metric's add up to K/2.

    Raises:
        ValueError: as of ``leads`` and ``binary_labels``.

    Source:
        RankDPO, Karthik et al. 2024, arXiv 2410.18013, whose phi is the mean over five rewards:
        ``diffalign.objectives.win_fractions``.

    Example:
        >>> win_fractions([[3.0, 3.0], [2.0, 1.0], [1.0, 1.0]])
        array([[1.  , 1.  ],
               [0.5 , 0.25],
               [0.  , 0.25]])
    """
    return against_others(binary_labels(leads(scores), ties=ties))


def calibrated_win_rates(scores: ArrayLike, *, temperatures: ArrayLike = 1.0) -> Floats:
    """The expected win rate of each candidate against the others of its set, for each metric.

        R_i = 1/(K - 1) sum over k != i of sigmoid((s_i - s_k) / temperature)

    Args:
        scores: (K, M), K >= 2.
        temperatures: as of ``bradley_terry_labels``.

    Returns:
        (K, M) in [0, 1]; each metric's add up to K/2.

    Raises:
        ValueError: as of ``leads`` and ``bradley_terry_labels``.

    Source:
        CaPO, Lee et al. 2025, arXiv 2502.02588, whose reward is the mean over metrics:
        ``diffalign.objectives.calibrated_rewards``. There is no code, and the temperature that brings a reward which
        was not trained on choices to this scale is not published: it has to be chosen.

    Example: odds of 9, 3 and 3 to 1.
        >>> calibrated_win_rates([[np.log(9)], [np.log(3)], [0.0]]).round(3)
        array([[0.825],
               [0.5  ],
               [0.175]])
    """
    return against_others(bradley_terry_labels(leads(scores), temperatures=temperatures))


def best_and_worst(values: ArrayLike) -> tuple[int, int]:
    """The first of the highest and the last of the lowest of K >= 2 values, which are never the same one.

    Example:
        >>> best_and_worst([0.2, 0.7, 0.7, 0.2]), best_and_worst([1.0, 1.0, 1.0])
        ((1, 3), (0, 2))
    """
    values = np.asarray(values, dtype=np.float64).round(_ROUNDED)
    return int(values.argmax()), len(values) - 1 - int(values[::-1].argmin())


def pareto_sets(scores: ArrayLike) -> tuple[list[int], list[int]]:
    """The candidates that no other beats, and those that beat no other.

    One beats another that is nowhere higher and somewhere lower. What is in both sets is left out of both, so either
    both are empty or neither is.

    Args:
        scores: (K, M), K >= 2, higher is better in each.

    Returns:
        Numbers of the upper and of the lower non-dominated set, ascending, without those in both.

    Raises:
        ValueError: as of ``leads``.

    Source:
        CaPO, Lee et al. 2025, arXiv 2502.02588, the frontiers that pairs are taken from.

    Example: the last beats nobody and nobody beats it.
        >>> pareto_sets([[3.0, 1.0], [1.0, 3.0], [1.0, 0.0], [0.0, 1.0], [-1.0, 9.0]])
        ([0, 1], [2, 3])
    """
    gaps = leads(scores)
    beats = np.all(gaps >= 0, axis=-1) & np.any(gaps > 0, axis=-1)
    upper, lower = ~np.any(beats, axis=0), ~np.any(beats, axis=1)
    return np.flatnonzero(upper & ~lower).tolist(), np.flatnonzero(lower & ~upper).tolist()


def pareto_pairs(scores: ArrayLike, rewards: ArrayLike | None = None) -> list[tuple[int, int]]:
    """Every candidate of the upper Pareto set against every one of the lower; else the best against the worst.

    Args:
        scores: (K, M), K >= 2, higher is better in each.
        rewards: (K,) what tells best and worst where the sets are empty; by default the mean over metrics of the
            ``calibrated_win_rates``.

    Returns:
        (better, worse) numbers of candidates, at least one pair.

    Raises:
        ValueError: as of ``leads``.

    Source:
        CaPO, Lee et al. 2025, arXiv 2502.02588, from secondary descriptions. How it draws among the pairs of large
        frontiers is not known; here all of them come.

    Example: metrics that disagree wholly leave no frontier; the first candidate leads by more than it trails.
        >>> pareto_pairs([[3.0, 1.0], [1.0, 0.0], [0.0, 1.0]]), pareto_pairs([[3.0, 0.0], [0.0, 1.0]])
        ([(0, 1), (0, 2)], [(0, 1)])
    """
    upper, lower = pareto_sets(scores)
    if upper:
        return [(better, worse) for better in upper for worse in lower]
    return [best_and_worst(calibrated_win_rates(scores).mean(1) if rewards is None else rewards)]


def _finite(values: ArrayLike) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if not np.isfinite(array).all():
        raise ValueError(f"expected finite scores, got {array[~np.isfinite(array)][0]}; leave out what has no score")
    return array


def _at_least_zero(name: str, values: ArrayLike) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if not (array >= 0).all():
        raise ValueError(f"expected {name} at or above 0, got {array.tolist()}")
    return array


def _above_zero(name: str, values: ArrayLike) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if not (array > 0).all():
        raise ValueError(f"expected {name} above 0, got {array.tolist()}")
    return array
