"""What tests of several folders need."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from diffalign.core import numpy_generator
from diffalign.data import PreferenceWriter, apply_flaw, draw_crop
from diffalign.types import Pair


@pytest.fixture(scope="session")
def make_pairs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, str], Path]:
    """Makes a folder of so many pairs: training crops against the same with one flaw."""

    def make(count: int, flaw: str) -> Path:
        folder = tmp_path_factory.mktemp("data") / "pairs"
        generator = numpy_generator("pairs for tests", flaw)
        with PreferenceWriter(folder, form="pair") as writer:
            for number in range(count):
                crop = draw_crop("train", generator, size=32)
                flawed = apply_flaw(flaw, crop.image, generator)
                writer.write(Pair(id=f"row-{number}", prompt=crop.caption, chosen=crop.image, rejected=flawed))
        return folder

    return make
