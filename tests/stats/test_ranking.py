"""Bradley-Terry and Davidson against closed forms and other implementations."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np
import pytest
from scipy.optimize import minimize
from statsmodels.api import GLM, families

from diffalign.core import DiffalignError
from diffalign.stats import ELO_SCALE, Comparison, bradley_terry, davidson, intransitive_triples, ranking

Row = tuple[str, str, str, float]


@pytest.fixture
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that look at the fit alone."""
    monkeypatch.setattr(ranking, "_NUM_RESAMPLES", 3)


def simulate(strengths: dict[str, float], prompts: int, nu: float, seed: int) -> Iterator[Row]:
    """Davidson's model: every pair of models once for each prompt."""
    generator = np.random.default_rng(seed)
    for prompt, (i, j) in itertools.product(range(prompts), itertools.combinations(strengths, 2)):
        weights = np.exp([strengths[i], (strengths[i] + strengths[j]) / 2, strengths[j]]) * [1, nu, 1]
        yield f"prompt {prompt}", i, j, float(generator.choice([1, 0.5, 0], p=weights / weights.sum()))


def counted(wins: int, ties: int, losses: int) -> list[Row]:
    outcomes = [1.0] * wins + [0.5] * ties + [0.0] * losses
    return [(f"prompt {n}", "a", "b", outcome) for n, outcome in enumerate(outcomes)]


@pytest.mark.usefixtures("few_resamples")
def test_two_models_have_closed_forms() -> None:
    """Bradley-Terry: log odds of wins with half ties. Davidson: log(wins / losses), nu = ties / sqrt(wins losses)."""
    rows = counted(500, 300, 200)
    assert bradley_terry(rows, anchor="b").strengths["a"].mean == pytest.approx(math.log(650 / 350), abs=1e-4)
    fit = davidson(rows, anchor="b")
    assert fit.strengths["a"].mean == pytest.approx(math.log(5 / 2), abs=1e-4)
    assert fit.tie_parameter is not None
    assert fit.tie_parameter.mean == pytest.approx(300 / math.sqrt(500 * 200), abs=1e-4)
    assert (fit.num_comparisons, fit.num_ties, fit.separated) == (1000, 300, False)
    assert fit.strengths["b"].mean == fit.strengths["b"].low == fit.strengths["b"].high == 0
    assert pytest.approx(173.7, abs=0.05) == ELO_SCALE


@pytest.mark.usefixtures("few_resamples")
def test_bradley_terry_is_a_logistic_regression() -> None:
    rows = list(simulate({"a": 0.0, "b": 0.7, "c": 1.5, "d": -0.4}, 80, 0.0, seed=1))
    names = ["b", "c", "d"]
    design = np.array([[(i == name) - (j == name) for name in names] for _, i, j, _ in rows], float)
    fit = GLM([outcome for *_, outcome in rows], design, family=families.Binomial()).fit()
    strengths = bradley_terry(rows, anchor="a", ridge=1e-9).strengths
    assert [strengths[name].mean for name in names] == pytest.approx(list(fit.params), abs=1e-6)


@pytest.mark.usefixtures("few_resamples")
def test_davidson_is_the_maximum_of_its_likelihood() -> None:
    rows = list(simulate({"a": 0.0, "b": 0.8, "c": 1.5}, 60, 0.8, seed=2))

    def loss(theta: np.ndarray) -> float:
        b, total = dict(zip("bc", theta[:2], strict=True)) | {"a": 0.0}, 0.0
        for _, i, j, outcome in rows:
            weights = {1: math.exp(b[i]), 0: math.exp(b[j]), 0.5: math.exp(theta[2] + (b[i] + b[j]) / 2)}
            total -= math.log(weights[outcome] / sum(weights.values()))
        return total

    best = minimize(loss, np.zeros(3), method="BFGS").x
    fit = davidson(rows, anchor="a", ridge=1e-9)
    assert fit.tie_parameter is not None
    found = [fit.strengths["b"].mean, fit.strengths["c"].mean, math.log(fit.tie_parameter.mean)]
    assert found == pytest.approx(list(best), abs=1e-4)


