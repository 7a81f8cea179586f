"""Functions that return complete runs, one file per paper, each with a tiny twin."""

from __future__ import annotations

from diffalign.recipes.capo import capo_sd3m, capo_sdxl
from diffalign.recipes.curation import CURATIONS, realalign_curation
from diffalign.recipes.cw_dpo import cw_dpo_sd15
from diffalign.recipes.diffusion_dpo import diffusion_dpo_sd15, diffusion_dpo_sdxl
from diffalign.recipes.diffusion_dro import diffusion_dro_sd15
from diffalign.recipes.diffusion_kto import diffusion_kto_sd15
from diffalign.recipes.diffusion_npo import diffusion_npo_sd15, diffusion_npo_sdxl
from diffalign.recipes.dmpo import dmpo_sd15, dmpo_sdxl
from diffalign.recipes.dspo import dspo_sd15
from diffalign.recipes.inpo import inpo_sd15, inpo_sdxl
from diffalign.recipes.lambda_listwise import lambda_listwise_sd15
from diffalign.recipes.licences import BASE_MODELS, DATA_SETS, BaseModel, DataSet
from diffalign.recipes.linear_dpo import linear_dpo_sd15, linear_dpo_sdxl
from diffalign.recipes.mapo import mapo_sdxl
from diffalign.recipes.pgd import (
    cpgd_negative_sd15,
    cpgd_negative_sdxl,
    cpgd_positive_sd15,
    cpgd_positive_sdxl,
    pgd_sd15,
    pgd_sdxl,
)
from diffalign.recipes.rank_dpo import rank_dpo_sd3m, rank_dpo_sdxl
from diffalign.recipes.realalign import (
    realalign_gated_sd15,
    realalign_gated_sd35m,
    realalign_on_dpo_sd15,
    realalign_on_flow_grpo_sd35m,
    realalign_sd15,
    realalign_sd35m,
)
from diffalign.recipes.registry import RECIPES, Recipe, recipe, tiny_twin
from diffalign.recipes.sdpo import sdpo_sd15, sdpo_sdxl
from diffalign.recipes.self_npo import self_npo_sd15, self_npo_sdxl
from diffalign.recipes.smpo import smpo_sd15, smpo_sdxl
from diffalign.recipes.sources import SourcedSetting, setting_sources

__all__ = [
    "BASE_MODELS",
    "CURATIONS",
    "DATA_SETS",
    "RECIPES",
    "BaseModel",
    "DataSet",
    "Recipe",
    "SourcedSetting",
    "capo_sd3m",
    "capo_sdxl",
    "cpgd_negative_sd15",
    "cpgd_negative_sdxl",
    "cpgd_positive_sd15",
    "cpgd_positive_sdxl",
    "cw_dpo_sd15",
    "diffusion_dpo_sd15",
    "diffusion_dpo_sdxl",
    "diffusion_dro_sd15",
    "diffusion_kto_sd15",
    "diffusion_npo_sd15",
    "diffusion_npo_sdxl",
    "dmpo_sd15",
    "dmpo_sdxl",
    "dspo_sd15",
    "inpo_sd15",
    "inpo_sdxl",
    "lambda_listwise_sd15",
    "linear_dpo_sd15",
    "linear_dpo_sdxl",
    "mapo_sdxl",
    "pgd_sd15",
    "pgd_sdxl",
    "rank_dpo_sd3m",
    "rank_dpo_sdxl",
    "realalign_curation",
    "realalign_gated_sd15",
    "realalign_gated_sd35m",
    "realalign_on_dpo_sd15",
    "realalign_on_flow_grpo_sd35m",
    "realalign_sd15",
    "realalign_sd35m",
    "recipe",
    "sdpo_sd15",
    "sdpo_sdxl",
    "self_npo_sd15",
    "self_npo_sdxl",
    "setting_sources",
    "smpo_sd15",
    "smpo_sdxl",
    "tiny_twin",
]
