"""Functions that return complete runs, one file per paper, each with a tiny twin."""

from __future__ import annotations

from diffalign.recipes.curation import CURATIONS, realalign_curation
from diffalign.recipes.realalign import (
    realalign_gated_sd15,
    realalign_gated_sd35m,
    realalign_sd15,
    realalign_sd35m,
)
from diffalign.recipes.registry import RECIPES, Recipe, recipe, tiny_twin

__all__ = [
    "CURATIONS",
    "RECIPES",
    "Recipe",
    "realalign_curation",
    "realalign_gated_sd15",
    "realalign_gated_sd35m",
    "realalign_sd15",
    "realalign_sd35m",
    "recipe",
    "tiny_twin",
]
