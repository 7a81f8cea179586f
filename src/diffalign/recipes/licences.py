"""Base models and preference data that recipes name, and the terms they come under: what is trained inherits both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = [
    "BASE_MODELS",
    "DATA_SETS",
    "FLUX_DEV",
    "NOT_STATED",
    "SD3M",
    "SD15",
    "SD15_DPO",
    "SD35M",
    "SDXL",
    "BaseModel",
    "DataSet",
]

NOT_STATED = "not stated"

SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"
SD15_DPO = "sd15-dpo"  # a folder of one's own, see docs/recipes.md
SDXL = "stabilityai/stable-diffusion-xl-base-1.0"
SD3M = "stabilityai/stable-diffusion-3-medium-diffusers"
SD35M = "stabilityai/stable-diffusion-3.5-medium"
FLUX_DEV = "black-forest-labs/FLUX.1-dev"


@dataclass(frozen=True)
class BaseModel:
    """A published model.

    Attributes:
        name: as people call it.
        licence: of its weights, in its publisher's words.
        pipeline: class of its diffusers pipeline, which decides its family.
        twin: embedded model that stands in for it.
    """

    name: str
    licence: str
    pipeline: str
    twin: str


@dataclass(frozen=True)
class DataSet:
    """Published preference data, or prompts.

    Attributes:
        name: as people call it.
        licence: on its card; "not stated" where there is none.
        reader: the function of ``diffalign.data`` that makes rows of it; empty where there is none.
    """

    name: str
    licence: str
    reader: str = ""


BASE_MODELS: Mapping[str, BaseModel] = {
    SD15: BaseModel("Stable Diffusion 1.5", "CreativeML OpenRAIL-M", "StableDiffusionPipeline", "tiny-sd"),
    SD15_DPO: BaseModel(
        "Stable Diffusion 1.5 with Diffusion-DPO's UNet",
        "CreativeML OpenRAIL-M; of the UNet: not stated",
        "StableDiffusionPipeline",
        "tiny-sd",
    ),
    SDXL: BaseModel("Stable Diffusion XL", "CreativeML Open RAIL++-M", "StableDiffusionXLPipeline", "tiny-sd"),
    SD3M: BaseModel(
        "Stable Diffusion 3 medium",
        "Stability AI Community; at its release Non-Commercial Research Community",
        "StableDiffusion3Pipeline",
        "tiny-sd3",
    ),
    SD35M: BaseModel("Stable Diffusion 3.5 medium", "Stability AI Community", "StableDiffusion3Pipeline", "tiny-sd3"),
    FLUX_DEV: BaseModel("FLUX.1 [dev]", "FLUX.1 [dev] Non-Commercial", "FluxPipeline", "tiny-sd3"),
}
"""By hub id."""

DATA_SETS: Mapping[str, DataSet] = {
    "yuvalkirstain/pickapic_v1": DataSet("Pick-a-Pic v1", NOT_STATED, "read_pickapic"),
    "yuvalkirstain/pickapic_v2": DataSet("Pick-a-Pic v2", NOT_STATED, "read_pickapic"),
    "MizzenAI/HPDv3": DataSet("HPDv3", "MIT", "read_hpdv3"),
    "Xixixixihahahaha/RealAlign-Dataset": DataSet("RealAlign", "CC-BY-NC-4.0", "read_realalign"),
    "poloclub/diffusiondb": DataSet("DiffusionDB prompts", "CC0 1.0"),
    "Syn-Pic": DataSet("Syn-Pic", NOT_STATED),
}
"""By hub id, where they have one."""
