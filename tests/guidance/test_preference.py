"""Formulas of preference guidance and their options, on tensors alone."""

from __future__ import annotations

import doctest
import importlib
from typing import Any

import pytest
import torch

from diffalign.core import DiffalignError
from diffalign.guidance import (
    BASE,
    PGD,
    Contrastive,
    Pass,
    PlusMinus,
    PreferenceGuide,
    Weighted,
    capped_scale,
    contrastive,
    pgd,
    weighted,
)

MODULES = ("chats", "contrastive", "diffusion_npo", "merging", "nag", "pgd", "strength")


def preds(*names: str) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(3, 4, 5, 6, generator=generator) for name in (BASE, *names)}


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_docstrings_run(name: str) -> None:
    found = doctest.testmod(importlib.import_module(f"diffalign.guidance.{name}"))
    assert found.attempted > 0 and found.failed == 0


def test_pgd_is_the_base_at_0_and_the_tuned_model_at_1_bit_for_bit() -> None:
    """In floating point base + (tuned - base) is not tuned; the formula is written so that it is."""
    one = preds("tuned")
    base, tuned = one[BASE], one["tuned"]
    assert torch.equal(pgd(base, tuned, scale=0.0), base) and torch.equal(pgd(base, tuned, scale=1.0), tuned)
    assert not torch.equal(base + (tuned - base), tuned)
    torch.testing.assert_close(pgd(base, tuned, scale=2.5), base + 2.5 * (tuned - base))
    rows = pgd(base, tuned, scale=torch.tensor([0.0, 1.0, 2.5]))
    assert torch.equal(rows[0], base[0]) and torch.equal(rows[1], tuned[1])
    torch.testing.assert_close(rows[2], base[2] + 2.5 * (tuned - base)[2])


def test_pgd_of_a_gaussian_with_a_linear_reward_is_the_stronger_tilt() -> None:
    """x0 ~ N(0, 1), reward x0 / beta: the tilt N(1/beta, 1); w times the difference is the tilt with beta / w.

    x = a x0 + b e has E[e | x] = b (x - a m) for mean m, so the noise moves by -a b m: linear in m.
    """
    a, b, x = 0.6, 0.8, torch.linspace(-3, 3, 7, dtype=torch.float64)

    def noise(mean: float) -> torch.Tensor:
        return b * (x - a * mean)

    torch.testing.assert_close(pgd(noise(0), noise(0.5), scale=4.0), noise(2.0))


def test_several_modules_and_their_special_cases() -> None:
    one = preds("p", "n")
    base, p, n = one[BASE], one["p"], one["n"]
    torch.testing.assert_close(weighted(base, [(1.0, p)], scale=2.0), pgd(base, p, scale=2.0))
    both = weighted(base, [(1.0, p), (-1.0, n)], scale=2.0)
    torch.testing.assert_close(both, contrastive(base, p, n, scale=2.0))
    expected = base + 2 * (0.5 * (p - base) - 3 * (n - base))
    torch.testing.assert_close(weighted(base, [(0.5, p), (-3.0, n)], scale=2.0), expected)
    guide = Weighted(positives={"a": 0.5, "b": 0.5}, negatives={"c": 1.0}, scale=1.0)
    assert guide.modules == {"positive0": "a", "positive1": "b", "negative0": "c"} and not guide.needs_base
    assert Weighted(positives={"a": 2.0}, negatives={"c": 1.0}, scale=1.0).needs_base
    assert PlusMinus(module="a", strength=0.5, scale=1.0).evaluations == {
        "plus": {"module": 0.5},
        "minus": {"module": -0.5},
    }


def test_the_cap_bounds_what_is_added_and_spares_small_differences() -> None:
    one = preds("positive", "negative")
    one["negative"][1] = one["positive"][1] + 1e-3
    one["negative"][2] = one["positive"][2]
    guide = Contrastive(positive="p", negative="n", scale=5.0, cap=0.25)
    added = guide.combine(one, branch="both", progress=0.0) - one[BASE]
    share = added.flatten(1).norm(dim=1) / one[BASE].flatten(1).norm(dim=1)
    assert share[0] == pytest.approx(0.25, rel=1e-4) and 0 < share[1] < 0.25 and share[2] == 0
    scales = capped_scale(one[BASE], one["positive"] - one["negative"], scale=5.0, cap=0.25)
    assert scales[0] < 5 and scales[1] == 5 and scales[2] == 5


@pytest.mark.parametrize(
    ("settings", "progress", "scale"),
    [
        ({}, 0.0, 4.0),
        ({"start": 0.25}, 0.2, 0.0),
        ({"start": 0.25}, 0.25, 4.0),
        ({"stop": 0.5}, 0.5, 0.0),
        ({"stop": 1.0}, 1.0, 4.0),
        ({"schedule": ((0.0, 1.0), (0.5, 0.5), (0.75, 0.0))}, 0.25, 3.0),
        ({"schedule": ((0.2, 0.5), (0.8, 0.0))}, 0.1, 2.0),
        ({"schedule": ((0.2, 0.5), (0.8, 0.0))}, 0.9, 0.0),
    ],
)
def test_windows_and_schedules(settings: dict[str, Any], progress: float, scale: float) -> None:
    guide = PGD(tuned="t", scale=4.0, **settings)
    assert guide.scale_at(progress) == pytest.approx(scale) and guide.timed == (settings not in ({}, {"stop": 1.0}))
    assert set(guide.passes(progress)) == ({BASE, "tuned"} if scale else {BASE})


def test_the_conditional_branch_alone_and_scale_0_ask_for_less() -> None:
    guide = Contrastive(positive="p", negative="n", scale=2.0, branch="cond")
    assert guide.passes(0.0)["positive"] == Pass(adapters={"positive": 1.0}, branch="cond") and guide.needs_branches
    off = Contrastive(positive="p", negative="n", scale=0.0, branch="cond", stop=0.5)
    assert off.adapters == {} and not off.needs_branches and not off.timed and set(off.passes(0.0)) == {BASE}


@pytest.mark.parametrize(
    "build",
    [
        lambda: PGD(tuned="t", scale=-1.0),
        lambda: PGD(tuned="t", scale=float("nan")),
        lambda: PGD(tuned="t", scale=1.0, branch="uncond"),  # type: ignore[arg-type]
        lambda: PGD(tuned="t", scale=1.0, start=0.5, stop=0.5),
        lambda: PGD(tuned="t", scale=1.0, cap=0.0),
        lambda: PGD(tuned="t", scale=1.0, schedule=((0.5, 1.0), (0.2, 0.0))),
        lambda: PGD(tuned="t", scale=1.0, schedule=((0.5, -1.0),)),
        lambda: PlusMinus(module="t", scale=1.0, strength=0.0),
        lambda: Weighted(positives={}, scale=1.0),
        lambda: Weighted(positives={"a": -1.0}, scale=1.0),
    ],
)
def test_settings_out_of_range_are_errors(build: Any) -> None:
    with pytest.raises(DiffalignError, match="expected"):
        build()


def test_every_method_is_a_preference_guide() -> None:
    assert all(issubclass(kind, PreferenceGuide) for kind in (PGD, Contrastive, PlusMinus, Weighted))
