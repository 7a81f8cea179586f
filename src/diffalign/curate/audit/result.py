"""What an audit found, as plain values that JSON can hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from diffalign.core import DiffalignError
from diffalign.stats import Estimate, WinRate

__all__ = [
    "Audit",
    "BetweenRewards",
    "CaptionFit",
    "Captions",
    "Duplicates",
    "Histogram",
    "LeakTest",
    "Outside",
    "Parity",
    "Severity",
]


@dataclass(frozen=True, kw_only=True)
class Outside:
    """The difference of the two sides outside the mask, in levels 0 to 255; 0 after compositing.

    Attributes:
        num_pairs: pairs with a mask that leaves something outside, and two sides of one size: those compared here.
        num_differing: of these, pairs with any difference.
        largest: absolute difference of any channel.
        mean: absolute difference, over pixels and channels, averaged over the pairs.
        examples: ids of the first few that differ.
        num_without_mask: pairs without a mask; nothing is known to be outside.
        num_all_masked: pairs whose mask leaves nothing outside.
        num_empty_masks: pairs whose mask has nothing inside.
        num_sizes_differ: pairs of which one side is larger than the other or the mask.
    """

    num_pairs: int
    num_differing: int
    largest: float
    mean: float
    examples: tuple[str, ...]
    num_without_mask: int
    num_all_masked: int
    num_empty_masks: int
    num_sizes_differ: int


@dataclass(frozen=True, kw_only=True)
class Parity:
    """Whether both sides went through the same codec and resize: chosen minus rejected.

    Attributes:
        area: "outside" the masks, or the "whole" image where no pair has one: then the damage itself counts.
        num_pairs: pairs that entered ``differences``.
        differences: by statistic, the paired difference with a 95 % interval. ``blocking``, ``rolloff`` and ``noise``
            are logarithms: 0.1 is about 10 %.
        num_sizes_differ: pairs of sides of different size.
        num_modes_differ: pairs of sides of different mode.
    """

    area: str
    num_pairs: int
    differences: Mapping[str, Estimate]
    num_sizes_differ: int
    num_modes_differ: int


@dataclass(frozen=True, kw_only=True)
class LeakTest:
    """How well a classifier tells chosen from rejected without seeing the damage; 0.5 is not at all.

    Attributes:
        auc: shown both sides of a pair. It is the chance that the true order of one pair scores above the false order
            of another, so it reaches 0.755 where 30 % of the pairs leak fully.
        accuracy: share of pairs of which the right side is called chosen, ties half.
        single_auc: shown one image at a time.
        by_group: the paired AUC of each group of features alone.
        likeness: by cause, how much the differences resemble that cause, enacted on these images; at most 1.
        cause: in words; empty where there is no leak.
    """

    auc: Estimate
    accuracy: float
    single_auc: Estimate
    by_group: Mapping[str, float]
    likeness: Mapping[str, float]
    cause: str


@dataclass(frozen=True, kw_only=True)
class BetweenRewards:
    """How two rewards agree about the same pairs.

    Attributes:
        first: identity.
        second: identity.
        num_pairs: pairs that both scored.
        agreement: share of pairs in which both gaps have the same sign.
        kappa: Cohen's, of the signs; None where chance alone explains everything, as when all gaps are above 0.
        tau: Kendall's tau-b of the two gaps; None where one of them never varies.
    """

    first: str
    second: str
    num_pairs: int
    agreement: float
    kappa: float | None
    tau: float | None


@dataclass(frozen=True)
class Histogram:
    """Counts in bins of equal width from ``low`` to ``high``."""

    low: float
    high: float
    counts: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Severity:
    """How much was damaged.

    Attributes:
        area: share of the image inside the mask; pairs with a mask.
        damage: RMS difference in levels, inside the mask where there is one, else over the image; pairs of one size.
    """

    area: Histogram
    damage: Histogram


@dataclass(frozen=True, kw_only=True)
class Duplicates:
    """Images that come again, among the audited pairs.

    Attributes:
        identical: ids of pairs that share the very same chosen image; the first few groups.
        num_identical: pairs in all such groups.
        near: ids of pairs whose chosen images look alike and are not the same; the first few groups.
        num_near: pairs in all such groups.
        contradicting: ids of the first few pairs that reject an image which another pair chooses.
        num_contradicting: their number.
        num_equal_sides: pairs whose two sides are the same image.
    """

    identical: tuple[tuple[str, ...], ...]
    num_identical: int
    near: tuple[tuple[str, ...], ...]
    num_near: int
    contradicting: tuple[str, ...]
    num_contradicting: int
    num_equal_sides: int


@dataclass(frozen=True, kw_only=True)
class CaptionFit:
    """How captions fit their chosen image, against captions of other pairs on the same image.

    Attributes:
        num_scored: pairs.
        share_beaten: share of the other captions that score below an image's own, ties half; 0.5 is chance.
        num_misfits: pairs whose own caption beats less than half of the other captions.
        misfits: ids of the first few, the worst first.
    """

    num_scored: int
    share_beaten: float
    num_misfits: int
    misfits: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Captions:
    """What the captions look like.

    Attributes:
        num_empty: without a word.
        num_long: longer than text encoders of 77 tokens read.
        num_repeated: pairs whose caption another pair with another chosen image has too.
        most_repeated: the most frequent captions and in how many pairs each comes.
        fit: None where no score was given, or all captions are alike.
    """

    num_empty: int
    num_long: int
    num_repeated: int
    most_repeated: tuple[tuple[str, int], ...]
    fit: CaptionFit | None


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What `audit_pairs` found.

    Attributes:
        num_pairs: in the data set.
        num_audited: of these, looked at.
        num_ties: audited pairs of label 0.5: they have no preferred side, and only duplicates, captions, severity and
            the difference outside the mask count them.
        num_swapped: audited pairs of a label below 0.5: their rejected image counts as the chosen one.
        outside: difference outside the mask.
        parity: codec, resize, noise.
        leak: of the pixels outside the mask; None where ``no_leak`` says why.
        no_leak: why there is no leak test; empty where there is one.
        file_leak: of sizes, modes and files; None where too few pairs have a preferred side.
        rewards: by reward, how often its gap is above 0, ties half.
        between: each two rewards.
        severity: area and strength of the damage.
        duplicates: images that come again.
        captions: what they look like and whether they fit.
        warnings: a sentence for each thing to mend.
    """

    num_pairs: int
    num_audited: int
    num_ties: int
    num_swapped: int
    outside: Outside
    parity: Parity
    leak: LeakTest | None
    no_leak: str
    file_leak: LeakTest | None
    rewards: Mapping[str, WinRate]
    between: tuple[BetweenRewards, ...]
    severity: Severity
    duplicates: Duplicates
    captions: Captions
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON holds them."""
        found: dict[str, Any] = TypeAdapter(Audit).dump_python(self, mode="json")
        return found

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Audit:
        """The inverse of `to_dict`.

        Raises:
            DiffalignError: something is missing or of another type.
        """
        try:
            return TypeAdapter(cls).validate_python(dict(values))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise DiffalignError(f"expected an audit as to_dict writes it; {place}: {first['msg']}") from error
