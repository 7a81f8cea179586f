"""Readers of published data sets, against files made in their formats."""

from __future__ import annotations

import csv
import json
import os
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diffalign.core import DiffalignError
from diffalign.data import (
    READERS,
    BadRow,
    ImageLimits,
    Preferences,
    PreferenceWriter,
    image_sha256,
    read_folders,
    read_hpdv3,
    read_pickapic,
    read_realalign,
)


def same(one, other) -> bool:
    return np.array_equal(np.asarray(one), np.asarray(other))


def collect(reader, *args, **options):
    """The pairs, and the bad rows as (index, reason)."""
    bad: list[BadRow] = []
    pairs = list(reader(*args, on_bad=bad.append, **options))
    return pairs, [(row.index, row.reason) for row in bad]


def test_registry_names_the_readers():
    assert READERS.names() == ["folders", "hpdv3", "pickapic", "realalign"]
    with pytest.raises(DiffalignError, match="nearest: pickapic"):
        READERS.get("pickpic")


# Pick-a-Pic ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def pickapic(tmp_path, image, encoded):
    """Writes rows of (label_0, label_1, changes) in Pick-a-Pic's columns; image s of row i has seed 2i + s."""

    def make(rows, name="train-00000", **renames):
        records = []
        for i, (label_0, label_1, changes) in enumerate(rows):
            record = {
                "are_different": True,
                "caption": f"prompt {i}",
                "has_label": True,
                "image_0_uid": f"uid-{2 * i}",
                "image_1_uid": f"uid-{2 * i + 1}",
                "jpg_0": encoded(image(2 * i)),
                "jpg_1": encoded(image(2 * i + 1)),
                "label_0": label_0,
                "label_1": label_1,
                "model_0": "sdxl",
                "model_1": "sd15",
                "ranking_id": 40 + i,
                **changes,
            }
            records.append({renames.get(key, key): value for key, value in record.items()})
        file = tmp_path / f"{name}.parquet"
        pq.write_table(pa.Table.from_pylist(records), file, row_group_size=2)
        return file

    return make


def test_pickapic_labels(pickapic, image):
    first, second, tie = read_pickapic(pickapic([(1.0, 0.0, {}), (0.0, 1.0, {}), (0.5, 0.5, {})]))
    assert same(first.chosen, image(0)) and same(first.rejected, image(1)) and first.label == 1.0
    assert same(second.chosen, image(3)) and same(second.rejected, image(2)) and second.label == 1.0
    assert same(tie.chosen, image(4)) and same(tie.rejected, image(5)) and tie.label == 0.5
    assert (second.id, second.prompt) == ("train-00000:1", "prompt 1")
    assert second.provenance.sha256 == (image_sha256(image(3)), image_sha256(image(2)))
    assert second.provenance.parameters == {
        "image_uids": ["uid-3", "uid-2"],
        "models": ["sd15", "sdxl"],
        "ranking_id": 41,
    }
    assert (second.provenance.source, second.provenance.method) == ("pickapic_v2", "human_vote")


def test_pickapic_bad_rows(pickapic, encoded, image):
    file = pickapic(
        [
            (0.0, 0.0, {"has_label": False}),
            (1.0, 1.0, {}),
            (float("nan"), 1.0, {}),
            (1.0, 0.0, {"caption": " "}),
            (1.0, 0.0, {"caption": None}),
            (1.0, 0.0, {"jpg_1": b"broken"}),
            (1.0, 0.0, {"jpg_0": None}),
            (1.0, 0.0, {"jpg_1": encoded(image())[:70]}),
            (1.0, 0.0, {}),
        ]
    )
    pairs, bad = collect(read_pickapic, file)
    assert [pair.id for pair in pairs] == ["train-00000:8"]
    reasons = ["no label", "sum to 1", "sum to 1", "no prompt", "no prompt", "not_an_image", "no bytes", "truncated"]
    assert [index for index, _ in bad] == list(range(8))
    for (_, reason), expected in zip(bad, reasons, strict=True):
        assert expected in reason
    with pytest.raises(BadRow, match="row 0: it has no label"):
        next(read_pickapic(file))


