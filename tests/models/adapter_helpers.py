"""What the tests of adapters and of LoRA files share."""

from __future__ import annotations

import torch
from builders import sd3_pipeline, sd_pipeline, sdxl_pipeline

from diffalign.models import (
    LoraSettings,
    StableDiffusion,
    StableDiffusion3,
    StableDiffusionXL,
    adapter_parameters,
    add_adapter,
)

BUILDERS = {
    "sd": (sd_pipeline, StableDiffusion),
    "sdxl": (sdxl_pipeline, StableDiffusionXL),
    "sd3": (sd3_pipeline, StableDiffusion3),
}


def settings(family, **changes):
    return LoraSettings(**{"rank": 3, "alpha": 5.0, "targets": family.lora_targets} | changes)


def randomise(denoiser, name: str, seed: int = 0) -> None:
    """Gives the up matrices, which start at 0, something to do."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in list(adapter_parameters(denoiser, name).values()):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)


def add(family, name: str, seed: int = 0, **changes) -> None:
    add_adapter(family.denoiser, name, settings(family, **changes), seed=seed)
    randomise(family.denoiser, name, seed)


@torch.no_grad()
def output(family) -> torch.Tensor:
    channels, height, width = family.latent_shape(12, 16)
    noisy = torch.randn(3, channels, height, width, generator=torch.Generator().manual_seed(9))
    return family.predict(noisy, torch.tensor([100, 500, 900]), family.encode_prompts(["a fox", "owl", "moss"]))
