"""Self-contained HTML: one file without any network, of sections that are functions from plain data to a fragment."""

from __future__ import annotations

from diffalign.report.curation import audit_section, funnel_section, rejected_section
from diffalign.report.gallery import pair_gallery
from diffalign.report.page import Page, Section
from diffalign.report.results import (
    KeyFigure,
    difference_figure,
    headline,
    results_table,
    scatter,
    win_rate_figure,
)
from diffalign.report.runs import alarms, curves, provenance
from diffalign.report.samples import sample_grid, strength_slider
from diffalign.report.sweeps import draw_sweep, sweep_page

__all__ = [
    "KeyFigure",
    "Page",
    "Section",
    "alarms",
    "audit_section",
    "curves",
    "difference_figure",
    "draw_sweep",
    "funnel_section",
    "headline",
    "pair_gallery",
    "provenance",
    "rejected_section",
    "results_table",
    "sample_grid",
    "scatter",
    "strength_slider",
    "sweep_page",
    "win_rate_figure",
]
