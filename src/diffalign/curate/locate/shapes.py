"""Places that do not look at the image: random shapes, and everywhere. Both serve as controls."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import distance_transform_edt

from diffalign.core import Config, numpy_generator
from diffalign.curate.locate.contract import LOCATORS, Locator
from diffalign.curate.locate.masks import check_area, mask_of

if TYPE_CHECKING:
    import torch

__all__ = ["FullImage", "RandomShapes", "random_shapes"]

_MOST_SHAPES = 64  # then the edges grow, so that drawing ends


def random_shapes(size: tuple[int, int], generator: np.random.Generator, *, area: tuple[float, float]) -> Image.Image:
    """Free-form strokes and polygons, one upon another until they cover an area drawn from the bounds.

    The last shape may cover too much, or 64 shapes too little: then all edges move inwards or outwards at the same
    pace until the area lies in the bounds.

    Args:
        size: width and height, pixels.
        generator: of the draws.
        area: least and largest share of the image.

    Returns:
        "L" image, 255 inside.

    Raises:
        DiffalignError: the bounds are not 0 < least <= largest < 1.

    Source:
        Strokes after Yu et al. 2019, Free-form image inpainting with gated convolution, arXiv 1806.03589, supplement.
        Departures: lengths are shares of the image's side; polygons as well; the area is bounded.

    Example:
        >>> mask = random_shapes((40, 30), numpy_generator("example"), area=(0.2, 0.3))
        >>> bool(0.2 <= (np.asarray(mask) == 255).mean() <= 0.3)
        True
    """
    check_area(area)
    wanted = generator.uniform(*area) * size[0] * size[1]
    mask = Image.new("L", size)
    for _ in range(_MOST_SHAPES):
        if (np.asarray(mask) > 0).sum() >= wanted:
            break
        (_stroke if generator.random() < 0.5 else _polygon)(mask, generator)
    inside = np.asarray(mask) > 0
    depth = distance_transform_edt(np.pad(inside, 1))[1:-1, 1:-1] - distance_transform_edt(~inside)  # above 0 inside
    return mask_of(0.5 + depth / (2 * sum(size)), area=area)


def _stroke(mask: Image.Image, generator: np.random.Generator) -> None:
    """A thick line of round joints that turns at random, forwards and backwards by turns."""
    side = math.sqrt(mask.width * mask.height)
    width = max(1, round(side * generator.uniform(0.04, 0.12)))
    point = generator.uniform((0, 0), mask.size)
    points = [point]
    for number in range(generator.integers(3, 9)):
        angle = generator.uniform(0, 0.8 * math.pi) + (math.pi if number % 2 else 0)
        step = side * generator.uniform(0.1, 0.35)
        point = np.clip(point + step * np.array([math.cos(angle), math.sin(angle)]), 0, mask.size)
        points.append(point)
    draw = ImageDraw.Draw(mask)
    draw.line([(float(x), float(y)) for x, y in points], fill=255, width=width)
    for x, y in points:
        draw.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=255)


def _polygon(mask: Image.Image, generator: np.random.Generator) -> None:
    """A star-shaped polygon of 3 to 9 corners about a random centre."""
    side = math.sqrt(mask.width * mask.height)
    corners = generator.integers(3, 10)
    angles = np.sort(generator.uniform(0, 2 * math.pi, corners))
    radii = side * generator.uniform(0.06, 0.25, corners)
    x, y = generator.uniform((0, 0), mask.size)
    points = zip(x + radii * np.cos(angles), y + radii * np.sin(angles), strict=True)
    ImageDraw.Draw(mask).polygon([(float(one), float(other)) for one, other in points], fill=255)


@LOCATORS.register("random_shapes")
class RandomShapes(Locator):
    """`random_shapes` drawn from the seed, within the area's bounds. Nothing is scaled and nothing cut: no saliency."""

    name = "random_shapes"

    def locate(
        self, images: Sequence[Image.Image], prompts: Sequence[str], seeds: Sequence[int]
    ) -> list[Image.Image | None]:
        """Masks of the images' sizes and of the seeds."""
        pairs = zip(images, seeds, strict=True)
        return [
            random_shapes(image.size, numpy_generator("random_shapes", seed), area=self.area) for image, seed in pairs
        ]


@LOCATORS.register("full_image")
class FullImage(Locator):
    """The whole image, 255 everywhere. It ignores the area's bounds, and so leaves them out of its parameters."""

    name = "full_image"

    def __init__(self, settings: Config, *, area: tuple[float, float], device: str | torch.device = "cpu") -> None:
        super().__init__(settings, area=area, device=device)
        del self.parameters["area"]

    def locate(
        self, images: Sequence[Image.Image], prompts: Sequence[str], seeds: Sequence[int]
    ) -> list[Image.Image | None]:
        """Masks of the images' sizes."""
        return [Image.new("L", image.size, 255) for image in images]
