"""LAION's aesthetic predictors: one affine map on CLIP's image embedding."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPVisionModelWithProjection

from diffalign.rewards.contract import REWARDS, Reward, RewardCard
from diffalign.rewards.pixels import ClipRecipe
from diffalign.rewards.weights import converted_folder, load_model, weights_revision

__all__ = ["AESTHETIC_HEADS", "AestheticReward"]

# name: (published file, licence, first digits of the sha256 of the published heads that are known to be affine)
AESTHETIC_HEADS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "aesthetic_v1": ("sa_0_4_vit_l_14_linear.pth of LAION-AI/aesthetic-predictor", "MIT", ("2cd4e60f4f24",)),
    "aesthetic_v2": (
        "sac+logos+ava1-l14-linearMSE.pth of christophschuhmann/improved-aesthetic-predictor",
        "Apache-2.0",
        ("21dd590f3ccd", "390a3aafaf3b"),
    ),
}


class AestheticReward(Reward):
    """How much people would like the image, prompt unseen:

        s = w . e + b,    e = CLIP's image embedding of unit length

    Args:
        card: what it is.
        device: where to run.
        model: a CLIPVisionModelWithProjection.
        weight: (d,), all layers of the published head as one map.
        bias: ().

    Source:
        Schuhmann et al. 2022, arXiv 2210.08402, and the published heads. Departure: the layers of version 2 have no
        activations between them, so they are multiplied out once, in float64.
    """

    def __init__(self, card: RewardCard, device: torch.device, *, model: Any, weight: Tensor, bias: Tensor) -> None:
        super().__init__(card, device)
        self.model = model.to(device)
        self.recipe = ClipRecipe(model.config.image_size)
        self.weight, self.bias = (value.to(device, torch.float32) for value in (weight, bias))

    def prepare(self, image: Image.Image) -> Tensor:
        """Normalised pixels (3, size, size)."""
        return self.recipe(image)

    def prepare_pixels(self, pixels: Tensor) -> Sequence[Tensor]:
        """Normalised pixels, (B, 3, size, size) in parts."""
        return self.recipe.of_pixels(pixels).unbind()

    def encode(self, prepared: Sequence[Tensor]) -> Tensor:
        """Image embeddings (B, d) of unit length."""
        return F.normalize(self.model(pixel_values=torch.stack(tuple(prepared)).to(self.device)).image_embeds, dim=-1)

    def compare(self, features: Tensor, prompts: Sequence[str]) -> Tensor:
        """The affine map; prompts are not looked at."""
        return features @ self.weight + self.bias


def _load(name: str, weights: str | Path | None, device: torch.device) -> AestheticReward:
    wanted, licence, _ = AESTHETIC_HEADS[name]
    folder = converted_folder(name, weights, wanted)
    model = load_model(CLIPVisionModelWithProjection, folder)
    recipe = ClipRecipe(model.config.image_size)
    card = RewardCard(
        name=name,
        weights=weights_revision(folder),
        preprocessing=recipe.name,
        tensor_preprocessing=recipe.tensor_name,
        licence=licence,
        needs=(),
    )
    return AestheticReward(card, device, model=model, **load_file(folder / "head.safetensors"))


for _name in AESTHETIC_HEADS:
    REWARDS.register(_name)(partial(_load, _name))
