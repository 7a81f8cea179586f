"""Losses on groups of a prompt's images with rewards, without rollouts: DGPO and CRD."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from diffalign.objectives.candidates import gains, group_advantages, metric_mixture, set_metrics
from diffalign.objectives.contract import objective
from diffalign.objectives.margins import require_positive
from diffalign.types import ObjectiveOutput

__all__ = ["crd", "dgpo"]


@objective("dgpo")
def dgpo(
    err: Tensor, ref_err: Tensor, scores: Tensor, *, beta: float, metric_weights: Sequence[float]
) -> ObjectiveOutput:
    """Prefer the better part of a group to the worse part, every image in proportion to its advantage.

        d = e_ref - e,    A as of ``group_advantages``,    L = -log sigmoid(beta/K sum_i A_i d_i)

    A sum of advantages of 0 cancels what all images of the group have in common.

    Args:
        err: (B, K) policy errors of the group.
        ref_err: (B, K) reference errors.
        scores: (B, K, M).
        beta: strength; 10 to 100 against a frozen reference, 2000 to 5000 against an average of the policy's weights.
        metric_weights: M weights at or above 0 that add up to 1.

    Returns:
        Loss (B,) in nats; metrics of ``set_metrics`` under A, margin (the logit), gradient_weight.

    Raises:
        ValueError: shapes or settings do not fit.

    Source:
        DGPO 2025, arXiv 2510.08425. The mask by the ratio to an average of the policy's weights is left out.

    Example:
        >>> import torch
        >>> err, ref_err = torch.tensor([[0.100, 0.130]]), torch.tensor([[0.102, 0.129]])
        >>> dgpo(err, ref_err, torch.tensor([[[1.0], [0.0]]]), beta=2000.0, metric_weights=[1.0]).loss
        tensor([0.0486])
    """
    require_positive(beta=beta)
    gain, advantages = gains(err, ref_err, scores), group_advantages(scores, metric_weights)
    z = beta * (advantages * gain).mean(1)
    metrics = set_metrics(gain, advantages) | {"margin": z.detach(), "gradient_weight": (-z.detach()).sigmoid()}
    return ObjectiveOutput(F.softplus(-z), metrics)


@objective("crd")
def crd(
    err: Tensor, old_err: Tensor, scores: Tensor, *, beta: float, metric_weights: Sequence[float]
) -> ObjectiveOutput:
    """Match the centred gains over the behaviour policy to the centred rewards of the group.

        d = e_old - e,    R = sum_m w_m scores_m
        L = sum_i [beta (d_i - mean d) - (R_i - mean R)]^2

    Args:
        err: (B, K) policy errors of the group.
        old_err: (B, K) errors of the behaviour policy, which made the images.
        scores: (B, K, M), in units in which the metrics may be added.
        beta: strength, on d itself and without the factor 1/2 of Diffusion-DPO; 1 with errors of order 1.
        metric_weights: M weights at or above 0 that add up to 1.

    Returns:
        Loss (B,) in squared units of the reward; metrics of ``set_metrics`` under R.

    Raises:
        ValueError: shapes or settings do not fit.

    Source:
        CRD 2026, arXiv 2603.14128. Departures: errors are not divided by themselves; the penalty towards a guided
        reference is left out.

    Example:
        >>> import torch
        >>> err, old_err = torch.tensor([[0.100, 0.130]]), torch.tensor([[0.102, 0.129]])
        >>> crd(err, old_err, torch.tensor([[[0.5], [0.0]]]), beta=100.0, metric_weights=[1.0]).loss  # (.3 - .5)^2 / 2
        tensor([0.0200])
    """
    require_positive(beta=beta)
    gain = gains(err, old_err, scores)
    reward = (scores.detach() * metric_mixture(scores, metric_weights)).sum(-1)
    difference = beta * gain - reward
    loss = (difference - difference.mean(1, keepdim=True)).square().sum(1)
    return ObjectiveOutput(loss, set_metrics(gain, reward))
