"""Preprocessing: equal to the published processors, and the tensor path close to it."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from reward_helpers import image, images
from transformers import AutoImageProcessor, CLIPImageProcessor

from diffalign.core import DiffalignError
from diffalign.data import decode_image, load_photograph, to_tensor
from diffalign.models import embedded_path
from diffalign.rewards import ClipRecipe, LetterboxRecipe, load_reward
from diffalign.rewards.pixels import as_rgb

MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])


@pytest.mark.parametrize("size", [28, 96])
def test_clip_recipe_is_the_librarys(size: int) -> None:
    processor = CLIPImageProcessor(size={"shortest_edge": size}, crop_size=size)
    for one in [*images(), load_photograph("cat")]:
        theirs = processor(one, return_tensors="pt").pixel_values[0]
        assert torch.allclose(ClipRecipe(size)(one), theirs, atol=1e-6)


def test_judge_recipe_is_that_of_its_processor() -> None:
    processor = AutoImageProcessor.from_pretrained(embedded_path("tiny-judge"))
    reward = load_reward("tiny-judge-realism")
    for one in images():
        assert torch.allclose(reward.prepare(one), processor(one, return_tensors="pt").pixel_values[0], atol=1e-6)


@pytest.mark.parametrize(("name", "size"), [("coffee", 224), ("cat", 60), ("astronaut", 32)])
def test_tensor_path_is_within_one_level_of_the_images(name: str, size: int) -> None:
    """One 8-bit level is 1/255/0.26 = 0.0151 after normalisation; rounding alone is worth a third on average."""
    photo = load_photograph(name)
    pixels = (to_tensor(photo)[None] + 1) / 2
    off = (ClipRecipe(size).of_pixels(pixels)[0] - ClipRecipe(size)(photo)).abs()
    assert off.max() < 0.0165 and off.mean() < 0.005


def test_letterbox_worked_sizes() -> None:
    """100 x 41 to 28: 41 * 28/100 = 11.48, so 11 rows; padding 17 is 8 above and 9 below, black before normalising."""
    box = LetterboxRecipe(28)(Image.new("RGB", (100, 41), "white"))
    assert box.shape == (3, 28, 28)
    level = (box * STD.reshape(3, 1, 1) + MEAN.reshape(3, 1, 1)).mean(0)
    assert torch.allclose(level[:8], torch.zeros(8, 28), atol=1e-6)
    assert torch.allclose(level[8:19], torch.ones(11, 28), atol=1e-5)
    assert torch.allclose(level[19:], torch.zeros(9, 28), atol=1e-6)


def test_letterbox_pads_what_is_long_enough_already_and_keeps_its_pixels() -> None:
    one = image(28, 13, "exact")
    box = LetterboxRecipe(28)(one) * STD.reshape(3, 1, 1) + MEAN.reshape(3, 1, 1)
    assert torch.allclose(box[:, 7:20], (to_tensor(one) + 1) / 2, atol=1e-6)
    assert LetterboxRecipe(28)(Image.new("RGB", (500, 2), "white")).shape == (3, 28, 28)


def test_recipes_leave_square_images_of_their_size_alone() -> None:
    one = image(28, 28, "square")
    plain = ((to_tensor(one) + 1) / 2 - MEAN.reshape(3, 1, 1)) / STD.reshape(3, 1, 1)
    for recipe in (ClipRecipe(28), LetterboxRecipe(28)):
        assert torch.allclose(recipe(one), plain, atol=1e-6)


@pytest.mark.parametrize("mode", ["L", "RGBA", "LA", "P"])
def test_other_modes_show_what_their_file_shows(mode: str) -> None:
    other = image(31, 23, mode).convert(mode)
    if "A" in mode:
        other.putalpha(Image.linear_gradient("L").resize(other.size))
    buffer = io.BytesIO()
    other.save(buffer, "PNG")
    rgb = as_rgb(other)
    assert rgb.mode == "RGB"
    assert np.array_equal(np.asarray(rgb), np.asarray(decode_image(buffer.getvalue())))


def test_deep_images_are_refused() -> None:
    with pytest.raises(DiffalignError, match="8-bit"):
        as_rgb(Image.fromarray(np.full((4, 5), 40_000, dtype=np.uint16)))
