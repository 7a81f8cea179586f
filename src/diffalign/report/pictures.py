"""Images as parts of a page: embedded, small, with the outline of a mask."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image
from skimage.measure import approximate_polygon, find_contours

__all__ = ["Outline", "Picture", "embed", "outline"]

LOSSLESS_SIDE = 128  # pixels; images up to this size keep every pixel, and are shown enlarged with hard edges
_OUTLINE_SIDE = 256  # pixels; larger masks are reduced before they are traced


@dataclass(frozen=True)
class Picture:
    """An embedded image.

    Attributes:
        uri: data URI.
        width: of the embedded image, pixels.
        height: of the embedded image, pixels.
    """

    uri: str
    width: int
    height: int

    @property
    def is_tiny(self) -> bool:
        """Whether it is to be shown enlarged with hard edges."""
        return max(self.width, self.height) <= LOSSLESS_SIDE


@dataclass(frozen=True)
class Outline:
    """The edge of a mask.

    Attributes:
        path: data of an SVG path, empty where nothing is masked.
        width: of the space that the path is drawn in.
        height: of the same.
    """

    path: str
    width: int
    height: int


def embed(image: Image.Image, max_side: int) -> Picture:
    """An image as a data URI: PNG, WebP or JPEG, whichever is smallest, and lossless up to 128 pixels.

    Args:
        image: of any mode; shown as RGB.
        max_side: longer side in pixels that a larger image is reduced to.

    Example:
        >>> embed(Image.new("RGB", (600, 300)), max_side=200).width
        200
    """
    shown = image.convert("RGB")
    shown.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    options: list[tuple[str, dict[str, int | bool]]] = [("png", {}), ("webp", {"lossless": True})]
    if max(shown.size) > LOSSLESS_SIDE:
        options = [("png", {}), ("webp", {"quality": 85}), ("jpeg", {"quality": 88})]
    kind, data = min(
        ((kind, _encoded(shown, kind, **choices)) for kind, choices in options), key=lambda one: len(one[1])
    )
    return Picture(f"data:image/{kind};base64,{base64.b64encode(data).decode()}", *shown.size)


def _encoded(image: Image.Image, kind: str, **choices: int | bool) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **choices)
    return buffer.getvalue()


def outline(mask: Image.Image) -> Outline:
    """Trace where a mask crosses its middle value.

    Args:
        mask: "L" image; above 127 is inside.

    Example:
        >>> mask = Image.new("L", (6, 5))
        >>> mask.paste(255, (0, 0, 6, 5))
        >>> outline(mask).path
        'M5.5,5L0.5,5L0,4.5L0,0.5L0.5,0L5.5,0L6,0.5L6,4.5L5.5,5Z'
    """
    reduced = mask.copy()
    reduced.thumbnail((_OUTLINE_SIDE, _OUTLINE_SIDE), Image.Resampling.BOX)
    inside = np.pad((np.asarray(reduced) > 127).astype(np.float64), 1)  # so that an edge at the border closes
    tolerance = 0.75 if max(reduced.size) > LOSSLESS_SIDE else 0.01  # straight runs only
    loops = [approximate_polygon(loop, tolerance) - 0.5 for loop in find_contours(inside, 0.5)]
    path = "".join("M" + "L".join(f"{x:g},{y:g}" for y, x in loop) + "Z" for loop in loops)
    return Outline(path, *reduced.size)
