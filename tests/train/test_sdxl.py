"""SDXL through everything: a saved model is trained from pairs, killed, resumed, sampled, and estimated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from adapter_helpers import add
from builders import sdxl_pipeline
from diffusers import EulerDiscreteScheduler
from PIL import Image
from train_helpers import config, equal, interrupt_at, metrics, tensors

from diffalign.core import read_jsonl
from diffalign.data import Preferences, ResizeRecipe
from diffalign.guidance import Contrastive, DiffusionNPO, attach, compose
from diffalign.models import load_family, remove_adapter, save_adapter
from diffalign.sample import (
    SampleConfig,
    family_sampler,
    initial_noise,
    make_scheduler,
    pipeline_sampler,
    run_sample,
)
from diffalign.train import LiveLatents, estimate, fill_cache, train

SIZE = 16  # pixels


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the scheduler that SDXL is published with."""
    folder = tmp_path_factory.mktemp("sdxl") / "model"
    pipe = sdxl_pipeline()
    pipe.scheduler = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, timestep_spacing="leading"
    )
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def latents(model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("latents")
    fill_cache(folder, load_family(model), Preferences(data), resolution=SIZE, flip=False)
    return folder


def test_it_trains_resumes_and_draws(
    model: Path, data: Path, latents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(
        data, model=str(model), resolution=SIZE, num_steps=2, batch_size=3, micro_batch_size=3, flip=False,
        checkpoint_every=1, prompt_drop=0.5, ema=None,
    )  # fmt: skip
    whole = train(settings, tmp_path / "whole", cache=latents)
    assert metrics(tmp_path / "whole")[0]["loss"] == pytest.approx(0.693147, abs=1e-6)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        interrupt_at(patched, 1)
        train(settings, tmp_path / "parts", cache=latents)
    train(settings, tmp_path / "parts", cache=latents)
    assert equal(tensors(tmp_path / "whole"), tensors(tmp_path / "parts"))
    assert estimate(settings).memory["optimiser"] == 2 * sum(v.nbytes for v in tensors(tmp_path / "whole").values())

    drawn = SampleConfig(
        model=str(model), adapter=str(whole), prompts="photographs", limit=2, num_steps=2, guidance_scale=3.0,
        height=24, width=SIZE,
    )  # fmt: skip
    rows = list(read_jsonl(run_sample(drawn, tmp_path / "images")))
    pixels = [Image.open(tmp_path / "images" / row["file"]) for row in rows]
    assert len(rows) == 2 and all(image.size == (SIZE, 24) for image in pixels)


def test_the_cache_holds_what_live_encoding_gives(model: Path, data: Path, latents: Path) -> None:
    family, preferences = load_family(model), Preferences(data)
    cached = fill_cache(latents, family, preferences, resolution=SIZE, flip=False)
    live = LiveLatents(family, preferences, ResizeRecipe(size=SIZE))
    for prompt in ("", *preferences.prompts()[:2]):
        one, other = cached.prompt(prompt), live.prompt(prompt)
        assert one.keys() == other.keys() == family.condition_shapes.keys()
        for key, value in one.items():
            torch.testing.assert_close(value, other[key], rtol=1e-5, atol=1e-5)
            assert bool((value == 0).all()) is not bool(prompt)
    image = preferences.image_hashes()[0][0]
    torch.testing.assert_close(cached.latents(image).mean, live.latents(image).mean, rtol=1e-4, atol=1e-4)


def test_guided_samples_are_those_of_the_pipeline_under_the_same_guide(model: Path, tmp_path: Path) -> None:
    family = load_family(model)
    for seed, name in enumerate(("positive", "negative")):
        add(family, name, seed)
        save_adapter(family.denoiser, name, tmp_path / name, prefix="unet")
        remove_adapter(family.denoiser, name)
    paths = {"positive": tmp_path / "positive", "negative": tmp_path / "negative"}
    guide = compose(Contrastive(**paths, scale=2.0), DiffusionNPO(negative=paths["negative"]))
    options = {"num_steps": 2, "guidance_scale": 3.0, "height": 24, "width": SIZE}
    pipe = family.pipeline()
    pipe.scheduler = make_scheduler(family)
    ours, theirs = family_sampler(family, **options), pipeline_sampler(pipe, model="sdxl", **options)
    prompts = ["a red fox", "moss"]
    noise = torch.stack([initial_noise(ours.latent_shape, prompt, 0) for prompt in prompts])
    plain = np.stack(ours(prompts, noise)).astype(int)
    with attach(pipe, guide, text_rows="uncond_cond"):
        guided, expected = (np.stack(sampler(prompts, noise)).astype(int) for sampler in (ours, theirs))
    assert np.abs(guided - expected).max() <= 1 and np.abs(guided - plain).max() > 3
