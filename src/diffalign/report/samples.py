"""Sampled images side by side: models on the same prompts and noise, and one model at several strengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from diffalign.core import DiffalignError, read_jsonl
from diffalign.data import decode_image
from diffalign.report.page import Section, render
from diffalign.report.pictures import Picture, embed
from diffalign.report.plots import along
from diffalign.report.results import check_estimates

__all__ = ["sample_grid", "strength_slider"]

_SIDE = 384  # pixels at most of an embedded image
_OK = "ok"
_FIELDS = {"prompt_id": str, "prompt": str, "seed": int, "file": str, "status": str}  # of a manifest's row

Key = tuple[str, int]  # prompt id, seed


@dataclass(frozen=True)
class _Shown:
    """A prompt with one seed: under each name an image, or why there is none."""

    prompt: str
    seed: int
    cells: list[tuple[str, Picture | str]]


def sample_grid(
    folders: Mapping[str, str | Path], limit: int = 12, *, title: str = "The same prompts and noise"
) -> Section:
    """Images of several models: a row for a prompt and seed, a column for a model.

    Only what every folder lists is shown, first the first seed of each prompt. An image that failed is shown as its
    status. A press enlarges an image, and the arrow keys then go from model to model.

    Args:
        folders: model name -> folder with ``manifest.jsonl``, as ``diffalign sample`` writes it.
        limit: rows at most.
        title: heading of the section.

    Raises:
        DiffalignError: a manifest or image cannot be read, prompts differ under one id, or nothing is shared.
        ValueError: no folder, or the limit is below 1.
    """
    rows, count = _rows(folders, limit)
    return Section(title, render("grid.html", rows=rows, count=count, models=list(folders)))


def strength_slider(
    folders: Sequence[tuple[float, str | Path]],
    results: Sequence[Mapping[str, Any]],
    limit: int = 6,
    *,
    title: str = "Quality against guidance strength",
) -> Section:
    """A slider over the strength of guidance, under which the images and a mark on the curves move.

    Args:
        folders: (strength, folder with ``manifest.jsonl``), at least two.
        results: for each of them, metric name -> {"mean", "low", "high"}; other entries are passed over.
        limit: prompts at most.
        title: heading of the section.

    Raises:
        DiffalignError: see `sample_grid`; or an estimate lacks a number.
        ValueError: fewer than two strengths, one that comes twice, or not one result for each.
    """
    strengths = [strength for strength, _ in folders]
    if len(set(strengths)) < 2 or len(set(strengths)) != len(strengths):
        raise ValueError(f"expected at least two strengths, each once, got {strengths}")
    if len(results) != len(folders):
        raise ValueError(f"expected results for each of {len(folders)} strengths, got {len(results)}")
    order = sorted(range(len(strengths)), key=strengths.__getitem__)
    names = [f"{strengths[index]:g}" for index in order]
    rows, count = _rows({f"{strengths[index]:g}": folders[index][1] for index in order}, limit)
    measured = [check_estimates(results[index]) for index in order]
    metrics = [name for name in measured[0] if all(name in each for each in measured)]
    panels = [along(name, [strengths[index] for index in order], [each[name] for each in measured]) for name in metrics]
    return Section(title, render("slider.html", rows=rows, count=count, names=names, panels=panels))


def _rows(folders: Mapping[str, str | Path], limit: int) -> tuple[list[_Shown], int]:
    """The first shared prompts and seeds with their images, and how many are shared."""
    if not folders or limit < 1:
        raise ValueError(f"expected at least one folder and a limit of at least 1, got {len(folders)} and {limit}")
    manifests = {name: _manifest(Path(folder)) for name, folder in folders.items()}
    first = next(iter(manifests.values()))
    shared = [key for key in first if all(key in rows for rows in manifests.values())]
    if not shared:
        raise DiffalignError(f"{', '.join(folders)} share no prompt id and seed; sample the same prompts with each")
    for key in shared:
        texts = {rows[key]["prompt"] for rows in manifests.values()}
        if len(texts) > 1:
            raise DiffalignError(f"prompt id {key[0]!r} stands for different prompts: {sorted(texts)[:2]}")
    shared.sort(key=lambda key: key[1])  # stable: the first seed of every prompt comes first
    shown = [
        _Shown(
            first[key]["prompt"],
            key[1],
            [(name, _image(Path(folders[name]), rows[key])) for name, rows in manifests.items()],
        )
        for key in shared[:limit]
    ]
    return shown, len(shared)


def _manifest(folder: Path) -> dict[Key, dict[str, Any]]:
    path = folder / "manifest.jsonl"
    rows = {}
    for number, row in enumerate(read_jsonl(path), start=1):
        for name, kind in _FIELDS.items():
            if not isinstance(row.get(name), kind):
                raise DiffalignError(
                    f"{path}, row {number}: expected {name} of type {kind.__name__}, got {row.get(name)!r}"
                )
        rows[row["prompt_id"], row["seed"]] = row
    return rows


def _image(folder: Path, row: Mapping[str, Any]) -> Picture | str:
    """The image of a row, or its status where it has none."""
    if row["status"] != _OK:
        return str(row["status"])
    inside = PurePosixPath(row["file"])
    if not row["file"] or inside.is_absolute() or ".." in inside.parts:
        raise DiffalignError(f"{folder / 'manifest.jsonl'}: expected a file inside the folder, got {row['file']!r}")
    return embed(decode_image(folder / inside), _SIDE)
