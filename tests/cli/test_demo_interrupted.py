"""Ctrl-C at any moment of `diffalign demo`: the same command goes on, to the same results."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

SHORT = {"num_photos": 24, "num_pairs": 16, "min_gap": 0, "num_fit_steps": 4, "num_pair_steps": 2, "num_prompts": 10,
         "num_steps": 2, "batch_size": 8, "shown_scales": "[0, 2]"}  # fmt: skip


def start(folder: Path) -> subprocess.Popen[str]:
    settings = [part for key, value in SHORT.items() for part in ("--set", f"{key}={value}")]
    command = [sys.executable, "-c", "from diffalign.cli import main; main()", "demo", "--out", str(folder), *settings]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def results(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return {key: value for key, value in found.items() if key not in ("seconds", "parts", "versions")}


@pytest.mark.slow
def test_a_run_stopped_again_and_again_gives_the_results_of_one_that_was_not(tmp_path: Path) -> None:
    began = time.monotonic()
    out, errors = start(tmp_path / "whole").communicate()
    assert "report: " in out + errors, errors[-2000:]
    whole = time.monotonic() - began
    moments, stopped = random.Random(3), 0
    for number in range(20):
        running = start(tmp_path / "stopped")
        patience = whole * moments.uniform(0.25, 0.6) if number < 3 else None
        try:
            running.communicate(timeout=patience)
            break
        except subprocess.TimeoutExpired:
            running.send_signal(signal.SIGINT)
            _, errors = running.communicate(timeout=120)
            stopped += running.returncode != 0
            assert "Traceback" not in errors, errors[-2000:]
    assert stopped >= 2 and running.returncode == 0
    assert results(tmp_path / "stopped") == results(tmp_path / "whole")
    pairs = {name: (tmp_path / name / "pairs" / "train-00000.parquet").read_bytes() for name in ("stopped", "whole")}
    assert pairs["stopped"] == pairs["whole"]
