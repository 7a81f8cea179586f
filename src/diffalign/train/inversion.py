"""Noisy latents by inversion: images walk up the policy's own trajectory, in place of added noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from diffalign.core import torch_generator
from diffalign.models import RectifiedFlow, VariancePreserving
from diffalign.train.batches import NoisedBatch
from diffalign.train.config import InversionConfig
from diffalign.train.weights import Predict

__all__ = ["inversion_noises", "invert"]


@torch.no_grad()
def invert(
    process: VariancePreserving | RectifiedFlow,
    predict: Predict,
    clean: Tensor,
    timesteps: Tensor,
    condition: Mapping[str, Tensor],
    *,
    averaged: bool = False,
    extra_noise: float = 0.0,
    noises: Tensor,
) -> NoisedBatch:
    """Walk clean latents up the deterministic trajectory of a network to their timesteps.

        x' = a'/a (x - b e) + b' e + c b' z,    e the noise that the network sees at x,    z fresh, c = extra_noise
        averaged: e is the mean of that and of what it sees at x'

    The noise that a row has in the end is what leads from its clean latents to there in one step,
    ``(x_t - a x0) / b``, and the target follows from it.

    Args:
        process: of the model.
        predict: the network, see ``Weights.active``.
        clean: (B, C, h, w).
        timesteps: (B,) where the rows shall end; each has a grid of its own, in equal steps of the timestep.
        condition: B rows.
        averaged: two calls a step instead of one.
        extra_noise: c, share of fresh noise at every step, of its size there.
        noises: (S, B, C, h, w) standard normal z of the S steps.

    Returns:
        The noisy latents with their targets.

    Source:
        InPO 2025, arXiv 2503.18454: DDIM inversion in 10 steps with 0.1 of noise at each. SmPO 2025, arXiv 2506.02698:
        a step once more with the mean (ReNoise). Departure: the code gives a batch one timestep; here every row
        has its own.
    """
    noisy, num_steps = clean.float(), len(noises)
    for step, fresh in enumerate(noises):
        now, then = (_part(timesteps, (step + more) / num_steps) for more in (0, 1))
        (a, b), (to_a, to_b) = _levels(process, now, clean), _levels(process, then, clean)
        noise = process.to_noise(predict(noisy, now, condition).float(), noisy, now)
        if averaged:
            reached = to_a / a * (noisy - b * noise) + to_b * noise
            noise = (noise + process.to_noise(predict(reached, then, condition).float(), reached, then)) / 2
        noisy = to_a / a * (noisy - b * noise) + to_b * noise + extra_noise * to_b * fresh
    a, b = _levels(process, timesteps, clean)
    implied = (noisy - a * clean) / b
    return NoisedBatch(noisy=noisy, target=process.target(clean, implied, timesteps), timesteps=timesteps)


def inversion_noises(
    config: InversionConfig, places: Sequence[int], shape: Sequence[int], *, seed: int, step: int, side: str
) -> Tensor:
    """The fresh noises (S, B, C, h, w) of the rows at ``places``, from (seed, step, place, side) alone."""
    drawn = [
        torch.randn((config.num_steps, *shape), generator=torch_generator("inversion", seed, step, place, side))
        for place in places
    ]
    return torch.stack(drawn, dim=1)


def _part(timesteps: Tensor, share: float) -> Tensor:
    part = timesteps.double() * share
    return part.round().long() if not timesteps.is_floating_point() else part.to(timesteps.dtype)


def _levels(process: VariancePreserving | RectifiedFlow, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    a, b = process.levels(timesteps)
    shape = (-1, *[1] * (like.ndim - 1))
    return a.to(like.device).view(shape), b.to(like.device).view(shape)
