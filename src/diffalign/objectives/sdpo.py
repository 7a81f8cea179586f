"""Diffusion-SDPO: the push on the rejected image is held back where it would harm the chosen one."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from diffalign.objectives.contract import objective, same_shape
from diffalign.objectives.dpo import pair_metrics
from diffalign.objectives.margins import excesses, preference_logit, require_between
from diffalign.types import ObjectiveOutput

__all__ = ["scale_gradient", "sdpo", "sdpo_batch", "winner_preserving_scale"]


@objective("sdpo")
def sdpo(
    chosen_err: Tensor,
    rejected_err: Tensor,
    ref_chosen_err: Tensor,
    ref_rejected_err: Tensor,
    chosen_pred: Tensor,
    chosen_target: Tensor,
    rejected_pred: Tensor,
    rejected_target: Tensor,
    *,
    beta: float,
    mu: float,
) -> ObjectiveOutput:
    """Diffusion-DPO whose gradient in the rejected error is scaled pair by pair so that the chosen error cannot grow.

        g = gradient of an error in the output = 2 (f - u) / n
        s = 1 if g_w . g_l <= 0, else min(1, (1 - mu) |g_w|^2 / (g_w . g_l))
        e_l' = e_l in value, s de_l in gradient,    L = -log sigmoid(-beta/2 [(e_w - e_w_ref) - (e_l' - e_l_ref)])

    To first order, and as far as a step moves both outputs alike, the chosen error falls by at least mu times what
    fitting the chosen image alone would give. A damage mask weighs the errors, not the scale.

    Args:
        chosen_err: (B,) policy error on the chosen image.
        rejected_err: (B,) policy error on the rejected image.
        ref_chosen_err: (B,) reference error on the chosen image.
        ref_rejected_err: (B,) reference error on the rejected image.
        chosen_pred: (B, C, H, W) policy output on the chosen image, read without gradient.
        chosen_target: (B, C, H, W) what the network should predict on it.
        rejected_pred: (B, C, H, W) policy output on the rejected image, read without gradient.
        rejected_target: (B, C, H, W) what the network should predict on it.
        beta: strength, as of Diffusion-DPO.
        mu: how much of the chosen image's descent is kept, in [0, 1]; 0.9 on SD 1.5, 0.6 on SDXL.

    Returns:
        Loss (B,) in nats, in value that of Diffusion-DPO; metrics of ``pair_metrics`` and rejected_scale (s).

    Raises:
        ValueError: shapes differ, or a setting is out of range.

    Source:
        Diffusion-SDPO 2025, arXiv 2511.03317. Departures: one scale for each pair, where the authors' code has one for
        a batch (that is ``sdpo_batch``); no 1e-9 in the quotient.

    Example:
        >>> import torch
        >>> errors = [torch.tensor([value]) for value in (0.100, 0.130, 0.102, 0.129)]
        >>> outputs = [torch.full((1, 4, 2, 3), value) for value in (0.1, 0.0, 0.2, 0.0)]
        >>> sdpo(*errors, *outputs, beta=2000.0, mu=0.9).metrics["rejected_scale"]  # .1 * .01 / .02
        tensor([0.0500])
    """
    square, product = _products(chosen_pred, chosen_target, rejected_pred, rejected_target)
    scale = winner_preserving_scale(square, product, mu)
    return _scaled_dpo(chosen_err, rejected_err, ref_chosen_err, ref_rejected_err, scale, beta)


@objective("sdpo_batch", couples_batch=True)
def sdpo_batch(
    chosen_err: Tensor,
    rejected_err: Tensor,
    ref_chosen_err: Tensor,
    ref_rejected_err: Tensor,
    chosen_pred: Tensor,
    chosen_target: Tensor,
    rejected_pred: Tensor,
    rejected_target: Tensor,
    *,
    beta: float,
    mu: float,
) -> ObjectiveOutput:
    """``sdpo`` with one scale for the whole batch, as published in code.

        s = 1 if sum g_w . g_l <= 0, else min(1, (1 - mu) sum |g_w|^2 / sum g_w . g_l),    sums over the batch
        L = -log sigmoid(-beta/2 [(e_w - e_w_ref) - (e_l' - e_l_ref)]),    e_l' as of ``sdpo``

    Args:
        chosen_err: (B,) policy error on the chosen image.
        rejected_err: (B,) policy error on the rejected image.
        ref_chosen_err: (B,) reference error on the chosen image.
        ref_rejected_err: (B,) reference error on the rejected image.
        chosen_pred: (B, C, H, W) policy output on the chosen image, read without gradient.
        chosen_target: (B, C, H, W) what the network should predict on it.
        rejected_pred: (B, C, H, W) policy output on the rejected image, read without gradient.
        rejected_target: (B, C, H, W) what the network should predict on it.
        beta: strength, as of Diffusion-DPO.
        mu: as of ``sdpo``, in [0, 1].

    Returns:
        Loss (B,) in nats; metrics of ``pair_metrics`` and rejected_scale (s).

    Raises:
        ValueError: shapes differ, or a setting is out of range.

    Source:
        Diffusion-SDPO 2025, arXiv 2511.03317, the authors' code. Departure: no 1e-9 in the quotient.

    Example:
        >>> import torch
        >>> errors = [torch.tensor([value] * 2) for value in (0.100, 0.130, 0.102, 0.129)]
        >>> chosen, rejected = torch.full((2, 4, 2, 3), 0.1), torch.full((2, 4, 2, 3), 0.2)
        >>> rejected[1] = 0.6
        >>> zeros = torch.zeros(2, 4, 2, 3)
        >>> sdpo_batch(*errors, chosen, zeros, rejected, zeros, beta=2000.0, mu=0.9).metrics["rejected_scale"]
        tensor([0.0250, 0.0250])
    """
    square, product = _products(chosen_pred, chosen_target, rejected_pred, rejected_target)
    scale = winner_preserving_scale(square.sum(), product.sum(), mu).expand(square.shape)
    return _scaled_dpo(chosen_err, rejected_err, ref_chosen_err, ref_rejected_err, scale, beta)


def winner_preserving_scale(square: Tensor, product: Tensor, mu: float) -> Tensor:
    """The largest scale s in [0, 1] of the rejected gradient with (g_w - s g_l) . g_w >= mu |g_w|^2.

    Args:
        square: |g_w|^2, any shape.
        product: g_w . g_l, that shape.
        mu: in [0, 1].

    Returns:
        s, that shape, without gradient.

    Raises:
        ValueError: mu is out of range.

    Example:
        >>> import torch
        >>> winner_preserving_scale(torch.tensor([1.0, 1.0, 1.0]), torch.tensor([-1.0, 0.1, 2.0]), mu=0.5)
        tensor([1.0000, 1.0000, 0.2500])
    """
    require_between(0, 1, mu=mu)
    square, product = square.detach(), product.detach()
    return ((1 - mu) * square / product).clamp(0, 1).masked_fill(product <= 0, 1.0)


def scale_gradient(value: Tensor, scale: Tensor) -> Tensor:
    """``value`` unchanged, its gradient times ``scale``; for building the gate of ``sdpo`` into other pair losses.

    Example:
        >>> import torch
        >>> error = torch.tensor([0.3], requires_grad=True)
        >>> scale_gradient(error, torch.tensor([0.25])).sum().backward()
        >>> error.grad
        tensor([0.2500])
    """
    return value.detach() + scale.detach() * (value - value.detach())


def _products(
    chosen_pred: Tensor, chosen_target: Tensor, rejected_pred: Tensor, rejected_target: Tensor
) -> tuple[Tensor, Tensor]:
    """|g_w|^2 and g_w . g_l of every pair, both up to the factor 4/n^2 that cancels in their quotient."""
    same_shape(
        chosen_pred=chosen_pred,
        chosen_target=chosen_target,
        rejected_pred=rejected_pred,
        rejected_target=rejected_target,
    )
    chosen = (chosen_pred - chosen_target).detach().flatten(1)
    rejected = (rejected_pred - rejected_target).detach().flatten(1)
    return chosen.square().mean(1), (chosen * rejected).mean(1)


def _scaled_dpo(
    chosen_err: Tensor,
    rejected_err: Tensor,
    ref_chosen_err: Tensor,
    ref_rejected_err: Tensor,
    scale: Tensor,
    beta: float,
) -> ObjectiveOutput:
    same_shape(chosen_err=chosen_err, rejected_err=rejected_err, rejected_scale=scale)
    scaled = scale_gradient(rejected_err, scale)
    chosen_excess, rejected_excess = excesses(chosen_err, scaled, ref_chosen_err, ref_rejected_err)
    z = preference_logit(chosen_excess, rejected_excess, beta)
    metrics = pair_metrics(z, chosen_excess, rejected_excess) | {"rejected_scale": scale}
    return ObjectiveOutput(F.softplus(-z), metrics)
