"""Where to damage an image: saliency without any weights, and masks of a bounded area."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter
from skimage.color import rgb2lab

from diffalign.core import DiffalignError

__all__ = ["colour_saliency", "mask_of"]

_BLUR = 1 / 12  # of the shorter side; by eye on the embedded photographs: less gives speckles on texture
_FLAT = 1e-3  # of Lab's units; where nothing differs by more, the image is flat


def colour_saliency(image: Image.Image) -> np.ndarray:
    """How far each place's colour stands out from the image's mean colour.

        S(x) = | Lab_mean - Lab_blurred(x) |,  then scaled to [0, 1] by its minimum and maximum

    Args:
        image: RGB.

    Returns:
        (H, W) float32 in [0, 1]; all 0 for a flat image.

    Source:
        Achanta et al. 2009, Frequency-tuned salient region detection, Eq. 5. Departure: the blur is Gaussian with a
        width of 1/12 of the shorter side instead of a fixed 5x5 kernel, so that masks are blobs at every size.

    Example:
        >>> dot = Image.new("RGB", (24, 24), "white")
        >>> dot.paste("red", (15, 3, 20, 8))
        >>> [int(each) for each in np.unravel_index(colour_saliency(dot).argmax(), (24, 24))]
        [5, 17]
    """
    lab = rgb2lab(np.asarray(image.convert("RGB")))
    sigma = _BLUR * min(image.size)
    distance = np.linalg.norm(gaussian_filter(lab, sigma=(sigma, sigma, 0)) - lab.mean(axis=(0, 1)), axis=2)
    low, high = distance.min(), distance.max()
    scaled = (distance - low) / (high - low) if high - low > _FLAT else np.zeros_like(distance)
    return np.asarray(scaled, dtype=np.float32)


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
    inside = np.zeros(saliency.size, dtype=np.uint8)
    inside[np.argsort(-saliency, axis=None, kind="stable")[:count]] = 255
    return Image.fromarray(inside.reshape(saliency.shape))


def check_area(area: tuple[float, float]) -> None:
    """Refuse bounds of a mask's area that are not 0 < least <= largest < 1.

    Raises:
        DiffalignError: they are not.
    """
    if not 0 < area[0] <= area[1] < 1:
        raise DiffalignError(f"expected 0 < least <= largest < 1 as bounds of the mask's area, got {area}")
