"""What training runs left: their curves, their alarms, their settings and versions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from diffalign.core import DiffalignError, read_text
from diffalign.report.page import Section, render
from diffalign.report.plots import ALARM, Panel, drawing, legend_entry, series, to_panel

__all__ = ["alarms", "curves", "provenance"]

Row: TypeAlias = dict[str, Any]
Floats: TypeAlias = NDArray[np.float64]
_POINTS = 400  # of a line at most; more are not seen and swell the file

# What a quantity of metrics.jsonl says, for readers who have not read the code.
_MEANINGS = {
    "loss": "The objective; for pair losses log 2 = 0.693 is where the policy equals its reference.",
    "margin": "Logit of preferring the chosen image; above 0 the policy prefers it more than the reference does.",
    "accuracy": "Share of pairs whose margin is above 0.",
    "chosen_excess": "Denoising error on chosen images minus the reference's; below 0 is better.",
    "rejected_excess": "Denoising error on rejected images minus the reference's; above 0 is further away.",
    "drift": "Denoising error on the policy's own samples minus the reference's.",
    "gradient_weight": "How much the pairs still pull, 1/2 at the start; near 0 nothing more is learned.",
    "grad_norm": "Norm of the gradient before clipping.",
}
_ALARMS = {
    "both_errors_rising": "The margin grew while chosen images too were denoised worse than by the reference.",
    "saturation": "Nearly all pairs were learned, so nothing more was.",
    "stuck_at_log_2": "The loss did not move: the policy never left the reference.",
    "drift": "On its own samples the policy went further from the reference than real images pull.",
    "runaway_repulsion": "The push away from own samples or rejected images fed itself.",
    "diversity_collapse": "In validation, images of one prompt became alike.",
    "non_finite": "A row gave a value that is not finite, and the run stopped.",
}


def curves(
    metrics: Mapping[str, str | Path],
    names: Sequence[str] = ("loss", "margin", "chosen_excess", "rejected_excess"),
    *,
    title: str = "Training",
) -> Section:
    """A plot per quantity: every run as a smoothed line over its faint raw values, its alarms marked.

    Args:
        metrics: run name -> its ``metrics.jsonl``; a last line that is cut, as in a run that goes on, is left out.
        names: quantities; those that no run logged are left out.
        title: heading of the section.

    Raises:
        DiffalignError: a file is missing or wrong, or no run logged any of the quantities.
    """
    runs = {name: _read(Path(path)) for name, path in metrics.items()}
    logged = [name for name in names if any(name in row for rows in runs.values() for row in rows)]
    if not logged:
        raise DiffalignError(f"none of {', '.join(names)} stands in {', '.join(map(str, metrics.values()))}")
    panels = [_panel(name, runs) for name in logged]
    note = "Smoothed lines over raw values; a triangle marks the step of an alarm."
    entries = [legend_entry(name, index) for index, name in enumerate(runs)]
    return Section(title, render("plots.html", note=note, panels=panels, entries=entries))


def alarms(metrics: Mapping[str, str | Path], *, title: str = "Alarms") -> Section:
    """What the monitor of training said, run by run.

    Args:
        metrics: run name -> its ``metrics.jsonl``.
        title: heading of the section.

    Raises:
        DiffalignError: a file is missing or wrong.
    """
    runs = {name: _read(Path(path)) for name, path in metrics.items()}
    raised = [
        (run, row["step"], alarm.replace("_", " "), _ALARMS.get(alarm, ""))
        for run, rows in runs.items()
        for row in rows
        for alarm in row.get("alarms", ())
    ]
    steps = {run: max((row["step"] for row in rows), default=0) for run, rows in runs.items()}
    return Section(title, render("alarms.html", raised=raised, steps=steps))


def provenance(config: str, versions: Mapping[str, str], *, title: str = "Configuration and versions") -> Section:
    """The settings that can be run again, and what they ran with.

    Args:
        config: YAML text.
        versions: package -> version; see ``diffalign.core.versions``.
        title: heading of the section.
    """
    return Section(title, render("provenance.html", config=config.strip(), versions=versions))


def _read(path: Path) -> list[Row]:
    """The whole rows of a metrics.jsonl; a run that goes on, or was killed, may have cut the last."""
    lines = [line for line in read_text(path).splitlines(keepends=True) if line.endswith("\n") and line.strip()]
    try:
        rows = [json.loads(line) for line in lines]
    except ValueError as error:
        raise DiffalignError(f"{path} is not JSON lines: {error}") from error
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            raise DiffalignError(f"{path}, row {number}: expected an object with a step, got {str(row)[:80]}")
    return rows


def _panel(quantity: str, runs: Mapping[str, Sequence[Row]]) -> Panel:
    told = []
    with drawing(quantity) as (figure, axes):
        for index, (run, rows) in enumerate(runs.items()):
            rows = [row for row in rows if isinstance(row.get(quantity), int | float)]
            if not rows:
                continue
            steps, values = np.array([row["step"] for row in rows]), np.array([float(row[quantity]) for row in rows])
            smooth = _smooth(values)
            some = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), _POINTS)).round().astype(int))
            colour, dashes = series(index)
            axes.plot(steps[some], values[some], color=colour, alpha=0.22, linewidth=0.8)
            axes.plot(steps[some], smooth[some], color=colour, linestyle=dashes)
            raised = [position for position, row in enumerate(rows) if row.get("alarms")]
            axes.plot(steps[raised], smooth[raised], "v", color=ALARM, markersize=7)
            told.append(f"{run}: {smooth[0]:.3g} at step {steps[0]}, {smooth[-1]:.3g} at step {steps[-1]}")
        axes.set_xlabel("step")
        summary = f"{quantity} by step, smoothed. {'; '.join(told)}."
        return to_panel(figure, quantity.replace("_", " "), summary=summary, note=_MEANINGS.get(quantity, ""))


def _smooth(values: Floats) -> Floats:
    """A Gaussian mean over about a tenth of the run."""
    return np.asarray(gaussian_filter1d(values, sigma=max(len(values) / 40, 1e-9), mode="mirror"))
