"""Intervals over prompts: worked numbers, other implementations, and how often they hold the truth."""

from __future__ import annotations

import doctest
import importlib
import math
import pkgutil

import numpy as np
import pytest
from scipy import stats
from statsmodels.regression.linear_model import OLS
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

import diffalign.stats
from diffalign.core import DiffalignError
from diffalign.stats import (
    Estimate,
    holm,
    intraclass_correlation,
    mean_interval,
    paired_difference,
    reward_hacking_alarms,
    sign_flip_test,
    sign_test,
    win_rate,
)
from diffalign.stats.intervals import ratio_interval

P, K = 7, 3


def draw(seed: int, prompts: int = P, seeds: int = K) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.normal(size=(prompts, 1)) + generator.normal(size=(prompts, seeds))


def as_mapping(scores: np.ndarray) -> dict[tuple[str, int], float]:
    return {(f"prompt {p}", k): float(scores[p, k]) for p, k in np.ndindex(*scores.shape)}


@pytest.mark.parametrize("name", [module.name for module in pkgutil.iter_modules(diffalign.stats.__path__)])
def test_examples(name: str) -> None:
    assert doctest.testmod(importlib.import_module(f"diffalign.stats.{name}")).failed == 0


def test_paired_difference_worked_numbers() -> None:
    """d = (1, 2, 3): D = 2, sd 1, se 1/sqrt 3, t_2 at 97.5 % = 4.3027; 2 of the 8 ways to sign are as far out."""
    a, b = [[2.0, 4.0], [3.0, 5.0], [6.0, 4.0]], [[1.0, 3.0], [1.0, 3.0], [2.0, 2.0]]
    estimate = paired_difference(a, b)
    assert estimate.mean == pytest.approx(2) and estimate.se == pytest.approx(1 / math.sqrt(3))
    assert (estimate.low, estimate.high) == pytest.approx((2 - 4.302653 / math.sqrt(3), 2 + 4.302653 / math.sqrt(3)))
    assert (estimate.num_prompts, estimate.method, estimate.num_missing) == (3, "cluster_t", 0)
    assert estimate.p_value == pytest.approx(2 / 8)


def test_cluster_t_is_that_of_cluster_robust_regression() -> None:
    """With equal K, statsmodels' clustered covariance of an intercept is sd(m_p)^2 / P up to its (N - 1) / N factor."""
    scores = draw(1)
    fit = OLS(scores.ravel(), np.ones(P * K)).fit(
        cov_type="cluster", cov_kwds={"groups": np.repeat(np.arange(P), K), "use_correction": True}, use_t=True
    )
    estimate = mean_interval(scores)
    assert (estimate.mean, estimate.se) == pytest.approx((fit.params[0], fit.bse[0]))
    assert (estimate.low, estimate.high) == pytest.approx(tuple(fit.conf_int()[0]))


@pytest.mark.parametrize("method", ["bca", "percentile"])
def test_resampled_intervals_are_near_those_of_student(method: str) -> None:
    scores = draw(2, prompts=200)
    student, resampled = mean_interval(scores), mean_interval(scores, method=method)  # type: ignore[arg-type]
    assert resampled.method == method and resampled.mean == student.mean
    assert (resampled.low, resampled.high) == pytest.approx((student.low, student.high), abs=0.1 * student.se)
    again = mean_interval(scores, method=method)  # type: ignore[arg-type]
    other = mean_interval(scores, method=method, seed=1)  # type: ignore[arg-type]
    assert again == resampled != other


def test_swapping_the_models_flips_everything() -> None:
    a, b = draw(3), draw(4)
    straight, swapped = paired_difference(a, b), paired_difference(b, a)
    assert (swapped.mean, swapped.low, swapped.high) == pytest.approx((-straight.mean, -straight.high, -straight.low))
    assert swapped.p_value == pytest.approx(straight.p_value)
    first, second = win_rate(a, b), win_rate(b, a)
    assert (second.mean, second.low, second.high) == pytest.approx((1 - first.mean, 1 - first.high, 1 - first.low))
    assert (second.wins, second.ties, second.losses) == (first.losses, first.ties, first.wins)


def test_mappings_are_aligned_by_key_in_any_order() -> None:
    a, b = draw(5), draw(6)
    shuffled = dict(sorted(as_mapping(b).items(), key=lambda item: item[1]))
    for compare in (paired_difference, win_rate):
        assert compare(as_mapping(a), shuffled) == compare(a, b)
        assert compare(as_mapping(a), shuffled, method="percentile") == compare(a, b, method="percentile")


def test_prompts_with_more_seeds_do_not_weigh_more() -> None:
    assert mean_interval({("a", 0): 1.0, ("b", 0): 3.0, ("b", 1): 4.0, ("b", 2): 5.0}).mean == 2.5


