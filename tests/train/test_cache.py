"""The latent cache holds what the stages look at, to the same bits in whatever order they come."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from train_helpers import config

from diffalign.data import Preferences
from diffalign.models import Family, load_family
from diffalign.train import estimate, fill_cache, train
from diffalign.train.rows import open_cache


@pytest.fixture(scope="module")
def family() -> Family:
    return load_family("tiny-sd3")


def held(folder: Path, family: Family, data: Path) -> list[tuple[bool, ...]]:
    """Per row, whether the cache holds its chosen and its rejected image."""
    cache = open_cache(folder, family, resolution=32)
    return [tuple(map(cache.has_latents, hashes)) for hashes in Preferences(data).image_hashes()]


def test_a_run_encodes_the_sides_that_it_looks_at(data: Path, family: Family, tmp_path: Path) -> None:
    one = {"settings": {}, "num_steps": 1, "batch_size": 2, "flip": False, "ema": None}
    own = {"samples": {"num_steps": 1}}
    for objective, changes, wanted in (
        ("self_npo", own, (False, False)),
        ("sft", {}, (True, False)),
        ("cw_sft", {"settings": {"rejected_weight": 0.5}}, (True, True)),
    ):
        settings = config(data, objective=objective, **one | changes)
        train(settings, tmp_path / objective, cache=tmp_path / "latents")
        assert held(tmp_path / "latents", family, data) == [wanted] * 6


@pytest.mark.parametrize("first", ["chosen", "rejected"])
def test_a_side_is_encoded_to_the_same_bits_alone_and_beside_the_other(
    data: Path, family: Family, tmp_path: Path, first: str
) -> None:
    """Batches of 3 would mix 4 rows' sides."""
    rows = Preferences(data)[:4]
    settings = {"resolution": 32, "flip": False, "batch_size": 3}
    fill_cache(tmp_path / "parts", family, rows, sides=[first], **settings)
    parts = fill_cache(tmp_path / "parts", family, rows, **settings)
    whole = fill_cache(tmp_path / "whole", family, rows, **settings)
    for hashes in rows.image_hashes():
        for sha256 in hashes:
            one, two = parts.latents(sha256), whole.latents(sha256)
            assert torch.equal(one.mean, two.mean) and torch.equal(one.std, two.std)


def test_the_estimate_counts_the_sides_that_are_encoded(data: Path) -> None:
    """Twelve images, six and none, each 2 views of 2 x 4 x 16 x 16 float32 numbers."""
    sizes = [
        estimate(config(data, **changes)).disk["latent cache"]
        for changes in (
            {},
            {"objective": "sft", "settings": {}},
            {"objective": "self_npo", "settings": {}, "samples": {}},
        )
    ]
    assert sizes[0] - sizes[1] == sizes[1] - sizes[2] == 6 * 2 * 2 * 4 * 16 * 16 * 4
