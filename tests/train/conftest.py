"""Six pairs of crops and their latents, made once per module."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from diffalign.data import Preferences
from diffalign.models import load_family
from diffalign.train import fill_cache


@pytest.fixture(scope="module")
def data(make_pairs: Callable[[int, str], Path]) -> Path:
    return make_pairs(6, "blur")


@pytest.fixture(scope="module")
def cache(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    fill_cache(folder, load_family("tiny-sd3"), Preferences(data), resolution=32, flip=True)
    return folder
