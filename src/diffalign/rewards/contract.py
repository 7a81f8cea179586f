"""What a reward is: images and prompts to one score each, under an identity that says which numbers may be compared.

A reward works in three steps, so that decoding and preprocessing run on threads beside the network:

    prepare   one image to what the network takes; on any thread
    encode    a batch of prepared images to features, once per image
    compare   features and prompts to scores (B,)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from diffalign.core import DiffalignError, Registry
from diffalign.rewards.pixels import as_rgb, check_pixels

__all__ = ["REWARDS", "UNVERSIONED", "Need", "Reward", "RewardCard", "Role", "whole_float32"]

UNVERSIONED = "unknown"  # in the place of the weights, of a reward that cannot tell its version

Need = Literal["prompt", "group", "reference set"]
Role = Literal["in-training", "held-out"]


@dataclass(frozen=True, kw_only=True)
class RewardCard:
    """What a reward says of itself.

    Attributes:
        name: as `load_reward` takes it.
        weights: the first 12 digits of a sha256 over the files of weights, configuration and tokenizer; "none" where
            there are none; "unknown" where no version can be told, so that scores of two runs cannot be compared.
        preprocessing: how an image becomes the network's input, as a name that changes whenever the pixels do.
        tensor_preprocessing: the same for `Reward.differentiable_score`; None where there is no such path.
        range: lowest and highest value of the formula.
        higher_is_better: None for a statistic without a direction, which serves as a monitor.
        licence: of the published code and weights.
        needs: what a score depends on besides the image.
        role: "in-training" where the package itself selects or trains by it, "held-out" where it never does, None
            where that depends on the run.
    """

    name: str
    weights: str = "none"
    preprocessing: str
    tensor_preprocessing: str | None = None
    range: tuple[float, float] = (-math.inf, math.inf)
    higher_is_better: bool | None = True
    licence: str = ""
    needs: tuple[Need, ...] = ("prompt",)
    role: Role | None = None

    @property
    def version(self) -> str:
        """Weights and preprocessing: ``weights/preprocessing``."""
        return f"{self.weights}/{self.preprocessing}"

    @property
    def identity(self) -> str:
        """``name@weights/preprocessing``; scores of different identities never mix."""
        return f"{self.name}@{self.version}"

    @property
    def tensor_identity(self) -> str | None:
        """The identity of what `Reward.differentiable_score` gives."""
        return self.tensor_preprocessing and f"{self.name}@{self.weights}/{self.tensor_preprocessing}"

    @property
    def differentiable(self) -> bool:
        """Whether there is a `Reward.differentiable_score`."""
        return self.tensor_preprocessing is not None


class Reward:
    """A loaded reward: call it with images and prompts. A subclass per architecture overrides the three steps.

    Attributes:
        card: what it is.
        device: where its network runs.
    """

    def __init__(self, card: RewardCard, device: str | torch.device = "cpu") -> None:
        self.card = card
        self.device = torch.device(device)

    def prepare(self, image: Image.Image) -> Any:
        """An RGB image as `encode` takes it. Runs on threads, without gradient."""
        return image

    def prepare_pixels(self, pixels: Tensor) -> Sequence[Any]:
        """Pixels (B, 3, H, W) in [0, 1] as `encode` takes them, differentiable."""
        raise DiffalignError(f"reward {self.card.name!r} has no differentiable path")

    def encode(self, prepared: Sequence[Any]) -> Any:
        """Features of B prepared images."""
        return prepared

    def compare(self, features: Any, prompts: Sequence[str]) -> Tensor:
        """Scores (B,) of what `encode` returned."""
        raise NotImplementedError

    def num_truncated(self, prompts: Sequence[str]) -> int:
        """How many of the prompts are longer than the text encoder reads."""
        return 0

    def __call__(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Tensor:
        """Scores of images under their prompts.

        Args:
            images: B 8-bit images of any size; transparency is shown on white.
            prompts: B texts.

        Returns:
            (B,) float32 on the reward's device, without gradient.

        Raises:
            ValueError: the numbers of images and prompts differ.
        """
        check_counts(images, prompts)
        return self.score_prepared([self.prepare(as_rgb(image)) for image in images], prompts)

    @torch.no_grad()
    def score_prepared(self, prepared: Sequence[Any], prompts: Sequence[str]) -> Tensor:
        """Scores (B,) of images that went through `prepare`."""
        return self._score(prepared, prompts)

    def differentiable_score(self, pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores whose gradient flows into the pixels; their identity is ``card.tensor_identity``.

        Nothing is rounded to 8 bits on the way, so they are close to, and not the same as, those of the images.

        Args:
            pixels: (B, 3, H, W) in [0, 1].
            prompts: B texts.

        Returns:
            (B,) float32.

        Raises:
            DiffalignError: the reward has no differentiable path.
            ValueError: another shape or range, or the numbers of images and prompts differ.
        """
        check_counts(pixels, prompts)
        check_pixels(pixels)
        return self._score(self.prepare_pixels(pixels.to(self.device, torch.float32)), prompts)

    def _score(self, prepared: Sequence[Any], prompts: Sequence[str]) -> Tensor:
        if not len(prompts):
            return torch.empty(0, device=self.device)
        # less precision would move scores by as much as models differ
        with torch.autocast(self.device.type, enabled=False), whole_float32():
            scores = self.compare(self.encode(prepared), list(prompts))
        if scores.shape != (len(prompts),):
            raise DiffalignError(
                f"reward {self.card.name!r}: expected scores of shape ({len(prompts)},), got {tuple(scores.shape)}"
            )
        return scores.float()


@contextmanager
def whole_float32() -> Iterator[None]:
    """Inside the block, float32 products on a GPU are not rounded to TF32; afterwards all is as it was."""
    backends: Any = torch.backends
    places = (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn)
    before = [place.fp32_precision for place in places]
    try:
        for place in places:
            place.fp32_precision = "ieee"
        yield
    finally:
        for place, precision in zip(places, before, strict=True):
            place.fp32_precision = precision


RewardLoader = Callable[[str | Path | None, torch.device], Reward]

# Loaders by name: (weights or None, device) -> Reward. A new kind of reward is a new file that registers its loader.
REWARDS: Registry[RewardLoader] = Registry("reward")


def check_counts(images: Sequence[Any] | Tensor, prompts: Sequence[str]) -> None:
    """One prompt per image.

    Raises:
        ValueError: the numbers differ, or one text came instead of a list.
    """
    if isinstance(prompts, str):
        raise ValueError(f"expected a list of prompts, got the text {prompts!r}; put it into a list")
    if len(images) != len(prompts):
        raise ValueError(f"expected one prompt per image, got {len(images)} images and {len(prompts)} prompts")
