"""Images become data URIs that decode to what they were; masks become outlines that enclose them."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image
from report_helpers import plain

from diffalign.report.pictures import embed, outline


def decoded(uri: str) -> Image.Image:
    kind, data = re.fullmatch(r"data:image/(png|webp|jpeg);base64,([A-Za-z0-9+/=]+)", uri).groups()
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    assert image.format.lower() == kind
    return image.convert("RGB")


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_a_tiny_image_keeps_every_pixel():
    image = noise(32, 24)
    picture = embed(image, max_side=384)
    assert np.array_equal(np.asarray(decoded(picture.uri)), np.asarray(image))
    assert (picture.width, picture.height, picture.is_tiny) == (32, 24, True)


def test_a_large_image_is_reduced_and_small():
    picture = embed(noise(900, 600), max_side=300)
    assert decoded(picture.uri).size == (300, 200) == (picture.width, picture.height)
    assert not picture.is_tiny and len(picture.uri) < 300 * 200 * 3 / 2


def test_an_image_of_one_colour_stays_that_colour():
    assert decoded(embed(plain("#336699", (500, 400)), 384).uri).getpixel((7, 9)) == pytest.approx(
        (51, 102, 153), abs=3
    )


def test_grey_and_palette_images_are_shown_too():
    assert decoded(embed(Image.linear_gradient("L"), 64).uri).size == (64, 64)


def corners(path: str) -> np.ndarray:
    return np.array([[float(value) for value in point.split(",")] for point in re.findall(r"[\d.]+,[\d.]+", path)])


def test_an_outline_runs_along_the_edge_of_its_mask():
    """Columns 2 to 5 and rows 1 to 4 are inside, so the edge is at x = 2 and 6, y = 1 and 5."""
    mask = Image.new("L", (10, 7))
    mask.paste(255, (2, 1, 6, 5))
    found = outline(mask)
    points = corners(found.path)
    assert points.min(0).tolist() == [2, 1] and points.max(0).tolist() == [6, 5]
    assert (found.width, found.height) == (10, 7) and found.path.count("M") == 1


def test_a_hole_has_an_edge_of_its_own():
    mask = Image.new("L", (12, 11))
    mask.paste(255, (1, 1, 11, 10))
    mask.paste(0, (4, 4, 7, 6))
    assert outline(mask).path.count("M") == 2


def test_an_empty_mask_has_no_outline():
    assert outline(Image.new("L", (6, 5), 127)).path == ""


def test_a_large_mask_is_reduced_before_it_is_traced():
    mask = Image.new("L", (1200, 600))
    mask.paste(255, (300, 150, 900, 450))
    found = outline(mask)
    assert (found.width, found.height) == (256, 128) and len(corners(found.path)) < 20
    assert corners(found.path).mean(0) == pytest.approx([128, 64], abs=26)
