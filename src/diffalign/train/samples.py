"""The policy's own samples inside the offline loop, live or from a policy that is some steps old."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from diffalign.core import torch_generator
from diffalign.models import Family, RectifiedFlow, VariancePreserving
from diffalign.sample import initial_noise, sample_latents
from diffalign.train.batches import NoisedBatch, noised
from diffalign.train.config import SamplesConfig
from diffalign.train.weights import Weights, assign

__all__ = ["SampleSource", "noised_further"]


class SampleSource:
    """Draws own samples for the rows of a step; every draw depends on (seed, step, place) alone.

    Args:
        config: how often the sampling policy is refreshed, the solver's steps, what samples are scored against.
        weights: holds the policy; a stale copy named ``old`` is added when it is refreshed less often than each step.
        seed: of the run.
    """

    def __init__(self, config: SamplesConfig, weights: Weights, *, seed: int) -> None:
        self.config, self.weights, self.seed = config, weights, seed
        self.behaviour = "policy"
        if config.refresh_every > 1:
            weights.copy("policy", "old")
            self.behaviour = "old"

    def before_step(self, step: int) -> None:
        """Refresh the stale policy when its time has come."""
        if self.behaviour == "old" and step % self.config.refresh_every == 0:
            assign(self.weights, "policy", "old")

    def draw(
        self,
        step: int,
        places: Sequence[int],
        shape: Sequence[int],
        condition: Mapping[str, Tensor],
        empty: Mapping[str, Tensor],
        shared_noise: Tensor,
        timesteps: Tensor,
    ) -> NoisedBatch:
        """Own samples for some rows, noised and with their targets.

        With state "trajectory" a row takes one random state of its own trajectory and what the sampling policy said
        there; the batch's timesteps are those states'. With "renoised" the finished sample is noised again at
        ``timesteps``; the target is what the sampling policy says there, or the true noise. With "truncated" see
        ``noised_further``.

        Args:
            step: of the optimiser.
            places: of the rows in the whole batch.
            shape: (C, h, w).
            condition: of the rows.
            empty: of the empty prompt, one row.
            shared_noise: (B, C, h, w) of the real image; used again when noise is "shared".
            timesteps: (B,) of the real image.

        Returns:
            The own samples; ``timesteps`` of it are what the real image must use too.
        """
        family, config = self.weights.family, self.config
        device = family.device
        start = torch.stack([initial_noise(shape, "own sample", self.seed, step, place) for place in places]).to(device)
        negative = {key: value.expand(len(places), *value.shape[1:]) for key, value in empty.items()}
        with torch.no_grad(), self.weights.active(self.behaviour) as predict:
            sampled = sample_latents(
                family,
                condition,
                start,
                num_steps=config.num_steps,
                guidance_scale=config.guidance_scale,
                negative_condition=negative,
                **self._grid(family, step),
                predict=predict,
                keep_trajectory=config.state != "renoised",
            )
        generators = [torch_generator("own sample state", self.seed, step, place) for place in places]
        if sampled.states is None or sampled.preds is None:
            fresh = torch.stack([torch.randn(tuple(shape), generator=generator) for generator in generators])
            noise = shared_noise if config.noise == "shared" else fresh
            again = noised(family.process, sampled.latents, noise, timesteps)
            if config.target == "noise":
                return again
            with torch.no_grad(), self.weights.active(self.behaviour) as predict:
                return replace(again, target=predict(again.noisy, again.timesteps, condition).float())
        if config.state == "truncated":
            now = sampled.timesteps.to(device)[-1].expand(len(places))
            return noised_further(family.process, sampled.states[-1], sampled.preds[-1], now, generators)
        chosen = torch.cat([torch.randint(config.num_steps, (1,), generator=g) for g in generators]).to(device)
        rows = torch.arange(len(places), device=device)
        return NoisedBatch(
            noisy=sampled.states[chosen, rows],
            target=sampled.preds[chosen, rows],
            timesteps=sampled.timesteps.to(device)[chosen],
        )

    def _grid(self, family: Family, step: int) -> dict[str, Any]:
        """An even grid under one random offset per step, so that over the run every noise level is met.

        Departure from Diffusion-DRO's code, which draws the offset per sample: diffusers' solvers step a whole batch.
        """
        steps = self.config.num_steps
        kept = steps
        if self.config.state == "truncated":
            generator = torch_generator("truncate", self.seed, step)
            taken = self.config.truncate or int(torch.randint(1, steps, (1,), generator=generator))
            kept = taken + 1  # the last state is looked at, and not stepped from
        offset = float(torch.rand((), generator=torch_generator("grid offset", self.seed, step)))
        if not isinstance(family.process, RectifiedFlow):
            total = family.process.num_train_timesteps
            return {"timesteps": [int((index + offset) * total / steps) for index in reversed(range(steps))][:kept]}
        if self.config.state == "renoised":  # the finished sample alone is used: the solver's own grid ends best
            return {}
        return {"sigmas": [(index + 1 - offset) / steps for index in reversed(range(steps))][:kept]}


def noised_further(
    process: VariancePreserving | RectifiedFlow,
    states: Tensor,
    preds: Tensor,
    timesteps: Tensor,
    generators: Sequence[torch.Generator],
) -> NoisedBatch:
    """States of a trajectory noised on to a later timestep, with the clean image seen at the state as target.

        x_s = (a_s / a_t) x_t + sqrt(b_s^2 - b_t^2 a_s^2 / a_t^2) e,    s uniform in (t, T),    target from x0(x_t)

    Args:
        process: of the model.
        states: (B, C, h, w) x_t.
        preds: (B, C, h, w) what was predicted there.
        timesteps: (B,) t.
        generators: one per row, for s and e.

    Source:
        Self-NPO 2025, arXiv 2505.11777. The paper's form: trajectories begin at noise. The authors' code begins at
        noised real images, weighs errors of x0 by a pseudo-Huber loss, and has an average of the policy as sampler.
    """
    clean = process.to_x0(preds, states, timesteps)
    drawn = torch.cat([torch.rand(1, generator=generator) for generator in generators]).to(states.device)
    noise = torch.stack([torch.randn(tuple(states.shape[1:]), generator=generator) for generator in generators])
    if isinstance(process, RectifiedFlow):
        later = timesteps + drawn * (process.num_train_timesteps - timesteps)
    else:
        later = timesteps + 1 + (drawn * (process.num_train_timesteps - 1 - timesteps)).long()
        later = later.clamp(max=process.num_train_timesteps - 1)
    a, b = (level.to(states.device).view(-1, 1, 1, 1) for level in process.levels(timesteps))
    to_a, to_b = (level.to(states.device).view(-1, 1, 1, 1) for level in process.levels(later))
    share = to_a / a
    noisy = share * states + (to_b.square() - (share * b).square()).clamp_min(0).sqrt() * noise.to(states.device)
    return NoisedBatch(noisy=noisy, target=process.from_x0(clean, noisy, later), timesteps=later)
