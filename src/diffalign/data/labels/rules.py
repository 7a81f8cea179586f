"""Rules as settings, and what they say about the candidates of one row: which pairs, which label, which are dropped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal, get_args

import numpy as np

from diffalign.core import Config, DiffalignError, setting, unknown
from diffalign.data.labels.formulas import (
    Floats,
    against_others,
    best_and_worst,
    binary_labels,
    bradley_terry_labels,
    calibrated_win_rates,
    leads,
    majority_vote,
    mixture,
    pareto_pairs,
    win_fractions,
)

__all__ = ["LabelRule", "LabelledPair", "PairChoice", "RuleName", "Rules", "find_metric", "label_scores", "rule_labels"]

RuleName = Literal["binary", "bradley_terry", "win_rate", "win_fraction", "majority"]
PairChoice = Literal["best-worst", "all", "pareto"]

TIE, CLOSE = "tie", "gap below min_gap"


class LabelRule(Config):
    """How scores become the probability that one image is better than another; several metrics are mixed."""

    name: RuleName = setting("bradley_terry", "binary, bradley_terry, win_rate, win_fraction or majority")
    metrics: tuple[str, ...] = setting(
        ..., "scores it looks at, higher is better: names, or whole identities; label is a pair's own label"
    )
    weights: tuple[float, ...] = setting((), "of the metrics, adding up to 1; empty for equal ones")
    temperatures: tuple[float, ...] = setting(
        (1.0,), "gap that makes odds of e to 1, for all metrics or each; of bradley_terry and win_rate",
        unit="of the metric",
    )  # fmt: skip
    ties: tuple[float, ...] = setting(
        (0.0,), "largest gap that is a tie, for all metrics or each; of binary, win_fraction and majority",
        unit="of the metric",
    )  # fmt: skip
    min_gaps: tuple[float, ...] = setting(
        (0.0,), "a pair closer than this in any metric is dropped, for all metrics or each", unit="of the metric"
    )
    tied: Literal["keep", "drop"] = setting("keep", "a pair of which the rule says 0.5: keep it as a tie, or drop it")
    share: float = setting(1.0, "of the label, where several rules are mixed; their shares add up to 1", ge=0, le=1)

    def model_post_init(self, _: object) -> None:
        """Checks that concern several settings.

        Raises:
            DiffalignError: a number for each metric is missing or out of range, or a setting has no part in the rule.
        """
        if not self.metrics or len(set(self.metrics)) < len(self.metrics):
            raise DiffalignError(f"metrics: expected at least one, each once, got {list(self.metrics)}")
        for name in ("temperatures", "ties", "min_gaps"):
            values = getattr(self, name)
            if len(values) not in (1, len(self.metrics)):
                raise DiffalignError(f"{name}: expected 1 or {len(self.metrics)}, one for each metric, got {values}")
            if not all(value > 0 if name == "temperatures" else value >= 0 for value in values):
                raise DiffalignError(f"{name}: expected {_ALLOWED[name]}, got {values}")
        for name, default in (("temperatures", (1.0,)), ("ties", (0.0,)), ("weights", ())):
            if getattr(self, name) != default and name not in _READ[self.name]:
                readers = [rule for rule in get_args(RuleName) if name in _READ[rule]]
                raise DiffalignError(f"{name}: rule {self.name} has none, {', '.join(readers)} have: leave it out")
        if self.weights:
            if len(self.weights) != len(self.metrics):
                raise DiffalignError(f"weights: expected {len(self.metrics)}, one for each metric, got {self.weights}")
            if min(self.weights) < 0 or abs(sum(self.weights) - 1) > 1e-6:
                raise DiffalignError(f"weights: expected numbers at or above 0 that add up to 1, got {self.weights}")


Rules = LabelRule | Sequence[LabelRule]

_ALLOWED = {"temperatures": "numbers above 0", "ties": "numbers at or above 0", "min_gaps": "numbers at or above 0"}
_READ: Mapping[RuleName, tuple[str, ...]] = {
    "binary": ("ties", "weights"),
    "bradley_terry": ("temperatures", "weights"),
    "win_rate": ("temperatures", "weights"),
    "win_fraction": ("ties", "weights"),
    "majority": ("ties",),
}


@dataclass(frozen=True, kw_only=True)
class LabelledPair:
    """Two candidates of a row under a rule.

    Attributes:
        chosen: number of the better one; of a tie, of the one that came first.
        rejected: number of the other.
        label: in [0.5, 1].
        dropped: why the pair is left out, in a few words from a small set; empty where it is kept.
        detail: what exactly.
    """

    chosen: int
    rejected: int
    label: float
    dropped: str = ""
    detail: str = ""


def label_scores(
    scores: Mapping[str, Sequence[float]], rules: Rules, *, pairs: PairChoice = "best-worst", row: str = ""
) -> list[LabelledPair]:
    """The pairs of one row's candidates, from their scores alone.

    The label of i over j is the mixture of what the rules say. "best-worst" pairs the candidate with the highest mean
    label against the others with the one with the lowest, "all" pairs each two, "pareto" the frontiers over all metrics
    of the rules (see ``pareto_pairs``; where there are none, best against worst). Every pair is turned so that its
    label is at least 0.5.

    Args:
        scores: per metric, of K >= 2 candidates.
        rules: one, or several with their shares.
        pairs: which.
        row: id, for messages.

    Returns:
        All of them, also those that are dropped.

    Raises:
        DiffalignError: a metric is missing (with the nearest), ambiguous or not finite; or the shares do not add up
            to 1.

    Example:
        >>> scores = {"clip@1": [0.3, 0.1, 0.2], "aesthetic@2": [5.0, 6.0, 4.0]}
        >>> (pair,) = label_scores(scores, LabelRule(metrics=("clip",), temperatures=(0.1,)))
        >>> pair.chosen, pair.rejected, round(pair.label, 4), pair.dropped
        (0, 1, 0.8808, '')
        >>> both = LabelRule(name="binary", metrics=("clip", "aesthetic"))
        >>> [(pair.chosen, pair.rejected, pair.label) for pair in label_scores(scores, both, pairs="all")]
        [(0, 1, 0.5), (0, 2, 1.0), (1, 2, 0.5)]
    """
    rules = as_rules(rules)
    tables = [_table(scores, rule.metrics, row) for rule in rules]
    said = [rule_labels(table, rule) for table, rule in zip(tables, rules, strict=True)]
    labels = mixture(np.stack(said, axis=-1), [rule.share for rule in rules])
    found = []
    for one, other in _choose(labels, scores, rules, row, pairs):
        better, worse = (one, other) if labels[one, other] >= 0.5 else (other, one)
        dropped, detail = _drop(better, worse, tables, said, rules)
        found.append(
            LabelledPair(
                chosen=better, rejected=worse, label=float(labels[better, worse]), dropped=dropped, detail=detail
            )
        )
    return found


def rule_labels(scores: Floats, rule: LabelRule) -> Floats:
    """What one rule says of every two candidates.

    Args:
        scores: (K, M), K >= 2, in the order of the rule's metrics.
        rule: its share does not enter.

    Returns:
        (K, K) labels of i over j; those of i over j and of j over i add up to 1.

    Raises:
        ValueError: another shape, or a score is not finite.
    """
    told = _FORMULAS[rule.name](scores, rule)
    if told.ndim == 2:  # the vote has joined the metrics
        return told
    return mixture(told, rule.weights or [1 / len(rule.metrics)] * len(rule.metrics))


def _gap_of(rates: Floats) -> Floats:
    """(K, M) win rates to (K, K, M) labels ``(1 + R_i - R_j)/2``."""
    return (1 + leads(rates)) / 2


# (K, M) scores to labels (K, K, M), or (K, K) where the metrics act together.
_FORMULAS: Mapping[RuleName, Callable[[Floats, LabelRule], Floats]] = {
    "binary": lambda scores, rule: binary_labels(leads(scores), ties=rule.ties),
    "bradley_terry": lambda scores, rule: bradley_terry_labels(leads(scores), temperatures=rule.temperatures),
    "win_rate": lambda scores, rule: _gap_of(calibrated_win_rates(scores, temperatures=rule.temperatures)),
    "win_fraction": lambda scores, rule: _gap_of(win_fractions(scores, ties=rule.ties)),
    "majority": lambda scores, rule: majority_vote(leads(scores), ties=rule.ties),
}


def find_metric(name: str, there: Iterable[str], *, row: str = "") -> str:
    """The identity under which a row has the score of this name.

    Args:
        name: an identity such as ``"clip_score@1f3a/clip224"``, or what stands before its @.
        there: the identities of the row.
        row: its id, for messages.

    Raises:
        DiffalignError: none of them (with the nearest), or several.

    Example:
        >>> find_metric("clip", ["clip@1/a", "pickscore@2"])
        'clip@1/a'
    """
    there = list(dict.fromkeys(there))
    if name in there:
        return name
    fitting = [identity for identity in there if identity.split("@")[0] == name]
    where = f"row {row!r}: " if row else ""
    if not fitting:
        short = [identity.split("@")[0] for identity in there]
        raise DiffalignError(f"{where}{unknown('metric', name, short)}")
    if len(fitting) > 1:
        raise DiffalignError(
            f"{where}several versions of {name!r} are there, whose scores do not compare: {', '.join(fitting)}; name "
            "one of them whole"
        )
    return fitting[0]


def as_rules(rules: Rules) -> tuple[LabelRule, ...]:
    """One rule or several as several.

    Raises:
        DiffalignError: there are none, or their shares do not add up to 1.
    """
    listed = (rules,) if isinstance(rules, LabelRule) else tuple(rules)
    shares = [rule.share for rule in listed]
    if not listed or abs(sum(shares) - 1) > 1e-6:
        raise DiffalignError(f"expected at least one rule, and shares that add up to 1, got shares {shares}")
    return listed


def _table(scores: Mapping[str, Sequence[float]], metrics: Sequence[str], row: str) -> Floats:
    """(K, M) float64 of a row's scores."""
    columns = [_column(scores[find_metric(name, scores, row=row)], name, row) for name in metrics]
    if len({len(column) for column in columns}) > 1 or len(columns[0]) < 2:
        raise DiffalignError(
            f"row {row!r}: expected scores of the same 2 or more images from every metric, got "
            f"{', '.join(f'{len(column)} of {name!r}' for column, name in zip(columns, metrics, strict=True))}"
        )
    return np.stack(columns, axis=1)


