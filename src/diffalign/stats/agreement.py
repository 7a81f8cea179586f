"""How often a scorer ranks images as people do, under the convention of each benchmark.

The conventions differ in what a tie counts, so accuracies under different ones are not comparable. Ties must never be
broken by an image's place in its list, which is informative in published rankings: shuffle first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from diffalign.core import DiffalignError
from diffalign.stats.intervals import Estimate, mean_interval, ratio_interval
from diffalign.stats.tables import Floats

__all__ = ["hpdv2_accuracy", "imagereward_accuracy", "pickapic_accuracy", "pickapic_threshold"]


def hpdv2_accuracy(scores: Sequence[ArrayLike], ranks: Sequence[ArrayLike], *, confidence: float = 0.95) -> Estimate:
    """Share of a prompt's pairs that are not inverted, averaged over prompts.

        1 - inversions / C(n, 2)

    A tie on either side is no inversion: a constant scorer gets 1.0.

    Args:
        scores: for each prompt, the (n,) scores of its images, higher is better.
        ranks: for each prompt, the (n,) human ranks, 1 is best, equal for a tie.
        confidence: probability that the interval (cluster t over prompts) should hold the truth.

    Raises:
        DiffalignError: prompts or images do not match, fewer than 2 images, or a score that is not finite.

    Source:
        Wu et al. 2023, arXiv 2306.09341, and the benchmark's code for ties.

    Example:
        >>> round(hpdv2_accuracy([[0.9, 0.5, 0.1], [0.2, 0.2]], [[1, 3, 2], [1, 2]]).mean, 3)  # (2/3 + 1) / 2
        0.833
    """
    accuracies = [(1 - (predicted * human < 0).mean()) for predicted, human in _pairs(scores, ranks)]
    return mean_interval(np.array(accuracies)[:, None], confidence=confidence)


def imagereward_accuracy(
    scores: Sequence[ArrayLike], ranks: Sequence[ArrayLike], *, confidence: float = 0.95
) -> Estimate:
    """Share of all pairs that people did not tie in which the scorer agrees; the pairs of all prompts are pooled.

    A tie of the scorer is wrong: a constant scorer gets 0.

    Args:
        scores: for each prompt, the (n,) scores of its images, higher is better.
        ranks: for each prompt, the (n,) human ranks, 1 is best, equal for a tie.
        confidence: probability that the interval (prompts as clusters of unequal size) should hold the truth.

    Returns:
        The accuracy; ``num_prompts`` counts prompts with at least one pair that was not tied.

    Raises:
        DiffalignError: as ``hpdv2_accuracy``, or every pair is tied.

    Source:
        Xu et al. 2023, arXiv 2304.05977. HPSv2's code averages over prompts instead of pooling.

    Example:
        >>> imagereward_accuracy([[0.9, 0.5, 0.1], [0.2, 0.2]], [[1, 3, 2], [1, 2]]).mean  # 2 of 4
        0.5
    """
    untied = [(predicted[human != 0], human[human != 0]) for predicted, human in _pairs(scores, ranks)]
    untied = [each for each in untied if len(each[0])]
    if len(untied) < 2:
        raise DiffalignError(f"expected at least 2 prompts with a pair that people did not tie, got {len(untied)}")
    right = np.array([(predicted == human).sum() for predicted, human in untied], float)
    return _within_unit(
        ratio_interval(right, np.array([len(human) for _, human in untied], float), confidence=confidence)
    )


def pickapic_accuracy(
    probabilities: ArrayLike,
    labels: ArrayLike,
    prompt_ids: Sequence[str],
    *,
    threshold: float,
    confidence: float = 0.95,
) -> Estimate:
    """Share of pairs whose three-way label (first, tie, second) the scorer predicts.

    The scorer predicts a tie where ``|p_1 - p_0| <= threshold``. Half credit where exactly one side says tie.

    Args:
        probabilities: (N,) p_0, that the first image is preferred; the softmax of the pair's two scores.
        labels: (N,) 1 for the first image, 0.5 for a tie, 0 for the second.
        prompt_ids: (N,) the prompt of each pair.
        threshold: in [0, 1], chosen on validation pairs by ``pickapic_threshold``.
        confidence: probability that the interval (prompts as clusters of unequal size) should hold the truth.

    Raises:
        DiffalignError: lengths differ, a value is out of its range, or fewer than 2 prompts.

    Source:
        Kirstain et al. 2023, arXiv 2305.01569, section 5.

    Example:
        >>> pickapic_accuracy([0.9, 0.55, 0.2], [1.0, 1.0, 1.0], ["a", "b", "c"], threshold=0.2).mean
        0.5
    """
    p, human = _probabilities_and_labels(probabilities, labels)
    if len(prompt_ids) != len(p):
        raise DiffalignError(f"expected a prompt for each of the {len(p)} pairs, got {len(prompt_ids)}")
    distinct, prompts = np.unique(np.array(prompt_ids), return_inverse=True)
    if len(distinct) < 2:
        raise DiffalignError(f"expected pairs of at least 2 prompts, got {len(distinct)}")
    credit = _pickapic_credit(p, human, threshold)
    totals, counts = np.bincount(prompts, credit).astype(float), np.bincount(prompts).astype(float)
    return _within_unit(ratio_interval(totals, counts, confidence=confidence))


def pickapic_threshold(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """The threshold of ``pickapic_accuracy`` with the best accuracy on these (validation) pairs, the smallest such.

    Args:
        probabilities: (N,) p_0, that the first image is preferred.
        labels: (N,) 1 for the first image, 0.5 for a tie, 0 for the second.

    Raises:
        DiffalignError: lengths differ, or a value is out of its range.

    Example:
        >>> pickapic_threshold([0.5, 0.75, 0.125], [0.5, 0.5, 0.0])
        0.5
    """
    p, human = _probabilities_and_labels(probabilities, labels)
    candidates = np.unique(np.append(np.abs(1 - 2 * p), 0.0))
    accuracies = [_pickapic_credit(p, human, candidate).mean() for candidate in candidates]
    return float(candidates[int(np.argmax(accuracies))])


def _pickapic_credit(p: Floats, human: Floats, threshold: float) -> Floats:
    predicted = np.where(np.abs(1 - 2 * p) <= threshold, 0.5, (p > 0.5).astype(float))
    return np.asarray(1 - np.abs(predicted - human))


def _probabilities_and_labels(probabilities: ArrayLike, labels: ArrayLike) -> tuple[Floats, Floats]:
    p, human = np.asarray(probabilities, float), np.asarray(labels, float)
    if p.ndim != 1 or p.shape != human.shape or not len(p):
        raise DiffalignError(f"expected one label for each probability (N,), got {human.shape} for {p.shape}")
    if not ((p >= 0) & (p <= 1)).all() or not np.isin(human, (0, 0.5, 1)).all():
        raise DiffalignError("expected probabilities in [0, 1] and labels 1, 0.5 or 0, got others")
    return p, human


def _pairs(scores: Sequence[ArrayLike], ranks: Sequence[ArrayLike]) -> list[tuple[Floats, Floats]]:
    """For each prompt, the signs of all pairs by the scorer and by people, 1 where the first of the two is better."""
    if len(scores) != len(ranks):
        raise DiffalignError(f"expected ranks for each of the {len(scores)} prompts with scores, got {len(ranks)}")
    signs = []
    for number, (score, rank) in enumerate(zip(scores, ranks, strict=True)):
        score, rank = np.asarray(score, float), np.asarray(rank, float)
        if score.shape != rank.shape or score.ndim != 1 or len(score) < 2:
            raise DiffalignError(
                f"prompt {number}: expected a rank for each of at least 2 scores, got {rank.shape} for {score.shape}"
            )
        if not (np.isfinite(score).all() and np.isfinite(rank).all()):
            raise DiffalignError(f"prompt {number}: expected finite scores and ranks, got {score} and {rank}")
        first, second = np.triu_indices(len(score), 1)
        signs.append((np.sign(score[first] - score[second]), np.sign(rank[second] - rank[first])))
    return signs


def _within_unit(estimate: Estimate) -> Estimate:
    return replace(estimate, low=max(0.0, estimate.low), high=min(1.0, estimate.high))
