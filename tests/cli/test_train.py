"""diffalign train: the tiny twin from the command line, dry, interrupted by a mistake, and for real."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from diffalign.cli import main
from fresh import Fresh

TINY = ("realalign_sd15", "--tiny", "--model", "tiny-sd")


@pytest.fixture(scope="module")
def data(make_pairs: Callable[[int, str], Path]) -> str:
    return str(make_pairs(4, "jpeg"))


def diffalign(*arguments: str, cwd: Path) -> Fresh:
    return Fresh(run_main, ("train", *arguments), cwd, {"COLUMNS": "200"})


def run_main(*arguments: str) -> None:
    sys.argv = ["diffalign", *arguments]
    main()


def test_dry_run_prints_the_plan_and_trains_nothing(data: str, tmp_path: Path) -> None:
    done = diffalign(*TINY, "--data", data, "--dry-run", "--set", "stages.0.num_steps=7", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    printed = done.stdout + done.stderr
    assert "activations" in printed and "latent cache" in printed and "of its matrix rate" in printed
    assert "diffusion_dro" in printed and "diffusion_dpo" in printed and "7 of 4 rows, 7.0 passes" in printed
    assert not list(tmp_path.iterdir())


def test_mistakes_are_told_in_a_line(data: str, tmp_path: Path) -> None:
    for arguments, words in (
        (("realalign_sd16", "--data", data), "realalign_sd15"),
        ((*TINY,), "--data"),
        ((*TINY, "--data", data, "--set", "stages.0.num_step=7"), "num_steps"),
        ((*TINY, "--data", "nowhere", "--dry-run"), "nowhere"),
    ):
        done = diffalign(*arguments, cwd=tmp_path)
        assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_it_trains_and_its_own_config_runs_again(data: str, tmp_path: Path) -> None:
    done = diffalign(*TINY, "--data", data, "--out", "first", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    weights = tmp_path / "first" / "stage2" / "policy" / "pytorch_lora_weights.safetensors"
    again = diffalign("first/config.yaml", "--out", "second", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    repeated = tmp_path / "second" / "stage2" / "policy" / "pytorch_lora_weights.safetensors"
    one, two = load_file(weights), load_file(repeated)
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
