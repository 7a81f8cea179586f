"""Diffusion architectures, one file each; ``load_family`` chooses by a model folder's ``model_index.json``."""

from __future__ import annotations

from diffalign.models.families.base import (
    Family,
    families,
    find_index,
    is_denoiser,
    load_denoiser,
    load_family,
    quiet_loading,
)
from diffalign.models.families.outline import outline_family
from diffalign.models.families.sd import StableDiffusion
from diffalign.models.families.sd3 import StableDiffusion3
from diffalign.models.families.sdxl import StableDiffusionXL

__all__ = [
    "Family",
    "StableDiffusion",
    "StableDiffusion3",
    "StableDiffusionXL",
    "families",
    "find_index",
    "is_denoiser",
    "load_denoiser",
    "load_family",
    "outline_family",
    "quiet_loading",
]
