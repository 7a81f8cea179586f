"""Photographs in: hostile folders, captions, crops that depend on their number alone."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from curate_helpers import HOSTILE, SIZE, hostile_folder, picture, png

from diffalign.core import DiffalignError
from diffalign.curate import Photo, Photos, Rejected, clean_caption, embedded_photographs, photo_folder
from diffalign.data import decode_image, image_sha256, resize_crop


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Photos:
    return photo_folder(hostile_folder(tmp_path_factory.mktemp("sources") / "album"), SIZE)


@pytest.fixture(scope="module")
def by_name(photos: Photos) -> dict[str, Photo | Rejected]:
    named = [(one.name if isinstance(one, Rejected) else one.source, one) for one in photos]
    return {name.removeprefix("album/"): one for name, one in named}


def test_every_file_is_a_photograph_or_says_why_not(by_name: dict[str, Photo | Rejected]) -> None:
    found = {name: one.reason if isinstance(one, Rejected) else None for name, one in by_name.items()}
    assert found == HOSTILE


def photo(by_name: dict[str, Photo | Rejected], name: str) -> Photo:
    one = by_name[name]
    assert isinstance(one, Photo)
    return one


def test_photographs_are_squares_named_by_their_pixels(by_name: dict[str, Photo | Rejected]) -> None:
    found = [one for one in by_name.values() if isinstance(one, Photo)]
    assert all(one.image.size == (SIZE, SIZE) and one.image.mode == "RGB" for one in found)
    assert all(one.id == image_sha256(one.image)[:16] for one in found)
    same = [name for name, one in by_name.items() if isinstance(one, Photo) and one.id == found[-2].id]
    assert len(same) == 1 and photo(by_name, "tabby_cat/1.png").id == photo(by_name, "tabby_cat/again.png").id


def test_odd_pixels_come_out_as_one_sees_them(by_name: dict[str, Photo | Rejected]) -> None:
    def pixels(name: str) -> np.ndarray:
        return np.asarray(photo(by_name, name).image, dtype=int)

    expected = np.asarray(resize_crop(picture(8), SIZE), dtype=int)
    assert np.abs(pixels("cmyk.jpg") - expected).mean() < 12  # JPEG
    deep = pixels("deep.png")[:, :, 0]
    assert deep[0].mean() < 25 and deep[-1].mean() > 230 and abs(deep.mean() - 127.5) < 3
    turned = pixels("turned.jpg")
    assert turned[2, :, 0].min() > 200 and turned[-3, :, 2].min() > 200  # red above blue
    assert pixels("animated.gif")[20, 20].tolist() == [254, 0, 0] or pixels("animated.gif")[20, 20, 0] > 250


def test_captions_come_from_beside_the_image_the_metadata_or_the_folder(by_name: dict[str, Photo | Rejected]) -> None:
    marked = photo(by_name, "markup.png")
    assert marked.prompt == "A cat, 1 & only" and "<b>" in marked.raw_caption
    assert photo(by_name, "tabby_cat/1.png").prompt == "tabby cat"
    cmyk = photo(by_name, "cmyk.jpg")
    assert cmyk.prompt.startswith("a photo, number") and (cmyk.license, cmyk.raw_caption) == ("CC0-1.0", "")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a cat", "a cat"),
        ("  a\r\n\tcat \x00\x07", "a cat"),
        ("a<br>cat", "a cat"),
        ("two<b>fold</b>", "twofold"),
        ("<!-- no -->cat &lt;3", "cat <3"),
        ("1 < 2 and 3 > 2", "1 < 2 and 3 > 2"),
        ("<script>cat", ""),
        ("a <![cat[ <b>here</b>", "a [cat[ here"),
        ("caf\u00e9 \U0001f468\u200d\U0001f680 \ud800", "caf\u00e9 \U0001f468\u200d\U0001f680"),
        ("<style>b{}</style><p>a</p><p>b</p>", "a b"),
    ],
)
def test_captions_become_plain_text(text: str, expected: str) -> None:
    assert clean_caption(text) == expected


def test_the_file_beside_goes_before_the_metadata(tmp_path: Path) -> None:
    (tmp_path / "dogs").mkdir()
    (tmp_path / "dogs" / "1.png").write_bytes(png(picture(1)))
    metadata = tmp_path / "dogs" / "metadata.jsonl"

    def prompt() -> str:
        return photo_folder(tmp_path, SIZE)[0].prompt

    assert prompt() == "dogs"
    metadata.write_text('{"file_name": "1.png", "prompt": "third", "caption": "second", "text": "first"}')
    assert prompt() == "first"
    (tmp_path / "dogs" / "1.txt").write_bytes("\ufeffbeside\n".encode())
    assert prompt() == "beside"


def test_a_photograph_of_just_the_size_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.png").write_bytes(png(picture(1, (SIZE, SIZE))))
    assert image_sha256(photo_folder(tmp_path, SIZE)[0].image) == image_sha256(decode_image(tmp_path / "a" / "1.png"))
    assert photo_folder(tmp_path, SIZE + 1)[0].reason == "too_small"


def test_the_identity_follows_names_sizes_and_captions(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    path = tmp_path / "a" / "1.png"
    path.write_bytes(png(picture(1)))
    before = photo_folder(tmp_path, SIZE).identity
    assert photo_folder(tmp_path, SIZE).identity == before != photo_folder(tmp_path, SIZE - 1).identity
    (tmp_path / "a" / "1.txt").write_text("a caption")
    assert photo_folder(tmp_path, SIZE).identity != before


def test_folders_that_hold_nothing_are_told(tmp_path: Path) -> None:
    with pytest.raises(DiffalignError, match="expected a folder of photographs"):
        photo_folder(tmp_path / "nowhere", SIZE)
    (tmp_path / "caption.txt").write_text("a cat")
    with pytest.raises(DiffalignError, match="holds no photographs"):
        photo_folder(tmp_path, SIZE)


@pytest.mark.parametrize(("line", "message"), [("{", "line 1 is not JSON"), ('{"file": "a.png"}', "as file_name")])
def test_broken_metadata_is_an_error(line: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "metadata.jsonl").write_text(line)
    with pytest.raises(DiffalignError, match=message):
        photo_folder(tmp_path, SIZE)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_folder_without_permission_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0)
    assert photo_folder(tmp_path, SIZE)[0] == Rejected(f"{tmp_path.name}/closed", "unreadable", "Permission denied")


def test_crops_depend_on_their_number_alone() -> None:
    many, few = embedded_photographs("train", 7, SIZE), embedded_photographs("train", 3, SIZE)
    assert [one.id for one in many[:3]] == [one.id for one in few] and many[5].id == many[5].id
    assert len({one.id for one in many}) == 7
    other = embedded_photographs("train", 7, SIZE, seed=1)
    assert other[0].id != many[0].id and other.identity != many.identity == few.identity
    assert many[0].source.startswith("photographs/") and many[0].license and many[0].raw_caption == ""
