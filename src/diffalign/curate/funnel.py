"""How many photographs came through each stage, and why the others did not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from diffalign.core import print_table
from diffalign.curate.rows import STAGES

__all__ = ["Funnel", "count_funnel", "print_funnel"]

_ALWAYS = ("read", "gap", "keep")  # printed even where they drop nothing


@dataclass(frozen=True)
class Funnel:
    """Counts of one curation.

    Attributes:
        photos: what there was to begin with.
        passed: by stage, how many were left after it.
        dropped: by stage and reason, how many it dropped.
        captions_cleaned: of those that were read, how many captions lost markup.
    """

    photos: int
    passed: Mapping[str, int]
    dropped: Mapping[str, Mapping[str, int]]
    captions_cleaned: int

    @property
    def kept(self) -> int:
        """Pairs in the end."""
        return self.passed[STAGES[-1]]


def count_funnel(photos: int, dropped: Iterable[Mapping[str, Any]], captions_cleaned: int = 0) -> Funnel:
    """Count stage by stage.

    Args:
        photos: what there was to begin with.
        dropped: a row for each that was dropped, with its ``stage`` and ``reason``.
        captions_cleaned: see `Funnel`.

    Example:
        >>> count_funnel(5, [{"stage": "read", "reason": "truncated"}, {"stage": "gap", "reason": "small"}]).kept
        3
    """
    reasons: dict[str, Counter[str]] = {stage: Counter() for stage in STAGES}
    for row in dropped:
        reasons[row["stage"]][row["reason"]] += 1
    passed, left = {}, photos
    for stage in STAGES:
        left -= reasons[stage].total()
        passed[stage] = left
    return Funnel(
        photos, passed, {stage: dict(sorted(found.items())) for stage, found in reasons.items()}, captions_cleaned
    )


def print_funnel(funnel: Funnel) -> None:
    """Print a line per stage on stdout."""
    rows = [("photographs", funnel.photos, "")]
    for stage in STAGES:
        if not funnel.dropped[stage] and stage not in _ALWAYS:
            continue
        why = ", ".join(f"{count} {reason}" for reason, count in funnel.dropped[stage].items())
        rows.append((stage, funnel.passed[stage], why))
    print_table(["stage", "left", "dropped"], rows, title="curation")
