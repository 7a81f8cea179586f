"""Images in rows and columns with their labels, as one picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

__all__ = ["draw_grid"]

_SMALL, _LARGE = 128, 256  # pixels; the longer side of a grid's cells lies between them
_LABEL, _LINE, _GAP = 220, 16, 4  # pixels; width of the labels, height of a line of text, around every cell
_ROWS, _SEEDS = 32, 8


def draw_grid(
    title: str,
    labels: Sequence[str],
    images: Sequence[Image.Image | None],
    *,
    columns: Sequence[str] | None = None,
    max_side: int = _LARGE,
) -> Image.Image:
    """Images in a row per label, under a title and the names of the columns; the first 32 rows.

    Args:
        title: the line above.
        labels: of the rows, such as prompts; shortened where they are long.
        images: row by row, equally many in each; grey where there is none.
        columns: their names; by default the numbers of the seeds, and then the first 8.
        max_side: pixels, at least 128; of a cell.

    Returns:
        An "RGB" image. Images of less than 128 pixels are enlarged by whole numbers, those above ``max_side`` reduced.
    """
    per_row, rows = len(images) // len(labels), labels[:_ROWS]
    names = columns or [f"seed {seed}" for seed in range(min(per_row, _SEEDS))]
    side = next((image.size for image in images if image is not None), (_SMALL, _SMALL))
    width, height = (max(1, round(pixels * _scale(max(side), max_side))) for pixels in side)
    lefts = [_LABEL + column * (width + _GAP) for column in range(len(names))]
    grid = Image.new("RGB", (_LABEL + len(names) * (width + _GAP), 2 * _LINE + len(rows) * (height + _GAP)), "white")
    pen, font = ImageDraw.Draw(grid), ImageFont.load_default(12)
    pen.text((_GAP, 0), title, fill="black", font=font)
    for name, left in zip(names, lefts, strict=True):
        pen.text((left, _LINE), name, fill="black", font=font)
    for row, label in enumerate(rows):
        top = 2 * _LINE + row * (height + _GAP)
        pen.text((_GAP, top), _wrapped(label, font, max(1, height // _LINE)), fill="black", font=font)
        for column, left in enumerate(lefts):
            grid.paste(_cell(images[row * per_row + column], width, height), (left, top))
    return grid


def _scale(side: int, max_side: int) -> float:
    return max_side / side if side > max_side else max(1, _SMALL // side)


def _cell(image: Image.Image | None, width: int, height: int) -> Image.Image:
    if image is None:
        return Image.new("RGB", (width, height), (128, 128, 128))
    return image.resize((width, height), Image.Resampling.LANCZOS if width < image.width else Image.Resampling.NEAREST)


def _wrapped(text: str, font: Any, num_lines: int) -> str:
    """At most so many lines of the labels' width; with an ellipsis where something is left out."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if not lines[-1] or font.getlength(longer) <= _LABEL - 2 * _GAP:
            lines[-1] = longer
        elif len(lines) < num_lines:
            lines.append(word)
        else:
            lines[-1] += " ..."
            break
    return "\n".join(lines)