def _column(values: Sequence[Any], name: str, row: str) -> Floats:
    column = np.asarray(values, dtype=np.float64)  # what is None becomes NaN
    if not np.isfinite(column).all():
        worst = int(np.flatnonzero(~np.isfinite(column))[0])
        raise DiffalignError(
            f"row {row!r}: expected a finite score of every image in {name!r}, got {values[worst]} of image {worst}; "
            "score it again, or leave the row or the metric out"
        )
    return column


def _choose(
    labels: Floats, scores: Mapping[str, Sequence[float]], rules: Sequence[LabelRule], row: str, pairs: PairChoice
) -> list[tuple[int, int]]:
    standing = against_others(labels)
    if pairs == "all":
        return list(combinations(range(len(labels)), 2))
    if pairs == "best-worst":
        return [best_and_worst(standing)]
    if pairs == "pareto":
        metrics = dict.fromkeys(find_metric(name, scores, row=row) for rule in rules for name in rule.metrics)
        return pareto_pairs(_table(scores, list(metrics), row), standing)
    raise unknown("choice of pairs", pairs, get_args(PairChoice))


def _drop(
    better: int, worse: int, tables: Sequence[Floats], said: Sequence[Floats], rules: Sequence[LabelRule]
) -> tuple[str, str]:
    """Why a pair is left out, and what exactly; two empty texts where it is kept."""
    for table, labels, rule in zip(tables, said, rules, strict=True):
        gaps = np.abs(table[better] - table[worse])
        for name, gap, least in zip(rule.metrics, gaps, np.broadcast_to(rule.min_gaps, gaps.shape), strict=True):
            if gap < least:
                return CLOSE, f"{name}: {gap:.4g}, expected at least {least:g}"
        if rule.tied == "drop" and labels[better, worse] == 0.5:
            return TIE, f"by {rule.name} of {', '.join(rule.metrics)}"
    return "", ""
