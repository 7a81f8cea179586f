"""Plots as inline SVG, whose colours are the page's own, so that they follow light and dark."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

__all__ = ["Panel", "along", "crosses", "drawing", "legend_entry", "series", "to_panel", "trade_off"]

# Colours that matplotlib draws with and the page replaces by its own variables.
_VARIABLES = {"#000001": "--ink", "#000002": "--muted", "#000003": "--line", "#000004": "--alarm"}
_VARIABLES |= {f"#0001{number:02d}": f"--series-{number}" for number in range(7)}
INK, MUTED, LINE, ALARM = list(_VARIABLES)[:4]
_SERIES = list(_VARIABLES)[4:]
_DASHES = ("-", "--", ":")
_MARKERS = "osD^vPX"
_SIDES = ((1, 1), (-1, 1), (1, -1), (-1, -1), (1, 0), (-1, 0), (0, 1), (0, -1))  # of a point, right and up are 1
_WIDTH = 330  # points, so that a plot on a phone is shown about 1:1 and its text stays readable

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none", "font.size": 11, "font.family": "sans-serif",
    "text.color": INK, "text.parse_math": False, "axes.edgecolor": MUTED, "axes.labelcolor": MUTED,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True,
    "axes.formatter.useoffset": False, "axes.formatter.limits": (-3, 4), "axes.formatter.use_mathtext": False,
    "grid.color": LINE, "grid.linewidth": 0.7, "xtick.color": MUTED, "ytick.color": MUTED,
    "xtick.major.size": 0, "ytick.major.size": 0, "lines.linewidth": 1.7, "axes.linewidth": 0.7,
}  # fmt: skip

Estimate = Mapping[str, float]  # mean, low, high


@dataclass(frozen=True)
class Panel:
    """One plot.

    Attributes:
        svg: the drawing.
        title: caption above it.
        note: a sentence below it.
        positions: horizontal place of each step of a slider, in per cent of the width; empty without a slider.
    """

    svg: Markup
    title: str
    note: str = ""
    positions: Sequence[float] = ()


def series(index: int) -> tuple[str, str]:
    """Colour and dashes of the line of this number, 0 first; they repeat after 21."""
    return _SERIES[index % len(_SERIES)], _DASHES[index // len(_SERIES) % len(_DASHES)]


def legend_entry(name: str, index: int) -> tuple[str, str, str]:
    """Name, CSS colour and SVG dashes of the line of this number."""
    colour, dashes = series(index)
    return name, f"var({_VARIABLES[colour]})", {"-": "none", "--": "6 3", ":": "2 2"}[dashes]


@contextmanager
def drawing(label: str, height: int = 220) -> Iterator[tuple[Figure, Axes]]:
    """A figure with axes in the page's style; to be turned into a panel inside the block.

    Args:
        label: makes the ids inside the drawing its own.
        height: in points.
    """
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": label}):
        figure = Figure(figsize=(_WIDTH / 72, height / 72), dpi=72, layout="constrained")
        yield figure, figure.add_subplot()


def to_panel(figure: Figure, title: str, *, summary: str, note: str = "", stops: Sequence[float] = ()) -> Panel:
    """The figure as inline SVG.

    Args:
        figure: of `drawing`.
        title: caption above it.
        summary: what it shows, for people who hear it.
        note: a sentence below it.
        stops: values of the horizontal axis where a slider stops.
    """
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)  # it would apply to the whole page
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # the same names in every drawing
    text = re.sub(r"font-family: [^;\"]*", "font-family: inherit", text)
    for placeholder, variable in _VARIABLES.items():
        text = text.replace(placeholder, f"var({variable})")
    text = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), text)
    described = f'<svg role="img" aria-label="{escape(summary)}" class="plot"'
    text = re.sub(r'<svg xmlns:xlink="[^"]*" width="[^"]*" height="[^"]*"', lambda _: described, text, count=1)
    axes = figure.axes[0]
    positions = [float(axes.transData.transform((stop, 0))[0]) / _WIDTH * 100 for stop in stops]
    return Panel(Markup(text), title, note, positions)


def crosses(x: str, y: str, points: Mapping[str, tuple[Estimate, Estimate]]) -> Panel:
    """Points named by their models, with the intervals of both metrics as arms."""
    with drawing(f"{x} {y}", height=270) as (figure, axes):
        for index, (across, up) in enumerate(points.values()):
            colour, _ = series(index)
            axes.errorbar(
                across["mean"],
                up["mean"],
                xerr=_arms(across),
                yerr=_arms(up),
                fmt=_MARKERS[index % len(_MARKERS)],
                color=colour,
                elinewidth=1.1,
                markersize=6,
            )
        axes.margins(0.12)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        _name_points(figure, axes, points, [series(index)[0] for index in range(len(points))])
        return to_panel(figure, "", summary=_crossed(x, y, points))


def trade_off(x: str, y: str, points: Mapping[str, tuple[Estimate, Estimate]], marked: str) -> Panel:
    """Points on a line in their order, such as strengths of guidance, each with its name and the intervals as arms.

    Args:
        x: metric of the horizontal axis.
        y: metric of the vertical axis.
        points: name -> estimates of both.
        marked: the point that is drawn large.
    """
    with drawing(f"{x} {y} trade-off", height=270) as (figure, axes):
        line, _ = series(0)
        acrosses, ups = ([both[side] for both in points.values()] for side in (0, 1))
        axes.plot([each["mean"] for each in acrosses], [each["mean"] for each in ups], color=line, linewidth=1.2)
        for name, (across, up) in points.items():
            large = name == marked
            arms = axes.errorbar(
                across["mean"],
                up["mean"],
                xerr=_arms(across),
                yerr=_arms(up),
                fmt="D" if large else "o",
                color=series(1)[0] if large else line,
                elinewidth=1.0,
                markersize=8 if large else 5,
                zorder=3 if large else 2,
            )
            for arm in arms[2]:
                arm.set_alpha(0.35)
        axes.margins(0.12)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        _name_points(figure, axes, points, [series(name == marked)[0] for name in points])
        return to_panel(figure, "", summary=_crossed(x, y, points))


def along(metric: str, strengths: Sequence[float], estimates: Sequence[Estimate]) -> Panel:
    """A metric over the strength of guidance with its interval as a band, and where each strength stands."""
    with drawing(f"{metric} along", height=190) as (figure, axes):
        lows, means, highs = ([each[end] for each in estimates] for end in ("low", "mean", "high"))
        colour, _ = series(0)
        axes.fill_between(strengths, lows, highs, color=colour, alpha=0.18, linewidth=0)
        axes.plot(strengths, means, color=colour, marker="o", markersize=4)
        axes.set_xlabel("guidance strength")
        told = [f"{strength:g}: {mean:.4g}" for strength, mean in zip(strengths, means, strict=True)]
        return to_panel(figure, metric, summary=f"{metric} by strength. {'; '.join(told)}.", stops=strengths)


def _crossed(x: str, y: str, points: Mapping[str, tuple[Estimate, Estimate]]) -> str:
    told = [f"{name}: {x} {across['mean']:.4g}, {y} {up['mean']:.4g}" for name, (across, up) in points.items()]
    return f"{y} against {x}. {'; '.join(told)}."


def _arms(estimate: Estimate) -> list[list[float]]:
    return [[estimate["mean"] - estimate["low"]], [estimate["high"] - estimate["mean"]]]


def _name_points(
    figure: Figure, axes: Axes, points: Mapping[str, tuple[Estimate, Estimate]], colours: Sequence[str]
) -> None:
    """Write each name beside its point, on the side where it covers least of other names and crosses."""
    figure.draw_without_rendering()
    taken = []
    for across, up in points.values():
        (left, bottom), (x, y), (right, top) = (
            axes.transData.transform((across[end], up[end])) for end in ("low", "mean", "high")
        )
        taken += [Bbox.from_extents(left, y - 2, right, y + 2), Bbox.from_extents(x - 2, bottom, x + 2, top)]
        taken.append(Bbox.from_bounds(x - 4, y - 4, 8, 8))
    frame = axes.get_window_extent()
    for colour, (name, estimates) in zip(colours, points.items(), strict=True):
        point = (estimates[0]["mean"], estimates[1]["mean"])
        places: list[tuple[float, int, Annotation, Bbox]] = []
        for right_of, above in _SIDES:
            text = axes.annotate(
                name, point, xytext=(7 * right_of, 7 * above), textcoords="offset points", color=colour,
                ha=("center", "left", "right")[right_of], va=("center", "bottom", "top")[above],
            )  # fmt: skip
            text.set_in_layout(False)  # a long name must not squeeze the axes
            box = text.get_window_extent()
            outside = box.width * box.height - _shared(box, frame)
            covered = sum(_shared(box, other) for other in taken)
            places.append((covered + outside, len(places), text, box))
        best = min(places)
        for place in places:
            if place is not best:
                place[2].remove()
        taken.append(best[3])


def _shared(a: Bbox, b: Bbox) -> float:
    """The area that two boxes share, in square pixels."""
    width = min(a.x1, b.x1) - max(a.x0, b.x0)
    height = min(a.y1, b.y1) - max(a.y0, b.y0)
    return float(max(width, 0) * max(height, 0))
