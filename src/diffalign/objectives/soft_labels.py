"""Diffusion-DPO under labels that are not certain: a fixed share of flips, a probability, a smoothed preference."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from diffalign.objectives.contract import objective, same_shape
from diffalign.objectives.dpo import pair_metrics
from diffalign.objectives.margins import excesses, preference_logit, require_between, require_positive
from diffalign.types import ObjectiveOutput

__all__ = ["cdpo", "smpo", "soft_dpo"]


@objective("cdpo")
def cdpo(
    chosen_err: Tensor,
    rejected_err: Tensor,
    ref_chosen_err: Tensor,
    ref_rejected_err: Tensor,
    *,
    beta: float,
    label_smoothing: float,
) -> ObjectiveOutput:
    """Diffusion-DPO that takes a fixed share of the labels for flipped.

        z = -beta/2 [(e_w - e_w_ref) - (e_l - e_l_ref)],    L = -(1 - s) log sigmoid(z) - s log sigmoid(-z)

    The optimum is the finite margin log((1 - s)/s).

    Args:
        chosen_err: (B,) policy error on the chosen image.
        rejected_err: (B,) policy error on the rejected image.
        ref_chosen_err: (B,) reference error on the chosen image.
        ref_rejected_err: (B,) reference error on the rejected image.
        beta: strength, as of Diffusion-DPO.
        label_smoothing: s, the share of flipped labels, in [0, 0.5].

    Returns:
        Loss (B,) in nats; metrics of ``pair_metrics``, gradient_weight being |sigmoid(z) - (1 - s)|.

    Raises:
        ValueError: shapes differ, or a setting is out of range.

    Source:
        Mitchell 2023, A note on DPO with noisy preferences and relationship to IPO, "conservative DPO".

    Example:
        >>> import torch
        >>> errors = [torch.tensor([value]) for value in (0.100, 0.130, 0.102, 0.129)]
        >>> cdpo(*errors, beta=2000.0, label_smoothing=0.1).loss  # .9 * .0486 + .1 * 3.0486
        tensor([0.3486])
    """
    require_between(0, 0.5, label_smoothing=label_smoothing)
    chosen_excess, rejected_excess = excesses(chosen_err, rejected_err, ref_chosen_err, ref_rejected_err)
    z = preference_logit(chosen_excess, rejected_excess, beta)
    return _cross_entropy(z, z.new_full(z.shape, 1 - label_smoothing), chosen_excess, rejected_excess)


@objective("soft_dpo")
def soft_dpo(
    chosen_err: Tensor,
    rejected_err: Tensor,
    ref_chosen_err: Tensor,
    ref_rejected_err: Tensor,
    label: Tensor,
    *,
    beta: float,
) -> ObjectiveOutput:
    """Diffusion-DPO against the probability that the chosen image is better; ties are welcome.

        z = -beta/2 [(e_w - e_w_ref) - (e_l - e_l_ref)],    L = -p log sigmoid(z) - (1 - p) log sigmoid(-z)

    Args:
        chosen_err: (B,) policy error on the chosen image.
        rejected_err: (B,) policy error on the rejected image.
        ref_chosen_err: (B,) reference error on the chosen image.
        ref_rejected_err: (B,) reference error on the rejected image.
        label: (B,) p in [0, 1], such as sigmoid(reward of chosen - reward of rejected).
        beta: strength, as of Diffusion-DPO.

    Returns:
        Loss (B,) in nats; metrics of ``pair_metrics``, gradient_weight being |sigmoid(z) - p|.

    Raises:
        ValueError: shapes differ, or beta is not above 0.

    Source:
        The loss of Mitchell 2023 (see ``cdpo``) with a probability for each pair.

    Example:
        >>> import torch
        >>> errors = [torch.tensor([value]) for value in (0.100, 0.130, 0.102, 0.129)]
        >>> soft_dpo(*errors, torch.tensor([0.5]), beta=2000.0).loss  # .0486 + .5 * 3
        tensor([1.5486])
    """
    chosen_excess, rejected_excess = excesses(chosen_err, rejected_err, ref_chosen_err, ref_rejected_err)
    same_shape(chosen_err=chosen_err, label=label)
    z = preference_logit(chosen_excess, rejected_excess, beta)
    return _cross_entropy(z, label.detach(), chosen_excess, rejected_excess)


@objective("smpo")
def smpo(
    chosen_err: Tensor,
    rejected_err: Tensor,
    ref_chosen_err: Tensor,
    ref_rejected_err: Tensor,
    label: Tensor,
    *,
    beta: float,
    gamma: float = 10.0,
) -> ObjectiveOutput:
    """Diffusion-DPO whose strength grows with how clear the preference is.

        z = -beta/2 gamma (2p - 1) [(e_w - e_w_ref) - (e_l - e_l_ref)],    L = -log sigmoid(z)

    A tie has no gradient; p below 1/2 turns the pair round.

    Args:
        chosen_err: (B,) policy error on the chosen image.
        rejected_err: (B,) policy error on the rejected image.
        ref_chosen_err: (B,) reference error on the chosen image.
        ref_rejected_err: (B,) reference error on the rejected image.
        label: (B,) p in [0, 1], probability that chosen is better.
        beta: strength, as of Diffusion-DPO; 2000 on SD 1.5, 5000 on SDXL.
        gamma: the factor that brings gamma (2p - 1) near 1 for the clear pairs of p = 0.55.

    Returns:
        Loss (B,) in nats; metrics of ``pair_metrics``.

    Raises:
        ValueError: shapes differ, or a setting is not above 0.

    Source:
        Lu et al. 2025, arXiv 2506.02698, and gamma from its code. There p is the softmax of two PickScores scaled to
        [0, 1], so that p stays below 0.74. The noise by inversion that goes with it is not part of this function.

    Example:
        >>> import torch
        >>> errors = [torch.tensor([value]) for value in (0.100, 0.130, 0.102, 0.129)]
        >>> smpo(*errors, torch.tensor([0.55]), beta=2000.0).loss  # gamma (2p - 1) = 1: Diffusion-DPO's
        tensor([0.0486])
    """
    require_positive(gamma=gamma)
    chosen_excess, rejected_excess = excesses(chosen_err, rejected_err, ref_chosen_err, ref_rejected_err)
    same_shape(chosen_err=chosen_err, label=label)
    z = gamma * (2 * label.detach() - 1) * preference_logit(chosen_excess, rejected_excess, beta)
    return ObjectiveOutput(F.softplus(-z), pair_metrics(z, chosen_excess, rejected_excess))


def _cross_entropy(z: Tensor, probability: Tensor, chosen_excess: Tensor, rejected_excess: Tensor) -> ObjectiveOutput:
    loss = probability * F.softplus(-z) + (1 - probability) * F.softplus(z)
    metrics = pair_metrics(z, chosen_excess, rejected_excess)
    return ObjectiveOutput(loss, metrics | {"gradient_weight": (z.detach().sigmoid() - probability).abs()})
