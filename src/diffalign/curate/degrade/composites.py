"""Photographs and their damage put together."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import distance_transform_edt
from torch import Tensor
from torch.nn.functional import interpolate, max_pool2d

__all__ = ["composite", "touched_cells"]


def composite(original: Image.Image, damaged: Image.Image, mask: Image.Image, feather: float = 0) -> Image.Image:
    """``damaged`` where the mask is 255, ``original``, bit for bit, where it is 0.

        alpha = h(min(1, d / (feather + 1))),  h(x) = 3 x^2 - 2 x^3,  d = pixels to the nearest one outside the mask

    Args:
        original: "RGB".
        damaged: "RGB" of the same size.
        mask: "L" of the same size, of 0 and 255 alone.
        feather: width in pixels of a smooth edge inside the mask; 0 for a hard one. The image's border is no edge.

    Raises:
        ValueError: sizes or modes differ, the mask has other values, or feather is negative.

    Example:
        >>> white, black = (Image.new("RGB", (4, 1), colour) for colour in ("white", "black"))
        >>> mask = Image.fromarray(np.array([[0, 255, 255, 255]], dtype=np.uint8))
        >>> np.asarray(composite(white, black, mask))[0, :, 0]
        array([255,   0,   0,   0], dtype=uint8)
        >>> np.asarray(composite(white, black, mask, feather=1))[0, :, 0]
        array([255, 128,   0,   0], dtype=uint8)
    """
    modes, sizes = (original.mode, damaged.mode, mask.mode), {original.size, damaged.size, mask.size}
    if modes != ("RGB", "RGB", "L") or len(sizes) != 1 or not set(np.unique(np.asarray(mask)).tolist()) <= {0, 255}:
        raise ValueError(f"expected RGB, RGB and a mask (L) of 0 and 255, all of one size, got {modes} and {sizes}")
    if not 0 <= feather < np.inf:
        raise ValueError(f"expected a feather of at least 0 pixels, got {feather}")
    inside = np.asarray(mask) == 255
    if not feather or inside.all():  # no edge to soften
        return Image.composite(damaged, original, mask)
    x = np.minimum(1.0, distance_transform_edt(inside) / (feather + 1))[..., None]
    alpha = x * x * (3 - 2 * x)
    mixed = alpha * np.asarray(damaged, dtype=float) + (1 - alpha) * np.asarray(original, dtype=float)
    return Image.fromarray(np.rint(mixed).astype(np.uint8))


def touched_cells(mask: Image.Image, factor: int) -> Tensor:
    """(1, H, W) in {0, 1}: every pixel of every latent cell of which the mask covers a pixel."""
    pixels = torch.from_numpy(np.array(mask)).gt(127).float()[None]
    cells = max_pool2d(pixels[None], factor)
    return interpolate(cells, scale_factor=float(factor))[0]
