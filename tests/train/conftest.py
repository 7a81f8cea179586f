"""Six pairs of crops and their latents, made once per module."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffalign.core import numpy_generator
from diffalign.data import Preferences, PreferenceWriter, apply_flaw, draw_crop
from diffalign.models import load_family
from diffalign.train import fill_cache
from diffalign.types import Pair


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "pairs"
    generator = numpy_generator("pairs for the loop")
    with PreferenceWriter(folder, form="pair") as writer:
        for number in range(6):
            crop = draw_crop("train", generator, size=32)
            flawed = apply_flaw("blur", crop.image, generator)
            writer.write(Pair(id=f"row-{number}", prompt=crop.caption, chosen=crop.image, rejected=flawed))
    return folder


@pytest.fixture(scope="module")
def cache(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    fill_cache(folder, load_family("tiny-sd3"), Preferences(data), resolution=32, flip=True)
    return folder
