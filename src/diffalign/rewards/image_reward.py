"""ImageReward: BLIP's text encoder looks at the image while it reads the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from transformers import BlipTextModel, BlipVisionModel

from diffalign.rewards.contract import REWARDS, Reward, RewardCard
from diffalign.rewards.pixels import ClipRecipe
from diffalign.rewards.weights import converted_folder, load_model, load_tokenizer, weights_revision

__all__ = ["IMAGE_REWARD_FILE", "ImageReward", "standardise"]

IMAGE_REWARD_FILE = "ImageReward.pt of hub THUDM/ImageReward"
MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of the raw reward, from the published code
MAX_TOKENS = 35


def standardise(raw: Tensor) -> Tensor:
    """The raw reward less its mean, over its standard deviation, as published.

    Example:
        >>> standardise(torch.tensor([0.16717362830052426, 0.7677505]))
        tensor([0.0000, 0.5812])
    """
    return (raw - MEAN) / STD


class ImageReward(Reward):
    """A reward model of human preference:

        s = (w . h + b - mean) / std,    h = the text encoder's first token, which attends to the image

    Args:
        card: what it is.
        device: where to run.
        vision: a BlipVisionModel.
        text: a BlipTextModel with cross-attention.
        tokenizer: BERT's.
        weight: (d,), all layers of the published head as one map.
        bias: ().

    Source:
        Xu et al. 2023, arXiv 2304.05977, and its code. Departure: the layers of the head have no
        activations between them, so they are multiplied out once, in float64.
    """

    def __init__(
        self,
        card: RewardCard,
        device: torch.device,
        *,
        vision: Any,
        text: Any,
        tokenizer: Any,
        weight: Tensor,
        bias: Tensor,
    ) -> None:
        super().__init__(card, device)
        self.vision, self.text = vision.to(device), text.to(device)
        self.tokenizer = tokenizer
        self.recipe = ClipRecipe(vision.config.image_size)
        self.weight, self.bias = (value.to(device, torch.float32) for value in (weight, bias))

    def prepare(self, image: Image.Image) -> Tensor:
        """Normalised pixels (3, size, size)."""
        return self.recipe(image)

    def prepare_pixels(self, pixels: Tensor) -> Sequence[Tensor]:
        """Normalised pixels, (B, 3, size, size) in parts."""
        return self.recipe.of_pixels(pixels).unbind()

    def encode(self, prepared: Sequence[Tensor]) -> Tensor:
        """Image tokens (B, N, d), the class token first."""
        tokens: Tensor = self.vision(torch.stack(tuple(prepared)).to(self.device)).last_hidden_state
        return tokens

    def compare(self, features: Tensor, prompts: Sequence[str]) -> Tensor:
        """The head on the text encoder's first token."""
        tokens = self.tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        ).to(self.device)
        hidden = self.text(
            input_ids=tokens.input_ids,
            attention_mask=tokens.attention_mask,
            encoder_hidden_states=features,
            encoder_attention_mask=torch.ones(features.shape[:2], dtype=torch.long, device=self.device),
            is_decoder=False,  # else a causal mask hides the prompt from the first token
        ).last_hidden_state[:, 0]
        return standardise(hidden @ self.weight + self.bias)

    def num_truncated(self, prompts: Sequence[str]) -> int:
        """How many prompts have more than 35 tokens, the two at the ends included."""
        return (
            sum(len(row) > MAX_TOKENS for row in self.tokenizer(list(prompts), verbose=False).input_ids)
            if prompts
            else 0
        )


@REWARDS.register("image_reward")
def _load(weights: str | Path | None, device: torch.device) -> ImageReward:
    folder = converted_folder("image_reward", weights, IMAGE_REWARD_FILE)
    vision = load_model(BlipVisionModel, folder / "vision")
    recipe = ClipRecipe(vision.config.image_size)
    card = RewardCard(
        name="image_reward",
        weights=weights_revision(folder),
        preprocessing=recipe.name,
        tensor_preprocessing=recipe.tensor_name,
        licence="Apache-2.0",
    )
    return ImageReward(
        card,
        device,
        vision=vision,
        text=load_model(BlipTextModel, folder / "text", add_pooling_layer=False),
        tokenizer=load_tokenizer(folder),
        **load_file(folder / "head.safetensors"),
    )
