"""Real photographs to preference pairs, with provenance and an audit: each stage a function, all one resumable run."""

from __future__ import annotations

from diffalign.curate.audit import Audit, audit_pairs, print_audit
from diffalign.curate.captioners import Captioner, load_captioner
from diffalign.curate.captions import clean_caption
from diffalign.curate.config import CurateConfig, KeepConfig, SelectConfig
from diffalign.curate.degrade import DEGRADATIONS, Degradation, composite, inpaint, load_degradation
from diffalign.curate.engine import Engine, default_workers, open_engine
from diffalign.curate.estimate import CurationEstimate, estimate_curation
from diffalign.curate.funnel import Funnel
from diffalign.curate.locate import LOCATORS, Locator, colour_saliency, load_locator, mask_of
from diffalign.curate.pairs import curate, open_source, read_audit
from diffalign.curate.perceptual import near_duplicates, perceptual_hash
from diffalign.curate.review import Marks, read_marks
from diffalign.curate.rows import STAGES, Candidate, Dropped
from diffalign.curate.select import Selection, select_pairs
from diffalign.curate.sources import Photo, Photos, Rejected, embedded_photographs, open_photos, photo_folder
from diffalign.curate.stages import (
    caption_photos,
    composite_regions,
    degrade_regions,
    drop_artwork,
    locate_regions,
    read_photos,
    score_pairs,
    select_photos,
)

__all__ = [
    "DEGRADATIONS",
    "LOCATORS",
    "STAGES",
    "Audit",
    "Candidate",
    "Captioner",
    "CurateConfig",
    "CurationEstimate",
    "Degradation",
    "Dropped",
    "Engine",
    "Funnel",
    "KeepConfig",
    "Locator",
    "Marks",
    "Photo",
    "Photos",
    "Rejected",
    "SelectConfig",
    "Selection",
    "audit_pairs",
    "caption_photos",
    "clean_caption",
    "colour_saliency",
    "composite",
    "composite_regions",
    "curate",
    "default_workers",
    "degrade_regions",
    "drop_artwork",
    "embedded_photographs",
    "estimate_curation",
    "inpaint",
    "load_captioner",
    "load_degradation",
    "load_locator",
    "locate_regions",
    "mask_of",
    "near_duplicates",
    "open_engine",
    "open_photos",
    "open_source",
    "perceptual_hash",
    "photo_folder",
    "print_audit",
    "read_audit",
    "read_marks",
    "read_photos",
    "score_pairs",
    "select_pairs",
    "select_photos",
]
