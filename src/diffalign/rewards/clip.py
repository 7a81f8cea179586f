"""Cosine similarities of CLIP: the CLIP scores, PickScore, HPSv2 and the embedded tiny-clip."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPModel

from diffalign.rewards.contract import REWARDS, Reward, RewardCard, Role
from diffalign.rewards.pixels import ClipRecipe, LetterboxRecipe, Recipe
from diffalign.rewards.weights import (
    CONFIGS,
    converted_folder,
    find_folder,
    load_model,
    load_tokenizer,
    weights_revision,
)

__all__ = [
    "CLIP_SCORES",
    "ClipReward",
    "ClipScore",
    "clip_score",
    "hessel_clip_score",
    "percent_clip_score",
    "pickscore",
]

LAION_H14 = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"


def clip_score(cosine: Tensor, scale: Tensor) -> Tensor:
    """The cosine itself, (B,): what reinforcement-learning papers call CLIP score (logits over 100), and HPSv2.

    Source:
        Radford et al. 2021, arXiv 2103.00020; Wu et al. 2023, arXiv 2306.09341 (HPSv2; its tables show 100 times it).
    """
    return cosine


def hessel_clip_score(cosine: Tensor, scale: Tensor) -> Tensor:
    """CLIPScore as first defined, (B,):

        s = 2.5 max(cos, 0)

    Source:
        Hessel et al. 2021, arXiv 2104.08718; CLIP B/32, every text after "A photo depicts ".

    Example:
        >>> hessel_clip_score(torch.tensor([0.3, -0.1]), torch.tensor(100.0))
        tensor([0.7500, 0.0000])
    """
    return 2.5 * cosine.clamp_min(0)


def percent_clip_score(cosine: Tensor, scale: Tensor) -> Tensor:
    """100 times the cosine, (B,), as torchmetrics has it; that library takes max(mean, 0) over a set afterwards."""
    return 100 * cosine


def pickscore(cosine: Tensor, scale: Tensor) -> Tensor:
    """Logits whose softmax over the candidates of a prompt is the probability of each to be picked, (B,):

        s = exp(logit_scale) cos

    Source:
        Kirstain et al. 2023, arXiv 2305.01569. Raw, about 21; some papers report a 26th of it.

    Example:
        >>> pickscore(torch.tensor([0.21, 0.20]), torch.tensor(100.0)).softmax(0)
        tensor([0.7311, 0.2689])
    """
    return scale * cosine


@dataclass(frozen=True, kw_only=True)
class ClipScore:
    """A published score on a CLIP.

    Attributes:
        name: as `load_reward` takes it.
        model: hub id or embedded name of the CLIP; for ``converted`` ones, the published file.
        tokenizer: hub id of the tokenizer where the model's own folder has none.
        formula: (cosine (B,), exp(logit_scale)) to score (B,).
        range: lowest and highest value.
        licence: of code and weights.
        prefix: goes before every prompt.
        recipe: preprocessing.
        converted: the weights must be converted first.
        role: see `RewardCard`.
    """

    name: str
    model: str
    tokenizer: str = ""
    formula: Callable[[Tensor, Tensor], Tensor]
    range: tuple[float, float]
    licence: str
    prefix: str = ""
    recipe: type[ClipRecipe] | type[LetterboxRecipe] = ClipRecipe
    converted: bool = False
    role: Role | None = None


# fmt: off
CLIP_SCORES: tuple[ClipScore, ...] = (
    ClipScore(name="clip_score", model="openai/clip-vit-large-patch14", formula=clip_score, range=(-1, 1),
              licence="MIT"),
    ClipScore(name="clip_score_hessel", model="openai/clip-vit-base-patch32", formula=hessel_clip_score, range=(0, 2.5),
              licence="MIT", prefix="A photo depicts "),
    ClipScore(name="clip_score_torchmetrics", model="openai/clip-vit-large-patch14", formula=percent_clip_score,
              range=(-100, 100), licence="MIT"),
    ClipScore(name="pickscore", model="yuvalkirstain/PickScore_v1", tokenizer=LAION_H14, formula=pickscore,
              range=(-100, 100), licence="MIT (code; none stated for the weights)"),
    ClipScore(name="hpsv2", model="HPS_v2_compressed.pt of hub xswu/HPSv2", formula=clip_score, range=(-1, 1),
              licence="Apache-2.0", recipe=LetterboxRecipe, converted=True),
    ClipScore(name="hpsv2.1", model="HPS_v2.1_compressed.pt of hub xswu/HPSv2", formula=clip_score, range=(-1, 1),
              licence="Apache-2.0", recipe=LetterboxRecipe, converted=True),
    ClipScore(name="tiny-clip", model="tiny-clip", formula=pickscore, range=(-100, 100), licence="Apache-2.0",
              role="in-training"),
)
# fmt: on


class ClipReward(Reward):
    """A formula of the cosine between CLIP's embeddings of image and prompt.

    Args:
        card: what it is.
        device: where to run.
        model: a CLIPModel.
        tokenizer: its tokenizer.
        recipe: preprocessing.
        formula: (cosine (B,), exp(logit_scale)) to score (B,).
        prefix: goes before every prompt.
    """

    def __init__(
        self,
        card: RewardCard,
        device: torch.device,
        *,
        model: Any,
        tokenizer: Any,
        recipe: Recipe,
        formula: Callable[[Tensor, Tensor], Tensor] = clip_score,
        prefix: str = "",
    ) -> None:
        super().__init__(card, device)
        self.model = model.to(device)
        self.tokenizer = tokenizer
        self.recipe = recipe
        self.formula = formula
        self.prefix = prefix

    def prepare(self, image: Image.Image) -> Tensor:
        """Normalised pixels (3, size, size)."""
        return self.recipe(image)

    def prepare_pixels(self, pixels: Tensor) -> Sequence[Tensor]:
        """Normalised pixels, (B, 3, size, size) in parts."""
        return self.recipe.of_pixels(pixels).unbind()

    def encode(self, prepared: Sequence[Tensor]) -> Tensor:
        """Image embeddings (B, d) of unit length."""
        pooled = self.model.vision_model(pixel_values=torch.stack(tuple(prepared)).to(self.device)).pooler_output
        return F.normalize(self.model.visual_projection(pooled), dim=-1)

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Text embeddings (T, d) of unit length; each distinct text is encoded once."""
        distinct = list(dict.fromkeys(texts))
        tokens = self.tokenizer(
            distinct, padding=True, truncation=True, max_length=self._max_tokens, return_tensors="pt"
        ).to(self.device)
        pooled = self.model.text_model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).pooler_output
        embeds = F.normalize(self.model.text_projection(pooled), dim=-1)
        return embeds[torch.tensor([distinct.index(text) for text in texts], device=self.device)]

    def compare(self, features: Tensor, prompts: Sequence[str]) -> Tensor:
        """The formula of the cosines."""
        cosine = (features * self.encode_text([self.prefix + prompt for prompt in prompts])).sum(-1)
        return self.formula(cosine, self.model.logit_scale.exp())

    def num_truncated(self, prompts: Sequence[str]) -> int:
        """How many prompts, with their prefix, have more tokens than the text encoder has positions."""
        if not prompts:
            return 0
        ids = self.tokenizer([self.prefix + prompt for prompt in prompts], verbose=False).input_ids
        return sum(len(row) > self._max_tokens for row in ids)

    @property
    def _max_tokens(self) -> int:
        return int(self.model.config.text_config.max_position_embeddings)


def load_clip_score(score: ClipScore, weights: str | Path | None, device: torch.device) -> ClipReward:
    """Load one of `CLIP_SCORES`, from its published place or from other weights of the same form."""
    if score.converted:
        folder = converted_folder(score.name, weights, score.model)
    else:
        folder = find_folder(weights or score.model)
    has_tokenizer = any((folder / file).is_file() for file in ("tokenizer.json", "vocab.json"))
    tokens = folder if has_tokenizer or not score.tokenizer else find_folder(score.tokenizer, CONFIGS)
    model = load_model(CLIPModel, folder)
    recipe = score.recipe(model.config.vision_config.image_size)
    card = RewardCard(
        name=score.name,
        weights=weights_revision(folder, tokens),
        preprocessing=recipe.name,
        tensor_preprocessing=recipe.tensor_name,
        range=score.range,
        licence=score.licence,
        role=score.role,
    )
    return ClipReward(
        card,
        device,
        model=model,
        tokenizer=load_tokenizer(tokens),
        recipe=recipe,
        formula=score.formula,
        prefix=score.prefix,
    )


for _score in CLIP_SCORES:
    REWARDS.register(_score.name)(partial(load_clip_score, _score))
