"""Reward-weighted supervised fine-tuning."""

from __future__ import annotations

from torch import Tensor

from diffalign.objectives.contract import objective, same_shape
from diffalign.types import ObjectiveOutput

__all__ = ["reward_weighted_sft"]


@objective("reward_weighted_sft")
def reward_weighted_sft(chosen_err: Tensor, weight: Tensor) -> ObjectiveOutput:
    """Fit every image as much as its reward says.

        L = a e_w

    Args:
        chosen_err: (B,) policy error on the image.
        weight: (B,) a, at or above 0, such as a reward in [0, 1] or exp(reward / temperature).

    Returns:
        Loss (B,); metric weight.

    Raises:
        ValueError: shapes differ.

    Source:
        Lee et al. 2023, arXiv 2302.12192, the reward-weighted likelihood without its term on pretraining data.

    Example:
        >>> import torch
        >>> reward_weighted_sft(torch.tensor([0.1, 0.3]), torch.tensor([1.0, 0.5])).loss
        tensor([0.1000, 0.1500])
    """
    same_shape(chosen_err=chosen_err, weight=weight)
    weight = weight.detach()
    return ObjectiveOutput(weight * chosen_err, {"weight": weight})
