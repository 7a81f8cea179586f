"""Plain statistics of pixels: alarms for reward hacking rather than quality, so none of them has a direction.

Compare them at equal image size, from lossless files.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import fft, ndimage
from torch import Tensor

from diffalign.core import DiffalignError
from diffalign.rewards.contract import REWARDS, Reward, RewardCard

__all__ = [
    "StatisticReward",
    "colourfulness",
    "high_frequency_share",
    "jpeg_size",
    "laplacian_variance",
    "luminance",
    "saturation",
]

JPEG_QUALITY = 95


def laplacian_variance(image: Image.Image) -> float:
    """Variance of the Laplacian of the 8-bit grey image: fine detail, and noise.

    The kernel is [[0, 1, 0], [1, -4, 1], [0, 1, 0]], and borders are mirrored without repeating the edge.

    Source:
        RealAlign 2026, arXiv 2605.19839, its detail measure.
    """
    return float(ndimage.laplace(_grey(image), mode="mirror").var())


def colourfulness(image: Image.Image) -> float:
    """How far the colours lie from grey and from each other, in units of 8-bit levels:

        C = sqrt(var_rg + var_yb) + 0.3 sqrt(mean_rg^2 + mean_yb^2),    rg = R - G,  yb = (R + G) / 2 - B

    Source:
        Hasler, Süsstrunk 2003, "Measuring colourfulness in natural images", M3.

    Example:
        >>> round(colourfulness(Image.new("RGB", (5, 6), (255, 0, 0))), 3)  # 0.3 sqrt(255^2 + 127.5^2)
        85.53
    """
    red, green, blue = np.asarray(image, dtype=np.float64).transpose(2, 0, 1)
    rg, yb = red - green, (red + green) / 2 - blue
    return math.sqrt(rg.var() + yb.var()) + 0.3 * math.sqrt(rg.mean() ** 2 + yb.mean() ** 2)


def saturation(image: Image.Image) -> float:
    """Mean of (max - min) / max over the channels of a pixel, in [0, 1]; black counts 0.

    Example:
        >>> saturation(Image.new("RGB", (5, 6), (200, 100, 150)))
        0.5
    """
    pixels = np.asarray(image, dtype=np.float64)
    highest, lowest = pixels.max(2), pixels.min(2)
    return float(((highest - lowest) / np.maximum(highest, 1)).mean())


def luminance(image: Image.Image) -> float:
    """Mean of the 8-bit grey image (ITU-R 601 weights) over 255, in [0, 1].

    Example:
        >>> luminance(Image.new("RGB", (5, 6), (255, 255, 255)))
        1.0
    """
    return float(_grey(image).mean() / 255)


def jpeg_size(image: Image.Image) -> float:
    """Kilobytes (1000) of the image as a JPEG of quality 95.

    Source:
        Black et al. 2023, arXiv 2305.13301, compressibility.
    """
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.tell() / 1000


def high_frequency_share(image: Image.Image) -> float:
    """Share of the grey image's spectral energy, its mean left out, above half the Nyquist frequency, in [0, 1].

    That is at a radial frequency above 1/4 cycle per pixel. A flat image has 0.

    Example:
        >>> stripes = np.tile(np.array([0, 255], dtype=np.uint8), (6, 4))  # one cycle in 2 pixels
        >>> high_frequency_share(Image.fromarray(stripes).convert("RGB"))
        1.0
    """
    grey = _grey(image)
    energy = np.abs(fft.fft2(grey - grey.mean())) ** 2
    radius = np.hypot(fft.fftfreq(grey.shape[0])[:, None], fft.fftfreq(grey.shape[1])[None, :])
    total = energy.sum()
    return float(energy[radius > 0.25].sum() / total) if total > 0 else 0.0


class StatisticReward(Reward):
    """A number of one image; the numbers are computed on the threads that decode.

    Args:
        card: what it is.
        function: RGB image to number.
    """

    def __init__(self, card: RewardCard, device: torch.device, function: Callable[[Image.Image], float]) -> None:
        super().__init__(card, device)
        self.function = function

    def prepare(self, image: Image.Image) -> float:
        """The number itself."""
        return self.function(image)

    def compare(self, features: Sequence[float], prompts: Sequence[str]) -> Tensor:
        """The numbers as a tensor."""
        return torch.tensor(features, dtype=torch.float32, device=self.device)


def _grey(image: Image.Image) -> NDArray[np.float64]:
    return np.asarray(image.convert("L"), dtype=np.float64)


def _load(
    function: Callable[[Image.Image], float],
    preprocessing: str,
    range_: tuple[float, float],
    weights: str | Path | None,
    device: torch.device,
) -> StatisticReward:
    name = function.__name__
    if weights is not None:
        raise DiffalignError(f"reward {name!r} has no weights; leave out weights={str(weights)!r}")
    card = RewardCard(
        name=name,
        preprocessing=preprocessing,
        range=range_,
        higher_is_better=None,
        licence="Apache-2.0",
        needs=(),
    )
    return StatisticReward(card, device, function)


_POSITIVE = (0.0, math.inf)
for _function, _preprocessing, _range in (
    (laplacian_variance, "grey8-mirror", _POSITIVE),
    (colourfulness, "rgb8", _POSITIVE),
    (saturation, "rgb8", (0.0, 1.0)),
    (luminance, "grey8", (0.0, 1.0)),
    (jpeg_size, f"jpeg{JPEG_QUALITY}", _POSITIVE),
    (high_frequency_share, "grey8", (0.0, 1.0)),
):
    REWARDS.register(_function.__name__)(partial(_load, _function, _preprocessing, _range))
