"""``diffalign inspect``: a preference set, or all that a curation left, as a page to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from diffalign.data import Preferences
    from diffalign.report import Page, Section

__all__ = ["inspect"]


def inspect(
    data: Annotated[
        Path, typer.Argument(metavar="DATA", help="Preference rows (a folder or Parquet file), or a curation's folder.")
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The page; replaced if it exists.")] = Path(
        "runs/inspect.html"
    ),
    limit: Annotated[int, typer.Option(min=1, help="Rows shown at most, spread evenly over all.")] = 48,
    audit: Annotated[bool, typer.Option("--audit", help="Audit the pairs first, where no audit is there yet.")] = False,
) -> None:
    """Write preference rows as one HTML file to look through, filter and mark, and print its path.

    Of a curation's folder the page shows its funnel and audit, and also the pairs that were dropped and why.

    diffalign inspect pairs/ --out pairs.html
    """
    from diffalign.core import DiffalignError

    if (data / "funnel.json").is_file():
        page = _run_page(data, limit, audit)
    elif (data / "looked").is_dir():
        raise DiffalignError(f"the curation in {data} has not finished; run it again, and it goes on from there")
    else:
        page = _rows_page(data, limit, audit)
    page.write(out)
    typer.echo(out)


def _rows_page(data: Path, limit: int, audit: bool) -> Page:
    """The page of any preference rows."""
    from diffalign.data import Preferences
    from diffalign.report import Page, pair_gallery

    preferences = Preferences(data)
    kind = "pairs" if preferences.form == "pair" else "candidate sets"
    prompts = len(set(preferences.prompts()))
    page = Page(data.resolve().name, f"{len(preferences):,} {kind} of {prompts:,} prompts")
    if audit:
        page.add(_audited(preferences))
    page.add(pair_gallery(preferences, limit, title=kind.capitalize()))
    return page


def _audited(preferences: Preferences) -> Section:
    from diffalign.core import DiffalignError
    from diffalign.curate import audit_pairs
    from diffalign.report import audit_section

    if preferences.form != "pair":
        raise DiffalignError("--audit compares the two sides of pairs, got candidate sets: leave it out")
    return audit_section(audit_pairs(preferences).to_dict())


def _run_page(folder: Path, limit: int, audit: bool) -> Page:
    """The page of a finished curation."""
    from diffalign.core import read_json, read_jsonl, read_text
    from diffalign.curate import STAGES
    from diffalign.data import Preferences
    from diffalign.report import Page, audit_section, funnel_section, pair_gallery, provenance, rejected_section

    rejected = list(read_jsonl(folder / "rejected.jsonl"))
    after = STAGES[STAGES.index("score") + 1 :]  # what these drop was a pair already
    rows, fates = _made(folder, {str(row.get("id")): row for row in rejected if row.get("stage") in after})
    page = Page(folder.resolve().name, "A curation: what was kept, what was dropped, and why")
    page.add(funnel_section(read_json(folder / "funnel.json")))
    if (folder / "audit.json").is_file():
        page.add(audit_section(read_json(folder / "audit.json")))
    elif audit and None in fates:
        page.add(_audited(Preferences(folder / "pairs")))
    page.add(pair_gallery(rows, limit, fates=fates, title="Pairs"))
    page.add(rejected_section(row for row in rejected if row.get("stage") not in after))
    if (folder / "config.yaml").is_file():
        page.add(provenance(read_text(folder / "config.yaml"), read_json(folder / "versions.json")[-1]["versions"]))
    return page


def _made(folder: Path, dropped: Mapping[str, Any]) -> tuple[Sequence[Any], list[Any]]:
    """The pairs that a curation made, and of each where it was dropped; None where it was kept."""
    from diffalign.data import Preferences

    files = sorted(folder.glob("made/*/pairs/*.parquet")) or sorted(folder.glob("pairs/*.parquet"))
    if not files:
        return [], []
    rows = Preferences(files)
    kept = set(Preferences(folder / "pairs").ids()) if any(folder.glob("pairs/*.parquet")) else set()
    places = [place for place, name in enumerate(rows.ids()) if name in kept or name in dropped]
    rows = rows.select(places)
    return rows, [None if name in kept else dropped[name] for name in rows.ids()]
