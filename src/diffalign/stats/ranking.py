"""Strengths of several models from comparisons of two: Bradley-Terry, and Davidson's model where many are ties."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.sparse.csgraph import connected_components
from scipy.special import logsumexp

from diffalign.core import DiffalignError, numpy_generator, unknown
from diffalign.stats.intervals import Estimate, resampled_interval
from diffalign.stats.tables import Floats

__all__ = ["ELO_SCALE", "Comparison", "Strengths", "bradley_terry", "davidson", "intransitive_triples"]

ELO_SCALE = 400 / math.log(10)  # display only: strength x 173.7 reads like an Elo rating

_NUM_RESAMPLES = 1000


class Comparison(NamedTuple):
    """One judgement of two models' images of one prompt; a plain tuple of the same four does as well.

    Attributes:
        prompt_id: the prompt, which is the unit of the intervals.
        model_i: name of the first model.
        model_j: name of the second model.
        outcome: 1 when i is better, 0.5 for a tie, 0 when j is better.
    """

    prompt_id: str
    model_i: str
    model_j: str
    outcome: float


@dataclass(frozen=True, kw_only=True)
class Strengths:
    """Fitted strengths, on the scale of log odds.

    Attributes:
        strengths: by model name; the anchor's is 0 without spread.
        anchor: the model whose strength is 0.
        tie_parameter: nu of Davidson's model; None for Bradley-Terry.
        num_comparisons: rows that entered.
        num_ties: rows that were ties. Above a tenth, ``davidson`` is the fit to read.
        separated: some models never lost (or never won) against the others, so the data set no bound to their distance:
            the ridge did, and the intervals of these models mean nothing.
    """

    strengths: Mapping[str, Estimate]
    anchor: str
    tie_parameter: Estimate | None
    num_comparisons: int
    num_ties: int
    separated: bool


@dataclass(frozen=True)
class _Counts:
    """What the rows say: (P, C, 3) counts of "first better, tie, second better" for C pairs of models."""

    models: list[str]
    pairs: NDArray[np.intp]  # (C, 2)
    outcomes: Floats


def bradley_terry(
    comparisons: Iterable[Comparison | tuple[str, str, str, float]],
    *,
    anchor: str,
    ridge: float = 1e-3,
    confidence: float = 0.95,
    seed: int = 0,
) -> Strengths:
    """Strengths under which the better model wins with logistic probability; a tie is half a win for each.

        P(i beats j) = sigmoid(b_i - b_j)

    Half ties shrink the strengths, so never compare them with Davidson's. Intervals: the model is fitted again on 1000
    resamples of the prompts.

    Args:
        comparisons: rows (prompt_id, model_i, model_j, outcome), outcome 1, 0.5 or 0.
        anchor: the model put at 0.
        ridge: weight of |b|^2 / 2 beside the summed log-likelihood; bounds the strength of a model that never lost.
        confidence: probability that an interval should hold the truth.
        seed: of the resampling.

    Raises:
        DiffalignError: an outcome of another value, a model against itself, an unknown anchor, fewer than 2 prompts, or
            models that no chain of comparisons joins.

    Source:
        Bradley and Terry 1952, Biometrika 39. Departures: the ridge, and half ties.

    Example:
        >>> rows = [(f"prompt {n}", "tuned", "base", float(n % 4 != 0)) for n in range(40)]  # wins 3 of 4
        >>> round(bradley_terry(rows, anchor="base").strengths["tuned"].mean, 2)  # log 3
        1.1
    """
    counts = _count(comparisons, anchor)
    firsts = counts.outcomes[..., 0] + counts.outcomes[..., 1] / 2
    seconds = counts.outcomes[..., 2] + counts.outcomes[..., 1] / 2
    design = np.zeros((len(counts.pairs), 2, len(counts.models)))
    for pair, (i, j) in enumerate(counts.pairs):
        design[pair, 0, i] = design[pair, 1, j] = 1
    draws = _fit_resampled(design, np.stack([firsts, seconds], axis=-1), ridge, seed)
    return _strengths(counts, draws, anchor, confidence)


def davidson(
    comparisons: Iterable[Comparison | tuple[str, str, str, float]],
    *,
    anchor: str,
    ridge: float = 1e-3,
    confidence: float = 0.95,
    seed: int = 0,
) -> Strengths:
    """Bradley-Terry with ties as an outcome of their own.

        D = e^{b_i} + e^{b_j} + nu e^{(b_i + b_j) / 2},    P(i) = e^{b_i} / D,    P(tie) = nu e^{(b_i + b_j) / 2} / D

    Equal models tie with probability nu / (2 + nu). Never compare strengths across rules for ties: a difference of 1
    here reads as 0.89, 0.80, 0.66, 0.50 with half ties at nu = 0.25, 0.5, 1, 2.

    Args:
        comparisons: rows (prompt_id, model_i, model_j, outcome), outcome 1, 0.5 or 0.
        anchor: the model put at 0.
        ridge: weight of (|b|^2 + log(nu)^2) / 2 beside the summed log-likelihood.
        confidence: probability that an interval should hold the truth.
        seed: of the resampling.

    Raises:
        DiffalignError: as ``bradley_terry``.

    Source:
        Davidson 1970, Journal of the American Statistical Association 65. Departure: the ridge.

    Example:
        >>> rows = [(f"prompt {n}", "tuned", "base", (1.0, 0.5, 0.0)[n % 3]) for n in range(30)]  # thirds
        >>> fit = davidson(rows, anchor="base")
        >>> round(fit.tie_parameter.mean, 2), round(abs(fit.strengths["tuned"].mean), 2)
        (1.0, 0.0)
    """
    counts = _count(comparisons, anchor)
    design = np.zeros((len(counts.pairs), 3, len(counts.models) + 1))
    for pair, (i, j) in enumerate(counts.pairs):
        design[pair, 0, i] = design[pair, 2, j] = 1
        design[pair, 1, [i, j]] = 0.5
    design[:, 1, -1] = 1  # log nu
    draws = _fit_resampled(design, counts.outcomes, ridge, seed)
    return _strengths(counts, draws, anchor, confidence)


def intransitive_triples(
    comparisons: Iterable[Comparison | tuple[str, str, str, float]],
) -> list[tuple[str, str, str]]:
    """Triples (i, j, k) in which i beat j, j beat k and k beat i, each more often than not.

    No scale of strengths can show such a triple; a few arise by chance.

    Raises:
        DiffalignError: an outcome other than 1, 0.5 and 0, or a model against itself.

    Source:
        Kendall and Babington Smith 1940, Biometrika 31.

    Example:
        >>> intransitive_triples([("p", "a", "b", 1.0), ("p", "b", "c", 1.0), ("p", "c", "a", 1.0)])
        [('a', 'b', 'c')]
    """
    counts = _tally(comparisons)
    wins = _wins(counts)
    above = wins > wins.T
    found = []
    for i, j, k in combinations(range(len(counts.models)), 3):
        for first, second, third in ((i, j, k), (i, k, j)):
            if above[first, second] and above[second, third] and above[third, first]:
                found.append((counts.models[first], counts.models[second], counts.models[third]))
    return found


def _tally(comparisons: Iterable[Comparison | tuple[str, str, str, float]]) -> _Counts:
    rows = [Comparison(*row) for row in comparisons]
    for row in rows:
        if row.outcome not in (0, 0.5, 1):
            raise DiffalignError(f"expected an outcome 1 (i better), 0.5 (tie) or 0 (j better), got {row}")
        if row.model_i == row.model_j:
            raise DiffalignError(f"expected two different models, got {row}")
    models = sorted({model for row in rows for model in (row.model_i, row.model_j)})
    pairs = sorted({(min(row.model_i, row.model_j), max(row.model_i, row.model_j)) for row in rows})
    prompt_number = {prompt: number for number, prompt in enumerate(sorted({row.prompt_id for row in rows}))}
    pair_number = {pair: number for number, pair in enumerate(pairs)}
    outcomes = np.zeros((len(prompt_number), len(pairs), 3))
    for prompt, i, j, outcome in rows:
        column = 2 - int(2 * outcome) if i < j else int(2 * outcome)
        outcomes[prompt_number[prompt], pair_number[min(i, j), max(i, j)], column] += 1
    places = {model: number for number, model in enumerate(models)}
    return _Counts(models, np.array([[places[i], places[j]] for i, j in pairs], dtype=np.intp), outcomes)


def _count(comparisons: Iterable[Comparison | tuple[str, str, str, float]], anchor: str) -> _Counts:
    """``_tally`` of rows that a scale of strengths can be fitted to."""
    counts = _tally(comparisons)
    if len(counts.outcomes) < 2:
        raise DiffalignError(
            f"expected comparisons on at least 2 prompts, got {len(counts.outcomes)}: the prompt is the unit"
        )
    if anchor not in counts.models:
        raise unknown("anchor", anchor, counts.models)
    wins = _wins(counts)
    number, labels = connected_components(wins, directed=True, connection="weak")
    if number > 1:
        groups = [[m for m, own in zip(counts.models, labels, strict=True) if own == label] for label in range(number)]
        raise DiffalignError(
            f"expected models that comparisons join, got the separate groups {groups}; compare some across the groups"
        )
    return counts


def _wins(counts: _Counts) -> Floats:
    """(M, M): how often the row's model beat the column's, ties half."""
    total = counts.outcomes.sum(0)
    wins = np.zeros((len(counts.models), len(counts.models)))
    i, j = counts.pairs.T
    wins[i, j] = total[:, 0] + total[:, 1] / 2
    wins[j, i] = total[:, 2] + total[:, 1] / 2
    return wins


def _fit_resampled(design: Floats, outcomes: Floats, ridge: float, seed: int) -> Floats:
    """(1 + N, D) parameters fitted to the (P, C, O) outcomes, then to N resamples of the P prompts."""
    num_prompts = len(outcomes)
    uniform = np.full(num_prompts, 1 / num_prompts)
    weights = numpy_generator("resampled prompts", seed).multinomial(num_prompts, uniform, size=_NUM_RESAMPLES)
    resampled = (weights @ outcomes.reshape(num_prompts, -1)).reshape(-1, *outcomes.shape[1:])
    start = _fit(design, outcomes.sum(0), ridge, np.zeros(design.shape[-1]))
    return np.stack([start, *(_fit(design, each, ridge, start) for each in resampled)])


def _fit(design: Floats, outcomes: Floats, ridge: float, start: Floats) -> Floats:
    """The D parameters of a multinomial logit: design (C, O, D), outcomes (C, O), Newton's method in a trust region."""
    totals = outcomes.sum(1, keepdims=True)

    def log_probabilities(theta: Floats) -> Floats:
        logits = design @ theta
        return np.asarray(logits - logsumexp(logits, axis=1, keepdims=True))

    def loss(theta: Floats) -> float:
        return float(-(outcomes * log_probabilities(theta)).sum() + ridge / 2 * theta @ theta)

    def gradient(theta: Floats) -> Floats:
        excess = totals * np.exp(log_probabilities(theta)) - outcomes
        return np.asarray(np.tensordot(excess, design, 2) + ridge * theta)

    def hessian(theta: Floats) -> Floats:
        probabilities = np.exp(log_probabilities(theta))[..., None]
        centred = design - (probabilities * design).sum(1, keepdims=True)
        spread = np.einsum("cod,coe->de", totals[..., None] * probabilities * centred, centred)
        return np.asarray(spread + ridge * np.eye(len(theta)))

    result = minimize(loss, start, jac=gradient, hess=hessian, method="trust-exact", options={"gtol": 1e-6})
    if np.abs(result.jac).max() > 1e-4:
        raise ArithmeticError(f"the fit of strengths stopped short, at a slope of {np.abs(result.jac).max()}")
    return np.asarray(result.x)


def _strengths(counts: _Counts, draws: Floats, anchor: str, confidence: float) -> Strengths:
    def estimate(column: Floats) -> Estimate:
        return resampled_interval(column[0], column[1:], confidence=confidence, num_prompts=len(counts.outcomes))

    place, num_models = counts.models.index(anchor), len(counts.models)
    has_ties = draws.shape[1] > num_models  # a last column with log nu
    return Strengths(
        strengths={model: estimate(draws[:, m] - draws[:, place]) for m, model in enumerate(counts.models)},
        anchor=anchor,
        tie_parameter=estimate(np.exp(draws[:, -1])) if has_ties else None,
        num_comparisons=int(counts.outcomes.sum()),
        num_ties=int(counts.outcomes[..., 1].sum()),
        separated=bool(connected_components(_wins(counts), directed=True, connection="strong")[0] > 1),
    )
