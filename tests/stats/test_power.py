"""Power: the tables of published designs, and simulation."""

from __future__ import annotations

import numpy as np
import pytest
from statsmodels.stats.power import TTestPower
from statsmodels.stats.proportion import proportion_confint

from diffalign.stats import (
    effective_votes,
    intraclass_correlation,
    minimum_detectable_win_rate,
    prompts_for_difference,
    prompts_for_win_rate,
    win_rate,
)


@pytest.mark.parametrize(
    ("prompts", "half", "smallest"),
    [(60, 12.3, 68.1), (100, 9.6, 64.0), (200, 6.9, 59.9), (500, 4.4, 56.3), (1000, 3.1, 54.4), (1632, 2.4, 53.5)],
)
def test_one_pair_for_each_prompt(prompts: int, half: float, smallest: float) -> None:
    """1/2 + 2.80 / (2 sqrt P), and Wilson's half-width at 50 %."""
    assert 100 * minimum_detectable_win_rate(prompts, 1, 0.3) == pytest.approx(smallest, abs=0.06)
    low, high = proportion_confint(prompts // 2, prompts, method="wilson")
    assert 50 * (high - low) == pytest.approx(half, abs=0.06)


@pytest.mark.parametrize(
    ("prompts", "votes", "worth", "smallest"),
    [(60, 18, 193, 60.1), (60, 35, 206, 59.8), (200, 5, 481, 56.4), (400, 3, 779, 55.0)],
)
def test_prompts_are_worth_more_than_votes(prompts: int, votes: int, worth: float, smallest: float) -> None:
    assert effective_votes(prompts, votes, 0.27) == pytest.approx(worth, abs=0.5)
    assert 100 * minimum_detectable_win_rate(prompts, votes, 0.27) == pytest.approx(smallest, abs=0.06)


def test_limits_of_effective_votes() -> None:
    assert effective_votes(60, 7, 0.0) == 420 and effective_votes(60, 7, 1.0) == 60
    assert effective_votes(60, 1e9, 0.25) == pytest.approx(60 / 0.25)
    with pytest.raises(ValueError, match="negative by chance"):
        effective_votes(60, 5, -0.25)


def test_how_many_prompts() -> None:
    assert [prompts_for_win_rate(rate) for rate in (0.52, 0.53, 0.55, 0.6)] == [4904, 2178, 783, 194]
    assert [prompts_for_difference(size) for size in (0.1, 0.2, 0.3)] == [785, 197, 88]
    assert prompts_for_win_rate(0.45) == prompts_for_win_rate(0.55) > prompts_for_win_rate(0.55, 4, 0.3)
    exact = TTestPower().solve_power(effect_size=0.1, alpha=0.05, power=0.8)
    assert prompts_for_difference(0.1) == pytest.approx(exact, abs=3)  # the t distribution asks for 2 more
    for wrong in (0.5, 1.1):
        with pytest.raises(ValueError, match="win rate"):
            prompts_for_win_rate(wrong)
    with pytest.raises(ValueError, match="other than 0"):
        prompts_for_difference(0)


def test_a_study_of_that_size_has_that_power() -> None:
    """At the smallest rate that 194 prompts tell from 1/2, the interval excludes 1/2 in about 80 % of 1000 studies."""
    wins = np.random.default_rng(0).random((1000, 194, 1)) < 0.6
    told = [win_rate(study, ~study).low > 0.5 for study in wins]
    assert np.mean(told) == pytest.approx(0.8, abs=0.04)


def test_correlation_limits_and_worked_numbers() -> None:
    """Means 2/3, 0, 1 with 3 each: MSB = 3 x .7778 / 2 = .7778 x ..., checked as (7/9 - 1/9) / (7/9 + 2/9)."""
    assert intraclass_correlation([[1, 1, 0], [0, 0, 0], [1, 1, 1]]) == pytest.approx(2 / 3)
    assert intraclass_correlation([[0, 0], [1, 1], [4, 4]]) == pytest.approx(1)
    assert intraclass_correlation([[0, 1], [1, 0], [0, 1]]) == pytest.approx(-1)
    assert intraclass_correlation([[0], [1], [0]]) is None and intraclass_correlation([[1, 1], [1, 1]]) is None


def test_correlation_of_unequal_sizes_is_that_of_the_variances() -> None:
    generator = np.random.default_rng(1)
    scores = {}
    for prompt in range(2000):
        level = generator.normal(0, 0.5**0.5)
        for seed in range(1 + prompt % 5):
            scores[(f"prompt {prompt}", seed)] = level + generator.normal(0, 1.5**0.5)
    assert intraclass_correlation(scores) == pytest.approx(0.25, abs=0.03)
