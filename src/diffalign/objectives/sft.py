"""Supervised fine-tuning: fit the preferred images."""

from __future__ import annotations

from torch import Tensor

from diffalign.objectives.contract import objective
from diffalign.types import ObjectiveOutput

__all__ = ["sft"]


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