def test_pickapic_folder_is_read_lazily_in_order(pickapic, tmp_path, monkeypatch):
    pickapic([(1.0, 0.0, {})] * 3, name="b")
    pickapic([(1.0, 0.0, {})] * 2, name="a")
    assert [pair.id for pair in read_pickapic(tmp_path)] == ["a:0", "a:1", "b:0", "b:1", "b:2"]
    (tmp_path / "b.parquet").write_bytes(b"broken")
    assert next(read_pickapic(tmp_path)).id == "a:0"  # the second file has not been touched yet


def test_splits_of_one_folder_are_never_mixed(pickapic, tmp_path):
    files = [pickapic([(1.0, 0.0, {})], name=f"{split}-00000-of-00001") for split in ("train", "test_unique")]
    with pytest.raises(DiffalignError, match=r"several splits \(train, test\)"):
        next(read_pickapic(tmp_path))
    assert [pair.id for pair in read_pickapic(files[:1])] == ["train-00000-of-00001:0"]


def test_pickapic_columns(pickapic):
    with pytest.raises(DiffalignError, match=r"missing 'jpg_0' \(nearest there: 'jpeg_0'\); expected: .*there: "):
        next(read_pickapic(pickapic([(1.0, 0.0, {})], jpg_0="jpeg_0")))
    file = pickapic([(1.0, 0.0, {})], model_0="x", model_1="y", ranking_id="z")  # these may be absent
    assert next(read_pickapic(file)).provenance.parameters["models"] == [None, None]


def test_limits_reach_the_decoder(pickapic):
    _, bad = collect(read_pickapic, pickapic([(1.0, 0.0, {})]), limits=ImageLimits(max_pixels=34))
    assert "too_large" in bad[0][1]


# HPDv3 --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def hpdv3(tmp_path, image, encoded):
    (tmp_path / "images").mkdir()
    for i in range(4):
        (tmp_path / "images" / f"{i}.jpg").write_bytes(encoded(image(i)))

    def make(rows, lines=False, name="train.json"):
        file = tmp_path / name
        file.write_text("\n".join(map(json.dumps, rows)) if lines else json.dumps(rows, indent=1))
        return file

    return make


def entry(one, two, **more):
    return {"path1": f"images/{one}.jpg", "path2": f"images/{two}.jpg", "prompt": "a lake", **more}


@pytest.mark.parametrize("lines", [False, True])
def test_hpdv3_prefers_path1(hpdv3, lines, image):
    rows = [entry(2, 1, model1="real_images", model2="sdxl", confidence=0.9, choice_dist=[9, 1]), entry(0, 3)]
    first, second = read_hpdv3(hpdv3(rows, lines))
    assert same(first.chosen, image(2)) and same(first.rejected, image(1))
    assert (first.id, first.prompt, first.label) == ("0", "a lake", 1.0)
    assert first.provenance.parameters == {
        "models": ["real_images", "sdxl"],
        "confidence": 0.9,
        "choice_dist": [9, 1],
    }
    assert same(second.chosen, image(0)) and second.id == "1"


def test_hpdv3_source_filter(hpdv3):
    real = {"model1": "real_images", "model2": "real_images"}
    mixed = {"model1": "real_images", "model2": "sdxl"}
    file = hpdv3([entry(0, 1, **real), entry(0, 1, **mixed), entry(2, 3), entry(2, 3, **real)])
    pairs, bad = collect(read_hpdv3, file, sources={"real_images"})
    assert [pair.id for pair in pairs] == ["0", "3"]
    assert len(bad) == 1 and bad[0][0] == 2 and "models" in bad[0][1]
    assert len(list(read_hpdv3(file))) == 4


def test_hpdv3_rows_of_other_types_are_bad_rows(hpdv3):
    listed = {"model1": ["real_images"], "model2": "real_images"}
    file = hpdv3([entry(0, 1, **listed), {**entry(0, 1), "prompt": "half a cat \ud83d"}, entry(2, 3)])
    pairs, bad = collect(read_hpdv3, file)
    assert [pair.id for pair in pairs] == ["0", "2"] and bad[0][0] == 1 and "Unicode" in bad[0][1]
    _, bad = collect(read_hpdv3, file, sources={"real_images"})
    assert [index for index, _ in bad] == [0, 1, 2]


