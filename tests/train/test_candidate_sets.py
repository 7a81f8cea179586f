"""Objectives on candidate sets: the K images of a prompt share timestep and noise, scores keep their order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from train_helpers import config, equal, interrupt_at, metrics, tensors

from diffalign.core import DiffalignError
from diffalign.data import Preferences, PreferenceWriter
from diffalign.models import load_family
from diffalign.objectives import get_objective
from diffalign.train import PreferenceRows, draw_rows, fill_cache, needs_of, train
from diffalign.types import CandidateSet

LISTWISE = {"beta": 100.0, "metric_weights": [0.5, 0.5], "temperatures": [1.0, 1.0]}


@pytest.fixture(scope="module")
def sets(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four sets of three images: a pair's two and the chosen one mirrored."""
    folder = tmp_path_factory.mktemp("sets")
    with PreferenceWriter(folder, form="candidates") as writer:
        for number, pair in enumerate(Preferences(data)[:4]):
            images = (pair.chosen, pair.rejected, pair.chosen.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
            scores = {"b": (3.0, 1.0, 2.0), "a": (0.1 * number, 0.0, 0.3), "other": (0.0, 0.0, 1.0)}
            writer.write(CandidateSet(id=pair.id, prompt=pair.prompt, images=images, scores=scores))
    return folder


def listwise(data: Path, **changes: Any) -> Any:
    values = {"objective": "lambda_listwise", "settings": LISTWISE, "metrics": ("b", "a"), "batch_size": 4}
    return config(data, **values | {"micro_batch_size": 4} | changes)


def test_rows_hold_latents_of_every_image_and_the_scores_that_were_asked_for(sets: Path, tmp_path: Path) -> None:
    family, preferences = load_family("tiny-sd3"), Preferences(sets)
    latents = fill_cache(tmp_path, family, preferences, resolution=32, flip=False)
    needs = needs_of(get_objective("lambda_listwise"), 3)
    assert needs.sides == needs.policy == needs.reference == ("candidate0", "candidate1", "candidate2")
    rows = PreferenceRows(preferences, latents, sides=needs.sides, flip=False, prompt_drop=0, metrics=("b", "a"))
    draws = draw_rows(family.process, range(2), family.latent_shape(32, 32), seed=0, step=0, sides=needs.sides)
    batch = rows.batch([2, 0], draws)
    assert batch.row["scores"].shape == (2, 3, 2)
    torch.testing.assert_close(batch.row["scores"][0], torch.tensor([[3.0, 0.2], [1.0, 0.0], [2.0, 0.3]]))
    hashes = preferences.image_hashes()[2]
    mean = torch.stack([latents.latents(sha256).mean for sha256 in hashes])
    found = torch.stack([batch.latents[side][0] for side in needs.sides])
    std = torch.stack([latents.latents(sha256).std for sha256 in hashes])
    noise = torch.stack([draws.posterior[side][0] for side in needs.sides])
    torch.testing.assert_close(found, mean + std * noise)


def test_training_starts_at_the_uniform_loss_learns_and_resumes_exactly(
    sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = listwise(sets, num_steps=3, checkpoint_every=1)
    train(settings, tmp_path / "whole")
    first = metrics(tmp_path / "whole")[0]
    assert first["loss"] == pytest.approx(torch.log(torch.tensor(3.0)).item(), abs=1e-5)
    assert first["chosen_excess"] == first["rejected_excess"] == 0
    interrupt_at(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        train(settings, tmp_path / "parts", cache=tmp_path / "whole" / "latents")
    train(settings, tmp_path / "parts", cache=tmp_path / "whole" / "latents")
    assert equal(tensors(tmp_path / "whole"), tensors(tmp_path / "parts"))


def test_a_pair_reads_as_a_set_of_two_and_gives_the_loss_of_dpo(data: Path, cache: Path, tmp_path: Path) -> None:
    """K = 2, one metric, all the weight on the chosen image: lambda_listwise is Diffusion-DPO."""
    settings = {"beta": 100.0, "metric_weights": [1.0], "temperatures": [1e-3]}
    common = {"num_steps": 3, "prompt_drop": 0.0, "flip": False}
    rows = config(data, objective="lambda_listwise", settings=settings, metrics=("label",), **common)
    train(rows, tmp_path / "set", cache=cache)
    train(config(data, **common), tmp_path / "pair", cache=cache)
    losses = [[row["loss"] for row in metrics(tmp_path / name)] for name in ("set", "pair")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_what_does_not_fit_is_told_before_any_weight_loads(
    sets: Path, data: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    import diffalign.train.build as build

    monkeypatch.setattr(build, "load_family", lambda *_, **__: pytest.fail("a weight was loaded"))
    uneven = tmp_path / "uneven"
    with PreferenceWriter(uneven, form="candidates") as writer:
        for number, row in enumerate(Preferences(sets)):
            count = 2 + number % 2
            kept = {name: values[:count] for name, values in row.scores.items()}
            writer.write(CandidateSet(id=row.id, prompt=row.prompt, images=row.images[:count], scores=kept))
    for settings, words in (
        (config(sets), "takes pairs, and .* diffalign label"),
        (listwise(uneven), "of one size.*the rows have 2, 3"),
        (listwise(sets, metrics=("b", "aa")), "unknown metric 'aa'; nearest: a"),
        (listwise(sets, metrics=("a",)), "metric_weights of 1 metrics, got 2"),
        (config(data, metrics=("label",)), "leave metrics out"),
    ):
        with pytest.raises(DiffalignError, match=words):
            train(settings, tmp_path / "run")
