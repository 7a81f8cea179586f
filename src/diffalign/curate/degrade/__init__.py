"""Damage on purpose: what turns a photograph into the image that a pair rejects."""

from __future__ import annotations

from diffalign.curate.degrade.composites import composite
from diffalign.curate.degrade.contract import DEGRADATIONS, Degradation, Kind, Setup, build_degradation
from diffalign.curate.degrade.drawing import ImageToImage, Regenerate
from diffalign.curate.degrade.filters import Filter, filter_degradation
from diffalign.curate.degrade.inpainting import Inpaint, InpaintWithPipeline, check_inpainting, inpaint
from diffalign.curate.degrade.loading import load_degradation
from diffalign.curate.degrade.mixture import Mixture
from diffalign.curate.degrade.surroundings import SurroundingsFill

__all__ = [
    "DEGRADATIONS",
    "Degradation",
    "Filter",
    "ImageToImage",
    "Inpaint",
    "InpaintWithPipeline",
    "Kind",
    "Mixture",
    "Regenerate",
    "Setup",
    "SurroundingsFill",
    "build_degradation",
    "check_inpainting",
    "composite",
    "filter_degradation",
    "inpaint",
    "load_degradation",
]
