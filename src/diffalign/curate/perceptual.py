"""Images that look alike, found by a hash of their coarse structure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
from PIL import Image
from scipy.fft import dctn

__all__ = ["near_duplicates", "perceptual_hash"]

_SIDE, _KEPT = 32, 8  # pixels looked at, frequencies kept along each axis
_BITS = _KEPT * _KEPT
_FLAT = 2.0  # levels


def perceptual_hash(image: Image.Image) -> str:
    """64 bits as 16 hex digits: which low frequencies of the grey image lie above their median.

        bit_uv = [ D_uv > median(D) ],    D the first 8 x 8 coefficients of the DCT of the image at 32 x 32

    Copies that were resized, recompressed or slightly recoloured differ in few bits; unrelated images in about 32.

    Args:
        image: of any size and mode.

    Returns:
        Empty for an image that is flat, which has no structure to compare.

    Source:
        Zauner 2010, Implementation and benchmarking of perceptual image hash functions, section 3.2.1 (pHash).
        Departures: the constant frequency counts too, and the image is reduced by averaging, not filtered first.

    Example:
        >>> ramp = Image.linear_gradient("L")
        >>> perceptual_hash(ramp) == perceptual_hash(ramp.resize((64, 48))), perceptual_hash(Image.new("L", (9, 9)))
        (True, '')
    """
    small = np.asarray(image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX), dtype=np.float64)
    if small.std() < _FLAT:
        return ""
    low = dctn(small, norm="ortho")[:_KEPT, :_KEPT].round(6)  # rounded: what is 0 on paper has no sign
    bits = (low > np.median(low)).ravel()
    return f"{int(''.join('1' if bit else '0' for bit in bits), 2):016x}"


def near_duplicates(hashes: Sequence[str], distance: int) -> list[int | None]:
    """For each image an earlier one that it looks like, and that is not itself such a copy; else None.

    Two hashes that differ in at most d bits agree in at least one of d + 1 bands, so only images that share a band are
    compared.

    Args:
        hashes: N perceptual hashes; an empty one is like nothing.
        distance: bits that may differ, 0 to 16.

    Example:
        >>> near_duplicates(["00000000000000ff", "ffffffffffffffff", "00000000000000fe", ""], distance=4)
        [None, None, 0, None]
    """
    if not 0 <= distance <= 16:
        raise ValueError(f"expected a distance of 0 to 16 bits, got {distance}")
    originals: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    found: list[int | None] = []
    for index, digits in enumerate(hashes):
        if not digits:
            found.append(None)
            continue
        value = int(digits, 16)
        bands = list(_bands(value, distance + 1))
        alike = (other for band in bands for other, its in originals[band] if (value ^ its).bit_count() <= distance)
        found.append(min(alike, default=None))
        if found[-1] is None:
            for band in bands:
                originals[band].append((index, value))
    return found


def _bands(value: int, count: int) -> Iterator[tuple[int, int]]:
    """(number, bits) of each of ``count`` parts of the hash."""
    edges = np.linspace(0, _BITS, count + 1).round().astype(int).tolist()
    for number, (low, high) in enumerate(pairwise(edges)):
        yield number, (value >> low) & ((1 << (high - low)) - 1)
