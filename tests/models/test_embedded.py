"""The models inside the package: loadable by the libraries, small, and as good as their cards say."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusion3Pipeline, StableDiffusionInpaintPipeline
from diffusers import StableDiffusionPipeline as SDPipeline
from PIL import Image
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForImageClassification, AutoProcessor, CLIPModel

from diffalign.core import DiffalignError, numpy_generator, torch_generator
from diffalign.data import PHOTOGRAPHS, apply_flaw, captions, draw_crop, subject_index
from diffalign.models import EMBEDDED_MODELS, StableDiffusion, StableDiffusion3, embedded_path, load_family

FOLDER = embedded_path("tiny-sd").parent
QUALITY = json.loads((FOLDER / "quality.json").read_text())


def pixels_of(images: list[Image.Image]) -> Tensor:
    return torch.from_numpy(np.stack([np.asarray(i) for i in images])).permute(0, 3, 1, 2).float() / 127.5 - 1


@cache
def held_out(count: int, flaw: str | None = None) -> tuple[list[Image.Image], list[int]]:
    generator = numpy_generator("test of embedded models", flaw)
    crops = [draw_crop("held_out", generator, size=32) for _ in range(count)]
    images = [crop.image if flaw is None else apply_flaw(flaw, crop.image, generator) for crop in crops]
    return images, [crop.subject for crop in crops]


@cache
def judge() -> tuple[Any, Any]:
    path = embedded_path("tiny-judge")
    model = AutoModelForImageClassification.from_pretrained(path, dtype=torch.float32).eval()
    return model, AutoProcessor.from_pretrained(path)


@torch.no_grad()
def judged(images: list[Image.Image]) -> tuple[Tensor, Tensor]:
    """Subject index and realism, through the published processor."""
    model, processor = judge()
    logits = model(**processor(images, return_tensors="pt")).logits
    return logits[:, :16].argmax(1), logits[:, 16] - logits[:, 17:].logsumexp(1)


def test_they_are_small_and_safe() -> None:
    files = [file for file in FOLDER.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    assert sum(file.stat().st_size for file in files) <= 24e6
    assert {file.suffix for file in files} <= {".safetensors", ".json", ".txt", ".md", ".py", ".model"}
    for file in files:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as opened:
                dtypes = {opened.get_slice(key).get_dtype() for key in opened.keys()}  # noqa: SIM118
            assert dtypes <= {"F16", "I64"}, file
    for name in EMBEDDED_MODELS:
        assert (embedded_path(name) / "README.md").is_file()
    with pytest.raises(DiffalignError, match="tiny-judge"):
        embedded_path("tiny-juge")


def test_plain_pipelines_load_and_run() -> None:
    pipe = SDPipeline.from_pretrained(embedded_path("tiny-sd"))
    pipe.set_progress_bar_config(disable=True)
    image = pipe("a photo of grass", num_inference_steps=2, generator=torch_generator("a")).images[0]
    assert image.size == (32, 32)

    inpaint = StableDiffusionInpaintPipeline.from_pretrained(embedded_path("tiny-sd"))
    inpaint.set_progress_bar_config(disable=True)
    mask = Image.new("L", (32, 32))
    mask.paste(255, (16, 0, 32, 32))
    painted = inpaint(
        "a photo of grass", image=image, mask_image=mask, height=32, width=32, num_inference_steps=4,
        generator=torch_generator("b"),
    ).images[0]  # fmt: skip
    left, right = (np.abs(np.asarray(painted, float) - np.asarray(image, float))[:, s].mean() for s in
                   (slice(0, 12), slice(20, 32)))  # fmt: skip
    assert right > 3 * left, "inpainting must change the masked half above all"

    sd3 = StableDiffusion3Pipeline.from_pretrained(embedded_path("tiny-sd3"))
    sd3.set_progress_bar_config(disable=True)
    assert sd3("a photo of grass", num_inference_steps=2).images[0].size == (32, 32)


def test_families_load_by_name() -> None:
    assert isinstance(load_family("tiny-sd"), StableDiffusion)
    assert isinstance(load_family("tiny-sd3"), StableDiffusion3)
    family = load_family("tiny-sd")
    assert family.latent_shape(32, 32) == (4, 16, 16) and family.process.prediction_type == "epsilon"
    tokenizer = family.pipeline().tokenizer
    assert tokenizer.model_max_length == 24
    assert family.pipeline().text_encoder.config.eos_token_id == tokenizer.eos_token_id
    assert family.encode_prompts(["a", ""])["prompt_embeds"].shape == (2, 24, 96)


def test_no_caption_is_cut_off() -> None:
    tokenizer = load_family("tiny-sd").pipeline().tokenizer
    longest = max(len(tokenizer(f"Realistic photo {text}").input_ids) for text in captions())
    assert longest < tokenizer.model_max_length
    ids = tokenizer(captions()).input_ids
    assert len({tuple(row) for row in ids}) == len(captions())


def test_autoencoder_keeps_texture() -> None:
    """At least 28 dB and half of the Laplacian variance on crops of strips it was not trained on."""
    family = load_family("tiny-sd")
    images, _ = held_out(96)
    pixels = pixels_of(images)
    mean, _ = family.encode_images(pixels)
    with torch.no_grad():
        decoded = family.decode(mean)
    assert 0.7 < mean.std() < 1.4, "scaled latents have a standard deviation near 1"
    a, b = ((x + 1) * 127.5 for x in (pixels, decoded))
    psnr = 10 * torch.log10(255**2 / (a - b.round()).square().mean())
    luma = torch.tensor([0.299, 0.587, 0.114]).reshape(1, 3, 1, 1)
    kernel = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]).reshape(1, 1, 3, 3)
    original, kept = (torch.conv2d((x * luma).sum(1, keepdim=True), kernel).var((1, 2, 3)).mean() for x in (a, b))
    assert psnr >= 28 and kept / original >= 0.5


def test_clip_knows_subjects_and_flaws_on_held_out_strips() -> None:
    path = embedded_path("tiny-clip")
    model = CLIPModel.from_pretrained(path, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(path)
    texts = [f"a photo of {photo.subject}" for photo in PHOTOGRAPHS]

    @torch.no_grad()
    def cosines(images: list[Image.Image]) -> Tensor:
        inputs = processor(text=texts, images=images, return_tensors="pt", padding="max_length")
        out = model(**inputs)
        return out.image_embeds @ out.text_embeds.T

    images, subjects = held_out(128)
    clean = cosines(images)
    accuracy = (clean.argmax(1) == torch.tensor(subjects)).float().mean().item()
    assert accuracy > QUALITY["tiny-clip"]["held_out"]["subject_accuracy"] - 0.12
    generator = numpy_generator("clip")
    for name in ("blur", "noise", "posterise"):
        flawed = cosines([apply_flaw(name, image, generator) for image in images])
        index = torch.tensor(subjects)[:, None]
        wins = (clean.gather(1, index) > flawed.gather(1, index)).float().mean()
        assert wins > 0.7, name


def test_judge_knows_subjects_and_flaws_on_held_out_strips() -> None:
    images, subjects = held_out(256)
    shown, realism = judged(images)
    accuracy = (shown == torch.tensor(subjects)).float().mean().item()
    assert accuracy > QUALITY["tiny-judge"]["held_out"]["subject_accuracy"] - 0.1
    for name in ("blur", "noise", "jpeg"):
        _, flawed = judged(held_out(256, name)[0])
        assert (realism[:, None] > flawed[None, :]).float().mean() > 0.8, name


def test_samples_show_what_was_asked() -> None:
    pipe = SDPipeline.from_pretrained(embedded_path("tiny-sd"), torch_dtype=torch.float32)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    prompts = [text for text in captions(plain=False) if "close-up" in text]
    generators = [torch_generator("sample", text) for text in prompts]
    images = pipe(prompts, num_inference_steps=12, guidance_scale=4.0, generator=generators).images
    shown, _ = judged(images)
    right = (shown == torch.tensor([subject_index(text) for text in prompts])).float().mean()
    assert right >= 0.7  # 48 images; the cards give the share over 224
