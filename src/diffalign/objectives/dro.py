"""Diffusion-DRO and what it is when its negative term has no gradient: gated supervised fine-tuning."""

from __future__ import annotations

from torch import Tensor

from diffalign.objectives.contract import objective, same_shape
from diffalign.types import ObjectiveOutput

__all__ = ["diffusion_dro", "gated_sft", "gated_sft_proxy_drift"]


@objective("diffusion_dro")
def diffusion_dro(
    chosen_err: Tensor, ref_chosen_err: Tensor, policy_err: Tensor, ref_policy_err: Tensor, *, margin: float = 0.001
) -> ObjectiveOutput:
    """Real images must gain more over the reference than the policy's own samples do.

        G_w = e_w_ref - e_w,    G_p = e_p_ref - e_p,    L = max(0, m + G_p - G_w)

    What own samples are scored against is the sample source's choice, and with it the variant:

    - the prediction of the live policy: as published (M = 1). ``e_p`` is then 0 and has no gradient, G_p is the drift
      on own samples, and the gradient is exactly that of gated SFT;
    - the prediction of a policy that is M steps old: repulsion that grows until the next refresh;
    - the true noise: the hinge loss of SLiC with kappa = 1/m, own samples as losers.

    Args:
        chosen_err: (B,) policy error on the real image.
        ref_chosen_err: (B,) reference error on the real image.
        policy_err: (B,) policy error on an own sample.
        ref_policy_err: (B,) reference error on it, against the same target.
        margin: m, in units of the error.

    Returns:
        Loss (B,); metrics gate, drift (G_p), chosen_excess.

    Raises:
        ValueError: shapes differ.

    Source:
        arXiv 2510.18353, Algorithm 1. Departure: their max(-m, G_p - G_w) plus the constant m, as in their code.

    Example:
        >>> import torch
        >>> errors = [torch.tensor([value]) for value in (0.100, 0.102, 0.000, 0.004)]
        >>> diffusion_dro(*errors).loss  # 0.001 + 0.004 - 0.002
        tensor([0.0030])
    """
    same_shape(
        chosen_err=chosen_err, ref_chosen_err=ref_chosen_err, policy_err=policy_err, ref_policy_err=ref_policy_err
    )
    drift, chosen_excess = ref_policy_err.detach() - policy_err, chosen_err - ref_chosen_err.detach()
    hinge = margin + drift + chosen_excess
    metrics = _metrics(hinge, drift, chosen_excess)
    return ObjectiveOutput(hinge.clamp_min(0), metrics)


@objective("gated_sft")
def gated_sft(chosen_err: Tensor, ref_chosen_err: Tensor, *, margin: float = 0.001) -> ObjectiveOutput:
    """Fit a real image until it has gained the margin over the reference.

        L = 1[e_w - e_w_ref + m > 0] e_w

    Args:
        chosen_err: (B,) policy error on the real image.
        ref_chosen_err: (B,) reference error on it.
        margin: m, in units of the error.

    Returns:
        Loss (B,); metrics gate, drift (0), chosen_excess.

    Raises:
        ValueError: shapes differ.

    Source:
        The gradient of arXiv 2510.18353 at M = 1 with the drift on own samples left out; no sampling.

    Example:
        >>> import torch
        >>> gated_sft(torch.tensor([0.10, 0.10]), torch.tensor([0.11, 0.10])).loss
        tensor([0.0000, 0.1000])
    """
    same_shape(chosen_err=chosen_err, ref_chosen_err=ref_chosen_err)
    return _gated(chosen_err, ref_chosen_err, chosen_err.new_zeros(chosen_err.shape), margin)


@objective("gated_sft_proxy_drift")
def gated_sft_proxy_drift(
    chosen_err: Tensor, ref_chosen_err: Tensor, chosen_pred: Tensor, ref_chosen_pred: Tensor, *, margin: float = 0.001
) -> ObjectiveOutput:
    """Gated SFT whose gate adds the drift from the reference on the real image itself, where both passes exist already.

        d = mean (pred_ref - pred)^2,    L = 1[e_w - e_w_ref + d + m > 0] e_w

    Args:
        chosen_err: (B,) policy error on the real image.
        ref_chosen_err: (B,) reference error on it.
        chosen_pred: (B, C, H, W) policy output on it.
        ref_chosen_pred: (B, C, H, W) reference output on it.
        margin: m, in units of the error.

    Returns:
        Loss (B,); metrics gate, drift, chosen_excess.

    Raises:
        ValueError: shapes differ.

    Source:
        A stand-in for the own-sample drift of arXiv 2510.18353 at M = 1; no sampling.

    Example:
        >>> import torch
        >>> pred, ref_pred = torch.zeros(1, 1, 2, 3), torch.full((1, 1, 2, 3), 0.2)
        >>> gated_sft_proxy_drift(torch.tensor([0.10]), torch.tensor([0.11]), pred, ref_pred).loss  # -0.01 + 0.04 > 0
        tensor([0.1000])
    """
    same_shape(chosen_err=chosen_err, ref_chosen_err=ref_chosen_err)
    same_shape(chosen_pred=chosen_pred, ref_chosen_pred=ref_chosen_pred)
    drift = (ref_chosen_pred.detach().float() - chosen_pred.detach().float()).square().flatten(1).mean(1)
    same_shape(drift=drift, chosen_err=chosen_err)
    return _gated(chosen_err, ref_chosen_err, drift, margin)


def _gated(chosen_err: Tensor, ref_chosen_err: Tensor, drift: Tensor, margin: float) -> ObjectiveOutput:
    metrics = _metrics(chosen_err - ref_chosen_err + drift + margin, drift, chosen_err - ref_chosen_err)
    return ObjectiveOutput(metrics["gate"] * chosen_err, metrics)


def _metrics(hinge: Tensor, drift: Tensor, chosen_excess: Tensor) -> dict[str, Tensor]:
    gate = (hinge.detach() > 0).to(hinge.dtype)
    return {"gate": gate, "drift": drift.detach(), "chosen_excess": chosen_excess.detach()}
