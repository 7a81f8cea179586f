"""A small stage to train, and what it wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import diffalign.train.loop as loop
from diffalign.train import TrainConfig


def config(data: Path, **changes: Any) -> TrainConfig:
    values: dict[str, Any] = {
        "model": "tiny-sd3",
        "data": str(data),
        "objective": "diffusion_dpo",
        "settings": {"beta": 100.0},
        "resolution": 32,
        "num_steps": 4,
        "batch_size": 8,
        "micro_batch_size": 8,
        "checkpoint_every": 2,
        "prompt_drop": 0.3,
        "ema": {"decay": 0.9},
        "optimizer": {"learning_rate": 1e-3},
    }
    return TrainConfig(**values | changes)


def interrupt_at(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """Training stops, without a checkpoint, as soon as it reaches each of these steps, one after the other."""
    step, ahead = loop.take_step, list(steps)

    def dying(run: loop.Run, number: int, stop: Any) -> Any:
        if ahead and number == ahead[0]:
            ahead.pop(0)
            raise KeyboardInterrupt
        return step(run, number, stop)

    monkeypatch.setattr(loop, "take_step", dying)


def tensors(folder: Path, name: str = "policy") -> dict[str, torch.Tensor]:
    (file,) = (folder / name).glob("*.safetensors")
    return load_file(file)


def metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def close(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor], **bounds: float) -> bool:
    return one.keys() == two.keys() and all(torch.allclose(one[key], two[key], **bounds) for key in one)


def equal(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
