"""What people and disks do to a run: hostile files, rewards that fail, a full disk, another run on the same folder."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from curate_helpers import HOSTILE, album, hostile_folder, picture, png
from PIL import Image
from test_curate import config, results

import diffalign.data.writer
from diffalign.core import DiffalignError, RunFolder, read_jsonl
from diffalign.curate import CurateConfig, KeepConfig, SelectConfig, curate, pairs
from diffalign.data import Preferences


def cheap(**changes: Any) -> CurateConfig:
    """A run without a network that draws: JPEG, and the photograph always leads."""
    base = config(count=0, degrade={"name": "jpeg", "severity": 0.9}, rewards=("test_curate_faults:leads",))
    return base.replace(**{"keep": KeepConfig(min_gap=0.0), "size": 32} | changes)


def leads(images: Sequence[Image.Image], prompts: Sequence[str]) -> list[float]:
    """Of photographs and then as many damaged copies, the former score higher."""
    return [float(2 * place < len(images)) + 1 for place in range(len(images))]


def raises_on_photo_2(images: Sequence[Image.Image], prompts: Sequence[str]) -> list[float]:
    if "photo 2" in prompts:
        raise RuntimeError("photo 2 is\ntoo much for me")
    return [float(np.asarray(image).std()) for image in images]


def nan_for_photo_1(images: Sequence[Image.Image], prompts: Sequence[str]) -> list[float]:
    return [
        float("nan") if prompt == "photo 1" else float(np.asarray(image).std())
        for image, prompt in zip(images, prompts, strict=True)
    ]


def rejected(folder: Path) -> dict[str, dict[str, Any]]:
    """By name below the folder of photographs, what was left out."""
    return {row["name"].partition("/")[2]: row for row in read_jsonl(folder / "rejected.jsonl")}


def test_a_hostile_folder_is_sorted_out(tmp_path: Path) -> None:
    folder = hostile_folder(tmp_path / "album")
    Image.new("RGB", (40, 40), "navy").save(folder / "tabby_cat" / "flat.png")
    (folder / "round.png").symlink_to("about.png")
    (folder / "about.png").symlink_to("round.png")
    (folder / "endless").symlink_to(".")
    funnel = curate(cheap(photos=str(folder)), tmp_path / "run")
    rows = rejected(tmp_path / "run")
    assert funnel.photos == len(HOSTILE) + 3 and funnel.captions_cleaned == 1
    read = {name: row["reason"] for name, row in rows.items() if row["stage"] == "read"}
    expected = {name: reason for name, reason in HOSTILE.items() if reason} | {"tabby_cat/again.png": "repeated"}
    loops = {"round.png": read.pop("round.png"), "about.png": read.pop("about.png")}
    assert read == expected and set(loops.values()) <= {"unreadable", "no caption"}
    assert rows["tabby_cat/flat.png"]["reason"] == "blank" and funnel.dropped["select"]["blank"] == 1
    kept = [pair.provenance.source for pair in Preferences(tmp_path / "run" / "pairs")]
    assert "album/two\nlines.png" in kept and "album/a..b.png" in kept
    assert funnel.kept == len(kept) == funnel.photos - len(rows)


@pytest.mark.parametrize(
    ("reward", "name", "detail"),
    [
        ("raises_on_photo_2", "2.png", "error: RuntimeError: photo 2 is too much for me"),
        ("nan_for_photo_1", "1.png", "the photograph: nan; damaged: nan"),
    ],
)
@pytest.mark.parametrize("use", ["score", "select"])
def test_a_reward_that_fails_on_one_image_costs_that_one(
    reward: str, name: str, detail: str, use: str, tmp_path: Path
) -> None:
    spec = f"test_curate_faults:{reward}"
    changes = {"rewards": (spec,)} if use == "score" else {"select": SelectConfig(min_scores={spec: 0.0})}
    wanted = cheap(photos=str(album(tmp_path / "album", 5)), keep=KeepConfig(min_gap=0.0), **changes)
    funnel = curate(wanted, tmp_path / "run")
    row = rejected(tmp_path / "run")[name]
    assert funnel.photos == 5 and sum(funnel.dropped[use].values()) == 1
    if use == "score":
        assert (row["stage"], row["reason"]) == ("score", "no score") and detail in row["detail"]
    else:
        assert (row["stage"], row["reason"]) == ("select", f"no {spec}") and row["detail"] in (detail, "nan")


def test_no_captions_at_all_are_told_before_anything_is_written(tmp_path: Path) -> None:
    folder = album(tmp_path / "album", 3)
    for text in folder.glob("*.txt"):
        text.unlink()
    with pytest.raises(
        DiffalignError, match=r"none of the 3 photographs .* 3 have no caption\. Put a \.txt .*captioner"
    ):
        curate(cheap(photos=str(folder)), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    (folder / "2.txt").write_text("a caption")  # one is enough to go on
    assert curate(cheap(photos=str(folder)), tmp_path / "run").dropped["read"] == {"no caption": 2}


def test_a_captioner_fills_in_what_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = album(tmp_path / "album", 4)
    (folder / "1.txt").unlink()
    (folder / "3.txt").unlink()

    class Captioner:
        identity = "a captioner"

        def __call__(self, images: Sequence[Image.Image]) -> list[str]:
            return [f"of {image.width} pixels" for image in images]

    monkeypatch.setattr("diffalign.curate.work.load_captioner", lambda spec, device: Captioner())
    curate(cheap(photos=str(folder), captioner="any"), tmp_path / "run")
    prompts = Preferences(tmp_path / "run" / "pairs").prompts()
    assert prompts == ["photo 0", "of 32 pixels", "photo 2", "of 32 pixels"]


def test_photographs_that_changed_are_another_run(tmp_path: Path) -> None:
    folder = album(tmp_path / "album", 3)
    curate(cheap(photos=str(folder)), tmp_path / "run")
    before = results(tmp_path / "run")
    (folder / "1.png").write_bytes(png(picture(1, (60, 61))))
    with pytest.raises(DiffalignError, match="begun with other photographs"):
        curate(cheap(photos=str(folder)), tmp_path / "run")
    (folder / "1.png").write_bytes(png(picture(1)))
    curate(cheap(photos=str(folder)), tmp_path / "run")
    assert results(tmp_path / "run") == before


def test_a_second_run_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    wanted = cheap(photos=str(album(tmp_path / "album", 2)))
    with (
        RunFolder.open(tmp_path / "run", wanted, kind="curate"),
        pytest.raises(DiffalignError, match=f"in use by process {os.getpid()}"),
    ):
        curate(wanted, tmp_path / "run")
    assert curate(wanted, tmp_path / "run").kept == 2


@pytest.mark.parametrize("form", ["{}", "{}/", "{}/../album", "file://{}"])
def test_a_run_inside_its_photographs_is_refused(form: str, tmp_path: Path) -> None:
    folder = album(tmp_path / "album", 2)
    with pytest.raises(DiffalignError, match="expected a folder outside the photographs"):
        curate(cheap(photos=form.format(folder)), folder / "runs" / "1")
    assert not (folder / "runs").exists()


@pytest.mark.parametrize("spec", ["hub:user/album", "s3://bucket/album", "{}/*.tar", "{}/1.parquet", "photographs"])
def test_what_is_no_folder_is_not_taken_for_one(spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though folders of the same names lie here."""
    monkeypatch.chdir(tmp_path)
    for name in ("hub:user/album", "s3:/bucket/album", "photographs"):
        (tmp_path / name).mkdir(parents=True)
    pairs.check_apart(cheap(photos=spec.format(tmp_path)), tmp_path / spec.replace("//", "/") / "run")


