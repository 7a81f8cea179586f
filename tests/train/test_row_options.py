"""What rows weigh, where their errors are looked at, and on which draws: weights, damage masks, remembered errors."""

from __future__ import annotations

import dataclasses
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from train_helpers import config, equal, interrupt_at, metrics, tensors

from diffalign.core import DiffalignError
from diffalign.data import Preferences, PreferenceWriter, ResizeRecipe
from diffalign.train import train
from diffalign.train.config import WeightsConfig
from diffalign.train.masks import damage_masks
from diffalign.train.remembered import draw_number, remember_errors
from diffalign.train.rows import row_weights
from diffalign.types import Pair


@pytest.fixture(scope="module")
def marked(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pairs with a score each; the first has the left half as mask, the second none, the others a corner."""
    folder = tmp_path_factory.mktemp("marked")
    with PreferenceWriter(folder, form="pair") as writer:
        for number, pair in enumerate(Preferences(data)):
            mask = np.zeros((pair.chosen.height, pair.chosen.width), dtype=np.uint8)
            if number == 0:
                mask[:, : mask.shape[1] // 2] = 255
            else:
                mask[:4, :4] = 255
            scores = {"good": (float(number), 0.0)}
            made = dataclasses.replace(pair, mask=None if number == 1 else Image.fromarray(mask), scores=scores)
            writer.write(made)
    return folder


def test_row_weights_are_exponentials_over_their_mean(marked: Path) -> None:
    weights = row_weights(Preferences(marked), WeightsConfig(metric="good", temperature=2.0))
    expected = np.exp(np.arange(6) / 2)
    np.testing.assert_allclose(weights, expected / expected.mean(), rtol=1e-6)
    assert row_weights(Preferences(marked), None).tolist() == [1.0] * 6


def test_weights_reach_the_loss(marked: Path, tmp_path: Path) -> None:
    settings = config(marked, objective="reward_weighted_sft", settings={}, num_steps=1, batch_size=6)
    plain = settings.replace(objective="sft")
    train(settings, tmp_path / "ones")
    cache = tmp_path / "ones" / "latents"
    train(plain, tmp_path / "sft", cache=cache)
    train(settings.replace(weights=WeightsConfig(metric="good", temperature=0.5)), tmp_path / "weighed", cache=cache)
    losses = {name: metrics(tmp_path / name)[0]["loss"] for name in ("ones", "sft", "weighed")}
    assert losses["ones"] == pytest.approx(losses["sft"], rel=1e-6)
    assert losses["weighed"] != pytest.approx(losses["sft"], rel=1e-2)


def test_damage_masks_weigh_the_damaged_part_and_a_share_of_the_rest(marked: Path) -> None:
    masks = damage_masks(Preferences(marked), ResizeRecipe(size=32), (4, 16, 16), 0.25)
    weights = masks.weights(range(6), [False] * 6)
    assert weights.shape == (6, 1, 16, 16)
    assert weights[0, 0, :, :7].min() == 1 and weights[0, 0, :, 9:].max() == pytest.approx(0.25)
    assert bool((weights[1] == 1).all()), "without a mask the whole image counts"


@pytest.mark.parametrize(("step", "held"), [(32, torch.uint8), (1, torch.int16)])
def test_masks_are_held_small_and_come_back_to_the_bit(tmp_path: Path, step: int, held: torch.dtype) -> None:
    """Every latent's pixel weighs the mean of the mask over its 3 x 3 pixels, as float32 would hold it."""
    generator, grey = np.random.default_rng(0), Image.new("RGB", (15, 15))
    drawn = [generator.integers(0, 256, (15, 15)).astype(np.uint8) // step * step for _ in range(12)]
    with PreferenceWriter(tmp_path, form="pair") as writer:
        for row, mask in enumerate(drawn):
            writer.write(Pair(id=f"{row}", prompt="grey", chosen=grey, rejected=grey, mask=Image.fromarray(mask)))
    masks = damage_masks(Preferences(tmp_path), ResizeRecipe(size=15), (4, 5, 5), 0.25)
    assert masks.codes.dtype == held and masks.codes.shape == (12, 1, 5, 5) and len(masks.values) > 20
    pixels = torch.tensor(np.stack(drawn))[:, None].float().div(127.5).sub(1).add(1).div(2)
    shares = torch.nn.functional.adaptive_avg_pool2d(pixels, 5)
    expected = shares + 0.25 * (1 - shares)
    found = masks.weights([4, 0, 3], [False, True, True])
    assert torch.equal(found, torch.stack([expected[4], expected[0].flip(-1), expected[3].flip(-1)]))


def test_masked_errors_look_at_the_damage_alone(marked: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """With nothing outside, the error is the mean over the masked places; mirrored rows have mirrored masks."""
    import diffalign.train.quantities as quantities

    seen = []
    error = quantities.denoising_error

    def spy(pred: Any, target: Any, mask: Any = None) -> Any:
        seen.append((pred.detach(), target, mask))
        return error(pred, target, mask)

    monkeypatch.setattr(quantities, "denoising_error", spy)
    settings = config(marked, objective="sft", settings={}, num_steps=1, batch_size=6, micro_batch_size=6)
    train(settings.replace(outside_weight=0.0), tmp_path / "masked")
    (pred, target, mask) = seen[0]
    squares = (pred - target).square().mean(1, keepdim=True)
    expected = (squares * mask).sum((1, 2, 3)) / mask.sum((1, 2, 3))
    torch.testing.assert_close(error(pred, target, mask), expected)
    halves = mask[(mask.sum((1, 2, 3)) > 100) & (mask.mean((1, 2, 3)) < 0.9)]
    assert len(halves) == 1
    left = halves[0, 0, :, :7].mean()
    assert left in (0, 1), "the half is the left one, or the right one where the row is mirrored"


def test_masks_and_weights_that_would_have_no_effect_are_refused(data: Path, marked: Path, tmp_path: Path) -> None:
    for settings, words in (
        (config(data, outside_weight=0.5), "needs pairs with damage masks"),
        (config(marked, weights={"metric": "good"}), "does not weigh its rows"),
        (
            config(marked, objective="reward_weighted_sft", settings={}, weights={"metric": "goood"}),
            "unknown metric 'goood'; nearest: good",
        ),
    ):
        with pytest.raises(DiffalignError, match=words):
            train(settings, tmp_path / "run")


def test_remembered_errors_are_those_of_the_reference_on_the_same_draws(
    data: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(data, remember=3, num_steps=4, checkpoint_every=1)
    train(settings, tmp_path / "bank", cache=cache)
    bank = load_file(tmp_path / "bank" / "reference_errors.safetensors")["errors"]
    assert bank.shape == (6, 3, 2) and len(set(bank.flatten().tolist())) == 36
    rows = metrics(tmp_path / "bank")
    assert rows[0]["loss"] == pytest.approx(0.693147, abs=1e-4), "policy = reference on the very draws of the bank"
    assert rows[3]["loss"] != pytest.approx(0.693147, abs=1e-4)
    interrupt_at(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        train(settings, tmp_path / "parts", cache=cache)
    train(settings, tmp_path / "parts", cache=cache)
    assert equal(tensors(tmp_path / "bank"), tensors(tmp_path / "parts"))


class Processes:
    """As one process sees them."""

    def __init__(self, index: int, barrier: threading.Barrier) -> None:
        self.process_index, self.num_processes, self.is_main_process = index, barrier.parties, index == 0
        self.wait_for_everyone = barrier.wait


def measured(folder: Path, index: int, barrier: threading.Barrier, *, dies_at: int = 99) -> tuple[Any, list[int]]:
    """The bank of 7 rows and 2 draws in batches of 2, and the rows that were measured for it; or None after a kill."""
    rows_seen: list[int] = []

    def measure(rows: Any, number: int) -> torch.Tensor:
        rows_seen.extend(rows)
        if len(rows_seen) > dies_at:
            raise KeyboardInterrupt
        return torch.tensor([[100.0 * row + number, 0.5, -row] for row in rows])

    try:
        processes: Any = Processes(index, barrier)
        return remember_errors(folder, "run", measure, processes, num_rows=7, count=2, batch_size=2), rows_seen
    except KeyboardInterrupt:
        return None, rows_seen


BANK = [[[100.0 * row + number, 0.5, -row] for number in range(2)] for row in range(7)]


def test_a_bank_is_measured_in_shards_and_a_kill_loses_one(tmp_path: Path) -> None:
    """Four shards of a batch; the kill comes in the third one."""
    alone = threading.Barrier(1)
    assert measured(tmp_path, 0, alone, dies_at=8) == (None, [0, 1, 0, 1, 2, 3, 2, 3, 4, 5])
    parts = tmp_path / "reference_errors"
    assert sorted(path.name for path in parts.iterdir()) == [f"0000{n}-of-00004.safetensors" for n in (0, 1)]
    (parts / ".tmp-half.safetensors").write_text("half")
    (parts / "00001-of-00004.safetensors").write_bytes((parts / "00001-of-00004.safetensors").read_bytes()[:-4])
    bank, rows = measured(tmp_path, 0, alone)
    assert bank.tolist() == BANK and rows == [2, 3, 2, 3, 4, 5, 4, 5, 6, 6] and not parts.exists()
    assert measured(tmp_path, 0, alone)[1] == []


def test_every_process_measures_its_share_of_the_bank(tmp_path: Path) -> None:
    """Two threads stand for the processes; see test_distributed for real ones."""
    both = threading.Barrier(2, timeout=20)
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(lambda index: measured(tmp_path, index, both), range(2)))
    assert [bank.tolist() for bank, _ in found] == [BANK, BANK]
    assert [sorted(set(rows)) for _, rows in found] == [[0, 1, 4, 5], [2, 3, 6]]


def test_shards_that_another_process_kept_elsewhere_are_told_by_both(tmp_path: Path) -> None:
    """Each has a folder of its own: nobody joins what is there, which would give rows the errors of others."""
    both = threading.Barrier(2, timeout=20)
    with ThreadPoolExecutor() as pool:
        runs = [pool.submit(measured, tmp_path / str(index), index, both) for index in range(2)]
        for run in runs:
            with pytest.raises(DiffalignError, match=r"2 of 4 shards .* one shared folder"):
                run.result()
    assert not list(tmp_path.glob("*/reference_errors.safetensors"))


def test_a_bank_that_is_too_short_is_measured_again(tmp_path: Path) -> None:
    alone = threading.Barrier(1)
    assert measured(tmp_path, 0, alone)[0].tolist() == BANK
    path = tmp_path / "reference_errors.safetensors"
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file({"errors": torch.tensor(BANK[:5])}, path, metadata=metadata)
    assert measured(tmp_path, 0, alone)[0].tolist() == BANK


def test_a_damaged_bank_is_measured_again(data: Path, cache: Path, tmp_path: Path) -> None:
    settings = config(data, remember=2, num_steps=1)
    train(settings, tmp_path / "one", cache=cache)
    whole = (tmp_path / "one" / "reference_errors.safetensors").read_bytes()
    shutil.copytree(tmp_path / "one", tmp_path / "two", ignore=shutil.ignore_patterns("policy", "ema", "checkpoints"))
    (tmp_path / "two" / "reference_errors.safetensors").write_bytes(whole[: len(whole) // 2])
    train(settings, tmp_path / "two", cache=cache)
    assert (tmp_path / "two" / "reference_errors.safetensors").read_bytes() == whole
    assert equal(tensors(tmp_path / "one"), tensors(tmp_path / "two"))


def test_every_draw_of_a_row_is_met(data: Path) -> None:
    numbers = [draw_number(0, step, place, 4) for step in range(20) for place in range(4)]
    assert set(numbers) == {0, 1, 2, 3}


def test_references_that_move_and_draws_that_do_not_come_again_are_refused(data: Path, tmp_path: Path) -> None:
    for changes, words in (
        ({"reference": "ema"}, "a reference that stands still"),
        ({"objective": "diffusion_dro", "settings": {}, "samples": {}}, "a reference that stands still"),
        ({"inversion": {}}, "a reference that stands still"),
        ({"objective": "sft", "settings": {}}, "no reference to remember"),
        ({"objective": "dspo", "settings": {"beta": 1.0}}, "asks for the reference's outputs"),
    ):
        with pytest.raises(DiffalignError, match=words):
            train(config(data, remember=2, **changes), tmp_path / "run")
