"""Ranking accuracy under three conventions, and real human rankings."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest

from diffalign.core import DiffalignError
from diffalign.stats import (
    hpdv2_accuracy,
    imagereward_accuracy,
    mean_interval,
    pickapic_accuracy,
    pickapic_threshold,
)

RANKINGS = Path(__file__).resolve().parents[2].parent / "shared/prompts/imagereward_rankings_466.json"

# Ranks and scores of two prompts. First: pairs (0,1) right, (0,2) tied by the scorer, (1,2) tied by people.
# Second: (0,1) inverted.
SCORES, RANKS = [[0.7, 0.2, 0.7], [0.1, 0.4]], [[1, 2, 2], [1, 2]]


def test_ties_by_convention() -> None:
    """HPDv2: ties are right, (3/3 + 0/1) / 2. ImageReward: pairs (0,1) right, (0,2) wrong, second wrong: 1 of 3."""
    assert hpdv2_accuracy(SCORES, RANKS).mean == pytest.approx(1 / 2)
    assert imagereward_accuracy(SCORES, RANKS).mean == pytest.approx(1 / 3)


def test_a_constant_scorer_and_a_perfect_one() -> None:
    ranks = [[1, 2, 3, 3], [2, 1], [1, 1, 2]]
    constant, perfect = [[0.5] * len(each) for each in ranks], [[-rank for rank in each] for each in ranks]
    assert hpdv2_accuracy(constant, ranks).mean == hpdv2_accuracy(perfect, ranks).mean == 1
    assert imagereward_accuracy(constant, ranks).mean == 0 and imagereward_accuracy(perfect, ranks).mean == 1
    worst = [[float(rank) for rank in each] for each in ranks]
    assert imagereward_accuracy(worst, ranks).mean == 0 and hpdv2_accuracy(worst, ranks).mean < 0.2


def test_reversing_a_scorer_without_ties_mirrors_it() -> None:
    generator = np.random.default_rng(0)
    ranks = [generator.permutation(size) for size in (4, 5, 7, 4, 6)]
    scores = [generator.normal(size=len(each)) for each in ranks]
    for accuracy in (hpdv2_accuracy, imagereward_accuracy):
        straight, mirrored = accuracy(scores, ranks), accuracy([-each for each in scores], ranks)
        assert mirrored.mean == pytest.approx(1 - straight.mean) and mirrored.se == pytest.approx(straight.se)


def test_pickapic_credit() -> None:
    """|p1 - p0| = .8, .1, .6, .1, .8 at a threshold of .2: first, tie, second, tie, first."""
    probabilities, labels = [0.9, 0.55, 0.2, 0.45, 0.9], [1, 0.5, 1, 0, 0.5]
    estimate = pickapic_accuracy(probabilities, labels, ["a", "b", "c", "d", "e"], threshold=0.2)
    assert estimate.mean == pytest.approx((1 + 1 + 0 + 0.5 + 0.5) / 5) and estimate.num_prompts == 5
    mirrored = pickapic_accuracy(1 - np.array(probabilities), 1 - np.array(labels), list("abcde"), threshold=0.2)
    assert mirrored.mean == pytest.approx(estimate.mean)
    pooled = pickapic_accuracy(probabilities, labels, ["a", "a", "a", "b", "c"], threshold=0.2)
    assert pooled.mean == pytest.approx(estimate.mean) and pooled.num_prompts == 3


def test_pickapic_threshold_is_the_best_on_a_fine_grid() -> None:
    generator = np.random.default_rng(1)
    probabilities = generator.random(300)
    labels = np.where(np.abs(1 - 2 * probabilities) + generator.normal(0, 0.1, 300) < 0.3, 0.5, probabilities > 0.5)
    prompts = [str(n) for n in range(300)]
    best = pickapic_threshold(probabilities, labels)
    accuracies = [
        pickapic_accuracy(probabilities, labels, prompts, threshold=t).mean for t in (best, *np.linspace(0, 1, 101))
    ]
    assert accuracies[0] == max(accuracies) and 0.15 < best < 0.45
    assert pickapic_threshold([0.9, 0.2], [1, 0]) == 0


def test_wrong_inputs() -> None:
    with pytest.raises(DiffalignError, match="ranks for each of the 2 prompts"):
        hpdv2_accuracy(SCORES, RANKS[:1])
    with pytest.raises(DiffalignError, match="prompt 1: expected a rank for each"):
        hpdv2_accuracy(SCORES, [RANKS[0], [1]])
    with pytest.raises(DiffalignError, match="prompt 1: expected finite"):
        imagereward_accuracy([SCORES[0], [math.nan, 1]], RANKS)
    with pytest.raises(DiffalignError, match="did not tie, got 1"):
        imagereward_accuracy(SCORES, [RANKS[0], [1, 1]])
    with pytest.raises(DiffalignError, match="one label for each"):
        pickapic_threshold([0.5], [0.5, 1])
    with pytest.raises(DiffalignError, match=r"labels 1, 0\.5 or 0"):
        pickapic_threshold([0.5], [0.7])
    with pytest.raises(DiffalignError, match="a prompt for each"):
        pickapic_accuracy([0.5, 0.1], [0.5, 0], ["a"], threshold=0)


@pytest.fixture(scope="module")
def ranks() -> list[list[int]]:
    if not RANKINGS.exists():
        pytest.skip(f"needs the human rankings at {RANKINGS}")
    return [item["ranking"] for item in json.loads(RANKINGS.read_text(encoding="utf-8"))]


def test_the_rankings_and_their_ties(ranks: list[list[int]]) -> None:
    ties = [sum(first == second for first, second in itertools.combinations(each, 2)) for each in ranks]
    assert len(ranks) == 466 and {len(each) for each in ranks} == set(range(4, 10))
    assert sum(math.comb(len(each), 2) for each in ranks) == 7230
    assert sum(ties) == 831 and sum(count > 0 for count in ties) == 349


def test_an_images_place_predicts_its_rank(ranks: list[list[int]]) -> None:
    """The first half beats the last in 59.3 % (SE 1.3), the first image the second in 60.0 % (SE 2.1), ties half."""
    halves = {}
    for item, each in enumerate(ranks):
        half = len(each) // 2
        for number, (first, last) in enumerate(itertools.product(each[:half], each[-half:])):
            halves[(f"item {item}", number)] = (np.sign(last - first) + 1) / 2
    estimate = mean_interval(halves)
    assert (100 * estimate.mean, 100 * estimate.se) == pytest.approx((59.3, 1.3), abs=0.05)
    naive = np.std(list(halves.values())) / math.sqrt(len(halves))
    assert estimate.se > 1.5 * naive
    slots = mean_interval([[(np.sign(each[1] - each[0]) + 1) / 2] for each in ranks])
    assert (100 * slots.mean, 100 * slots.se) == pytest.approx((60.0, 2.1), abs=0.05)


def test_ties_broken_by_place_look_skilled_and_shuffled_ones_do_not(ranks: list[list[int]]) -> None:
    by_place = imagereward_accuracy([-np.arange(len(each)) for each in ranks], ranks)
    assert by_place.low > 0.5 and by_place.num_prompts == 466
    generator = np.random.default_rng(0)
    shuffled = imagereward_accuracy([generator.random(len(each)) for each in ranks], ranks)
    assert shuffled.low < 0.5 < shuffled.high
    untied = sum(first != second for each in ranks for first, second in itertools.combinations(each, 2))
    assert untied == 7230 - 831
    assert by_place.se > math.sqrt(by_place.mean * (1 - by_place.mean) / untied)  # pairs of a prompt hang together
