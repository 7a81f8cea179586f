"""The style gap: how much more an image looks like a photograph than like a render, in the eyes of another score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from PIL import Image
from torch import Tensor

from diffalign.core import DiffalignError
from diffalign.rewards.contract import Reward

__all__ = ["PHOTO_PREFIX", "RENDER_PREFIX", "StyleGap"]

# A model's input, hence verbatim: RealAlign 2026, arXiv 2605.19839.
PHOTO_PREFIX = "Realistic photo "
RENDER_PREFIX = "CG Render "


class StyleGap(Reward):
    """The difference of a text-image score S between two beginnings of the prompt p:

        s = S(image, "Realistic photo " + p) - S(image, "CG Render " + p)

    Each image is encoded once. The unit is that of S.

    Args:
        inner: S.

    Raises:
        DiffalignError: S does not read the prompt.

    Source:
        RealAlign 2026, arXiv 2605.19839, SGP-S; it reports PickScore over 26.
    """

    def __init__(self, inner: Reward) -> None:
        card = inner.card
        if "prompt" not in card.needs:
            raise DiffalignError(f"sgp needs a score that reads the prompt; {card.name!r} does not")
        width = card.range[1] - card.range[0]
        super().__init__(
            replace(card, name=f"sgp:{card.name}", range=(-width, width), higher_is_better=True), inner.device
        )
        self.inner = inner

    def prepare(self, image: Image.Image) -> Any:
        """As S does."""
        return self.inner.prepare(image)

    def prepare_pixels(self, pixels: Tensor) -> Sequence[Any]:
        """As S does."""
        return self.inner.prepare_pixels(pixels)

    def encode(self, prepared: Sequence[Any]) -> Any:
        """As S does."""
        return self.inner.encode(prepared)

    def compare(self, features: Any, prompts: Sequence[str]) -> Tensor:
        """The difference."""
        photo, render = (
            self.inner.compare(features, [prefix + prompt for prompt in prompts])
            for prefix in (PHOTO_PREFIX, RENDER_PREFIX)
        )
        return photo - render

    def num_truncated(self, prompts: Sequence[str]) -> int:
        """How many prompts are too long after either beginning."""
        return sum(
            any(self.inner.num_truncated([prefix + prompt]) for prefix in (PHOTO_PREFIX, RENDER_PREFIX))
            for prompt in prompts
        )
