"""From a map of an image to a mask of a bounded area."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from diffalign.core import DiffalignError

__all__ = ["check_area", "mask_of", "min_max", "resized", "salient_mask"]


def mask_of(saliency: np.ndarray, *, area: tuple[float, float] = (0.15, 0.5)) -> Image.Image:
    """The places whose saliency exceeds 0.5, as for published saliency networks; more or fewer to keep to an area.

    Args:
        saliency: (H, W) in [0, 1].
        area: least and largest share of the image.

    Returns:
        "L" image of the same size, 255 inside: the most salient pixels, as many as the bounds allow.

    Raises:
        DiffalignError: the bounds are not 0 < least <= largest < 1.

    Example:
        >>> np.asarray(mask_of(np.array([[0.2, 0.9], [0.7, 0.6]]), area=(0.25, 0.5)))
        array([[  0, 255],
               [255,   0]], dtype=uint8)
    """
    check_area(area)
    least, largest = math.ceil(area[0] * saliency.size), math.floor(area[1] * saliency.size)
    count = max(least, min(int((saliency > 0.5).sum()), largest))
    flat = saliency.ravel()
    edge = np.partition(flat, flat.size - count)[flat.size - count]  # the least saliency that is inside
    inside = flat > edge
    inside[np.flatnonzero(flat == edge)[: count - int(inside.sum())]] = True
    return Image.fromarray(np.where(inside, np.uint8(255), np.uint8(0)).reshape(saliency.shape))


def salient_mask(saliency: np.ndarray, area: tuple[float, float]) -> Image.Image | None:
    """`mask_of` a map; None where nothing in it exceeds 0.5.

    Args:
        saliency: (H, W) in [0, 1].
        area: least and largest share of the image.

    Raises:
        DiffalignError: the map has numbers that are not finite, or the bounds are wrong.

    Example:
        >>> salient_mask(np.zeros((3, 4)), (0.2, 0.5)) is None
        True
    """
    if not np.isfinite(saliency).all():
        raise DiffalignError(
            "expected a saliency of finite numbers, got NaN or infinity; look for damaged weights or half precision"
        )
    return mask_of(saliency, area=area) if (saliency > 0.5).any() else None


def min_max(values: np.ndarray, *, flat: float) -> np.ndarray:
    """Values scaled to [0, 1] by their minimum and maximum:

        s = (v - min v) / (max v - min v)

    Args:
        values: (H, W).
        flat: where they differ by no more than this, nothing stands out and all become 0.

    Returns:
        (H, W) float32.

    Example:
        >>> min_max(np.array([[2.0, 4.0, 3.0]]), flat=0.1)
        array([[0. , 1. , 0.5]], dtype=float32)
    """
    low, high = values.min(), values.max()
    scaled = np.zeros_like(values) if high - low <= flat else (values - low) / (high - low)
    return np.asarray(scaled, dtype=np.float32)


def resized(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A map (h, w) at another (width, height), bilinear (with Pillow's antialiasing where it shrinks), float32."""
    image = Image.fromarray(np.asarray(values, dtype=np.float32))
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR))


def check_area(area: tuple[float, float]) -> None:
    """Refuse bounds of a mask's area that are not 0 < least <= largest < 1.

    Raises:
        DiffalignError: they are not.
    """
    if not 0 < area[0] <= area[1] < 1:
        raise DiffalignError(f"expected 0 < least <= largest < 1 as bounds of the mask's area, got {area}")
