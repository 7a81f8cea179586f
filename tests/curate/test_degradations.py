"""Degradations without weights, mixtures of them, and what loading refuses."""

from __future__ import annotations

import doctest
import importlib
import json
import pkgutil
import sys
from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffalign.core import Config, DiffalignError, describe, numpy_generator
from diffalign.curate import embedded_photographs
from diffalign.curate.degrade import (
    DEGRADATIONS,
    Degradation,
    Filter,
    Mixture,
    composite,
    contract,
    filter_degradation,
    filters,
    load_degradation,
)

FILTERS = ("colour_cast", "downsample", "gaussian_blur", "gaussian_noise", "jpeg", "patch_shuffle", "posterise")
DRAWN = ("colour_cast", "gaussian_noise", "patch_shuffle")  # those that the seed decides
FILLS = ("navier_stokes", "telea")
PHOTOS = [photo.image for photo in embedded_photographs("train", 5, 40)]
PROMPTS = [f"photo {number}" for number in range(5)]
SEEDS = [11, 12, 13, 14, 15]


def hole(size: tuple[int, int] = (40, 40), box: tuple[int, int, int, int] = (9, 14, 23, 31)) -> Image.Image:
    mask = Image.new("L", size)
    mask.paste(255, box)
    return mask


def pixels(images: Any) -> np.ndarray:
    return np.stack([np.asarray(image, dtype=float) for image in images])


def error(name: str, severity: float) -> float:
    damaged = load_degradation({"name": name, "severity": severity})(PHOTOS, None, PROMPTS, SEEDS)
    return float(np.abs(pixels(damaged) - pixels(PHOTOS)).mean())


@pytest.mark.parametrize("name", FILTERS)
def test_damage_grows_with_severity(name: str) -> None:
    errors = [error(name, severity) for severity in (0, 0.35, 0.55, 0.75, 1)]
    assert errors[0] < 3 and all(first + 0.3 < second for first, second in pairwise(errors))
    assert errors[-1] > 10


@pytest.mark.parametrize("name", [*FILTERS, *FILLS])
def test_an_image_depends_on_its_own_seed_alone_and_repeats(name: str) -> None:
    if name in FILLS:
        pytest.importorskip("cv2")
    degradation = load_degradation(name)
    together = degradation(PHOTOS, [hole()] * 5, PROMPTS, SEEDS)
    alone = degradation(PHOTOS[3:4], [hole()], PROMPTS[:1], SEEDS[3:4])
    assert np.array_equal(pixels(alone)[0], pixels(together)[3])
    other = degradation(PHOTOS[3:4], [hole()], PROMPTS[3:4], [99])
    assert np.array_equal(pixels(other)[0], pixels(together)[3]) == (name not in DRAWN)


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("size", [(1, 1), (2, 7), (37, 23)])
@pytest.mark.parametrize("severity", [0, 0.5, 1])
def test_any_size_is_kept(name: str, size: tuple[int, int], severity: float) -> None:
    image = PHOTOS[0].resize(size)
    before = image.tobytes()
    (damaged,) = load_degradation({"name": name, "severity": severity})([image], None, ["a"], [0])
    assert damaged is not None and damaged.size == size and damaged.mode == "RGB" and image.tobytes() == before


