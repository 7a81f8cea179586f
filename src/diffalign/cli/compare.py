"""``diffalign compare``: two scored folders, metric by metric."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffalign.cli.score import named_values, span
from diffalign.core import DiffalignError, print_table, warn, write_json

if TYPE_CHECKING:
    from diffalign.evaluate import MetricComparison

__all__ = ["compare"]

_FEW_PROMPTS = 10
_TIES = "Equal scores are a tie, half a win."


def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="Scored folder of one model, the tuned one say.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Scored folder of the other, its base say.")],
    metric: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A metric to compare; by default all that both have.")
    ] = None,
    margin: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Test that A is no worse than B by so much.")
    ] = None,
    ignore: Annotated[
        list[str] | None, typer.Option(metavar="SETTING", help="A setting that may differ, such as num_steps.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the rows as JSON too.")
    ] = None,
) -> None:
    """Compare two models on the same prompts and seeds, by the scores that diffalign score wrote.

    Refuses if prompts, seeds, resolution, sampler, steps, guidance, negative prompt, precision or versions of metrics
    differ. Claims rest on held-out metrics; those in training are shown beside them.

        diffalign compare runs/tuned runs/base

        diffalign compare runs/tuned runs/base --metric hpsv2.1 --margin hpsv2.1=0.002
    """
    from diffalign.evaluate import compare as compare_folders
    from diffalign.evaluate import compared_models, hacking_alarms

    rows = compare_folders(a, b, metrics=metric or None, margins=_margins(margin or []), ignore=ignore or ())
    models = compared_models(a, b, ignore=ignore or ())
    typer.echo(f"A: {_side(models['a'])}\nB: {_side(models['b'])}\nPositive: A is better.")
    typer.echo(f"ignored: {', '.join(models['ignored'])}\n" if models["ignored"] else "")
    print_table(
        ["metric", "role", "A", "B", "A better by", "95 % interval", "p", "p (Holm)", "wins of A", "95 % interval",
         "win/tie/loss", "prompts x seeds", "missing in A, B"],
        [_cells(row) for row in rows],
    )  # fmt: skip
    typer.echo("\n" + "\n".join(_notes(rows)))
    alarms = hacking_alarms(rows)
    for alarm in alarms:
        warn(alarm)
    if json_file is not None:
        found = {**models, "positive": "A is better", "ties": _TIES, "alarms": alarms}
        write_json(json_file, found | {"metrics": [asdict(row) for row in rows]})


def _side(model: Mapping[str, Any]) -> str:
    """A side's folder, and its guide with what can be told in a word."""
    guide = model.get("guide", {})
    told = [f"{name} {guide[name]:g}" for name in ("scale", "phi") if guide.get(name) is not None]
    return ", ".join([model["folder"], *([f"guide {guide['name']}", *told] if guide else [])])


def _margins(assignments: list[str]) -> dict[str, float]:
    margins = {}
    for name, text in named_values(assignments, "NAME=VALUE").items():
        try:
            margins[name] = float(text)
        except ValueError:
            raise DiffalignError(f"expected a number as the margin of {name}, got {text!r}") from None
    return margins


def _cells(row: MetricComparison) -> tuple[object, ...]:
    missing = f"{row.num_missing_a}, {row.num_missing_b}"
    difference, wins = row.difference, row.win_rate
    if difference is None or wins is None:
        return row.name, row.role, *["-"] * 9, f"{row.num_prompts} x -", missing
    return (
        row.name,
        row.role,
        f"{row.mean_a:.4g}",
        f"{row.mean_b:.4g}",
        f"{difference.mean:+.4g}",
        span(difference, "+.4g"),
        _p(difference.p_value),
        _p(row.p_holm),
        f"{wins.mean:.1%}",
        f"{wins.low:.1%} to {wins.high:.1%}",
        f"{wins.wins}/{wins.ties}/{wins.losses}",
        f"{row.num_prompts} x {row.num_seeds:.3g}",
        missing,
    )


def _p(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g}"


def _notes(rows: list[MetricComparison]) -> list[str]:
    """What the reader of the table should know, a line each."""
    smallest = [(row.name, row.smallest_win_rate) for row in rows if row.smallest_win_rate is not None]
    told = ", ".join(f"{name} {'none' if rate > 1 else f'{rate:.1%}'}" for name, rate in smallest)
    undirected = [row.name for row in rows if row.higher_is_better is None]
    margins = [f"{row.name} {'yes' if row.no_worse else 'not shown'}" for row in rows if row.no_worse is not None]
    notes = [
        f"Smallest win rate that can be told from 50 % (80 % power, two-sided 5 %): {told}." if told else "",
        _TIES,
        "p: sign flips over prompts; Holm's adjustment over the held-out metrics alone, on which claims rest.",
        f"Neither direction is better, so positive means A is higher: {', '.join(undirected)}." if undirected else "",
        f"A no worse than B by its margin: {', '.join(margins)}." if margins else "",
        _too_few(rows),
        _constant(rows),
        _few(rows),
    ]
    return [note for note in notes if note]


def _too_few(rows: list[MetricComparison]) -> str:
    names = [row.name for row in rows if row.difference is None]
    return f"Fewer than 2 prompts with a score on both sides: {', '.join(names)}." if names else ""


def _constant(rows: list[MetricComparison]) -> str:
    names = [row.name for row in rows if row.difference is not None and row.difference.method == "constant"]
    return f"All prompts differ by the same, which gives no interval: {', '.join(names)}." if names else ""


def _few(rows: list[MetricComparison]) -> str:
    few = {row.num_prompts for row in rows if row.difference is not None and row.num_prompts < _FEW_PROMPTS}
    least = ", ".join(f"{2 ** (1 - count):.2g} with {count}" for count in sorted(few))  # of 2^P flips, 2 are extreme
    told = f"Fewer than {_FEW_PROMPTS} prompts: intervals assume normal means of prompts; p is at least {least}."
    return told if few else ""
