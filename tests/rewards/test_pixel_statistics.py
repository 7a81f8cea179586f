"""Statistics of pixels on images whose numbers can be worked by hand."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from reward_helpers import image

from diffalign.core import DiffalignError
from diffalign.rewards import (
    colourfulness,
    high_frequency_share,
    jpeg_size,
    laplacian_variance,
    load_reward,
    luminance,
    saturation,
)


def grey(values: np.ndarray) -> Image.Image:
    return Image.fromarray(values.astype(np.uint8)).convert("RGB")


def test_laplacian_of_one_bright_pixel() -> None:
    """A pixel of 10 amid 5 x 7 zeros: the Laplacian is -40 there, 10 at four neighbours; mean 0, variance 2000/35."""
    values = np.zeros((5, 7))
    values[2, 3] = 10
    assert laplacian_variance(grey(values)) == pytest.approx(2000 / 35)


def test_laplacian_mirrors_without_repeating_the_edge() -> None:
    """Columns 0, 10, 20, 30: 0 inside; the left edge sees 10 twice (2 * 10 - 0), the right one 20 twice."""
    values = np.tile(np.array([0, 10, 20, 30]), (6, 1))
    assert laplacian_variance(grey(values)) == pytest.approx(np.var([20, 0, 0, -20]))


def test_colourfulness_worked() -> None:
    """Half red, half blue: rg is 255 and 0, yb is 127.5 and -255."""
    values = np.zeros((4, 6, 3), dtype=np.uint8)
    values[:, :3, 0], values[:, 3:, 2] = 255, 255
    rg, yb = np.array([255, 0]), np.array([127.5, -255])
    expected = np.sqrt(rg.var() + yb.var()) + 0.3 * np.sqrt(rg.mean() ** 2 + yb.mean() ** 2)
    assert colourfulness(Image.fromarray(values)) == pytest.approx(expected)
    assert colourfulness(Image.new("RGB", (5, 6), (90, 90, 90))) == 0


def test_saturation_and_luminance_worked() -> None:
    """Half (200, 100, 150), half black; grey of the first is .299 * 200 + .587 * 100 + .114 * 150 = 135.6."""
    values = np.zeros((4, 6, 3), dtype=np.uint8)
    values[:, :3] = (200, 100, 150)
    assert saturation(Image.fromarray(values)) == 0.25
    assert luminance(Image.fromarray(values)) == pytest.approx(135.6 / 2 / 255, abs=1 / 255)


@pytest.mark.parametrize(("cycles", "share"), [(3, 0.0), (4, 0.0), (5, 1.0)])
def test_high_frequencies_start_above_a_quarter_cycle_per_pixel(cycles: int, share: float) -> None:
    """16 columns: 4 cycles are 1/4 per pixel, exactly half of Nyquist, and not above it."""
    wave = 128 + 100 * np.cos(2 * np.pi * cycles * np.arange(16) / 16)
    assert high_frequency_share(grey(np.tile(np.rint(wave), (10, 1)))) == pytest.approx(share, abs=1e-4)


def test_a_flat_image_has_no_detail() -> None:
    flat = Image.new("RGB", (9, 7), (80, 80, 80))
    assert high_frequency_share(flat) == laplacian_variance(flat) == 0


def test_jpeg_size_is_in_kilobytes_at_quality_95() -> None:
    one = image(60, 45, "jpeg")
    buffer = io.BytesIO()
    one.save(buffer, "JPEG", quality=95)
    assert jpeg_size(one) == len(buffer.getvalue()) / 1000


def test_they_are_monitors_without_direction_or_weights() -> None:
    card = load_reward("laplacian_variance").card
    assert card.higher_is_better is None and card.identity == "laplacian_variance@none/grey8-mirror"
    with pytest.raises(DiffalignError, match="has no weights"):
        load_reward("luminance", weights="somewhere")
