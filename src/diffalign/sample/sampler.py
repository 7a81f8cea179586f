"""The sampling loop: noise to latents through diffusers' schedulers, with the trajectory where training needs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from diffalign.core import DiffalignError, torch_generator
from diffalign.models import Family, RectifiedFlow

__all__ = ["Predict", "Sampled", "Solver", "fitting_solvers", "initial_noise", "make_scheduler", "sample_latents"]

Solver = Literal["dpm++", "ddim", "euler"]
Predict = Callable[[Tensor, Tensor, Mapping[str, Tensor]], Tensor]


@dataclass(frozen=True)
class Sampled:
    """What a sampling run gives.

    Attributes:
        latents: (B, C, h, w) float32, VAE-scaled.
        states: (S, B, C, h, w) the inputs of the S network calls, if kept; ``states[0]`` is the initial noise.
        preds: (S, B, C, h, w) float32 predictions that were stepped with (after guidance), if kept.
        timesteps: (S,) what the network was fed.
    """

    latents: Tensor
    timesteps: Tensor
    states: Tensor | None = None
    preds: Tensor | None = None


def initial_noise(shape: Sequence[int], *seeds: object) -> Tensor:
    """Standard normal noise for one sample, from a hash of ``seeds``, so that models are compared on the same noise.

    Args:
        shape: (C, h, w).
        seeds: for instance the prompt's id and the seed's index; the result depends on nothing else.

    Returns:
        ``shape`` float32 on the CPU.
    """
    return torch.randn(tuple(shape), generator=torch_generator("initial noise", *seeds))


def fitting_solvers(family: Family) -> tuple[Solver, ...]:
    """The solvers for a model's process, the one that is taken by default first."""
    return ("euler",) if isinstance(family.process, RectifiedFlow) else ("dpm++", "ddim")


def make_scheduler(family: Family, solver: Solver | None = None) -> Any:
    """A diffusers scheduler of this solver for the model's own noise schedule.

    Args:
        family: the model.
        solver: "dpm++" (second order) or "ddim" for variance-preserving models, "euler" for flows; None for the first
            that fits.

    Raises:
        DiffalignError: the solver does not fit the model's process.
    """
    fitting = fitting_solvers(family)
    solver = solver or fitting[0]
    if solver not in fitting:
        kinds = ", ".join(get_args(Solver))
        raise DiffalignError(f"expected solver {' or '.join(fitting)} for this model, got {solver!r} (known: {kinds})")
    config = family.pipeline().scheduler.config
    if solver == "euler":
        return FlowMatchEulerDiscreteScheduler.from_config(config)
    if solver == "ddim":
        return DDIMScheduler.from_config(config, clip_sample=False)
    return DPMSolverMultistepScheduler.from_config(config, algorithm_type="dpmsolver++", solver_order=2)


@torch.no_grad()
def sample_latents(
    family: Family,
    condition: Mapping[str, Tensor],
    noise: Tensor,
    *,
    num_steps: int,
    solver: Solver | None = None,
    guidance_scale: float = 1.0,
    negative_condition: Mapping[str, Tensor] | None = None,
    timesteps: Sequence[int] | None = None,
    sigmas: Sequence[float] | None = None,
    predict: Predict | None = None,
    keep_trajectory: bool = False,
) -> Sampled:
    """Integrate from noise to clean latents; deterministic given the noise.

        pred = uncond + g (cond - uncond),    one network call of 2B rows a step; B rows at g = 1

    Args:
        family: the model.
        condition: what ``family.encode_prompts`` returned, B rows.
        noise: (B, C, h, w) standard normal, see ``initial_noise``.
        num_steps: network calls.
        solver: see ``make_scheduler``.
        guidance_scale: g of text guidance; 1 is off.
        negative_condition: rows of the unconditional branch, B of them; needed when g is not 1.
        timesteps: instead of the solver's own grid, descending; "dpm++" alone takes them.
        sigmas: the same for "euler", in (0, 1], before the model's shift.
        predict: called as (noisy, timesteps, condition) instead of ``family.predict``.
        keep_trajectory: keep the states and predictions.

    Returns:
        Latents, and the trajectory if asked.

    Raises:
        DiffalignError: the solver does not fit, or guidance has no negative condition.
        FloatingPointError: a prediction is not finite; names the step.
    """
    if guidance_scale != 1 and negative_condition is None:
        raise DiffalignError(
            f"guidance_scale {guidance_scale} needs a negative_condition, e.g. encode_prompts(['', ...])"
        )
    scheduler = make_scheduler(family, solver)
    if sigmas is not None:
        scheduler.set_timesteps(sigmas=list(sigmas), device=noise.device)
    elif timesteps is None:
        scheduler.set_timesteps(num_steps, device=noise.device)
    else:
        scheduler.set_timesteps(timesteps=list(timesteps), device=noise.device)
    call = predict or family.predict
    if guidance_scale != 1 and negative_condition is not None:
        condition = {key: torch.cat([negative_condition[key], value]) for key, value in condition.items()}
    latents, states, preds = noise.float(), [], []
    for number, timestep in enumerate(scheduler.timesteps):
        pred = _guided(call, latents, timestep, condition, guidance_scale).float()
        if not bool(pred.isfinite().all()):
            raise FloatingPointError(
                f"the prediction is not finite at step {number} of {num_steps}, timestep {timestep}"
            )
        if keep_trajectory:
            states.append(latents)
            preds.append(pred)
        latents = scheduler.step(pred, timestep, latents, return_dict=False)[0]
    kept = (torch.stack(states), torch.stack(preds)) if keep_trajectory else (None, None)
    return Sampled(latents, scheduler.timesteps, *kept)


def _guided(
    call: Predict, latents: Tensor, timestep: Tensor, condition: Mapping[str, Tensor], guidance_scale: float
) -> Tensor:
    """The guided prediction; with text guidance the condition has the unconditional rows first."""
    if guidance_scale == 1:
        return call(latents, timestep.expand(len(latents)), condition)
    uncond, cond = call(torch.cat([latents, latents]), timestep.expand(2 * len(latents)), condition).chunk(2)
    return uncond + guidance_scale * (cond - uncond)
