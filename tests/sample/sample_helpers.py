"""What tests of sampling need."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image


def difference(ones: Sequence[Image.Image], others: Sequence[Image.Image]) -> int:
    """The largest, in 8-bit levels."""
    pairs = zip(ones, others, strict=True)
    return max(int(np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max()) for one, other in pairs)
