"""Saliency and masks: worked numbers, symmetries, bounds."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageOps
from scipy.ndimage import label

from diffalign.core import DiffalignError
from diffalign.curate import colour_saliency, embedded_photographs, mask_of


def test_a_flat_image_has_no_saliency() -> None:
    assert not colour_saliency(Image.new("RGB", (24, 36), (10, 200, 30))).any()


def test_a_dot_stands_out() -> None:
    image = Image.new("RGB", (48, 36), "grey")
    image.paste("red", (30, 6, 40, 16))
    saliency = colour_saliency(image)
    assert saliency.shape == (36, 48) and saliency.dtype == np.float32
    assert (saliency.min(), saliency.max()) == (0, 1) and saliency[11, 35] > 0.95
    inside = np.asarray(mask_of(saliency, area=(0.01, 0.5))) > 0
    assert inside[11, 35] and inside[:, :24].sum() == 0 and 40 <= inside.sum() <= 200  # the dot has 100 pixels


def test_a_mirrored_image_has_a_mirrored_saliency() -> None:
    image = embedded_photographs("train", 1, 40)[0].image.crop((0, 0, 40, 33))
    np.testing.assert_allclose(colour_saliency(ImageOps.mirror(image)), colour_saliency(image)[:, ::-1], atol=1e-5)


def test_masks_are_the_most_salient_pixels_within_bounds() -> None:
    saliency = np.arange(30, dtype=np.float32).reshape(5, 6) / 29  # 15 of 30 exceed 0.5

    def count(least: float, largest: float) -> int:
        inside = np.asarray(mask_of(saliency, area=(least, largest))) == 255
        assert saliency[inside].min() > saliency[~inside].max()
        return int(inside.sum())

    assert count(0.1, 0.9) == 15
    assert count(0.7, 0.9) == 21  # at least 0.7 x 30
    assert count(0.01, 0.29) == 8  # at most 8.7


@pytest.mark.parametrize("size", [32, 65])
def test_masks_of_photographs_are_a_few_blobs_within_bounds(size: int) -> None:
    blobs = []
    for photo in embedded_photographs("train", 24, size):
        mask = np.asarray(mask_of(colour_saliency(photo.image), area=(0.15, 0.4)))
        assert set(np.unique(mask)) == {0, 255} and 0.15 <= (mask > 0).mean() <= 0.4
        blobs.append(label(mask)[1])
    assert np.mean(blobs) < 5


@pytest.mark.parametrize("area", [(0.0, 0.5), (0.5, 0.4), (0.2, 1.0)])
def test_impossible_bounds_are_refused(area: tuple[float, float]) -> None:
    with pytest.raises(DiffalignError, match="0 < least <= largest < 1"):
        mask_of(np.zeros((3, 4)), area=area)
