"""Noise by inversion, and states of broken-off trajectories noised further."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from train_helpers import config, equal, interrupt_at, metrics, tensors

from diffalign.core import DiffalignError, torch_generator
from diffalign.models import Process, load_family
from diffalign.train import SamplesConfig, train
from diffalign.train.inversion import invert
from diffalign.train.samples import noised_further


@pytest.fixture(scope="module", params=["tiny-sd", "tiny-sd3"])
def process(request: pytest.FixtureRequest) -> Process:
    return load_family(request.param).process


def gaussian(process, variance: float):  # type: ignore[no-untyped-def]
    """The network of Gaussian data N(0, variance): the exact expectation of its target."""

    def predict(noisy, timesteps, condition):  # type: ignore[no-untyped-def]
        a, b = (level.view(-1, 1, 1, 1) for level in process.levels(timesteps))
        clean, noise = (share * noisy / (a**2 * variance + b**2) for share in (a * variance, b))
        return process.target(clean, noise, timesteps)

    return predict


def test_inversion_of_gaussian_data_follows_the_exact_flow(process) -> None:  # type: ignore[no-untyped-def]
    """The probability flow of N(0, v) scales: x_t = x_0 sqrt((a^2 v + b^2) / v), up to the solver's error."""
    variance = 0.49
    clean = 0.7 * torch.randn(4, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    timesteps = torch.tensor([900, 500, 100, 20]).to(process.draw_timesteps(1, torch.Generator()).dtype)
    a, b = (level.view(-1, 1, 1, 1) for level in process.levels(timesteps))
    exact = clean * ((a**2 * variance + b**2) / variance).sqrt()
    errors = []
    for averaged, steps in ((False, 20), (True, 20), (False, 200)):
        found = invert(
            process, gaussian(process, variance), clean, timesteps, {}, averaged=averaged,
            noises=torch.zeros(steps, *clean.shape),
        )  # fmt: skip
        torch.testing.assert_close(found.noisy, a * clean + b * (found.noisy - a * clean) / b)
        errors.append(float((found.noisy - exact).abs().mean()))
    assert errors[2] < 0.02 and errors[1] < errors[0], errors


def test_the_target_is_the_noise_that_leads_there_in_one_step(process) -> None:  # type: ignore[no-untyped-def]
    clean = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(1))
    timesteps = torch.tensor([700, 300]).to(process.draw_timesteps(1, torch.Generator()).dtype)
    noises = torch.randn(5, 2, 4, 3, 3, generator=torch.Generator().manual_seed(2))
    found = invert(process, gaussian(process, 1.0), clean, timesteps, {}, extra_noise=0.1, noises=noises)
    noise = process.to_noise(found.target, found.noisy, timesteps)
    torch.testing.assert_close(process.add_noise(clean, noise, timesteps), found.noisy, rtol=1e-3, atol=1e-4)
    still = invert(process, gaussian(process, 1.0), clean, timesteps, {}, noises=torch.zeros_like(noises))
    assert not torch.allclose(still.noisy, found.noisy)


def test_noising_further_keeps_the_marginal(process) -> None:  # type: ignore[no-untyped-def]
    """States of variance a^2 v + b^2 have, later on, the variance of that level."""
    count, variance = 4000, 0.25
    timesteps = torch.full((count,), 400).to(process.draw_timesteps(1, torch.Generator()).dtype)
    a, b = (level.view(-1, 1, 1, 1) for level in process.levels(timesteps))
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(count, 1, 2, 2, generator=generator) * (a**2 * variance + b**2).sqrt()
    generators = [torch_generator("further", row) for row in range(count)]
    preds = gaussian(process, variance)(states, timesteps, {})
    found = noised_further(process, states, preds, timesteps, generators)
    assert bool((found.timesteps > timesteps).all()) and float(found.timesteps.float().max()) > 990
    to_a, to_b = (level.view(-1, 1, 1, 1) for level in process.levels(found.timesteps))
    scaled = found.noisy / (to_a**2 * variance + to_b**2).sqrt()
    assert float(scaled.var()) == pytest.approx(1.0, abs=0.05)
    torch.testing.assert_close(
        process.to_x0(found.target, found.noisy, found.timesteps)[to_a.flatten() > 0.2],
        process.to_x0(preds, states, timesteps)[to_a.flatten() > 0.2],
        rtol=1e-3, atol=1e-3,
    )  # fmt: skip


@pytest.mark.parametrize("model", ["tiny-sd", "tiny-sd3"])
def test_training_on_inverted_noise_resumes_exactly(
    model: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(
        data, model=model, inversion={"num_steps": 2}, num_steps=2, checkpoint_every=1, batch_size=4, micro_batch_size=2
    )
    train(settings, tmp_path / "whole")
    assert metrics(tmp_path / "whole")[0]["loss"] == pytest.approx(0.693147, abs=1e-6)
    interrupt_at(monkeypatch, 1)
    cache = tmp_path / "whole" / "latents"
    with pytest.raises(KeyboardInterrupt):
        train(settings, tmp_path / "parts", cache=cache)
    train(settings, tmp_path / "parts", cache=cache)
    assert equal(tensors(tmp_path / "whole"), tensors(tmp_path / "parts"))


@pytest.mark.parametrize("model", ["tiny-sd", "tiny-sd3"])
def test_self_npo_trains_on_broken_off_trajectories(model: str, data: Path, tmp_path: Path) -> None:
    samples = {"state": "truncated", "num_steps": 6, "truncate": 2, "guidance_scale": 0.0, "refresh_every": 100}
    settings = config(data, model=model, objective="self_npo", settings={}, samples=samples, num_steps=2, batch_size=4)
    train(settings, tmp_path)
    assert all(0 < row["loss"] < 10 for row in metrics(tmp_path))


def test_samples_that_contradict_themselves_are_refused() -> None:
    for settings, words in (
        ({"state": "truncated", "num_steps": 5, "truncate": 5}, "must stay below"),
        ({"state": "truncated", "target": "noise"}, "a truncated has no true noise"),
    ):
        with pytest.raises(DiffalignError, match=words):
            SamplesConfig(**settings)
