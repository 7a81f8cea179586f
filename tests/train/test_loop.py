"""The offline loop: equivalences, exact resume, references, what it refuses."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from train_helpers import close, config, equal, interrupt_at, metrics, tensors

import diffalign.train.build as build
from diffalign.core import DiffalignError
from diffalign.data import Preferences, PreferenceWriter, ResizeRecipe, batch_rows
from diffalign.models import load_family
from diffalign.train import LiveLatents, draw_rows, fill_cache, train
from diffalign.train.rows import PreferenceRows


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
    interrupt_at(monkeypatch, 3, 4)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train(settings, tmp_path / "parts", cache=cache)
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
    readers = [PreferenceRows(preferences, one, sides=sides, flip=True, prompt_drop=0.3) for one in (cached, live)]
    batches = [reader.batch([0, 1, 2, 3], draws) for reader in readers]
    for side in sides:
        torch.testing.assert_close(batches[0].latents[side], batches[1].latents[side], rtol=1e-4, atol=1e-4)
    for key, value in batches[0].condition.items():
        torch.testing.assert_close(value, batches[1].condition[key], rtol=1e-4, atol=1e-4)


def test_gradient_checkpointing_gives_equal_gradients(
    data: Path, cache: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    calls = []
    checkpoint = torch.utils.checkpoint.checkpoint
    monkeypatch.setattr(torch.utils.checkpoint, "checkpoint", lambda *a, **k: calls.append(1) or checkpoint(*a, **k))
    for on in (False, True):
        train(config(data, gradient_checkpointing=on, num_steps=2), tmp_path / str(on), cache=cache)
        assert bool(calls) == on, "blocks are recomputed exactly when asked"
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


def test_changed_data_and_settings_are_refused_on_resume(
    data: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(data, num_steps=3, checkpoint_every=1)
    interrupt_at(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        train(settings, tmp_path / "run", cache=cache)
    with pytest.raises(DiffalignError, match="num_steps"):
        train(settings.replace(num_steps=6), tmp_path / "run", cache=cache)
    state = tmp_path / "run" / "checkpoints" / "step-00000002" / "state.json"
    written = state.read_text()
    for what in ("data", "base model"):
        changed = json.loads(written)
        changed["hashes"][what] = "0" * 64
        state.write_text(json.dumps(changed))
        with pytest.raises(DiffalignError, match=f"the {what} is not what"):
            train(settings, tmp_path / "run", cache=cache)
    state.write_text(written)
    train(settings, tmp_path / "run", cache=cache)


def test_a_finished_run_is_left_as_it_is(data: Path, cache: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Nothing loads again; changed data is still told."""
    settings = config(data, num_steps=1)
    train(settings, tmp_path, cache=cache)
    shutil.rmtree(tmp_path / "checkpoints")
    monkeypatch.setattr(build, "load_family", lambda *_, **__: pytest.fail("a weight was loaded"))
    assert train(settings, tmp_path, cache=cache) == tmp_path / "policy"
    made_with = tmp_path / "policy" / "made_with.json"
    made_with.write_text(made_with.read_text().replace('"data": "', '"data": "0'))
    with pytest.raises(DiffalignError, match="the data is not what"):
        train(settings, tmp_path, cache=cache)


def test_ties_are_left_out_and_swapped_labels_refused(data: Path, tmp_path: Path, capsys: Any) -> None:
    """Diffusion-DPO takes every chosen image as better, and does not see labels."""
    rows = list(Preferences(data))
    for name, labels in (("ties", [1.0, 0.5, 0.9, 0.5, 1.0, 1.0]), ("swapped", [1.0, 0.2, 1.0, 1.0, 1.0, 1.0])):
        with PreferenceWriter(tmp_path / name, form="pair") as writer:
            for row, label in zip(rows, labels, strict=True):
                writer.write(dataclasses.replace(row, label=label))
    train(config(tmp_path / "ties", num_steps=1), tmp_path / "a")
    train(config(tmp_path / "ties", num_steps=1, objective="sft", settings={}), tmp_path / "sft")
    assert capsys.readouterr().err.count("2 of 6 rows are ties") == 2
    with pytest.raises(DiffalignError, match="1 labels are below"):
        train(config(tmp_path / "swapped", num_steps=1), tmp_path / "b")


def test_objectives_that_rows_cannot_feed_are_refused_before_any_weight_loads(
    data: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(build, "load_family", lambda *_, **__: pytest.fail("a weight was loaded"))
    (tmp_path / "odd_objectives.py").write_text(
        "from diffalign.objectives import objective\n"
        "from diffalign.types import ObjectiveOutput\n"
        "def old(old_chosen_err): return ObjectiveOutput(old_chosen_err)\n"
        "@objective('coupled_for_a_test', couples_batch=True)\n"
        "def coupled(chosen_err): return ObjectiveOutput(chosen_err - chosen_err.mean())\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    for changes, words in (
        ({"objective": "odd_objectives:old", "settings": {}}, "old_chosen_err, which offline training cannot give"),
        ({"objective": "nft", "settings": {}}, "the policy's own samples"),
        ({"objective": "crd", "settings": {"beta": 1.0, "metric_weights": [1.0]}}, "asks for old_err"),
        ({"objective": "odd_objectives:coupled", "settings": {}, "micro_batch_size": 4}, "micro_batch_size"),
        ({"settings": {"beta": -100.0}}, "beta above 0"),
        ({"settings": {"beta": "100"}}, "a number as beta"),
    ):
        with pytest.raises(DiffalignError, match=words):
            train(config(data, **changes), tmp_path / "run")


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
        ({"train": "full", "start": str(data)}, "fuse"),
    ):
        with pytest.raises(DiffalignError, match=words):
            train(config(data, **changes), tmp_path / "run")
