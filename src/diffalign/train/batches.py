"""Rows to tensors: which latents, which timestep and which noise a row gets, from (seed, step, place) alone.

Nothing here has a state, so a run that goes on from step 700 draws what it would have drawn, and the same rows get the
same draws whether they come as one batch, as eight, or on two processes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffalign.core import torch_generator
from diffalign.data import Posterior
from diffalign.models import Process, RectifiedFlow, VariancePreserving

__all__ = [
    "Draws",
    "NoisedBatch",
    "Noiser",
    "draw_rows",
    "forward_noiser",
    "independent_noiser",
    "noised",
    "remembered_rows",
    "sample_posterior",
]


@dataclass(frozen=True)
class Draws:
    """What chance decides for B rows.

    Attributes:
        timesteps: (B,) what the network is fed.
        noise: {side: (B, C, h, w)} standard normal, independent between sides.
        posterior: {side: (B, C, h, w)} standard normal, for sampling the autoencoder's posterior.
        prompt_drop: (B,) uniform in [0, 1); below the dropping rate the prompt is emptied.
        flip: (B,) uniform in [0, 1); below 0.5 the mirrored view is taken, if there is one.
    """

    timesteps: Tensor
    noise: Mapping[str, Tensor]
    posterior: Mapping[str, Tensor]
    prompt_drop: Tensor
    flip: Tensor


@dataclass(frozen=True)
class NoisedBatch:
    """One side of B rows, ready for the network.

    Attributes:
        noisy: (B, C, h, w).
        target: (B, C, h, w) what the network should predict.
        timesteps: (B,).
        mask: (B, 1, h, w) weights of the error, or None for all 1.
    """

    noisy: Tensor
    target: Tensor
    timesteps: Tensor
    mask: Tensor | None = None


def draw_rows(
    process: VariancePreserving | RectifiedFlow,
    places: Sequence[int],
    shape: Sequence[int],
    *,
    seed: int,
    step: int,
    sides: Sequence[str] = ("chosen", "rejected"),
    timesteps: Callable[[int, torch.Generator], Tensor] | None = None,
) -> Draws:
    """Draw for the rows at ``places`` of the batch of ``step``.

    Args:
        process: draws the timesteps.
        places: positions in the whole batch of the step, over all processes and accumulation steps.
        shape: (C, h, w) of a latent.
        seed: of the run.
        step: of the optimiser, from 0.
        sides: which sides get draws; the first one's noise is the one that is shared.
        timesteps: draws (count, generator) instead of the process.

    Returns:
        On the CPU, in the order of ``places``.
    """
    draw = timesteps or process.draw_timesteps
    generators = [torch_generator("row", seed, step, place) for place in places]
    return _draws(torch.cat([draw(1, generator) for generator in generators]), generators, shape, sides)


def remembered_rows(
    process: VariancePreserving | RectifiedFlow,
    rows: Sequence[int],
    numbers: Sequence[int],
    shape: Sequence[int],
    *,
    seed: int,
    count: int,
    sides: Sequence[str] = ("chosen", "rejected"),
) -> Draws:
    """The fixed draws of rows, whatever step they come in: number j of ``count`` for each.

    A row's timesteps lie one in each of ``count`` equal parts of what the process draws from.

    Args:
        process: draws the timesteps.
        rows: numbers of the rows in the data.
        numbers: which of its draws each row gets, from 0.
        shape: (C, h, w) of a latent.
        seed: of the run.
        count: draws per row.
        sides: as of ``draw_rows``.
    """
    timesteps = [
        process.draw_timesteps(count, torch_generator("remembered timesteps", seed, row), stratified=True)[number]
        for row, number in zip(rows, numbers, strict=True)
    ]
    generators = [
        torch_generator("remembered row", seed, row, number) for row, number in zip(rows, numbers, strict=True)
    ]
    return _draws(torch.stack(timesteps), generators, shape, sides)


def _draws(
    timesteps: Tensor, generators: Sequence[torch.Generator], shape: Sequence[int], sides: Sequence[str]
) -> Draws:
    return Draws(
        timesteps=timesteps,
        prompt_drop=torch.cat([torch.rand(1, generator=generator) for generator in generators]),
        flip=torch.cat([torch.rand(1, generator=generator) for generator in generators]),
        noise={side: _normal(generators, shape) for side in sides},
        posterior={side: _normal(generators, shape) for side in sides},
    )


def _normal(generators: Sequence[torch.Generator], shape: Sequence[int]) -> Tensor:
    return torch.stack([torch.randn(tuple(shape), generator=generator) for generator in generators])


Noiser = Callable[[Process, Mapping[str, Tensor], Draws], dict[str, NoisedBatch]]


def forward_noiser(process: Process, latents: Mapping[str, Tensor], draws: Draws) -> dict[str, NoisedBatch]:
    """Forward noising with one timestep and one noise for all sides of a row, which cancels most of a pair's variance.

    Args:
        process: how latents are noised.
        latents: {side: (B, C, h, w)} clean.
        draws: of the same rows.

    Returns:
        {side: noised}.
    """
    shared = next(iter(draws.noise.values()))
    return {side: noised(process, clean, shared, draws.timesteps) for side, clean in latents.items()}


def independent_noiser(process: Process, latents: Mapping[str, Tensor], draws: Draws) -> dict[str, NoisedBatch]:
    """As ``forward_noiser``, but each side of a row has a noise of its own; the timestep is shared."""
    return {side: noised(process, clean, draws.noise[side], draws.timesteps) for side, clean in latents.items()}


def noised(process: Process, clean: Tensor, noise: Tensor, timesteps: Tensor) -> NoisedBatch:
    """Clean latents forward-noised, with what the network should predict."""
    noise, timesteps = noise.to(clean.device), timesteps.to(clean.device)
    return NoisedBatch(
        noisy=process.add_noise(clean, noise, timesteps),
        target=process.target(clean, noise, timesteps),
        timesteps=timesteps,
    )


def sample_posterior(posterior: Posterior, draw: Tensor) -> Tensor:
    """Latents ``mean + std * draw``, shape of ``draw``."""
    return posterior.mean + posterior.std * draw.to(posterior.mean.device)
