"""The estimate counts what a real pass takes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from train_helpers import config

from diffalign.models import load_family
from diffalign.train import LoraWeights, estimate, matrix_rate
from diffalign.train.build import lora_settings
from diffalign.train.estimate import _count, _inputs


@pytest.mark.parametrize("model", ["tiny-sd", "tiny-sd3"])
def test_shapes_alone_give_what_numbers_give(data: Path, model: str) -> None:
    """Parameters, kept activations and FLOPs of the outline are those of the loaded network on the CPU."""
    settings = config(data, model=model, micro_batch_size=3, objective="sft", settings={}, batch_size=6, ema=None)
    found = estimate(settings)
    family = load_family(model)
    weights = LoraWeights(family)
    weights.create("policy", lora_settings(settings, family), seed=0)
    inputs = [torch.zeros_like(one, device="cpu") for one in _inputs(family, settings, 3)[:2]]
    condition = {key: torch.zeros(3, *shape) for key, shape in family.condition_shapes.items()}
    with weights.active("policy") as predict:
        _, both, kept = _count(lambda: predict(inputs[0], inputs[1], condition), family.denoiser)
    trained = sum(p.numel() for p in weights.parameters("policy").values())
    assert found.memory["gradients"] == 4 * trained and found.memory["optimiser"] == 8 * trained
    assert found.memory["model"] == sum(4 * p.numel() for p in family.denoiser.parameters())
    assert found.memory["activations"] == pytest.approx(kept, rel=0.01)
    assert found.flops == pytest.approx(2 * both, rel=0.01), "two micro-batches"


def test_what_costs_more_is_counted(data: Path) -> None:
    plain = estimate(config(data))
    assert estimate(config(data, micro_batch_size=4)).memory["activations"] * 2 == plain.memory["activations"]
    assert estimate(config(data, mixed_precision="bf16")).memory["activations"] < 0.7 * plain.memory["activations"]
    assert estimate(config(data, batch_size=16)).flops == 2 * plain.flops
    assert estimate(config(data, gradient_checkpointing=True)).flops > plain.flops
    full = estimate(config(data, train="full"))
    assert full.memory["copies of trained weights"] == 2 * full.memory["gradients"], "the average and the reference"
    sampling = config(data, objective="diffusion_dro", settings={}, samples={"num_steps": 20})
    assert estimate(sampling).flops > 3 * plain.flops
    more = sampling.replace(samples={"num_steps": 20, "guidance_scale": 2.0, "refresh_every": 4})
    assert estimate(more).flops > 1.5 * estimate(sampling).flops
    assert estimate(more).disk["checkpoints"] > estimate(sampling).disk["checkpoints"]


def test_the_cache_takes_what_was_said(data: Path, cache: Path) -> None:
    said = estimate(config(data)).disk["latent cache"]
    taken = sum(file.stat().st_size for file in cache.rglob("*.safetensors"))
    assert said == pytest.approx(taken, rel=0.05)


def test_the_matrix_rate_is_plausible() -> None:
    assert 1e9 < matrix_rate(torch.device("cpu"), torch.float32) < 1e15
