"""Functions that return complete runs, one file per paper, each with a tiny twin."""

from __future__ import annotations

from diffalign.recipes.realalign import realalign_sd15, realalign_sd35m
from diffalign.recipes.registry import RECIPES, Recipe, recipe, tiny_twin

__all__ = ["RECIPES", "Recipe", "realalign_sd15", "realalign_sd35m", "recipe", "tiny_twin"]
