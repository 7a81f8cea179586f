"""Supervised fine-tuning: fit the preferred images, or the others."""

from __future__ import annotations

from torch import Tensor

from diffalign.objectives.contract import objective
from diffalign.types import ObjectiveOutput

__all__ = ["sft", "sft_on_rejected"]


@objective("sft")
def sft(chosen_err: Tensor) -> ObjectiveOutput:
    """The denoising error of the preferred image; no reference.

        L = e_w

    Args:
        chosen_err: (B,) policy error on the chosen image.

    Returns:
        Loss (B,), no metrics.

    Source:
        Ho et al. 2020, arXiv 2006.11239, Eq. 14.

    Example:
        >>> import torch
        >>> sft(torch.tensor([0.1, 0.3])).loss
        tensor([0.1000, 0.3000])
    """
    return ObjectiveOutput(chosen_err)


@objective("sft_on_rejected")
def sft_on_rejected(rejected_err: Tensor) -> ObjectiveOutput:
    """The denoising error of the other image: the negative module of contrastive guidance.

        L = e_l

    Args:
        rejected_err: (B,) policy error on the rejected image.

    Returns:
        Loss (B,), no metrics.

    Source:
        PGD 2026, arXiv 2602.18799, which fits one module to each side.

    Example:
        >>> import torch
        >>> sft_on_rejected(torch.tensor([0.1, 0.3])).loss
        tensor([0.1000, 0.3000])
    """
    return ObjectiveOutput(rejected_err)
