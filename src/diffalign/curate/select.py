"""What can only be decided with all rows at hand: repeated photographs, means, and which pairs are the best.

All work on the rows' records, which hold no images.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from diffalign.curate.perceptual import near_duplicates
from diffalign.curate.rows import Dropped, Record

__all__ = [
    "RankBy",
    "Selection",
    "cluster",
    "drop_below_mean",
    "drop_near_duplicates",
    "drop_repeated",
    "is_left",
    "select_pairs",
    "spread_over_clusters",
]

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


def is_left(record: Record) -> bool:
    """Whether the row has not been dropped."""
    return "stage" not in record


def drop_repeated(records: Sequence[Record]) -> None:
    """Mark as dropped each row whose image an earlier one shows."""
    first: dict[str, str] = {}
    for record in filter(is_left, records):
        if record["id"] in first:
            record |= asdict(Dropped("read", "repeated", f"the same image as {first[record['id']]}"))
        else:
            first[record["id"]] = record["name"]


def drop_near_duplicates(records: Sequence[Record], max_likeness: int) -> None:
    """Mark as dropped each row that looks like an earlier one; see ``near_duplicates``.

    Args:
        records: with ``fingerprint``.
        max_likeness: bits that may differ; below 0 nothing is dropped.
    """
    if max_likeness < 0:
        return
    left = list(filter(is_left, records))
    for record, match in zip(left, near_duplicates([one["fingerprint"] for one in left], max_likeness), strict=True):
        if match is not None:
            record |= asdict(Dropped("select", "near duplicate", f"looks like {left[match]['name']}"))


def drop_below_mean(records: Sequence[Record], name: str) -> None:
    """Mark as dropped each row whose statistic does not exceed the mean of those that are left.

    Args:
        records: with ``statistics``.
        name: of the statistic.

    Source:
        RealAlign, arXiv 2605.19839, curation step 6, with colourfulness.
    """
    left = list(filter(is_left, records))
    if not left:
        return
    mean = float(np.mean([one["statistics"][name] for one in left]))
    for record in left:
        value = record["statistics"][name]
        if not value > mean:
            record |= asdict(Dropped("select", f"{name} below the mean", f"{value:.4g}, the mean is {mean:.4g}"))


def select_pairs(
    scores: Sequence[Sequence[tuple[float, float]]],
    *,
    min_gap: float,
    min_agreement: int = 1,
    keep: int = 0,
    rank_by: RankBy = "score",
    clusters: Callable[[Sequence[int]], ArrayLike] | None = None,
) -> Selection:
    """Keep the pairs whose chosen image scores clearly higher, and of these the best.

        gap = score(chosen) - score(rejected) > min_gap in the first reward, > 0 in min_agreement of all

    Args:
        scores: per pair and reward, of the chosen and of the rejected image; the first reward ranks.
        min_gap: in the first reward's unit.
        min_agreement: rewards that must prefer the chosen image.
        keep: how many at most; 0 for all.
        rank_by: what comes first: a high score of the chosen image, or a large gap.
        clusters: numbers of pairs to the cluster of each; what is kept is then spread over them.

    Raises:
        ValueError: a score is NaN, or ``keep`` is negative.

    Source:
        RealAlign, arXiv 2605.19839, curation steps 7 and 8. Agreement and clusters are not in the paper.

    Example:
        >>> select_pairs([[(21.0, 20.9)], [(20.0, 18.0)], [(22.0, 20.5)]], min_gap=0.5).kept
        [2, 1]
    """
    if keep < 0 or any(one != one for pair in scores for two in pair for one in two):
        raise ValueError(f"expected scores that are numbers and keep of at least 0, got keep={keep} and {scores[:3]}")
    dropped: dict[int, Dropped] = {}
    gaps = [[chosen - rejected for chosen, rejected in pair] for pair in scores]
    for index, gap in enumerate(gaps):
        agreeing = sum(one > 0 for one in gap)
        if not gap[0] > min_gap:
            dropped[index] = Dropped("gap", "gap too small", f"{gap[0]:.4g}, expected more than {min_gap:g}")
        elif agreeing < min_agreement:
            detail = f"{agreeing} of {len(gap)} prefer the photograph, expected {min_agreement}"
            dropped[index] = Dropped("gap", "rewards disagree", detail)
    values = [gap[0] for gap in gaps] if rank_by == "gap" else [pair[0][0] for pair in scores]
    ranked = sorted((index for index in range(len(scores)) if index not in dropped), key=lambda one: -values[one])
    if keep and clusters is not None and len(ranked) > keep:
        ranked = spread_over_clusters(ranked, np.asarray(clusters(ranked)).tolist())
    for rank, index in enumerate(ranked[keep:] if keep else [], start=keep + 1):
        dropped[index] = Dropped("keep", "not among the best", f"{rank} of {len(ranked)} by {rank_by}")
    return Selection(ranked[:keep] if keep else ranked, dropped)


def spread_over_clusters(ranked: Sequence[int], clusters: Sequence[int]) -> list[int]:
    """Ranked items in turns: the best of each cluster, then the second best of each, and so on.

    Args:
        ranked: N items, best first.
        clusters: of each, in the same order.

    Example:
        >>> spread_over_clusters([7, 3, 5, 1], [0, 0, 0, 1])
        [7, 1, 3, 5]
    """
    seen: Counter[int] = Counter()
    turns = []
    for place, cluster in enumerate(clusters):
        turns.append((seen[cluster], place))
        seen[cluster] += 1
    return [ranked[place] for _, place in sorted(turns)]


def cluster(features: ArrayLike, count: int, seed: int) -> list[int]:
    """The k-means cluster of each of N feature vectors (N, d), of at most N clusters."""
    rows = np.asarray(features, dtype=np.float64)
    with threadpool_limits(1):  # several threads add in whatever order they end
        found = KMeans(min(count, len(rows)), n_init=4, random_state=seed % 2**32).fit_predict(rows)
    return [int(one) for one in found]
