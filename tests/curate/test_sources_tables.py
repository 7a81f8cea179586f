"""Photographs in tables: Parquet, data sets, HPDv3's annotations, RealAlign's CSV, metadata; names that lead out."""

from __future__ import annotations

import doctest
import importlib
import json
import pickle
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from curate_helpers import SIZE, album, bomb, picture, png, prompts, reasons, write_parquet

from diffalign.core import DiffalignError
from diffalign.curate import Photo, Rejected, captions, sources
from diffalign.curate.sources import open_photos, parquet
from diffalign.data import image_sha256, resize_crop


def pixels(number: int) -> str:
    return image_sha256(resize_crop(picture(number), SIZE))[:16]


def test_rows_of_parquet_files_in_order(tmp_path: Path) -> None:
    (tmp_path / "data" / "more").mkdir(parents=True)
    write_parquet(tmp_path / "data" / "b.parquet", range(4, 7), license="CC0-1.0")
    write_parquet(tmp_path / "data" / "more" / "c.parquet", range(7, 9), license="CC0-1.0")
    write_parquet(tmp_path / "data" / "a.parquet", range(4), license="CC0-1.0")
    (tmp_path / "data" / "README.md").write_text("cats")
    photos = open_photos(str(tmp_path / "data"), SIZE)
    assert [one.id for one in photos] == [pixels(number) for number in range(9)]
    assert prompts(photos) == [f"photo {number}" for number in range(9)]
    assert (photos[5].source, photos[5].license) == ("data/b.parquet:1", "CC0-1.0")
    assert photos[8].source == "data/more/c.parquet:1" and photos[-1].id == photos[8].id


