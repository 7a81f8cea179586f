"""Diffusion-KTO: a utility of every image by itself, under three attitudes to risk."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from diffalign.objectives.contract import objective
from diffalign.objectives.margins import excesses, require_positive
from diffalign.types import ObjectiveOutput

__all__ = ["kto", "kto_loss_averse", "kto_risk_seeking"]


@objective("kto", couples_batch=True)
def kto(
    chosen_err: Tensor,
    rejected_err: Tensor,
    ref_chosen_err: Tensor,
    ref_rejected_err: Tensor,
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> ObjectiveOutput:
    """Judge every image by itself: the chosen one is desirable, the rejected one is not.

        g = -(e - e_ref) - z0,    z0 = max(0, mean of -(e - e_ref) over all images of the batch),    no gradient in z0
        L = [a_w (1 - U(beta g_w)) + a_l (1 - U(-beta g_l))] / 2,    U(x) = sigmoid(x)

    The utility saturates on both sides: images that are far off the baseline count little.

    Args:
        chosen_err: (B,) policy error on the chosen image.
        rejected_err: (B,) policy error on the rejected image.
        ref_chosen_err: (B,) reference error on the chosen image.
        ref_rejected_err: (B,) reference error on the rejected image.
        beta: strength, on g itself and without the factor 1/2 of Diffusion-DPO; 1000 on SD 1.5.
        desirable_weight: a_w. The authors draw 80 % desirable images; here 1.6 and 0.4 have that effect, but for the
            baseline.
        undesirable_weight: a_l.

    Returns:
        Loss (B,), the mean of a row's two images; metrics accuracy (share of the two on their side of the baseline, on
        it half), baseline (z0), chosen_excess, rejected_excess.

    Raises:
        ValueError: shapes differ, or a setting is not above 0.

    Source:
        Li et al. 2024, arXiv 2404.04465, after Ethayarajh et al. 2024, arXiv 2402.01306; settings from the authors'
        code. Departure: images come in pairs, so both kinds are equally many.

    Example:
        >>> import torch
        >>> errors = [torch.tensor([value]) for value in (0.100, 0.130, 0.102, 0.129)]
        >>> kto(*errors, beta=1000.0).loss  # z0 = .0005, g_w = .0015, g_l = -.0015: 1 - sigmoid(1.5)
        tensor([0.1824])
    """
    excess = excesses(chosen_err, rejected_err, ref_chosen_err, ref_rejected_err)
    return _kto(torch.sigmoid, *excess, beta, desirable_weight, undesirable_weight)


@objective("kto_loss_averse", couples_batch=True)
def kto_loss_averse(
    chosen_err: Tensor,
    rejected_err: Tensor,
    ref_chosen_err: Tensor,
    ref_rejected_err: Tensor,
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> ObjectiveOutput:
    """KTO with a concave utility: images on the wrong side of the baseline count most, without bound.

        L = [a_w (1 - U(beta g_w)) + a_l (1 - U(-beta g_l))] / 2,    U(x) = log sigmoid(x),    g as of ``kto``

    Args:
        chosen_err: (B,) policy error on the chosen image.
        rejected_err: (B,) policy error on the rejected image.
        ref_chosen_err: (B,) reference error on the chosen image.
        ref_rejected_err: (B,) reference error on the rejected image.
        beta: strength, as of ``kto``.
        desirable_weight: a_w.
        undesirable_weight: a_l.

    Returns:
        Loss (B,); metrics of ``kto``.

    Raises:
        ValueError: shapes differ, or a setting is not above 0.

    Source:
        Li et al. 2024, arXiv 2404.04465, the loss-averse utility.

    Example:
        >>> import torch
        >>> errors = [torch.tensor([value]) for value in (0.100, 0.130, 0.102, 0.129)]
        >>> kto_loss_averse(*errors, beta=1000.0).loss  # 1 - log sigmoid(1.5)
        tensor([1.2014])
    """
    excess = excesses(chosen_err, rejected_err, ref_chosen_err, ref_rejected_err)
    return _kto(F.logsigmoid, *excess, beta, desirable_weight, undesirable_weight)


@objective("kto_risk_seeking", couples_batch=True)
def kto_risk_seeking(
    chosen_err: Tensor,
    rejected_err: Tensor,
    ref_chosen_err: Tensor,
    ref_rejected_err: Tensor,
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> ObjectiveOutput:
    """KTO with a convex utility: images on the right side of the baseline count most; the loss has no lower bound.

        L = [a_w (1 - U(beta g_w)) + a_l (1 - U(-beta g_l))] / 2,    U(x) = -log sigmoid(-x),    g as of ``kto``

    Args:
        chosen_err: (B,) policy error on the chosen image.
        rejected_err: (B,) policy error on the rejected image.
        ref_chosen_err: (B,) reference error on the chosen image.
        ref_rejected_err: (B,) reference error on the rejected image.
        beta: strength, as of ``kto``.
        desirable_weight: a_w.
        undesirable_weight: a_l.

    Returns:
        Loss (B,); metrics of ``kto``.

    Raises:
        ValueError: shapes differ, or a setting is not above 0.

    Source:
        Li et al. 2024, arXiv 2404.04465, the risk-seeking utility; of the three forms in the authors' code the one
        that is the paper's.

    Example:
        >>> import torch
        >>> errors = [torch.tensor([value]) for value in (0.100, 0.130, 0.102, 0.129)]
        >>> kto_risk_seeking(*errors, beta=1000.0).loss  # 1 + log sigmoid(-1.5)
        tensor([-0.7014])
    """
    excess = excesses(chosen_err, rejected_err, ref_chosen_err, ref_rejected_err)
    return _kto(F.softplus, *excess, beta, desirable_weight, undesirable_weight)


def _kto(
    utility: Callable[[Tensor], Tensor],
    chosen_excess: Tensor,
    rejected_excess: Tensor,
    beta: float,
    desirable_weight: float,
    undesirable_weight: float,
) -> ObjectiveOutput:
    require_positive(beta=beta, desirable_weight=desirable_weight, undesirable_weight=undesirable_weight)
    baseline = -torch.cat([chosen_excess, rejected_excess]).detach().mean()
    baseline = baseline.clamp_min(0)
    chosen_gain, rejected_gain = -chosen_excess - baseline, -rejected_excess - baseline
    desirable = desirable_weight * (1 - utility(beta * chosen_gain))
    undesirable = undesirable_weight * (1 - utility(-beta * rejected_gain))
    accuracy = (2 + chosen_gain.detach().sign() - rejected_gain.detach().sign()) / 4
    metrics = {
        "accuracy": accuracy,
        "baseline": baseline.expand(chosen_excess.shape),
        "chosen_excess": chosen_excess.detach(),
        "rejected_excess": rejected_excess.detach(),
    }
    return ObjectiveOutput((desirable + undesirable) / 2, metrics)
