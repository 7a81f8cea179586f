"""Crops of the embedded photographs: a source without files."""

from __future__ import annotations

from dataclasses import dataclass

from diffalign.core import content_hash, numpy_generator
from diffalign.curate.sources.photo import Photo, Photos, photo_id
from diffalign.data import PHOTOGRAPHS, Split, draw_crop

__all__ = ["embedded_photographs"]


@dataclass(frozen=True)
class _Reader:
    split: Split
    size: int
    seed: int

    def read(self, key: int) -> Photo:
        crop = draw_crop(self.split, numpy_generator("curate", self.split, self.seed, key), size=self.size)
        one = PHOTOGRAPHS[crop.subject]
        source = f"photographs/{one.name}, {one.attribution}"
        return Photo(id=photo_id(crop.image), image=crop.image, prompt=crop.caption, source=source, license=one.license)


def embedded_photographs(split: Split, count: int, size: int, seed: int = 0) -> Photos:
    """Crops of the embedded photographs, each drawn from its own number.

    Args:
        split: of which strips.
        count: how many.
        size: side in pixels.
        seed: another one gives other crops.

    Example:
        >>> embedded_photographs("train", 3, 32)[2].image.size
        (32, 32)
    """
    identity = content_hash("embedded photographs", split, size, seed)
    return Photos(range(count), _Reader(split, size, seed), identity)