def test_bad_rows_survive_being_sent_to_another_process():
    bad = pickle.loads(pickle.dumps(BadRow(3, "broken: here")))
    assert (bad.index, bad.reason, str(bad)) == (3, "broken: here", "row 3: broken: here")


def test_hpdv3_columns_and_root(hpdv3, tmp_path):
    rows = [{"better": "0.jpg", "path2": "1.jpg", "prompt": "x"}]
    file = hpdv3(rows)
    with pytest.raises(DiffalignError, match=r"missing 'path1'.*there: better, path2, prompt"):
        next(read_hpdv3(file))
    assert next(read_hpdv3(file, columns={"path1": "better"}, root=tmp_path / "images")).prompt == "x"
    with pytest.raises(DiffalignError, match=r"'pat1'"):
        next(read_hpdv3(file, columns={"pat1": "better"}))


@pytest.mark.parametrize("content", ["[1, 2]", '[{"path1": ', "not json", '{"path1": 1}\n[]'])
def test_hpdv3_broken_files(tmp_path, content):
    (tmp_path / "broken.json").write_text(content)
    with pytest.raises(DiffalignError):
        collect(read_hpdv3, tmp_path / "broken.json")
    with pytest.raises(DiffalignError, match="cannot read"):
        next(read_hpdv3(tmp_path / "absent.json"))


def test_paths_never_leave_the_root(hpdv3, tmp_path, image, encoded):
    outside = tmp_path.parent / f"{tmp_path.name}-outside.png"
    outside.write_bytes(encoded(image(9)))
    (tmp_path / "images" / "link.jpg").symlink_to(outside)
    (tmp_path / "images" / "inner.jpg").symlink_to("0.jpg")
    (tmp_path / "images" / "loop.jpg").symlink_to("loop.jpg")
    os.mkfifo(tmp_path / "images" / "pipe.jpg")
    wrong = [f"../{outside.name}", str(outside), "images/link.jpg", "images/../../" + outside.name, "images/loop.jpg"]
    wrong += ["", None, 7, "a\0b", "x" * 5000, "images/absent.jpg", "images", "images/pipe.jpg"]
    rows = [{**entry(0, 1), "path2": path} for path in wrong]
    good = {**entry(0, 1), "path2": "images/inner.jpg"}
    pairs, bad = collect(read_hpdv3, hpdv3([*rows, good]))
    assert [index for index, _ in bad] == list(range(len(wrong)))
    assert all("leaves the root folder" in reason for _, reason in bad[:4])
    assert len(pairs) == 1 and same(pairs[0].rejected, image(0))
    pairs, _ = collect(read_hpdv3, hpdv3(rows), root=tmp_path.parent)  # what lies inside depends on the root
    assert pairs == []


# RealAlign ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chosen", "rejected", "caption"),
    [("real_image_path", "fake_image_path", "prompt"), ("win_image_path", "lose_image_path", "caption")],
)
def test_realalign_reads_both_namings(chosen, rejected, caption, tmp_path, image, encoded):
    for name, seed in (("real", 0), ("fake", 1)):
        (tmp_path / f"{name}.png").write_bytes(encoded(image(seed)))
    with (tmp_path / "pairs.csv").open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, ["uid", caption, chosen, rejected, "pickscore_real"])
        writer.writeheader()
        writer.writerow({"uid": "ab12", caption: 'a "red",\nboat', chosen: "real.png", rejected: "fake.png"})
        writer.writerow({"uid": "", caption: "no uid", chosen: "real.png", rejected: "fake.png"})
        writer.writerow({"uid": "x", caption: "gone", chosen: "real.png", rejected: "gone.png"})
        file.write("short row\n")
    pairs, bad = collect(read_realalign, tmp_path / "pairs.csv")
    assert [(pair.id, pair.prompt) for pair in pairs] == [("ab12", 'a "red",\nboat'), ("1", "no uid")]
    assert same(pairs[0].chosen, image(0)) and same(pairs[0].rejected, image(1))
    assert (pairs[0].provenance.source, pairs[0].provenance.method) == ("realalign", "inpaint")
    assert [index for index, _ in bad] == [2, 3]


