"""Classical image flaws, as plain functions of pixels and a generator.

A web corpus is full of them: pictures out of focus, compressed to pieces, taken in the dark, reduced to a few colours,
glued together. They are mixed into the corpus that the embedded models are pretrained on, so that there is something
real to align, and they teach the embedded judges what a flaw is.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter

from diffalign.core import Registry

__all__ = ["CORPUS_FLAWS", "FLAWS", "FLAW_CAPTIONS", "JUDGE_FLAWS", "apply_flaw"]

Flaw = Callable[[Image.Image, np.random.Generator], Image.Image]

FLAWS: Registry[Flaw] = Registry("flaw")


def apply_flaw(name: str, image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Return a flawed copy of ``image`` (RGB, same size); the severity is drawn from ``generator``.

    Radii and patch sizes are given for a 32-pixel image and grow with the shorter side.

    Raises:
        DiffalignError: unknown flaw; the message lists the nearest names.

    Example:
        >>> image = Image.linear_gradient("L").convert("RGB")
        >>> apply_flaw("posterise", image, np.random.default_rng(0)).size
        (256, 256)
    """
    return FLAWS.get(name)(image.convert("RGB"), generator)


def _scale(image: Image.Image) -> float:
    return min(image.size) / 32


@FLAWS.register("blur")
def blur(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Gaussian blur, radius 0.9 to 1.8 pixels."""
    return image.filter(ImageFilter.GaussianBlur(generator.uniform(0.9, 1.8) * _scale(image)))


@FLAWS.register("jpeg")
def jpeg(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """JPEG at quality 5 to 15."""
    return _recode(image, "JPEG", int(generator.integers(5, 16)))


@FLAWS.register("noise")
def noise(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Gaussian noise, standard deviation 20 to 45 of 255, independent per channel."""
    pixels = np.asarray(image, dtype=np.float32)
    return _to_image(pixels + generator.uniform(20, 45) * generator.standard_normal(pixels.shape))


@FLAWS.register("posterise")
def posterise(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Three or four levels per channel after smoothing, as a flat-shaded render has."""
    levels = int(generator.integers(3, 5))
    smooth = np.asarray(image.filter(ImageFilter.MedianFilter(3)), dtype=np.float32)
    return _to_image(np.rint(smooth / 255 * (levels - 1)) / (levels - 1) * 255)


@FLAWS.register("patches")
def patches(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Two to four square patches of 7 to 12 pixels swapped with others of the same image."""
    pixels = np.array(image)
    for _ in range(int(generator.integers(2, 5))):
        side = int(generator.uniform(7, 12) * _scale(image))
        (y, x), (v, u) = (generator.integers(0, np.array(pixels.shape[:2]) - side + 1) for _ in range(2))
        first, second = pixels[y : y + side, x : x + side].copy(), pixels[v : v + side, u : u + side].copy()
        pixels[y : y + side, x : x + side], pixels[v : v + side, u : u + side] = second, first
    return Image.fromarray(pixels)


@FLAWS.register("pixelate")
def pixelate(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Blocks of 2 to 3.5 pixels."""
    factor = generator.uniform(2, 3.5) * _scale(image)
    small = (max(1, round(image.width / factor)), max(1, round(image.height / factor)))
    return image.resize(small, Image.Resampling.BOX).resize(image.size, Image.Resampling.NEAREST)


@FLAWS.register("motion_blur")
def motion_blur(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Average over a straight shift of 3.5 to 6 pixels in a random direction."""
    pixels = np.asarray(image, dtype=np.float32)
    length, angle = generator.uniform(3.5, 6) * _scale(image), generator.uniform(0, np.pi)
    offsets = np.linspace(-length / 2, length / 2, max(3, round(length)))
    rows, columns = np.arange(pixels.shape[0]), np.arange(pixels.shape[1])
    total = np.zeros_like(pixels)
    for offset in offsets:
        y = np.clip(rows + round(offset * np.sin(angle)), 0, len(rows) - 1)
        x = np.clip(columns + round(offset * np.cos(angle)), 0, len(columns) - 1)
        total += pixels[np.ix_(y, x)]
    return _to_image(total / len(offsets))


@FLAWS.register("salt_and_pepper")
def salt_and_pepper(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Black and white pixels on 6 to 15 per cent of the area."""
    pixels = np.array(image)
    hit = generator.random(pixels.shape[:2]) < generator.uniform(0.06, 0.15)
    pixels[hit] = np.where(generator.random((int(hit.sum()), 1)) < 0.5, 0, 255)
    return Image.fromarray(pixels)


@FLAWS.register("webp")
def webp(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """WebP at quality 0 to 3."""
    return _recode(image, "WEBP", int(generator.integers(0, 4)))


@FLAWS.register("palette")
def palette(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Five to seven colours chosen by median cut, without dithering."""
    colours = int(generator.integers(5, 8))
    return image.quantize(colours, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).convert("RGB")


# What the pretraining corpus of tiny-sd contains, and what the judges know besides.
CORPUS_FLAWS = ("blur", "jpeg", "noise", "posterise", "patches")
JUDGE_FLAWS = (*CORPUS_FLAWS, "pixelate", "motion_blur", "salt_and_pepper", "webp", "palette")

# How a caption names the flaw, in place of "a photo".
FLAW_CAPTIONS = {
    "blur": "a blurry photo",
    "jpeg": "an over-compressed photo",
    "noise": "a noisy photo",
    "posterise": "a CG render",
    "patches": "a broken photo",
}


def _recode(image: Image.Image, format: str, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, format, quality=quality)
    with Image.open(buffer) as decoded:
        return decoded.convert("RGB")


def _to_image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))
