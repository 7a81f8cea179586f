"""The sampling loop repeats what diffusers' own pipelines do, and keeps what training needs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from torch import Tensor

from diffalign.core import DiffalignError
from diffalign.models import Family, load_family
from diffalign.sample import initial_noise, sample_latents

PROMPTS = ["a photo of grass", "a wide photo of a tabby cat, top", "a photo of the moon"]


@pytest.fixture(scope="module", params=["tiny-sd", "tiny-sd3"])
def family(request: pytest.FixtureRequest) -> Family:
    return load_family(request.param)


@pytest.fixture
def noise(family: Family) -> Tensor:
    shape = family.latent_shape(32, 16)
    return torch.stack([initial_noise(shape, prompt, 0) for prompt in PROMPTS])


@pytest.mark.parametrize("guidance_scale", [1.0, 3.5])
@pytest.mark.parametrize("solver", ["dpm++", "ddim", "euler"])
def test_same_latents_as_the_pipeline(family: Family, noise: Tensor, solver: Any, guidance_scale: float) -> None:
    condition, negative = family.encode_prompts(PROMPTS), family.encode_prompts([""] * 3)
    arguments = {"num_steps": 5, "guidance_scale": guidance_scale, "negative_condition": negative}
    if (solver == "euler") != (family.lora_prefix == "transformer"):
        with pytest.raises(DiffalignError, match="solver"):
            sample_latents(family, condition, noise, solver=solver, **arguments)
        return
    pipe = family.pipeline()
    config = pipe.scheduler.config
    if solver == "ddim":
        pipe.scheduler = DDIMScheduler.from_config(config, clip_sample=False)
    if solver == "dpm++":
        pipe.scheduler = DPMSolverMultistepScheduler.from_config(config)
    pipe.set_progress_bar_config(disable=True)
    expected = pipe(
        PROMPTS, height=32, width=16, latents=noise, num_inference_steps=5, guidance_scale=guidance_scale,
        output_type="latent",
    ).images  # fmt: skip
    sampled = sample_latents(family, condition, noise, solver=solver, **arguments)
    assert torch.allclose(sampled.latents, expected, atol=2e-5)


def test_trajectory_holds_what_the_network_saw_and_said(family: Family, noise: Tensor) -> None:
    condition = family.encode_prompts(PROMPTS)
    sampled = sample_latents(family, condition, noise, num_steps=4, keep_trajectory=True)
    plain = sample_latents(family, condition, noise, num_steps=4)
    assert torch.equal(sampled.latents, plain.latents) and plain.states is None
    assert sampled.states is not None and sampled.preds is not None
    assert sampled.states.shape == sampled.preds.shape == (4, *noise.shape)
    assert torch.equal(sampled.states[0], noise)
    for state, timestep, pred in zip(sampled.states, sampled.timesteps, sampled.preds, strict=True):
        with torch.no_grad():
            assert torch.equal(family.predict(state, timestep.expand(3), condition), pred)


def test_noise_depends_on_its_seeds_alone() -> None:
    first = initial_noise((4, 5, 6), "prompt", 0)
    assert torch.equal(first, initial_noise((4, 5, 6), "prompt", 0))
    assert not torch.equal(first, initial_noise((4, 5, 6), "prompt", 1))


def test_custom_timesteps_and_missing_negatives() -> None:
    family = load_family("tiny-sd")
    condition = family.encode_prompts(PROMPTS[:1])
    noise = initial_noise(family.latent_shape(32, 32), 0)[None]
    sampled = sample_latents(family, condition, noise, num_steps=3, timesteps=[717, 417, 117])
    assert sampled.timesteps.tolist() == [717, 417, 117]
    with pytest.raises(DiffalignError, match="negative_condition"):
        sample_latents(family, condition, noise, num_steps=3, guidance_scale=2.0)


def test_a_prediction_that_is_not_finite_names_the_step() -> None:
    family = load_family("tiny-sd")
    noise = initial_noise(family.latent_shape(32, 32), 0)[None]
    with pytest.raises(FloatingPointError, match="step 0 of 2"):
        sample_latents(family, {}, noise, num_steps=2, predict=lambda x, t, c: x * float("nan"))
