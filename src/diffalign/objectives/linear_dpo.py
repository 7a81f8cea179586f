"""Linear-DPO: the logistic weight of a pair as a clipped line."""

from __future__ import annotations

from torch import Tensor

from diffalign.objectives.contract import objective
from diffalign.objectives.margins import excesses, margin_metrics, preference_logit, require_between
from diffalign.types import ObjectiveOutput

__all__ = ["linear_dpo"]


@objective("linear_dpo")
def linear_dpo(
    chosen_err: Tensor,
    rejected_err: Tensor,
    ref_chosen_err: Tensor,
    ref_rejected_err: Tensor,
    *,
    beta: float,
    eta: float = 0.001,
) -> ObjectiveOutput:
    """Pull the chosen and push the rejected image with a weight that falls linearly with the margin.

        D = -[(e_w - e_w_ref) - (e_l - e_l_ref)],    a = clip(1/2 - beta D / 5, eta, 1 - eta),    L = a (e_w - e_l)

    There is no gradient in a: it stands for the sigmoid(-beta/2 D) of Diffusion-DPO's gradient, and the outer beta is
    left out, so the learning rate is that of supervised fine-tuning.

    Args:
        chosen_err: (B,) policy error on the chosen image.
        rejected_err: (B,) policy error on the rejected image.
        ref_chosen_err: (B,) reference error on the chosen image.
        ref_rejected_err: (B,) reference error on the rejected image.
        beta: slope of the weight; 100 on SD 1.5, 500 on SDXL.
        eta: the least weight, in [0, 0.5]; 0.001 on SD 1.5, 0 on SDXL.

    Returns:
        Loss (B,) in units of the error, of any sign; metrics accuracy, margin (as of Diffusion-DPO), gradient_weight
        (a), chosen_excess, rejected_excess.

    Raises:
        ValueError: shapes differ, or a setting is out of range.

    Source:
        arXiv 2605.21123; form and settings from the authors' code. It goes with a reference that is an average of the
        policy's weights (decay .95 to .995 every step).

    Example:
        >>> import torch
        >>> errors = [torch.tensor([value]) for value in (0.100, 0.130, 0.102, 0.129)]
        >>> linear_dpo(*errors, beta=100.0).loss  # (.5 - 20 * .003) * -.03
        tensor([-0.0132])
    """
    require_between(0, 0.5, eta=eta)
    chosen_excess, rejected_excess = excesses(chosen_err, rejected_err, ref_chosen_err, ref_rejected_err)
    z = preference_logit(chosen_excess, rejected_excess, beta)
    weight = (0.5 - 0.2 * beta * (rejected_excess - chosen_excess)).detach().clamp(eta, 1 - eta)
    metrics = margin_metrics(z, chosen_excess, rejected_excess) | {"gradient_weight": weight}
    return ObjectiveOutput(weight * (chosen_err - rejected_err), metrics)
