"""A sweep over strengths: plain runs of one loaded model, what they share, the grid, and a sweep that was stopped."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from sample_helpers import save_loras

import diffalign.sample.run as run_module
from diffalign.core import DiffalignError, load_config, read_json, read_jsonl, write_json
from diffalign.sample import (
    GuideConfig,
    SampleConfig,
    SweepConfig,
    at_strength,
    read_sweep,
    run_sample,
    run_sweep,
)

LEFT, TOP, PITCH = 220, 32, 132  # pixels of a grid of 32-pixel images


@pytest.fixture(scope="module")
def loras(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return save_loras("tiny-sd", tmp_path_factory.mktemp("loras"), ["pos", "neg"])


@pytest.fixture
def config(loras: dict[str, str]) -> SweepConfig:
    """Three strengths of cPGD; two prompts, two seeds, two steps."""
    guide = GuideConfig(name="cpgd", settings={"positive": loras["pos"], "negative": loras["neg"]})
    sample = SampleConfig(
        model="tiny-sd", prompts="photographs", limit=2, num_seeds=2, num_steps=2, guidance_scale=3.0, guide=guide
    )
    return SweepConfig(sample=sample, axis="scale", strengths=(0.0, 0.5, 2.0))


def hashes(folder: Path) -> list[str]:
    return [row["sha256"] for row in read_jsonl(folder / "manifest.jsonl")]


def test_runs_are_those_that_each_strength_has_alone(
    config: SweepConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[Any] = []
    load = run_module.load_family
    monkeypatch.setattr(
        run_module, "load_family", lambda *args, **kwargs: (loads.append(args), load(*args, **kwargs))[1]
    )
    grid = run_sweep(config, tmp_path / "sweep")
    assert len(loads) == 1
    run_sample(config.sample.replace(guide=None), tmp_path / "base")
    run_sample(at_strength(config, 2.0), tmp_path / "two")
    assert hashes(tmp_path / "sweep" / "scale-0") == hashes(tmp_path / "base")
    assert hashes(tmp_path / "sweep" / "scale-2") == hashes(tmp_path / "two")
    assert not set(hashes(tmp_path / "sweep" / "scale-0.5")) & {*hashes(tmp_path / "base"), *hashes(tmp_path / "two")}
    assert load_config(SampleConfig, tmp_path / "sweep" / "scale-2" / "config.yaml") == at_strength(config, 2.0)
    found = read_sweep(tmp_path / "sweep")
    assert (found.axis, found.strengths) == ("scale", (0.0, 0.5, 2.0))
    assert [run.name for run in found.folders] == ["scale-0", "scale-0.5", "scale-2"]
    rows = [next(read_jsonl(run / "manifest.jsonl")) for run in found.folders]
    assert [row["guide"] for row in rows] == [{**(found.guide or {}), "scale": each} for each in (0.0, 0.5, 2.0)]
    assert found.settings["num_steps"] == 2 and "scale" not in found.settings["guide"]["settings"]
    with Image.open(grid) as image:
        assert image.size == (LEFT + 3 * PITCH, TOP + 2 * PITCH)
        cell = image.crop((LEFT + PITCH, TOP + PITCH, LEFT + PITCH + 128, TOP + PITCH + 128))
    row = list(read_jsonl(tmp_path / "sweep" / "scale-0.5" / "manifest.jsonl"))[2]  # second prompt, first seed
    with Image.open(tmp_path / "sweep" / "scale-0.5" / row["file"]) as image:
        assert cell.tobytes() == image.resize((128, 128), Image.Resampling.NEAREST).tobytes()


def test_a_stopped_sweep_goes_on(config: SweepConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffalign.sample import sweep as module

    make, folders = module.sample_images, []

    def stops_at_the_second(sampler: Any, prompts: Any, folder: Path, **options: Any) -> Path:
        folders.append(folder.name)
        if len(folders) == 2:
            raise KeyboardInterrupt
        return make(sampler, prompts, folder, **options)

    monkeypatch.setattr(module, "sample_images", stops_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(config, tmp_path / "sweep")
    with pytest.raises(DiffalignError, match=r"scale-0\.5, scale-2 of 3 runs are not finished.*--out"):
        read_sweep(tmp_path / "sweep")
    before = (tmp_path / "sweep" / "scale-0" / "shards" / "00000-of-00001.jsonl").stat().st_mtime_ns
    run_sweep(config, tmp_path / "sweep")
    assert (tmp_path / "sweep" / "scale-0" / "shards" / "00000-of-00001.jsonl").stat().st_mtime_ns == before
    assert len(read_sweep(tmp_path / "sweep").folders) == 3
    with pytest.raises(
        DiffalignError, match=r"has the strengths 0, 0\.5, 2: expected a range that holds all.*got 0, 1$"
    ):
        run_sweep(config.replace(strengths=(0.0, 1.0)), tmp_path / "sweep")
    monkeypatch.setattr(module, "sample_images", make)
    guide = config.sample.guide
    assert guide is not None
    other = config.sample.replace(guide=guide.replace(settings={**guide.settings, "scale": 7.0}))  # no run has it
    run_sweep(config.replace(sample=other, strengths=(0.0, 0.5, 1.0, 2.0)), tmp_path / "sweep")  # a wider one goes on
    assert (tmp_path / "sweep" / "scale-0" / "shards" / "00000-of-00001.jsonl").stat().st_mtime_ns == before
    assert read_sweep(tmp_path / "sweep").strengths == (0.0, 0.5, 1.0, 2.0)
    shutil.rmtree(tmp_path / "sweep" / "scale-2")
    with pytest.raises(DiffalignError, match="scale-2 of 4 runs"):
        read_sweep(tmp_path / "sweep")
    with pytest.raises(DiffalignError, match="it is no sweep"):
        read_sweep(tmp_path)


def test_a_rerun_with_changed_loras_is_refused_and_harms_nothing(config: SweepConfig, tmp_path: Path) -> None:
    """The settings are the same, the files behind them are not."""
    tuned = tmp_path / "tuned"
    shutil.copytree(config.sample.guide.settings["positive"], tuned)  # type: ignore[union-attr]
    guide = GuideConfig(name="pgd", settings={"tuned": str(tuned)})
    config = config.replace(
        sample=config.sample.replace(guide=guide, limit=1, num_seeds=1, num_steps=1), strengths=(0.0, 1.0)
    )
    run_sweep(config, tmp_path / "sweep")
    before = {file: file.read_bytes() for file in (tmp_path / "sweep").rglob("*") if file.is_file()}
    (tuned / "adapter_config.json").write_text("{}")
    with pytest.raises(DiffalignError, match=r"sweep was made with other files of guide 'pgd' \(tuned\)"):
        run_sweep(config, tmp_path / "sweep")
    assert {file: file.read_bytes() for file in (tmp_path / "sweep").rglob("*") if file.is_file()} == before
    with pytest.raises(DiffalignError, match="begun with other settings"):  # those of another guide are told as such
        run_sweep(
            config.replace(
                sample=config.sample.replace(guide=guide.replace(settings={"tuned": str(tuned), "stop": 0.5}))
            ),
            tmp_path / "sweep",
        )


@pytest.mark.parametrize("name", ["../elsewhere", "/elsewhere", "..", "", "a/b", 7])
def test_runs_lie_in_the_sweeps_own_folder(tmp_path: Path, name: Any) -> None:
    table = {"axis": "scale", "strengths": [0.0, 1.0], "folders": ["scale-0", name], "guide": None, "settings": {}}
    write_json(tmp_path / "sweep.json", table)
    with pytest.raises(DiffalignError, match=r"sweep\.json: expected plain names of folders beside it, got"):
        read_sweep(tmp_path)


def test_text_guidance_can_be_swept_without_a_guide(config: SweepConfig, tmp_path: Path) -> None:
    sample = config.sample.replace(guide=None, limit=1, num_seeds=1, num_steps=1)
    run_sweep(SweepConfig(sample=sample, axis="guidance", strengths=(1.0, 4.0)), tmp_path / "sweep")
    table = read_json(tmp_path / "sweep" / "sweep.json")
    assert table["folders"] == ["guidance-1", "guidance-4"] and table["guide"] is None
    assert "guidance_scale" not in table["settings"]
    rows = [next(read_jsonl(tmp_path / "sweep" / name / "manifest.jsonl")) for name in table["folders"]]
    assert [row["guidance_scale"] for row in rows] == [1.0, 4.0] and rows[0]["sha256"] != rows[1]["sha256"]


def test_mistakes_are_told_before_anything_is_written(config: SweepConfig, tmp_path: Path) -> None:
    for changes, message in (
        ({"strengths": (2.0, 1.0)}, "expected rising numbers"),
        ({"strengths": (1.0,)}, "strengths"),
        ({"axis": "phi"}, "expected scale for this guide"),
    ):
        with pytest.raises(DiffalignError, match=message):
            config.replace(**changes)
    npo = GuideConfig(name="npo", settings={"negative": "x"})
    with pytest.raises(DiffalignError, match="at guidance_scale 1 text guidance is off"):
        run_sweep(
            SweepConfig(sample=config.sample.replace(guide=npo), axis="guidance", strengths=(1.0, 2.0)), tmp_path / "x"
        )
    with pytest.raises(DiffalignError, match="in multiples of"):
        run_sweep(config.replace(sample=config.sample.replace(height=33)), tmp_path / "x")
    assert not (tmp_path / "x").exists()
