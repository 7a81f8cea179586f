"""The embedded tiny-judge: whether a crop looks like a clean photograph, and of what. Held-out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import ResNetForImageClassification

from diffalign.core import DiffalignError
from diffalign.data import PHOTOGRAPHS, subject_index
from diffalign.rewards.contract import REWARDS, Reward, RewardCard
from diffalign.rewards.pixels import ClipRecipe
from diffalign.rewards.weights import find_folder, load_model, weights_revision

__all__ = ["JudgeReward", "realism", "shows_subject"]

SUBJECTS = len(PHOTOGRAPHS)  # logits: the subjects, then clean, then the families of flaws


def realism(logits: Tensor, prompts: Sequence[str]) -> Tensor:
    """Log-odds of clean against all flaws together, in nats:

        s = z_clean - log sum_f exp z_f

    Args:
        logits: (B, subjects + 1 + flaws).
        prompts: not looked at.

    Returns:
        (B,).

    Example:
        >>> realism(torch.tensor([[0.0] * 16 + [2.0] + [0.0] * 10]), ["a photo of grass"])  # 2 - log 10
        tensor([-0.3026])
    """
    return logits[:, SUBJECTS] - logits[:, SUBJECTS + 1 :].logsumexp(1)


def shows_subject(logits: Tensor, prompts: Sequence[str]) -> Tensor:
    """1 where the likeliest subject is the one that the prompt names, else 0, (B,).

    Raises:
        DiffalignError: a prompt names none of the embedded photographs' subjects.
    """
    wanted = torch.tensor([subject_index(prompt) for prompt in prompts], device=logits.device)
    return (logits[:, :SUBJECTS].argmax(1) == wanted).float()


class JudgeReward(Reward):
    """What tiny-judge says; its pooled features serve distances between sets of images.

    Args:
        card: what it is.
        device: where to run.
        model: a ResNetForImageClassification.
        recipe: preprocessing.
        formula: (logits, prompts) to scores (B,).
    """

    def __init__(
        self,
        card: RewardCard,
        device: torch.device,
        *,
        model: Any,
        recipe: ClipRecipe,
        formula: Callable[[Tensor, Sequence[str]], Tensor],
    ) -> None:
        super().__init__(card, device)
        self.model = model.to(device)
        self.recipe = recipe
        self.formula = formula

    def prepare(self, image: Image.Image) -> Tensor:
        """Normalised pixels (3, size, size)."""
        return self.recipe(image)

    def encode(self, prepared: Sequence[Tensor]) -> Tensor:
        """Pooled features (B, d)."""
        pooled: Tensor = self.model.resnet(torch.stack(tuple(prepared)).to(self.device)).pooler_output
        return pooled.flatten(1)

    def compare(self, features: Tensor, prompts: Sequence[str]) -> Tensor:
        """The formula on the logits."""
        return self.formula(self.model.classifier(features), prompts)


def _load(
    name: str,
    formula: Callable[[Tensor, Sequence[str]], Tensor],
    range_: tuple[float, float],
    weights: str | Path | None,
    device: torch.device,
) -> JudgeReward:
    folder = find_folder(weights or "tiny-judge")
    model = load_model(ResNetForImageClassification, folder)
    if model.config.id2label.get(SUBJECTS) != "clean":
        raise DiffalignError(f"expected {folder} to be a tiny-judge: {SUBJECTS} subjects, then 'clean', then flaws")
    recipe = ClipRecipe(32)
    card = RewardCard(
        name=name,
        weights=weights_revision(folder),
        preprocessing=recipe.name,
        range=range_,
        licence="Apache-2.0",
        needs=("prompt",) if formula is shows_subject else (),
        role="held-out",
    )
    return JudgeReward(card, device, model=model, recipe=recipe, formula=formula)


REWARDS.register("tiny-judge-realism")(partial(_load, "tiny-judge-realism", realism, (-math.inf, math.inf)))
REWARDS.register("tiny-judge-subject")(partial(_load, "tiny-judge-subject", shows_subject, (0.0, 1.0)))
