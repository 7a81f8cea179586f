"""diffalign demo: what it passes on, and what it prints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import diffalign.recipes.demo as recipe
from diffalign.cli import app
from diffalign.recipes.demo import DemoConfig

NUMBERS = {"mean": 0.5, "low": 0.25, "high": 0.75}
RESULTS = {
    "models": {"base": {"realism": NUMBERS, "num_images": 2}, "stage2": {"realism": NUMBERS, "num_images": 2}},
    "differences": [{"model": "stage2", "baseline": "base", "metric": "realism", **NUMBERS}],
    "roles": {"realism": "held-out"},
}


def test_defaults_are_the_recipes_and_settings_change_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[tuple[DemoConfig, Path]] = []

    def run(config: DemoConfig, folder: Path, *, device: str) -> dict[str, Any]:
        asked.append((config, folder))
        return RESULTS

    monkeypatch.setattr(recipe, "run_demo", run)
    done = CliRunner().invoke(app, ["demo"])
    assert done.exit_code == 0, done.output
    assert asked[0] == (DemoConfig(), Path("runs/demo"))
    assert "0.5 (0.25 to 0.75)" in done.output and "+0.5 (+0.25 to +0.75)" in done.output
    more = ["demo", "--photos", "mine", "--set", "num_fit_steps=7", "--out", str(tmp_path)]
    assert CliRunner().invoke(app, more).exit_code == 0
    assert asked[1] == (DemoConfig(photos="mine", num_fit_steps=7), tmp_path)
    assert CliRunner().invoke(app, ["demo", "--set", "num_fit_step=7"]).exit_code == 2
