"""Networks of the published sizes with random weights, for benchmarks where no weights can be had."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    ModelMixin,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, PreTrainedModel

from diffalign.models import embedded_path

__all__ = ["RANDOM_MODELS", "random_sd15", "random_sdxl", "sdxl_configs"]


def random_sd15(folder: Path) -> Path:
    """A model folder with the layers of Stable Diffusion 1.5 (860 million parameters in the UNet), random weights."""
    torch.manual_seed(0)
    pipeline = StableDiffusionPipeline(
        vae=_vae(sample_size=512, force_upcast=False),
        text_encoder=CLIPTextModel(_clip_text()),
        tokenizer=_tokenizer(),
        unet=UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8),
        scheduler=DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return folder


def random_sdxl(folder: Path) -> Path:
    """A model folder with the layers of SDXL's base (2.6 billion parameters in the UNet), random weights.

    They are stored in half precision, 7 GB, and load in any.
    """
    torch.manual_seed(0)
    _sdxl("cuda" if torch.cuda.is_available() else "cpu").to(dtype=torch.bfloat16).save_pretrained(folder)
    return folder


def sdxl_configs(folder: Path) -> Path:
    """The same folder without weights: what a dry run reads."""
    pipeline = _sdxl("meta")
    pipeline.save_config(folder)
    for name, part in pipeline.components.items():
        if isinstance(part, ModelMixin):
            part.save_config(folder / name)
        elif isinstance(part, PreTrainedModel):
            part.config.save_pretrained(folder / name)
        elif part is not None:
            part.save_pretrained(folder / name)
    return folder


def _sdxl(device: str) -> Any:
    with torch.device(device):
        networks = {
            "vae": _vae(sample_size=1024, scaling_factor=0.13025),
            "text_encoder": CLIPTextModel(_clip_text()),
            "text_encoder_2": CLIPTextModelWithProjection(
                _clip_text(
                    hidden_size=1280,
                    intermediate_size=5120,
                    num_hidden_layers=32,
                    num_attention_heads=20,
                    hidden_act="gelu",
                    projection_dim=1280,
                )
            ),
            "unet": UNet2DConditionModel(
                sample_size=128,
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                block_out_channels=(320, 640, 1280),
                transformer_layers_per_block=(1, 2, 10),
                attention_head_dim=(5, 10, 20),
                cross_attention_dim=2048,
                use_linear_projection=True,
                addition_embed_type="text_time",
                addition_time_embed_dim=256,
                projection_class_embeddings_input_dim=2816,
            ),
        }
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        steps_offset=1,
        timestep_spacing="leading",
    )
    tokenizers = {"tokenizer": _tokenizer(), "tokenizer_2": _tokenizer()}
    return StableDiffusionXLPipeline(**networks, **tokenizers, scheduler=scheduler, add_watermarker=False)


def _tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(embedded_path("tiny-sd") / "tokenizer", model_max_length=77)


def _clip_text(**changes: Any) -> CLIPTextConfig:
    """CLIP ViT-L's text encoder."""
    settings = {
        "vocab_size": 49408,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 77,
    }
    return CLIPTextConfig(**settings | changes)


def _vae(**changes: Any) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        **changes,
    )


RANDOM_MODELS: dict[str, Callable[[Path], Path]] = {"sd15": random_sd15, "sdxl": random_sdxl}
"""By what ``--model`` calls them."""
