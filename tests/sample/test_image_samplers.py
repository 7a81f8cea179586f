"""Image samplers: a family and the pipeline over the same modules agree, whatever the batch; so does any pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    EulerAncestralDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
)
from sample_helpers import difference
from torch import Tensor

from diffalign.core import DiffalignError
from diffalign.models import Family, load_family
from diffalign.sample import ImageSampler, family_sampler, image_size, initial_noise, make_scheduler, pipeline_sampler

PROMPTS = ["a photo of grass", "a wide photo of a tabby cat, top", "a photo of the moon"]


@pytest.fixture(scope="module", params=["tiny-sd", "tiny-sd3"])
def family(request: pytest.FixtureRequest) -> Family:
    return load_family(request.param)


def noise_of(sampler: ImageSampler, prompts: Sequence[str] = PROMPTS) -> Tensor:
    return torch.stack([initial_noise(sampler.latent_shape, prompt, 0) for prompt in prompts])


@pytest.mark.parametrize("negative_prompt", ["", "a photo of gravel"])
def test_family_and_pipeline_agree(family: Family, negative_prompt: str) -> None:
    options: dict[str, Any] = {
        "num_steps": 4, "guidance_scale": 3.0, "negative_prompt": negative_prompt, "height": 16, "width": 32,
    }  # fmt: skip
    pipe = family.pipeline()
    pipe.scheduler = make_scheduler(family)
    ours, theirs = family_sampler(family, **options), pipeline_sampler(pipe, model="tiny", **options)
    assert ours.latent_shape == theirs.latent_shape == family.latent_shape(16, 32)
    images = ours(PROMPTS, noise_of(ours))
    assert images[0].size == (32, 16) and images[0].mode == "RGB"
    assert difference(images, theirs(PROMPTS, noise_of(theirs))) <= 1
    shared = ("num_steps", "guidance_scale", "negative_prompt", "height", "width", "dtype")
    assert [ours.identity[key] for key in shared] == [theirs.identity[key] for key in shared]


def test_a_pipeline_gives_its_own_images_and_keeps_its_settings(family: Family) -> None:
    pipe = family.pipeline()
    pipe.set_progress_bar_config(desc="mine")
    scheduler = pipe.scheduler
    sampler = pipeline_sampler(pipe, model="tiny", num_steps=3, guidance_scale=2.0)
    noise = noise_of(sampler)
    expected = pipe(PROMPTS, latents=noise, num_inference_steps=3, guidance_scale=2.0).images
    assert difference(sampler(PROMPTS, noise), expected) == 0
    assert pipe.scheduler is scheduler and pipe._progress_bar_config == {"desc": "mine"}


def test_options_reach_the_pipeline() -> None:
    pipe = load_family("tiny-sd").pipeline()
    plain = pipeline_sampler(pipe, model="tiny", num_steps=2, guidance_scale=5.0)
    changed = pipeline_sampler(pipe, model="tiny", num_steps=2, guidance_scale=5.0, guidance_rescale=0.7)
    assert plain.identity != changed.identity
    assert difference(plain(PROMPTS, noise_of(plain)), changed(PROMPTS, noise_of(plain))) > 1


def test_an_image_does_not_depend_on_its_batch(family: Family) -> None:
    pipe = family.pipeline()
    if family.lora_prefix == "unet":  # adds noise at every step
        pipe.scheduler = EulerAncestralDiscreteScheduler.from_config(pipe.scheduler.config)
    for sampler in (
        family_sampler(family, num_steps=2, guidance_scale=3.0),
        pipeline_sampler(pipe, model="tiny", num_steps=2, guidance_scale=3.0),
    ):
        noise = noise_of(sampler)
        alone = [sampler([prompt], noise[[row]])[0] for row, prompt in enumerate(PROMPTS)]
        assert difference(sampler(PROMPTS, noise), alone) <= 1


def test_a_guide_takes_the_place_of_the_prediction(family: Family) -> None:
    def backwards(noisy: Tensor, timesteps: Tensor, condition: Any) -> Tensor:
        return -family.predict(noisy, timesteps, condition)

    with pytest.raises(ValueError, match="adapter"):
        family_sampler(family, num_steps=2, predict=backwards)
    plain = family_sampler(family, num_steps=2)
    guided = family_sampler(family, num_steps=2, predict=backwards, adapter="backwards")
    assert guided.identity == plain.identity | {"adapter": "backwards"}
    assert difference(plain(PROMPTS, noise_of(plain)), guided(PROMPTS, noise_of(plain))) > 1


def test_numbers_that_are_not_finite_are_told(family: Family) -> None:
    family_one = family_sampler(family, num_steps=1, predict=lambda x, t, c: x * torch.nan, adapter="broken")
    pipeline_one = pipeline_sampler(family.pipeline(), model="tiny", num_steps=1)
    with pytest.raises(FloatingPointError):
        family_one(PROMPTS, noise_of(family_one))
    with pytest.raises(FloatingPointError, match="decoded image"):
        pipeline_one(PROMPTS, noise_of(pipeline_one) * torch.nan)


def test_sizes(family: Family) -> None:
    assert image_size(family) == (32, 32) and image_size(family, 16) == (16, 32)
    for height, width in ((31, 32), (-8, 32)):
        with pytest.raises(DiffalignError, match="in multiples of"):
            image_size(family, height, width)
        with pytest.raises(DiffalignError, match="in multiples of"):
            pipeline_sampler(family.pipeline(), model="tiny", num_steps=1, height=height, width=width)
    sampler = family_sampler(family, num_steps=1)
    with pytest.raises(ValueError, match="expected noise"):
        sampler(PROMPTS, noise_of(sampler)[:2])


def test_packed_latents_as_of_flux() -> None:
    """A small FluxPipeline of random weights: (C, h, w) noise reaches it as tokens of 2x2 cells."""
    small, other = load_family("tiny-sd").pipeline(), load_family("tiny-sd3").pipeline()
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=48, pooled_projection_dim=small.text_encoder.config.hidden_size,
        axes_dims_rope=(4, 4, 8), guidance_embeds=True,
    )  # fmt: skip
    vae = AutoencoderKL.from_config(small.vae.config, shift_factor=0.1)
    pipe = FluxPipeline(
        FlowMatchEulerDiscreteScheduler(), vae, small.text_encoder, small.tokenizer, other.text_encoder_3,
        other.tokenizer_3, transformer,
    )  # fmt: skip
    sampler = pipeline_sampler(pipe, model="flux", num_steps=2, height=16, width=24, max_sequence_length=32)
    assert sampler.latent_shape == (4, 8, 12)
    noise = noise_of(sampler)
    images = sampler(PROMPTS, noise)
    assert images[0].size == (24, 16)
    assert difference(images, [sampler([one], noise[[row]])[0] for row, one in enumerate(PROMPTS)]) <= 1


def test_what_is_no_such_pipeline_is_told() -> None:
    with pytest.raises(DiffalignError, match="text-to-image pipeline"):
        pipeline_sampler(object(), model="none", num_steps=1)
