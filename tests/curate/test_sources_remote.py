"""Photographs in tars, and behind URLs: the same as on the disk, or a plain word about what lacks."""

from __future__ import annotations

import io
import json
import os
import pickle
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from curate_helpers import SIZE, album, hostile_folder, picture, png, prompts, reasons, write_parquet

from diffalign.core import DiffalignError
from diffalign.curate.sources import Photo, Rejected, open_photos, photo_folder
from diffalign.curate.sources.store import LocalStore, RemoteStore, Unreadable, open_store


def write_tar(file: Path, members: list[tuple[str, bytes | None]]) -> Path:
    """A tar of members in this order; None is a link to the disk."""
    with tarfile.open(file, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data or b"")
            if data is None:
                info.type, info.linkname = tarfile.SYMTYPE, "/etc/hostname"
            tar.addfile(info, io.BytesIO(data or b""))
    return file


def sample(number: int) -> list[tuple[str, bytes | None]]:
    return [(f"{number:03}.png", png(picture(number))), (f"{number:03}.txt", f"photo {number}".encode())]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Shards 008 to 011 of two samples each."""
    for number in range(8, 12):
        write_tar(tmp_path / f"shard-{number:03}.tar", sample(2 * number) + sample(2 * number + 1))
    return tmp_path


def test_shards_by_name_star_braces_or_folder(shards: Path) -> None:
    (shards / "shard-008.parquet").write_bytes(b"what img2dataset writes beside a shard")
    every = [f"photo {number}" for number in range(16, 24)]
    for spec in (f"{shards}/shard-*.tar", f"{shards}/shard-{{008..011}}.tar", str(shards), f"file://{shards}/*.tar"):
        assert prompts(open_photos(spec, SIZE)) == every, spec
    photos = open_photos(f"{shards}/shard-{{009..010}}.tar", SIZE)
    assert prompts(photos) == every[2:6] and photos[1].source == f"{shards.name}/shard-009.tar/019.png"
    assert prompts(open_photos(f"{shards}/shard-010.tar", SIZE)) == every[4:6]
    assert [one.id for one in pickle.loads(pickle.dumps(photos[1:3]))] == [photos[1].id, photos[2].id]
    assert photos.identity != open_photos(str(shards), SIZE).identity


def test_captions_of_a_sample_are_its_text_or_its_json(tmp_path: Path) -> None:
    image = png(picture(1))
    said = json.dumps({"caption": "from json", "license": "CC0-1.0", "url": "http://"}).encode()
    members: list[tuple[str, bytes | None]] = [
        ("a/1.json", said),
        ("a/1.jpg", image),
        ("a/2.cls", b"7"),
        ("a/2.json", said),
        ("a/2.png", image),
        ("a/2.mask.png", image),
        ("a/2.txt", b"from text"),
        ("b.c/img.2020.1.PNG", image),
        ("b.c/img.2020.1.txt", b"by its whole name"),
        ("b.c/img.2020.2.PNG", image),
        ("b.c/img.txt", b"by its first dot"),
        ("3.png", image),
        ("3.json", b"[1]"),
        ("4.png", image),
        ("4.txt", b"\xff"),
        ("5.png", image),
        ("5.txt", b""),
    ]
    photos = open_photos(str(write_tar(tmp_path / "x.tar", members)), SIZE)
    assert prompts(photos[:4]) == ["from json", "from text", "by its whole name", "by its first dot"]
    assert photos[0].license == "CC0-1.0"
    assert reasons(photos[4:]) == ["bad caption", "bad caption", "no caption"]


def test_hostile_members_stay_text(tmp_path: Path) -> None:
    image = png(picture(1))
    names = ["../../out.png", "/etc/passwd.png", "two\nlines.png", "a\u202eb.png", "\udcff.png", "x" * 300 + ".png"]
    tar = write_tar(
        tmp_path / "x.tar",
        [(name, image) for name in names] + [("link.png", None), ("empty.png", b""), ("not.png", b"%PDF")],
    )
    photos = open_photos(str(tar), SIZE, need_captions=False)
    assert reasons(photos) == [None] * 6 + ["unreadable", "empty", "not_an_image"]
    shown = [one.source for one in photos if isinstance(one, Photo)]
    assert shown[0].endswith("/x.tar/../../out.png") and shown[4].endswith("/\\udcff.png")
    assert [path.name for path in tmp_path.iterdir()] == ["x.tar"]


def test_broken_tars_are_told(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "x.tar", sample(1) + sample(2)).read_bytes()
    with tarfile.open(tmp_path / "packed.tar", "w:gz") as packed:
        packed.addfile(tarfile.TarInfo("a.png"))
    broken = bytearray(whole)
    second = whole.index(b"002.png")
    broken[second : second + 3] = b"\xff\xfe\xfd"
    for name, data in {"cut": whole[: second + 700], "broken": bytes(broken), "no": b"<html>" * 200}.items():
        (tmp_path / f"{name}.tar").write_bytes(data)
        with pytest.raises(DiffalignError, match=r"(cut|broken|no)\.tar is (not a whole|broken after 2 members)"):
            open_photos(f"{tmp_path}/{name}.tar", SIZE)
    with pytest.raises(DiffalignError, match="not a whole, uncompressed tar"):
        open_photos(f"{tmp_path}/packed.tar", SIZE)
    write_tar(tmp_path / "none.tar", [("a.txt", b"a")])
    with pytest.raises(DiffalignError, match="hold no images"):
        open_photos(f"{tmp_path}/none.tar", SIZE)


def test_a_tar_that_shrank_gives_rejected_photographs(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "x.tar", sample(1))
    photos = open_photos(str(tar), SIZE, need_captions=False)
    tar.write_bytes(tar.read_bytes()[: 512 + 900])
    assert photos[0].reason == "truncated"
    tar.unlink()
    assert photos[0].reason == "missing"


def test_too_many_braces_and_tars_among_images_are_told(shards: Path) -> None:
    for spec in ("{0..999999999999}.tar", "{5..4}.tar"):
        with pytest.raises(DiffalignError, match="1 to 100000 files"):
            open_photos(f"{shards}/{spec}", SIZE)
    with pytest.raises(DiffalignError, match=r"shard-012\.tar"):
        open_photos(f"{shards}/shard-{{011..012}}.tar", SIZE)
    (shards / "0.png").write_bytes(png(picture(0)))
    with pytest.raises(DiffalignError, match="both tars and images"):
        open_photos(str(shards), SIZE)


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    files = fsspec.filesystem("memory")
    files.store.clear()
    files.pseudo_dirs[:] = [""]
    yield files
    files.store.clear()


def upload(memory: fsspec.AbstractFileSystem, folder: Path, there: str) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            memory.pipe_file(f"{there}/{file.relative_to(folder).as_posix()}", file.read_bytes())


def described(photos: object) -> list[tuple[str, ...]]:
    return [
        (one.source, one.id, one.prompt, one.license) if isinstance(one, Photo) else (one.name, one.reason)
        for one in photos  # type: ignore[attr-defined]
    ]


def test_a_folder_behind_a_url_is_the_folder(memory: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    hostile_folder(tmp_path / "album")
    upload(memory, tmp_path / "album", "/deep/album")
    here, there = photo_folder(tmp_path / "album", SIZE), open_photos("memory://deep/album/", SIZE)
    expected = [("album/link.png", "missing") if row[0] == "album/link.png" else row for row in described(here)]
    assert described(there) == expected and len(expected) > 20
    assert pickle.loads(pickle.dumps(there[5:7]))[1] == there[6]


def test_files_behind_a_url_are_the_files(memory: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    root = tmp_path / "data"
    album(root / "images", 3)
    write_parquet(root / "x.parquet", range(5))
    write_tar(root / "s-0.tar", sample(1) + sample(2))
    write_tar(root / "s-1.tar", sample(3))
    (root / "pairs.csv").write_text("uid,real_image_path,prompt\na,images/1.png,one\nb,../x.png,out\n")
    row = {"path1": "images/2.png", "model1": "real_images", "path2": "no.png", "model2": "real_images", "prompt": "p"}
    (root / "hpd.json").write_text(json.dumps([row]))
    upload(memory, root, "/data")
    for name in ("images", "x.parquet", "*.parquet", "s-*.tar", "s-{0..1}.tar", "pairs.csv", "hpd.json"):
        here, there = open_photos(f"{root}/{name}", SIZE), open_photos(f"memory://data/{name}", SIZE)
        assert described(there) == described(here) and here.identity == there.identity, name
        assert open_photos(f"file://{root}/{name}", SIZE).identity == here.identity
    memory.pipe_file("/top.tar", (root / "s-1.tar").read_bytes())
    assert prompts(open_photos("memory://top.tar", SIZE)) == ["photo 3"]


@pytest.mark.parametrize(
    "name", ["../x", "a/../../x", "/x", "%2e%2e/x", "http://x/y", "a\\..\\..\\x", "file::memory://x"]
)
def test_names_that_lead_out_of_a_url_are_refused(name: str) -> None:
    with pytest.raises(Unreadable, match="outside"):
        RemoteStore("https://host/data").check_inside(name)
    RemoteStore("https://host/data").check_inside("a..b/c d/..e.png")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("memory://nothing", "holds no photographs|there is no"),
        ("memory://nothing/x.tar", "missing: there is no memory://nothing/x.tar"),
        ("memory://nothing/*.tar", "there is no|named like"),
        ("nonsense://x/y", "Protocol not known"),
    ],
)
def test_what_is_not_behind_a_url_is_told(memory: fsspec.AbstractFileSystem, spec: str, message: str) -> None:
    with pytest.raises(DiffalignError, match=message):
        open_photos(spec, SIZE)


def test_a_driver_that_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(DiffalignError, match=r"reading s3:// needs .* pip install s3fs"):
        open_photos("s3://bucket/x.parquet", SIZE)


def test_a_way_that_fails_ends_the_run_and_a_file_that_lacks_does_not(
    memory: fsspec.AbstractFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(memory, album(tmp_path / "a", 2), "/a")
    photos = open_photos("memory://a", SIZE)
    memory.rm("/a/0.png")
    assert photos[0] == Rejected("a/0.png", "missing", "there is no memory://a/0.png")

    def refuse(*args: object, **options: object) -> None:
        raise RuntimeError("the server is tired")

    monkeypatch.setattr(type(memory), "open", refuse)
    with pytest.raises(DiffalignError, match=r"cannot read memory://a/1\.txt: RuntimeError: the server is tired"):
        photos[1]


def test_loops_of_links_and_odd_files_are_passed(tmp_path: Path) -> None:
    folder = album(tmp_path / "a", 2)
    (folder / "loop").symlink_to(folder)
    (folder / "self.png").symlink_to("self.png")
    (folder / ".git").mkdir()
    (folder / ".git" / "x.png").touch()
    files, unreadable = LocalStore(str(folder)).files()
    assert sorted(files) == ["0.png", "0.txt", "1.png", "1.txt", "self.png"] and not unreadable
    assert reasons(photo_folder(folder, SIZE)) == [None, None, "unreadable"]


def test_folders_deeper_than_names_may_be_long_are_listed_or_told(tmp_path: Path) -> None:
    """300 folders of 20 letters are 6,300 bytes, more than a path may have."""
    before = os.open(".", os.O_RDONLY)
    try:
        os.chdir(tmp_path)
        for _ in range(300):
            os.mkdir("d" * 20)  # noqa: PTH102 (relative to where we are)
            os.chdir("d" * 20)
    finally:
        os.fchdir(before)
        os.close(before)
    (reason,) = open_store(str(tmp_path)).files()[1].values()
    assert "too long" in reason
