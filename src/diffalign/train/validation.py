"""What validation looks at: which prompts, weights and steps, how varied the images are, and which step is chosen.

The rule of choice is one short function, `chosen`; `Validator` runs it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import torch
from PIL import Image

from diffalign.core import resolve
from diffalign.rewards import REWARDS, clip_features
from diffalign.sample import PromptRow, read_prompts
from diffalign.stats import pairwise_diversity
from diffalign.train.config import TrainConfig

__all__ = [
    "check_validation",
    "chosen",
    "diversity",
    "diversity_collapse",
    "prompt_means",
    "validated_weights",
    "validation_calls",
    "validation_prompts",
    "validation_steps",
]

Row = Mapping[str, Any]  # of validation.jsonl
FEATURES = "tiny-clip"  # not the judge: what takes part in a choice is held out no longer


def check_validation(config: TrainConfig) -> None:
    """What can be known of a stage's validation before any weight loads.

    Raises:
        DiffalignError: the prompts cannot be read, or a reward is not known.
    """
    if config.validation is None:
        return
    validation_prompts(config)
    for name in config.validation.rewards:
        inner = name.removeprefix("sgp:")
        resolve(inner) if ":" in inner else REWARDS.get(inner)


def validation_prompts(config: TrainConfig) -> list[PromptRow]:
    """The prompts that a stage is validated on; none where it is not.

    Raises:
        DiffalignError: they cannot be read, or there are none.
    """
    wanted = config.validation
    if wanted is None:
        return []
    prompts = read_prompts(wanted.prompts)
    return prompts[: wanted.limit] if wanted.limit else prompts


def validation_steps(config: TrainConfig) -> list[int]:
    """Optimiser steps after which a stage is validated: before the first, every so often, and at the end.

    Example:
        >>> from diffalign.train import TrainConfig, ValidationConfig
        >>> wanted = ValidationConfig(prompts="photographs", every=100)
        >>> validation_steps(TrainConfig(model="tiny-sd", data="", objective="sft", num_steps=250, validation=wanted))
        [0, 100, 200, 250]
    """
    if config.validation is None:
        return []
    return [*range(0, config.num_steps, config.validation.every), config.num_steps]


def validated_weights(config: TrainConfig) -> str:
    """Which weights are validated: the moving average where a stage has one, unless it is there to be the reference."""
    return "ema" if config.ema is not None and config.reference != "ema" else "policy"


def validation_calls(config: TrainConfig) -> int:
    """How many images the network sees in all validations of a stage, each once per solver step and text branch."""
    wanted = config.validation
    if wanted is None:
        return 0
    branches = 1 if wanted.guidance_scale == 1 else 2
    images = len(validation_prompts(config)) * wanted.num_seeds
    return len(validation_steps(config)) * images * wanted.num_steps * branches


def prompt_means(values: Sequence[float | None], num_seeds: int) -> list[float | None]:
    """The mean over each prompt's images; None where no image has a value.

    Args:
        values: (P * num_seeds,) prompt by prompt; None where there is none.
        num_seeds: images per prompt.

    Example:
        >>> prompt_means([1.0, 2.0, None, 4.0, None, None], 2)
        [1.5, 4.0, None]
    """
    means: list[float | None] = []
    for start in range(0, len(values), num_seeds):
        found = [value for value in values[start : start + num_seeds] if value is not None]
        means.append(fmean(found) if found else None)
    return means


def diversity(
    images: Sequence[Image.Image | None], num_seeds: int, *, device: str | torch.device = "cpu"
) -> float | None:
    """How much the images of a prompt differ: mean over prompts of the mean cosine distance between their features.

    The features are tiny-clip's image embeddings, of the image at 32 pixels: they see layout and colour, need no
    download, and belong to no held-out judge.

    Args:
        images: (P * num_seeds,) prompt by prompt; None where there is none.
        num_seeds: images per prompt.
        device: where to run.

    Returns:
        In [0, 2]; None where no prompt has two images.

    Example:
        >>> black, white = (Image.new("RGB", (32, 32), colour) for colour in ("black", "white"))
        >>> round(diversity([white, white, black, black], 2), 6), diversity([black, white], 1)
        (0.0, None)
    """
    groups = [
        [image for image in images[start : start + num_seeds] if image is not None]
        for start in range(0, len(images), num_seeds)
    ]
    groups = [group for group in groups if len(group) > 1]
    if not groups:
        return None
    features = clip_features([image for group in groups for image in group], reward=FEATURES, device=device)
    parts = features.split([len(group) for group in groups])  # type: ignore[no-untyped-call]
    return max(0.0, fmean(pairwise_diversity(part.numpy()) for part in parts))  # below 0 by rounding alone


def diversity_collapse(rows: Sequence[Row], min_diversity: float) -> str | None:
    """The images of a prompt differ much less than at the start: what the alarm says, or None.

    Args:
        rows: of validation.jsonl, in order, from the start on.
        min_diversity: share of the start's diversity.
    """
    start, now = rows[0]["diversity"], rows[-1]["diversity"]
    if len(rows) == 1 or start is None or now is None or now >= min_diversity * start:
        return None
    return (
        f"images of one prompt differ by {now:.2g}, at the start by {start:.2g}: every noise leads to the same image. "
        "Stop at an earlier step, lower the learning rate, or strengthen the pull to the reference."
    )


def chosen(rows: Sequence[Row], reward: str, min_diversity: float) -> Row | None:
    """The step with the highest mean reward among those that are as diverse as they should be; the earliest of ties.

        s* = argmax r_s  over  s > 0 with d_s >= min_diversity d_0

    Without a diversity at the start (one image per prompt) every step with a mean is in the choice.

    Args:
        rows: of validation.jsonl, in order, from the start on.
        reward: name of the reward that chooses.
        min_diversity: share of the start's diversity.

    Returns:
        Its row; None where no step qualifies.

    Example:
        >>> means, spreads = (0.1, 0.3, 0.5, 0.3), (0.8, 0.7, 0.3, 0.9)
        >>> rows = [{"step": step, "rewards": {"pickscore": {"mean": mean}}, "diversity": spread}
        ...         for step, (mean, spread) in enumerate(zip(means, spreads))]
        >>> chosen(rows, "pickscore", min_diversity=0.5)["step"]
        1
    """
    least = None if rows[0]["diversity"] is None else min_diversity * rows[0]["diversity"]
    fit = [
        row
        for row in rows[1:]
        if row["rewards"][reward]["mean"] is not None
        and (least is None or (row["diversity"] is not None and row["diversity"] >= least))
    ]
    return max(fit, key=lambda row: row["rewards"][reward]["mean"], default=None)  # of equal ones, max takes the first
