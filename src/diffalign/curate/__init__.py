"""Real photographs to preference pairs, with provenance: each stage a function, all of them one resumable run."""

from __future__ import annotations

from diffalign.curate.captions import clean_caption
from diffalign.curate.config import CurateConfig
from diffalign.curate.degrade import composite, inpaint
from diffalign.curate.funnel import STAGES, Dropped, Funnel
from diffalign.curate.locate import colour_saliency, mask_of
from diffalign.curate.make import make_pairs
from diffalign.curate.pairs import curate
from diffalign.curate.select import Selection, select_pairs
from diffalign.curate.sources import Photo, Photos, Rejected, embedded_photographs, photo_folder

__all__ = [
    "STAGES",
    "CurateConfig",
    "Dropped",
    "Funnel",
    "Photo",
    "Photos",
    "Rejected",
    "Selection",
    "clean_caption",
    "colour_saliency",
    "composite",
    "curate",
    "embedded_photographs",
    "inpaint",
    "make_pairs",
    "mask_of",
    "photo_folder",
    "select_pairs",
]
