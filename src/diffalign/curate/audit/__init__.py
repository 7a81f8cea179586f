"""The audit of preference pairs: what a model could learn from them instead of quality."""

from __future__ import annotations

from diffalign.curate.audit.captions import Fit
from diffalign.curate.audit.leaks import tell_sides
from diffalign.curate.audit.result import (
    Audit,
    BetweenRewards,
    CaptionFit,
    Captions,
    Duplicates,
    Histogram,
    LeakTest,
    Outside,
    Parity,
    Severity,
)
from diffalign.curate.audit.run import audit_pairs
from diffalign.curate.audit.show import print_audit
from diffalign.curate.audit.traces import TRACES, image_traces

__all__ = [
    "TRACES",
    "Audit",
    "BetweenRewards",
    "CaptionFit",
    "Captions",
    "Duplicates",
    "Fit",
    "Histogram",
    "LeakTest",
    "Outside",
    "Parity",
    "Severity",
    "audit_pairs",
    "image_traces",
    "print_audit",
    "tell_sides",
]