@pytest.mark.usefixtures("few_resamples")
@pytest.mark.parametrize(("nu", "reads_as"), [(0.25, 0.89), (0.5, 0.80), (1.0, 0.66), (2.0, 0.50)])
def test_half_ties_shrink_strengths(nu: float, reads_as: float) -> None:
    """Expected counts of 10,000 judgements at a Davidson difference of 1."""
    weights = np.array([math.e, nu * math.exp(0.5), 1])
    rows = counted(*(round(10_000 * part / weights.sum()) for part in weights))
    assert davidson(rows, anchor="b").strengths["a"].mean == pytest.approx(1, abs=1e-3)
    assert bradley_terry(rows, anchor="b").strengths["a"].mean == pytest.approx(reads_as, abs=0.006)


@pytest.mark.usefixtures("few_resamples")
def test_without_ties_the_two_agree() -> None:
    rows = list(simulate({"a": 0.0, "b": 0.5, "c": 1.0}, 50, 0.0, seed=3))
    first, second = bradley_terry(rows, anchor="a"), davidson(rows, anchor="a")
    for name in "bc":
        assert first.strengths[name].mean == pytest.approx(second.strengths[name].mean, abs=0.01)
    assert first.tie_parameter is None and second.tie_parameter is not None and second.tie_parameter.mean < 0.01


@pytest.mark.usefixtures("few_resamples")
@pytest.mark.parametrize("fit", [bradley_terry, davidson])
def test_symmetries(fit: object) -> None:
    """Neither the order of the rows, nor that of the two models, nor the anchor changes a difference."""
    rows = list(simulate({"a": 0.0, "b": 0.6, "c": 1.2}, 40, 0.5, seed=4))
    straight = fit(rows, anchor="a").strengths  # type: ignore[operator]
    turned = [Comparison(prompt, j, i, 1 - outcome) for prompt, i, j, outcome in reversed(rows)]
    other = fit(turned, anchor="c").strengths  # type: ignore[operator]
    for name in "abc":
        assert straight[name].mean == pytest.approx(other[name].mean - other["a"].mean, abs=1e-6)


def test_intervals_resample_prompts_not_votes() -> None:
    """40 prompts, each decided one way by all of its 9 votes: the votes are worth 40, not 360."""
    decided = np.random.default_rng(5).random(40) < 0.6
    rows = [(f"prompt {p}", "a", "b", float(won)) for p, won in enumerate(decided) for _ in range(9)]
    by_prompt = bradley_terry(rows, anchor="b").strengths["a"]
    by_vote = bradley_terry([(f"{p} {n}", *rest) for n, (p, *rest) in enumerate(rows)], anchor="b").strengths["a"]
    rate = decided.mean()
    assert by_prompt.mean == pytest.approx(by_vote.mean) and by_prompt.num_prompts == 40
    assert by_prompt.se == pytest.approx(1 / math.sqrt(40 * rate * (1 - rate)), rel=0.12)  # delta method
    assert by_prompt.se / by_vote.se == pytest.approx(3, rel=0.15)
    assert by_prompt.low < by_prompt.mean < by_prompt.high


@pytest.mark.usefixtures("few_resamples")
def test_a_model_that_never_lost_is_bounded_and_told() -> None:
    fit = bradley_terry(counted(30, 0, 0), anchor="b")
    assert fit.separated and 5 < fit.strengths["a"].mean < 20


def test_wrong_comparisons() -> None:
    rows = counted(3, 1, 2)
    with pytest.raises(DiffalignError, match=r"separate groups \[\['a', 'b'\], \['c', 'd'\]\]"):
        bradley_terry([*rows, ("prompt 0", "c", "d", 1.0)], anchor="a")
    with pytest.raises(DiffalignError, match="unknown anchor 'base'"):
        bradley_terry(rows, anchor="base")
    with pytest.raises(DiffalignError, match="two different models"):
        davidson([("prompt", "a", "a", 1.0)], anchor="a")
    for wrong in (0.7, -1.0, math.nan):
        with pytest.raises(DiffalignError, match="expected an outcome"):
            davidson([("prompt", "a", "b", wrong)], anchor="a")
    with pytest.raises(DiffalignError, match="at least 2 prompts, got 1"):
        bradley_terry(rows[:1], anchor="a")


def test_intransitive_triples() -> None:
    circle = [("p", "a", "b", 1.0), ("p", "c", "b", 0.0), ("p", "c", "a", 1.0)]
    assert intransitive_triples(circle) == [("a", "b", "c")]
    assert intransitive_triples([(p, j, i, outcome) for p, i, j, outcome in circle]) == [("a", "c", "b")]
    assert intransitive_triples([*circle, ("q", "a", "c", 1.0)]) == []  # c against a is even now
