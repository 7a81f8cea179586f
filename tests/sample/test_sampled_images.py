"""A folder of images: the noise, the manifest, failures as rows, and a run that was stopped and goes on."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sample_helpers import difference
from torch import Tensor

from diffalign.core import DiffalignError, read_jsonl, read_text
from diffalign.data import decode_image, image_sha256
from diffalign.models import load_family
from diffalign.sample import ImageSampler, PromptRow, family_sampler, initial_noise, read_prompts, sample_images

ROWS = [PromptRow(f"row{number}", f"prompt {number}") for number in range(11)]
IDENTITY: dict[str, Any] = {
    "model": "toy", "adapter": "", "sampler": "none", "num_steps": 2, "guidance_scale": 1.5, "height": 7, "width": 5,
    "negative_prompt": "blur", "dtype": "torch.float32",
}  # fmt: skip


@dataclass
class Toy:
    """Paints an image with the noise; ``before`` may raise, by the prompts of the call."""

    identity: Mapping[str, Any] = field(default_factory=lambda: IDENTITY)
    before: Callable[[Sequence[str]], None] = lambda prompts: None
    latent_shape: tuple[int, int, int] = (3, 7, 5)
    noise: dict[str, list[Tensor]] = field(default_factory=dict)
    calls: list[int] = field(default_factory=list)

    def __call__(self, prompts: Sequence[str], noise: Tensor) -> list[Image.Image]:
        self.calls.append(len(prompts))
        self.before(prompts)
        for prompt, one in zip(prompts, noise, strict=True):
            self.noise.setdefault(prompt, []).append(one)
        pixels = (noise * 60 + 128).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
        return [Image.fromarray(np.ascontiguousarray(one)) for one in pixels]


@dataclass
class StopsOnce:
    """A sampler during whose call number ``at`` somebody presses Ctrl-C."""

    sampler: ImageSampler
    at: int
    calls: int = 0

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return self.sampler.latent_shape

    @property
    def identity(self) -> Mapping[str, Any]:
        return self.sampler.identity

    def __call__(self, prompts: Sequence[str], noise: Tensor) -> list[Image.Image]:
        self.calls += 1
        if self.calls == self.at:
            raise KeyboardInterrupt
        return self.sampler(prompts, noise)


def failing(error: BaseException, prompt: str) -> Callable[[Sequence[str]], None]:
    def check(prompts: Sequence[str]) -> None:
        if prompt in prompts:
            raise error

    return check


def whole(folder: Path) -> dict[str, bytes]:
    """All files but those that hold times."""
    timed = {".lock", "run.json", "versions.json"}
    files = [file for file in folder.rglob("*") if file.is_file() and file.name not in timed]
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


def test_a_row_and_an_image_for_every_prompt_and_seed(tmp_path: Path) -> None:
    manifest = sample_images(Toy(), ROWS, tmp_path / "run", num_seeds=3, batch_size=4)
    rows = list(read_jsonl(manifest))
    assert [(row["prompt_id"], row["seed"]) for row in rows] == [(row.id, seed) for row in ROWS for seed in range(3)]
    assert rows[4] == {
        "prompt_id": "row1", "prompt": "prompt 1", "seed": 1, "file": "images/row1-1.png", "width": 5, "height": 7,
        "sha256": image_sha256(decode_image(tmp_path / "run" / "images" / "row1-1.png")), "status": "ok",
        "model": "toy", "adapter": "", "sampler": "none", "num_steps": 2, "guidance_scale": 1.5,
        "negative_prompt": "blur", "dtype": "torch.float32", "sampler_hash": "",
    }  # fmt: skip
    assert len(list((tmp_path / "run" / "images").iterdir())) == 33 == len({row["sha256"] for row in rows})
    with Image.open(tmp_path / "run" / "grid.png") as grid:
        assert grid.size == (3 * 5, 8 * 7)
        corner = grid.crop((5, 7, 10, 14))
    assert image_sha256(corner) == rows[4]["sha256"]


def test_the_rest_of_the_samplers_identity_is_a_hash_in_every_row(tmp_path: Path) -> None:
    hashes = []
    for number, beta in enumerate((0.012, 0.012, 0.02)):
        sampler = Toy(identity=IDENTITY | {"model": f"toy {number}", "scheduler": {"beta_end": beta}})
        rows = list(read_jsonl(sample_images(sampler, ROWS[:2], tmp_path / str(number))))
        hashes.append({row["sampler_hash"] for row in rows})
    assert hashes[0] == hashes[1] != hashes[2] and all(len(one) == 1 for one in hashes)


def test_models_are_compared_on_the_same_noise(tmp_path: Path) -> None:
    one, other = Toy(), Toy(identity=IDENTITY | {"model": "another"})
    sample_images(one, ROWS, tmp_path / "one", num_seeds=2, batch_size=4)
    sample_images(other, ROWS[::-1], tmp_path / "other", num_seeds=2, batch_size=3)
    for row in ROWS:
        expected = torch.stack([initial_noise((3, 7, 5), row.id, seed) for seed in (0, 1)])
        for sampler in (one, other):
            assert torch.equal(torch.stack(sampler.noise[row.prompt]), expected)


def test_stopped_and_resumed_is_never_stopped(tmp_path: Path) -> None:
    prompts = read_prompts("photographs")[:11]
    sampler = family_sampler(load_family("tiny-sd"), num_steps=1)
    sample_images(sampler, prompts, tmp_path / "a", num_seeds=4, batch_size=5)

    stops = StopsOnce(sampler, at=7)
    with pytest.raises(KeyboardInterrupt):
        sample_images(stops, prompts, tmp_path / "b", num_seeds=4, batch_size=5)
    assert not (tmp_path / "b" / "manifest.jsonl").exists()
    (tmp_path / "b" / "images" / ".tmp-0123-x.png").write_bytes(b"of a killed writer")
    sample_images(stops, prompts, tmp_path / "b", num_seeds=4, batch_size=5)
    assert stops.calls == 7 + 5  # shards of 20 images: the 4 calls of the first are not made again, 4 + 1 are left
    assert whole(tmp_path / "a") == whole(tmp_path / "b")


@pytest.mark.parametrize("model", ["tiny-sd", "tiny-sd3"])
def test_the_batch_size_changes_nothing(model: str, tmp_path: Path) -> None:
    prompts = read_prompts("photographs")[:3]
    sampler = family_sampler(load_family(model), num_steps=2, guidance_scale=3.0, height=16)
    folders = [
        sample_images(sampler, prompts, tmp_path / str(size), num_seeds=2, batch_size=size).parent for size in (1, 4)
    ]
    for row in read_jsonl(folders[0] / "manifest.jsonl"):
        one, other = (decode_image(folder / row["file"]) for folder in folders)
        assert difference([one], [other]) <= 1


def test_one_failure_is_a_row_and_does_not_stop_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def before(prompts: Sequence[str]) -> None:
        failing(FloatingPointError("at step 3"), "prompt 2")(prompts)
        failing(RuntimeError("no\nmemory"), "prompt 6")(prompts)

    manifest = sample_images(Toy(before=before), ROWS, tmp_path / "run", batch_size=4)
    rows = {row["prompt"]: row for row in read_jsonl(manifest)}
    assert rows["prompt 2"]["status"] == "not finite" and rows["prompt 6"]["status"] == "error: RuntimeError: no memory"
    assert (rows["prompt 2"]["file"], rows["prompt 2"]["sha256"], rows["prompt 2"]["width"]) == ("", "", 5)
    assert sum(row["status"] == "ok" for row in rows.values()) == 9
    assert "2 of 11 images failed" in capsys.readouterr().err
    sample_images(Toy(), ROWS, tmp_path / "healthy", batch_size=4)
    healthy = whole(tmp_path / "healthy")
    assert all(
        healthy[row["file"]] == (manifest.parent / row["file"]).read_bytes() for row in rows.values() if row["file"]
    )


def test_a_failed_batch_is_let_go_before_its_images_are_tried_alone(tmp_path: Path) -> None:
    held: list[weakref.ref[Tensor]] = []
    alive: list[bool] = []

    def before(prompts: Sequence[str]) -> None:
        alive.extend(one() is not None for one in held)
        memory = torch.zeros(3)
        held.append(weakref.ref(memory))
        if len(prompts) > 1:
            raise RuntimeError("out of memory")

    sample_images(Toy(before=before), ROWS[:3], tmp_path / "run", batch_size=3)
    assert len(held) == 4 and not any(alive)


def test_a_run_where_everything_fails_raises(tmp_path: Path) -> None:
    def broken(prompts: Sequence[str]) -> None:
        raise RuntimeError("device lost")

    def diverged(prompts: Sequence[str]) -> None:
        raise FloatingPointError

    for count in (1, 11):
        with pytest.raises(DiffalignError, match=f"all of {count} images failed.*device lost"):
            sample_images(Toy(before=broken), ROWS[:count], tmp_path / f"broken{count}", batch_size=4)
        mended = sample_images(Toy(), ROWS[:count], tmp_path / f"broken{count}", batch_size=4)
        assert all(row["status"] == "ok" for row in read_jsonl(mended))
    with pytest.raises(DiffalignError, match=r"all of 11 images failed.*not finite"):
        sample_images(Toy(before=diverged), ROWS, tmp_path / "diverged", batch_size=4)


def test_a_device_that_breaks_stops_the_run_and_loses_nothing(tmp_path: Path) -> None:
    calls: list[int] = []

    def breaks(prompts: Sequence[str]) -> None:
        calls.append(len(prompts))
        if len(calls) > 4:
            raise RuntimeError("device lost")

    with pytest.raises(DiffalignError, match="all of 16 images failed"):
        sample_images(Toy(before=breaks), ROWS, tmp_path / "run", num_seeds=4, batch_size=4)
    healthy = Toy()
    manifest = sample_images(healthy, ROWS, tmp_path / "run", num_seeds=4, batch_size=4)
    assert all(row["status"] == "ok" for row in read_jsonl(manifest)) and sum(healthy.calls) == 44 - 16


def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    sample_images(Toy(), ROWS, tmp_path / "run", batch_size=4)
    before = whole(tmp_path / "run")
    changes: list[tuple[Toy, list[PromptRow], int, int, str]] = [
        (Toy(identity=IDENTITY | {"num_steps": 3}), ROWS, 1, 4, "sampler.num_steps: 2 there, 3 now"),
        (Toy(), ROWS[:5], 1, 4, "num_prompts: 11 there, 5 now"),
        (Toy(), ROWS, 2, 4, "num_seeds: 1 there, 2 now"),
        (Toy(), ROWS, 1, 5, "batch_size: 4 there, 5 now"),
    ]
    for sampler, rows, num_seeds, batch_size, message in changes:
        with pytest.raises(DiffalignError, match=message):
            sample_images(sampler, rows, tmp_path / "run", num_seeds=num_seeds, batch_size=batch_size)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.txt").write_text("mine")
    with pytest.raises(DiffalignError, match=r"thesis\.txt"):
        sample_images(Toy(), ROWS, tmp_path / "foreign")
    assert (
        whole(tmp_path / "run") == before and json.loads(read_text(tmp_path / "run" / "run.json"))["kind"] == "sample"
    )


def test_hostile_ids_never_leave_the_folder(tmp_path: Path) -> None:
    ids = ["../../escape", "/etc/passwd", "a\x00b", "", ".hidden", "x" * 500, "con\n", "ä", "a-0", "a"]
    rows = [PromptRow(one, f"prompt {number}") for number, one in enumerate(ids)]
    manifest = sample_images(Toy(), rows, tmp_path / "deep" / "run", num_seeds=2)
    found = list(read_jsonl(manifest))
    assert len({row["file"] for row in found}) == len(found) == len(list((manifest.parent / "images").iterdir())) == 20
    assert [row["prompt_id"] for row in found[::2]] == ids
    assert [entry.name for entry in tmp_path.iterdir()] == ["deep"]
    assert [entry.name for entry in (tmp_path / "deep").iterdir()] == ["run"]


def test_rows_without_ids_of_their_own_are_refused(tmp_path: Path) -> None:
    for rows in ([], [ROWS[0], PromptRow("row0", "another")]):
        with pytest.raises(DiffalignError, match="an id of its own"):
            sample_images(Toy(), rows, tmp_path / "run")
    with pytest.raises(ValueError, match="at least 1"):
        sample_images(Toy(), ROWS, tmp_path / "run", num_seeds=0)
