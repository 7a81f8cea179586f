"""Images that come again: the same pixels by their hash, alike ones by their coarse structure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence

import numpy as np
from PIL import Image

from diffalign.curate.audit.result import Duplicates
from diffalign.curate.perceptual import near_duplicates, perceptual_hash

__all__ = ["MAX_DISTANCE", "find_duplicates", "structure_hash"]

MAX_DISTANCE = 6  # bits of 64
_SHOWN = 10
_FLAT = 2.0  # levels; below, an image has no structure to compare


def structure_hash(image: Image.Image) -> str:
    """`perceptual_hash` of an image; empty where it is flat, since flat images of any colour have one hash."""
    return perceptual_hash(image) if np.asarray(image.convert("L"), dtype=float).std() >= _FLAT else ""


def find_duplicates(ids: Sequence[str], sha256: Sequence[tuple[str, str]], structure: Sequence[str]) -> Duplicates:
    """Which pairs share images.

    Args:
        ids: (N,) of the pairs.
        sha256: (N,) of the chosen and of the rejected image.
        structure: (N,) `structure_hash` of the chosen image.
    """
    by_chosen = _by_value(chosen for chosen, _ in sha256)
    same = [group for group in by_chosen.values() if len(group) > 1]
    firsts = {group[0] for group in by_chosen.values()}  # one for each chosen image, so that near is not the same
    originals = near_duplicates([one if n in firsts else "" for n, one in enumerate(structure)], MAX_DISTANCE)
    alike: dict[int, list[int]] = defaultdict(list)
    for number, original in enumerate(originals):
        if original is not None:
            alike[original] += by_chosen[sha256[number][0]]
    near = [sorted([*by_chosen[sha256[one][0]], *copies]) for one, copies in alike.items()]
    against = [
        number
        for number, (chosen, rejected) in enumerate(sha256)
        if rejected != chosen and any(other != number for other in by_chosen.get(rejected, ()))
    ]
    return Duplicates(
        identical=_named(same, ids),
        num_identical=sum(map(len, same)),
        near=_named(near, ids),
        num_near=sum(map(len, near)),
        contradicting=tuple(ids[number] for number in against[:_SHOWN]),
        num_contradicting=len(against),
        num_equal_sides=sum(chosen == rejected for chosen, rejected in sha256),
    )


def _by_value(values: Iterable[Hashable]) -> Mapping[Hashable, list[int]]:
    found: dict[Hashable, list[int]] = defaultdict(list)
    for number, value in enumerate(values):
        found[value].append(number)
    return found


def _named(groups: Sequence[Sequence[int]], ids: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(ids[number] for number in group[:_SHOWN]) for group in groups[:_SHOWN])
