"""MaPO: a margin without a reference."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from diffalign.objectives.contract import objective, same_shape
from diffalign.objectives.margins import require_positive
from diffalign.types import ObjectiveOutput

__all__ = ["mapo", "mapo_score"]


@objective("mapo")
def mapo(
    chosen_err: Tensor,
    rejected_err: Tensor,
    *,
    beta: float = 0.1,
    snr: float = 0.5,
    num_timesteps: float = 1000.0,
) -> ObjectiveOutput:
    """Fit the chosen image and keep its score above the rejected one's; no reference.

        phi(e) = s e / (exp(s e) - 1),    z = T [phi(e_w) - phi(e_l)],    L = e_w - beta log sigmoid(z)

    Args:
        chosen_err: (B,) policy error on the chosen image.
        rejected_err: (B,) policy error on the rejected image.
        beta: weight of the margin term against the error; not the beta of Diffusion-DPO.
        snr: s, the constant that stands for the signal-to-noise ratio.
        num_timesteps: T.

    Returns:
        Loss (B,); metrics accuracy (ties half), margin z, gradient_weight sigmoid(-z).

    Raises:
        ValueError: shapes differ, or a setting is not above 0.

    Source:
        Hong et al. 2024, arXiv 2406.06424; settings from the authors' code on SDXL. Departure: phi is computed without
        overflow and without 0/0.

    Example:
        >>> import torch
        >>> mapo(torch.tensor([0.100]), torch.tensor([0.104])).loss  # z = 1000 (.975208 - .974225)
        tensor([0.1318])
    """
    same_shape(chosen_err=chosen_err, rejected_err=rejected_err)
    require_positive(beta=beta, snr=snr, num_timesteps=num_timesteps)
    z = num_timesteps * (mapo_score(chosen_err, snr) - mapo_score(rejected_err, snr))
    fixed = z.detach()
    metrics = {
        "accuracy": (fixed > 0).float() + 0.5 * (fixed == 0).float(),
        "margin": fixed,
        "gradient_weight": (-fixed).sigmoid(),
    }
    return ObjectiveOutput(chosen_err + beta * F.softplus(-z), metrics)


def mapo_score(error: Tensor, snr: float) -> Tensor:
    """MaPO's score of an image, phi(e) = x / (exp(x) - 1) with x = snr e; 1 - x/2 for small x, x exp(-x) for large.

    Args:
        error: any shape.
        snr: above 0.

    Returns:
        The shape of ``error``; falls from 1 at error 0 to 0.

    Example:
        >>> import torch
        >>> mapo_score(torch.tensor([0.0, 0.2, 1e4]), 0.5)
        tensor([1.0000, 0.9508, 0.0000])
    """
    x = snr * error
    series = 1 - x / 2 + x.square() / 12 - x.pow(4) / 720
    small = x.abs() < 0.01
    size = x.abs().masked_fill(small, 1.0)  # the other branch of a where is differentiated too: keep it finite
    closed = size * torch.exp(-size) / -torch.expm1(-size) + F.relu(-x)  # phi(-x) = x + phi(x)
    return torch.where(small, series, closed)
