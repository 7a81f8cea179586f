"""IPO."""

from __future__ import annotations

from torch import Tensor

from diffalign.objectives.contract import objective
from diffalign.objectives.margins import excesses, margin_metrics, require_positive
from diffalign.types import ObjectiveOutput

__all__ = ["ipo"]


@objective("ipo")
def ipo(
    chosen_err: Tensor, rejected_err: Tensor, ref_chosen_err: Tensor, ref_rejected_err: Tensor, *, beta: float
) -> ObjectiveOutput:
    """Regress the gain of the chosen image over that of the rejected one to a fixed gap.

        D = -[(e_w - e_w_ref) - (e_l - e_l_ref)],    L = (D - 1/(2 beta))^2

    Unlike the logistic loss it pulls a margin back that has grown too wide.

    Args:
        chosen_err: (B,) policy error on the chosen image.
        rejected_err: (B,) policy error on the rejected image.
        ref_chosen_err: (B,) reference error on the chosen image.
        ref_rejected_err: (B,) reference error on the rejected image.
        beta: strength, on D itself and without the factor 1/2 of Diffusion-DPO; the gap is 1/(2 beta) in units of the
            error.

    Returns:
        Loss (B,) in squared units of the error; metrics accuracy, margin (beta D, 1/2 at the optimum), chosen_excess,
        rejected_excess.

    Raises:
        ValueError: shapes differ, or beta is not above 0.

    Source:
        Azar et al. 2023, arXiv 2310.12036, Eq. 17, with log-likelihood ratios replaced by differences of errors.

    Example:
        >>> import torch
        >>> errors = [torch.tensor([value]) for value in (0.100, 0.130, 0.102, 0.129)]
        >>> ipo(*errors, beta=100.0).loss  # (.003 - .005)^2
        tensor([4.0000e-06])
    """
    require_positive(beta=beta)
    chosen_excess, rejected_excess = excesses(chosen_err, rejected_err, ref_chosen_err, ref_rejected_err)
    difference = rejected_excess - chosen_excess
    metrics = margin_metrics(beta * difference, chosen_excess, rejected_excess)
    return ObjectiveOutput((difference - 1 / (2 * beta)).square(), metrics)
