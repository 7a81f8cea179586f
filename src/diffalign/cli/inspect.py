"""``diffalign inspect``: a preference set as a page to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["inspect"]


def inspect(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="Preference rows: a folder or Parquet file.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The page; replaced if it exists.")] = Path(
        "runs/inspect.html"
    ),
    limit: Annotated[int, typer.Option(min=1, help="Rows shown at most, spread evenly over all.")] = 48,
) -> None:
    """Write preference rows as one HTML file, which flips between chosen and rejected, and print its path.

    diffalign inspect pairs/ --out pairs.html
    """
    from diffalign.data import Preferences
    from diffalign.report import Page, pair_gallery

    preferences = Preferences(data)
    kind = "pairs" if preferences.form == "pair" else "candidate sets"
    prompts = len(set(preferences.prompts()))
    page = Page(data.resolve().name, f"{len(preferences):,} {kind} of {prompts:,} prompts")
    page.add(pair_gallery(preferences, limit, title=kind.capitalize()))
    page.write(out)
    typer.echo(out)
