"""Draws depend on seed, step and place alone; noising shares what it says it shares."""

from __future__ import annotations

import pytest
import torch

from diffalign.models import load_family
from diffalign.train import Draws, draw_rows, forward_noiser, independent_noiser

SHAPE = (4, 5, 6)


@pytest.fixture(scope="module", params=["tiny-sd", "tiny-sd3"])
def process(request: pytest.FixtureRequest):  # type: ignore[no-untyped-def]
    return load_family(request.param).process


def parts(draws: Draws) -> list[torch.Tensor]:
    return [draws.timesteps, draws.prompt_drop, draws.flip, *draws.noise.values(), *draws.posterior.values()]


def test_eight_rows_at_once_equal_one_by_one_and_in_any_order(process) -> None:  # type: ignore[no-untyped-def]
    whole = draw_rows(process, range(8), SHAPE, seed=3, step=7)
    singles = [draw_rows(process, [place], SHAPE, seed=3, step=7) for place in range(8)]
    for position, part in enumerate(parts(whole)):
        assert torch.equal(part, torch.cat([parts(single)[position] for single in singles]))
    mixed = draw_rows(process, [5, 2], SHAPE, seed=3, step=7)
    assert all(torch.equal(a, b[[5, 2]]) for a, b in zip(parts(mixed), parts(whole), strict=True))


def test_other_seeds_steps_and_places_draw_otherwise(process) -> None:  # type: ignore[no-untyped-def]
    base = draw_rows(process, [0], SHAPE, seed=3, step=7).noise["chosen"]
    for seed, step, place in ((4, 7, 0), (3, 8, 0), (3, 7, 1)):
        assert not torch.equal(base, draw_rows(process, [place], SHAPE, seed=seed, step=step).noise["chosen"])


def test_sides_share_noise_and_timestep_unless_independent(process) -> None:  # type: ignore[no-untyped-def]
    """x_w - x_l = a (x0_w - x0_l) when the noise is shared."""
    draws = draw_rows(process, range(3), SHAPE, seed=0, step=0)
    latents = {side: torch.randn(3, *SHAPE) for side in ("chosen", "rejected")}
    shared = forward_noiser(process, latents, draws)
    a, b = (level.reshape(3, 1, 1, 1) for level in process.levels(draws.timesteps))
    difference = shared["chosen"].noisy - shared["rejected"].noisy
    torch.testing.assert_close(difference, a * (latents["chosen"] - latents["rejected"]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        shared["chosen"].noisy, a * latents["chosen"] + b * draws.noise["chosen"], rtol=1e-4, atol=1e-5
    )
    apart = independent_noiser(process, latents, draws)
    assert torch.equal(apart["chosen"].noisy, shared["chosen"].noisy)
    assert not torch.allclose(apart["rejected"].noisy, shared["rejected"].noisy)
    assert torch.equal(apart["rejected"].timesteps, shared["rejected"].timesteps)
