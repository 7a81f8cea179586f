"""Predictions to a prediction: what sampling follows besides the model, on any diffusers pipeline."""

from __future__ import annotations

from diffalign.guidance.attaching import attach
from diffalign.guidance.chats import CHATS, chats, chats_text
from diffalign.guidance.composed import Composed, compose
from diffalign.guidance.contract import BASE, BASE_ALONE, Guide, HoldingGuide, Pass, Site
from diffalign.guidance.contrastive import Contrastive, PlusMinus, Weighted, contrastive, weighted
from diffalign.guidance.cost import count_evaluations
from diffalign.guidance.diffusion_npo import DiffusionNPO, diffusion_npo
from diffalign.guidance.guider import PreferenceGuider
from diffalign.guidance.merging import MergeReport, merge, merge_error
from diffalign.guidance.nag import NAG, nag
from diffalign.guidance.pgd import PGD, pgd
from diffalign.guidance.registry import GUIDES, GuideSpec, guide_identity, make_guide, module_hash
from diffalign.guidance.strength import PreferenceGuide, capped_scale, scheduled

__all__ = [
    "BASE",
    "BASE_ALONE",
    "CHATS",
    "GUIDES",
    "NAG",
    "PGD",
    "Composed",
    "Contrastive",
    "DiffusionNPO",
    "Guide",
    "GuideSpec",
    "HoldingGuide",
    "MergeReport",
    "Pass",
    "PlusMinus",
    "PreferenceGuide",
    "PreferenceGuider",
    "Site",
    "Weighted",
    "attach",
    "capped_scale",
    "chats",
    "chats_text",
    "compose",
    "contrastive",
    "count_evaluations",
    "diffusion_npo",
    "guide_identity",
    "make_guide",
    "merge",
    "merge_error",
    "module_hash",
    "nag",
    "pgd",
    "scheduled",
    "weighted",
]