def test_blur_keeps_the_mean_of_linear_light_and_the_colour_of_flat_images() -> None:
    stripes = np.zeros((33, 48, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    blurred = np.asarray(filters.gaussian_blur(Image.fromarray(stripes), 1, numpy_generator(0)), dtype=float)
    assert abs(blurred[16, 24] - 188).max() <= 1  # half the light is 188 of 255 in sRGB
    flat = Image.new("RGB", (9, 7), (250, 128, 3))
    assert np.array_equal(pixels([filters.gaussian_blur(flat, 1, numpy_generator(0))]), pixels([flat]))


def test_noise_is_grey_and_as_strong_as_told() -> None:
    grey = Image.new("RGB", (61, 67), (127, 127, 127))
    noise = pixels([filters.gaussian_noise(grey, 0.25, numpy_generator(3))])[0] - 127
    assert np.array_equal(noise[..., 0], noise[..., 2]) and abs(noise[..., 0].std() - 20) < 1
    assert abs(noise.mean()) < 1


def test_a_colour_cast_keeps_black_and_the_product_of_the_light_in_the_channels() -> None:
    """The gains exp(s d) with d summing to 0 and of length 1: their product is 1, their logarithms' norm is s."""
    dark = Image.new("RGB", (2, 3), (100, 100, 100))
    light = filters._to_light(filters.colour_cast(dark, 0.6, numpy_generator(5)))[0, 0]
    logs = np.log(light / filters._to_light(dark)[0, 0])
    assert abs(logs.sum()) < 0.02 and abs(np.linalg.norm(logs) - 0.6) < 0.02
    black = Image.new("RGB", (2, 3))
    assert not np.asarray(filters.colour_cast(black, 1, numpy_generator(5))).any()


def test_shuffled_patches_are_the_photographs_own() -> None:
    image = Image.fromarray(np.arange(24 * 40 * 3, dtype=np.uint32).astype(np.uint8).reshape(24, 40, 3))
    shuffled = np.asarray(filters.patch_shuffle(image, 0.5, numpy_generator(1)))

    def cells(array: np.ndarray) -> list[bytes]:
        return [array[y : y + 3, x : x + 5].tobytes() for y in range(0, 24, 3) for x in range(0, 40, 5)]

    before, after = cells(np.asarray(image)), cells(shuffled)
    assert sorted(before) == sorted(after) and sum(a != b for a, b in zip(before, after, strict=True)) == 32


def test_posterised_pixels_have_the_levels_asked_for() -> None:
    assert set(np.unique(np.asarray(filters.posterise(PHOTOS[0], 1, numpy_generator(0))))) == {0, 255}
    assert np.array_equal(pixels([filters.posterise(PHOTOS[0], 0, numpy_generator(0))]), pixels([PHOTOS[0]]))


@pytest.mark.parametrize("name", FILLS)
def test_a_fill_comes_from_the_surroundings_and_leaves_them(name: str) -> None:
    pytest.importorskip("cv2")
    degradation, mask = load_degradation({"name": name, "radius": 2.5}), hole()
    inside = np.asarray(mask) > 0
    (filled,) = pixels(degradation(PHOTOS[:1], [mask], PROMPTS[:1], [0]))
    hidden = Image.composite(Image.new("RGB", (40, 40), "magenta"), PHOTOS[0], mask)
    assert np.array_equal(filled, pixels(degradation([hidden], [mask], ["b"], [1]))[0])
    assert np.array_equal(filled[~inside], pixels(PHOTOS[:1])[0][~inside])
    assert (filled != pixels(PHOTOS[:1])[0])[inside].mean() > 0.5
    assert degradation.severity is None and degradation.parameters == {"radius": 2.5}


def test_a_fill_without_surroundings_is_refused() -> None:
    pytest.importorskip("cv2")
    with pytest.raises(DiffalignError, match="masks that leave some of the image"):
        load_degradation("telea")(PHOTOS[:1], None, PROMPTS[:1], [0])


def test_a_missing_opencv_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(DiffalignError, match=r"diffalign\[opencv\]"):
        load_degradation("navier_stokes")


MIXED = {"name": "mixture", "of": ["jpeg", {"name": "posterise", "severity": 0.9, "weight": 3}]}


def test_a_mixture_draws_by_weight_and_says_what_it_drew() -> None:
    mixture = load_degradation(MIXED)
    methods = [mixture.method_for(seed) for seed in range(600)]
    shares = Counter(method.name for method in methods)
    assert abs(shares["posterise"] / 600 - 0.75) < 0.06 and shares["jpeg"] + shares["posterise"] == 600
    assert {method.severity for method in methods if method.name == "posterise"} == {0.9}


def test_a_mixture_damages_each_image_as_the_method_of_its_seed_does() -> None:
    mixture = load_degradation(MIXED | {"of": [*MIXED["of"], "gaussian_noise"]})
    seeds = [3, 1, 4, 15, 9]
    assert len({mixture.method_for(seed).name for seed in seeds}) > 1
    together = pixels(mixture(PHOTOS, None, PROMPTS, seeds))
    for index, seed in enumerate(seeds):
        alone = mixture.method_for(seed)(PHOTOS[index : index + 1], None, ["x"], [seed])
        assert np.array_equal(pixels(alone)[0], together[index])


def test_a_mixture_in_a_mixture_draws_anew() -> None:
    mixture = load_degradation({"name": "mixture", "of": ["downsample", MIXED]})
    names = Counter(mixture.method_for(seed).name for seed in range(600))
    assert abs(names["downsample"] / 600 - 0.5) < 0.06 and abs(names["jpeg"] / 600 - 0.125) < 0.05


def test_a_mixture_tells_its_parts_for_provenance() -> None:
    told = json.loads(json.dumps(load_degradation(MIXED).parameters))
    assert told == {
        "of": [
            {"name": "jpeg", "weight": 1.0, "parameters": {"severity": 0.5}},
            {"name": "posterise", "weight": 3.0, "parameters": {"severity": 0.9}},
        ]
    }


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf"), "2", True])
def test_a_mixture_refuses_weights_that_are_none(weight: Any) -> None:
    with pytest.raises(DiffalignError, match="weight"):
        load_degradation({"name": "mixture", "of": ["jpeg", {"name": "posterise", "weight": weight}]})
    with pytest.raises(DiffalignError, match="above 0 each"):
        Mixture([], [])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("jpg", "unknown degradation 'jpg'; nearest: jpeg"),
        ({"name": "jpeg", "severty": 0.5}, "degradation 'jpeg': unknown setting 'severty'; nearest: severity"),
        ({"name": "jpeg", "severity": 1.5}, "less than or equal to 1"),
        ({"name": "jpeg", "severity": float("nan")}, "severity"),
        ({"name": "jpeg", "severity": "0.5"}, "severity"),
        ({"severity": 0.5}, "expected a degradation's name"),
        ({"name": "jpeg", 3: 4}, "expected a degradation's name"),
        ({"name": "mixture", "of": []}, "at least 1"),
        ({"name": "mixture", "of": ["jpeg", "blr"]}, "unknown degradation 'blr'"),
        ("inpaint", "inpaint needs a model"),
        ("weaker_model", "weights: must be given"),
        ({"name": "regenerate", "severity": 0.5}, "unknown setting 'severity'"),
        ({"name": "regenerate", "solver": "heun"}, "solver"),
        ({"name": "regenerate", "weights": "tiny-sdd"}, "tiny-sd"),
        ({"name": "telea", "radius": 0}, "greater than 0"),
    ],
)
def test_loading_refuses_what_is_not_there(settings: Any, message: str) -> None:
    with pytest.raises(DiffalignError, match=message):
        load_degradation(settings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": PROMPTS[:4]}, "as many images"),
        ({"prompts": "photo"}, "as many images"),
        ({"seeds": [0, 1, 2, 3, -4]}, "seeds of at least 0"),
        ({"images": [*PHOTOS[:4], Image.new("RGB", (40, 39))]}, "one size"),
        ({"images": [image.convert("L") for image in PHOTOS]}, "RGB images"),
        ({"masks": [None] * 4 + [Image.new("L", (39, 40))]}, "one size"),
        ({"masks": [None] * 4 + [Image.new("L", (40, 40), 128)]}, "0 and 255 alone"),
        ({"masks": [Image.new("1", (40, 40))] * 5}, "RGB images and masks"),
    ],
)
def test_a_call_refuses_what_does_not_fit(changes: dict[str, Any], message: str) -> None:
    arguments = {"images": PHOTOS, "masks": None, "prompts": PROMPTS, "seeds": SEEDS} | changes
    with pytest.raises(ValueError, match=message):
        load_degradation("jpeg")(**arguments)


