"""The hinge loss of SLiC."""

from __future__ import annotations

from torch import Tensor

from diffalign.objectives.contract import objective
from diffalign.objectives.margins import excesses, margin_metrics, preference_logit
from diffalign.types import ObjectiveOutput

__all__ = ["hinge"]


@objective("hinge")
def hinge(
    chosen_err: Tensor, rejected_err: Tensor, ref_chosen_err: Tensor, ref_rejected_err: Tensor, *, beta: float
) -> ObjectiveOutput:
    """Widen the margin until it is 1, and no further.

        z = -beta/2 [(e_w - e_w_ref) - (e_l - e_l_ref)],    L = max(0, 1 - z)

    Args:
        chosen_err: (B,) policy error on the chosen image.
        rejected_err: (B,) policy error on the rejected image.
        ref_chosen_err: (B,) reference error on the chosen image.
        ref_rejected_err: (B,) reference error on the rejected image.
        beta: strength, as of Diffusion-DPO.

    Returns:
        Loss (B,); metrics accuracy, margin, gradient_weight (1 until the margin is 1), chosen_excess, rejected_excess.

    Raises:
        ValueError: shapes differ, or beta is not above 0.

    Source:
        Zhao et al. 2023, arXiv 2305.10425, the rank calibration loss without its regularisation term. Departure:
        log-likelihoods are replaced by errors minus the reference's.

    Example:
        >>> import torch
        >>> errors = [torch.tensor([value]) for value in (0.100, 0.130, 0.102, 0.129)]
        >>> hinge(*errors, beta=200.0).loss  # 1 - 100 * .003
        tensor([0.7000])
    """
    chosen_excess, rejected_excess = excesses(chosen_err, rejected_err, ref_chosen_err, ref_rejected_err)
    z = preference_logit(chosen_excess, rejected_excess, beta)
    metrics = margin_metrics(z, chosen_excess, rejected_excess)
    return ObjectiveOutput((1 - z).clamp_min(0), metrics | {"gradient_weight": (z.detach() < 1).to(z.dtype)})
