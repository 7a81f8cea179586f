"""Measure the embedded models on the held-out strips; write their cards, quality.json and the contact sheets.

Every figure of the cards and of docs/embedded-models.md comes from here. No training reads the held-out strips: this
script does, after all training has ended, and the tests.
"""

from __future__ import annotations

import platform

import numpy as np
import torch
from autoencoder import quality as autoencoder_quality
from cards import write_cards
from common import OUT, ROOT, SIZE, WORK, Corpus, make_corpus
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
from PIL import Image, ImageDraw
from tiny_clip import encode, normalise
from tiny_clip import quality as clip_quality
from tiny_judge import quality as judge_quality
from tiny_judge import read_logits
from torch import Tensor
from transformers import AutoTokenizer, CLIPModel, ResNetForImageClassification

from diffalign.core import progress, read_json, seed_from, versions, write_json
from diffalign.data.flaws import CORPUS_FLAWS, JUDGE_FLAWS, apply_flaw
from diffalign.data.photographs import PHOTOGRAPHS, captions, draw_crop, subject_index

SEEDS = 2
SETTINGS = (("12 steps, guidance 4", 12, 4.0), ("25 steps, guidance 4", 25, 4.0), ("25 steps, no guidance", 25, 1.0))


def load_pipeline() -> StableDiffusionPipeline:
    pipe = StableDiffusionPipeline.from_pretrained(OUT / "tiny-sd", torch_dtype=torch.float32)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sample(
    pipe: StableDiffusionPipeline, prompts: list[str], steps: int, guidance: float, seed: int
) -> list[Image.Image]:
    """One image per prompt; its noise depends on the prompt and the seed alone."""
    images = []
    for start in range(0, len(prompts), 28):
        batch = prompts[start : start + 28]
        generators = [torch.Generator().manual_seed(seed_from("tiny-sd sample", text, seed)) for text in batch]
        images += pipe(batch, num_inference_steps=steps, guidance_scale=guidance, generator=generators).images
    return images


