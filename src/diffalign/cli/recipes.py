"""``diffalign recipes``: which papers can be run, and everything about one of them before it is."""

from __future__ import annotations

import json
import sys
from inspect import getdoc
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffalign.core import dump_config, print_table

if TYPE_CHECKING:
    from diffalign.recipes import Recipe

__all__ = ["recipes"]


def recipes(
    name: Annotated[str, typer.Argument(metavar="[RECIPE]", help="Show one whole; all in a table by default.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """List the recipes, or show one: what it does, every setting with its source, licences, how to run it.

    diffalign recipes realalign_sd15
    """
    from diffalign.recipes import RECIPES

    if name:
        recipe = RECIPES.get(name)
        typer.echo(json.dumps(_whole(name, recipe), indent=2)) if as_json else _print_whole(name, recipe)
        return
    listed = [(one, RECIPES.get(one)) for one in RECIPES]
    if as_json:
        typer.echo(json.dumps([_facts(one, recipe) for one, recipe in listed], indent=2))
        return
    rows = [(one, recipe.paper, ", ".join(recipe.objectives), recipe.data, recipe.compute) for one, recipe in listed]
    print_table(["recipe", "paper", "objective of each stage", "data", "compute"], rows)


def _facts(name: str, recipe: Recipe) -> dict[str, Any]:
    """What the table tells, and the licences."""
    return {
        "name": name,
        "paper": recipe.paper,
        "objectives": list(recipe.objectives),
        "model": {"id": recipe.model, "name": recipe.base.name, "licence": recipe.base.licence},
        "rows": recipe.rows,
        "data": recipe.data,
        "sources": [
            {"id": source, "name": one.name, "licence": one.licence, "reader": one.reader}
            for source, one in zip(recipe.sources, recipe.data_sets, strict=True)
        ],
        "compute": recipe.compute,
        "known_family": _has_family(recipe),
    }


def _whole(name: str, recipe: Recipe) -> dict[str, Any]:
    """All there is to know about a recipe."""
    from diffalign.recipes import setting_sources

    return _facts(name, recipe) | {
        "description": getdoc(recipe.build),
        "background": _background(recipe),
        "commands": _commands(name, recipe),
        "settings": [
            [{"key": one.key, "value": one.value, "source": one.source} for one in stage]
            for stage in setting_sources(recipe.build)
        ],
        "plan": dump_config(recipe.build("DATA")),
    }


def _print_whole(name: str, recipe: Recipe) -> None:
    from diffalign.recipes import setting_sources
    from diffalign.recipes.sources import DEFAULT

    typer.echo(f"{name}\n\n{getdoc(recipe.build)}\n\n{_background(recipe)}\n")
    facts = [("paper", recipe.paper), ("base model", f"{recipe.base.name}, {recipe.model}")]
    facts += [("licence", recipe.base.licence), ("rows", f"{recipe.rows}: {recipe.data}")]
    for one in recipe.data_sets:
        reader = f", read by diffalign.data.{one.reader}" if one.reader else ""
        facts.append(("data", f"{one.name}, licence {one.licence}{reader}"))
    print_table(["", ""], [*facts, ("compute", recipe.compute)])
    rows = [
        (number, one.key, _shown(one.value), one.source)
        for number, stage in enumerate(setting_sources(recipe.build), start=1)
        for one in stage
        if one.source != DEFAULT and one.key not in ("model", "data")
    ]
    print_table(["stage", "setting", "value", "source"], rows)
    typer.echo("All other settings keep their defaults: --json shows them, docs/reference/train.md explains them.\n")
    if not _has_family(recipe):
        typer.echo(
            f"There is no family for {recipe.base.name} here yet: its run ends with an error before any weight loads, "
            "and the tiny twin runs.\n"
        )
    run, twin = _commands(name, recipe).values()
    typer.echo(f"Run it:\n  {run}\nTry its tiny twin, minutes on a CPU:\n  {twin}")


def _background(recipe: Recipe) -> str:
    """What the recipe's file says about its paper: source, conventions, departures."""
    return getdoc(sys.modules[recipe.build.__module__]) or ""


def _commands(name: str, recipe: Recipe) -> dict[str, str]:
    start = " --start LORA" if recipe.build("DATA").stages[0].start else ""
    train = f"diffalign train {name}"
    return {
        "run": f"{train} --data ROWS{start} --out runs/{name}",
        "twin": f"{train} --tiny --model {recipe.twin} --data ROWS{start} --out runs/{name}-tiny",
    }


def _has_family(recipe: Recipe) -> bool:
    from diffalign.models import families

    return recipe.base.pipeline in families


def _shown(value: Any) -> str:
    """A value as ``--set`` takes it."""
    return value if isinstance(value, str) else json.dumps(value)
