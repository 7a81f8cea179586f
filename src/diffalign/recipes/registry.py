"""What a recipe is: a function that returns a complete plan, with what people ask about it first."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from diffalign.core import Registry
from diffalign.objectives import get_objective
from diffalign.recipes.licences import BASE_MODELS, DATA_SETS, BaseModel, DataSet
from diffalign.train import Plan
from diffalign.train.quantities import takes_candidates

__all__ = ["RECIPES", "Recipe", "recipe", "tiny_twin"]

RECIPES: Registry[Recipe] = Registry("recipe")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A named plan.

    Attributes:
        build: called with ``data`` and ``model``; returns the plan.
        paper: where the settings come from.
        data: what its rows hold, and how many there were in the paper.
        sources: the published data they were made from, keys of ``DATA_SETS``.
        compute: what it was run on.
    """

    build: Callable[..., Plan]
    paper: str
    data: str
    sources: tuple[str, ...]
    compute: str

    @property
    def model(self) -> str:
        """The base model that the settings are for."""
        return str(inspect.signature(self.build).parameters["model"].default)

    @property
    def base(self) -> BaseModel:
        """Name, licence and twin of the base model."""
        return BASE_MODELS[self.model]

    @property
    def data_sets(self) -> tuple[DataSet, ...]:
        """Names and licences of the published data."""
        return tuple(DATA_SETS[source] for source in self.sources)

    @property
    def objectives(self) -> tuple[str, ...]:
        """The objective of every stage."""
        return tuple(stage.objective for stage in self.build("data").stages)

    @property
    def rows(self) -> Literal["pairs", "candidate sets"]:
        """The form of rows it trains on."""
        sets = any(takes_candidates(get_objective(name)) for name in self.objectives)
        return "candidate sets" if sets else "pairs"

    @property
    def twin(self) -> str:
        """The embedded model that stands in for its base model."""
        return self.base.twin


def recipe(
    name: str, *, paper: str, data: str, sources: tuple[str, ...], compute: str
) -> Callable[[Callable[..., Plan]], Callable[..., Plan]]:
    """A decorator that registers a recipe and returns its function unchanged."""

    def register(build: Callable[..., Plan]) -> Callable[..., Plan]:
        RECIPES.register(name)(Recipe(build=build, paper=paper, data=data, sources=sources, compute=compute))
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
            "micro_batch_size": 4 if get_objective(stage.objective).couples_batch else 2,
            "mixed_precision": "no",
        }
        if stage.samples is not None:
            samples: dict[str, Any] = {"num_steps": min(3, stage.samples.num_steps)}
            if stage.samples.state == "truncated":
                samples["truncate"] = min(samples["num_steps"] - 1, stage.samples.truncate)
            changes["samples"] = stage.samples.replace(**samples)
        if stage.inversion is not None:
            changes["inversion"] = stage.inversion.replace(num_steps=min(2, stage.inversion.num_steps))
        stages.append(stage.replace(**changes))
    return plan.replace(stages=tuple(stages))
