"""The schema, the writer of shards and the lazy reader."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from diffalign.core import DiffalignError
from diffalign.data import LABEL_METRIC, ImageLimits, Preferences, PreferenceWriter, image_sha256, validate_row
from diffalign.data import schema as schema_module
from diffalign.data import writer as writer_module
from diffalign.data.schema import arrow_schema, from_record, to_record
from diffalign.types import CandidateSet, Pair, Provenance


def assert_same_row(one, other):
    assert type(one) is type(other)
    assert (one.id, one.prompt, dict(one.scores)) == (other.id, other.prompt, dict(other.scores))
    for left, right in zip(schema_module.row_images(one), schema_module.row_images(other), strict=True):
        assert np.array_equal(np.asarray(left), np.asarray(right))
    if isinstance(one, Pair):
        assert one.label == other.label
        assert (one.mask is None) == (other.mask is None)
        if one.mask is not None:
            assert np.array_equal(np.asarray(one.mask), np.asarray(other.mask))


def write(folder, rows, form="pair", **options):
    with PreferenceWriter(folder, form=form, **options) as writer:
        for row in rows:
            writer.write(row)
    return folder


def shard_bytes(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name != ".lock"}


# Round trips --------------------------------------------------------------------------------------------------------


def test_pairs_come_back(tmp_path, pair):
    mask = Image.fromarray(np.arange(35, dtype=np.uint8).reshape(5, 7) * 7)
    rows = [pair(0), pair(1, mask=mask, scores={"other": (1, 2)}), pair(2, label=0.5, provenance=Provenance())]
    there = Preferences(write(tmp_path / "p", rows))
    assert there.form == "pair" and len(there) == 3
    for one, other in zip(rows, there, strict=True):
        assert_same_row(one, other)
        hashes = (image_sha256(one.chosen), image_sha256(one.rejected))
        assert other.provenance == replace(one.provenance, sha256=hashes)


def test_candidate_sets_come_back(tmp_path, candidates):
    rows = [candidates(0), candidates(1, num_images=1), candidates(2, num_images=4, scores={})]
    there = Preferences(write(tmp_path / "c", rows, form="candidates"))
    assert there.form == "candidates"
    for one, other in zip(rows, there, strict=True):
        assert_same_row(one, other)
    assert there.as_candidates()[2].id == "set-2"


text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
score = st.floats(allow_nan=False, allow_infinity=False)


@settings(max_examples=60, deadline=None)
@given(
    name=text,
    prompt=text.filter(str.strip),
    label=st.floats(0, 1),
    scores=st.dictionaries(text.filter(lambda name: name != LABEL_METRIC), st.tuples(score, score), max_size=3),
    parameters=st.dictionaries(text, st.recursive(st.none() | st.booleans() | score | text, st.lists, max_leaves=4)),
    seed=st.none() | st.integers(0, 2**63 - 1),
)
def test_any_valid_row_comes_back_from_its_record(name, prompt, label, scores, parameters, seed):
    chosen, rejected = Image.new("RGB", (3, 2), "red"), Image.new("RGB", (4, 2), "blue")
    provenance = Provenance(parameters=parameters, seed=seed)
    row = Pair(
        id=name, prompt=prompt, chosen=chosen, rejected=rejected, label=label, scores=scores, provenance=provenance
    )
    table = pa.Table.from_pylist([to_record(row)], schema=arrow_schema("pair"))
    back = from_record(table.to_pylist()[0], "pair", ImageLimits())
    assert_same_row(row, back)
    assert back.provenance.parameters == parameters and back.provenance.seed == seed


def test_original_bytes_are_kept_on_demand(tmp_path, pair, encoded):
    row = pair(0)
    original = [encoded(row.chosen, "BMP"), encoded(row.rejected, "WEBP", lossless=True)]
    with PreferenceWriter(tmp_path, form="pair") as writer:
        writer.write(row, original=original)
        with pytest.raises(DiffalignError, match=r"'row-1'.*do not decode"):
            writer.write(pair(1), original=original)
    stored = pq.read_table(tmp_path / "train-00000.parquet").to_pylist()
    assert len(stored) == 1
    assert [stored[0]["chosen"]["bytes"], stored[0]["rejected"]["bytes"]] == original
    assert_same_row(Preferences(tmp_path)[0], row)


def test_datasets_opens_the_files_with_image_columns(tmp_path, pair, candidates):
    write(tmp_path / "p", [pair(0, mask=Image.new("L", (7, 5))), pair(1)], rows_per_shard=1)
    files = [str(file) for file in sorted((tmp_path / "p").glob("*.parquet"))]
    table = datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "cache"), split="train")
    assert isinstance(table.features["chosen"], datasets.Image) and isinstance(table.features["mask"], datasets.Image)
    assert np.array_equal(np.asarray(table[1]["rejected"]), np.asarray(pair(1).rejected))
    assert table[0]["mask"].mode == "L" and table[1]["mask"] is None
    assert table[0]["scores"] == [
        {"metric": "pickscore", "chosen": 21.5, "rejected": 20.25},
        {"metric": "hpsv3", "chosen": 7.0, "rejected": -3.5},
    ]
    assert json.loads(table[0]["provenance"]["parameters"]) == {"n": [1, 2], "strength": 0.5}

    write(tmp_path / "c", [candidates(0)], form="candidates")
    whole_folder = datasets.load_dataset(str(tmp_path / "c"), cache_dir=str(tmp_path / "cache"), split="train")
    assert [image.size for image in whole_folder[0]["images"]] == [(6, 5), (7, 5), (8, 5)]


def test_rows_that_went_through_datasets_are_read(tmp_path, pair):
    write(tmp_path / "p", [pair(0), pair(1), pair(2)])
    table = datasets.load_dataset(str(tmp_path / "p"), cache_dir=str(tmp_path / "cache"), split="train")
    table.filter(lambda row: row["id"] != "row-1").to_parquet(str(tmp_path / "filtered.parquet"))
    there = Preferences(tmp_path / "filtered.parquet")
    assert there.ids() == ["row-0", "row-2"]
    assert_same_row(there[1], pair(2))


# What is refused ----------------------------------------------------------------------------------------------------

PNG = Image.new("RGB", (7, 5))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": ""}, "id must be"),
        ({"id": 3}, "id must be"),
        ({"prompt": "  "}, "'row-0': the prompt"),
        ({"prompt": None}, "'row-0': the prompt"),
        ({"prompt": "half a cat \ud83d"}, "'row-0': expected valid Unicode"),
        ({"id": "cat-\udcff"}, "expected valid Unicode"),
        ({"provenance": Provenance(parameters={"x": "\ud83d"})}, "'row-0': the parameters"),
        ({"rejected": Image.new("RGB", (1, 5))}, "'row-0': readers would refuse an image: too_small"),
        ({"label": float("nan")}, "'row-0': the label"),
        ({"label": 1.01}, "'row-0': the label"),
        ({"label": -0.1}, "'row-0': the label"),
        ({"label": True}, "'row-0': the label"),
        ({"label": None}, "'row-0': the label"),
        ({"chosen": PNG.convert("RGBA")}, "RGBA"),
        ({"rejected": b"bytes"}, "bytes"),
        ({"mask": PNG}, "the mask"),
        ({"mask": Image.new("L", (5, 7))}, "the mask"),
        ({"scores": {"m": (1.0,)}}, "'m' needs 2"),
        ({"scores": {"m": (1.0, float("nan"))}}, "'m' needs 2 finite"),
        ({"scores": {LABEL_METRIC: (1.0, 0.0)}}, "label"),
        ({"provenance": Provenance(parameters={"x": object()})}, "plain JSON"),
        ({"provenance": Provenance(parameters={"x": float("nan")})}, "plain JSON"),
        ({"provenance": Provenance(seed=2**63)}, "64 bits"),
        ({"provenance": Provenance(sha256=("a", "b"))}, "hashes"),
    ],
)
def test_invalid_pairs_are_refused_by_name(changes, message, pair):
    with pytest.raises(DiffalignError, match=message):
        to_record(pair(0, **changes))


def test_a_candidate_set_needs_an_image(candidates):
    with pytest.raises(DiffalignError, match=r"'set-0'.*K >= 1"):
        validate_row(candidates(0, images=(), scores={}))


def test_writer_refuses_duplicates_and_the_other_form(tmp_path, pair, candidates):
    with PreferenceWriter(tmp_path, form="pair") as writer:
        writer.write(pair(0))
        with pytest.raises(DiffalignError, match=r"'row-0'.*unique"):
            writer.write(pair(0))
        with pytest.raises(DiffalignError, match="CandidateSet"):
            writer.write(candidates(0))
    assert Preferences(tmp_path).ids() == ["row-0"]
    with pytest.raises(DiffalignError, match="form"):
        PreferenceWriter(tmp_path, form="pears")


def foreign(tmp_path, pair, change) -> Path:
    """A file of somebody else: our rows with a change made to the table."""
    table = pa.Table.from_pylist([to_record(pair(0)), to_record(pair(1))], schema=arrow_schema("pair"))
    file = tmp_path / "foreign.parquet"
    pq.write_table(change(table), file)
    return file


def renamed(table, old, new):
    return table.rename_columns([new if name == old else name for name in table.column_names])


def replaced(table, name, values):
    return table.set_column(table.column_names.index(name), name, values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: renamed(t, "label", "lable"), r"missing 'label' \(nearest there: 'lable'\).*expected: id, prompt"),
        (lambda t: t.drop_columns(["prompt"]), "missing 'prompt'.*there: id, chosen"),
        (lambda t: t.select(["id"]), "missing"),
        (lambda t: replaced(t, "label", pa.array(["high", "low"])), "'label' must hold double, got string"),
        (lambda t: replaced(t, "chosen", pa.array([b"x", b"y"])), "'chosen' lacks the field 'bytes'"),
        (lambda t: replaced(t, "scores", pa.array([[{"metrik": "a"}], []])), "'scores' lacks the field 'metric'"),
        (lambda t: replaced(t, "id", pa.array(["a", "a"])), "ids come more than once, the first is 'a'"),
    ],
)
def test_foreign_tables_are_refused_on_opening(change, message, tmp_path, pair):
    with pytest.raises(DiffalignError, match=message):
        Preferences(foreign(tmp_path, pair, change))


SCORES = arrow_schema("pair").field("scores").type
BOMB = {"bytes": b"no image", "path": None}
BY_PATH = {"bytes": None, "path": "/etc/passwd"}


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("label", pa.array([1.0, float("nan")]), "'row-1': the label"),
        ("prompt", pa.array(["x", None]), "'row-1': the prompt"),
        ("scores", pa.array([[], [None]], SCORES), "'row-1': an entry of its scores is empty"),
        ("scores", pa.array([[], [{"metric": None, "chosen": 1, "rejected": 0}]], SCORES), "'row-1': an entry"),
        ("chosen", pa.array([BY_PATH, BOMB], arrow_schema("pair").field("chosen").type), "'row-1'.*not_an_image"),
        ("chosen", pa.array([BOMB, BY_PATH], arrow_schema("pair").field("chosen").type), "'row-1'.*embed"),
    ],
)
def test_foreign_rows_are_refused_by_name(name, values, message, tmp_path, pair):
    there = Preferences(foreign(tmp_path, pair, lambda table: replaced(table, name, values)))
    with pytest.raises(DiffalignError, match=message):
        there[1]


def test_wider_and_narrower_types_are_read(tmp_path, pair):
    def change(table):
        table = replaced(table, "label", pa.array([1, 0], pa.int8()))
        return replaced(table, "prompt", pa.array(["x", "y"], pa.large_string()))

    there = Preferences(foreign(tmp_path, pair, change))
    assert (there[1].label, there[1].prompt) == (0.0, "y")


def test_opening_what_is_not_there(tmp_path, pair, candidates):
    for path in (tmp_path, tmp_path / "absent.parquet"):
        with pytest.raises(DiffalignError):
            Preferences(path)
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1 and nothing else")
    with pytest.raises(DiffalignError, match="whole Parquet"):
        Preferences(broken)
    pairs = write(tmp_path / "p", [pair(0)]) / "train-00000.parquet"
    sets = write(tmp_path / "c", [candidates(0)], form="candidates") / "train-00000.parquet"
    with pytest.raises(DiffalignError, match="mixed"):
        Preferences([pairs, sets])


# Reading lazily -----------------------------------------------------------------------------------------------------


@pytest.fixture
def stored(tmp_path, pair) -> Path:
    """Eleven pairs in shards of 4, 4, 3 and groups of at most 3."""
    return write(tmp_path / "eleven", [pair(i) for i in range(11)], rows_per_shard=4, rows_per_group=3)


def test_every_index_finds_its_row(stored):
    there = Preferences(stored)
    assert len(there) == 11
    for i in range(-11, 11):
        assert there[i].id == f"row-{i % 11}"
    assert [row.id for row in there] == there.ids() == [f"row-{i}" for i in range(11)]
    assert there[3:9:2].ids() == ["row-3", "row-5", "row-7"] == [row.id for row in there[3:9:2]]
    assert there[2:5].prompts() == there.prompts()[2:5] and there[2:5].fingerprint() != there.fingerprint()
    for outside in (11, -12):
        with pytest.raises(IndexError):
            there[outside]


def test_prompts_and_hashes_decode_nothing_and_an_access_decodes_one_row(stored, monkeypatch):
    decoded, read = [], []
    monkeypatch.setattr(schema_module, "decode_image", count(schema_module.decode_image, decoded))
    read_group = Preferences._read_group
    monkeypatch.setattr(Preferences, "_read_group", lambda self, *args: (read.append(args), read_group(self, *args))[1])

    there = Preferences(stored)
    assert there.prompts()[10] == "a photograph of 10 cats"
    labels = there.labels()
    assert len(there.image_hashes()) == 11
    images = list(there.images())
    assert not decoded
    assert all(columns in (["id"], ["prompt"], ["label"], ["provenance"]) for _, columns in read)

    read.clear()
    assert [there[i].id for i in (4, 5, 6)] == ["row-4", "row-5", "row-6"]  # one group
    assert len(read) == 1 and len(decoded) == 6
    sha256, load = images[7]
    assert image_sha256(load()) == sha256
    assert len(read) == 2 and len(decoded) == 7
    assert [row.label for row in there] == labels
    assert there._loaded[1].num_rows <= 3  # the memory that remains: one row group


def count(function, calls):
    def counted(*args, **kwargs):
        calls.append(args)
        return function(*args, **kwargs)

    return counted


def test_images_are_listed_once_in_order(tmp_path, pair):
    same = pair(0).chosen
    there = Preferences(write(tmp_path, [pair(0), pair(1, rejected=same), pair(2)]))
    hashes = [sha256 for sha256, _ in there.images()]
    expected = [pair(0).chosen, pair(0).rejected, pair(1).chosen, pair(2).chosen, pair(2).rejected]
    assert hashes == [image_sha256(image) for image in expected]
    assert [image_sha256(load()) for _, load in there.images()] == hashes
    rejected = [image_sha256(image) for image in (pair(0).rejected, same, pair(2).rejected)]
    assert [sha256 for sha256, _ in there.images([1])] == rejected


def test_missing_hashes_are_named(tmp_path, pair):
    file = foreign(tmp_path, pair, lambda t: replaced(t, "provenance", pa.nulls(2, arrow_schema("pair").field(7).type)))
    assert Preferences(file)[0].provenance == Provenance()
    with pytest.raises(DiffalignError, match="row-0"):
        Preferences(file).image_hashes()


def test_views(stored):
    there = Preferences(stored)
    some = there.select([9, 2, 2, -1])
    assert some.ids() == ["row-9", "row-2", "row-2", "row-10"] == [row.id for row in some]
    assert some.select([1]).prompts() == ["a photograph of 2 cats"]
    assert len(there) == 11 and there.form == "pair"

    sets = some.as_candidates()
    assert sets.form == "candidates"
    one, original = sets[1], there[2]
    assert isinstance(one, CandidateSet)
    assert one.scores == {LABEL_METRIC: (0.75, 0.25), "pickscore": (23.5, 20.25), "hpsv3": (7.0, -3.5)}
    assert [image_sha256(image) for image in one.images] == list(original.provenance.sha256)
    validate_row(one)


def test_fingerprint(stored, tmp_path, pair):
    there = Preferences(stored)
    assert there.fingerprint() == Preferences(sorted(stored.glob("*.parquet"))).fingerprint()
    others = [there.select([0, 1]), there.select([1, 0]), there.as_candidates()]
    rows = [pair(i) for i in range(10)] + [pair(10, prompt="another")]
    others.append(Preferences(write(tmp_path / "other", rows, rows_per_shard=4, rows_per_group=3)))
    assert len({there.fingerprint(), *(other.fingerprint() for other in others)}) == 5


# Writing whole shards -----------------------------------------------------------------------------------------------


def test_same_rows_same_bytes(stored, tmp_path, pair):
    again = write(tmp_path / "again", [pair(i) for i in range(11)], rows_per_shard=4, rows_per_group=3)
    assert shard_bytes(again) == shard_bytes(stored)
    assert sorted(shard_bytes(stored)) == [f"train-0000{i}.parquet" for i in range(3)]


def test_an_error_midway_leaves_complete_shards_and_resuming_gives_the_same_bytes(stored, tmp_path, pair):
    folder = tmp_path / "stopped"
    with (
        pytest.raises(PermissionError, match="of the source"),
        PreferenceWriter(folder, form="pair", rows_per_shard=4, rows_per_group=3) as writer,
    ):
        for i in range(11):  # the last three are in a shard begun but not complete
            writer.write(pair(i))
        raise PermissionError(13, "of the source")
    assert sorted(shard_bytes(folder)) == ["train-00000.parquet", "train-00001.parquet"]

    with PreferenceWriter(folder, form="pair", rows_per_shard=4, rows_per_group=3, resume=True) as writer:
        assert [writer.write(pair(i)) for i in range(11)] == [False] * 8 + [True] * 3
        with pytest.raises(DiffalignError, match="unique"):
            writer.write(pair(1))
    assert shard_bytes(folder) == shard_bytes(stored)


def write_until_killed(folder, rows):
    with PreferenceWriter(folder, form="pair", rows_per_shard=4, rows_per_group=3) as writer:
        for row in rows:
            writer.write(row)
        os.kill(os.getpid(), signal.SIGKILL)  # rows 8 and later are in an unfinished shard


def test_a_killed_writer_is_continued(stored, tmp_path, pair):
    folder = tmp_path / "killed"
    process = multiprocessing.get_context("spawn").Process(
        target=write_until_killed, args=(folder, [pair(i) for i in range(11)])
    )
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    left = shard_bytes(folder)
    assert [name for name in sorted(left) if not name.startswith(".")] == ["train-00000.parquet", "train-00001.parquet"]
    assert any(name.startswith(".") for name in left)  # the unfinished one is hidden
    assert len(Preferences(folder)) == 8

    write(folder, [pair(i) for i in range(11)], rows_per_shard=4, rows_per_group=3, resume=True)
    assert shard_bytes(folder) == shard_bytes(stored)


def test_resuming_is_asked_for_and_checked(stored, pair, candidates):
    with pytest.raises(DiffalignError, match="already holds 3 shards"):
        write(stored, [pair(0)])
    with pytest.raises(DiffalignError, match="form 'pair'"):
        write(stored, [candidates(0)], form="candidates", resume=True)
    (stored / "train-00001.parquet").unlink()
    with pytest.raises(DiffalignError, match="expected train-00000"):
        write(stored, [pair(0)], resume=True)


def test_one_writer_per_folder(tmp_path, pair):
    with PreferenceWriter(tmp_path, form="pair") as writer:
        writer.write(pair(0))
        with pytest.raises(DiffalignError, match="in use"):
            write(tmp_path, [pair(1)])
    write(tmp_path, [pair(1)], resume=True)  # the lock is free again
    assert Preferences(tmp_path).ids() == ["row-0", "row-1"]


def test_a_writer_that_cannot_keep_rows_takes_none(tmp_path, pair, monkeypatch):
    """Setting failing rows aside must not lose, without a word, those that shared their shard."""
    with pytest.raises(DiffalignError, match="not open"):
        PreferenceWriter(tmp_path, form="pair").write(pair(0))

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    set_aside = []
    with (
        pytest.raises(DiffalignError, match="resume=True"),
        PreferenceWriter(tmp_path, form="pair", rows_per_shard=4, rows_per_group=2) as writer,
    ):
        for i in range(10):
            if i == 6:
                monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
            try:
                writer.write(pair(i))
            except DiffalignError as error:
                set_aside.append((i, str(error)))
        monkeypatch.undo()
    assert [i for i, _ in set_aside] == [7, 8, 9] and "no space left" in set_aside[0][1]
    write(tmp_path, [pair(i) for i in range(10)], rows_per_shard=4, rows_per_group=2, resume=True)
    assert Preferences(tmp_path).ids() == [f"row-{i}" for i in range(10)]


def test_a_full_disk_is_told_in_words_and_leaves_no_shard(tmp_path, pair, monkeypatch):
    class FullDisk(pq.ParquetWriter):
        def write_table(self, *args, **kwargs):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer_module.pq, "ParquetWriter", FullDisk)
    with pytest.raises(DiffalignError, match="no space left"):
        write(tmp_path, [pair(0)])
    assert shard_bytes(tmp_path) == {}
