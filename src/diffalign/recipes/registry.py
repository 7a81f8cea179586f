"""What a recipe is: a function that returns a complete plan, with what people ask about it first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from diffalign.core import Registry
from diffalign.train import Plan

__all__ = ["RECIPES", "Recipe", "recipe", "tiny_twin"]

RECIPES: Registry[Recipe] = Registry("recipe")


@dataclass(frozen=True)
class Recipe:
    """A named plan.

    Attributes:
        build: called with ``data`` and ``model``; returns the plan.
        paper: where the settings come from.
        data: what it needs.
        compute: what it was run on.
    """

    build: Callable[..., Plan]
    paper: str
    data: str
    compute: str


def recipe(name: str, *, paper: str, data: str, compute: str) -> Callable[[Callable[..., Plan]], Callable[..., Plan]]:
    """A decorator that registers a recipe and returns its function unchanged."""

    def register(build: Callable[..., Plan]) -> Callable[..., Plan]:
        RECIPES.register(name)(Recipe(build, paper, data, compute))
        return build

    return register


def tiny_twin(plan: Plan, *, model: str, num_steps: int = 2) -> Plan:
    """The same plan on an embedded model: every setting of the method stays, the sizes shrink.

    Args:
        plan: a recipe's plan.
        model: "tiny-sd" or "tiny-sd3".
        num_steps: optimiser steps of each stage.
    """
    stages = []
    for stage in plan.stages:
        changes: dict[str, Any] = {
            "model": model,
            "resolution": 32,
            "num_steps": num_steps,
            "batch_size": 4,
            "micro_batch_size": 2,
            "mixed_precision": "no",
        }
        if stage.samples is not None:
            changes["samples"] = stage.samples.replace(num_steps=min(3, stage.samples.num_steps))
        stages.append(stage.replace(**changes))
    return plan.replace(stages=tuple(stages))
