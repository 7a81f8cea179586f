"""Rows of text files, read from streams: JSON lists, JSON lines and CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

from diffalign.core import DiffalignError

__all__ = ["csv_rows", "json_rows", "jsonl_rows"]

Row = dict[str, Any]


def jsonl_rows(lines: Iterable[bytes], where: str, first: int = 1) -> Iterator[Row]:
    """The objects of JSON lines; empty lines are skipped.

    Args:
        lines: of UTF-8.
        where: the file, for messages.
        first: number of the first line.

    Raises:
        DiffalignError: a line is not a JSON object.
    """
    for number, line in enumerate(lines, start=first):
        if not line.strip():
            continue
        try:
            row = json.loads(line.removeprefix(b"\xef\xbb\xbf"))
        except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, or endless nesting
            raise DiffalignError(f"{where}, line {number} is not JSON: {error}") from error
        yield _object(row, f"{where}, line {number}")


def json_rows(file: BinaryIO, where: str) -> Iterator[Row]:
    """The objects of a JSON list, which is read whole, or of JSON lines, one at a time.

    Raises:
        DiffalignError: it is neither.
    """
    for number, line in enumerate(file, start=1):
        text = line.removeprefix(b"\xef\xbb\xbf").strip()
        if text.startswith(b"["):
            yield from _list_rows(text + file.read(), where)
        elif text:
            yield from jsonl_rows([line], where, first=number)
            yield from jsonl_rows(file, where, first=number + 1)
        else:
            continue
        return


def csv_rows(file: BinaryIO, where: str) -> tuple[list[str], Iterator[dict[str, str]]]:
    """The columns of a CSV file, and its rows by column; a cell that lacks is empty.

    Raises:
        DiffalignError: it is not CSV in UTF-8.
    """

    def rows() -> Iterator[dict[str, str]]:
        try:
            for row in reader:
                yield {column: row.get(column) or "" for column in columns}
        except (UnicodeDecodeError, csv.Error) as error:
            raise DiffalignError(f"cannot read {where}: {error}; expected CSV in UTF-8") from error

    reader = csv.DictReader(io.TextIOWrapper(file, encoding="utf-8-sig", newline=""))
    try:
        columns = list(reader.fieldnames or ())
    except (UnicodeDecodeError, csv.Error) as error:
        raise DiffalignError(f"cannot read {where}: {error}; expected CSV in UTF-8") from error
    return columns, rows()


def _list_rows(text: bytes, where: str) -> Iterator[Row]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DiffalignError(f"{where} is not JSON: {error}") from error
    for index, value in enumerate(values):
        yield _object(value, f"{where}, entry {index}")


def _object(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        raise DiffalignError(f"{where}: expected an object {{...}}, got {type(value).__name__}")
    return value
