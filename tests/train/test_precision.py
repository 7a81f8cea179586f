"""Autocast: policy = reference stays exact, the loss scale is part of the state, stages may differ."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from train_helpers import config, equal, interrupt_at, metrics, tensors

from diffalign.core import read_json
from diffalign.models import load_family
from diffalign.train import FullWeights, LoraWeights, frozen_dtype, train
from diffalign.train.build import build_weights

LOG_2 = 0.6931471805599453


@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_the_first_loss_is_exactly_log_2(data: Path, cache: Path, tmp_path: Path, precision: str, kind: str) -> None:
    """Both passes round alike, so the errors cancel to the last bit; training then moves the policy."""
    train(config(data, mixed_precision=precision, train=kind, num_steps=2), tmp_path, cache=cache)
    first, second = metrics(tmp_path)
    assert first["loss"] == pytest.approx(LOG_2, abs=1e-7)
    assert first["chosen_excess"] == first["rejected_excess"] == 0
    assert second["loss"] != first["loss"] and first["grad_norm"] > 0
    assert all(value.dtype == torch.float32 for value in tensors(tmp_path).values())


def test_gradients_in_bf16_are_those_of_float32_up_to_rounding(data: Path, cache: Path, tmp_path: Path) -> None:
    norms = {}
    for precision in ("no", "bf16"):
        train(config(data, mixed_precision=precision, num_steps=1), tmp_path / precision, cache=cache)
        norms[precision] = metrics(tmp_path / precision)[0]["grad_norm"]
    assert norms["bf16"] == pytest.approx(norms["no"], rel=0.05) and norms["bf16"] != norms["no"]


def test_frozen_weights_are_held_in_the_precision_and_trained_ones_in_float32(data: Path) -> None:
    for kind, held, weights in (("lora", torch.bfloat16, LoraWeights), ("full", torch.float32, FullWeights)):
        settings = config(data, mixed_precision="bf16", train=kind)
        family = load_family("tiny-sd3", dtype=frozen_dtype(settings))
        built = build_weights(settings, family)
        assert isinstance(built, weights) and family.dtype == held
        assert {p.dtype for p in built.parameters("policy").values()} == {torch.float32}


def test_the_loss_scale_resumes_and_overflows_are_skipped(
    data: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a scale of 2^40 the first steps overflow: nothing moves, the scale halves, until it fits."""
    scaler = torch.amp.GradScaler
    monkeypatch.setattr(torch.amp, "GradScaler", lambda device: scaler(device, init_scale=2.0**40))
    settings = config(data, mixed_precision="fp16", num_steps=5, batch_size=2, checkpoint_every=1, ema=None)
    train(settings, tmp_path / "whole", cache=cache)
    rows = metrics(tmp_path / "whole")
    skipped = [row["skipped"] for row in rows]
    assert skipped[0] == 1 and "grad_norm" not in rows[0] and rows[1]["loss"] == pytest.approx(LOG_2, abs=1e-7)
    assert [row["loss_scale"] for row in rows[:2]] == [2.0**39, 2.0**38]

    interrupt_at(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        train(settings, tmp_path / "parts", cache=cache)
    saved = read_json(tmp_path / "parts" / "checkpoints" / "step-00000003" / "state.json")
    assert saved["scaler"]["scale"] == rows[2]["loss_scale"]
    train(settings, tmp_path / "parts", cache=cache)
    assert equal(tensors(tmp_path / "whole"), tensors(tmp_path / "parts"))
    assert [row["loss_scale"] for row in metrics(tmp_path / "parts")] == [row["loss_scale"] for row in rows]