def test_a_degradation_must_keep_the_size() -> None:
    shrinks = Filter("shrinks", lambda image, severity, generator: image.resize((3, 4)), 0.5)
    with pytest.raises(ValueError, match=r"shrinks: expected 5 damaged images of \(40, 40\)"):
        shrinks(PHOTOS, None, PROMPTS, SEEDS)


def test_no_images_give_no_images() -> None:
    assert load_degradation(MIXED)([], None, [], []) == []


def test_a_filter_of_ones_own_is_loaded_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DEGRADATIONS, "_items", dict(DEGRADATIONS._items))

    @filter_degradation("darken")
    def darken(image: Image.Image, severity: float, generator: np.random.Generator) -> Image.Image:
        return image.point(lambda value: value * (1 - severity))

    loaded = load_degradation({"name": "darken", "severity": 1})
    assert not pixels(loaded(PHOTOS, None, PROMPTS, SEEDS)).any() and loaded.severity == 1
    with pytest.raises(ValueError, match="already registered"):
        filter_degradation("darken")(darken)


@pytest.mark.parametrize("name", DEGRADATIONS.names())
def test_every_degradation_documents_its_settings(name: str) -> None:
    kind = DEGRADATIONS.get(name)
    assert (
        issubclass(kind.settings, Config) and kind.settings.__doc__ and all(row.doc for row in describe(kind.settings))
    )


