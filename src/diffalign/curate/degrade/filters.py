"""Classical damage without weights: plain functions of an image, a severity in [0, 1] and a generator.

All of them damage the whole image. Severity 0 is (nearly) the photograph, 1 the strongest that is sensible.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from diffalign.core import Config, numpy_generator, setting
from diffalign.curate.degrade.contract import DEGRADATIONS, Damaged, Degradation, Kind, Setup

__all__ = [
    "Filter",
    "FilterSettings",
    "colour_cast",
    "downsample",
    "filter_degradation",
    "gaussian_blur",
    "gaussian_noise",
    "jpeg",
    "patch_shuffle",
    "posterise",
]

FilterFunction = Callable[[Image.Image, float, np.random.Generator], Image.Image]
_GRID = 8  # patches along each side


class FilterSettings(Config):
    """A filter's one knob."""

    severity: float = setting(0.5, "from 0, (nearly) nothing, to 1, the strongest that is sensible", ge=0, le=1)


class Filter(Degradation):
    """Damage by a function ``(image, severity, generator) -> image``."""

    def __init__(self, name: str, function: FilterFunction, severity: float) -> None:
        super().__init__(name, {"severity": severity}, severity)
        self.function, self._severity = function, severity

    def damage(
        self, images: Sequence[Image.Image], masks: Sequence[Image.Image], prompts: Sequence[str], seeds: Sequence[int]
    ) -> Damaged:
        """Each image by itself; masks and prompts do not matter."""
        return [
            self.function(image, self._severity, numpy_generator("degrade", self.name, seed))
            for image, seed in zip(images, seeds, strict=True)
        ]


def filter_degradation(name: str) -> Callable[[FilterFunction], FilterFunction]:
    """A decorator that registers a function ``(image, severity, generator) -> image`` as a degradation."""

    def register(function: FilterFunction) -> FilterFunction:
        def build(settings: FilterSettings, setup: Setup) -> Degradation:
            return Filter(name, function, float(settings.severity))

        DEGRADATIONS.register(name)(Kind(FilterSettings, build))
        return function

    return register


@filter_degradation("gaussian_blur")
def gaussian_blur(image: Image.Image, severity: float, generator: np.random.Generator) -> Image.Image:
    """Out of focus: a Gaussian over linear light, of width ``severity / 20`` of the shorter side."""
    sigma = severity / 20 * min(image.size)
    light = _to_light(image)
    return _from_light(gaussian_filter(light, sigma=(sigma, sigma, 0), mode="nearest"))


@filter_degradation("gaussian_noise")
def gaussian_noise(image: Image.Image, severity: float, generator: np.random.Generator) -> Image.Image:
    """Grain: Gaussian, standard deviation ``80 severity`` of 255, one draw for the three channels of a pixel."""
    pixels = np.asarray(image, dtype=float)
    return _to_image(pixels + 80 * severity * generator.standard_normal((*pixels.shape[:2], 1)))


@filter_degradation("jpeg")
def jpeg(image: Image.Image, severity: float, generator: np.random.Generator) -> Image.Image:
    """JPEG of quality ``95 (2/95)^severity`` with full colour resolution: 95, 14 in the middle, 2."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=round(95 * (2 / 95) ** severity), subsampling=0)
    with Image.open(buffer) as decoded:
        return decoded.convert("RGB")


@filter_degradation("downsample")
def downsample(image: Image.Image, severity: float, generator: np.random.Generator) -> Image.Image:
    """Fewer pixels, by ``8^severity`` along each side, and bicubic up again."""
    factor = 8**severity
    small = (max(1, round(image.width / factor)), max(1, round(image.height / factor)))
    return image.resize(small, Image.Resampling.BOX).resize(image.size, Image.Resampling.BICUBIC)


@filter_degradation("posterise")
def posterise(image: Image.Image, severity: float, generator: np.random.Generator) -> Image.Image:
    """Evenly spaced levels per channel, ``256 (2/256)^severity`` of them: 256, 23 in the middle, 2."""
    steps = round(256 * (2 / 256) ** severity) - 1
    return _to_image(np.rint(np.asarray(image, dtype=float) / 255 * steps) / steps * 255)


@filter_degradation("colour_cast")
def colour_cast(image: Image.Image, severity: float, generator: np.random.Generator) -> Image.Image:
    """A wrong white balance: linear light times ``exp(severity d)``, d a vector of length 1 that sums to 0.

    The direction d, one of a circle of hues, is drawn from the generator.
    """
    angle = generator.uniform(0, 2 * math.pi)
    hues = angle + np.array([0, 2, 4]) * math.pi / 3
    direction = math.sqrt(2 / 3) * np.cos(hues)
    return _from_light(_to_light(image) * np.exp(severity * direction))


@filter_degradation("patch_shuffle")
def patch_shuffle(image: Image.Image, severity: float, generator: np.random.Generator) -> Image.Image:
    """A share ``severity`` of the patches of an 8 x 8 grid, each in the place of the next in a random order."""
    pixels = np.array(image)
    height, width = (max(1, side // _GRID) for side in pixels.shape[:2])
    rows, columns = min(_GRID, pixels.shape[0]), min(_GRID, pixels.shape[1])
    cells = [
        np.s_[row * height : (row + 1) * height, column * width : (column + 1) * width]
        for row in range(rows)
        for column in range(columns)
    ]
    moved = [cells[index] for index in generator.permutation(len(cells))[: round(severity * len(cells))]]
    contents = [pixels[cell].copy() for cell in moved]
    for cell, content in zip(moved, contents[-1:] + contents[:-1], strict=True):
        pixels[cell] = content
    return Image.fromarray(pixels)


def _to_light(image: Image.Image) -> np.ndarray:
    """sRGB to linear light (H, W, 3) in [0, 1]; IEC 61966-2-1."""
    values = np.asarray(image, dtype=float) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def _from_light(light: np.ndarray) -> Image.Image:
    light = np.clip(light, 0, 1)
    return _to_image(255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055))


def _to_image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))
