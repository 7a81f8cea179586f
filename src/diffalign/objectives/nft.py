"""DiffusionNFT: fit good samples and turn away from bad ones along the forward process."""

from __future__ import annotations

from torch import Tensor

from diffalign.objectives.contract import objective, same_shape
from diffalign.objectives.margins import require_positive
from diffalign.types import ObjectiveOutput

__all__ = ["nft"]


@objective("nft")
def nft(
    policy_pred: Tensor, old_policy_pred: Tensor, policy_target: Tensor, weight: Tensor, *, beta: float = 1.0
) -> ObjectiveOutput:
    """Fit own samples with a policy on one side of the old one as far as they are good, on the other as far as bad.

        f+ = f_old + beta (f - f_old),    f- = f_old - beta (f - f_old)
        L = [r mean (f+ - u)^2 + (1 - r) mean (f- - u)^2] / beta

    With r = 1 and beta = 1 it is supervised fine-tuning; at r = 1/2 only the pull towards the old policy is left.

    Args:
        policy_pred: (B, C, H, W) f, policy output on an own sample that is noised again.
        old_policy_pred: (B, C, H, W) f_old, output of the behaviour policy, which made the sample.
        policy_target: (B, C, H, W) u, what the network should predict on it.
        weight: (B,) r in [0, 1], how good the sample is, such as clip(advantage/10 + 1/2, 0, 1).
        beta: how far the two sides lie apart.

    Returns:
        Loss (B,) in squared units of the output; metrics drift (mean squared distance from the old policy), weight.

    Raises:
        ValueError: shapes differ, or beta is not above 0.

    Source:
        Zheng et al. 2025, arXiv 2509.16117. Departures: errors of the network's own target, where the authors' code
        divides errors of x0 by their size; the penalty towards a frozen reference is left out.

    Example:
        >>> import torch
        >>> outputs = [torch.full((1, 4, 2, 3), value) for value in (0.3, 0.2, 0.5)]
        >>> nft(*outputs, torch.tensor([0.75])).loss  # .75 * .2^2 + .25 * .4^2
        tensor([0.0700])
    """
    same_shape(policy_pred=policy_pred, old_policy_pred=old_policy_pred, policy_target=policy_target)
    same_shape(weight=weight, one_element_of_policy_pred=policy_pred.flatten(1)[:, 0])
    require_positive(beta=beta)
    pred, old, target = (one.flatten(1).to(weight.dtype) for one in (policy_pred, old_policy_pred, policy_target))
    weight, old, target = weight.detach(), old.detach(), target.detach()
    change = pred - old
    good = (old + beta * change - target).square().mean(1)
    bad = (old - beta * change - target).square().mean(1)
    metrics = {"drift": change.detach().square().mean(1), "weight": weight}
    return ObjectiveOutput((weight * good + (1 - weight) * bad) / beta, metrics)
