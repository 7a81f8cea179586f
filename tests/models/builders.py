"""Tiny random pipelines of the true architectures, a few thousand weights each."""

from __future__ import annotations

import string
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

CLIP_TOKENS = 9
SDXL_TOKENS = 19


def clip_tokenizer(tokens: int = CLIP_TOKENS) -> CLIPTokenizer:
    """Every lower-case letter is a token, so different prompts give different ids."""
    letters = [letter + end for letter in string.ascii_lowercase for end in ("", "</w>")]
    vocab = {token: index for index, token in enumerate(["<|startoftext|>", "<|endoftext|>", *letters])}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=tokens)


def clip_config(projection: int = 32, *, width: int = 16, tokens: int = CLIP_TOKENS) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=60,
        hidden_size=width,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokens,
        projection_dim=projection,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )


def vae(latent_channels: int, **config: Any) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 12),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=latent_channels,
        norm_num_groups=4,
        **config,
    )


def ddim(**config: Any) -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        **config,
    )


def evaluating(pipe: Any) -> Any:
    """Modules made from a config start in training mode, where T5 drops out."""
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    return pipe


def sd_pipeline(*, prediction_type: str = "epsilon", in_channels: int = 4, **vae_config: Any) -> Any:
    """Stable Diffusion 1.x in small: VAE factor 2, four latent channels."""
    torch.manual_seed(0)
    pipe = StableDiffusionPipeline(
        unet=UNet2DConditionModel(
            sample_size=8,
            in_channels=in_channels,
            out_channels=4,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            block_out_channels=(8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            attention_head_dim=4,
            cross_attention_dim=16,
        ),
        vae=vae(4, scaling_factor=0.18215, **vae_config),
        text_encoder=CLIPTextModel(clip_config()),
        tokenizer=clip_tokenizer(),
        scheduler=ddim(prediction_type=prediction_type),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return evaluating(pipe)


def sdxl_pipeline(*, zeros_for_empty: bool = True, vae_config: Any = None, **unet_config: Any) -> Any:
    """SDXL in small: VAE factor 2, two text encoders of different widths, attention from the second level on."""
    torch.manual_seed(2)
    pooled, sizes = 12, 8
    unet = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "attention_head_dim": (2, 4),
        "use_linear_projection": True,
        "norm_num_groups": 4,
        "cross_attention_dim": 16 + 24,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": sizes,
        "projection_class_embeddings_input_dim": pooled + 6 * sizes,
    }
    pipe = StableDiffusionXLPipeline(
        unet=UNet2DConditionModel(**unet | unet_config),
        vae=vae(4, scaling_factor=0.13025, **vae_config or {}),
        text_encoder=CLIPTextModel(clip_config(tokens=SDXL_TOKENS)),
        tokenizer=clip_tokenizer(SDXL_TOKENS),
        text_encoder_2=CLIPTextModelWithProjection(clip_config(pooled, width=24, tokens=SDXL_TOKENS)),
        tokenizer_2=clip_tokenizer(SDXL_TOKENS),
        scheduler=ddim(),
        force_zeros_for_empty_prompt=zeros_for_empty,
        add_watermarker=False,
    )
    return evaluating(pipe)


def sd3_pipeline(*, t5: bool = True) -> Any:
    """Stable Diffusion 3 in small: VAE factor 2 with a shift, patches of 2, two CLIP encoders and perhaps T5."""
    torch.manual_seed(1)
    t5_vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    t5_vocab += [(letter, -3.0) for letter in string.ascii_lowercase]
    t5_config = T5Config(
        vocab_size=40, d_model=32, d_kv=8, d_ff=24, num_layers=1, num_heads=2, feed_forward_proj="gated-gelu"
    )
    pipe = StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=16,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=32,
            caption_projection_dim=16,
            pooled_projection_dim=64,
            out_channels=16,
            pos_embed_max_size=12,
        ),
        vae=vae(16, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=CLIPTextModelWithProjection(clip_config()),
        tokenizer=clip_tokenizer(),
        text_encoder_2=CLIPTextModelWithProjection(clip_config()),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=T5EncoderModel(t5_config) if t5 else None,
        tokenizer_3=T5Tokenizer(vocab=t5_vocab, extra_ids=0, model_max_length=13) if t5 else None,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )
    return evaluating(pipe)
