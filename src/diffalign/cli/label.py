"""``diffalign label``: scores of pairs or candidate sets to pairs with labels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from diffalign.core import get_console, override, print_table

if TYPE_CHECKING:
    from diffalign.data import LabelCounts

__all__ = ["label"]


def label(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="Pairs or candidate sets with scores: a folder or Parquet file.")
    ],
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="Folder of the run; it goes on there. Pairs come to OUT/pairs.")
    ],
    metric: Annotated[
        list[str], typer.Option(metavar="NAME", help="A score to judge by, higher is better; repeat for several.")
    ],
    rule: Annotated[
        Literal["binary", "bradley_terry", "win_rate", "win_fraction", "majority"],
        typer.Option(help="How scores become a label."),
    ] = "bradley_terry",
    weight: Annotated[
        list[float] | None, typer.Option(help="Of a metric, once for each, adding up to 1; equal by default.")
    ] = None,
    temperature: Annotated[
        list[float] | None,
        typer.Option(help="Gap that makes odds of e to 1, once or for each metric; 1 by default."),
    ] = None,
    tie: Annotated[
        list[float] | None, typer.Option(help="Largest gap that is a tie, once or for each metric; 0 by default.")
    ] = None,
    min_gap: Annotated[
        list[float] | None, typer.Option(help="Drop pairs closer than this, once or for each metric; 0 by default.")
    ] = None,
    pairs: Annotated[
        Literal["best-worst", "all", "pareto"], typer.Option(help="Which pairs of a candidate set.")
    ] = "best-worst",
    drop_ties: Annotated[bool, typer.Option("--drop-ties", help="Drop pairs that end as a tie.")] = False,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting: rules.0.tied=drop.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the table; write nothing.")] = False,
) -> None:
    """Give pairs labels from their scores, or make labelled pairs of candidate sets.

    A label is the probability that the chosen image is the better one. Pairs whose rejected image is better are turned,
    so that every label is at least 0.5. What was dropped and why stands in OUT/dropped.jsonl. Killed at any moment, the
    same command goes on.

        diffalign label runs/curated runs/soft --metric pickscore --temperature 16.66

        diffalign label runs/sets runs/voted --rule majority --metric hpsv2.1 --metric pickscore --metric clip_score

        diffalign label runs/sets runs/capo --rule win_rate --pairs pareto --metric pickscore --metric image_reward
    """
    from diffalign.data import LabelConfig, LabelRule, label_preferences, plan_labels

    given: dict[str, list[float] | None] = {
        "weights": weight,
        "temperatures": temperature,
        "ties": tie,
        "min_gaps": min_gap,
    }
    numbers: dict[str, Any] = {name: tuple(values) for name, values in given.items() if values}
    made = LabelRule(name=rule, metrics=tuple(metric), tied="drop" if drop_ties else "keep", **numbers)
    config = override(LabelConfig(source=str(source), rules=(made,), pairs=pairs), settings or [])
    if dry_run:
        _print_counts(plan_labels(config).counts)
        return
    _print_counts(label_preferences(config, out))
    get_console().print(f"pairs: {out / 'pairs'}; look at them with: diffalign inspect {out}", markup=False)


def _print_counts(counts: LabelCounts) -> None:
    rows: list[tuple[str, object]] = [
        ("rows in", f"{counts.rows:,}"),
        ("pairs out", f"{counts.pairs:,}"),
        ("of these ties", f"{counts.ties:,}"),
        *([] if counts.swapped is None else [("of these swapped", f"{counts.swapped:,}")]),
        *((f"dropped: {reason}", f"{count:,}") for reason, count in counts.dropped.items()),
        ("mean label", f"{counts.mean_label:.4f}"),
    ]
    print_table(["what", "count"], rows, title="labels")
