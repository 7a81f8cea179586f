"""Two gloo processes train what one does, up to the order of floating-point sums."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from train_helpers import close, config, metrics, tensors

from diffalign.core import dump_config, write_json
from diffalign.train import train

WORKER = """
import sys
from diffalign.core import load_config
from diffalign.train import TrainConfig, train
train(load_config(TrainConfig, sys.argv[1]), sys.argv[2], cache=sys.argv[3])
"""


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_two_processes_equal_one(data: Path, cache: Path, tmp_path: Path, kind: str) -> None:
    settings = config(data, train=kind, num_steps=3, micro_batch_size=2, optimizer={"learning_rate": 1e-3, "eps": 1e-4})
    train(settings, tmp_path / "one", cache=cache)
    write_json(tmp_path / "config.json", dump_config(settings))
    (tmp_path / "worker.py").write_text(WORKER)
    arguments = [str(tmp_path / name) for name in ("worker.py", "config.json", "two")] + [str(cache)]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert close(tensors(tmp_path / "one"), tensors(tmp_path / "two"), atol=2e-5)
    for one, two in zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-4)
        assert one["grad_norm"] == pytest.approx(two["grad_norm"], rel=1e-3)
