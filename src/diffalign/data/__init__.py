"""Rows on disk: safe images, the preference schema, readers of published sets, the latent cache, sample order."""

from __future__ import annotations

from diffalign.data.images import (
    BadImage,
    ImageLimits,
    ResizeRecipe,
    decode_image,
    encode_png,
    from_tensor,
    image_sha256,
    resize_crop,
    to_tensor,
    try_decode,
)
from diffalign.data.latents import LatentCache, Posterior, View, estimate_bytes
from diffalign.data.order import batch_rows, sample_order
from diffalign.data.preferences import Preferences, PreferenceWriter
from diffalign.data.readers import (
    READERS,
    BadRow,
    read_folders,
    read_hpdv3,
    read_pickapic,
    read_realalign,
)
from diffalign.data.schema import LABEL_METRIC, Form, Row, pair_as_candidates, validate_row

__all__ = [
    "LABEL_METRIC",
    "READERS",
    "BadImage",
    "BadRow",
    "Form",
    "ImageLimits",
    "LatentCache",
    "Posterior",
    "PreferenceWriter",
    "Preferences",
    "ResizeRecipe",
    "Row",
    "View",
    "batch_rows",
    "decode_image",
    "encode_png",
    "estimate_bytes",
    "from_tensor",
    "image_sha256",
    "pair_as_candidates",
    "read_folders",
    "read_hpdv3",
    "read_pickapic",
    "read_realalign",
    "resize_crop",
    "sample_order",
    "to_tensor",
    "try_decode",
    "validate_row",
]
