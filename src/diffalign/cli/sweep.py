"""``diffalign sweep``: the strengths of a sweep scored, one of them chosen, and what it gains."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from diffalign.cli.score import named_values
from diffalign.core import default_device, get_console, print_table, warn, write_json

__all__ = ["sweep"]


def sweep(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="What diffalign sample made with a range of --scale or --guidance.")
    ],
    reward: Annotated[
        list[str], typer.Option(metavar="NAME", help="A metric, as in diffalign score; may be repeated.")
    ],
    choose_by: Annotated[
        str | None, typer.Option(metavar="NAME", help="The metric that chooses; by default the only one.")
    ] = None,
    held_out: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A metric that claims may rest on; may be repeated.")
    ] = None,
    validation_share: Annotated[float, typer.Option(help="Share of the prompts that choose.")] = 0.5,
    min_diversity: Annotated[
        float, typer.Option(help="Share of the weakest strength's diversity that must be kept.")
    ] = 0.9,
    weights: Annotated[
        list[str] | None, typer.Option(metavar="NAME=PATH", help="Weights of a reward: folder or hub id.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per call of a network.")] = 32,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...; by default a GPU if there is one.")] = "",
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the results as JSON there too.")
    ] = None,
) -> None:
    """Score a sweep over guidance strengths, choose one, and say what it gains.

    Some of the prompts choose: the strength with the best mean of the choosing metric among those whose images keep
    enough diversity and lack a score at most 5 % (of all images) more often than at the weakest; the weaker of equal
    ones. The others tell what it gains, by every metric, with intervals. A prompt's part is a hash of its id. Nothing
    is scored twice.

    FOLDER gets sweep-results.json, sweep.html (images under a slider, quality against diversity) and sweep.svg.

        diffalign sweep runs/strengths --reward pickscore --reward hpsv2.1 --choose-by pickscore --held-out hpsv2.1
    """
    from diffalign.evaluate import measure_sweep
    from diffalign.report import draw_sweep, sweep_page

    results = measure_sweep(
        folder,
        reward,
        choose_by=choose_by,
        held_out=held_out or (),
        validation_share=validation_share,
        min_diversity=min_diversity,
        weights=named_values(weights or (), "NAME=PATH"),
        batch_size=batch_size,
        device=device or default_device(),
    )
    for path in (folder / "sweep-results.json", *([json_file] if json_file else [])):
        write_json(path, results)
    sweep_page(results, folder).write(folder / "sweep.html")
    draw_sweep(results, folder / "sweep.svg")
    _print(results)
    for alarm in results["alarms"]:
        warn(alarm)
    get_console().print(f"page: {folder / 'sweep.html'}, figure: {folder / 'sweep.svg'}", markup=False)


def _print(results: Mapping[str, Any]) -> None:
    chosen = f"{results['axis']} {results['chosen']:g}"
    validation = [
        (
            f"{results['axis']} {row['strength']:g}",
            _value(row["quality"]),
            _value(row["diversity"]),
            f"{row['num_failed']} of {row['num_images']}",
            "chosen" if row["strength"] == results["chosen"] else "yes" if row["in_choice"] else "no",
        )
        for row in results["validation"]
    ]
    count = len(results["prompts"]["validation"])
    heads = ["strength", results["chosen_by"], "diversity", "without a score", "in the choice"]
    print_table(heads, validation, title=f"the {count} validation prompts, which choose")
    metrics = list(results["roles"])
    rows = [
        (
            f"{name}, left out" if strength in results["left_out"] else name,
            *(_interval(found.get(metric)) for metric in metrics),
        )
        for strength, (name, found) in zip(results["strengths"], results["models"].items(), strict=True)
    ]
    count = len(results["prompts"]["report"])
    heads = ["strength", *(f"{metric} ({results['roles'][metric]})" for metric in metrics)]
    print_table(heads, rows, title=f"the other {count} prompts, means with 95 % intervals")
    if results["differences"]:
        pair = results["differences"][0]
        gains = [(row["metric"], results["roles"][row["metric"]], *_gain(row)) for row in results["differences"]]
        print_table(
            ["metric", "role", "difference", "95 % interval"], gains, title="{model} - {baseline}".format(**pair)
        )
    typer.echo("\n".join(["", f"chosen: {chosen}: {results['rule']}.", *results["notes"]]))


def _interval(numbers: Mapping[str, Any] | None) -> str:
    if numbers is None:
        return "-"
    return f"{numbers['mean']:.4g} ({_span(numbers, '.4g')})"


def _gain(numbers: Mapping[str, Any]) -> tuple[str, str]:
    return f"{numbers['mean']:+.4g}", _span(numbers, "+.4g")


def _span(numbers: Mapping[str, Any], form: str) -> str:
    if numbers["low"] == numbers["high"]:
        return "constant"
    return f"{numbers['low']:{form}} to {numbers['high']:{form}}"


def _value(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"
