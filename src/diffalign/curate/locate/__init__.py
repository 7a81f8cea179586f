"""Where to damage an image: masks from saliency, segmentation, the prompt, or chance, all under one interface."""

from __future__ import annotations

from diffalign.curate.locate.contract import LOCATORS, Locator, load_locator
from diffalign.curate.locate.grounded import Grounded, scaled_boxes
from diffalign.curate.locate.masks import check_area, mask_of, min_max, salient_mask
from diffalign.curate.locate.onnx_saliency import OnnxSaliency
from diffalign.curate.locate.saliency import ColourSaliency, SpectralResidual, colour_saliency, spectral_residual
from diffalign.curate.locate.saliency_model import SaliencyModel
from diffalign.curate.locate.segments import SegmentAnything, draw_segment
from diffalign.curate.locate.shapes import FullImage, RandomShapes, random_shapes

__all__ = [
    "LOCATORS",
    "ColourSaliency",
    "FullImage",
    "Grounded",
    "Locator",
    "OnnxSaliency",
    "RandomShapes",
    "SaliencyModel",
    "SegmentAnything",
    "SpectralResidual",
    "check_area",
    "colour_saliency",
    "draw_segment",
    "load_locator",
    "mask_of",
    "min_max",
    "random_shapes",
    "salient_mask",
    "scaled_boxes",
    "spectral_residual",
]
