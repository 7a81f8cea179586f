"""Each alarm is raised by what it names, once, and not by a healthy run."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from diffalign.train import ALARMS, Monitor, TrainConfig, train


def pair(step: int, **changes: float) -> dict[str, float]:
    """A healthy DPO step: slow gain on the chosen, slow loss on the rejected."""
    row = {
        "loss": 0.693 - 1e-4 * step, "margin": 1e-3 * step, "gradient_weight": 0.5 - 1e-4 * step,
        "chosen_excess": -1e-5 * step, "rejected_excess": 1e-5 * step,
    }  # fmt: skip
    return row | {"step": step} | changes


def own(step: int, **changes: float) -> dict[str, float]:
    """A healthy DRO step."""
    return {"loss": 1e-3, "gate": 0.8, "drift": 1e-6 * step, "chosen_excess": -2e-5 * step, "step": step} | changes


def raised(row: Callable[[int], dict[str, Any]], steps: int) -> list[tuple[str, int]]:
    monitor = Monitor()
    return [(alarm.name, alarm.step) for step in range(1, steps + 1) for alarm in monitor.watch(row(step))]


@pytest.mark.parametrize("row", [pair, own])
def test_a_healthy_run_is_quiet(row: Callable[[int], dict[str, Any]]) -> None:
    assert raised(row, 400) == []


def test_noise_around_the_reference_is_no_rise() -> None:
    """Rejected errors rise for sure, chosen ones only scatter above 0 at times."""
    scatter = [(-1) ** s * 1e-3 + 1e-4 for s in range(400)]
    found = raised(lambda s: pair(s, chosen_excess=scatter[s], rejected_excess=1e-4 * s), 300)
    assert "both_errors_rising" not in {name for name, _ in found}


@pytest.mark.parametrize(
    ("name", "row", "by"),
    [
        ("both_errors_rising", lambda s: pair(s, chosen_excess=1e-4 * s, rejected_excess=2e-4 * s), 20),
        ("saturation", lambda s: pair(s, gradient_weight=math.exp(-s / 5)), 60),
        (
            "stuck_at_log_2",
            lambda s: pair(s, loss=math.log(2), margin=0.0, chosen_excess=0.0, rejected_excess=0.0),
            200,
        ),
        ("drift", lambda s: own(s, drift=0.01 * s), 20),
        ("runaway_repulsion", lambda s: own(s, drift=-0.001 * 1.2**s), 40),
        ("runaway_repulsion", lambda s: pair(s, rejected_excess=0.001 * 1.2**s), 40),
    ],
)
def test_each_alarm_is_raised_once_and_in_time(name: str, row: Any, by: int) -> None:
    found = [one for one in raised(row, 300) if one[0] == name]
    assert len(found) == 1 and found[0][1] <= by
    assert name in ALARMS


def test_messages_say_what_to_do() -> None:
    monitor = Monitor()
    alarms = [a for s in range(1, 60) for a in monitor.watch(own(s, drift=-0.001 * 1.2**s))]
    assert any("Refresh the sampling policy" in alarm.message for alarm in alarms)


@pytest.mark.parametrize("stale", [True, False])
def test_full_fine_tuning_against_stale_samples_is_called_out_by_step_26(
    make_pairs: Callable[[int, str], Path], tmp_path: Path, stale: bool
) -> None:
    """DRO with M = 16 at 2e-4 on all five million weights diverges; fitting the same images does not."""
    own_samples = {"objective": "diffusion_dro", "samples": {"refresh_every": 16, "num_steps": 4}}
    fit_alone = {"objective": "gated_sft", "settings": {"margin": 1e9}}  # a gate that never closes
    config = TrainConfig(
        model="tiny-sd",
        data=str(make_pairs(32, "blur")),
        train="full",
        resolution=32,
        num_steps=26,
        batch_size=4,
        micro_batch_size=4,
        prompt_drop=0.2,
        optimizer={"learning_rate": 2e-4},
        checkpoint_every=1000,
        **own_samples if stale else fit_alone,
    )
    train(config, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    found = {name: row["step"] for row in rows for name in row.get("alarms", ())}
    assert ("runaway_repulsion" in found) if stale else not found
    late = fmean(row["chosen_excess"] for row in rows[-10:])
    assert (late > 0.02) == stale, "the run itself went wrong, or did not"
