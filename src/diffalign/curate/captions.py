"""Captions as they come, from files, tables and annotations, to plain text on one line."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from html.parser import HTMLParser
from typing import Any

from diffalign.core import DiffalignError

__all__ = [
    "CAPTION_NAMES",
    "MAX_LENGTH",
    "BadCaption",
    "CaptionRow",
    "caption_row",
    "clean_caption",
    "decode_caption",
    "decode_caption_json",
]

MAX_LENGTH = 2**13  # bytes of a caption's file, characters of any caption; text encoders read about 77 tokens
CAPTION_NAMES = ("text", "caption", "prompt")  # of the column or key, the first that says something
_HIDDEN = ("script", "style")  # elements whose text nobody reads
_INLINE = ("a", "b", "em", "font", "i", "mark", "s", "small", "span", "strong", "sub", "sup", "u")  # part no words


class BadCaption(DiffalignError):  # noqa: N818 (a reason to leave a photograph out)
    """A caption that cannot be used."""


@dataclass(frozen=True, slots=True)
class CaptionRow:
    """What a row of a table or an object of JSON says of an image."""

    caption: str = ""
    license: str = ""


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


def decode_caption(data: bytes) -> str:
    """The text of a caption's file.

    Args:
        data: its first bytes, at least ``MAX_LENGTH + 1`` of a long one.

    Raises:
        BadCaption: it is too long or not UTF-8.
    """
    if len(data) > MAX_LENGTH:
        raise BadCaption(f"its text file is longer than {MAX_LENGTH} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadCaption(f"its text file is not UTF-8 (byte {error.start})") from error


def caption_row(row: Mapping[str, Any]) -> CaptionRow:
    """The caption and the licence among a row's values; empty where there is none.

    Example:
        >>> caption_row({"prompt": "a cat", "text": " ", "license": "CC0-1.0"})
        CaptionRow(caption='a cat', license='CC0-1.0')
    """
    texts = (row.get(key) for key in CAPTION_NAMES)
    license = row.get("license")
    return CaptionRow(
        next((text for text in texts if isinstance(text, str) and text.strip()), ""),
        clean_caption(license[:MAX_LENGTH]) if isinstance(license, str) else "",
    )


def decode_caption_json(data: bytes) -> CaptionRow:
    """The same of a JSON object's bytes.

    Raises:
        BadCaption: it is no JSON object.
    """
    try:
        row = json.loads(data)
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, or endless nesting
        raise BadCaption(f"its JSON cannot be read: {error}") from error
    if not isinstance(row, dict):
        raise BadCaption(f"its JSON is no object {{...}} but {type(row).__name__}")
    return caption_row(row)
