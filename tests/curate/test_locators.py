"""The contract of locators, and those without a network."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from scipy.ndimage import label

from diffalign.core import Config, DiffalignError, numpy_generator
from diffalign.curate import colour_saliency, embedded_photographs, mask_of
from diffalign.curate.locate import (
    LOCATORS,
    Locator,
    draw_segment,
    load_locator,
    min_max,
    random_shapes,
    salient_mask,
    scaled_boxes,
    spectral_residual,
)
from diffalign.curate.locate.segments import suppress_overlaps

AREA = (0.2, 0.4)
FREE = ("colour_saliency", "full_image", "random_shapes", "spectral_residual")
PHOTOS = [photo.image for photo in embedded_photographs("train", 3, 48)]
IMAGES = [PHOTOS[0], PHOTOS[1].resize((40, 56)), PHOTOS[2].resize((61, 37))]
PROMPTS = ["a cat", "", "two dogs"]


def covered(mask: Image.Image | None) -> np.ndarray:
    assert mask is not None and mask.mode == "L" and set(np.unique(np.asarray(mask))) <= {0, 255}
    return np.asarray(mask) == 255


def test_every_locator_is_registered_under_its_name() -> None:
    assert LOCATORS.names() == [
        *("colour_saliency", "full_image", "grounded", "onnx_saliency"),
        *("random_shapes", "saliency_model", "sam", "spectral_residual"),
    ]
    for name in LOCATORS:
        assert LOCATORS.get(name).name == name and issubclass(LOCATORS.get(name).Settings, Config)


@pytest.mark.parametrize("name", FREE)
def test_masks_have_the_images_sizes_and_lie_in_the_bounds(name: str) -> None:
    locator = load_locator(name, area=AREA)
    for image, mask in zip(IMAGES, locator(IMAGES, PROMPTS, [5, 6, 7]), strict=True):
        inside = covered(mask)
        assert inside.shape == (image.height, image.width)
        assert inside.all() if name == "full_image" else AREA[0] <= inside.mean() <= AREA[1]
    assert locator.model_revision == "" and json.loads(json.dumps(locator.parameters)) == locator.parameters
    assert locator.parameters == ({} if name == "full_image" else {"area": [0.2, 0.4]})


@pytest.mark.parametrize("name", FREE)
def test_a_mask_depends_on_its_own_image_and_seed_alone(name: str) -> None:
    locator = load_locator(name, area=AREA)
    together, alone = locator(IMAGES, PROMPTS, [5, 6, 7]), locator(IMAGES[2:], ["another"], [7])
    np.testing.assert_array_equal(covered(together[2]), covered(alone[0]))
    other_seed = locator(IMAGES[2:], PROMPTS[2:], [8])
    same = np.array_equal(covered(other_seed[0]), covered(alone[0]))
    assert same == (name != "random_shapes")


def test_nothing_in_gives_nothing_out() -> None:
    assert load_locator("colour_saliency")([], [], []) == []


@pytest.mark.parametrize(
    "arguments", [(IMAGES, PROMPTS, [1, 2]), (IMAGES, PROMPTS[:2], [1, 2, 3]), (IMAGES, "abc", [1, 2, 3])]
)
def test_counts_must_agree(arguments: tuple[list[Image.Image], list[str], list[int]]) -> None:
    with pytest.raises(ValueError, match="as many images, prompts and seeds"):
        load_locator("colour_saliency")(*arguments)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("color_saliency", "unknown locator 'color_saliency'; nearest: colour_saliency"),
        ({"nam": "sam"}, "expected the locator's name as text, got None; known: colour_saliency"),
        ({"name": 3}, "got 3"),
        ({"name": "sam", "larges": 3}, "locator 'sam': unknown setting 'larges'; nearest: largest"),
        ({"name": "colour_saliency", "blur": 3}, "unknown setting 'blur'"),
        ({"name": "sam", "largest": 0}, "greater than or equal to 1"),
        ({"name": "onnx_saliency"}, "locator 'onnx_saliency': weights: must be given"),
    ],
)
def test_wrong_settings_are_told(settings: object, message: str) -> None:
    with pytest.raises(DiffalignError) as error:
        load_locator(settings)  # type: ignore[arg-type]
    assert message in str(error.value)


@pytest.mark.parametrize("name", FREE)
def test_impossible_bounds_are_refused_at_loading(name: str) -> None:
    with pytest.raises(DiffalignError, match="0 < least <= largest < 1"):
        load_locator(name, area=(0.5, 0.4))


def test_settings_are_not_changed_and_local_folders_stay_out_of_the_provenance(tmp_path: Path) -> None:
    class Named(Locator):
        class Settings(Config):
            weights: str

    (tmp_path / "model").mkdir()
    made = Named(Named.Settings(weights=str(tmp_path / "model")), area=AREA)
    assert made.parameters == {"weights": "model", "area": [0.2, 0.4]}
    assert Named(Named.Settings(weights="owner/model"), area=AREA).parameters["weights"] == "owner/model"
    settings = {"name": "random_shapes"}
    load_locator(settings)
    assert settings == {"name": "random_shapes"}


def test_colour_saliency_is_todays_mask_and_none_for_a_flat_image() -> None:
    flat = Image.new("RGB", (24, 36), (10, 200, 30))
    masks = load_locator("colour_saliency", area=AREA)([flat, PHOTOS[1]], ["", ""], [0, 0])
    assert masks[0] is None
    np.testing.assert_array_equal(covered(masks[1]), covered(mask_of(colour_saliency(PHOTOS[1]), area=AREA)))
    assert load_locator("spectral_residual")([flat], [""], [0]) == [None]


# spectral residual


def test_a_dot_surprises_the_spectrum() -> None:
    dot = Image.new("RGB", (96, 64), "grey")
    dot.paste("red", (66, 12, 76, 22))
    saliency = spectral_residual(dot)
    assert saliency.shape == (64, 96) and saliency.dtype == np.float32 and (saliency.min(), saliency.max()) == (0, 1)
    peak = np.unravel_index(saliency.argmax(), saliency.shape)
    assert np.abs(np.array(peak) - (17, 71)).max() <= 3 and saliency[50, 20] < 0.2


def test_a_mirrored_image_has_a_mirrored_residual() -> None:
    image = PHOTOS[0].resize((64, 64))
    np.testing.assert_allclose(spectral_residual(ImageOps.mirror(image)), spectral_residual(image)[:, ::-1], atol=1e-4)


def test_the_residual_does_not_see_contrast() -> None:
    """F -> c F adds log c to every log amplitude, which the mean takes off again."""
    grey = np.asarray(PHOTOS[1].resize((64, 64)).convert("L")) // 2
    twice = [Image.fromarray(values).convert("RGB") for values in (grey, 2 * grey)]
    np.testing.assert_allclose(spectral_residual(twice[0]), spectral_residual(twice[1]), atol=1e-5)


@pytest.mark.parametrize("size", [32, 130])
def test_masks_of_residuals_are_a_few_blobs(size: int) -> None:
    photos = [photo.image for photo in embedded_photographs("train", 12, size)]
    masks = load_locator("spectral_residual", area=(0.15, 0.4))(photos, [""] * 12, [0] * 12)
    assert np.mean([label(covered(mask))[1] for mask in masks]) < 5


# maps


def test_min_max_is_exact_at_its_ends_and_flat_within_its_bound() -> None:
    values = np.array([[3.0, 7.0, 4.0], [5.0, 6.0, 3.5]])
    np.testing.assert_allclose(min_max(values, flat=0.1), (values - 3) / 4)
    assert not min_max(values, flat=4.0).any()


def test_a_map_without_anything_above_a_half_gives_no_mask() -> None:
    assert salient_mask(np.full((3, 4), 0.5), AREA) is None
    assert salient_mask(np.eye(4) * 0.6, AREA) is not None
    with pytest.raises(DiffalignError, match="finite"):
        salient_mask(np.array([[0.2, np.nan, 0.9]]), AREA)


def test_boxes_are_their_own_outline_at_a_half_and_scale_by_one_factor() -> None:
    boxes = np.array([[2.0, 1.0, 6.0, 5.0], [10.0, 4.0, 18.0, 8.0]])
    depth = scaled_boxes(boxes, (20, 12))
    expected = np.zeros((12, 20), dtype=bool)
    expected[1:5, 2:6] = expected[4:8, 10:18] = True
    np.testing.assert_array_equal(depth > 0.5, expected)
    halved = np.zeros((12, 20), dtype=bool)
    halved[2:4, 3:5] = halved[5:7, 12:16] = True  # sides halved about the centres
    np.testing.assert_array_equal(depth > 0.75, halved)


def test_boxes_that_reach_out_of_the_image_are_cut_off() -> None:
    depth = scaled_boxes(np.array([[-8.0, 2.0, 4.0, 30.0]]), (7, 6))
    expected = np.zeros((6, 7), dtype=bool)
    expected[2:, :4] = True
    np.testing.assert_array_equal(depth > 0.5, expected)
    halved = np.zeros((6, 7), dtype=bool)
    halved[3:5, 1:3] = True  # about the centre of what lies inside
    np.testing.assert_array_equal(depth > 0.75, halved)
    empty = scaled_boxes(np.array([[30.0, 2.0, 40.0, 4.0]]), (7, 6))
    assert np.isfinite(empty).all() and not (empty > 0.5).any()


# random shapes


@pytest.mark.parametrize("area", [(0.15, 0.5), (0.3, 0.3), (0.9, 0.95), (0.01, 0.02)])
@pytest.mark.parametrize("size", [(48, 48), (37, 90), (3, 2)])
def test_shapes_keep_to_every_bound(size: tuple[int, int], area: tuple[float, float]) -> None:
    pixels = size[0] * size[1]
    for seed in range(4):
        count = covered(random_shapes(size, numpy_generator(seed), area=area)).sum()
        assert np.ceil(area[0] * pixels) <= count <= max(np.floor(area[1] * pixels), np.ceil(area[0] * pixels))


def test_shapes_are_few_blobs_anywhere_and_of_areas_from_the_whole_range() -> None:
    masks = [covered(random_shapes((64, 48), numpy_generator(seed), area=(0.15, 0.5))) for seed in range(60)]
    areas = np.array([mask.mean() for mask in masks])
    assert areas.min() < 0.2 and areas.max() > 0.45 and np.mean([label(mask)[1] for mask in masks]) < 5
    often = np.mean(masks, axis=0)
    assert often.min() > 0.03 and often.max() < 0.75  # every place is covered at times, none nearly always


# segments


def segment(pixels: int) -> np.ndarray:
    inside = np.zeros(100, dtype=bool)
    inside[:pixels] = True
    return inside.reshape(4, 25)


def test_a_segment_is_drawn_among_the_largest_that_fit() -> None:
    segments = [segment(pixels) for pixels in (12, 95, 31, 20, 48, 22, 41, 60)]  # four fit, of which three are drawn
    drawn = [int(covered(draw_segment(segments, seed, largest=3, area=(0.2, 0.48))).sum()) for seed in range(60)]
    counts = {size: drawn.count(size) for size in set(drawn)}
    assert set(counts) == {48, 41, 31} and min(counts.values()) > 8  # 20 of each expected
    assert draw_segment(segments, 0, largest=3, area=(0.49, 0.55)) is None
    assert draw_segment([], 0, largest=3, area=AREA) is None


def test_overlapping_boxes_are_dropped_from_the_best_score_down() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 8], [0, 0, 10, 5], [20, 0, 30, 10]], dtype=float)
    scores = np.array([0.7, 0.9, 0.8, 0.6])
    assert suppress_overlaps(boxes, scores, 0.7) == [1, 2, 3]  # 0 shares 0.8 with 1; 2 shares 0.625 with 1
    assert suppress_overlaps(boxes, scores, 0.6) == [1, 3]
    assert suppress_overlaps(boxes, scores, 0.8) == [1, 2, 0, 3]  # only what is above goes
    assert suppress_overlaps(boxes[:0], scores[:0], 0.7) == []
