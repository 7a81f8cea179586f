"""What happens to an image before a network sees it: part of every score, hence named and versioned."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from diffalign.core import DiffalignError

__all__ = ["ClipRecipe", "LetterboxRecipe", "Recipe", "as_rgb", "check_pixels"]

CLIP_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).reshape(3, 1, 1)
CLIP_STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).reshape(3, 1, 1)


@dataclass(frozen=True)
class ClipRecipe:
    """CLIP's own: bicubic resize of the shortest side, centre crop, CLIP's mean and standard deviation.

    Attributes:
        size: side of the result, pixels.
    """

    size: int

    @property
    def name(self) -> str:
        """Resizing 8-bit images, as the published processors do."""
        return f"clip{self.size}-bicubic-pil"

    @property
    def tensor_name(self) -> str:
        """Resizing floating-point pixels, for gradients."""
        return f"clip{self.size}-bicubic-tensor"

    def __call__(self, image: Image.Image) -> Tensor:
        """An RGB image as (3, size, size), normalised."""
        height, width = self._resized(image.height, image.width)
        top, left = (height - self.size) // 2, (width - self.size) // 2
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        return normalise(_unit(image.crop((left, top, left + self.size, top + self.size))))

    def of_pixels(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) in [0, 1] as (B, 3, size, size), normalised.

        First along the width, then along the height, overshoot clipped after each, as Pillow does; only the rounding
        to 8 bits is left out, which is worth at most about one level.
        """
        height, width = self._resized(*pixels.shape[2:])
        top, left = (height - self.size) // 2, (width - self.size) // 2
        pixels = _bicubic(pixels, pixels.shape[2], width).clamp(0, 1)
        pixels = _bicubic(pixels, height, width).clamp(0, 1)
        return normalise(pixels[:, :, top : top + self.size, left : left + self.size])

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        longer = int(self.size * max(height, width) / min(height, width))
        return (self.size, longer) if height <= width else (longer, self.size)


@dataclass(frozen=True)
class LetterboxRecipe:
    """HPSv2's: the longest side to ``size``, resized as floating point, padded with black around the centre, no crop.

    Both paths do the same, so images and their pixels score alike.

    Attributes:
        size: side of the result, pixels.

    Source:
        Wu et al. 2023, arXiv 2306.09341, and its code. Departures: antialiasing is switched on, since the default of
        the published code changed with its library; an image whose longest side already is ``size`` is padded too.
    """

    size: int

    @property
    def name(self) -> str:
        """The same for both paths."""
        return f"letterbox{self.size}-bicubic-antialias"

    tensor_name = name

    def __call__(self, image: Image.Image) -> Tensor:
        """An RGB image as (3, size, size), normalised."""
        return self.of_pixels(_unit(image)[None])[0]

    def of_pixels(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) in [0, 1] as (B, 3, size, size), normalised."""
        height, width = (max(1, round(side * self.size / max(pixels.shape[2:]))) for side in pixels.shape[2:])
        top, left = (self.size - height) // 2, (self.size - width) // 2
        padding = (left, self.size - width - left, top, self.size - height - top)
        return normalise(F.pad(_bicubic(pixels, height, width), padding))


Recipe = ClipRecipe | LetterboxRecipe


def normalise(pixels: Tensor) -> Tensor:
    """Pixels (..., 3, H, W) in [0, 1] less CLIP's mean, over its standard deviation."""
    return (pixels - CLIP_MEAN.to(pixels)) / CLIP_STD.to(pixels)


def as_rgb(image: Image.Image) -> Image.Image:
    """An 8-bit image as RGB; transparent parts are shown on white, as `diffalign.data.decode_image` does.

    Raises:
        DiffalignError: the image has more than 8 bits per channel, which Pillow would clip.
    """
    if image.mode.startswith(("I", "F")):
        raise DiffalignError(f"expected an 8-bit image, got mode {image.mode!r}; read its file with decode_image")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.composite(image.convert("RGB"), Image.new("RGB", image.size, "white"), image.getchannel("A"))
    return image if image.mode == "RGB" else image.convert("RGB")


def check_pixels(pixels: Tensor) -> None:
    """Floating-point images (B, 3, H, W) in [0, 1].

    Raises:
        ValueError: they are not.
    """
    if pixels.ndim != 4 or pixels.shape[1] != 3 or not pixels.is_floating_point():
        raise ValueError(f"expected float pixels (B, 3, H, W), got {pixels.dtype} {tuple(pixels.shape)}")
    if pixels.numel() and not (pixels.min() >= -1e-3 and pixels.max() <= 1 + 1e-3):
        low, high = pixels.min().item(), pixels.max().item()
        raise ValueError(f"expected pixels in [0, 1], got values from {low:.3g} to {high:.3g}")


def _unit(image: Image.Image) -> Tensor:
    """An RGB image as (3, H, W) in [0, 1]."""
    return torch.from_numpy(np.asarray(image, dtype=np.float32).transpose(2, 0, 1) / np.float32(255))


def _bicubic(pixels: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(pixels, (height, width), mode="bicubic", antialias=True)
