"""The embedded photographs: strips that never overlap, crops that never cross them, captions that tell the truth."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from PIL import Image

from diffalign.core import DiffalignError, numpy_generator
from diffalign.data import FLAWS, PHOTOGRAPHS, apply_flaw, captions, draw_crop, load_photograph, strips, subject_index
from diffalign.data.photographs import max_side, photograph

SPLITS = ("train", "validation", "held_out")


def inside(box: tuple[int, ...], strip: tuple[int, ...]) -> bool:
    return box[0] >= strip[0] and box[1] >= strip[1] and box[2] <= strip[2] and box[3] <= strip[3]


def overlap(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def test_sixteen_photographs_with_a_licence_each() -> None:
    assert len(PHOTOGRAPHS) == 16 == len({photo.subject for photo in PHOTOGRAPHS})
    for photo in PHOTOGRAPHS:
        assert photo.license and photo.attribution
        assert load_photograph(photo.name).mode == "RGB"


@pytest.mark.parametrize("photo", PHOTOGRAPHS, ids=lambda photo: photo.name)
def test_strips_cover_the_photograph_without_overlap(photo: object) -> None:
    boxes = [box for split in SPLITS for box in strips(photo, split)]
    assert [len(strips(photo, split)) for split in SPLITS] == [2, 1, 1]
    assert not any(overlap(a, b) for a, b in itertools.combinations(boxes, 2))
    width, height = load_photograph(photo.name).size
    assert sum((b[2] - b[0]) * (b[3] - b[1]) for b in boxes) == width * height
    thinnest = min(min(b[2] - b[0], b[3] - b[1]) for b in boxes)
    assert 64 <= max_side(photo) <= thinnest


@pytest.mark.parametrize("split", SPLITS)
def test_no_crop_crosses_a_border(split: str) -> None:
    generator = numpy_generator("test", split)
    for _ in range(400):
        crop = draw_crop(split, generator, size=8)
        photo = PHOTOGRAPHS[crop.subject]
        assert crop.image.size == (8, 8)
        assert any(inside(crop.box, strip) for strip in strips(photo, split))
        others = [strip for other in SPLITS if other != split for strip in strips(photo, other)]
        assert not any(overlap(crop.box, strip) for strip in others)
        assert crop.caption in captions() and subject_index(crop.caption) == crop.subject


def test_crop_pixels_come_from_the_box_alone() -> None:
    """A box resampled with its surroundings in reach would leak a neighbouring strip's pixels."""
    generator = numpy_generator("leak")
    for _ in range(20):
        crop = draw_crop("validation", generator, size=16, flip=False)
        cut = load_photograph(PHOTOGRAPHS[crop.subject].name).crop(crop.box)
        alone = cut.resize((16, 16), Image.Resampling.LANCZOS)
        assert np.array_equal(np.asarray(crop.image), np.asarray(alone))


def test_same_seed_same_crops_and_flips_swap_sides() -> None:
    first, second = ([draw_crop("train", numpy_generator("seed", n), size=8) for n in range(50)] for _ in range(2))
    assert [(c.caption, c.box, c.flipped) for c in first] == [(c.caption, c.box, c.flipped) for c in second]
    flower = next(i for i, photo in enumerate(PHOTOGRAPHS) if photo.name == "flower")
    sides = set()
    for n in range(200):
        crop = draw_crop("train", numpy_generator("side", n), size=8, plain_share=0.0, subject=flower)
        width = load_photograph("flower").width
        centre = (crop.box[0] + crop.box[2]) / 2 / width
        centre = 1 - centre if crop.flipped else centre
        assert crop.caption.endswith(("left", "middle", "right")[int(3 * centre)])
        sides.add((crop.flipped, crop.caption.rsplit(", ")[1]))
    assert len(sides) == 6


def test_captions_are_distinct_and_enough() -> None:
    assert len(captions(plain=False)) == len(set(captions(plain=False))) == 96
    assert len(set(captions())) == 112
    assert {subject_index(text) for text in captions()} == set(range(16))


def test_unknown_names_list_the_nearest() -> None:
    with pytest.raises(DiffalignError, match="astronaut"):
        photograph("astronut")
    with pytest.raises(DiffalignError, match="caption"):
        subject_index("a photo of a zebra")
    with pytest.raises(DiffalignError, match="held_out"):
        strips(PHOTOGRAPHS[0], "test")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", FLAWS.names())
def test_flaws_damage_keep_the_size_and_repeat(name: str) -> None:
    crop = draw_crop("train", numpy_generator("flaw"), size=32, subject=0).image
    before = crop.tobytes()
    flawed = apply_flaw(name, crop, numpy_generator("draw", name))
    again = apply_flaw(name, crop, numpy_generator("draw", name))
    assert crop.tobytes() == before, "the original was changed"
    assert flawed.size == crop.size and flawed.mode == "RGB"
    assert flawed.tobytes() == again.tobytes()
    difference = np.abs(np.asarray(flawed, dtype=float) - np.asarray(crop, dtype=float)).mean()
    assert difference > 2
