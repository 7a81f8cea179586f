"""CW-DPO: gentle negatives first, then a preference whose negative term is cooled."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from diffalign.objectives.contract import objective, same_shape
from diffalign.objectives.dpo import pair_metrics
from diffalign.objectives.margins import excesses, preference_logit, require_between, require_positive
from diffalign.types import ObjectiveOutput

__all__ = ["cw_dpo", "cw_sft"]


@objective("cw_sft")
def cw_sft(chosen_err: Tensor, rejected_err: Tensor, *, rejected_weight: float) -> ObjectiveOutput:
    """Stage 1: fit the chosen image, and a little the rejected one, so that it is not lost altogether.

        L = e_w + a e_l

    Args:
        chosen_err: (B,) policy error on the chosen image.
        rejected_err: (B,) policy error on the rejected image.
        rejected_weight: a, in [0, 1], small.

    Returns:
        Loss (B,); no metrics.

    Raises:
        ValueError: shapes differ, or the weight is out of range.

    Source:
        arXiv 2510.11978 on vision-language models: "low-weight smoothed supervision" of negatives. The exact form is
        not known to us: the sum is reconstructed, and smoothing of token labels has no counterpart here.

    Example:
        >>> import torch
        >>> cw_sft(torch.tensor([0.10]), torch.tensor([0.20]), rejected_weight=0.05).loss
        tensor([0.1100])
    """
    same_shape(chosen_err=chosen_err, rejected_err=rejected_err)
    require_between(0, 1, rejected_weight=rejected_weight)
    return ObjectiveOutput(chosen_err + rejected_weight * rejected_err)


@objective("cw_dpo")
def cw_dpo(
    chosen_err: Tensor,
    rejected_err: Tensor,
    ref_chosen_err: Tensor,
    ref_rejected_err: Tensor,
    *,
    beta: float,
    threshold: float,
    temperature: float,
) -> ObjectiveOutput:
    """Stage 2: Diffusion-DPO whose term of the rejected image fades once the policy denoises that image badly.

        r = e_l / e_l_ref - 1,    q = sigmoid((threshold - r) / temperature), no gradient in q
        L = -log sigmoid(-beta/2 [(e_w - e_w_ref) - q (e_l - e_l_ref)])

    Args:
        chosen_err: (B,) policy error on the chosen image.
        rejected_err: (B,) policy error on the rejected image.
        ref_chosen_err: (B,) reference error on the chosen image.
        ref_rejected_err: (B,) reference error on the rejected image, above 0.
        beta: strength, as of Diffusion-DPO.
        threshold: the relative rise of the rejected error at which the term is halved; 0.05 is 5 % worse than the
            reference.
        temperature: width of that fading, above 0, in the unit of ``threshold``.

    Returns:
        Loss (B,) in nats; metrics of ``pair_metrics`` and cooling (q).

    Raises:
        ValueError: shapes differ, or a setting is not above 0.

    Source:
        arXiv 2510.11978, on vision-language models, where q is a function of the negative's mean token log-likelihood.
        The transfer is ours. The relative error takes the likelihood's place and levels timesteps out, so the threshold
        is a constant and needs no running quantile.

    Example:
        >>> import torch
        >>> errors = [torch.tensor([value]) for value in (0.100, 0.130, 0.102, 0.130)]
        >>> cw_dpo(*errors, beta=2000.0, threshold=0.0, temperature=0.02).metrics["cooling"]
        tensor([0.5000])
    """
    require_positive(temperature=temperature)
    chosen_excess, rejected_excess = excesses(chosen_err, rejected_err, ref_chosen_err, ref_rejected_err)
    rise = rejected_excess.detach() / ref_rejected_err.detach()
    cooling = ((threshold - rise) / temperature).sigmoid()
    z = preference_logit(chosen_excess, cooling * rejected_excess, beta)
    metrics = pair_metrics(z, chosen_excess, rejected_excess) | {"cooling": cooling}
    return ObjectiveOutput(F.softplus(-z), metrics)
