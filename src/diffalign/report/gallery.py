"""Preference rows to look at: one image in place of the other, with prompt, scores and provenance."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from diffalign.core import DiffalignError
from diffalign.report.page import Section, render
from diffalign.report.pictures import embed, outline
from diffalign.types import CandidateSet, Pair, Provenance

__all__ = ["pair_gallery"]

_SIDE = 448  # pixels at most of an embedded image
_MAX_CANDIDATES = 8  # of one row


def pair_gallery(
    preferences: Sequence[Pair | CandidateSet], limit: int = 24, *, title: str = "Preference pairs"
) -> Section:
    """Rows as cards: chosen and rejected in the same place, the damage outlined in red.

    A press, a tap, Enter or an arrow key flips the image of a card, F flips all of them, M hides the outlines. Of a
    candidate set the images come one after another. A row that cannot be read is shown as its error.

    Args:
        preferences: rows, such as ``diffalign.data.Preferences``; those shown are spread evenly over all.
        limit: how many are shown at most.
        title: heading of the section.

    Raises:
        ValueError: the limit is below 1.
    """
    if limit < 1:
        raise ValueError(f"expected a limit of at least 1, got {limit}")
    count = len(preferences)
    cards = [_card(row) for row in _spread(preferences, limit)]
    body = render(
        "gallery.html", cards=cards, count=count, flips=any("frames" in card for card in cards),
        has_masks=any(card.get("outline") for card in cards),
    )  # fmt: skip
    return Section(title, body)


def _spread(preferences: Sequence[Pair | CandidateSet], limit: int) -> Iterator[Pair | CandidateSet | DiffalignError]:
    count = len(preferences)
    for index in np.linspace(0, count - 1, min(limit, count)).round().astype(int).tolist():
        try:
            yield preferences[index]
        except DiffalignError as error:
            yield error


def _card(row: Pair | CandidateSet | DiffalignError) -> dict[str, Any]:
    """What the template shows of a row."""
    if isinstance(row, DiffalignError):
        return {"error": str(row)}
    images = (row.chosen, row.rejected) if isinstance(row, Pair) else row.images
    if isinstance(row, Pair):
        names = ["chosen", "rejected"]
    else:
        names = [f"candidate {number} of {len(images)}" for number in range(1, len(images) + 1)]
    pictures = [embed(image, _SIDE) for image in images[:_MAX_CANDIDATES]]
    return {
        "id": row.id,
        "prompt": row.prompt,
        "frames": list(zip(names, pictures, strict=False)),
        "left_out": len(images) - len(pictures),
        "size": "{} x {}".format(*images[0].size),
        "outline": outline(row.mask) if isinstance(row, Pair) and row.mask is not None else None,
        "label": f"{row.label:g}" if isinstance(row, Pair) and row.label != 1 else "",
        "names": names[: len(pictures)],
        "scores": {metric: [f"{value:.4g}" for value in values] for metric, values in row.scores.items()},
        "provenance": _told(row.provenance),
    }


def _told(provenance: Provenance) -> dict[str, str]:
    """What is known, by its name."""
    known = {
        "source": provenance.source,
        "licence": provenance.license,
        "method": provenance.method,
        "parameters": json.dumps(dict(provenance.parameters), ensure_ascii=False) if provenance.parameters else "",
        "seed": "" if provenance.seed is None else str(provenance.seed),
        "model": provenance.model_revision,
        "sha256": ", ".join(digest[:12] for digest in provenance.sha256),
    }
    return {name: value for name, value in known.items() if value}
