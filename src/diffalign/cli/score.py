"""``diffalign score``: the images of a run or folder to a table of scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diffalign.core import DiffalignError, default_device, get_console, print_table, write_json

if TYPE_CHECKING:
    from diffalign.evaluate import MetricSummary
    from diffalign.stats import Estimate

__all__ = ["named_values", "score", "span"]


def score(
    source: Annotated[
        Path,
        typer.Argument(metavar="SOURCE", help="Folder of a sample run, its manifest.jsonl, or a folder of images."),
    ],
    reward: Annotated[
        list[str], typer.Option(metavar="NAME", help="A reward's name, sgp:NAME or module:function; may be repeated.")
    ],
    in_training: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A metric that selected data or settings, or was optimised."),
    ] = None,
    held_out: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A metric without such a part, that claims may rest on.")
    ] = None,
    weights: Annotated[
        list[str] | None, typer.Option(metavar="NAME=PATH", help="Weights of a reward: folder or hub id.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the table; by default the images' own.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per call of a network.")] = 32,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...; by default a GPU if there is one.")] = "",
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the summary as JSON too.")
    ] = None,
) -> None:
    """Score images by one or several rewards.

    Writes scores.jsonl, a row for each image and metric. What was scored before is not scored again. Images without a
    score (not generated, unreadable, black, NaN) stay in the table without a value and are counted. Where a metric
    fails on every image, that is an error.

    A plain folder needs a prompt per image: cat.txt beside cat.png, or metadata.jsonl.

        diffalign score runs/a --reward tiny-clip --reward saturation

        diffalign score photos --reward hpsv2.1 --weights hpsv2.1=weights/hps
    """

    from diffalign.evaluate import score_folder, summarise

    rows = score_folder(
        source,
        reward,
        out=out,
        weights=named_values(weights or (), "NAME=PATH"),
        in_training=in_training or (),
        held_out=held_out or (),
        batch_size=batch_size,
        device=device or default_device(),
    )
    summaries = summarise(rows)
    print_table(
        ["metric", "role", "mean", "95 % interval", "images", "scored", "without a score"],
        [_cells(each) for each in summaries],
    )
    folder = out or (source if source.is_dir() else source.parent)
    get_console().print(f"table: {folder / 'scores.jsonl'}", markup=False)
    if json_file is not None:
        write_json(json_file, {"source": str(source), "metrics": [asdict(each) for each in summaries]})
    for each in summaries[-len(reward) :]:  # those scored now stand last
        if set(each.counts) - {"not generated"} == {"error"}:
            status = next(row.status for row in rows if row.name == each.name and row.status.startswith("error"))
            raise DiffalignError(f"{each.name} failed on every image, the first with {status}")


def named_values(assignments: Sequence[str], form: str) -> dict[str, str]:
    """NAME=VALUE options as a dict.

    Raises:
        DiffalignError: one has no name, no value, or comes twice.
    """
    found: dict[str, str] = {}
    for assignment in assignments:
        name, _, value = assignment.partition("=")
        if not name or not value:
            raise DiffalignError(f"expected {form}, got {assignment!r}")
        if name in found:
            raise DiffalignError(f"{name} is given twice: {found[name]!r} and {value!r}")
        found[name] = value
    return found


def span(estimate: Estimate, form: str) -> str:
    """An interval as text, its ends in this format; "constant" where all prompts agree, which gives none."""
    return "constant" if estimate.method == "constant" else f"{estimate.low:{form}} to {estimate.high:{form}}"


def _cells(summary: MetricSummary) -> tuple[object, ...]:
    mean, counts = summary.mean, dict(summary.counts)
    scored, total = counts.pop("ok", 0), sum(summary.counts.values())
    missing = ", ".join(f"{count} {status}" for status, count in counts.items()) or "none"
    shown = ("-", "-") if mean is None else (f"{mean.mean:.4g}", span(mean, ".4g"))
    return summary.name, summary.role, *shown, total, scored, missing
