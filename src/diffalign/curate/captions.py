"""Captions of a folder's photographs: a text file beside the image, a line of metadata.jsonl, or the subfolder."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

from diffalign.core import DiffalignError, read_jsonl

__all__ = ["MAX_LENGTH", "METADATA", "MetadataRow", "clean_caption", "read_metadata", "sidecar_caption"]

METADATA = "metadata.jsonl"
MAX_LENGTH = 2**13  # bytes of a caption's file, characters of any caption; text encoders read about 77 tokens
_HIDDEN = ("script", "style")  # elements whose text nobody reads
_INLINE = ("a", "b", "em", "font", "i", "mark", "s", "small", "span", "strong", "sub", "sup", "u")  # part no words


@dataclass(frozen=True)
class MetadataRow:
    """What a line of metadata.jsonl says of an image."""

    caption: str
    license: str


class _Text(HTMLParser):
    """Collects the text that a page would show."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.pieces: list[str] = []
        self.hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.hidden += tag in _HIDDEN
        self._part_words(tag)

    def handle_endtag(self, tag: str) -> None:
        self.hidden -= tag in _HIDDEN and self.hidden > 0
        self._part_words(tag)

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.pieces.append(data)

    def _part_words(self, tag: str) -> None:
        if tag not in _INLINE:
            self.pieces.append(" ")


def clean_caption(text: str) -> str:
    """Plain text on one line: tags, scripts and comments gone, entities resolved, control characters gone.

    Example:
        >>> clean_caption("<p>A <b>cat</b>,\\n 1 &amp; only</p><script>alert(1)</script>")
        'A cat, 1 & only'
        >>> clean_caption("I <3 cats, 1 < 2")
        'I <3 cats, 1 < 2'
    """
    parser = _Text()
    try:
        parser.feed(text)
        parser.close()
    except AssertionError:  # how Python's parser answers a broken "<!["
        return clean_caption(text.replace("<!", " "))
    shown = "".join(parser.pieces)
    kept = (one for one in shown if one.isspace() or unicodedata.category(one) not in ("Cc", "Cs"))
    return " ".join("".join(kept).split())


def sidecar_caption(image: Path) -> str:
    """The text of the ``.txt`` file beside an image; empty when there is none.

    Raises:
        DiffalignError: it is too long, cannot be read or is not UTF-8.
    """
    file = image.with_suffix(".txt")
    try:
        if not file.is_file():
            return ""
        with file.open("rb") as opened:
            data = opened.read(MAX_LENGTH + 1)
        if len(data) > MAX_LENGTH:
            raise DiffalignError(f"its text file is longer than {MAX_LENGTH} bytes")
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DiffalignError(f"its text file is not UTF-8 (byte {error.start})") from error
    except OSError as error:
        raise DiffalignError(f"its text file cannot be read: {error.strerror}") from error


def read_metadata(root: Path, files: Iterable[str]) -> dict[str, MetadataRow]:
    """Captions by image, from the files named ``metadata.jsonl`` among a folder's files.

    Lines look like ``{"file_name": "cats/1.jpg", "text": "a cat"}``, with ``caption`` or ``prompt`` as other names of
    the text and an optional ``license``; file names start at the metadata file's own folder.

    Args:
        root: the folder.
        files: names below it.

    Raises:
        DiffalignError: a line is not a JSON object or names no file.
    """
    rows = {}
    for file in files:
        if os.path.basename(file) != METADATA:  # noqa: PTH119 (a name, not a place)
            continue
        for number, row in enumerate(read_jsonl(root / file), start=1):
            name = row.get("file_name")
            if not isinstance(name, str) or not name:
                raise DiffalignError(f"{root / file}, entry {number}: expected the image's name as file_name")
            place = os.path.normpath(os.path.join(os.path.dirname(file), name))  # noqa: PTH118, PTH120 (as text alone)
            texts = [row.get(key) for key in ("text", "caption", "prompt")]
            caption = next((text for text in texts if isinstance(text, str) and text.strip()), "")
            license = row.get("license")
            rows[place] = MetadataRow(caption, clean_caption(license) if isinstance(license, str) else "")
    return rows
