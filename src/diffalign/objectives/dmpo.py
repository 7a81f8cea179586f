"""DMPO: the reverse divergence from a nearly certain preference."""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional as F

from diffalign.objectives.contract import objective
from diffalign.objectives.margins import excesses, margin_metrics, preference_logit, require_between
from diffalign.types import ObjectiveOutput

__all__ = ["dmpo"]

_SMALLEST_ALPHA = 1e-6


@objective("dmpo")
def dmpo(
    chosen_err: Tensor,
    rejected_err: Tensor,
    ref_chosen_err: Tensor,
    ref_rejected_err: Tensor,
    *,
    beta: float,
    alpha: float = 0.01,
) -> ObjectiveOutput:
    """Make the policy's preference a Bernoulli variable close to a given one, in the direction that seeks modes.

        z = -beta/2 [(e_w - e_w_ref) - (e_l - e_l_ref)],    p = sigmoid(z)
        L = KL(Bern(p) || Bern(1 - a)) = p log(p / (1 - a)) + (1 - p) log((1 - p) / a)

    The optimum is p = 1 - a. The loss is bounded: pairs that the policy has very wrong pull less, not more.

    Args:
        chosen_err: (B,) policy error on the chosen image.
        rejected_err: (B,) policy error on the rejected image.
        ref_chosen_err: (B,) reference error on the chosen image.
        ref_rejected_err: (B,) reference error on the rejected image.
        beta: strength, as of Diffusion-DPO; 2000 on SD 1.5, 6000 on SDXL.
        alpha: a, probability of the wrong order, in [0, 0.5]; below 1e-6 it is taken for 1e-6.

    Returns:
        Loss (B,) in nats; metrics accuracy, margin, chosen_excess, rejected_excess.

    Raises:
        ValueError: shapes differ, or a setting is out of range.

    Source:
        Li et al. 2025, arXiv 2507.07510; form, clamp and settings from the code of Diffusion-SDPO, arXiv 2511.03317.

    Example:
        >>> import torch
        >>> errors = [torch.tensor([value]) for value in (0.100, 0.130, 0.102, 0.129)]
        >>> dmpo(*errors, beta=2000.0).loss  # p = .95257
        tensor([0.0371])
    """
    require_between(0, 0.5, alpha=alpha)
    wrong = max(alpha, _SMALLEST_ALPHA)
    chosen_excess, rejected_excess = excesses(chosen_err, rejected_err, ref_chosen_err, ref_rejected_err)
    z = preference_logit(chosen_excess, rejected_excess, beta)
    right = z.sigmoid() * (F.logsigmoid(z) - math.log1p(-wrong))
    loss = right + (-z).sigmoid() * (F.logsigmoid(-z) - math.log(wrong))
    return ObjectiveOutput(loss, margin_metrics(z, chosen_excess, rejected_excess))
