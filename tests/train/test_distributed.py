"""Two gloo processes train what one does, up to the order of floating-point sums."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from train_helpers import close, config, metrics, tensors

import fresh
from diffalign.core import dump_config, load_config, write_json
from diffalign.data import Preferences, batch_rows
from diffalign.models import load_family
from diffalign.train import Plan, TrainConfig, draw_rows, run_plan, train
from fresh import QUIET, Fresh

WORKER = "import sys; from test_distributed import work; work(*sys.argv[1:])"


def work(settings: str, folder: str, cache: str = "") -> None:
    """What every process does: train a stage where there is a cache, else a plan."""
    if cache:
        train(load_config(TrainConfig, settings), folder, cache=cache)
    else:
        run_plan(load_config(Plan, settings), folder)


def launch(processes: int, folder: Path, *arguments: str) -> Fresh:
    """The processes that a launcher would start; of the one that failed first, or of the first one, what it said."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    common |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    started = [
        Fresh(work, arguments, folder, common | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(processes)
    ]
    began = time.monotonic()
    while any(one.process.is_alive() for one in started):
        failed = [one for one in started if one.process.exitcode]
        if failed or time.monotonic() - began > 300:  # the others would wait for it
            for one in started:
                one.process.kill()
            return (failed or started)[0]
        time.sleep(0.02)
    return next((one for one in started if one.returncode), started[0])


def launch_by_torchrun(processes: int, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """As a user would."""
    worker = folder / "worker.py"
    worker.write_text(WORKER)
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}")
    places = os.pathsep.join(map(str, [Path(__file__).parent, Path(fresh.__file__).parent, *sys.path]))
    return subprocess.run(
        [*launcher, str(worker), *arguments],
        cwd=folder,
        env=os.environ | QUIET | {"ACCELERATE_USE_CPU": "true", "PYTHONPATH": places},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_two_processes_equal_one(data: Path, cache: Path, tmp_path: Path, kind: str) -> None:
    settings = config(data, train=kind, num_steps=3, micro_batch_size=2, optimizer={"learning_rate": 1e-3, "eps": 1e-4})
    settings = settings.replace(remember=2 if kind == "lora" else 0)
    train(settings, tmp_path / "one", cache=cache)
    write_json(tmp_path / "config.json", dump_config(settings))
    done = launch(2, tmp_path, "config.json", "two", str(cache))
    assert done.returncode == 0, done.stderr[-3000:]
    assert close(tensors(tmp_path / "one"), tensors(tmp_path / "two"), atol=2e-5)
    for one, two in zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-4)
        assert one["grad_norm"] == pytest.approx(two["grad_norm"], rel=1e-3)
    if kind == "lora":
        banks = [load_file(tmp_path / name / "reference_errors.safetensors")["errors"] for name in ("one", "two")]
        torch.testing.assert_close(banks[0], banks[1], rtol=1e-5, atol=0)


def test_three_processes_run_a_plan_and_encode_once(data: Path, tmp_path: Path) -> None:
    """Own samples, unequal shares (3, 3 and 2 rows), an empty cache: all as one process does it."""
    stages = (
        config(data, objective="diffusion_dro", settings={}, samples={"num_steps": 2, "refresh_every": 2}, num_steps=2),
        config(data, num_steps=2),
    )
    plan = Plan(stages=tuple(stage.replace(optimizer={"learning_rate": 1e-3, "eps": 1e-4}) for stage in stages))
    run_plan(plan, tmp_path / "one")
    write_json(tmp_path / "plan.json", dump_config(plan))
    done = launch(3, tmp_path, "plan.json", "three")
    assert done.returncode == 0, done.stderr[-3000:]
    for stage in ("stage1", "stage2"):
        assert close(tensors(tmp_path / "one" / stage), tensors(tmp_path / "three" / stage), atol=2e-5)
        assert len(metrics(tmp_path / "three" / stage)) == 2


def test_processes_name_the_row_that_is_not_finite(data: Path, cache: Path, tmp_path: Path) -> None:
    """The row lies with another process than the one that writes the log."""
    (tmp_path / "broken_objective.py").write_text(
        "import torch\n"
        "from diffalign.types import ObjectiveOutput\n"
        "def broken(chosen_err, timesteps):\n"
        "    return ObjectiveOutput(torch.where(timesteps < 600, chosen_err / 0, chosen_err))\n"
    )
    settings = config(data, objective="broken_objective:broken", settings={}, batch_size=6, micro_batch_size=6)
    write_json(tmp_path / "config.json", dump_config(settings))
    done = launch_by_torchrun(2, tmp_path, "config.json", "two", str(cache))
    draws = draw_rows(load_family("tiny-sd3").process, range(6), (4, 16, 16), seed=0, step=0)
    order, ids = batch_rows(6, batch_size=6, seed=0, step=0), Preferences(data).ids()
    places = [place for place, timestep in enumerate(draws.timesteps.tolist()) if timestep < 600]
    assert [place % 2 for place in places] == [1], "one row, of the second process"
    assert done.returncode != 0 and f"rows {ids[order[places[0]]]}" in done.stderr
    assert metrics(tmp_path / "two") == [{"step": 1, "alarms": ["non_finite"], "rows": [ids[order[places[0]]]]}]
