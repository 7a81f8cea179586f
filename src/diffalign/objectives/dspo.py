"""DSPO: the preference moves what the network should predict."""

from __future__ import annotations

from torch import Tensor

from diffalign.objectives.contract import objective, same_shape
from diffalign.objectives.dpo import pair_metrics
from diffalign.objectives.margins import excesses, preference_logit
from diffalign.types import ObjectiveOutput

__all__ = ["dspo"]


@objective("dspo")
def dspo(
    chosen_err: Tensor,
    rejected_err: Tensor,
    ref_chosen_err: Tensor,
    ref_rejected_err: Tensor,
    chosen_pred: Tensor,
    ref_chosen_pred: Tensor,
    chosen_target: Tensor,
    *,
    beta: float,
) -> ObjectiveOutput:
    """Fit the chosen image's score plus the score of its being preferred.

        z = -beta/2 [(e_w - e_w_ref) - (e_l - e_l_ref)]
        L = mean [(f_w - u) - beta (1 - sigmoid(z)) (f_w - f_w_ref)]^2

    At policy = reference it is the error of the chosen image, with its gradient but for the factor 1 - beta/2.

    Args:
        chosen_err: (B,) policy error on the chosen image.
        rejected_err: (B,) policy error on the rejected image.
        ref_chosen_err: (B,) reference error on the chosen image.
        ref_rejected_err: (B,) reference error on the rejected image.
        chosen_pred: (B, C, H, W) f_w, policy output on the chosen image.
        ref_chosen_pred: (B, C, H, W) f_w_ref, reference output on it.
        chosen_target: (B, C, H, W) u, what the network should predict on it.
        beta: strength, used twice; 0.001 on SD 1.5.

    Returns:
        Loss (B,) in squared units of the output; metrics of ``pair_metrics``.

    Raises:
        ValueError: shapes differ, or beta is not above 0.

    Source:
        Zhu et al., ICLR 2025, "DSPO: Direct Score Preference Optimization for Diffusion Model Alignment"; the SD 1.5
        form of the authors' code, which differentiates sigmoid(z) too. Their SDXL form is another loss and not here.
        A damage mask weighs the errors in z alone.

    Example:
        >>> import torch
        >>> errors = [torch.tensor([value]) for value in (0.100, 0.130, 0.102, 0.129)]
        >>> outputs = [torch.full((1, 4, 2, 3), value) for value in (0.4, 0.2, 0.1)]
        >>> dspo(*errors, *outputs, beta=2.0).loss  # (.3 - 2 * .49925 * .2)^2
        tensor([0.0101])
    """
    chosen_excess, rejected_excess = excesses(chosen_err, rejected_err, ref_chosen_err, ref_rejected_err)
    same_shape(chosen_pred=chosen_pred, ref_chosen_pred=ref_chosen_pred, chosen_target=chosen_target)
    same_shape(chosen_err=chosen_err, one_element_of_chosen_pred=chosen_pred.flatten(1)[:, 0])
    z = preference_logit(chosen_excess, rejected_excess, beta)
    pred, target, ref_pred = (one.flatten(1).to(z.dtype) for one in (chosen_pred, chosen_target, ref_chosen_pred))
    pull = beta * (-z).sigmoid()[:, None]
    difference = (pred - target.detach()) - pull * (pred - ref_pred.detach())
    return ObjectiveOutput(difference.square().mean(1), pair_metrics(z, chosen_excess, rejected_excess))
