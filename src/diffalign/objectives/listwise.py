"""Losses on ranked candidate sets: RankDPO and lambda-weighted listwise DPO."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from diffalign.objectives.candidates import gains, metric_mixture, set_metrics, win_fractions
from diffalign.objectives.contract import objective
from diffalign.objectives.margins import require_positive
from diffalign.types import ObjectiveOutput

__all__ = ["lambda_listwise", "rank_dpo", "ranking_weights"]


@objective("rank_dpo")
def rank_dpo(err: Tensor, ref_err: Tensor, scores: Tensor, *, beta: float) -> ObjectiveOutput:
    """Diffusion-DPO on all pairs of a ranked set, weighted by what a swap costs in discounted cumulative gain.

        d = e_ref - e,    phi = ``win_fractions``,    W as of ``ranking_weights``
        L = - sum over phi_i > phi_j of W_ij log sigmoid(beta/2 (d_i - d_j))

    Args:
        err: (B, K) policy errors of the candidates.
        ref_err: (B, K) reference errors.
        scores: (B, K, M) the M metrics that vote; their scales do not matter.
        beta: strength, as of Diffusion-DPO.

    Returns:
        Loss (B,); metrics of ``set_metrics`` under phi.

    Raises:
        ValueError: shapes do not fit, or beta is not above 0.

    Source:
        Karthik et al. 2024, arXiv 2410.18013. Departures: ranks are those of phi, equal ones share the mean rank; the
        absolute values and the exponent of the gain are reconstructed.

    Example:
        >>> import torch
        >>> err, ref_err, scores = torch.tensor([[0.100, 0.130]]), torch.tensor([[0.102, 0.129]]), torch.ones(1, 2, 1)
        >>> scores[0, 1] = 0
        >>> rank_dpo(err, ref_err, scores, beta=2000.0).loss  # (1 - 0)(1/log 2 - 1/log 3) * .0486
        tensor([0.0259])
    """
    require_positive(beta=beta)
    gain, phi = gains(err, ref_err, scores), win_fractions(scores)
    lead = phi[:, :, None] - phi[:, None]
    logits = beta / 2 * (gain[:, :, None] - gain[:, None])
    loss = ((lead > 0) * ranking_weights(phi) * F.softplus(-logits)).sum((1, 2))
    return ObjectiveOutput(loss, set_metrics(gain, phi))


def ranking_weights(phi: Tensor) -> Tensor:
    """How much swapping two candidates changes the discounted cumulative gain.

        W_ij = |2^phi_i - 2^phi_j| |1/log(1 + rank_i) - 1/log(1 + rank_j)|

    Args:
        phi: (B, K) relevance in [0, 1].

    Returns:
        (B, K, K), symmetric, 0 between equals.

    Example:
        >>> import torch
        >>> ranking_weights(torch.tensor([[1.0, 0.0]]))
        tensor([[[0.0000, 0.5325],
                 [0.5325, 0.0000]]])
    """
    lead = phi[:, :, None] - phi[:, None]
    rank = (1 + phi.shape[1] - lead.sign().sum(2)) / 2  # from 1; equals share the mean of theirs
    gain, discount = torch.exp2(phi), 1 / torch.log1p(rank)
    return (gain[:, :, None] - gain[:, None]).abs() * (discount[:, :, None] - discount[:, None]).abs()


@objective("lambda_listwise")
def lambda_listwise(
    err: Tensor,
    ref_err: Tensor,
    scores: Tensor,
    *,
    beta: float,
    metric_weights: Sequence[float],
    temperatures: Sequence[float],
) -> ObjectiveOutput:
    """Match the policy's distribution over a candidate set to a mixture of the metrics' distributions.

        d = e_ref - e,    P_m = softmax(scores_m / tau_m),    P = sum_m lambda_m P_m
        L = - sum_i P_i log softmax_i(beta/2 d)

    Mixing before the cross-entropy equals mixing M cross-entropies: it is linear in P.

    Args:
        err: (B, K) policy errors of the candidates.
        ref_err: (B, K) reference errors.
        scores: (B, K, M).
        beta: strength, as of Diffusion-DPO.
        metric_weights: lambda, M weights at or above 0 that add up to 1.
        temperatures: tau, M temperatures above 0, in the unit of each metric.

    Returns:
        Loss (B,) in nats; metrics of ``set_metrics`` under P.

    Raises:
        ValueError: shapes or settings do not fit.

    Source:
        arXiv 2506.19780, on language models. The transfer is ours: errors in place of length-normalised likelihoods,
        P from scores by a softmax; lambda is fixed by the config, where their code draws it from a table.

    Example:
        >>> import torch
        >>> err, ref_err, scores = torch.tensor([[0.100, 0.130]]), torch.tensor([[0.102, 0.129]]), torch.zeros(1, 2, 1)
        >>> lambda_listwise(err, ref_err, scores, beta=2000.0, metric_weights=[1.0], temperatures=[1.0]).loss
        tensor([1.5486])
    """
    require_positive(beta=beta)
    gain, weights = gains(err, ref_err, scores), metric_mixture(scores, metric_weights)
    if len(temperatures) != scores.shape[-1] or not all(one > 0 for one in temperatures):
        raise ValueError(f"expected temperatures above 0 of {scores.shape[-1]} metrics, got {list(temperatures)}")
    wanted = ((scores.detach() / scores.new_tensor(list(temperatures))).softmax(1) * weights).sum(-1)
    loss = -(wanted * F.log_softmax(beta / 2 * gain, dim=1)).sum(1)
    return ObjectiveOutput(loss, set_metrics(gain, wanted))
