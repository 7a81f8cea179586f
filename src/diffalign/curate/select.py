"""Which pairs are kept: those whose damage a reward sees, and of them the best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from diffalign.curate.funnel import Dropped

__all__ = ["RankBy", "Selection", "select_pairs"]

RankBy = Literal["score", "gap"]


@dataclass(frozen=True)
class Selection:
    """What was kept of N pairs.

    Attributes:
        kept: numbers of pairs, best first.
        dropped: why not the others, by their number.
    """

    kept: list[int]
    dropped: dict[int, Dropped]


def select_pairs(
    scores: Sequence[tuple[float, float]], *, min_gap: float, keep: int = 0, rank_by: RankBy = "score"
) -> Selection:
    """Keep the pairs whose chosen image scores clearly higher, and of these the first few.

        gap = score(chosen) - score(rejected) > min_gap

    Args:
        scores: per pair, of the chosen and of the rejected image.
        min_gap: in the reward's unit.
        keep: how many at most; 0 for all.
        rank_by: what comes first: a high score of the chosen image, or a large gap.

    Raises:
        ValueError: a score is NaN, or ``keep`` is negative.

    Source:
        RealAlign, arXiv 2605.19839, curation steps 7 and 8.

    Example:
        >>> select_pairs([(21.0, 20.9), (20.0, 18.0), (22.0, 20.5)], min_gap=0.5).kept
        [2, 1]
    """
    if keep < 0 or any(one != one for pair in scores for one in pair):
        raise ValueError(f"expected scores that are numbers and keep of at least 0, got keep={keep} and {scores}")
    gaps = [chosen - rejected for chosen, rejected in scores]
    small = [index for index, gap in enumerate(gaps) if not gap > min_gap]
    dropped = {
        index: Dropped("gap", "gap too small", f"{gaps[index]:.4g}, expected more than {min_gap:g}") for index in small
    }
    values = gaps if rank_by == "gap" else [chosen for chosen, _ in scores]
    ranked = sorted((index for index in range(len(scores)) if index not in dropped), key=lambda one: -values[one])
    for rank, index in enumerate(ranked[keep:] if keep else [], start=keep + 1):
        dropped[index] = Dropped("keep", "not among the best", f"{rank} of {len(ranked)} by {rank_by}")
    return Selection(ranked[:keep] if keep else ranked, dropped)
