"""``diffalign demo``: photographs to an aligned model and a report, start to end."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from diffalign.core import default_device, get_console, override, print_table

__all__ = ["demo"]


def demo(
    base: Annotated[str, typer.Option(help="Model to align: folder, hub id, or tiny-sd.")] = "tiny-sd",
    photos: Annotated[str, typer.Option(help="Folder of photographs with captions; by default the embedded ones.")] = (
        "photographs"
    ),
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting: num_fit_steps=50.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the run; it goes on there.")] = Path("runs/demo"),
) -> None:
    """Make pairs of photographs, align a model on them, measure it, write a report.

    Captions of your own photographs come from .txt files beside them, metadata.jsonl or the folders' names. Ctrl-C
    leaves a run that the same command continues.

        diffalign demo

        diffalign demo --base stable-diffusion-v1-5/stable-diffusion-v1-5 --photos my-photos/ --set size=512
    """
    from diffalign.recipes.demo import DemoConfig, run_demo

    results = run_demo(override(DemoConfig(base=base, photos=photos), settings or []), out, device=default_device())
    print_results(results)
    get_console().print(f"report: {out / 'report.html'}", markup=False)


def print_results(results: dict[str, Any]) -> None:
    """The table of models and metrics, and what the differences from the base say."""
    metrics = list(results["roles"])
    rows = [
        (name, *(_interval(measured.get(metric)) for metric in metrics)) for name, measured in results["models"].items()
    ]
    heads = [f"{metric} ({results['roles'][metric]})" for metric in metrics]
    print_table(["model", *heads], rows, title="means with 95 % intervals over prompts")
    found = {(row["model"], row["baseline"], row["metric"]): row for row in results["differences"]}
    rows = [
        (f"{model} - {baseline}", *(_interval(found.get((model, baseline, metric)), sign=True) for metric in metrics))
        for model, baseline in dict.fromkeys((model, baseline) for model, baseline, _ in found)
    ]
    print_table(["difference", *metrics], rows, title="paired differences")


def _interval(numbers: dict[str, Any] | None, *, sign: bool = False) -> str:
    if numbers is None:
        return ""
    plus = "+" if sign else ""
    return f"{numbers['mean']:{plus}.3g} ({numbers['low']:{plus}.3g} to {numbers['high']:{plus}.3g})"
