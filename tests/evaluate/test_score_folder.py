"""The table of scores: nothing dropped, nothing 0 that is not, nothing scored twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from evaluate_helpers import GreyLevel, grey, write_run

from diffalign.core import DiffalignError, read_jsonl, write_jsonl, write_text
from diffalign.evaluate import read_images, read_scores, score_folder, summarise
from diffalign.models import load_family
from diffalign.sample import PromptRow, family_sampler, prompt_id, sample_images

LEVELS = {("cat", 0): 10, ("cat", 1): 20, ("dog", 0): 30}


def values(rows: list[Any], name: str = "level") -> list[float | None]:
    return [row.value for row in rows if row.name == name]


def test_the_long_table(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", LEVELS)
    rows = score_folder(folder, [GreyLevel(), "luminance"])
    assert rows == read_scores(folder) == read_scores(folder / "scores.jsonl") and len(rows) == 6
    first = json.loads((folder / "scores.jsonl").read_text().splitlines()[1])
    assert first["prompt_id"] == "cat" and first["seed"] == 1 and first["file"] == "images/cat-1.png"
    assert first["metric"] == "level@none/rgb8" and first["value"] == 20 and first["status"] == "ok"
    assert first["num_steps"] == 10 and first["model"] == "run" and len(first["sha256"]) == 64
    assert values(rows, "luminance") == pytest.approx([level / 255 for level in LEVELS.values()])
    assert [row.higher_is_better for row in rows] == [True] * 3 + [None] * 3
    assert score_folder(folder / "manifest.jsonl", [GreyLevel()])[:3] == rows[3:]  # its directory is the folder


def test_a_rerun_scores_nothing_and_a_further_metric_only_itself(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", LEVELS)
    level, other = GreyLevel(), GreyLevel("other")
    first = score_folder(folder, [level])
    assert [seen for seen, _ in level.seen] == [10, 20, 30]
    rows = score_folder(folder, [other])
    assert rows[:3] == first and values(rows, "other") == [10, 20, 30] and len(level.seen) == 3
    assert values(score_folder(folder, [level, other]), "other") == [10, 20, 30]
    assert len(level.seen) == len(other.seen) == 3


def test_new_images_alone_are_scored_and_a_metric_that_did_not_see_them_says_so(tmp_path: Path) -> None:
    folder, level = write_run(tmp_path / "run", LEVELS), GreyLevel()
    score_folder(folder, [level, GreyLevel("other")])
    write_run(folder, LEVELS | {("dog", 1): 40})
    rows = score_folder(folder, [level])
    assert values(rows) == [10, 20, 30, 40] and [seen for seen, _ in level.seen] == [10, 20, 30, 40]
    assert [row.status for row in rows if row.name == "other"] == ["ok", "ok", "ok", "not scored"]
    assert values(rows, "other")[3] is None


def test_the_cache_knows_the_image_and_the_prompt(tmp_path: Path) -> None:
    """cat-0 and cat-1 are one image under one prompt; dog-0 is that image under another."""
    level = GreyLevel()
    rows = score_folder(write_run(tmp_path / "run", {("cat", 0): 7, ("cat", 1): 7, ("dog", 0): 7}), [level])
    assert values(rows) == [7, 7, 7] and level.seen == [(7, "a photo of cat"), (7, "a photo of dog")]


def test_an_image_that_is_not_the_manifests_has_no_score(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also not that of the cache, under any metric; the same picture in another file is the same image."""
    folder, level = write_run(tmp_path / "run", LEVELS), GreyLevel()
    score_folder(folder, [level, GreyLevel("other")])
    grey(99).save(folder / "images" / "cat-1.png")
    grey(30).save(folder / "images" / "dog-0.png", compress_level=0)
    rows = score_folder(folder, [level])
    assert values(rows) == values(rows, "other") == [10, None, 30] and len(level.seen) == 3
    assert {row.status for row in rows if row.value is None} == {"error: not the image of the manifest"}
    assert "1 of 3 images are not those of the manifest; the first, images/cat-1.png" in capsys.readouterr().err
    (folder / "images" / "cat-1.png").unlink()
    rows = score_folder(folder, [level])
    assert values(rows) == [10, None, 30] and rows[1].status.startswith("error: BadImage")


