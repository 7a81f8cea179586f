"""Which strength of guidance to take: prompts that choose and prompts that tell, the rule. No files, no networks."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from diffalign.core import DiffalignError, content_hash

__all__ = [
    "MORE_FAILED",
    "Column",
    "Key",
    "Measured",
    "Split",
    "broken_strengths",
    "choose_strength",
    "count_failed",
    "is_fit",
    "split_ids",
]

MORE_FAILED = 0.05  # share of the images that may lack a score beyond those that lack it at the weakest strength

Key = tuple[str, int]  # prompt, number of its image
Column = Mapping[Key, float]  # one metric at one strength; NaN where there is no value


@dataclass(frozen=True)
class Split:
    """Ids of prompts by their part.

    Attributes:
        validation: those that choose.
        report: those that numbers are told of.
    """

    validation: tuple[str, ...]
    report: tuple[str, ...]


def split_ids(prompt_ids: Iterable[str], validation_share: float) -> Split:
    """Two parts, by nothing but the ids: in the order of their hashes, the first share chooses.

    Args:
        prompt_ids: each once, at least 3.
        validation_share: in (0, 1); rounded, so that at least 1 prompt chooses and 2 are reported on.

    Raises:
        DiffalignError: too few prompts, or another share.

    Example:
        >>> split_ids(["a", "b", "c", "d", "e"], 0.4)
        Split(validation=('d', 'b'), report=('c', 'a', 'e'))
    """
    if not 0 < validation_share < 1:
        raise DiffalignError(f"expected a validation share above 0 and below 1, got {validation_share}")
    ordered = sorted(prompt_ids, key=lambda one: content_hash("part of a sweep", one))
    if len(ordered) < 3:
        raise DiffalignError(
            f"expected at least 3 prompts, 1 to choose by and 2 to report on, got {len(ordered)}: sample more of them"
        )
    count = min(max(1, round(validation_share * len(ordered))), len(ordered) - 2)
    return Split(tuple(ordered[:count]), tuple(ordered[count:]))


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One strength on the validation prompts.

    Attributes:
        strength: of guidance.
        quality: mean over prompts of the metric that chooses, higher is better; None where nothing was scored.
        diversity: mean over prompts of the distance between a prompt's images; None where no prompt has two.
        num_images: that should have a score, the same at every strength.
        num_failed: those of them that have none.
    """

    strength: float
    quality: float | None
    diversity: float | None
    num_images: int
    num_failed: int


def choose_strength(measured: Sequence[Measured], min_diversity: float) -> Measured:
    """The best strength among those that break few images and keep them diverse; the weaker of equal ones.

        s* = argmax q_s  over  s with f_s <= f_0 + 0.05 and d_s >= min_diversity d_0,    0 the weakest strength

    f is the share of images without a score, such as those that were not finite. Of a strength that breaks most images
    the mean over the others tells nothing, however high it is. Without a diversity at the weakest strength (one image
    per prompt) there is no condition on it.

    Args:
        measured: by rising strength.
        min_diversity: share of the weakest strength's diversity, in [0, 1].

    Raises:
        DiffalignError: no strength has a quality.

    Example:
        >>> rows = [(0.0, 0.1, 0.8), (2.0, 0.3, 0.7), (4.0, 0.3, 0.9), (8.0, 0.5, 0.3)]
        >>> whole = {"num_images": 20, "num_failed": 0}
        >>> measured = [Measured(strength=s, quality=q, diversity=d, **whole) for s, q, d in rows]
        >>> choose_strength(measured, min_diversity=0.8).strength
        2.0
    """
    fit = [each for each in measured if is_fit(each, measured[0], min_diversity)]
    if not fit:
        raise DiffalignError("no strength can be chosen: what chooses scores none of the validation images")
    return max(fit, key=lambda each: each.quality or 0.0)  # of equal ones, max takes the first


def is_fit(one: Measured, weakest: Measured, min_diversity: float) -> bool:
    """Whether a strength may be chosen; see ``choose_strength``."""
    if one.quality is None or not _fails_rarely(one.num_failed, weakest.num_failed, one.num_images):
        return False
    if weakest.diversity is None:
        return True
    return one.diversity is not None and one.diversity >= min_diversity * weakest.diversity


def _fails_rarely(num_failed: int, num_failed_at_weakest: int, num_images: int) -> bool:
    return num_failed - num_failed_at_weakest <= MORE_FAILED * num_images


def broken_strengths(
    strengths: Sequence[float], columns: Sequence[Column], prompts: Collection[str]
) -> frozenset[float]:
    """Those at which more of the images lack a value than ``choose_strength`` allows.

    Args:
        strengths: rising.
        columns: of the metric that chooses, one for each strength.
        prompts: whose images count.

    Example:
        >>> columns = [{("cat", 0): 1.0, ("cat", 1): 2.0}, {("cat", 0): 3.0, ("cat", 1): math.nan}]
        >>> broken_strengths([0.0, 4.0], columns, ["cat"])
        frozenset({4.0})
    """
    count, failed = count_failed(columns, prompts)
    return frozenset(
        strength
        for strength, lacking in zip(strengths, failed, strict=True)
        if not _fails_rarely(lacking, failed[0], count)
    )


def count_failed(columns: Sequence[Column], prompts: Collection[str]) -> tuple[int, list[int]]:
    """Images of these prompts, and how many of them have no value at each strength."""
    keys = {key for column in columns for key in column if key[0] in prompts}
    return len(keys), [sum(math.isnan(column.get(key, math.nan)) for key in keys) for column in columns]
