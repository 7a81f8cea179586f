"""CaPO: regress the margin to a calibrated gap in reward."""

from __future__ import annotations

from torch import Tensor

from diffalign.objectives.candidates import mean_against_others
from diffalign.objectives.contract import objective, same_shape
from diffalign.objectives.margins import excesses, margin_metrics, require_positive
from diffalign.types import ObjectiveOutput

__all__ = ["calibrated_rewards", "capo"]


@objective("capo")
def capo(
    chosen_err: Tensor,
    rejected_err: Tensor,
    ref_chosen_err: Tensor,
    ref_rejected_err: Tensor,
    label: Tensor,
    log_snr: Tensor,
    *,
    beta: float,
    bias: float,
) -> ObjectiveOutput:
    """Regress the gain of the chosen image over that of the rejected one to the gap between their win rates.

        D = -[(e_w - e_w_ref) - (e_l - e_l_ref)],    a = sigmoid(bias - log_snr),    dR = 2 label - 1
        L = (dR - beta a D)^2

    The label carries the gap: label = (1 + dR)/2, where dR is the difference of the two ``calibrated_rewards``. Of two
    images alone that is just the probability that chosen is better.

    Args:
        chosen_err: (B,) policy error on the chosen image.
        rejected_err: (B,) policy error on the rejected image.
        ref_chosen_err: (B,) reference error on the chosen image.
        ref_rejected_err: (B,) reference error on the rejected image.
        label: (B,) (1 + dR)/2, in [0, 1].
        log_snr: (B,) log signal-to-noise ratio, natural logarithm of the ratio of powers.
        beta: strength, on D itself and without the factor 1/2 of Diffusion-DPO. The authors' value is not published.
        bias: of the weight a, which is near 1 at high noise and falls at low noise. Not published either.

    Returns:
        Loss (B,); metrics accuracy, margin (beta a D, dR at the optimum), chosen_excess, rejected_excess.

    Raises:
        ValueError: shapes differ, or beta is not above 0.

    Source:
        Lee et al. 2025, arXiv 2502.02588, from secondary descriptions; there is no code. The choice of pairs from the
        upper and lower Pareto sets belongs to the making of the data.

    Example:
        >>> import torch
        >>> errors = [torch.tensor([value]) for value in (0.100, 0.130, 0.102, 0.129)]
        >>> capo(*errors, torch.tensor([0.9]), torch.tensor([0.0]), beta=100.0, bias=0.0).loss  # (.8 - 50 * .003)^2
        tensor([0.4225])
    """
    require_positive(beta=beta)
    chosen_excess, rejected_excess = excesses(chosen_err, rejected_err, ref_chosen_err, ref_rejected_err)
    same_shape(chosen_err=chosen_err, label=label, log_snr=log_snr)
    weight = (bias - log_snr.detach()).sigmoid()
    margin = beta * weight * (rejected_excess - chosen_excess)
    metrics = margin_metrics(margin, chosen_excess, rejected_excess)
    return ObjectiveOutput((2 * label.detach() - 1 - margin).square(), metrics)


def calibrated_rewards(scores: Tensor) -> Tensor:
    """Expected win rate of each candidate against the others of its set, the mean over metrics.

        R_i = mean over k != i and over metrics of sigmoid(s_i - s_k)

    Args:
        scores: (B, K, M), K >= 2, scaled to Bradley-Terry logits: a difference of 1 is odds of e to 1.

    Returns:
        (B, K) in [0, 1]; a set's rewards add up to K/2.

    Raises:
        ValueError: not of that shape.

    Source:
        Lee et al. 2025, arXiv 2502.02588.

    Example:
        >>> import torch
        >>> calibrated_rewards(torch.tensor([[[2.0], [0.0], [0.0]]]))
        tensor([[0.8808, 0.3096, 0.3096]])
    """
    return mean_against_others(scores, Tensor.sigmoid)
