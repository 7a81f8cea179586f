"""What a whole run selects and keeps, and why not the others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from curate_helpers import album, picture, png
from PIL import Image
from test_curate import config
from test_curate_faults import cheap, rejected

from diffalign.core import read_json, write_json
from diffalign.curate import KeepConfig, SelectConfig, curate, pairs, work
from diffalign.curate.stages import ARTWORK, PHOTOGRAPH
from diffalign.data import Preferences
from diffalign.rewards import load_reward


def contrast(images: Sequence[Image.Image], prompts: Sequence[str]) -> list[float]:
    """JPEG at its worst takes contrast away, or adds some."""
    return [float(np.asarray(image.convert("L"), dtype=float).std()) for image in images]


def warmth(images: Sequence[Image.Image], prompts: Sequence[str]) -> list[float]:
    return [float(np.subtract(*np.asarray(image, dtype=float)[..., [0, 2]].mean((0, 1)))) for image in images]


def calls_the_dark_anime(images: Sequence[Image.Image], prompts: Sequence[str]) -> list[float]:
    """Compares images with texts: "anime" fits what is nearly black, else "a photograph"."""
    dark = [np.asarray(image).mean() < 12 for image in images]
    return [float(prompt == ("anime" if one else PHOTOGRAPH)) for one, prompt in zip(dark, prompts, strict=True)]


OWN = "test_curate_select_run:contrast"
OTHER = "test_curate_select_run:warmth"


def kept(run: Path) -> list[str]:
    return [pair.provenance.source.partition("/")[2] for pair in Preferences(run / "pairs")]


def test_copies_of_a_photograph_and_blank_ones_are_left_out(tmp_path: Path) -> None:
    folder = album(tmp_path / "album", 3)
    copies = {"small copy": picture(1).resize((44, 37)), "z": picture(2, (96, 80)), "blank": Image.new("RGB", (40, 40))}
    for name, image in copies.items():
        (folder / f"{name}.png").write_bytes(png(image))
        (folder / f"{name}.txt").write_text("again")
    picture(0).save(folder / "9.jpg", quality=80)
    (folder / "9.txt").write_text("again")
    curate(cheap(photos=str(folder), select=SelectConfig(max_likeness=8)), tmp_path / "run")
    rows = rejected(tmp_path / "run")
    assert kept(tmp_path / "run") == ["0.png", "1.png", "2.png"]
    assert {name: row["detail"] for name, row in rows.items() if row["reason"] == "near duplicate"} == {
        "small copy.png": "looks like album/1.png",
        "z.png": "looks like album/2.png",
        "9.jpg": "looks like album/0.png",
    }
    assert rows["blank.png"]["reason"] == "blank" and len(rows) == 4
    curate(cheap(photos=str(folder), select=SelectConfig(max_likeness=-1)), tmp_path / "all")
    assert len(kept(tmp_path / "all")) == 6


def test_photographs_below_a_score_or_the_mean_are_left_out(tmp_path: Path) -> None:
    """The mean is that of the photographs whose score is high enough."""
    folder = album(tmp_path / "album", 6)
    select = SelectConfig(above_mean=("colourfulness",), min_scores={OWN: 30.0}, max_likeness=-1)
    curate(cheap(photos=str(folder), select=select), tmp_path / "run")
    rows, found = rejected(tmp_path / "run"), looked(tmp_path / "run")
    enough = [one for one in found if one["reason"] != f"low {OWN}"]
    assert all(one[OWN] >= 30.0 for one in enough) and 2 <= len(enough) < 6
    mean = np.mean([one["colourfulness"] for one in enough])
    assert kept(tmp_path / "run") == [one["name"] for one in enough if one["colourfulness"] > mean]
    assert {row["reason"] for row in rows.values()} == {f"low {OWN}", "colourfulness below the mean"}
    assert len(rows) + len(kept(tmp_path / "run")) == 6 and all(row["stage"] == "select" for row in rows.values())


def looked(run: Path) -> list[dict[str, Any]]:
    """The statistics of every photograph of a run, with its name, and why it was dropped at once."""
    rows = [row for shard in sorted((run / "looked").glob("0*")) for row in pairs.read_jsonl(shard / "rows.jsonl")]
    return [{"name": row["name"].partition("/")[2], "reason": row.get("reason")} | row["statistics"] for row in rows]


@pytest.mark.parametrize("judge", ["tiny-clip", "test_curate_select_run:calls_the_dark_anime"])
def test_what_is_rather_art_is_left_out(judge: str, tmp_path: Path) -> None:
    folder = album(tmp_path / "album", 4)
    (folder / "1.png").write_bytes(png(picture(1).point(lambda level: level // 16)))
    curate(cheap(photos=str(folder), select=SelectConfig(photographic=judge, min_contrast=0.0)), tmp_path / "run")
    reward, expected = load_reward(judge), []
    for number in range(4):
        image = pairs.open_source(cheap(photos=str(folder)))[number].image
        texts = (PHOTOGRAPH, *ARTWORK)
        best = max(texts, key=lambda text: float(reward([image], [text])))
        expected += [f"{number}.png"] if best == PHOTOGRAPH else []
    assert kept(tmp_path / "run") == expected
    assert len(expected) == 3 or judge == "tiny-clip"
    assert {row["reason"] for row in rejected(tmp_path / "run").values()} <= {"not a photograph"}


def test_two_rewards_must_agree(tmp_path: Path) -> None:
    folder = str(album(tmp_path / "album", 8))
    wanted = cheap(photos=folder, rewards=(OWN, OTHER), keep=KeepConfig(min_gap=0.0))
    curate(wanted, tmp_path / "one")
    curate(wanted.replace(keep=KeepConfig(min_gap=0.0, min_agreement=2)), tmp_path / "two")
    found = {pair.id: list(pair.scores.values()) for pair in Preferences(tmp_path / "one" / "pairs")}
    agreed = [name for name, scores in found.items() if all(ours > theirs for ours, theirs in scores)]
    assert Preferences(tmp_path / "two" / "pairs").ids() == agreed and 0 < len(agreed) < len(found)
    reasons = [row["reason"] for row in rejected(tmp_path / "two").values()]
    assert reasons.count("rewards disagree") == len(found) - len(agreed)


@pytest.mark.parametrize("rank_by", ["score", "gap"])
def test_the_best_few_are_kept(rank_by: Any, tmp_path: Path) -> None:
    folder = str(album(tmp_path / "album", 6))
    curate(cheap(photos=folder, rewards=(OWN,)), tmp_path / "all")
    curate(
        cheap(photos=folder, rewards=(OWN,), keep=KeepConfig(min_gap=0.0, keep=2, rank_by=rank_by)), tmp_path / "best"
    )
    scores = {pair.id: next(iter(pair.scores.values())) for pair in Preferences(tmp_path / "all" / "pairs")}
    value = {name: ours if rank_by == "score" else ours - theirs for name, (ours, theirs) in scores.items()}
    assert len(value) > 2
    best = sorted(value, key=lambda name: -value[name])[:2]
    assert sorted(Preferences(tmp_path / "best" / "pairs").ids()) == sorted(best)
    reasons = [row["reason"] for row in rejected(tmp_path / "best").values()]
    assert reasons.count("not among the best") == len(value) - 2


def test_what_is_kept_is_spread_over_like_photographs(tmp_path: Path) -> None:
    """Two kinds of pictures, of which one scores higher throughout: the best two are of both kinds."""
    (folder := tmp_path / "album").mkdir()
    for number in range(6):
        image = picture(2).rotate(number) if number < 4 else picture(3).rotate(number).point(lambda level: level // 2)
        (folder / f"{number}.png").write_bytes(png(image))
        (folder / f"{number}.txt").write_text("a photo")
    base = cheap(photos=str(folder), rewards=(OWN,), select=SelectConfig(max_likeness=-1))
    curate(base.replace(keep=KeepConfig(min_gap=0.0, keep=2)), tmp_path / "best")
    curate(base.replace(keep=KeepConfig(min_gap=0.0, keep=2, clusters=2)), tmp_path / "spread")
    kinds = [[name < "4" for name in kept(tmp_path / run)] for run in ("best", "spread")]
    assert len(set(kinds[0])) == 1 and sorted(kinds[1]) == [False, True]


def interrupt(*arguments: Any) -> None:
    raise KeyboardInterrupt


def test_marks_rewrite_the_pairs_and_no_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = config(keep=KeepConfig(min_gap=0.3), audit=True)
    before = curate(wanted, tmp_path / "run")
    names = Preferences(tmp_path / "run" / "pairs").ids()
    gap = next(row for row in rejected(tmp_path / "run").values() if row["stage"] == "gap")
    first = (tmp_path / "run" / "pairs" / "train-00000.parquet").read_bytes()
    for name in ("degrade_regions", "select_photos"):
        monkeypatch.setattr(work, name, None)  # no shard is done again
    write_json(tmp_path / "marks.json", {"accept": [gap["id"]], "reject": names[:1]})
    after = curate(wanted, tmp_path / "run", review=tmp_path / "marks.json")
    assert set(Preferences(tmp_path / "run" / "pairs").ids()) == {*names[1:], gap["id"]}
    assert after.dropped["review"] == {"rejected by hand": 1} and after.kept == before.kept
    assert next(row for row in rejected(tmp_path / "run").values() if row["id"] == names[0])["stage"] == "review"
    assert read_json(tmp_path / "run" / "audit.json")["num_pairs"] == after.kept
    capsys.readouterr()
    write_json(tmp_path / "marks.json", {"reject": [names[0], "elsewhere"]})
    assert curate(wanted, tmp_path / "run", review=tmp_path / "marks.json").kept == before.kept - 1
    assert "1 marks name no photograph of this run, such as 'elsewhere'" in capsys.readouterr().err
    assert curate(wanted, tmp_path / "run") == before
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):  # in the middle of writing
        patch.setattr(pairs, "write_jsonl", interrupt)
        write_json(tmp_path / "marks.json", {"reject": names})
        curate(wanted, tmp_path / "run", review=tmp_path / "marks.json")
    assert curate(wanted, tmp_path / "run") == before, "without marks all is as it was"
    assert (tmp_path / "run" / "pairs" / "train-00000.parquet").read_bytes() == first