@pytest.mark.parametrize(
    "line",
    ["{", "[1]", "\x80", '{"sha256": "{sha}"}', '{"sha256": "{sha}", "prompt": "{prompt}", "value": "7"}',
     '{"sha256": "{sha}", "prompt": "{prompt}", "value": NaN}', '{"sha256": [], "prompt": "", "value": 7.0}'],
)  # fmt: skip
def test_a_line_of_the_cache_that_is_none_counts_as_absent(tmp_path: Path, line: str) -> None:
    folder, level = write_run(tmp_path / "run", LEVELS), GreyLevel()
    score_folder(folder, [level])
    (file,) = (folder / "scores-cache").glob("*.jsonl")
    first, *others = file.read_text().splitlines()
    row = json.loads(first)
    line = line.replace("{sha}", row["sha256"]).replace("{prompt}", row["prompt"])
    file.write_bytes("\n".join([line, *others]).encode("latin-1"))
    assert values(score_folder(folder, [level])) == [10, 20, 30] and [seen for seen, _ in level.seen] == [
        10, 20, 30, 10,
    ]  # fmt: skip


def test_scores_of_no_version_are_not_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, level = write_run(tmp_path / "run", LEVELS), GreyLevel(weights="unknown")
    for _ in range(2):
        assert values(score_folder(folder, [level])) == [10, 20, 30]
    assert len(level.seen) == 6 and not list((folder / "scores-cache").glob("*.jsonl"))
    assert "level has no version, so its scores are not kept" in capsys.readouterr().err


def test_another_version_is_scored_anew_and_takes_the_place_of_the_former(tmp_path: Path) -> None:
    folder, newer = write_run(tmp_path / "run", LEVELS), GreyLevel(weights="b", act={10: 0.5})
    score_folder(folder, [GreyLevel(weights="a")])
    rows = score_folder(folder, [newer])
    assert {row.metric for row in rows} == {"level@b/rgb8"} and values(rows) == [0.5, 20, 30] and len(newer.seen) == 3


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    """Scores are saved every 16 batches; the 19th of 20 images stops the first run."""
    folder = write_run(tmp_path / "run", {(f"p{n}", 0): 10 + n for n in range(20)})
    with pytest.raises(KeyboardInterrupt):
        score_folder(folder, [GreyLevel(act={28: KeyboardInterrupt()})], batch_size=1)
    level = GreyLevel()
    assert values(score_folder(folder, [level], batch_size=1)) == [10 + n for n in range(20)]
    assert [seen for seen, _ in level.seen] == [26, 27, 28, 29]


def test_what_has_no_score_is_a_row_with_its_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    levels = {("a", 0): 10, ("b", 0): 20, ("c", 0): 30, ("d", 0): 0, ("e", 0): None, ("f", 0): 60, ("g", 0): 70}
    folder = write_run(tmp_path / "run", levels)
    (folder / "images" / "f-0.png").write_bytes((folder / "images" / "f-0.png").read_bytes()[:50])
    rows = score_folder(folder, [GreyLevel(act={20: float("nan"), 30: RuntimeError("broken")})])
    assert values(rows) == [10, None, None, None, None, None, 70]
    assert [row.status for row in rows[:5]] == [
        "ok", "nan", "error: RuntimeError: broken", "black image", "not generated: not finite",
    ]  # fmt: skip
    assert rows[5].status.startswith("error: BadImage")
    (summary,) = summarise(rows)
    assert summary.counts == {"ok": 2, "nan": 1, "error": 2, "black image": 1, "not generated": 1}
    assert summary.mean is not None and (summary.mean.mean, summary.mean.num_missing) == (40, 5)
    told = capsys.readouterr().err
    assert "1 of 7 images are not those of the manifest; the first, images/f-0.png: error: BadImage" in told
    assert "3 of 5 images have no score" in told  # what failed before was never shown to the reward
    mended = GreyLevel()
    assert values(score_folder(folder, [mended])) == [10, 20, 30, None, None, None, 70]
    assert [seen for seen, _ in mended.seen] == [20, 30]


def test_a_mean_needs_two_prompts(tmp_path: Path) -> None:
    (summary,) = summarise(
        score_folder(write_run(tmp_path / "run", {("a", 0): 5, ("a", 1): 6, ("b", 0): 0}), [GreyLevel()])
    )
    assert summary.mean is None and summary.counts == {"ok": 2, "black image": 1}


