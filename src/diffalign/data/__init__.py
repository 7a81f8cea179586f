"""Rows on disk: safe images, the preference schema, readers of published sets, the latent cache, sample order."""

from __future__ import annotations

from diffalign.data.flaws import CORPUS_FLAWS, FLAW_CAPTIONS, FLAWS, JUDGE_FLAWS, apply_flaw
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
from diffalign.data.photographs import (
    PHOTOGRAPHS,
    Crop,
    Photograph,
    Split,
    captions,
    draw_crop,
    load_photograph,
    photograph,
    strips,
    subject_index,
)
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
    "CORPUS_FLAWS",
    "FLAWS",
    "FLAW_CAPTIONS",
    "JUDGE_FLAWS",
    "LABEL_METRIC",
    "PHOTOGRAPHS",
    "READERS",
    "BadImage",
    "BadRow",
    "Crop",
    "Form",
    "ImageLimits",
    "LatentCache",
    "Photograph",
    "Posterior",
    "PreferenceWriter",
    "Preferences",
    "ResizeRecipe",
    "Row",
    "Split",
    "View",
    "apply_flaw",
    "batch_rows",
    "captions",
    "decode_image",
    "draw_crop",
    "encode_png",
    "estimate_bytes",
    "from_tensor",
    "image_sha256",
    "load_photograph",
    "pair_as_candidates",
    "photograph",
    "read_folders",
    "read_hpdv3",
    "read_pickapic",
    "read_realalign",
    "resize_crop",
    "sample_order",
    "strips",
    "subject_index",
    "to_tensor",
    "try_decode",
    "validate_row",
]
