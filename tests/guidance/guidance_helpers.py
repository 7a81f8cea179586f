"""Tiny random pipelines of the true architectures, and LoRAs that change what they predict."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import builders
import torch
from diffusers import (
    DDIMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from torch import Tensor, nn

from diffalign.models import (
    LoraSettings,
    adapter_parameters,
    add_adapter,
    load_family,
    remove_adapter,
    save_adapter,
    using,
)

TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "conv1", "time_emb_proj")
PROMPTS = ["a photo of grass", "a photo of gravel"]
SAMPLING = {"num_inference_steps": 2, "height": 16, "width": 16, "output_type": "latent", "guidance_scale": 4.0}


@functools.cache
def _tiny_sd() -> Any:
    return load_family("tiny-sd").pipeline()


def unet(width: int) -> UNet2DConditionModel:
    torch.manual_seed(0)
    made = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        cross_attention_dim=width,
    )
    return made.eval()


def sd_pipeline(kind: Any = StableDiffusionPipeline) -> Any:
    """tiny-sd with a smaller network of random weights; image-to-image and inpainting work the same way."""
    tiny = _tiny_sd()
    parts = {
        "vae": tiny.vae,
        "text_encoder": tiny.text_encoder,
        "tokenizer": tiny.tokenizer,
        "unet": unet(tiny.text_encoder.config.hidden_size),
        "scheduler": DDIMScheduler.from_config(tiny.scheduler.config, clip_sample=False),
    }
    return quiet(kind(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False))


def sdxl_pipeline() -> Any:
    return quiet(builders.sdxl_pipeline())


def sd3_pipeline() -> Any:
    return quiet(load_family("tiny-sd3").pipeline())


PIPELINES = {"sd": sd_pipeline, "sdxl": sdxl_pipeline, "sd3": sd3_pipeline}
IMAGE_KINDS = (StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline)


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def network_of(pipe: Any) -> nn.Module:
    return pipe.unet if hasattr(pipe, "unet") else pipe.transformer


def prefix_of(pipe: Any) -> str:
    return "unet" if hasattr(pipe, "unet") else "transformer"


def lora(pipe: Any, folder: Path, seed: int, *, size: float = 0.2, targets: tuple[str, ...] = TARGETS) -> Path:
    """A saved LoRA of random weights; the pipeline is left without it."""
    network = copy.deepcopy(network_of(pipe))
    names = {name.rpartition(".")[2] for name, _ in network.named_modules()}
    targets = tuple(target for target in targets if target.split(".")[-2 if target[-1] == "0" else -1] in names)
    add_adapter(network, "x", LoraSettings(rank=2, alpha=3, targets=targets), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, value in adapter_parameters(network, "x").items():
            if "lora_B" in key:
                value.copy_(size * torch.randn(value.shape, generator=generator))
    save_adapter(network, "x", folder / f"lora{seed}", prefix=prefix_of(pipe))
    remove_adapter(network, "x")
    return folder / f"lora{seed}"


def sampled(pipe: Any, prompts: list[str] | None = None, **settings: Any) -> Tensor:
    """Latents of two prompts from the same noise every time, scaled."""
    prompts = prompts or PROMPTS
    images = len(prompts) * settings.get("num_images_per_prompt", 1)
    if "image" not in settings:
        channels = network_of(pipe).config.in_channels
        size = 16 // pipe.vae_scale_factor
        generator = torch.Generator().manual_seed(0)
        settings = {"latents": torch.randn(images, channels, size, size, generator=generator)} | settings
    result: Tensor = pipe(prompts, **SAMPLING | settings).images
    return result


class Recorded:
    """What a network is asked, pass by pass; entered before a guide is attached, so that it sees the guide's passes."""

    def __init__(self, network: nn.Module) -> None:
        self.network, self.rows, self.texts = network, [], []  # type: ignore[var-annotated]

    def __enter__(self) -> Recorded:
        forward = self.network.forward

        def noted(*args: Any, **kwargs: Any) -> Any:
            self.rows.append(len(kwargs["encoder_hidden_states"]))
            self.texts.append(kwargs["encoder_hidden_states"])
            return forward(*args, **kwargs)

        self.network.forward = noted  # type: ignore[assignment]
        return self

    def __exit__(self, *_: object) -> None:
        del self.network.forward


@torch.no_grad()
def under(network: nn.Module, adapters: Any, arguments: dict[str, Any]) -> Tensor:
    with using(network, adapters):
        pred: Tensor = network(**arguments, return_dict=False)[0]
    return pred
