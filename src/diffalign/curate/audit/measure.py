"""What the audit keeps of one pair: a few numbers, and no image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffalign.curate.audit.duplicates import structure_hash
from diffalign.curate.audit.traces import Floats, image_traces, outside_of, pixels_of
from diffalign.data import image_sha256
from diffalign.types import Pair

__all__ = ["Measured", "measure_pair", "sides_of"]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One pair, its sides named by its label.

    Attributes:
        id: of the pair.
        prompt: caption.
        label: after the sides were swapped, so 0.5 to 1.
        swapped: whether they were.
        scores: by reward, of the chosen and of the rejected side.
        sha256: of the two images.
        structure: `structure_hash` of the chosen image.
        files: of each side: size, mode, file.
        same_size: whether sides and mask have one size.
        area: share inside the mask; None without a mask.
        damage: RMS difference in levels inside the mask, or of the whole image; None where there is none to measure.
        largest: absolute difference outside, levels; None where nothing is known to be outside.
        mean: absolute difference outside, levels.
        traces: (2, T) outside the mask, or of the whole image without one; None where sizes differ or nothing is
            outside.
    """

    id: str
    prompt: str
    label: float
    swapped: bool
    scores: Mapping[str, tuple[float, float]]
    sha256: tuple[str, str]
    structure: str
    files: tuple[dict[str, Any], dict[str, Any]]
    same_size: bool
    area: float | None = None
    damage: float | None = None
    largest: float | None = None
    mean: float = 0.0
    traces: Floats | None = None


def sides_of(pair: Pair) -> tuple[Image.Image, Image.Image]:
    """The preferred image and the other one, as the label says; in a tie, as they are named."""
    return (pair.rejected, pair.chosen) if pair.label < 0.5 else (pair.chosen, pair.rejected)


def measure_pair(pair: Pair) -> Measured:
    """Look at a pair once."""
    swapped, sides = pair.label < 0.5, sides_of(pair)
    sizes = {side.size for side in sides} | ({pair.mask.size} if pair.mask else set())
    common: dict[str, Any] = {
        "id": pair.id,
        "prompt": pair.prompt,
        "label": max(pair.label, 1 - pair.label),
        "swapped": swapped,
        "scores": {name: (two[::-1] if swapped else (two[0], two[1])) for name, two in pair.scores.items()},
        "sha256": tuple(map(image_sha256, sides)),
        "structure": structure_hash(sides[0]),
        "files": tuple(map(_file, sides)),
        "same_size": len(sizes) == 1,
    }
    if len(sizes) > 1:
        return Measured(**common)
    return Measured(**common, **_compare(sides, pair.mask))


def _compare(sides: tuple[Image.Image, Image.Image], mask: Image.Image | None) -> dict[str, Any]:
    ours, theirs = map(pixels_of, sides)
    gap = np.abs(ours - theirs)
    if mask is None:
        everywhere = np.ones(gap.shape[:2], dtype=bool)
        both = np.array([image_traces(side, everywhere) for side in (ours, theirs)])
        return {"damage": _rms(gap), "traces": both}
    outside = outside_of(mask)
    found: dict[str, Any] = {"area": float(1 - outside.mean())}
    if not outside.all():
        found["damage"] = _rms(gap[~outside])
    if outside.any():
        found |= {"largest": float(gap[outside].max()), "mean": float(gap[outside].mean())}
        first = image_traces(ours, outside)
        second = image_traces(theirs, outside) if found["largest"] else first  # equal pixels have equal traces
        found["traces"] = np.array([first, second])
    return found


def _rms(gap: Floats) -> float:
    return float(np.sqrt((gap**2).mean()))


def _file(image: Image.Image) -> dict[str, Any]:
    """Size and mode; of an image that still knows its file also the format, its quantisation and bytes per pixel."""
    found: dict[str, Any] = {"width": image.width, "height": image.height, "mode": image.mode}
    if getattr(image, "format", None):
        found["format"] = image.format
    tables = getattr(image, "quantization", None)
    if tables:
        found["quantisation"] = float(np.mean(list(tables.values())))
    name = getattr(image, "filename", "")
    if name and Path(name).is_file():
        found["bytes_per_pixel"] = Path(name).stat().st_size / (image.width * image.height)
    return found
