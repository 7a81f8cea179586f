"""Prompts to images or trajectories: the one place that samples."""

from __future__ import annotations

from diffalign.sample.sampler import Sampled, Solver, initial_noise, make_scheduler, sample_latents

__all__ = ["Sampled", "Solver", "initial_noise", "make_scheduler", "sample_latents"]
