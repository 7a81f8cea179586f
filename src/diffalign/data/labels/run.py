"""A whole set of rows under a rule: the plan from the scores alone, then the pairs on disk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from diffalign.core import (
    Config,
    DiffalignError,
    RunFolder,
    content_hash,
    dump_config,
    progress,
    read_json,
    setting,
    write_json,
    write_jsonl,
)
from diffalign.data.labels.pairs import labelled_pair, pair_id, turned
from diffalign.data.labels.rules import (
    LabelledPair,
    LabelRule,
    PairChoice,
    as_rules,
    find_metric,
    label_scores,
)
from diffalign.data.preferences import Preferences
from diffalign.data.writing import MadeRow, write_preferences

__all__ = ["LabelConfig", "LabelCounts", "LabelPlan", "label_preferences", "plan_labels"]


class LabelConfig(Config):
    """Pairs with labels from the scores of pairs or candidate sets."""

    source: str = setting(..., "preference rows with scores: a folder, or a Parquet file")
    rules: tuple[LabelRule, ...] = setting(..., "the label is their mixture by share; with one rule, what it says")
    pairs: PairChoice = setting("best-worst", "of a candidate set: the best against the worst, all, or pareto")

    def model_post_init(self, _: object) -> None:
        """The shares of the rules are checked together."""
        as_rules(self.rules)


@dataclass(frozen=True, kw_only=True)
class LabelCounts:
    """What became of the rows.

    Attributes:
        rows: read.
        pairs: written.
        ties: of these, those with the label 0.5.
        swapped: of these, pairs whose rejected image is now the chosen one; None of candidate sets.
        dropped: pairs that were left out, by reason.
        mean_label: of the pairs written.
    """

    rows: int
    pairs: int
    ties: int
    swapped: int | None
    dropped: Mapping[str, int]
    mean_label: float


@dataclass(frozen=True)
class LabelPlan:
    """What would be written; see ``plan_labels``.

    Attributes:
        preferences: the rows.
        rules: with the identities of their metrics.
        labelled: per row its pairs, also those that are dropped.
    """

    preferences: Preferences
    rules: tuple[LabelRule, ...]
    labelled: Sequence[Sequence[LabelledPair]]

    @property
    def counts(self) -> LabelCounts:
        """The numbers of a summary.

        Raises:
            DiffalignError: no pair is left.
        """
        every = [one for row in self.labelled for one in row]
        kept = [one for one in every if not one.dropped]
        dropped = Counter(one.dropped for one in every if one.dropped)
        if not kept:
            reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items()) or "there are no rows"
            raise DiffalignError(f"no pair is left of {len(self.labelled)} rows ({reasons}): loosen the rule")
        return LabelCounts(
            rows=len(self.labelled),
            pairs=len(kept),
            ties=sum(one.label == 0.5 for one in kept),
            swapped=sum(one.chosen == 1 for one in kept) if self.preferences.form == "pair" else None,
            dropped=dict(sorted(dropped.items())),
            mean_label=sum(one.label for one in kept) / len(kept),
        )


def plan_labels(config: LabelConfig) -> LabelPlan:
    """Label every row from its scores; no image is read and nothing is written.

    Raises:
        DiffalignError: a row lacks a metric (with the nearest) or has no finite score in it; or a metric's name stands
            for several versions, whose scores do not compare.
    """
    preferences = Preferences(config.source)
    scores = preferences.as_candidates().scores()
    rows = list(zip(preferences.ids(), scores, strict=True))
    known = dict.fromkeys(identity for row in scores for identity in row)
    rules = tuple(
        rule.replace(metrics=tuple(_identity(name, known, rows) for name in rule.metrics)) for rule in config.rules
    )
    choice: PairChoice = "all" if preferences.form == "pair" else config.pairs
    labelled = [label_scores(row, rules, pairs=choice, row=name) for name, row in rows]
    return LabelPlan(preferences, rules, labelled)


def _identity(name: str, known: Mapping[str, None], rows: Sequence[tuple[str, Mapping[str, object]]]) -> str:
    """The one identity of a metric over all rows; where there is none, the message names the first row."""
    fits = any(name in (identity, identity.split("@")[0]) for identity in known)
    return find_metric(name, known) if fits or not rows else find_metric(name, rows[0][1], row=rows[0][0])


def label_preferences(config: LabelConfig, folder: str | Path) -> LabelCounts:
    """Write the pairs that the settings describe into ``folder/pairs``, or go on with the same run of before.

    Pairs keep their ids, a candidate set's get ids of their own; images keep their encoded bytes. ``dropped.jsonl``
    names every pair that was left out and why, ``labels.json`` has the counts.

    Args:
        config: the settings.
        folder: of the run.

    Raises:
        DiffalignError: as of ``plan_labels``; no pair is left; the folder belongs to another run, or the rows have
            changed since it was begun.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> from diffalign.data import PreferenceWriter
        >>> from diffalign.types import Pair
        >>> white, black = (Image.new("RGB", (5, 6), colour) for colour in ("white", "black"))
        >>> source, folder = tempfile.mkdtemp(), tempfile.mkdtemp()
        >>> with PreferenceWriter(source, form="pair") as writer:
        ...     writer.write(Pair(id="7", prompt="night", chosen=white, rejected=black, scores={"clip": (0.1, 0.3)}))
        True
        >>> rule = LabelRule(name="binary", metrics=("clip",))
        >>> label_preferences(LabelConfig(source=source, rules=(rule,)), folder)
        LabelCounts(rows=1, pairs=1, ties=0, swapped=1, dropped={}, mean_label=1.0)
        >>> Preferences(folder)[0].scores
        {'clip': (0.3, 0.1)}
    """
    plan = plan_labels(config)
    counts = plan.counts
    with RunFolder.open(folder, config, kind="label") as run:
        _refuse_changed(run.path / "inputs.json", plan)
        write_preferences(run.path / "pairs", "pair", progress(_rows(plan), total=counts.pairs, description="label"))
        write_jsonl(run.path / "dropped.jsonl", _dropped(plan))
        write_json(run.path / "labels.json", asdict(counts))
    return counts


def _rows(plan: LabelPlan) -> Iterator[tuple[str, Callable[[], MadeRow]]]:
    """The id of every kept pair, and what makes it."""
    sets = plan.preferences.form == "candidates"
    for index, (name, labelled) in enumerate(zip(plan.preferences.ids(), plan.labelled, strict=True)):
        for one in labelled:
            if not one.dropped:
                yield pair_id(name, one) if sets else name, partial(_make, plan, index, one)


def _make(plan: LabelPlan, index: int, found: LabelledPair) -> MadeRow:
    row, record = plan.preferences[index], plan.preferences.record(index)
    if plan.preferences.form == "candidates":
        stored = record["images"]
        pair = labelled_pair(row, found, plan.rules)
    else:
        stored = (record["chosen"], record["rejected"])
        pair = turned(row, found, plan.rules)
    return pair, [stored[side]["bytes"] for side in (found.chosen, found.rejected)]


def _dropped(plan: LabelPlan) -> Iterator[dict[str, object]]:
    for name, labelled in zip(plan.preferences.ids(), plan.labelled, strict=True):
        for one in labelled:
            if one.dropped:
                images = [one.chosen, one.rejected]
                yield {"id": name, "images": images, "label": one.label, "reason": one.dropped, "detail": one.detail}


def _refuse_changed(path: Path, plan: LabelPlan) -> None:
    inputs = {"rows": plan.preferences.fingerprint(), "rules": content_hash([dump_config(rule) for rule in plan.rules])}
    if not path.exists():
        write_json(path, inputs)
    elif read_json(path) != inputs:
        raise DiffalignError(
            f"the rows have changed since {path.parent} was begun. Bring the former ones back to go on, or choose "
            "another folder to begin anew."
        )