@pytest.mark.parametrize("name", [*FILTERS, *FILLS])
def test_what_is_told_is_enough_to_load_the_same_again(name: str) -> None:
    if name in FILLS:
        pytest.importorskip("cv2")
    first = load_degradation(name)
    again = load_degradation({"name": first.name, **json.loads(json.dumps(first.parameters))})
    assert again.parameters == first.parameters and again.severity == first.severity and again.model_revision == ""
    assert isinstance(first, Degradation) and first.method_for(3) is first


def test_failures_in_a_batch_are_none_and_spare_the_others() -> None:
    calls = []

    def draw(numbers: list[int]) -> list[Any]:
        calls.append(list(numbers))
        if 3 in numbers:
            raise FloatingPointError
        return numbers

    assert contract.in_batches(draw, 2, [1, 2, 3, 4, 5]) == [1, 2, None, 4, 5]
    assert calls == [[1, 2], [3, 4], [3], [4], [5]]


@pytest.mark.parametrize("feather", [0, 0.5, 3, 50])
def test_a_feathered_composite_is_the_photograph_outside_bit_for_bit(feather: float) -> None:
    damaged, mask = Image.effect_noise((40, 40), 90).convert("RGB"), hole()
    outside = np.asarray(mask) == 0
    made = pixels([composite(PHOTOS[0], damaged, mask, feather=feather)])[0]
    assert np.array_equal(made[outside], pixels(PHOTOS[:1])[0][outside])
    assert (made != pixels(PHOTOS[:1])[0])[~outside].mean() > 0.3


def test_a_feathered_edge_rises_smoothly_from_the_edge_inwards() -> None:
    """3 x^2 - 2 x^3 at x = d / 4 for a feather of 3: 5/32, 1/2, 27/32, then 1; a border of the image is no edge."""
    mask = Image.new("L", (9, 5))
    mask.paste(255, (2, 0, 9, 5))
    made = composite(Image.new("RGB", (9, 5)), Image.new("RGB", (9, 5), (240, 240, 240)), mask, feather=3)
    row = [0, 0, 37.5, 120, 202.5, 240, 240, 240, 240]
    np.testing.assert_allclose(np.asarray(made)[:, :, 1], [row] * 5, atol=0.51)


def test_a_whole_mask_has_no_edge_and_a_negative_feather_is_refused() -> None:
    whole = Image.new("L", (40, 40), 255)
    assert composite(PHOTOS[0], PHOTOS[1], whole, feather=9).tobytes() == PHOTOS[1].tobytes()
    for feather in (-1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="feather of at least 0"):
            composite(PHOTOS[0], PHOTOS[1], whole, feather=feather)


MODULES = [module.name for module in pkgutil.iter_modules(importlib.import_module("diffalign.curate.degrade").__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_degradations(name: str) -> None:
    assert doctest.testmod(importlib.import_module(f"diffalign.curate.degrade.{name}")).failed == 0
