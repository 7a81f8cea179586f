"""Prompts to images or trajectories: the one place that samples."""

from __future__ import annotations

from diffalign.sample.candidates import CandidateCounts, CandidatesConfig, generate_candidates
from diffalign.sample.image_samplers import ImageSampler, family_sampler, image_size, pipeline_sampler
from diffalign.sample.images import SampledImagesConfig, sample_images
from diffalign.sample.prompts import PROMPT_LISTS, PromptRow, prompt_id, read_prompts
from diffalign.sample.run import SampleConfig, adapter_identity, load_sampler, run_sample, wanted_prompts
from diffalign.sample.sampler import (
    Predict,
    Sampled,
    Solver,
    fitting_solvers,
    initial_noise,
    make_scheduler,
    sample_latents,
)

__all__ = [
    "PROMPT_LISTS",
    "CandidateCounts",
    "CandidatesConfig",
    "ImageSampler",
    "Predict",
    "PromptRow",
    "SampleConfig",
    "Sampled",
    "SampledImagesConfig",
    "Solver",
    "adapter_identity",
    "family_sampler",
    "fitting_solvers",
    "generate_candidates",
    "image_size",
    "initial_noise",
    "load_sampler",
    "make_scheduler",
    "pipeline_sampler",
    "prompt_id",
    "read_prompts",
    "run_sample",
    "sample_images",
    "sample_latents",
    "wanted_prompts",
]