def test_missing_values_are_refused_or_counted() -> None:
    """Of 4 prompts x 2 seeds one row lacks a, one lacks b, one prompt lacks all: 4 rows left out, 3 prompts stay."""
    a = as_mapping(np.arange(8.0).reshape(4, 2) ** 2)
    b = as_mapping(np.arange(8.0).reshape(4, 2))
    a[("prompt 0", 0)] = math.nan
    del b[("prompt 1", 1)], b[("prompt 2", 0)], a[("prompt 2", 1)]
    with pytest.raises(DiffalignError, match=r"none for 4 of 8, the first \('prompt 0', 0\)"):
        paired_difference(a, b)
    for compare in (paired_difference, win_rate):
        estimate = compare(a, b, allow_missing=True)
        assert (estimate.num_missing, estimate.num_prompts) == (4, 3)
    assert paired_difference(a, b, allow_missing=True).mean == pytest.approx((0 + 2 + (30 + 42) / 2) / 3)
    with pytest.raises(DiffalignError, match="none for 1 of 2"):
        mean_interval([[1.0], [math.nan]])


def test_wrong_inputs() -> None:
    with pytest.raises(ValueError, match="one shape"):
        paired_difference(np.zeros((3, 2)), np.zeros((3, 1)))
    with pytest.raises(ValueError, match="one shape"):
        mean_interval(np.zeros(3))
    with pytest.raises(ValueError, match="mappings only"):
        paired_difference(np.zeros((3, 2)), {("a", 0): 1.0})
    with pytest.raises(ValueError, match="cluster_t"):
        mean_interval(draw(0), method="bootstrap")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="between 0 and 1"):
        mean_interval(draw(0), confidence=95)
    with pytest.raises(DiffalignError, match=r"infinite one at .* \(1, 0\)"):
        mean_interval([[1.0], [math.inf], [2.0]])
    with pytest.raises(DiffalignError, match="at least 2 prompts, got 1"):
        mean_interval([[1.0, 2.0, 3.0]])


@pytest.mark.parametrize("method", ["auto", "bca", "percentile"])
def test_equal_models_differ_by_nothing(method: str) -> None:
    scores = draw(7)
    estimate = paired_difference(scores, scores, method=method)  # type: ignore[arg-type]
    assert (estimate.mean, estimate.low, estimate.high, estimate.p_value) == (0, 0, 0, 1)
    rate = win_rate(scores, scores, method=method)  # type: ignore[arg-type]
    assert (rate.mean, rate.ties, rate.p_value, rate.correlation) == (0.5, P * K, 1, None)


def test_win_rate_worked_numbers() -> None:
    """Per prompt 2 wins; win and tie; win and loss; 2 losses: w = 1, .75, .5, 0."""
    rate = win_rate([[1, 1], [1, 0], [1, 0], [0, 0]], [[0, 0], [0, 0], [0, 1], [1, 1]])
    assert (rate.wins, rate.ties, rate.losses) == (4, 1, 3)
    assert rate.mean == 0.5625 and rate.se == pytest.approx(np.std([1, 0.75, 0.5, 0], ddof=1) / 2)
    assert (rate.low, rate.high) == (0, 1)  # cut: t_3 x .213 reaches beyond
    assert rate.correlation == intraclass_correlation([[1, 1], [1, 0.5], [1, 0], [0, 0]])


def test_one_seed_without_ties_is_wilson_and_the_exact_sign_test() -> None:
    signs = np.array([1.0] * 45 + [-1.0] * 15)[:, None]
    rate = win_rate(signs, np.zeros_like(signs))
    low, high = proportion_confint(45, 60, method="wilson")
    assert (rate.method, rate.mean) == ("wilson", 0.75) and (rate.low, rate.high) == pytest.approx((low, high))
    assert rate.p_value == pytest.approx(stats.binomtest(45, 60).pvalue) and round(rate.p_value or 1, 4) == 0.0001
    assert win_rate(signs, 0 * signs, method="cluster_t").method == "cluster_t"


@pytest.mark.parametrize("method", ["auto", "cluster_t", "bca", "percentile"])
@pytest.mark.parametrize(("outcomes", "rate"), [((1, 0), 0.5), ((1, 1, 1, 0), 0.75), ((0.5,), 0.5), ((1, 1), 1.0)])
def test_equal_rates_of_all_prompts_are_not_certainty(method: str, outcomes: tuple[float, ...], rate: float) -> None:
    """Wilson's interval of P = 7 outcomes; for tied models (.5 of 7) from .202 to .798."""
    a = np.tile(np.array(outcomes, float), (P, 1))
    found = win_rate(a, np.full_like(a, 0.5), method=method)  # type: ignore[arg-type]
    low, high = proportion_confint(rate * P, P, method="wilson")
    assert (found.mean, found.method) == (rate, "wilson") and (found.low, found.high) == pytest.approx((low, high))
    if rate == 0.5:
        assert (round(found.low, 3), round(found.high, 3)) == (0.202, 0.798)