def to_pixels(images: list[Image.Image]) -> Tensor:
    return torch.from_numpy(np.stack([np.asarray(i) for i in images])).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def judge_images(judge: ResNetForImageClassification, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """The subject each image shows (N,), and the probability that it is clean (N,)."""
    subject, _, realism = read_logits(judge(normalise(pixels)).logits)
    return subject.argmax(1), realism.sigmoid()


def measure_samples(pipe: StableDiffusionPipeline, judge: ResNetForImageClassification) -> dict[str, dict[str, float]]:
    prompts = captions()
    wanted = torch.tensor([subject_index(text) for text in prompts] * SEEDS)
    figures = {}
    for name, steps, guidance in progress(SETTINGS, total=len(SETTINGS), description="samples", unit="settings"):
        images = [image for seed in range(SEEDS) for image in sample(pipe, prompts, steps, guidance, seed)]
        shown, realism = judge_images(judge, to_pixels(images))
        right = (shown == wanted).float()
        figures[name] = {
            "images": len(images),
            "subject_accuracy": right.mean().item(),
            "lowest_subject": min(right[wanted == s].mean().item() for s in range(len(PHOTOGRAPHS))),
            "realism": realism.mean().item(),
            "judged_clean": (realism > 0.5).float().mean().item(),
        }
    return figures


@torch.no_grad()
def round_trip(pipe: StableDiffusionPipeline, pixels: Tensor) -> Tensor:
    """Encoded and decoded, rounded to 8 bits."""
    decoded = pipe.vae.decode(pipe.vae.encode(pixels).latent_dist.mean).sample
    return ((decoded.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


def flaws_after_round_trip(
    pipe: StableDiffusionPipeline, judge: ResNetForImageClassification, corpus: Corpus
) -> dict[str, float]:
    """Per family, the area under the judge's ROC curve of clean against flawed crops, all decoded from latents."""
    _, realism = judge_images(judge, round_trip(pipe, corpus.pixels(torch.arange(len(corpus.images)))))
    clean = realism[corpus.flaws < 0]
    return {
        name: (clean[:, None] > realism[corpus.flaws == index][None, :]).float().mean().item()
        for index, name in enumerate(JUDGE_FLAWS)
        if name in CORPUS_FLAWS
    }


def grid(rows: list[list[Image.Image]], names: list[str], heads: list[str], path: str, zoom: int = 2) -> None:
    cell, left, top = SIZE * zoom + 2, 84, 16
    sheet = Image.new("RGB", (left + cell * max(map(len, rows)), top + cell * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    for x, head in enumerate(heads):
        draw.text((left + x * cell + 2, 2), head, fill="black")
    for y, (row, name) in enumerate(zip(rows, names, strict=True)):
        draw.text((4, top + y * cell + cell // 2 - 6), name, fill="black")
        for x, image in enumerate(row):
            big = image.resize((SIZE * zoom, SIZE * zoom), Image.Resampling.BICUBIC)
            sheet.paste(big, (left + x * cell, top + y * cell))
    sheet.save(ROOT / "docs" / "images" / path, optimize=True)


def to_images(pixels: Tensor) -> list[Image.Image]:
    array = ((pixels + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(one) for one in array]


def contact_sheets(pipe: StableDiffusionPipeline) -> None:
    generator = np.random.default_rng(0)
    real = [[draw_crop("train", generator, size=SIZE, subject=s).image for _ in range(2)] for s in range(16)]
    names = [photo.name for photo in PHOTOGRAPHS]
    prompts = [[f"a close-up photo of {p.subject}", f"a wide photo of {p.subject}"] for p in PHOTOGRAPHS]
    flat = [text for pair in prompts for text in pair]
    draws = [sample(pipe, flat, 25, 4.0, seed) for seed in range(4)]
    rows = [real[s] + [draws[k][2 * s + f] for f in range(2) for k in range(4)] for s in range(16)]
    grid(rows, names, ["real", "", "close-up", "", "", "", "wide"], "tiny-sd-samples.png")

    heads, rows = ["clean", "decoded"], []
    for name in CORPUS_FLAWS:
        heads += [name, "decoded"]
    for row in real:
        shown = [row[0]] + [apply_flaw(name, row[0], generator) for name in CORPUS_FLAWS]
        decoded = to_images(round_trip(pipe, to_pixels(shown)))
        rows.append([image for both in zip(shown, decoded, strict=True) for image in both])
    grid(rows, names, heads, "tiny-sd-autoencoder.png")


def main() -> None:
    held_out = make_corpus("held_out", 2048, flaws=JUDGE_FLAWS, flawed_share=0.5, seed=9)
    corpus_flaws = make_corpus("held_out", 2048, flaws=CORPUS_FLAWS, flawed_share=0.5, seed=9)
    clean = make_corpus("held_out", 1024, flaws=(), flawed_share=0.0, seed=9)
    pipe = load_pipeline()
    clip = CLIPModel.from_pretrained(OUT / "tiny-clip", dtype=torch.float32).eval()
    judge = ResNetForImageClassification.from_pretrained(OUT / "tiny-judge", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(OUT / "tiny-clip")
    assert len(encode(tokenizer, ["a photo"])["input_ids"][0]) == pipe.tokenizer.model_max_length
    results = {
        "machine": {"processor": platform.machine(), "threads": torch.get_num_threads()},
        "versions": versions(),
        "autoencoder": {
            "held_out": autoencoder_quality(pipe.vae, clean),
            "curve": read_json(WORK / "autoencoder" / "curve.json"),
            "flaw_auc_after_round_trip": flaws_after_round_trip(pipe, judge, held_out),
        },
        "tiny-clip": {"held_out": clip_quality(clip, tokenizer, corpus_flaws)},
        "tiny-judge": {"held_out": judge_quality(judge, held_out)},
        "tiny-sd": {"samples": measure_samples(pipe, judge), "curve": read_json(WORK / "tiny-sd" / "curve.json")},
        "parameters": {
            "vae": sum(p.numel() for p in pipe.vae.parameters()),
            "unet": sum(p.numel() for p in pipe.unet.parameters()),
            "text_encoder": sum(p.numel() for p in pipe.text_encoder.parameters()),
            "tiny-clip": sum(p.numel() for p in clip.parameters()),
            "tiny-judge": sum(p.numel() for p in judge.parameters()),
        },
        "megabytes": sum(f.stat().st_size for f in OUT.rglob("*") if f.is_file()) / 1e6,
    }
    contact_sheets(pipe)
    write_json(OUT / "quality.json", results)
    write_cards(results)


if __name__ == "__main__":
    main()
