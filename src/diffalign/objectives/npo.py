"""Networks for the negative branch of guidance: Diffusion-NPO and Self-NPO."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from diffalign.objectives.contract import objective
from diffalign.objectives.dpo import pair_metrics
from diffalign.objectives.margins import excesses, preference_logit
from diffalign.types import ObjectiveOutput

__all__ = ["diffusion_npo", "self_npo"]


@objective("diffusion_npo")
def diffusion_npo(
    chosen_err: Tensor, rejected_err: Tensor, ref_chosen_err: Tensor, ref_rejected_err: Tensor, *, beta: float
) -> ObjectiveOutput:
    """Diffusion-DPO with the two images changing places: learn to prefer the rejected one.

        z = -beta/2 [(e_l - e_l_ref) - (e_w - e_w_ref)],    L = -log sigmoid(z)

    The adapter belongs on the negative branch of guidance, not on the positive one.

    Args:
        chosen_err: (B,) policy error on the chosen image.
        rejected_err: (B,) policy error on the rejected image.
        ref_chosen_err: (B,) reference error on the chosen image.
        ref_rejected_err: (B,) reference error on the rejected image.
        beta: strength, as of Diffusion-DPO. The authors' code has no factor 1/2: their 500 (SD 1.5) and 2000 (SDXL)
            are 1000 and 4000 here.

    Returns:
        Loss (B,) in nats; metrics of ``pair_metrics``: margin and accuracy of the reversed preference, chosen_excess
        and rejected_excess of the images as the data name them.

    Raises:
        ValueError: shapes differ, or beta is not above 0.

    Source:
        Diffusion-NPO 2025, arXiv 2505.11245, the variant trained from Diffusion-DPO.

    Example:
        >>> import torch
        >>> errors = [torch.tensor([value]) for value in (0.100, 0.130, 0.102, 0.129)]
        >>> diffusion_npo(*errors, beta=2000.0).loss  # z = -3
        tensor([3.0486])
    """
    chosen_excess, rejected_excess = excesses(chosen_err, rejected_err, ref_chosen_err, ref_rejected_err)
    z = preference_logit(rejected_excess, chosen_excess, beta)
    return ObjectiveOutput(F.softplus(-z), pair_metrics(z, chosen_excess, rejected_excess))


@objective("self_npo")
def self_npo(policy_err: Tensor) -> ObjectiveOutput:
    """Fit the policy to its own samples, which weakens it: a network for the negative branch, without any label.

        L = e_p

    What weakens it is the sample source: trajectories that are broken off, whose over-smoothed clean images are the
    targets, with guidance at or below 1. Scored against the policy's own live prediction the loss is 0.

    Args:
        policy_err: (B,) policy error on an own sample.

    Returns:
        Loss (B,), no metrics.

    Source:
        Self-NPO 2025, arXiv 2505.11777. Departures: squared error in the network's own target, where the authors' code
        has a pseudo-Huber error of x0.

    Example:
        >>> import torch
        >>> self_npo(torch.tensor([0.1, 0.3])).loss
        tensor([0.1000, 0.3000])
    """
    return ObjectiveOutput(policy_err)
