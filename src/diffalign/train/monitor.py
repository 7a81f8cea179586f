"""Named alarms over what a run logs: they say what goes wrong while there is time to stop."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

__all__ = ["ALARMS", "Alarm", "Monitor"]

Row = Mapping[str, float]
WINDOW = 10  # steps; one step alone is noise


@dataclass(frozen=True)
class Alarm:
    """One thing that goes wrong.

    Attributes:
        name: of the alarm.
        step: optimiser steps done when it was raised.
        message: what was seen, what it means, what to do.
    """

    name: str
    step: int
    message: str


def both_errors_rising(rows: Sequence[Row]) -> str | None:
    """The margin grows while the chosen image too is denoised worse than by the reference, and ever worse."""
    chosen, rejected = _column(rows, "chosen_excess"), _column(rows, "rejected_excess")
    if not chosen or not rejected:
        return None
    rising = [_late(values) - 2 * _noise(values) > max(0.0, _early(values)) for values in (chosen, rejected)]
    if not all(rising) or _late(rejected) < 1e-4:
        return None
    return (
        f"both errors rise above the reference's: chosen by {_late(chosen):.2g}, rejected by {_late(rejected):.2g}. "
        "The images will decay: lower the learning rate or beta, or stop at an earlier checkpoint."
    )


def saturation(rows: Sequence[Row]) -> str | None:
    """Hardly any pair still has a gradient."""
    weights = _column(rows, "gradient_weight")
    if not weights or fmean(weights) > 0.02:
        return None
    return (
        f"the pairs' mean gradient weight is {fmean(weights):.3f}: nearly all are learned and nothing more is. Lower "
        "beta, add data, or stop."
    )


def stuck_at_log_2(rows: Sequence[Row]) -> str | None:
    """A pair loss that has not moved from policy = reference after 200 steps."""
    losses = _column(rows, "loss")
    if not losses or "margin" not in rows[-1] or rows[-1]["step"] < 200:
        return None
    if max(abs(loss - math.log(2)) for loss in losses) > 1e-4:
        return None
    return (
        "the loss still is log 2: the policy has not left the reference. Check that the learning rate is the effective "
        "one, that beta is in Diffusion-DPO's convention, and that the adapter is trained."
    )


def drift(rows: Sequence[Row]) -> str | None:
    """On its own samples the policy has left the reference further than the real images pull."""
    drifts, chosen = _column(rows, "drift"), _column(rows, "chosen_excess")
    if not drifts or not chosen or _late(drifts) < 0.05 or _late(drifts) < 10 * abs(_late(chosen)):
        return None
    return (
        f"on its own samples the policy is {_late(drifts):.2g} away from the reference, while real images gained "
        f"{-_late(chosen):.2g}: it changes what it was not shown. Lower the learning rate."
    )


def runaway_repulsion(rows: Sequence[Row]) -> str | None:
    """The policy flees what it is pushed from, own samples or rejected images, ever faster, and real images gain less.

    The drift on own samples of a stale policy is negative while it is fled from, and jumps up at each refresh.
    """
    seen = "drift" if _column(rows, "drift") else "rejected_excess"
    away = [max(0.0, -value if seen == "drift" else value) for value in _column(rows, seen)]
    chosen = _column(rows, "chosen_excess")
    if not away or not chosen or _late(away) < max(0.005, 2 * _early(away)):
        return None
    if _late(away) < 2 * max(0.0, -_late(chosen)):
        return None
    what = "its own earlier samples" if seen == "drift" else "rejected images"
    real = f"lost {_late(chosen):.2g}" if _late(chosen) > 0 else f"gained {-_late(chosen):.2g}"
    return (
        f"the error on {what} has run {_late(away):.2g} above the reference's and doubles, while chosen "
        f"images {real}: the push feeds itself. Refresh the sampling policy more often, lower the learning rate, "
        "or use an objective without repulsion."
    )


ALARMS: dict[str, Callable[[Sequence[Row]], str | None]] = {
    "both_errors_rising": both_errors_rising,
    "saturation": saturation,
    "stuck_at_log_2": stuck_at_log_2,
    "drift": drift,
    "runaway_repulsion": runaway_repulsion,
}


class Monitor:
    """Watches the logged rows; each alarm is raised once."""

    def __init__(self) -> None:
        self._rows: deque[Row] = deque(maxlen=2 * WINDOW)
        self._raised: set[str] = set()

    def watch(self, row: Row) -> list[Alarm]:
        """Take the next step's row; return the alarms that are new."""
        self._rows.append(row)
        if len(self._rows) < 2 * WINDOW:
            return []
        rows, new = list(self._rows), []
        for name, look in ALARMS.items():
            message = None if name in self._raised else look(rows)
            if message is not None:
                self._raised.add(name)
                new.append(Alarm(name, int(row["step"]), message))
        return new


def _column(rows: Sequence[Row], name: str) -> list[float]:
    """The values of one quantity, empty unless every row has it."""
    return [row[name] for row in rows] if all(name in row for row in rows) else []


def _early(values: Sequence[float]) -> float:
    return fmean(values[: len(values) // 2])


def _noise(values: Sequence[float]) -> float:
    """Standard error of the late mean: batches differ."""
    late = values[len(values) // 2 :]
    return stdev(late) / math.sqrt(len(late))


def _late(values: Sequence[float]) -> float:
    return fmean(values[len(values) // 2 :])
