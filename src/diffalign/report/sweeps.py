"""A sweep over the strength of guidance as a page and as a figure, from what ``sweep-results.json`` holds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from diffalign.core import atomic_path, dump_yaml
from diffalign.report.page import Page, Section, render
from diffalign.report.plots import trade_off
from diffalign.report.results import difference_figure, headline, results_table
from diffalign.report.runs import provenance
from diffalign.report.samples import strength_slider

__all__ = ["draw_sweep", "sweep_page"]

DIVERSITY = "diversity"
_ACROSS = 4  # panels of the figure in a row
_LINE, _CHOSEN = "#0b6b63", "#b4500b"


def sweep_page(results: Mapping[str, Any], folder: str | Path) -> Page:
    """What was chosen and why, images and metrics under a slider of the strength, and every number.

    Args:
        results: of ``diffalign.evaluate.measure_sweep``.
        folder: of the sweep.

    Raises:
        DiffalignError: an image or a manifest cannot be read, or a number is missing.
    """
    guide, model = (results["guide"] or {}).get("name", "text guidance"), results["settings"]["model"]
    page = Page("Strength of guidance", f"{guide} on {model}, {len(results['strengths'])} strengths")
    figures = map(difference_figure, results["differences"])
    page.add(
        headline([f"Chosen: {_name(results, results['chosen'])}.", *results["alarms"], *results["notes"]], figures)
    )
    runs = [Path(folder) / name for name in results["folders"]]
    models = list(results["models"].values())
    page.add(strength_slider(list(zip(results["strengths"], runs, strict=True)), models, title="Images and metrics"))
    page.add(_choice(results))
    if any(DIVERSITY in measured for measured in models):
        page.add(_trade_offs(results))
    page.add(results_table({**results, "models": _marked(results)}, title="On the prompts that did not choose"))
    shown = ("axis", "strengths", "guide", "settings", "rule", "chosen", "left_out", "prompts")
    page.add(provenance(dump_yaml({name: results[name] for name in shown}), results["versions"]))
    return page


def draw_sweep(results: Mapping[str, Any], path: str | Path) -> Path:
    """Every metric over the strength with its interval as a band, diversity beside them, as an SVG file.

    Args:
        results: as for ``sweep_page``.
        path: of the figure.
    """
    metrics = [name for name in results["roles"] if any(name in measured for measured in results["models"].values())]
    rows, across = -(-len(metrics) // _ACROSS), min(_ACROSS, len(metrics))
    with matplotlib.rc_context({"svg.hashsalt": "sweep", "svg.fonttype": "none", "text.parse_math": False}):
        figure = Figure(figsize=(3.1 * across, 2.6 * rows), layout="constrained")
        panels = list(figure.subplots(rows, across, squeeze=False).flat)
        for axes, metric in zip(panels, metrics, strict=False):
            _draw_metric(axes, results, metric)
        for axes in panels[len(metrics) :]:
            axes.set_axis_off()
        count = len(results["prompts"]["report"])
        figure.suptitle(f"Means over {count} prompts that did not choose, with 95 % intervals", fontsize=9)
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None})
    return Path(path)


def _draw_metric(axes: Axes, results: Mapping[str, Any], metric: str) -> None:
    found = [
        (strength, measured[metric])
        for strength, measured in zip(results["strengths"], results["models"].values(), strict=True)
        if metric in measured
    ]
    strengths = [strength for strength, _ in found]
    lows, means, highs = ([each[end] for _, each in found] for end in ("low", "mean", "high"))
    axes.fill_between(strengths, lows, highs, color=_LINE, alpha=0.18, linewidth=0)
    axes.plot(strengths, means, color=_LINE, marker="o", markersize=3.5, linewidth=1.5)
    axes.axvline(results["chosen"], color=_CHOSEN, linestyle="--", linewidth=1.2)
    broken = {strength: each["mean"] for strength, each in found if strength in results["left_out"]}
    axes.plot(list(broken), list(broken.values()), color=_CHOSEN, marker="x", markersize=8, linestyle="none")
    better = {None: "", True: ", more is better", False: ", less is better"}[results["higher_is_better"][metric]]
    axes.set_title(metric, fontsize=10)
    axes.set_xlabel(f"{results['axis']}; dashed: chosen{'; cross: left out' if broken else ''}", fontsize=8)
    axes.set_ylabel(f"{results['roles'][metric]}{better}", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _choice(results: Mapping[str, Any]) -> Section:
    rows = [
        {
            "name": _name(results, row["strength"]),
            "quality": _number(row["quality"]),
            "diversity": _number(row["diversity"]),
            "failed": f"{row['num_failed']} of {row['num_images']}",
            "in_choice": row["in_choice"],
            "chosen": row["strength"] == results["chosen"],
        }
        for row in results["validation"]
    ]
    rule = f"Chosen is {results['rule']}."
    count = len(results["prompts"]["validation"])
    body = render("choice.html", rule=rule, rows=rows, chooser=results["chosen_by"], count=count)
    return Section("How it was chosen", body)


def _trade_offs(results: Mapping[str, Any]) -> Section:
    """A plot for each metric: its mean against diversity, a point for each strength."""
    chosen = f"{results['chosen']:g}"
    models = {
        f"{one:g}": measured
        for one, measured in zip(results["strengths"], results["models"].values(), strict=True)
        if one not in results["left_out"]
    }
    panels = []
    for metric in (name for name in results["roles"] if name != DIVERSITY):
        points = {
            name: (measured[DIVERSITY], measured[metric])
            for name, measured in models.items()
            if metric in measured and DIVERSITY in measured
        }
        if points:
            panels.append(trade_off(DIVERSITY, metric, points, marked=chosen))
    note = f"A point is a strength ({results['axis']}), its arms 95 % intervals; the line goes from weak to strong."
    if results["left_out"]:
        note += " Strengths that are left out of the choice are not shown."
    return Section("Quality against diversity", render("plots.html", note=note, panels=panels, entries=[]))


def _marked(results: Mapping[str, Any]) -> dict[str, Any]:
    """The models by name, where those that are left out of the choice say so."""
    models = zip(results["strengths"], results["models"].items(), strict=True)
    return {f"{name}, left out" if one in results["left_out"] else name: each for one, (name, each) in models}


def _name(results: Mapping[str, Any], strength: float) -> str:
    return f"{results['axis']} {strength:.10g}"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"
