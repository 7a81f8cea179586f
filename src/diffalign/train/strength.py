"""``beta: auto``: the strength at which rows that are learnt have lost a stated part of their gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from diffalign.core import DiffalignError
from diffalign.objectives import ObjectiveSpec
from diffalign.train.config import TrainConfig
from diffalign.types import ObjectiveOutput

__all__ = ["AUTO", "gradient_factor", "has_auto_beta", "refuse_auto", "solve_beta"]

AUTO = "auto"
_ERRORS = ("chosen_err", "rejected_err", "err")  # of the policy
_BETAS = torch.logspace(-1, 6, 141, dtype=torch.float64).tolist()

Quantities = Mapping[str, Tensor]


def has_auto_beta(config: TrainConfig) -> bool:
    """Whether beta is to be found."""
    return config.settings.get("beta") == AUTO


def refuse_auto(spec: ObjectiveSpec, settings: Mapping[str, Any], example: Quantities) -> None:
    """Check that the size of an objective's gradient says how strong its beta is.

    Args:
        spec: the objective.
        settings: of it.
        example: quantities of some rows.

    Raises:
        DiffalignError: it has no beta, no reference errors, or no gradient in the errors at policy = reference.
    """
    policy = [name for name in _ERRORS if name in spec.inputs]
    if "beta" not in spec.settings or not policy or any(f"ref_{name}" not in spec.inputs for name in policy):
        raise DiffalignError(
            f"beta auto needs an objective with beta and with reference errors; {spec.name!r} is none: set a number"
        )
    gradient_factor(spec, settings, 1.0, [example])


def gradient_factor(
    spec: ObjectiveSpec, settings: Mapping[str, Any], beta: float, batches: Sequence[Quantities]
) -> float:
    """How much of the rows' gradients is as it was at policy = reference.

        factor = 1 - sum_i | g_i - g_i(ref) | / sum_i g_i(ref),    g_i = |dL_i / de_i| in the policy's errors

    For Diffusion-DPO it is twice the mean of sigmoid(-|z|), from 1 at the start towards 0. The margin's size counts and
    not its sign, since on rows that were never seen the sign is nearly chance. Objectives whose gradient changes on one
    side alone, such as the hinge, need larger margins for the same factor, those with soft labels smaller ones.

    Args:
        spec: the objective.
        settings: of it; its beta is not looked at.
        beta: strength.
        batches: quantities of rows, as the objective asks for them.

    Raises:
        DiffalignError: at policy = reference the objective has no gradient in the errors.
    """
    compute = spec.bind({**settings, "beta": beta})
    changes, starts = 0.0, 0.0
    for batch in batches:
        now, start = _slopes(compute, batch), _slopes(compute, _at_reference(batch))
        changes, starts = changes + float((now - start).abs().sum()), starts + float(start.sum())
    if not starts > 0:
        raise DiffalignError(f"objective {spec.name!r} has no gradient at policy = reference: set beta to a number")
    return 1 - changes / starts


def solve_beta(
    spec: ObjectiveSpec, settings: Mapping[str, Any], batches: Sequence[Quantities], target: float
) -> tuple[float, float]:
    """The least beta at which ``gradient_factor`` has come down to ``target``.

    Args:
        spec: the objective.
        settings: of it.
        batches: quantities of rows after some steps of training.
        target: in (0, 1).

    Returns:
        Beta, to 1 %, and the factor there.

    Raises:
        DiffalignError: no beta from 0.1 to a million gets there, or there is no gradient at policy = reference.
    """
    least = 1.0
    for low, high in pairwise(_BETAS):
        reached = gradient_factor(spec, settings, high, batches)
        least = min(least, reached)
        if reached > target:
            continue
        while high / low > 1.01:
            middle = (low * high) ** 0.5
            low, high = (low, middle) if gradient_factor(spec, settings, middle, batches) <= target else (middle, high)
        return high, gradient_factor(spec, settings, high, batches)
    raise DiffalignError(
        f"beta auto: no beta up to {_BETAS[-1]:g} brings the gradient factor to {target:g}, the least is {least:.2f}: "
        "the trial has hardly moved the policy. Raise strength.num_steps or the learning rate, or set beta to a number"
    )


def _at_reference(quantities: Quantities) -> dict[str, Tensor]:
    """The same rows as if the policy were the reference."""
    return {name: quantities.get(f"ref_{name}", value) for name, value in quantities.items()}


def _slopes(compute: Callable[[Quantities], ObjectiveOutput], quantities: Quantities) -> Tensor:
    """(B,) size of every row's gradient in the policy's errors."""
    doubled = {name: value.double() if value.is_floating_point() else value for name, value in quantities.items()}
    errors = {name: doubled[name].detach().clone().requires_grad_() for name in _ERRORS if name in doubled}
    with torch.enable_grad():
        loss = compute(doubled | errors).loss.sum()
        gradients = torch.autograd.grad(loss, list(errors.values()), allow_unused=True)
    sizes = [gradient.abs().reshape(len(gradient), -1).sum(1) for gradient in gradients if gradient is not None]
    return torch.stack(sizes).sum(0)
