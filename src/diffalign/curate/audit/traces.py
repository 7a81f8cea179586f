"""What codecs, resizes, networks and sensors leave in the pixels, measured outside the mask alone.

Every number is local: a pixel enters only if the whole of its filter or block lies outside the mask and inside the
image, so that nothing of the damage is seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.fft import dctn
from scipy.ndimage import binary_erosion, median_filter

__all__ = ["GROUPS", "TRACES", "Bools", "Floats", "Group", "image_traces", "outside_of", "pixels_of"]

Bools: TypeAlias = NDArray[np.bool_]
Floats: TypeAlias = NDArray[np.float64]
Group: TypeAlias = Literal["blocking", "noise", "smoothing", "texture", "colour", "tone"]
GROUPS: tuple[Group, ...] = get_args(Group)

TRACES: dict[str, Group] = {
    "grid_edges": "blocking",
    "any_grid_edges": "blocking",
    "grid_detail": "blocking",
    "noise_level": "noise",
    "flat_detail": "noise",
    "median_residual": "noise",
    "coarse_detail": "smoothing",
    "middle_rolloff": "smoothing",
    "rolloff": "smoothing",
    "textured_detail": "smoothing",
    "residual_tails": "texture",
    "residual_skew": "texture",
    "correlation_x": "texture",
    "correlation_y": "texture",
    "same_signs_x": "texture",
    "same_signs_y": "texture",
    "chroma_detail": "colour",
    "correlation_rg": "colour",
    "correlation_gb": "colour",
    "mean_red": "tone",
    "mean_green": "tone",
    "mean_blue": "tone",
    "contrast": "tone",
    "clipped": "tone",
}
"""Every trace and the group it belongs to, in the order of `image_traces`."""

_BLOCK = 8  # of JPEG
_ROUNDING = 1 / 12  # variance of rounding to whole levels: what no image falls below
_LUMA = np.array([0.299, 0.587, 0.114])


def pixels_of(image: Image.Image) -> Floats:
    """(H, W, 3) levels 0 to 255 of an image of any 8-bit mode."""
    return np.asarray(image.convert("RGB"), dtype=np.float64)


def outside_of(mask: Image.Image) -> Bools:
    """(H, W): where the mask is 0; a soft mask's slope counts as inside."""
    return np.asarray(np.asarray(mask.convert("L")) == 0)


def image_traces(pixels: Floats, outside: Bools) -> Floats:
    """The traces of one image, in the order of `TRACES`.

    Energies are logarithms of variances in levels squared, with the rounding to 8 bits as their floor. A trace for
    which there is no pixel is 0.

    Args:
        pixels: (H, W, 3) levels 0 to 255.
        outside: (H, W), where to look.

    Returns:
        (T,) float64, finite.

    Source:
        Residual: Fridrich and Kodovsky 2012, IEEE TIFS 7(3), the 3x3 second-order filter; noise level: Immerkaer 1996,
        CVIU 64(2). Departures: a few sums instead of tens of thousands of co-occurrences.

    Example:
        >>> ramp = np.tile(np.arange(24.0)[:, None, None], (1, 32, 3))
        >>> traces = dict(zip(TRACES, image_traces(ramp, np.ones((24, 32), bool)).tolist()))
        >>> round(traces["mean_red"], 6), round(traces["noise_level"], 3)  # log of the floor's standard deviation
        (11.5, -1.242)
    """
    luma = pixels @ _LUMA
    found = dict.fromkeys(TRACES, 0.0)
    for name, value in (
        *_grid_edges(luma, outside),
        *_block_detail(luma, outside),
        *_residual(pixels, luma, outside),
        *_tone(pixels, luma, outside),
    ):
        found[name] = value
    return np.array([found[name] for name in TRACES])


def _log(variance: float) -> float:
    return float(np.log(variance + _ROUNDING))


def _grid_edges(luma: Floats, outside: Bools) -> Iterator[tuple[str, float]]:
    """Steps between neighbouring pixels that the slopes beside them do not explain, by their place in the 8x8 grid."""
    sums, counts = np.zeros(_BLOCK), np.zeros(_BLOCK)
    for image, there in ((luma, outside), (luma.T, outside.T)):
        step = np.abs(image[:, :-3] - 3 * image[:, 1:-2] + 3 * image[:, 2:-1] - image[:, 3:])
        whole = there[:, :-3] & there[:, 1:-2] & there[:, 2:-1] & there[:, 3:]
        phase = np.broadcast_to((np.arange(step.shape[1]) + 2) % _BLOCK, step.shape)  # 0: between two blocks
        sums += np.bincount(phase[whole], step[whole], _BLOCK)
        counts += np.bincount(phase[whole], minlength=_BLOCK)
    if counts.all():
        steps = np.log(sums / counts + 0.5)
        yield "grid_edges", float(steps[0] - steps[1:].mean())
        yield "any_grid_edges", float(steps.max() - np.median(steps))


