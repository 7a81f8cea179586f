"""The offline loop: equivalences, exact resume, references, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from train_helpers import close, config, equal, metrics, tensors

import diffalign.train.build as build
import diffalign.train.loop as loop
from diffalign.core import DiffalignError
from diffalign.data import Preferences, ResizeRecipe, batch_rows
from diffalign.models import load_family
from diffalign.train import LiveLatents, draw_rows, fill_cache, train
from diffalign.train.rows import PairRows


def test_first_step_starts_at_log_2_and_training_moves_the_policy(data: Path, cache: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(config(data), folder, cache=cache)
    rows = metrics(folder)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert rows[0]["loss"] == pytest.approx(0.693147, abs=1e-6) and rows[0]["accuracy"] == 0.5
    assert rows[1]["loss"] != rows[0]["loss"] and all(row["grad_norm"] > 0 for row in rows)
    assert {"margin", "chosen_excess", "rejected_excess", "rows_per_second", "learning_rate"} <= rows[0].keys()
    assert any(value.abs().max() > 0 for key, value in tensors(folder).items() if "lora_B" in key)
    assert not equal(tensors(folder), tensors(folder, "ema"))


def test_one_batch_of_eight_equals_eight_of_one(data: Path, cache: Path, tmp_path: Path) -> None:
    """Up to the order of floating-point sums."""
    for size in (1, 8):
        train(config(data, micro_batch_size=size, optimizer={"learning_rate": 1e-3, "eps": 1e-4}),
              tmp_path / str(size), cache=cache)  # fmt: skip
    assert close(tensors(tmp_path / "1"), tensors(tmp_path / "8"), atol=2e-5)
    for one, eight in zip(metrics(tmp_path / "1"), metrics(tmp_path / "8"), strict=True):
        assert one["loss"] == pytest.approx(eight["loss"], rel=1e-4)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_interrupted_and_resumed_equals_never_interrupted(
    data: Path, cache: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, also when the kill comes after steps that no checkpoint holds."""
    settings = config(data, train=kind, num_steps=5)
    train(settings, tmp_path / "whole", cache=cache)
    step, kills = loop._step, [3, 4, 1]

    def dying(run: Any, number: int) -> Any:
        if kills and number == kills[0]:
            kills.pop(0)
            raise KeyboardInterrupt
        return step(run, number)

    monkeypatch.setattr(loop, "_step", dying)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train(settings, tmp_path / "parts", cache=cache)
    kills.clear()
    train(settings, tmp_path / "parts", cache=cache)
    for name in ("policy", "ema"):
        assert equal(tensors(tmp_path / "whole", name), tensors(tmp_path / "parts", name))
    whole, parts = (
        [{key: value for key, value in row.items() if key != "rows_per_second"} for row in metrics(tmp_path / part)]
        for part in ("whole", "parts")
    )
    assert whole == parts


def test_cached_latents_equal_live_ones(data: Path, cache: Path) -> None:
    family, preferences = load_family("tiny-sd3"), Preferences(data)
    cached = fill_cache(cache, family, preferences, resolution=32, flip=True)
    live = LiveLatents(family, preferences, ResizeRecipe(size=32))
    draws = draw_rows(family.process, range(4), family.latent_shape(32, 32), seed=0, step=0)
    assert len({view < 0.5 for view in draws.flip.tolist()}) == 2, "both views must occur for the test to tell"
    sides = ("chosen", "rejected")
    readers = [PairRows(preferences, one, sides=sides, flip=True, prompt_drop=0.3) for one in (cached, live)]
    batches = [reader.batch([0, 1, 2, 3], draws) for reader in readers]
    for side in sides:
        torch.testing.assert_close(batches[0].latents[side], batches[1].latents[side], rtol=1e-4, atol=1e-4)
    for key, value in batches[0].condition.items():
        torch.testing.assert_close(value, batches[1].condition[key], rtol=1e-4, atol=1e-4)


def test_gradient_checkpointing_gives_equal_gradients(data: Path, cache: Path, tmp_path: Path) -> None:
    for on in (False, True):
        train(config(data, gradient_checkpointing=on, num_steps=2), tmp_path / str(on), cache=cache)
    assert close(tensors(tmp_path / "False"), tensors(tmp_path / "True"), atol=1e-6)


