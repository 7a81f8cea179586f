"""What the losses on candidate sets share: gains of the K images, win rates under M metrics, group advantages."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from diffalign.objectives.contract import same_shape

__all__ = ["gains", "group_advantages", "mean_against_others", "metric_mixture", "set_metrics", "win_fractions"]


def gains(err: Tensor, frozen_err: Tensor, scores: Tensor) -> Tensor:
    """What the policy gains over a frozen network on every candidate; nothing flows into the latter.

    Args:
        err: (B, K) policy errors, K >= 2.
        frozen_err: (B, K) errors of the reference or of the behaviour policy.
        scores: (B, K, M), for its shape.

    Returns:
        (B, K) frozen_err - err; above 0 is better than the frozen network.

    Raises:
        ValueError: shapes do not fit each other.
    """
    _check_scores(scores)
    same_shape(err=err, frozen_err=frozen_err, scores_of_one_metric=scores[..., 0])
    return frozen_err.detach() - err


def mean_against_others(scores: Tensor, compare: Callable[[Tensor], Tensor]) -> Tensor:
    """Compare every candidate with the others of its set, and average over them and over metrics.

    Args:
        scores: (B, K, M), K >= 2.
        compare: of a score's lead, elementwise, with compare(0) = 1/2.

    Returns:
        (B, K).

    Raises:
        ValueError: scores are not of that shape.
    """
    _check_scores(scores)
    leads = scores.detach()[:, :, None] - scores.detach()[:, None]
    own = 0.5  # a candidate against itself
    return (compare(leads).sum(2) - own).mean(-1) / (scores.shape[1] - 1)


def win_fractions(scores: Tensor) -> Tensor:
    """The share of comparisons with the others of its set that a candidate wins; ties half.

    Args:
        scores: (B, K, M), K >= 2.

    Returns:
        (B, K) in [0, 1].

    Example:
        >>> import torch
        >>> win_fractions(torch.tensor([[[3.0, 3.0], [2.0, 1.0], [1.0, 1.0]]]))
        tensor([[1.0000, 0.3750, 0.1250]])
    """
    # a comparison with NaN says False: adding 0 * lead keeps the NaN in sight
    return mean_against_others(scores, lambda lead: (1 + lead.sign()) / 2 + 0 * lead)


def group_advantages(scores: Tensor, metric_weights: Sequence[float], *, std_floor: float = 1e-4) -> Tensor:
    """Scores less their set's mean over their set's standard deviation, mixed over metrics.

        A_i = sum_m w_m (s_im - mean_i s_im) / max(std_i s_im, floor)

    Args:
        scores: (B, K, M), K >= 2.
        metric_weights: M weights at or above 0 that add up to 1.
        std_floor: the least standard deviation, so that near ties are not blown up.

    Returns:
        (B, K); a set's advantages add up to 0.

    Raises:
        ValueError: weights or shapes do not fit.

    Example:
        >>> import torch
        >>> group_advantages(torch.tensor([[[5.0], [3.0]], [[2.0], [2.0]]]), [1.0])
        tensor([[ 1., -1.],
                [ 0.,  0.]])
    """
    _check_scores(scores)
    centred = scores.detach() - scores.detach().mean(1, keepdim=True)
    scaled = centred / centred.square().mean(1, keepdim=True).sqrt().clamp_min(std_floor)
    return (scaled * metric_mixture(scores, metric_weights)).sum(-1)


def metric_mixture(scores: Tensor, metric_weights: Sequence[float]) -> Tensor:
    """The weights of M metrics as a tensor (M,) like ``scores``.

    Raises:
        ValueError: not M of them, one below 0, or they do not add up to 1.
    """
    count = scores.shape[-1]
    if len(metric_weights) != count:
        raise ValueError(f"expected metric_weights of {count} metrics, got {len(metric_weights)}")
    if not (all(weight >= 0 for weight in metric_weights) and abs(sum(metric_weights) - 1) <= 1e-6):
        raise ValueError(f"expected metric_weights at or above 0 that add up to 1, got {list(metric_weights)}")
    return scores.new_tensor(list(metric_weights))


def set_metrics(gain: Tensor, preference: Tensor) -> dict[str, Tensor]:
    """What every loss on candidate sets logs, detached.

    Args:
        gain: (B, K) of ``gains``.
        preference: (B, K) what the set is ranked by; higher is better.

    Returns:
        accuracy (share of a set's pairs that gain and preference order alike, ties half), chosen_excess and
        rejected_excess (policy minus frozen error on the most and on the least preferred image).
    """
    gain, preference = gain.detach(), preference.detach()
    first, second = torch.triu_indices(gain.shape[1], gain.shape[1], offset=1, device=gain.device)
    alike = (gain[:, first] - gain[:, second]).sign() * (preference[:, first] - preference[:, second]).sign()
    best, worst = preference.argmax(1, keepdim=True), preference.argmin(1, keepdim=True)
    return {
        "accuracy": (1 + alike.mean(1)) / 2,
        "chosen_excess": -gain.gather(1, best)[:, 0],
        "rejected_excess": -gain.gather(1, worst)[:, 0],
    }


def _check_scores(scores: Tensor) -> None:
    if scores.dim() != 3 or scores.shape[1] < 2 or scores.shape[2] < 1:
        raise ValueError(f"expected scores (B, K, M) of K >= 2 candidates and M >= 1 metrics, got {(*scores.shape,)}")
