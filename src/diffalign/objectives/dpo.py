"""Diffusion-DPO."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from diffalign.objectives.contract import objective, same_shape
from diffalign.types import ObjectiveOutput

__all__ = ["diffusion_dpo", "pair_metrics"]


@objective("diffusion_dpo")
def diffusion_dpo(
    chosen_err: Tensor, rejected_err: Tensor, ref_chosen_err: Tensor, ref_rejected_err: Tensor, *, beta: float
) -> ObjectiveOutput:
    """Prefer the chosen image to the rejected one, both measured against a frozen reference.

        z = -beta/2 [(e_w - e_w_ref) - (e_l - e_l_ref)],    L = -log sigmoid(z)

    At policy = reference the loss is log 2 and its slope in ``chosen_err`` is beta/4.

    Args:
        chosen_err: (B,) policy error on the chosen image.
        rejected_err: (B,) policy error on the rejected image.
        ref_chosen_err: (B,) reference error on the chosen image.
        ref_rejected_err: (B,) reference error on the rejected image.
        beta: strength; 2000 to 5000 on epsilon errors of SD 1.5, about 100 on velocity errors of SD 3.5.

    Returns:
        Loss (B,) in nats; metrics of ``pair_metrics``.

    Raises:
        ValueError: shapes differ, or beta is not above 0.

    Source:
        Wallace et al. 2023, arXiv 2311.12908, Eq. 14. Departures, shared with the authors' code: errors are means
        over elements, not sums; T and omega are absorbed into beta; both images share timestep and noise.

    Example:
        >>> import torch
        >>> errors = [torch.tensor([value]) for value in (0.100, 0.130, 0.102, 0.129)]
        >>> diffusion_dpo(*errors, beta=2000.0).loss
        tensor([0.0486])
    """
    same_shape(
        chosen_err=chosen_err,
        rejected_err=rejected_err,
        ref_chosen_err=ref_chosen_err,
        ref_rejected_err=ref_rejected_err,
    )
    if beta <= 0:
        raise ValueError(f"expected beta above 0, got {beta}")
    chosen_excess, rejected_excess = chosen_err - ref_chosen_err.detach(), rejected_err - ref_rejected_err.detach()
    z = -beta / 2 * (chosen_excess - rejected_excess)
    return ObjectiveOutput(F.softplus(-z), pair_metrics(z, chosen_excess, rejected_excess))


def pair_metrics(z: Tensor, chosen_excess: Tensor, rejected_excess: Tensor) -> dict[str, Tensor]:
    """What every pair loss logs, detached: the errors minus the reference's *separately*, since the margin can grow
    while the chosen image is denoised worse.

    Args:
        z: (B,) preference logit.
        chosen_excess: (B,) policy minus reference error on the chosen image; below 0 is better than the reference.
        rejected_excess: (B,) the same on the rejected image.

    Returns:
        accuracy (ties half), margin z, gradient_weight sigmoid(-z), chosen_excess, rejected_excess.
    """
    z = z.detach()
    return {
        "accuracy": (z > 0).float() + 0.5 * (z == 0).float(),
        "margin": z,
        "gradient_weight": (-z).sigmoid(),
        "chosen_excess": chosen_excess.detach(),
        "rejected_excess": rejected_excess.detach(),
    }