def test_a_disk_that_fills_up_in_the_thread_that_writes_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = cheap(photos=str(album(tmp_path / "album", 7)))
    curate(wanted, tmp_path / "whole")
    to_record, rows = diffalign.data.writer.to_record, []

    def filling(row: Any, original: Any) -> Any:
        rows.append(row)
        if len(rows) == 5:  # in the second shard
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return to_record(row, original)

    with monkeypatch.context() as patch:
        patch.setattr(diffalign.data.writer, "to_record", filling)
        with pytest.raises(DiffalignError, match="no space left"):
            curate(wanted, tmp_path / "run")
    assert [path.name for path in (tmp_path / "run" / "made").glob("*of*")] == ["00000-of-00003"]
    curate(wanted, tmp_path / "run")
    assert results(tmp_path / "run") == results(tmp_path / "whole")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of some kilobytes, where this machine lets us mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small disk needs more rights")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_is_really_full(tmp_path: Path, small_disk: Path) -> None:
    """Grown bit by bit, it fills up in every part of the run; each time the same command goes on."""
    wanted = cheap(photos=str(album(tmp_path / "album", 9)), audit=True)
    curate(wanted, tmp_path / "whole")
    failures = 0
    for size in range(16, 1000, 12):
        subprocess.run(["mount", "-o", f"remount,size={size}k", str(small_disk)], check=True)
        try:
            curate(wanted, small_disk / "run")
            break
        except DiffalignError as error:
            assert "no space left" in str(error) or "disk full" in str(error), error
            failures += 1
    assert failures >= 8 and results(small_disk / "run") == results(tmp_path / "whole")
