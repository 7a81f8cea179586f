"""Measurements with their intervals: the first screen, the tables, one metric against another."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from diffalign.core import DiffalignError, unknown
from diffalign.report.page import Section, render
from diffalign.report.plots import crosses

__all__ = [
    "KeyFigure",
    "check_estimates",
    "difference_figure",
    "headline",
    "results_table",
    "scatter",
    "win_rate_figure",
]

Numbers: TypeAlias = Mapping[str, float]  # mean, low, high
_ENDS = ("mean", "low", "high")
_WORDS = {None: ("higher", "lower"), True: ("better", "worse"), False: ("worse", "better")}  # by higher_is_better


@dataclass(frozen=True)
class KeyFigure:
    """A number of the first screen.

    Attributes:
        value: the number, ready to be read.
        label: what it is.
        detail: its interval.
    """

    value: str
    label: str
    detail: str = ""


def headline(sentences: Sequence[str], figures: Iterable[KeyFigure]) -> Section:
    """The first screen: what was aligned with what, and how much better it is with what interval.

    Args:
        sentences: the first is set large.
        figures: numbers, see `difference_figure` and `win_rate_figure`.
    """
    return Section("", render("headline.html", sentences=sentences, figures=list(figures)))


def difference_figure(row: Mapping[str, Any]) -> KeyFigure:
    """A row of ``results["differences"]`` for the first screen.

    Example:
        >>> row = {"model": "dpo", "baseline": "base", "metric": "realism", "mean": 0.031, "low": 0.02, "high": 0.04}
        >>> difference_figure(row).value
        '+0.031'
    """
    mean, low, high = (f"{row[end]:+.3g}" for end in _ENDS)
    return KeyFigure(mean, f"{row['metric']}, {row['model']} minus {row['baseline']}", f"95 % interval {low} to {high}")


def win_rate_figure(row: Mapping[str, Any]) -> KeyFigure:
    """A row of ``results["win_rates"]`` for the first screen.

    Example:
        >>> row = {"model": "dpo", "baseline": "base", "metric": "realism", "mean": 0.61, "low": 0.55, "high": 0.67}
        >>> win_rate_figure(row).detail
        '95 % interval 55 % to 67 %'
    """
    mean, low, high = (f"{row[end]:.0%}".replace("%", " %") for end in _ENDS)
    label = f"of comparisons where {row['model']} beats {row['baseline']} in {row['metric']}"
    return KeyFigure(mean, label, f"95 % interval {low} to {high}")


def results_table(results: Mapping[str, Any], *, title: str = "Results") -> Section:
    """Every model under every metric, then the paired differences and the win rates, all with their intervals.

    Args:
        results: ``models`` (name -> metric -> {"mean", "low", "high"}, and ``num_images``); and where there are any
            ``differences`` (rows of model, baseline, metric, mean, low, high: model minus baseline in the metric's
            unit), ``win_rates`` (the same rows: share of prompts that the model wins, ties half), ``roles`` (metric ->
            "held-out" or "in-training"), ``higher_is_better`` (metric -> bool), ``seconds``.
        title: heading of the section.

    Raises:
        DiffalignError: ``models`` is missing, or a number is.
    """
    models = _models(results)
    metrics = list(dict.fromkeys(name for measured in models.values() for name in measured))
    directions = results.get("higher_is_better", {})
    body = render(
        "tables.html",
        metrics=[(name, results.get("roles", {}).get(name, ""), _arrow(directions.get(name))) for name in metrics],
        models=models,
        num_images={name: results["models"][name].get("num_images") for name in models},
        differences=_lines(results.get("differences", ()), 0.0, lambda metric: _WORDS[directions.get(metric)]),
        win_rates=_lines(results.get("win_rates", ()), 0.5, lambda metric: ("wins", "loses")),
        seconds=results.get("seconds"),
    )
    return Section(title, body)


def scatter(
    results: Mapping[str, Any], x: str = "detail", y: str = "realism", *, title: str = "Realism against texture detail"
) -> Section:
    """Every model as a point under two metrics, its intervals as a cross.

    Args:
        results: as for `results_table`.
        x: metric of the horizontal axis.
        y: metric of the vertical axis.
        title: heading of the section.

    Raises:
        DiffalignError: no model has both metrics.
    """
    models = _models(results)
    for name in (x, y):
        if not any(name in measured for measured in models.values()):
            raise unknown("metric", name, {name for measured in models.values() for name in measured})
    both = {name: (measured[x], measured[y]) for name, measured in models.items() if x in measured and y in measured}
    if not both:
        raise DiffalignError(f"no model has both {x} and {y}; score both for the same model")
    note = f"A point is a model's mean, its arms the 95 % intervals of {x} and {y}."
    return Section(title, render("plots.html", note=note, panels=[crosses(x, y, both)], entries=[]))


def check_estimates(measured: Mapping[str, Any]) -> dict[str, Numbers]:
    """The entries that are intervals; counts and the like are passed over.

    Raises:
        DiffalignError: an interval lacks a finite mean, low or high.
    """
    found = {name: value for name, value in measured.items() if isinstance(value, Mapping)}
    for name, value in found.items():
        _check_numbers(value, name)
    return found


def _check_numbers(value: Mapping[str, Any], name: str) -> None:
    if not all(isinstance(value.get(end), int | float) and math.isfinite(value[end]) for end in _ENDS):
        raise DiffalignError(f"{name}: expected finite numbers as mean, low and high, got {dict(value)}")


def _models(results: Mapping[str, Any]) -> dict[str, dict[str, Numbers]]:
    if not isinstance(results.get("models"), Mapping) or not results["models"]:
        raise DiffalignError('expected results with "models": name -> metric -> {"mean", "low", "high"}')
    return {name: check_estimates(measured) for name, measured in results["models"].items()}


def _arrow(higher_is_better: bool | None) -> str:
    return "" if higher_is_better is None else ("higher is better" if higher_is_better else "lower is better")


def _lines(
    rows: Sequence[Mapping[str, Any]], even: float, words: Callable[[str], tuple[str, str]]
) -> dict[str, list[dict[str, Any]]]:
    """Rows by metric, each with a verdict and its bar in per cent of a scale that the metric's rows share.

    Args:
        rows: model, baseline, metric, mean, low, high.
        even: the value that means "no difference", in the middle of the scale.
        words: metric -> verdicts of an interval above and below ``even``.
    """
    lines: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        _check_numbers(row, str(row.get("metric")))
        above, below = words(row["metric"])
        verdict = above if row["low"] > even else below if row["high"] < even else "not told apart"
        lines.setdefault(row["metric"], []).append({**row, "verdict": verdict})
    for mine in lines.values():
        reach = max(abs(row[end] - even) for row in mine for end in _ENDS) or 1.0
        for row in mine:
            row["bar"] = {end: 50 + 48 * (row[end] - even) / reach for end in _ENDS}
    return lines
