"""What a curation left: its funnel, its audit, and the photographs that made no pair, all from plain data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.ticker import MaxNLocator

from diffalign.core import DiffalignError
from diffalign.report.gallery import short_names
from diffalign.report.page import Section, render
from diffalign.report.plots import Panel, drawing, series, to_panel

__all__ = ["audit_section", "funnel_section", "rejected_section"]

_MEANINGS = {
    "read": "can be read, has a caption, is no repetition",
    "select": "is not blank, looks like no other, scores high enough",
    "locate": "has a place to damage",
    "degrade": "was damaged",
    "score": "both images have a score",
    "gap": "the photograph scores clearly higher",
    "keep": "is among the best",
    "review": "was not rejected by hand",
}
_ENDS = ("low", "mean", "high")
_TELLING = {"blocking": "blocking of JPEG", "rolloff": "fall-off of fine detail", "noise": "noise"}


@dataclass(frozen=True)
class _Line:
    """A row of the audit's table.

    Attributes:
        what: is measured.
        value: ready to be read.
        interval: ready to be read.
        bar: low, mean and high in per cent of a scale whose middle is "no difference"; empty without.
        note: what it comes to.
        alarms: whether the note is to be seen.
    """

    what: str
    value: str
    interval: str = ""
    bar: tuple[float, ...] = ()
    note: str = ""
    alarms: bool = False


def funnel_section(funnel: Mapping[str, Any], *, title: str = "From photographs to pairs") -> Section:
    """How many photographs came through each stage, as bars, and why the others did not.

    Args:
        funnel: ``photos``, ``passed`` (stage -> how many were left after it, in order), ``dropped`` (stage -> reason ->
            how many), as ``funnel.json`` of a curation holds it.
        title: heading of the section.

    Raises:
        DiffalignError: a count is missing, or the counts do not add up.

    Example:
        >>> dropped = {"read": {"empty": 1}, "gap": {"too small": 2}}
        >>> counts = {"photos": 5, "passed": {"read": 4, "gap": 2}, "dropped": dropped}
        >>> "2 of 5 photographs" in funnel_section(counts).body
        True
    """
    photos, stages = _check_funnel(funnel)
    kept = stages[-1]["left"]
    quiet = [stage["name"] for stage in stages if not stage["dropped"]]
    bars = [stage for stage in stages if stage["dropped"]]
    cleaned = funnel.get("captions_cleaned", 0)
    return Section(
        title, render("funnel.html", photos=photos, kept=kept, stages=bars, quiet=quiet, cleaned=cleaned)
    )  # fmt: skip


def _check_funnel(funnel: Mapping[str, Any]) -> tuple[int, list[dict[str, Any]]]:
    """The number of photographs, and stage by stage what was left and what was dropped."""
    photos, passed, dropped = (funnel.get(name) for name in ("photos", "passed", "dropped"))
    if not isinstance(photos, int) or not isinstance(passed, Mapping) or not isinstance(dropped, Mapping) or not passed:
        raise DiffalignError(f"expected a funnel with photos, passed and dropped, got {str(dict(funnel))[:200]}")
    stages, before = [], photos
    for name, left in passed.items():
        reasons = dropped.get(name, {})
        if not isinstance(reasons, Mapping) or not all(map(_is_count, [left, *reasons.values()])):
            raise DiffalignError(f"funnel, stage {name}: expected counts, got {left!r} left and {reasons!r} dropped")
        lost = sum(reasons.values())
        if before - lost != left:
            raise DiffalignError(f"funnel, stage {name}: {before} less {lost} dropped are not the {left} left")
        ranked = sorted(reasons.items(), key=lambda one: -one[1])
        meaning = _MEANINGS.get(name, "")
        stages.append(
            {"name": name, "meaning": meaning, "before": before, "left": left, "dropped": lost, "reasons": ranked}
        )
        before = left
    return photos, stages


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def rejected_section(
    rejected: Iterable[Mapping[str, Any]], examples: int = 3, *, title: str = "Photographs that made no pair"
) -> Section:
    """Photographs by the stage and reason for which they were left out, with a few names of each.

    Args:
        rejected: rows with ``stage``, ``reason``, ``name`` and ``detail``, as ``rejected.jsonl`` of a curation.
        examples: names of each reason at most.
        title: heading of the section.

    Raises:
        DiffalignError: a row has no stage or no reason.
    """
    groups: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for row in rejected:
        if not all(isinstance(row.get(name), str) for name in ("stage", "reason")):
            raise DiffalignError(f"expected a rejected row with stage and reason, got {str(dict(row))[:200]}")
        named = str(row.get("name", "")), str(row.get("detail", ""))
        groups.setdefault((row["stage"], row["reason"]), []).append(named)
    rows = [
        {"stage": stage, "reason": reason, "count": len(named), "examples": named[:examples]}
        for (stage, reason), named in groups.items()
    ]
    rows.sort(key=lambda row: -int(str(row["count"])))
    return Section(title, render("rejected.html", rows=rows, count=sum(map(len, groups.values()))))


def audit_section(audit: Mapping[str, Any], *, title: str = "Audit") -> Section:
    """What an audit of pairs found: its warnings first, then the figures, then how much was damaged.

    Args:
        audit: plain values, as ``audit.json`` of a curation holds them.
        title: heading of the section.

    Raises:
        DiffalignError: something that an audit holds is missing or of another type.
    """
    try:
        lines = list(_lines(audit))
        groups = _groups(audit)
        panels = [_area(audit["severity"]["area"]), _damage(audit["severity"]["damage"])]
        counts = {name: audit[f"num_{name}"] for name in ("pairs", "audited", "ties", "swapped")}
        warnings = [str(warning) for warning in audit["warnings"]]
        repeated = [(str(caption), int(count)) for caption, count in audit["captions"]["most_repeated"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        problem = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise DiffalignError(f"expected an audit as audit.json of a curation holds it: {problem}") from error
    body = render(
        "audit.html", lines=lines, groups=groups, panels=[panel for panel in panels if panel], counts=counts,
        warnings=warnings, repeated=repeated,
    )  # fmt: skip
    return Section(title, body)


def _lines(audit: Mapping[str, Any]) -> Iterator[_Line]:
    outside = audit["outside"]
    differing = int(outside["num_differing"])
    if outside["num_pairs"]:
        yield _Line(
            "pairs that differ outside the mask", f"{differing} of {outside['num_pairs']}",
            note=f"by up to {outside['largest']:g} levels" if differing else "nothing but the damage differs",
            alarms=differing > 0,
        )  # fmt: skip
    for name, test in (("leak outside the mask", audit["leak"]), ("leak of sizes and files", audit["file_leak"])):
        if test is not None:
            yield from _leak(name, test)
    if audit["no_leak"]:
        yield _Line("leak outside the mask", "not tested", note=str(audit["no_leak"]))
    yield from _parity(audit["parity"])
    names = short_names(audit["rewards"])
    for identity, rate in audit["rewards"].items():
        against = rate["high"] is not None and rate["high"] < 0.5
        yield _estimated(
            f"{names[identity]} prefers the chosen image", rate, shown=_percent, scale=(0.5, 0.5),
            note="prefers the rejected image" if against else "", alarms=against,
        )  # fmt: skip
    for two in audit["between"]:
        first, second = (names.get(two[end], two[end]) for end in ("first", "second"))
        kappa = "" if two["kappa"] is None else f"kappa {two['kappa']:.2f}"
        yield _Line(f"{first} agrees with {second}", _percent(two["agreement"]), note=kappa)
    yield from _contents(audit)


def _leak(name: str, test: Mapping[str, Any]) -> Iterator[_Line]:
    cause, note = str(test["cause"]), "the sides are not told apart"
    yield _estimated(f"{name}, AUC of pairs", test["auc"], scale=(0.5, 0.5), note=cause or note, alarms=bool(cause))
    yield _estimated(f"{name}, AUC of single images", test["single_auc"], scale=(0.5, 0.5), alarms=bool(cause))


def _parity(parity: Mapping[str, Any]) -> Iterator[_Line]:
    where = "outside the mask" if parity["area"] == "outside" else "over the whole image"
    logarithms = [estimate for name, estimate in parity["differences"].items() if name in _TELLING]
    reach = max([0.5, *(abs(one[end]) for one in logarithms for end in _ENDS if one[end] is not None)])
    for name, estimate in parity["differences"].items():
        if name in _TELLING:
            what = f"{_TELLING[name]} {where}, chosen minus rejected"
            yield _estimated(what, estimate, shown=_signed, scale=(0.0, reach))
        else:
            yield _estimated(f"{name.replace('_', ' ')}, chosen minus rejected", estimate, shown=_signed)
    differing = int(parity["num_sizes_differ"]), int(parity["num_modes_differ"])
    if any(differing):
        yield _Line("pairs of another size, of another mode", "{}, {}".format(*differing), alarms=True)


def _contents(audit: Mapping[str, Any]) -> Iterator[_Line]:
    copies, captions = audit["duplicates"], audit["captions"]
    yield _Line("pairs that share their chosen image", f"{copies['num_identical']:,}")
    yield _Line("pairs whose chosen images look alike", f"{copies['num_near']:,}")
    for name, what in (
        ("num_equal_sides", "pairs of twice the same image"),
        ("num_contradicting", "pairs that reject what another chooses"),
    ):
        if copies[name]:
            yield _Line(what, f"{copies[name]:,}", alarms=True)
    counts = ", ".join(f"{captions[name]:,}" for name in ("num_empty", "num_long", "num_repeated"))
    yield _Line("captions empty, too long, repeated", counts, alarms=captions["num_empty"] > 0)
    if captions["fit"] is not None:
        fit = captions["fit"]
        beaten = f"captions beat {_percent(fit['share_beaten'])} of the others"
        yield _Line("captions that do not fit", f"{fit['num_misfits']:,} of {fit['num_scored']:,}", note=beaten)


def _estimated(
    what: str,
    estimate: Mapping[str, Any],
    *,
    shown: Callable[[float], str] | None = None,
    scale: tuple[float, float] | None = None,
    note: str = "",
    alarms: bool = False,
) -> _Line:
    """A line of a mean with its interval.

    Args:
        what: is measured.
        estimate: mean, low, high, method; a constant has no interval.
        shown: number to words; three decimals by default.
        scale: the value that means "no difference", and how far from it the bar reaches; None for no bar.
        note: what it comes to.
        alarms: whether the note is to be seen.
    """
    words = shown or "{:.3f}".format
    ends = [estimate[end] for end in _ENDS]
    if estimate["mean"] is None:
        return _Line(what, "unknown", note=note, alarms=alarms)
    if None in ends or estimate["method"] == "constant":
        return _Line(what, words(estimate["mean"]), "all pairs alike", note=note, alarms=alarms)
    bar: tuple[float, ...] = ()
    if scale:
        middle, reach = scale
        bar = tuple(50 + 48 * (end - middle) / reach for end in ends)
    return _Line(what, words(ends[1]), f"{words(ends[0])} to {words(ends[2])}", bar, note, alarms)


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _signed(value: float) -> str:
    return f"{value:+.3g}" if value else "0"


def _groups(audit: Mapping[str, Any]) -> list[tuple[str, float, float]]:
    """Each kind of trace, its AUC alone and as per cent of a bar from 0.5 to 1; most first; none without a leak."""
    test = audit["leak"]
    if test is None or not test["cause"]:
        return []
    ranked = sorted(test["by_group"].items(), key=lambda one: -one[1])
    return [(name, value, 200 * max(0.0, value - 0.5)) for name, value in ranked]


def _area(histogram: Mapping[str, Any]) -> Panel | None:
    return _histogram(histogram, "Area of the damage", "share of the image inside the mask, per cent", 100.0)


def _damage(histogram: Mapping[str, Any]) -> Panel | None:
    return _histogram(histogram, "Strength of the damage", "RMS difference inside the mask, levels of 255", 1.0)


def _histogram(histogram: Mapping[str, Any], title: str, unit: str, factor: float) -> Panel | None:
    """Bars from 0 up to the last bin that holds something; None where nothing does."""
    counts: Sequence[int] = [int(count) for count in histogram["counts"]]
    if not any(counts):
        return None
    low, width = factor * histogram["low"], factor * (histogram["high"] - histogram["low"]) / len(counts)
    filled = [place for place, count in enumerate(counts) if count]
    most = max(filled, key=counts.__getitem__)
    shown = min(len(counts), math.ceil((filled[-1] + 1) / 4) * 4)
    with drawing(title, height=190) as (figure, axes):
        colour, _ = series(0)
        axes.bar([low + (place + 0.5) * width for place in range(shown)], counts[:shown], 0.9 * width, color=colour)
        axes.set_xlim(low, low + shown * width)
        axes.yaxis.set_major_locator(MaxNLocator("auto", integer=True))
        axes.grid(axis="x", visible=False)
        axes.set_xlabel(unit)
        axes.set_ylabel("pairs")
        edges = [f"{low + place * width:g}" for place in (filled[0], filled[-1] + 1, most, most + 1)]
        summary = (
            f"{title}, {unit}: {sum(counts)} pairs between {edges[0]} and {edges[1]}, most between {edges[2]} and "
            f"{edges[3]} ({counts[most]} pairs)."
        )
        return to_panel(figure, title, summary=summary)
