"""Preference rows to look at: one image in place of the other, with filters, scores, provenance and marks."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from diffalign.core import DiffalignError
from diffalign.report.page import Section, render
from diffalign.report.pictures import embed, outline
from diffalign.types import CandidateSet, Pair, Provenance

__all__ = ["pair_gallery", "short_names"]

_SIDE = 448  # pixels at most of an embedded image
_MAX_CANDIDATES = 8  # of one row
_KEPT = "kept"

Row: TypeAlias = Pair | CandidateSet
Fate: TypeAlias = Mapping[str, Any] | None  # stage, reason, detail; None of a row that was kept


def pair_gallery(
    preferences: Sequence[Row], limit: int = 24, *, fates: Sequence[Fate] | None = None, title: str = "Preference pairs"
) -> Section:
    """Rows as cards: chosen and rejected in the same place or side by side, the damage outlined in red.

    Resting the pointer on a card, a press, Enter or an arrow key shows the other image; F flips all of them, S lays
    both side by side, M hides the outlines. Of a candidate set the images come one after another. Filters by stage,
    method, mark and the gap of a reward hide cards. A and R mark the card in focus as accepted or rejected, J and K
    go on to the next and back; the marks are kept by the browser and exported as ``marks.json``, {"accept": [ids],
    "reject": [ids]}. A row that cannot be read is shown as its error.

    Args:
        preferences: rows, such as ``diffalign.data.Preferences``; those shown are spread evenly over all.
        limit: how many are shown at most.
        fates: for each row where it was dropped, ``{"stage", "reason", "detail"}``, or None where it was kept; the
            limit is then shared evenly by both kinds. Without, nothing is told of stages.
        title: heading of the section.

    Raises:
        DiffalignError: a fate has no stage.
        ValueError: the limit is below 1, or fates are not one for each row.
    """
    if limit < 1:
        raise ValueError(f"expected a limit of at least 1, got {limit}")
    if fates is not None and len(fates) != len(preferences):
        raise ValueError(f"expected a fate for each of {len(preferences)} rows, got {len(fates)}")
    places, told = _choose(len(preferences), limit, fates)
    cards = [_card(_read(preferences, place)) | _fate(fates, place) for place in places]
    rewards = _share_gaps(cards)
    body = render(
        "gallery.html",
        cards=cards,
        told=told,
        facets=[facet for facet in (_facet(cards, "stage"), _facet(cards, "method")) if len(facet["values"]) > 1],
        rewards=rewards,
        markable=any("id" in card for card in cards),
        flips=any("frames" in card for card in cards),
        has_masks=any(card.get("outline") for card in cards),
    )
    return Section(title, body)


def short_names(identities: Iterable[str]) -> dict[str, str]:
    """Identities of rewards to names for people: what stands before the @, where that tells them apart.

    Example:
        >>> short_names(["clip@1/a", "pickscore@2", "clip@3/b"])
        {'clip@1/a': 'clip@1/a', 'pickscore@2': 'pickscore', 'clip@3/b': 'clip@3/b'}
    """
    identities = list(dict.fromkeys(identities))
    times = Counter(identity.split("@")[0] for identity in identities)
    names = {identity: identity.split("@")[0] for identity in identities}
    return {identity: name if name and times[name] == 1 else identity for identity, name in names.items()}


def _choose(count: int, limit: int, fates: Sequence[Fate] | None) -> tuple[list[int], list[dict[str, Any]]]:
    """The places that are shown, and of each kind of row how many are shown of how many."""
    if fates is None:
        places = _spread(range(count), limit)
        return places, [{"what": "rows", "shown": len(places), "count": count}]
    kept = [place for place in range(count) if fates[place] is None]
    dropped = [place for place in range(count) if fates[place] is not None]
    num_dropped = min(len(dropped), max(limit // 2, limit - len(kept)))
    groups = {"kept": (kept, limit - num_dropped), "dropped": (dropped, num_dropped)}
    shown = {what: _spread(places, most) for what, (places, most) in groups.items()}
    told = [{"what": f"{what} rows", "shown": len(shown[what]), "count": len(groups[what][0])} for what in groups]
    return shown["kept"] + shown["dropped"], told


def _spread(places: Sequence[int], limit: int) -> list[int]:
    some = np.linspace(0, len(places) - 1, min(limit, len(places))).round().astype(int)
    return [places[one] for one in some.tolist()]


def _read(preferences: Sequence[Row], place: int) -> Row | DiffalignError:
    try:
        return preferences[place]
    except DiffalignError as error:
        return error


def _fate(fates: Sequence[Fate] | None, place: int) -> dict[str, Any]:
    """What the card says of the row's way through a curation."""
    if fates is None:
        return {"stage": "", "fate": ""}
    fate = fates[place]
    if fate is None:
        return {"stage": _KEPT, "fate": _KEPT}
    if not isinstance(fate.get("stage"), str) or not fate["stage"]:
        raise DiffalignError(f"expected a fate with the stage that dropped the row, got {dict(fate)}")
    reason, detail = str(fate.get("reason", "")), str(fate.get("detail", ""))
    return {"stage": fate["stage"], "fate": reason or f"dropped at {fate['stage']}", "detail": detail}


def _card(row: Row | DiffalignError) -> dict[str, Any]:
    """What the template shows of a row."""
    if isinstance(row, DiffalignError):
        return {"error": str(row), "method": "", "gaps": {}}
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
        "gaps": _gaps(row),
        "method": row.provenance.method,
        "provenance": _told(row.provenance),
    }


def _gaps(row: Row) -> dict[str, float]:
    """By reward, the score of the chosen image minus the rejected one's, where it is finite."""
    if not isinstance(row, Pair):
        return {}
    gaps = {metric: chosen - rejected for metric, (chosen, rejected) in row.scores.items()}
    return {metric: gap for metric, gap in gaps.items() if math.isfinite(gap)}


def _share_gaps(cards: Sequence[dict[str, Any]]) -> list[str]:
    """Names of the rewards whose gaps can be filtered by, none where all are alike.

    The gaps of each card become a list in the order of the names, None where it lacks one.
    """
    names = short_names(metric for card in cards for metric in card["gaps"])
    for card in cards:
        card["gap_list"] = [card["gaps"].get(metric) for metric in names]
        first = next((gap for gap in card["gap_list"][:1] if gap is not None), None)
        card["gap"] = "" if first is None else f"gap {first:+.3g}"
        card["gaps"] = {metric: f"{gap:+.3g}" for metric, gap in card["gaps"].items()}
    vary = any(len({card["gap_list"][place] for card in cards} - {None}) > 1 for place in range(len(names)))
    return list(names.values()) if vary else []


def _facet(cards: Sequence[Mapping[str, Any]], name: str) -> dict[str, Any]:
    """A filter: each value of the cards, in the order in which they come, and how often."""
    values = Counter(str(card[name]) for card in cards)
    return {"name": name, "values": [(value, value or "not told", count) for value, count in values.items()]}


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