def test_a_part_decodes_its_own_row_groups_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eleven rows in groups of three: rows 4 and 5 lie in group 1, row 9 in group 3."""
    write_parquet(tmp_path / "a.parquet", range(11), row_group_size=3)
    photos = open_photos(str(tmp_path / "a.parquet"), SIZE)
    decoded: list[int] = []
    read = pq.ParquetFile.read_row_group
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", lambda s, n, **o: [decoded.append(n), read(s, n, **o)][1])
    parquet._read_group.cache_clear()
    assert prompts(photos[4:6]) == ["photo 4", "photo 5"] and decoded == [1]
    assert photos[9].prompt == "photo 9" and decoded == [1, 3]


@pytest.mark.parametrize("kind", ["bytes", "struct", "large", "dictionary"])
def test_images_and_captions_are_found_by_type_and_name(kind: str, tmp_path: Path) -> None:
    data = [png(picture(1)), png(picture(2))]
    images: Any = pa.array(data, pa.large_binary() if kind == "large" else pa.binary())
    if kind == "struct":
        images = pa.array([{"bytes": one, "path": "/etc/hostname"} for one in data])
    texts: Any = pa.array(["one", "two"], pa.large_string() if kind == "large" else pa.string())
    table = {
        "thumbnail": pa.array([b"1", b"2"]),
        "prompt": texts.dictionary_encode() if kind == "dictionary" else texts,
        "text": pa.array([" ", "first"]),
        "jpg": images,
        "image": pa.array(["a name", "another"]),
    }
    pq.write_table(pa.table(table), tmp_path / "x.parquet")
    photos = open_photos(str(tmp_path / "x.parquet"), SIZE)
    assert [one.id for one in photos] == [pixels(1), pixels(2)] and prompts(photos) == ["one", "first"]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"url": ["http://"], "text": ["a"]}, r"found none; columns: url \(string\), text \(string\)"),
        ({"left": [b"1"], "right": [b"2"], "text": ["a"]}, r"found \['left', 'right'\]"),
        ({"image": [b"1"], "label": [3]}, r"captions named text, caption, prompt, found none; columns: image \(binary"),
        ({"image": [b"1"], "text": [3]}, "found none"),
    ],
)
def test_columns_that_do_not_fit_are_listed(table: dict[str, list[Any]], message: str, tmp_path: Path) -> None:
    pq.write_table(pa.table(table), tmp_path / "x.parquet")
    with pytest.raises(DiffalignError, match=message):
        open_photos(str(tmp_path / "x.parquet"), SIZE)


def test_broken_rows_are_rejected_and_broken_files_told(tmp_path: Path) -> None:
    data = [png(picture(1)), None, b"%PDF", bomb(), png(picture(5, (SIZE - 1, 90))), png(picture(6)), png(picture(7))]
    table = pa.table({"image": data, "text": ["a", "b", "c", "d", "e", None, "x" * 9000]})
    pq.write_table(table, tmp_path / "x.parquet")
    assert reasons(open_photos(str(tmp_path / "x.parquet"), SIZE)) == [
        None, "no image", "not_an_image", "too_large", "too_small", "no caption", "bad caption",
    ]  # fmt: skip
    (tmp_path / "y.parquet").write_bytes((tmp_path / "x.parquet").read_bytes()[:-9])
    with pytest.raises(DiffalignError, match=r"y\.parquet is not a whole Parquet file"):
        open_photos(str(tmp_path / "y.parquet"), SIZE)
    write_parquet(tmp_path / "other" / "y.parquet", range(2), image="jpg")
    write_parquet(tmp_path / "other" / "x.parquet", range(2))
    with pytest.raises(DiffalignError, match="the columns of the first file"):
        open_photos(f"{tmp_path}/other/*.parquet", SIZE)
    pq.write_table(table.slice(0, 0), tmp_path / "empty.parquet")
    with pytest.raises(DiffalignError, match="have no rows"):
        open_photos(str(tmp_path / "empty.parquet"), SIZE)


def test_pages_that_do_not_decode_are_unreadable_rows(tmp_path: Path) -> None:
    write_parquet(tmp_path / "x.parquet", range(5), row_group_size=2)
    data = bytearray((tmp_path / "x.parquet").read_bytes())
    photos = open_photos(str(tmp_path / "x.parquet"), SIZE)
    start = pq.read_metadata(tmp_path / "x.parquet").row_group(0).column(1).data_page_offset  # image.bytes
    data[start : start + 20] = b"\xff" * 20
    (tmp_path / "x.parquet").write_bytes(data)
    parquet._read_group.cache_clear()
    assert reasons(photos) == ["unreadable", "unreadable", None, None, None]


def test_several_splits_are_not_mixed(tmp_path: Path) -> None:
    for name in ("train-0.parquet", "train-1.parquet", "test-0.parquet"):
        write_parquet(tmp_path / name, range(2))
    with pytest.raises(DiffalignError, match=r"several splits \(train, test\)"):
        open_photos(str(tmp_path), SIZE)
    assert len(open_photos(f"{tmp_path}/train-*.parquet", SIZE)) == 4
    with pytest.raises(DiffalignError, match="is named like"):
        open_photos(f"{tmp_path}/valid-*.parquet", SIZE)


def test_data_sets_come_through_their_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "cats").mkdir()
    write_parquet(tmp_path / "cats" / "train-0.parquet", range(5))
    write_parquet(tmp_path / "cats" / "test-0.parquet", range(5, 7))
    spec = f"hub:{tmp_path / 'cats'}"
    photos, part = open_photos(spec, SIZE), open_photos(f"{spec}:train[1:3]", SIZE)
    assert prompts(photos) == [f"photo {n}" for n in range(5)] and [one.id for one in part] == [pixels(1), pixels(2)]
    assert prompts(open_photos(f"{spec}:test", SIZE)) == ["photo 5", "photo 6"]
    assert open_photos(spec, SIZE).identity == photos.identity != part.identity
    assert pickle.loads(pickle.dumps(photos[3:]))[1].id == pixels(4)
    with pytest.raises(DiffalignError, match=r"split 'valid'"):
        open_photos(f"{spec}:valid", SIZE)


def test_data_sets_that_are_folders_of_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    album(tmp_path / "cats", 3)
    (tmp_path / "cats" / "metadata.jsonl").write_text(
        "".join(json.dumps({"file_name": f"{n}.png", "text": f"a cat, {n}"}) + "\n" for n in range(3))
    )
    for file in (tmp_path / "cats").glob("*.txt"):
        file.unlink()
    assert prompts(open_photos(f"hub:{tmp_path / 'cats'}", SIZE)) == ["a cat, 0", "a cat, 1", "a cat, 2"]


def test_a_data_set_cannot_name_files_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "cats").mkdir()
    (tmp_path / "secret.png").write_bytes(png(picture(1)))
    cells = [{"bytes": None, "path": str(tmp_path / "secret.png")}, {"bytes": None, "path": "x\0y"}, None]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(cells, kind), "text": ["a", "b", "c"]})
    pq.write_table(table, tmp_path / "cats" / "train.parquet")
    assert reasons(open_photos(f"hub:{tmp_path / 'cats'}", SIZE)) == ["outside", "unreadable", "no image"]
    assert reasons(open_photos(str(tmp_path / "cats"), SIZE)) == ["no image"] * 3


def test_a_data_set_out_of_reach_is_told() -> None:
    with pytest.raises(DiffalignError, match="nobody/nothing"):
        open_photos("hub:nobody/nothing@main:train", SIZE)
    with pytest.raises(DiffalignError, match=r"expected hub:user/dataset"):
        open_photos("hub:", SIZE)


def hpdv3(folder: Path, write: Callable[[list[Any]], str]) -> Path:
    """Photographs 1, 2, 3 among others: 2 in two rows, 3 with a path that leads out."""
    album(folder / "images", 5)
    rows = [
        ("images/1.png", "real_images", "images/0.png", "sdxl", "one"),
        ("images/0.png", "flux", "images/2.png", "real_images", "two"),
        ("images/2.png", "real_images", "images/4.png", "real_images", "again"),
        ("../3.png", "real_images", "images/0.png", "flux", "three"),
        ("link/1.png", "real_images", "images/0.png", "flux", "a link"),
        ("images/5.png", "real_images", None, "real_images", "five"),
    ]
    names = ("path1", "model1", "path2", "model2", "prompt")
    (folder / "link").symlink_to(folder.parent)
    (folder / "test.json").write_text(write([dict(zip(names, row, strict=True)) for row in rows]))
    return folder / "test.json"


@pytest.mark.parametrize("write", [json.dumps, lambda rows: "\n\n".join(map(json.dumps, rows))])
def test_the_real_images_of_hpdv3(write: Callable[[list[Any]], str], tmp_path: Path) -> None:
    folder = tmp_path / "hpd"
    folder.mkdir()
    photos = open_photos(str(hpdv3(folder, write)), SIZE)
    found = {one.source if isinstance(one, Photo) else one.name: one for one in photos}
    assert [one.id for one in photos if isinstance(one, Photo)] == ["1", "2", "4"]
    assert found["hpd/images/2.png"].prompt == "two" and found["hpd/images/4.png"].prompt == "again"
    assert found["hpd/../3.png"].reason == "outside" and found["hpd/images/5.png"].reason == "missing"
    assert found["hpd/test.json:5"].reason == "bad row" and len(photos) == 6


def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "1.png").write_bytes(png(picture(1)))
    (tmp_path / "in" / "1.png").symlink_to(tmp_path / "1.png")
    (tmp_path / "in" / "x.csv").write_text("real_image_path,prompt\n1.png,a cat\n/etc/hostname,b\n\0.png,c\n")
    assert [one.reason for one in open_photos(f"{tmp_path}/in/x.csv", SIZE)] == ["outside", "outside", "unreadable"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"path1": "a", "path2": "b", "prompt": "c"}]', "missing 'model1'"),
        ('[{"path1": "a", "path2": "b", "prompt": "c", "model1": "sdxl", "model2": "flux"}]', "there: flux, sdxl"),
        ("[1]", "entry 0: expected an object"),
        ("[{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ('{"path1": 1}\n{', "missing"),
        ('\n{"a"', "line 2 is not JSON"),
        ("", "names no image"),
    ],
)
def test_annotations_that_do_not_fit_are_told(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DiffalignError, match=message):
        open_photos(str(tmp_path / "a.json"), SIZE)


@pytest.mark.parametrize(
    ("header", "ids"), [("uid,real_image_path,prompt", ["u0", "u1"]), ("id,win_image_path,caption", ["0", "1"])]
)
def test_both_column_namings_of_realalign(header: str, ids: list[str], tmp_path: Path) -> None:
    album(tmp_path / "images", 2)
    lines = [header, "u0,images/0.png,a cat", 'u1,images/1.png,"a dog, too"', "u1,images/1.png,again"]
    (tmp_path / "pairs.csv").write_text("\ufeff" + "\n".join(lines))
    photos = open_photos(str(tmp_path / "pairs.csv"), SIZE)
    assert [one.id for one in photos] == ids and prompts(photos) == ["a cat", "a dog, too"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"image,prompt\na,b", "missing 'real_image_path'"),
        (b"real_image_path,words\na,b", "missing 'prompt'"),
        (b"real_image_path,prompt", "holds no rows"),
        (b"real_image_path,prompt\n\xff,b", "expected CSV in UTF-8"),
        (b"real_image_path,prompt\n" + b"a" * 200_000, "field larger"),
    ],
)
def test_csv_that_does_not_fit_is_told(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(data)
    with pytest.raises(DiffalignError, match=message):
        open_photos(str(tmp_path / "a.csv"), SIZE)


def test_without_need_of_captions_all_sources_give_photographs_without(tmp_path: Path) -> None:
    album(tmp_path / "images", 2)
    for file in (tmp_path / "images").glob("*.txt"):
        file.unlink()
    pq.write_table(pa.table({"image": [png(picture(0)), png(picture(1))]}), tmp_path / "x.parquet")
    (tmp_path / "x.csv").write_text("real_image_path\nimages/0.png\nimages/1.png\n")
    for name in ("x.parquet", "x.csv", "images"):
        photos = open_photos(str(tmp_path / name), SIZE, need_captions=False)
        assert prompts(photos) == ["", ""], name
    assert reasons(open_photos(f"{tmp_path}/images", SIZE)) == ["no caption", "no caption"]


def test_metadata_csv_gives_captions_and_licences(tmp_path: Path) -> None:
    album(tmp_path / "a" / "b", 3)
    for file in (tmp_path / "a" / "b").glob("*.txt"):
        file.unlink()
    rows = "file_name,caption,license\nb/0.png,from csv,CC0-1.0\nb/1.png,from csv,\n../../x.png,out,\nb/9.png,gone,\n"
    (tmp_path / "a" / "metadata.csv").write_text(rows)
    (tmp_path / "a" / "metadata.jsonl").write_text('{"file_name": "b/1.png", "text": "from jsonl"}')
    photos = {one.source if isinstance(one, Photo) else one.name: one for one in open_photos(f"{tmp_path}/a", SIZE)}
    assert (photos["a/b/0.png"].prompt, photos["a/b/0.png"].license) == ("from csv", "CC0-1.0")
    assert (photos["a/b/1.png"].prompt, photos["a/b/2.png"].prompt) == ("from jsonl", "b")
    assert (photos["a/../../x.png"].reason, photos["a/b/9.png"].reason) == ("outside", "missing")


def test_what_is_no_source_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").touch()
    (tmp_path / "a.png").touch()
    for spec, message in (
        (f"{tmp_path}/a.tar.gz", "is packed"),
        (f"{tmp_path}/a.png", "found another file"),
        (f"{tmp_path}/nowhere", "found none at"),
        ("", "got nothing"),
        (f"{tmp_path}/nowhere.parquet", "does not exist"),
        (f"{tmp_path}/nowhere/*.tar", "cannot read the folder"),
        (str(tmp_path / "empty"), "found none at"),
    ):
        with pytest.raises(DiffalignError, match=message):
            open_photos(spec, SIZE)
    with pytest.raises(DiffalignError, match="size of at least 1"):
        open_photos(str(tmp_path), 0)


def test_photographs_travel_to_other_processes(tmp_path: Path) -> None:
    album(tmp_path, 30)
    write_parquet(tmp_path / "x" / "x.parquet", range(30))
    for spec in (tmp_path, tmp_path / "x" / "x.parquet"):
        part = open_photos(str(spec), SIZE)[7:9]
        sent = pickle.dumps(part)
        assert len(sent) < 1500 and [one.id for one in pickle.loads(sent)] == [one.id for one in part]
        assert pickle.loads(sent).identity == part.identity == open_photos(str(spec), SIZE).identity
        assert part.read(part.keys[1]).id == part[1].id
    crops = sources.embedded_photographs("train", 9, SIZE)
    assert pickle.loads(pickle.dumps(crops[4:]))[2].id == crops[6].id


def test_the_identity_follows_what_decides_the_photographs(tmp_path: Path) -> None:
    write_parquet(tmp_path / "x.parquet", range(4))
    spec = f"{tmp_path}/x.parquet"
    before = open_photos(spec, SIZE).identity
    assert open_photos(spec, SIZE + 1).identity != before != open_photos(spec, SIZE, need_captions=False).identity
    write_parquet(tmp_path / "x.parquet", [0, 1, 3, 2])
    assert open_photos(spec, SIZE).identity != before


def test_reasons_are_rejected_objects(tmp_path: Path) -> None:
    table = pa.table({"image": pa.array([None], pa.binary()), "text": ["a"]})
    pq.write_table(table, tmp_path / "x.parquet")
    (one,) = open_photos(f"{tmp_path}/x.parquet", SIZE)
    assert one == Rejected(f"{tmp_path.name}/x.parquet:0", "no image", "column 'image' holds no bytes there")


@pytest.mark.parametrize("name", [module.name for module in pkgutil.iter_modules(sources.__path__)])
def test_examples_of_sources(name: str) -> None:
    assert doctest.testmod(importlib.import_module(f"diffalign.curate.sources.{name}")).failed == 0
    assert doctest.testmod(captions).failed == 0
