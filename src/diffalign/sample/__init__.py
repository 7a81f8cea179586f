"""Prompts to images or trajectories: the one place that samples."""

from __future__ import annotations

from diffalign.sample.candidates import CandidateCounts, CandidatesConfig, generate_candidates
from diffalign.sample.grids import draw_grid
from diffalign.sample.guides import GuideConfig, checked_guide, evaluations_per_image, guide_told
from diffalign.sample.image_samplers import ImageSampler, family_sampler, image_size, pipeline_sampler
from diffalign.sample.images import SampledImagesConfig, sample_images
from diffalign.sample.prompts import PROMPT_LISTS, PromptRow, prompt_id, read_prompts
from diffalign.sample.run import (
    LoadedModel,
    SampleConfig,
    adapter_identity,
    load_model,
    load_sampler,
    make_sampler,
    run_sample,
    wanted_prompts,
)
from diffalign.sample.sampler import (
    Predict,
    Sampled,
    Solver,
    fitting_solvers,
    initial_noise,
    make_scheduler,
    sample_latents,
)
from diffalign.sample.sweep import SweepConfig, SweepFolder, at_strength, read_sweep, run_sweep, strength_name

__all__ = [
    "PROMPT_LISTS",
    "CandidateCounts",
    "CandidatesConfig",
    "GuideConfig",
    "ImageSampler",
    "LoadedModel",
    "Predict",
    "PromptRow",
    "SampleConfig",
    "Sampled",
    "SampledImagesConfig",
    "Solver",
    "SweepConfig",
    "SweepFolder",
    "adapter_identity",
    "at_strength",
    "checked_guide",
    "draw_grid",
    "evaluations_per_image",
    "family_sampler",
    "fitting_solvers",
    "generate_candidates",
    "guide_told",
    "image_size",
    "initial_noise",
    "load_model",
    "load_sampler",
    "make_sampler",
    "make_scheduler",
    "pipeline_sampler",
    "prompt_id",
    "read_prompts",
    "read_sweep",
    "run_sample",
    "run_sweep",
    "sample_images",
    "sample_latents",
    "strength_name",
    "wanted_prompts",
]
