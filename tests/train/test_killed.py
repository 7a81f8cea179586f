"""Killed for real, at random moments, or with the disk full: the run goes on to the very same weights."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from train_helpers import config, equal, interrupt_at, metrics, tensors

import diffalign.train.checkpoints as checkpoints
import diffalign.train.loop as loop
from diffalign.core import DiffalignError, dump_config, load_config, write_json
from diffalign.recipes import realalign_sd15, tiny_twin
from diffalign.train import Plan, run_plan, train
from fresh import Fresh


def work(plan: str, folder: str) -> None:
    run_plan(load_config(Plan, plan), folder)


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_moments_equals_never_killed(data: Path, tmp_path: Path, kills: int) -> None:
    """Both stages of a plan: stale own samples, averaged weights feeding stage 2, a frozen copy as reference."""
    plan = tiny_twin(realalign_sd15(str(data)), model="tiny-sd3", num_steps=2 * kills)
    stages = [stage.replace(checkpoint_every=2) for stage in plan.stages]
    samples = stages[0].samples
    assert samples is not None
    stages[0] = stages[0].replace(samples=samples.replace(refresh_every=3))
    write_json(tmp_path / "plan.json", dump_config(plan.replace(stages=tuple(stages))))
    seed = random.SystemRandom().randrange(10**6)
    moments, landed, finished = random.Random(seed), 0, 0
    began = time.monotonic()
    assert Fresh(work, ("plan.json", "whole"), tmp_path).returncode == 0
    seconds = time.monotonic() - began
    while landed < kills:
        running = Fresh(work, ("plan.json", f"parts{finished}"), tmp_path)
        time.sleep(moments.uniform(0.0, 1.4 / kills) * seconds)
        running.process.kill()
        assert running.returncode in (0, -signal.SIGKILL), f"moments of seed {seed}: {running.stderr[-3000:]}"
        finished, landed = finished + (running.returncode == 0), landed + (running.returncode != 0)
    assert Fresh(work, ("plan.json", f"parts{finished}"), tmp_path).returncode == 0, f"moments of seed {seed}"
    for parts in tmp_path.glob("parts*"):
        for stage, name in (("stage1", "policy"), ("stage1", "ema"), ("stage2", "policy")):
            assert equal(tensors(tmp_path / "whole" / stage, name), tensors(parts / stage, name)), f"seed {seed}"
        for stage in ("stage1", "stage2"):
            assert timeless(tmp_path / "whole" / stage) == timeless(parts / stage), f"seed {seed}"
        assert not list(parts.rglob(".tmp-*"))


def timeless(folder: Path) -> list[dict[str, float]]:
    return [{key: value for key, value in row.items() if key != "rows_per_second"} for row in metrics(folder)]


def test_a_disk_that_fills_up_loses_that_checkpoint_alone(
    data: Path, cache: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    settings = config(data, num_steps=6, checkpoint_every=2)
    train(settings, tmp_path / "whole", cache=cache)
    save, files = checkpoints.save_file, []

    def filling(tensors: Any, path: Path) -> None:
        files.append(path)
        if len(files) == 5:  # in the middle of the second checkpoint
            path.write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        save(tensors, path)

    (tmp_path / "parts" / "checkpoints" / ".tmp-0badcafe-step-00000002").mkdir(parents=True)  # left by a kill
    (tmp_path / "parts" / "run.json").write_text((tmp_path / "whole" / "run.json").read_text())
    (tmp_path / "parts" / "config.yaml").write_text((tmp_path / "whole" / "config.yaml").read_text())
    monkeypatch.setattr(checkpoints, "save_file", filling)
    with pytest.raises(DiffalignError, match="no space left"):
        train(settings, tmp_path / "parts", cache=cache)
    assert [path.name for path in (tmp_path / "parts" / "checkpoints").iterdir()] == ["step-00000002"]
    train(settings, tmp_path / "parts", cache=cache)
    assert equal(tensors(tmp_path / "whole"), tensors(tmp_path / "parts"))
    assert timeless(tmp_path / "whole") == timeless(tmp_path / "parts")


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    """A file system of a megabyte, where this machine lets us mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small disk needs more rights")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_is_really_full(data: Path, cache: Path, tmp_path: Path, small_disk: Path) -> None:
    settings = config(data, num_steps=6, checkpoint_every=2, lora={"rank": 8})
    train(settings, tmp_path / "whole", cache=cache)
    with pytest.raises(DiffalignError, match="no space left"):
        train(settings, small_disk / "run", cache=cache)
    kept = sorted(path.name for path in (small_disk / "run" / "checkpoints").iterdir())
    assert kept and all(name.startswith("step-") for name in kept), "some checkpoint was written, none is a half"
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    train(settings, small_disk / "run", cache=cache)
    assert equal(tensors(tmp_path / "whole"), tensors(small_disk / "run"))


def test_the_last_line_of_the_metrics_may_be_cut(data: Path, cache: Path, tmp_path: Path, monkeypatch: Any) -> None:
    settings = config(data, num_steps=4)
    interrupt_at(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        train(settings, tmp_path, cache=cache)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    train(settings, tmp_path, cache=cache)
    assert [row["step"] for row in metrics(tmp_path)] == [1, 2, 3, 4]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_finishes_the_step_and_keeps_it(
    data: Path, cache: Path, tmp_path: Path, monkeypatch: Any, number: int
) -> None:
    settings = config(data, num_steps=4, checkpoint_every=100)
    train(settings, tmp_path / "whole", cache=cache)
    step, sent = loop.take_step, []

    def interrupted(run: Any, at: int, stop: Any) -> Any:
        if at == 1 and not sent:
            sent.append(at)
            os.kill(os.getpid(), number)
        return step(run, at, stop)

    monkeypatch.setattr(loop, "take_step", interrupted)
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        train(settings, tmp_path / "parts", cache=cache)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    assert [path.name for path in (tmp_path / "parts" / "checkpoints").iterdir()] == ["step-00000002"]
    train(settings, tmp_path / "parts", cache=cache)
    assert equal(tensors(tmp_path / "whole"), tensors(tmp_path / "parts"))