def test_realalign_columns(tmp_path):
    file = tmp_path / "pairs.csv"
    file.write_text("uid,prompt,real_img_path,fake_image_path\n1,x,a,b\n")
    with pytest.raises(DiffalignError, match=r"missing 'real_image_path' \(nearest there: 'real_img_path'\)"):
        next(read_realalign(file))
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DiffalignError, match="cannot read"):
        next(read_realalign(file))


# Folders ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path, image, encoded):
    for side, offset in (("chosen", 0), ("rejected", 50)):
        (tmp_path / side).mkdir()
        for i, name in enumerate(("a.png", "b.png", "c.png")):
            (tmp_path / side / name).write_bytes(encoded(image(offset + i)))
    (tmp_path / "rejected" / "b.png").rename(tmp_path / "rejected" / "b.PNG")  # only the stem counts
    (tmp_path / "chosen" / "a.txt").write_text(" text beside a \n")
    lines = [{"file_name": "chosen/a.png", "text": "not used"}, {"file_name": "b.png", "text": "line of b"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path


def test_folders_and_where_captions_come_from(folders, image):
    pairs, bad = collect(read_folders, folders, prompt="for all")
    assert [(pair.id, pair.prompt) for pair in pairs] == [("a", "text beside a"), ("b", "line of b"), ("c", "for all")]
    assert bad == []
    assert same(pairs[1].chosen, image(1)) and same(pairs[1].rejected, image(51))
    _, bad = collect(read_folders, folders)
    assert bad == [(2, "it has no prompt")]


def test_folders_report_what_does_not_match(folders, encoded, image):
    (folders / "chosen" / "b.jpg").write_bytes(encoded(image(5)))
    (folders / "rejected" / "c.png").unlink()
    (folders / "rejected" / "d.png").write_bytes(encoded(image(6)))
    (folders / "rejected" / "notes.md").write_text("ignored")
    pairs, bad = collect(read_folders, folders, prompt="x")
    assert [pair.id for pair in pairs] == ["a"]
    assert [index for index, _ in bad] == [1, 2, 3]
    assert "'b' in chosen, found b.jpg, b.png" in bad[0][1]
    assert "'c' in rejected, found none" in bad[1][1]
    assert "'d' in chosen, found none" in bad[2][1]


def test_folders_links_out_are_not_followed(folders, tmp_path_factory, encoded, image):
    outside = tmp_path_factory.mktemp("outside")
    (outside / "c.png").write_bytes(encoded(image(8)))
    (outside / "secret.txt").write_text("secret")
    (folders / "chosen" / "c.png").unlink()
    (folders / "chosen" / "c.png").symlink_to(outside / "c.png")
    (folders / "chosen" / "b.txt").symlink_to(outside / "secret.txt")
    pairs, bad = collect(read_folders, folders, prompt="x")
    assert [pair.id for pair in pairs] == ["a"]
    assert all("leaves the root folder" in reason for _, reason in bad) and len(bad) == 2


def test_one_unreadable_caption_does_not_end_the_import(folders):
    (folders / "chosen" / "b.txt").write_bytes("caf\xe9".encode("latin-1"))
    pairs, bad = collect(read_folders, folders, prompt="x")
    assert [pair.id for pair in pairs] == ["a", "c"]
    assert [index for index, _ in bad] == [1] and "not UTF-8" in bad[0][1]


def test_folders_missing(tmp_path):
    (tmp_path / "choosen").mkdir()
    with pytest.raises(DiffalignError, match=r"chosen is missing \(choosen\)"):
        next(read_folders(tmp_path))


def test_what_is_read_can_be_written(folders, tmp_path):
    with PreferenceWriter(tmp_path / "out", form="pair") as writer:
        for pair in read_folders(folders, prompt="x"):
            writer.write(pair)
    assert Preferences(tmp_path / "out").ids() == ["a", "b", "c"]