@pytest.mark.parametrize("method", ["auto", "cluster_t", "bca", "percentile"])
def test_equal_values_of_all_prompts_have_no_interval(method: str) -> None:
    for value in (0.1, 0.0):
        scores = np.full((P, K), value)
        for found in (mean_interval(scores, method=method), paired_difference(scores, 0 * scores, method=method)):  # type: ignore[arg-type]
            assert found.method == "constant" and found.low == found.mean == found.high and found.se == 0
    almost = np.full((P, K), 0.1)
    almost[0, 0] = 0.2
    assert mean_interval(almost).method == "cluster_t" and mean_interval(almost).low < mean_interval(almost).mean


def test_winning_every_prompt_is_not_certainty() -> None:
    rate = win_rate(np.ones((20, 4)), np.zeros((20, 4)))
    assert (rate.mean, rate.high) == (1, 1) and rate.low == pytest.approx(1 / (1 + 1.959964**2 / 20))


@pytest.mark.parametrize(
    ("wins", "losses", "p"),
    [(38, 12, "0.0003"), (34, 20, "0.076"), (45, 15, "0.0001"), (34, 26, "0.37"), (40, 20, "0.013")],
)
def test_sign_test_of_published_studies(wins: int, losses: int, p: str) -> None:
    assert round(sign_test(wins, losses), len(p) - 2) == float(p)
    assert sign_test(wins, losses) == sign_test(losses, wins)


def test_sign_test_is_mcnemar_and_the_sign_flips_of_equal_steps() -> None:
    """9 prompts only a gets right, 3 only b: the pairs on which both agree say nothing."""
    a, b = np.array([1] * 9 + [0] * 3 + [1] * 5)[:, None], np.array([0] * 9 + [1] * 3 + [1] * 5)[:, None]
    exact = mcnemar([[5, 9], [3, 0]], exact=True).pvalue
    assert win_rate(a, b).p_value == pytest.approx(exact) == sign_test(9, 3)
    assert sign_flip_test((a - b)[:12, 0]) == pytest.approx(exact)


def test_sign_flips_are_near_the_t_test_on_many_prompts() -> None:
    differences = np.random.default_rng(8).normal(0.12, 1, 200)
    assert sign_flip_test(differences) == pytest.approx(stats.ttest_1samp(differences, 0).pvalue, abs=0.015)


def test_holm_worked_numbers_and_brute_force() -> None:
    """Sorted .01 .02 .03 .2 by 4, 3, 2, 1: .04, .06, .06, .2."""
    assert holm({"a": 0.03, "b": 0.01, "c": 0.2, "d": 0.02}) == pytest.approx(
        {"a": 0.06, "b": 0.04, "c": 0.2, "d": 0.06}
    )
    p = np.random.default_rng(9).random(6)
    order, adjusted = np.argsort(p), np.zeros(6)
    for k, place in enumerate(order):
        adjusted[place] = max(min(1, (6 - j) * p[order[j]]) for j in range(k + 1))
    assert list(holm(dict(zip("abcdef", p, strict=True))).values()) == pytest.approx(list(adjusted))
    for wrong in ({}, {"a": math.nan}, {"a": 1.5}):
        with pytest.raises(DiffalignError, match="expected p values"):
            holm(wrong)


def test_ratio_interval_limits() -> None:
    """Equal counts: the mean of the prompts' means. Unequal: statsmodels' cluster-robust pooled mean."""
    values, sizes = np.random.default_rng(10).random(12), np.array([1, 2, 4, 5])
    equal, means = ratio_interval(values[:4] * 3, np.full(4, 3.0)), mean_interval(values[:4, None])
    assert (equal.mean, equal.low, equal.se) == pytest.approx((means.mean, means.low, means.se))
    groups = np.repeat(np.arange(4), sizes)
    fit = OLS(values, np.ones(12)).fit(cov_type="cluster", cov_kwds={"groups": groups})
    pooled = ratio_interval(np.bincount(groups, values), sizes.astype(float))
    assert (pooled.mean, pooled.se) == pytest.approx((fit.params[0], fit.bse[0]))


def test_alarms() -> None:
    def between(low: float, high: float) -> Estimate:
        return Estimate(mean=(low + high) / 2, low=low, high=high, se=0.1, num_prompts=60, method="cluster_t")

    up, down, unclear = between(0.1, 0.3), between(-0.3, -0.1), between(-0.2, 0.1)
    unclear_gain = between(-0.1, 0.2)
    assert reward_hacking_alarms({"pick": up}, {"vqa": unclear, "clip": up}, {"vendi": unclear}) == []
    assert reward_hacking_alarms({"pick": unclear_gain}, {"vqa": down}, {}) == []
    assert len(reward_hacking_alarms({"pick": up}, {"vqa": down, "clip": down}, {})) == 2
    assert reward_hacking_alarms({}, {}, {"recall": down}) == ["diversity recall fell (-0.2, -0.3 to -0.1)"]
    with pytest.raises(DiffalignError, match="pick as both"):
        reward_hacking_alarms({"pick": up}, {"pick": up}, {})


