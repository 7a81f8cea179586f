"""``diffalign inspect`` writes a page and prints where."""

from __future__ import annotations

import shutil

import pytest
from PIL import Image
from typer.testing import CliRunner

from diffalign.cli import app
from diffalign.core import read_json, read_jsonl, write_json, write_jsonl
from diffalign.curate import CurateConfig, KeepConfig, SelectConfig, curate
from diffalign.data import Preferences, PreferenceWriter
from diffalign.types import CandidateSet


def inspect(data, out, *options):
    done = CliRunner().invoke(app, ["inspect", str(data), "--out", str(out), *options])
    return done, out.read_text() if out.exists() else ""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A curation that dropped some pairs, and some photographs before."""
    folder = tmp_path_factory.mktemp("curation") / "run"
    curate(
        CurateConfig(
            count=11,
            degrade={"name": "mixture", "of": ["jpeg", "gaussian_blur"]},
            select=SelectConfig(max_likeness=-1, min_contrast=0.1),
            keep=KeepConfig(min_gap=0.5),
        ),
        folder,
    )
    return folder


@pytest.fixture
def run(made, tmp_path):
    """A copy of it to change."""
    return shutil.copytree(made, tmp_path / "run")


def test_inspect_shows_any_preference_set(make_pairs, tmp_path):
    data, out = make_pairs(5, "blur"), tmp_path / "page.html"
    done, text = inspect(data, out, "--limit", "3")
    assert (done.exit_code, done.stdout) == (0, f"{out}\n")
    assert "3 of 5 rows" in text and "5 pairs of" in text and text.count('class="card"') == 3
    assert "Audit</h2>" not in text


def test_an_audit_is_made_where_it_is_asked_for(make_pairs, tmp_path):
    done, text = inspect(make_pairs(3, "blur"), tmp_path / "page.html", "--audit")
    assert done.exit_code == 0 and "Audit</h2>" in text and "3 of 3 pairs were looked at" in text


def test_candidate_sets_have_no_audit(tmp_path):
    images = (Image.new("RGB", (8, 6)), Image.new("RGB", (8, 6), "red"))
    with PreferenceWriter(tmp_path / "sets", form="candidates") as writer:
        writer.write(CandidateSet(id="a", prompt="a wall", images=images))
    done, _ = inspect(tmp_path / "sets", tmp_path / "page.html", "--audit")
    assert done.exit_code == 2 and "--audit compares the two sides of pairs" in done.output


def test_inspect_tells_what_it_cannot_read(tmp_path):
    done, _ = inspect(tmp_path, tmp_path / "page.html")
    assert done.exit_code == 2 and "no Parquet files" in done.output


def test_a_curation_is_shown_with_what_it_dropped(run, tmp_path):
    done, text = inspect(run, tmp_path / "page.html")
    assert done.exit_code == 0, done.output
    funnel, kept = read_json(run / "funnel.json"), Preferences(run / "pairs").ids()
    dropped = [row["id"] for row in read_jsonl(run / "rejected.jsonl") if row["stage"] == "gap"]
    assert len(kept) > 1 < len(dropped) and funnel["dropped"]["select"] and len(kept) == funnel["passed"]["review"]
    assert f"{len(kept)} of 11 photographs became pairs." in text
    for ids, stage in ((kept, "kept"), (dropped, "gap")):
        assert all(f'data-id="{name}" data-mark="" data-stage="{stage}"' in text for name in ids)
    for heading in ("From photographs to pairs", "Audit", "Pairs", "Photographs that made no pair", "Configuration"):
        assert f"{heading}" in text


def test_the_limit_is_shared_by_kept_and_dropped(run, tmp_path):
    _, text = inspect(run, tmp_path / "page.html", "--limit", "4")
    assert text.count('data-stage="kept"') == text.count('data-stage="gap"') == 2


def test_a_repeated_photograph_does_not_change_what_became_of_the_first(run, tmp_path):
    """Both have the same id; only the first made a pair."""
    rejected, kept = list(read_jsonl(run / "rejected.jsonl")), Preferences(run / "pairs").ids()[0]
    dropped = next(row["id"] for row in rejected if row["stage"] == "gap")
    again = {"name": "again.png", "stage": "read", "reason": "repeated", "detail": "the same"}
    write_jsonl(run / "rejected.jsonl", [*rejected, *({**again, "id": name} for name in (kept, dropped))])
    _, text = inspect(run, tmp_path / "page.html")
    for name, stage in ((kept, "kept"), (dropped, "gap")):
        assert f'data-id="{name}" data-mark="" data-stage="{stage}"' in text
    assert "repeated <small>read</small>" in text and "again.png" in text


def test_a_curation_without_audit_is_audited_where_it_is_asked_for(run, tmp_path):
    (run / "audit.json").unlink()
    assert "Audit</h2>" not in inspect(run, tmp_path / "page.html")[1]
    assert "Audit</h2>" in inspect(run, tmp_path / "page.html", "--audit")[1]


def test_a_curation_that_kept_nothing_shows_what_it_dropped(run, tmp_path):
    kept = Preferences(run / "pairs").ids()
    rejected = list(read_jsonl(run / "rejected.jsonl"))
    late = [{"name": "x", "id": name, "stage": "keep", "reason": "not among the best", "detail": ""} for name in kept]
    write_jsonl(run / "rejected.jsonl", [*rejected, *late])
    funnel = read_json(run / "funnel.json")
    funnel["dropped"]["keep"] = {"not among the best": len(kept)}
    funnel["passed"] |= {"keep": 0, "review": 0}
    write_json(run / "funnel.json", funnel)
    for name in ("pairs", "audit.json"):
        shutil.rmtree(run / name) if (run / name).is_dir() else (run / name).unlink()
    done, text = inspect(run, tmp_path / "page.html", "--audit")
    assert done.exit_code == 0 and text.count('data-stage="keep"') == len(kept) and "0 of 11 photographs" in text


def test_a_curation_whose_shards_were_deleted_shows_what_it_kept(run, tmp_path):
    shutil.rmtree(run / "made")
    done, text = inspect(run, tmp_path / "page.html")
    assert done.exit_code == 0 and text.count('data-stage="kept"') == len(Preferences(run / "pairs"))


@pytest.mark.parametrize("name", ["funnel.json", "audit.json"])
def test_a_file_of_a_curation_that_is_not_one_is_told(run, tmp_path, name):
    write_json(run / name, {"photos": 3})
    done, _ = inspect(run, tmp_path / "page.html")
    assert done.exit_code == 2 and "expected a" in done.output and not (tmp_path / "page.html").exists()


def test_a_curation_that_has_not_finished_is_told(run, tmp_path):
    (run / "funnel.json").unlink()
    done, _ = inspect(run, tmp_path / "page.html")
    assert done.exit_code == 2 and "has not finished; run it again" in " ".join(done.output.split())