def test_second_stage_starts_from_and_refers_to_the_first(data: Path, cache: Path, tmp_path: Path) -> None:
    """Continuing an adapter, the reference is a copy of it: the first loss is log 2. Against the base it is not."""
    first = train(config(data, objective="sft", settings={}, num_steps=3), tmp_path / "first", cache=cache)
    second = config(data, start=str(first), num_steps=1)
    train(second, tmp_path / "second", cache=cache)
    assert metrics(tmp_path / "second")[0]["loss"] == pytest.approx(0.693147, abs=1e-6)
    train(second.replace(reference="base"), tmp_path / "base", cache=cache)
    assert metrics(tmp_path / "base")[0]["loss"] != pytest.approx(0.693147, abs=1e-6)
    for way in ("keep", "fuse"):
        train(second.replace(start_as=way), tmp_path / way, cache=cache)
        assert metrics(tmp_path / way)[0]["loss"] == pytest.approx(0.693147, abs=1e-6)


def test_changed_data_and_settings_are_refused_on_resume(data: Path, cache: Path, tmp_path: Path) -> None:
    settings = config(data, num_steps=2)
    train(settings, tmp_path / "run", cache=cache)
    with pytest.raises(DiffalignError, match="num_steps"):
        train(settings.replace(num_steps=6), tmp_path / "run", cache=cache)
    (found,) = (tmp_path / "run" / "checkpoints").glob("step-*")
    state = json.loads((found / "state.json").read_text())
    state["hashes"]["data"] = "0" * 64
    (found / "state.json").write_text(json.dumps(state))
    with pytest.raises(DiffalignError, match="the data is not what"):
        train(settings, tmp_path / "run", cache=cache)


def test_a_loss_that_is_not_finite_names_the_rows(data: Path, cache: Path, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "broken_objective.py").write_text(
        "from diffalign.types import ObjectiveOutput\n"
        "def broken(chosen_err, step):\n"
        "    return ObjectiveOutput(chosen_err / (0 if step == 1 else 1))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(FloatingPointError, match="step 2, rows row-"):
        train(config(data, objective="broken_objective:broken", settings={}), tmp_path / "run", cache=cache)


def test_a_gradient_that_is_not_finite_names_the_rows(
    data: Path, cache: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """Finite losses with an infinite slope at the rows with early timesteps."""
    (tmp_path / "steep_objective.py").write_text(
        "from diffalign.types import ObjectiveOutput\n"
        "def steep(chosen_err, timesteps):\n"
        "    return ObjectiveOutput((chosen_err - chosen_err.detach() + (timesteps >= 760)).sqrt())\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    settings = config(data, model="tiny-sd3", objective="steep_objective:steep", settings={}, batch_size=6)
    family, ids = load_family("tiny-sd3"), Preferences(data).ids()
    draws = draw_rows(family.process, range(6), family.latent_shape(32, 32), seed=0, step=0)
    order = batch_rows(6, batch_size=6, seed=0, step=0)
    wrong = [ids[row] for row, timestep in zip(order, draws.timesteps.tolist(), strict=True) if timestep < 760]
    assert 0 < len(wrong) < 6
    with pytest.raises(FloatingPointError, match=f"the gradient is not finite at step 1, rows {', '.join(wrong)}$"):
        train(settings.replace(micro_batch_size=6), tmp_path / "run", cache=cache)
    (row,) = metrics(tmp_path / "run")
    assert row == {"step": 1, "alarms": ["non_finite"], "rows": wrong}
    assert not (tmp_path / "run" / "policy").exists()


def test_tensorboard_gets_the_same_numbers(data: Path, cache: Path, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train(config(data, num_steps=3), tmp_path, cache=cache, tensorboard=True)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    logged = [(event.step, event.value) for event in events.Scalars("loss")]
    assert logged == [(row["step"], pytest.approx(row["loss"], rel=1e-6)) for row in metrics(tmp_path)]


def test_bad_settings_stop_before_any_weight_loads(data: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(build, "load_family", lambda *_, **__: pytest.fail("a weight was loaded"))
    for changes, words in (
        ({"objective": "difusion_dpo"}, "diffusion_dpo"),
        ({"settings": {"betta": 1}}, "beta"),
        ({"reference": "ema", "ema": None}, "section ema"),
        ({"train": "full", "start": "x"}, "fuse"),
    ):
        with pytest.raises(DiffalignError, match=words):
            train(config(data, **changes), tmp_path / "run")