def _block_detail(luma: Floats, outside: Bools) -> Iterator[tuple[str, float]]:
    """Energies of the cosine transform of blocks in JPEG's grid and of blocks half a block away from it."""
    grids = [_blocks(luma, outside, start) for start in (0, _BLOCK // 2)]
    order = np.add.outer(np.arange(_BLOCK), np.arange(_BLOCK))
    fine = order > 7
    if all(map(len, grids)):
        aligned, shifted = (_log(float((grid[:, fine] ** 2).mean())) for grid in grids)
        yield "grid_detail", aligned - shifted
    energy = np.concatenate(grids) ** 2
    if len(energy) < 2:
        return
    coarse = energy[:, (order > 0) & (order < 4)].mean(axis=1)
    by_texture = np.argsort(coarse, kind="stable")
    half = len(energy) // 2
    fines = energy[:, fine].mean(axis=1)
    yield "flat_detail", _log(float(fines[by_texture[:half]].mean()))
    yield "textured_detail", _log(float(fines[by_texture[half:]].mean()))
    low = _log(float(coarse.mean()))
    yield "coarse_detail", low
    yield "middle_rolloff", _log(float(energy[:, (order > 3) & ~fine].mean())) - low
    yield "rolloff", _log(float(fines.mean())) - low


def _blocks(luma: Floats, outside: Bools, start: int) -> Floats:
    """(N, 8, 8) cosine coefficients of the blocks of a grid that lie wholly outside."""
    rows, columns = (max(0, side - start) // _BLOCK for side in luma.shape)
    here = slice(start, start + rows * _BLOCK), slice(start, start + columns * _BLOCK)
    shape = rows, _BLOCK, columns, _BLOCK
    if not rows * columns:
        return np.zeros((0, _BLOCK, _BLOCK))
    whole = outside[here].reshape(shape).all(axis=(1, 3))
    blocks = luma[here].reshape(shape).transpose(0, 2, 1, 3)[whole]
    return np.asarray(dctn(blocks, axes=(1, 2), norm="ortho")) if len(blocks) else blocks


def _residual(pixels: Floats, luma: Floats, outside: Bools) -> Iterator[tuple[str, float]]:
    """What is left of each pixel once its neighbours are subtracted: its size, its tails and how neighbours agree."""
    inner = binary_erosion(outside, np.ones((3, 3)), border_value=0)[1:-1, 1:-1]
    if inner.sum() < 2:
        return
    residual = _second_differences(luma)
    r = residual[inner]
    power = float((r**2).mean()) + _ROUNDING
    yield "noise_level", float(np.log(np.sqrt(np.pi / 2) / 6 * np.abs(r).mean() + np.sqrt(_ROUNDING)))
    yield "residual_tails", float(np.log(((r**4).mean() + _ROUNDING**2) / power**2))
    yield "residual_skew", float((r**3).mean() / power**1.5)
    gap = (luma - median_filter(luma, 3))[1:-1, 1:-1][inner]
    yield "median_residual", _log(float((gap**2).mean()))
    for axis, name in ((1, "x"), (0, "y")):
        one, two = _neighbours(residual, inner, axis)
        if len(one):
            yield f"correlation_{name}", float((one * two).mean() / power)
            yield f"same_signs_{name}", float((np.sign(one) * np.sign(two)).mean())
    red, green, blue = (_second_differences(pixels[:, :, channel])[inner] for channel in range(3))
    for name, one, two in (("rg", red, green), ("gb", green, blue)):
        yield f"correlation_{name}", float((one * two).mean() / _size(one) / _size(two))
    yield "chroma_detail", float(np.log(_size(red - green) * _size(blue - green) / power))


def _size(values: Floats) -> float:
    return float(np.sqrt((values**2).mean() + _ROUNDING))


def _second_differences(channel: Floats) -> Floats:
    """(H-2, W-2): the outer product of (1, -2, 1) with itself; 0 on any plane."""
    rows = channel[:-2] - 2 * channel[1:-1] + channel[2:]
    return np.asarray(rows[:, :-2] - 2 * rows[:, 1:-1] + rows[:, 2:])


def _neighbours(residual: Floats, inner: Bools, axis: int) -> tuple[Floats, Floats]:
    """Values of all pairs of neighbours along an axis that both lie inside ``inner``."""
    first, second = [slice(None)] * 2, [slice(None)] * 2
    first[axis], second[axis] = slice(None, -1), slice(1, None)
    both = inner[tuple(first)] & inner[tuple(second)]
    return residual[tuple(first)][both], residual[tuple(second)][both]


def _tone(pixels: Floats, luma: Floats, outside: Bools) -> Iterator[tuple[str, float]]:
    seen = pixels[outside]
    if len(seen):
        yield from zip(("mean_red", "mean_green", "mean_blue"), seen.mean(axis=0).tolist(), strict=True)
        yield "contrast", float(luma[outside].std())
        yield "clipped", float(np.isin(seen, (0, 255)).mean())