# --- coverage: x = 1[mu_p + noise > 0], mu_p ~ N(.1, sd^2), noise ~ N(0, 1), so E x = Phi(.1 / sqrt(1 + sd^2)) ---


def votes(runs: int, prompts: int, per_prompt: int, sd: float) -> tuple[np.ndarray, float]:
    generator = np.random.default_rng([runs, prompts, per_prompt])
    mu = generator.normal(0.1, sd, (runs, prompts, 1))
    return mu + generator.normal(size=(runs, prompts, per_prompt)) > 0, stats.norm.cdf(0.1 / math.hypot(1, sd))


def coverage(x: np.ndarray, truth: float, method: str) -> float:
    estimates = [mean_interval(run, method=method) for run in x]  # type: ignore[arg-type]
    return float(np.mean([each.low <= truth <= each.high for each in estimates]))


def naive_coverage(x: np.ndarray, truth: float) -> float:
    rate = x.mean((1, 2))
    half = 1.959964 * np.sqrt(rate * (1 - rate) / (x.shape[1] * x.shape[2]))
    return float((np.abs(rate - truth) <= half).mean())


@pytest.mark.parametrize(
    ("prompts", "per_prompt", "sd", "correlation"),
    [(60, 18, 1.0, 0.33), (60, 18, 0.67, 0.20), (60, 35, 1.0, 0.33), (200, 4, 1.0, 0.33)],
)
def test_cluster_t_holds_the_truth_where_the_naive_interval_fails(
    prompts: int, per_prompt: int, sd: float, correlation: float
) -> None:
    """The naive interval is too short by sqrt(1 + (K - 1) rho): 83 % at 200 x 4, 55 and 42 % at 60 x 18 and 60 x 35.

    1000 runs know a coverage of 95 % to 0.7 points; 4000 know one of 55 % to 0.8.
    """
    x, truth = votes(4000, prompts, per_prompt, sd)
    assert 0.93 <= coverage(x[:1000], truth, "cluster_t") <= 0.97
    expected = 2 * stats.norm.cdf(1.959964 / math.sqrt(1 + (per_prompt - 1) * correlation)) - 1
    assert naive_coverage(x, truth) == pytest.approx(expected, abs=0.025)
    correlations = [intraclass_correlation(run) for run in x[:100]]
    assert np.mean(correlations) == pytest.approx(correlation, abs=0.02)  # type: ignore[arg-type]


@pytest.mark.parametrize("prompts", [20, 60])
def test_coverage_of_paired_differences_and_win_rates(prompts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """a - b = mu_p + noise, mu_p ~ N(.1, 1), noise ~ N(0, 2): the difference is .1, the win rate Phi(.1 / sqrt 3).

    500 runs know a coverage of 95 % to 1 point. A win rate over rows instead of prompts would hold it in about 87 %.
    """
    monkeypatch.setattr("diffalign.stats.intervals.sign_flip_test", lambda differences, seed: 1.0)  # not looked at
    runs, generator = 500, np.random.default_rng(prompts)
    level = generator.normal(0.1, 1, (runs, prompts, 1))
    a, b = level + generator.normal(size=(runs, prompts, 4)), generator.normal(size=(runs, prompts, 4))
    truths = {paired_difference: 0.1, win_rate: stats.norm.cdf(0.1 / math.sqrt(3))}
    for compare, truth in truths.items():
        found = [compare(one, other) for one, other in zip(a, b, strict=True)]
        assert 0.925 <= np.mean([each.low <= truth <= each.high for each in found]) <= 0.975, compare


@pytest.mark.slow
@pytest.mark.parametrize("sd", [1.0, 0.67])
@pytest.mark.parametrize(("prompts", "per_prompt"), [(200, 4), (60, 18), (60, 35), (20, 10)])
def test_coverage_of_every_method(prompts: int, per_prompt: int, sd: float) -> None:
    """The percentile interval falls short at 20 prompts; the others hold."""
    x, truth = votes(2000, prompts, per_prompt, sd)
    for method in ("cluster_t", "bca", "percentile"):
        least = 0.91 if prompts < 50 and method != "cluster_t" else 0.93
        assert least <= coverage(x, truth, method) <= 0.97, method
    if prompts < 50:
        assert coverage(x, truth, "percentile") < coverage(x, truth, "cluster_t")
