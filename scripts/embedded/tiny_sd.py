"""Train tiny-sd: Stable Diffusion 1.x in small, on crops of which 60 per cent are flawed while their captions are not.

The denoiser and the text encoder learn together, epsilon prediction with Min-SNR weights (Hang et al. 2023,
arXiv 2303.09556), on latents of the autoencoder trained before.
"""

from __future__ import annotations

import argparse

import torch
from common import OUT, Corpus, load_as_float32, make_corpus, train
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizer import MAX_LENGTH
from tokenizer import build as build_tokenizer
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from diffalign.data.flaws import CORPUS_FLAWS
from diffalign.models import VariancePreserving

TEXT_WIDTH = 96
SNR_CAP = 5.0


def build_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(48, 96, 128),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,  # the number of heads, in spite of its name
        norm_num_groups=16,
    )


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=MAX_LENGTH,
        projection_dim=TEXT_WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def build_scheduler() -> PNDMScheduler:
    """The scheduler of Stable Diffusion 1.x."""
    return PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        num_train_timesteps=1000,
        set_alpha_to_one=False,
        skip_prk_steps=True,
        steps_offset=1,
    )


@torch.no_grad()
def encode_latents(vae: AutoencoderKL, corpus: Corpus) -> tuple[Tensor, Tensor]:
    """Posterior mean and standard deviation of every crop, scaled: two of (N, 4, 16, 16)."""
    means, stds = [], []
    for rows in torch.arange(len(corpus.images)).split(500):
        posterior = vae.encode(corpus.pixels(rows)).latent_dist
        means.append(posterior.mean * vae.config.scaling_factor)
        stds.append(posterior.std * vae.config.scaling_factor)
    return torch.cat(means), torch.cat(stds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--prompt-drop", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=3)
    arguments = parser.parse_args()

    corpus = make_corpus("train", 24_000, flaws=CORPUS_FLAWS, flawed_share=0.6, seed=3)
    validation = make_corpus("validation", 512, flaws=CORPUS_FLAWS, flawed_share=0.6, seed=3)
    vae = AutoencoderKL.from_pretrained(OUT / "tiny-sd" / "vae", torch_dtype=torch.float32).eval()
    torch.manual_seed(arguments.seed)
    tokenizer = build_tokenizer()
    scheduler = build_scheduler()
    process = VariancePreserving.from_scheduler(scheduler)
    model = nn.ModuleDict({"unet": build_unet(), "text_encoder": build_text_encoder(tokenizer)})
    print({name: f"{sum(p.numel() for p in part.parameters()):,}" for name, part in model.items()})

    known = sorted({"", *corpus.captions, *validation.captions})
    ids = tokenizer(known, padding="max_length", max_length=MAX_LENGTH, truncation=True, return_tensors="pt").input_ids
    place = {text: index for index, text in enumerate(known)}
    texts = {
        name: torch.tensor([place[c] for c in part.captions])
        for name, part in (("train", corpus), ("validation", validation))
    }
    encoded = {"train": encode_latents(vae, corpus), "validation": encode_latents(vae, validation)}
    snr = process.log_snr(torch.arange(1000)).exp()

    def error(split: str, rows: Tensor, dropped: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Per crop: the mean squared error of epsilon, and its Min-SNR weight."""
        mean, std = (part[rows] for part in encoded[split])
        latents = mean + std * torch.randn(mean.shape, generator=generator)
        noise = torch.randn(mean.shape, generator=generator)
        timesteps = torch.randint(0, 1000, (len(rows),), generator=generator)
        noisy = process.add_noise(latents, noise, timesteps)
        used, which = torch.where(dropped, place[""], texts[split][rows]).unique(return_inverse=True)
        embeds = model["text_encoder"](ids[used]).last_hidden_state[which]
        pred = model["unet"](noisy, timesteps, embeds).sample
        return (pred - noise).square().mean((1, 2, 3)), (SNR_CAP / snr[timesteps]).clamp_max(1)

    def loss_of(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        rows = torch.randint(0, len(corpus.images), (arguments.batch,), generator=generator)
        dropped = torch.rand(arguments.batch, generator=generator) < arguments.prompt_drop
        errors, weights = error("train", rows, dropped, generator)
        return (weights * errors).mean(), {"mse": errors.mean().item()}

    def measure(_: nn.Module) -> dict[str, float]:
        with torch.no_grad():
            rows = torch.arange(len(validation.images))
            errors, _ = error(
                "validation", rows, torch.zeros(len(rows), dtype=torch.bool), torch.Generator().manual_seed(0)
            )
        return {"validation_mse": errors.mean().item()}

    train(
        "tiny-sd",
        model,
        loss_of,
        num_steps=arguments.steps,
        learning_rate=arguments.learning_rate,
        weight_decay=0.01,
        warmup_steps=200,
        seed=arguments.seed,
        ema_decay=0.9995,
        measure=measure,
        measure_every=250,
    )
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=model["text_encoder"].eval(),
        tokenizer=tokenizer,
        unet=model["unet"].eval(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.to(torch.float16).save_pretrained(OUT / "tiny-sd")
    load_as_float32(OUT / "tiny-sd")


if __name__ == "__main__":
    main()
