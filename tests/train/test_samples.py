"""Own samples in the loop: live, stale, against predictions or true noise."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from train_helpers import config, equal, interrupt_at, tensors

from diffalign.core import DiffalignError
from diffalign.models import LoraSettings, load_family
from diffalign.train import LoraWeights, SamplesConfig, SampleSource, train


def source(**settings: Any) -> tuple[SampleSource, dict[str, Any]]:
    family = load_family("tiny-sd")
    weights = LoraWeights(family)
    weights.create("policy", LoraSettings(rank=3, alpha=3, targets=family.lora_targets), seed=0)
    made = SampleSource(SamplesConfig(num_steps=4, **settings), weights, seed=1)
    shape = family.latent_shape(16, 16)
    noise = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    arguments = {
        "places": [0, 1, 2],
        "shape": shape,
        "condition": family.encode_prompts(["a photo of grass", "a photo of gravel", "a photo of bricks"]),
        "empty": family.encode_prompts([""]),
        "shared_noise": noise,
        "timesteps": torch.tensor([100, 500, 900]),
    }
    return made, arguments


def test_states_of_the_trajectory_are_scored_against_what_the_policy_said_there() -> None:
    made, arguments = source()
    own = made.draw(5, **arguments)
    with torch.no_grad(), made.weights.active("policy") as predict:
        said = predict(own.noisy, own.timesteps, arguments["condition"])
    torch.testing.assert_close(said, own.target, rtol=1e-4, atol=1e-4)
    again = made.draw(5, **arguments)
    assert torch.equal(own.noisy, again.noisy) and torch.equal(own.timesteps, again.timesteps)
    alone = made.draw(
        5, **arguments | {"places": [1], "condition": {k: v[1:2] for k, v in arguments["condition"].items()}}
    )
    assert torch.equal(alone.timesteps, own.timesteps[1:2])
    torch.testing.assert_close(alone.noisy, own.noisy[1:2], rtol=1e-4, atol=1e-4)
    grids = {tuple(*made._grid(made.weights.family, step).values()) for step in range(20)}
    assert len(grids) > 15 and all(0 <= level < 1000 for grid in grids for level in grid)


def test_a_flows_trajectory_meets_other_noise_levels_at_every_step() -> None:
    family = load_family("tiny-sd3")
    weights = LoraWeights(family)
    weights.create("policy", LoraSettings(rank=3, alpha=3, targets=family.lora_targets), seed=0)
    made = SampleSource(SamplesConfig(num_steps=3), weights, seed=1)
    grids = [made._grid(family, step)["sigmas"] for step in range(20)]
    assert len({round(level, 6) for grid in grids for level in grid}) == 60
    assert all(1 >= high > low > 0 for grid in grids for high, low in pairwise(grid))
    condition = family.encode_prompts(["a photo of grass", "a photo of gravel"])
    own = [
        made.draw(
            step,
            places=[0, 1],
            shape=family.latent_shape(16, 16),
            condition=condition,
            empty=family.encode_prompts([""]),
            shared_noise=torch.zeros(2, *family.latent_shape(16, 16)),
            timesteps=torch.tensor([1.0, 2.0]),
        )
        for step in (0, 1)
    ]
    assert set(own[0].timesteps.tolist()).isdisjoint(own[1].timesteps.tolist())


def test_finished_samples_are_noised_again_with_shared_or_other_noise() -> None:
    for kind in ("shared", "independent"):
        made, arguments = source(state="renoised", target="noise", noise=kind)
        own = made.draw(5, **arguments)
        assert own.timesteps.tolist() == [100, 500, 900]
        assert torch.equal(own.target, arguments["shared_noise"]) == (kind == "shared")


def test_a_renoised_sample_may_be_scored_against_the_policys_own_output() -> None:
    made, arguments = source(state="renoised", noise="shared")
    own = made.draw(5, **arguments)
    with torch.no_grad(), made.weights.active("policy") as predict:
        said = predict(own.noisy, own.timesteps, arguments["condition"])
    assert torch.equal(said, own.target) and own.timesteps.tolist() == [100, 500, 900]
    with pytest.raises(DiffalignError, match="no true noise"):
        SamplesConfig(target="noise")


def test_a_stale_policy_changes_only_when_refreshed() -> None:
    made, _ = source(refresh_every=3)
    with torch.no_grad():
        for value in made.weights.parameters("policy").values():
            value.add_(0.1)
    old = {key: value.clone() for key, value in made.weights.parameters("old").items()}
    made.before_step(1)
    assert equal(dict(made.weights.parameters("old")), old)
    made.before_step(3)
    assert equal(dict(made.weights.parameters("old")), dict(made.weights.parameters("policy")))


def dro(data: Path, **changes: Any) -> Any:
    values = {"objective": "diffusion_dro", "settings": {}, "samples": {"num_steps": 3}, "ema": None, "batch_size": 4}
    return config(data, **values | {"micro_batch_size": 4} | changes)


def test_published_rule_logs_gate_and_drift(data: Path, cache: Path, tmp_path: Path) -> None:
    """At the first step policy = reference: no gain, no drift, loss = margin, every gate open."""
    train(dro(data), tmp_path, cache=cache)
    first = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert first["loss"] == pytest.approx(0.001, abs=1e-5) and first["gate"] == 1 and abs(first["drift"]) < 1e-5


def test_stale_policies_resume_bit_for_bit(data: Path, cache: Path, tmp_path: Path, monkeypatch: Any) -> None:
    settings = dro(data, num_steps=5, samples={"num_steps": 2, "refresh_every": 3})
    train(settings, tmp_path / "whole", cache=cache)
    interrupt_at(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        train(settings, tmp_path / "parts", cache=cache)
    (saved,) = (tmp_path / "parts" / "checkpoints").glob("step-*")
    assert load_file(saved / "old.safetensors")
    train(settings, tmp_path / "parts", cache=cache)
    assert equal(tensors(tmp_path / "whole"), tensors(tmp_path / "parts"))


def test_samples_are_asked_for_exactly_when_needed(data: Path, tmp_path: Path) -> None:
    with pytest.raises(DiffalignError, match="needs the policy's own samples"):
        train(dro(data, samples=None), tmp_path / "a")
    with pytest.raises(DiffalignError, match="does not use"):
        train(config(data, samples={}), tmp_path / "b")
