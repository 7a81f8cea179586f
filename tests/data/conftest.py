"""Small images and rows that the tests of this folder share."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffalign.types import CandidateSet, Pair, Provenance


def make_image(seed: int = 0, width: int = 7, height: int = 5) -> Image.Image:
    """Random pixels: no two seeds agree."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def make_bytes(image: Image.Image, file_format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def make_pair(number: int, **changes: Any) -> Pair:
    fields: dict[str, Any] = {
        "id": f"row-{number}",
        "prompt": f"a photograph of {number} cats",
        "chosen": make_image(2 * number),
        "rejected": make_image(2 * number + 1),
        "label": 0.75,
        "scores": {"pickscore": (21.5 + number, 20.25), "hpsv3": (7.0, -3.5)},
        "provenance": Provenance(
            source="test", license="CC0-1.0", method="noise", parameters={"strength": 0.5, "n": [1, 2]}, seed=number
        ),
    }
    return Pair(**{**fields, **changes})


def make_candidates(number: int, num_images: int = 3, **changes: Any) -> CandidateSet:
    fields: dict[str, Any] = {
        "id": f"set-{number}",
        "prompt": f"{number} dogs",
        "images": tuple(make_image(100 * number + k, width=6 + k) for k in range(num_images)),
        "scores": {"pickscore": tuple(20.0 + k for k in range(num_images))},
    }
    return CandidateSet(**{**fields, **changes})


@pytest.fixture
def image() -> Callable[..., Image.Image]:
    return make_image


@pytest.fixture
def encoded() -> Callable[..., bytes]:
    return make_bytes


@pytest.fixture
def pair() -> Callable[..., Pair]:
    return make_pair


@pytest.fixture
def candidates() -> Callable[..., CandidateSet]:
    return make_candidates