def test_roles(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", LEVELS)

    def roles(*rewards: Any, **declared: Any) -> dict[str, str]:
        return {row.name: row.role for row in score_folder(folder, rewards, **declared)}

    judge = GreyLevel("judge", role="held-out")
    assert roles(GreyLevel(), judge) == {"level": "undeclared", "judge": "held-out"}
    assert roles(judge, in_training=["judge"], held_out=["level"]) == {"level": "held-out", "judge": "in-training"}
    assert roles(GreyLevel("new")) == {"level": "held-out", "judge": "in-training", "new": "undeclared"}
    assert roles(judge)["judge"] == "in-training"  # as declared before
    for declared, words in (
        ({"held_out": ["judge"]}, "once had a part"),
        ({"held_out": ["new"], "in_training": ["new"]}, "once had a part"),
        ({"in_training": ["nwe"]}, "nearest: new"),
    ):
        with pytest.raises(DiffalignError, match=words):
            roles(judge, **declared)
    assert roles("tiny-clip", "sgp:tiny-clip")["sgp:tiny-clip"] == "in-training"
    with pytest.raises(DiffalignError, match="by its nature"):
        roles(GreyLevel("clip", role="in-training"), held_out=["clip"])
    with pytest.raises(DiffalignError, match="no better direction"):
        roles("luminance", held_out=["luminance"])


def test_a_style_gap_has_the_part_of_its_score(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", LEVELS)
    gap, score = GreyLevel("sgp:pick"), GreyLevel("pick")

    def roles(*rewards: Any, **declared: Any) -> dict[str, str]:
        return {row.name: row.role for row in score_folder(folder, rewards, **declared)}

    assert roles(gap, held_out=["sgp:pick"]) == {"sgp:pick": "held-out"}
    assert roles(gap, in_training=["pick"]) == {"sgp:pick": "in-training"}
    assert roles(score, in_training=["pick"]) == {"sgp:pick": "in-training", "pick": "in-training"}
    (folder / "scores.jsonl").unlink()
    assert roles(score, in_training=["pick"]) == {"pick": "in-training"}
    assert roles(gap) == {"pick": "in-training", "sgp:pick": "in-training"}
    with pytest.raises(DiffalignError, match="once had a part"):
        roles(gap, held_out=["sgp:pick"])


def test_a_plain_folder(tmp_path: Path) -> None:
    """Prompts beside the image, in metadata.jsonl, and given; the images of a prompt are numbered by name."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for name, level in (("b.png", 20), ("a.png", 10), ("more/c.png", 30), ("d.png", 40), ("e.png", 50)):
        grey(level).save(folder / name)
    (folder / "e.png").write_bytes(b"no image")
    for name in ("a", "b"):
        write_text(folder / f"{name}.txt", " a cat\n")
    lines = [{"file_name": "more/c.png", "text": "a dog"}, {"file_name": "e.png", "prompt": "a hen"}]
    write_jsonl(folder / "metadata.jsonl", lines)
    level = GreyLevel()
    rows = score_folder(folder, [level], out=tmp_path / "scores", prompts={"d.png": "a fox"})
    assert sorted((row.prompt, row.seed, row.value) for row in rows[:3] + rows[4:]) == [
        ("a cat", 0, 10), ("a cat", 1, 20), ("a dog", 0, 30), ("a fox", 0, 40),
    ]  # fmt: skip
    assert rows[0].prompt_id == prompt_id("a cat") and rows[4].file == "../photos/more/c.png"
    assert rows[3].prompt == "a hen" and rows[3].status.startswith("error: BadImage") and rows[3].width is None
    assert (rows[0].width, rows[0].height, rows[0].num_steps) == (6, 5, None)
    assert not (folder / "scores.jsonl").exists() and len(read_scores(tmp_path / "scores")) == 5
    score_folder(folder, [level], out=tmp_path / "scores", prompts={"d.png": "a fox"})
    assert len(level.seen) == 4


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda row: row.pop("seed"), "row 2: seed: Field required"),
        (lambda row: row.update(sha256=""), "lacks file or sha256"),
        (lambda row: row.update(seed=0), "twice"),
        (lambda row: row.update(num_steps="many"), "row 2: num_steps"),
        (lambda row: row.update(num_steps="10"), "row 2: num_steps"),
        (lambda row: row.update(seed=True), "row 2: seed"),
        (lambda row: row.update(width=6.0), "row 2: width"),
        (lambda row: row.update(guidance_scale="4"), "row 2: guidance_scale"),
        (lambda row: row.update(file="/etc/passwd"), "files inside the folder, got '/etc/passwd'"),
        (lambda row: row.update(file="images/../../x.png"), "files inside the folder, got 'images/../../x.png'"),
    ],
)
def test_wrong_manifests_are_refused(tmp_path: Path, change: Any, words: str) -> None:
    manifest = write_run(tmp_path / "run", LEVELS) / "manifest.jsonl"
    rows = list(read_jsonl(manifest))
    change(rows[1])
    write_jsonl(manifest, rows)
    with pytest.raises(DiffalignError, match=words):
        score_folder(manifest, [GreyLevel()])


def test_wrong_sources_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DiffalignError, match="there is no"):
        read_images(tmp_path / "nowhere")
    with pytest.raises(DiffalignError, match="holds no images"):
        read_images(tmp_path)
    grey(10).save(tmp_path / "cat.png")
    with pytest.raises(DiffalignError, match=r"cat\.png has no prompt; write it into cat\.txt"):
        read_images(tmp_path)
    with pytest.raises(DiffalignError, match=r"names 'dog\.png'"):
        read_images(tmp_path, prompts={"dog.png": "a dog"})
    write_text(tmp_path / "run.json", "{}")
    with pytest.raises(DiffalignError, match="let the sampling finish"):
        read_images(tmp_path)
    with pytest.raises(DiffalignError, match="run diffalign score on it first"):
        read_scores(tmp_path)


def test_wrong_rewards_are_refused_before_any_is_loaded(tmp_path: Path) -> None:
    folder, level = write_run(tmp_path / "run", LEVELS), GreyLevel()
    for rewards, options, words in (
        ([level, "luminanze"], {}, "nearest: luminance"),
        ([level, "sgp:pikscore"], {}, "nearest: pickscore"),
        ([level, GreyLevel()], {}, "'level' is given twice"),
        ([], {}, "at least one reward"),
        ([level], {"weights": {"levle": "x"}}, "nearest: level"),
    ):
        with pytest.raises(DiffalignError, match=words):
            score_folder(folder, rewards, **options)  # type: ignore[arg-type]
    assert level.seen == []


def test_a_users_own_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path / "my_scores.py", "def width(images, prompts):\n    return [one.width for one in images]\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    rows = score_folder(write_run(tmp_path / "run", LEVELS), ["my_scores:width"], in_training=["my_scores:width"])
    assert values(rows, "my_scores:width") == [6, 6, 6] and rows[0].role == "in-training"


def test_long_prompts_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, prompt in (("a", "very " * 100), ("b", "a photo of grass")):
        grey(10).save(tmp_path / f"{name}.png")
        write_text(tmp_path / f"{name}.txt", prompt)
    score_folder(tmp_path, ["tiny-clip"])
    assert "tiny-clip: 1 of 2 prompts are longer than it reads" in capsys.readouterr().err


def test_a_sample_run(tmp_path: Path) -> None:
    sampler = family_sampler(load_family("tiny-sd"), num_steps=2)
    prompts = [PromptRow("one", "a photo of grass"), PromptRow("../two", "a photo of bricks")]
    sample_images(sampler, prompts, tmp_path / "run", num_seeds=2)
    rows = score_folder(tmp_path / "run", ["tiny-judge-realism", "luminance"], out=tmp_path / "scores")
    assert [row.key for row in rows[:4]] == [("one", 0), ("one", 1), ("../two", 0), ("../two", 1)]
    assert {row.status for row in rows} == {"ok"} and rows[0].num_steps == 2 and rows[0].sampler == "dpm++"
    assert all((tmp_path / "scores" / row.file).is_file() for row in rows)
    (tmp_path / "run" / "manifest.jsonl").unlink()
    with pytest.raises(DiffalignError, match="let the sampling finish"):
        read_images(tmp_path / "run")
