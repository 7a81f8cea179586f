"""Build tiny-sd3: a Stable Diffusion 3 pipeline of random networks around the autoencoder of tiny-sd.

It is there for the code, not for its pictures: the flow family, its adapters and its recipes run on it in tests.
"""

from __future__ import annotations

import string

import torch
from common import OUT, load_as_float32
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from tokenizer import MAX_LENGTH
from tokenizer import build as build_tokenizer
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel, T5Tokenizer

WIDTH = 48


def main() -> None:
    torch.manual_seed(4)
    tokenizer = build_tokenizer()
    clip = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH // 2,
        intermediate_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=MAX_LENGTH,
        projection_dim=WIDTH // 2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    letters = [(letter, -3.0) for letter in string.printable.strip()]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *letters]
    t5 = T5Config(
        vocab_size=len(pieces),
        d_model=WIDTH,
        d_kv=16,
        d_ff=64,
        num_layers=1,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )
    vae = AutoencoderKL.from_pretrained(OUT / "tiny-sd" / "vae", torch_dtype=torch.float32)
    vae.register_to_config(shift_factor=0.05)
    pipe = StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=16,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=3,
            attention_head_dim=16,
            num_attention_heads=3,
            joint_attention_dim=WIDTH,
            caption_projection_dim=WIDTH,
            pooled_projection_dim=WIDTH,
            pos_embed_max_size=16,
            qk_norm="rms_norm",
        ),
        vae=vae,
        text_encoder=CLIPTextModelWithProjection(clip),
        tokenizer=tokenizer,
        text_encoder_2=CLIPTextModelWithProjection(clip),
        tokenizer_2=build_tokenizer(),
        text_encoder_3=T5EncoderModel(t5),
        tokenizer_3=T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=64),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )
    pipe.to(torch.float16).save_pretrained(OUT / "tiny-sd3")
    load_as_float32(OUT / "tiny-sd3")


if __name__ == "__main__":
    main()
