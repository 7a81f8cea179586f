"""Grids: labels beside their images, names above them."""

from __future__ import annotations

from PIL import Image

from diffalign.sample import draw_grid

LEFT, TOP, PITCH = 220, 32, 132  # pixels of a grid of 32-pixel images


def test_a_grid_has_its_labels_beside_its_images() -> None:
    long = "a very long prompt that goes on and on " * 20
    images = [Image.new("RGB", (600, 300), "red"), Image.new("RGB", (600, 300), "blue"), None, None]
    grid = draw_grid("step 5", ["a cat", long], images)
    assert grid.size == (LEFT + 2 * (256 + 4), TOP + 2 * (128 + 4))
    assert [grid.getpixel((x, TOP + 5)) for x in (LEFT + 5, LEFT + 265)] == [(255, 0, 0), (0, 0, 255)]
    assert grid.getpixel((LEFT + 5, TOP + 137)) == (128, 128, 128)
    label, blank = grid.crop((0, TOP, LEFT, TOP + 132)), grid.crop((0, TOP + 60, LEFT, TOP + 130))
    assert label.convert("L").getextrema()[0] < 100 and blank.convert("L").getextrema() == (255, 255)
    assert draw_grid("", ["p"] * 40, [Image.new("RGB", (32, 32))] * 400).size == (LEFT + 8 * PITCH, TOP + 32 * PITCH)


def test_named_columns_are_all_there_in_cells_of_the_size_asked_for() -> None:
    images = [Image.new("RGB", (300, 600), (10 * column, 0, 0)) for column in range(9)]
    grid = draw_grid("", ["a cat"], images, columns=[f"scale {column}" for column in range(9)], max_side=150)
    assert grid.size == (LEFT + 9 * (75 + 4), TOP + 150 + 4)
    assert grid.getpixel((LEFT + 8 * 79 + 5, TOP + 5)) == (80, 0, 0)
    heading = grid.crop((LEFT + 8 * 79, 16, LEFT + 8 * 79 + 75, 32))
    assert heading.convert("L").getextrema()[0] < 100
