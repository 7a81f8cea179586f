"""Killed for real, at random moments: the run goes on to the very same bytes, and leaves nobody behind."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from test_curate import config, results

from diffalign.core import config_to_yaml, load_config, write_text
from diffalign.curate import CurateConfig, curate
from fresh import Fresh


def work(settings: str, folder: str) -> None:
    curate(load_config(CurateConfig, settings), folder)


ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_moments_equals_never_killed(tmp_path: Path, kills: int) -> None:
    write_text(tmp_path / "config.yaml", config_to_yaml(config(audit=True)))
    seed = random.SystemRandom().randrange(10**6)
    moments, landed, finished = random.Random(seed), 0, 0
    assert Fresh(work, ("config.yaml", "first"), tmp_path).returncode == 0
    began = time.monotonic()
    assert Fresh(work, ("config.yaml", "whole"), tmp_path).returncode == 0
    seconds = time.monotonic() - began
    while landed < kills:
        running = Fresh(work, ("config.yaml", f"parts{finished}"), tmp_path)
        time.sleep(moments.uniform(0.0, 0.9) * seconds)
        running.process.kill()
        assert running.returncode in (0, -signal.SIGKILL), f"moments of seed {seed}: {running.stderr[-3000:]}"
        finished, landed = finished + (running.returncode == 0), landed + (running.returncode != 0)
    assert Fresh(work, ("config.yaml", f"parts{finished}"), tmp_path).returncode == 0, f"moments of seed {seed}"
    whole = results(tmp_path / "whole")
    assert len(whole) == 4 and results(tmp_path / "first") == whole
    for parts in tmp_path.glob("parts*"):
        assert results(parts) == whole, f"seed {seed}"
        assert not list(parts.rglob(".tmp-*")), f"seed {seed}"


SLOW = """
from diffalign.curate import curate

def main():
    from test_curate import config
    curate(config(degrade={"name": "jpeg", "severity": 0.9}, rewards=("slow_reward:slow",)), "run", workers=2)

if __name__ == "__main__":
    main()
"""
SLOW_REWARD = """
import os, time
import numpy as np

def slow(images, prompts):
    open(os.path.join(os.path.dirname(__file__), f"worker {os.getpid()}"), "w").close()
    time.sleep(SECONDS)
    return [float(np.asarray(image).std()) for image in images]

slow.version = "1"
"""


def children(parent: int) -> list[int]:
    """The processes that a process has started."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:  # it has ended meanwhile
            continue
        if int(fields[1]) == parent:
            found.append(int(stat.parent.name))
    return found


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def wait_until(true: Callable[[], bool], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.05)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are looked up in /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_run_that_ends_early_takes_its_workers_along_and_goes_on(number: int, tmp_path: Path) -> None:
    (tmp_path / "run.py").write_text(SLOW)
    (tmp_path / "slow_reward.py").write_text(SLOW_REWARD.replace("SECONDS", "600"))
    paths = os.pathsep.join([str(tmp_path), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    run = subprocess.Popen(
        [sys.executable, "run.py"], cwd=tmp_path, env=ENVIRONMENT | {"PYTHONPATH": paths},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_until(lambda: run.poll() is not None or any(tmp_path.glob("worker *")))
    started = children(run.pid)
    assert run.poll() is None and len(started) >= 2
    run.send_signal(number)
    _, errors = run.communicate(timeout=120)
    assert run.returncode in (-number, 1) and ("KeyboardInterrupt" in errors) == (number == signal.SIGINT)
    try:
        wait_until(lambda: not any(map(alive, started)), seconds=60.0)
    finally:
        for process in filter(alive, started):
            os.kill(process, signal.SIGKILL)
    (tmp_path / "slow_reward.py").write_text(SLOW_REWARD.replace("SECONDS", "0"))
    sys.path.insert(0, str(tmp_path))
    try:
        wanted = config(degrade={"name": "jpeg", "severity": 0.9}, rewards=("slow_reward:slow",))
        curate(wanted, tmp_path / "run")
        curate(wanted, tmp_path / "whole")
    finally:
        sys.path.remove(str(tmp_path))
        sys.modules.pop("slow_reward", None)
    assert results(tmp_path / "run") == results(tmp_path / "whole")
