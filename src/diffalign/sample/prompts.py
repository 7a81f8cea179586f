"""Lists of prompts: text, JSON lines, tables, and named lists."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from diffalign.core import DiffalignError, content_hash, read_jsonl, read_text, unknown, warn
from diffalign.data import captions

__all__ = ["PROMPT_LISTS", "PromptRow", "prompt_id", "read_prompts"]

PROMPT_LISTS: dict[str, Callable[[], list[str]]] = {"photographs": captions}

_Found = tuple[str, object, object]  # where it stands, the id or None, the prompt


@dataclass(frozen=True)
class PromptRow:
    """One prompt of a list.

    Attributes:
        id: unique in its list; the initial noise hangs on it.
        prompt: the text, without white space around it.
    """

    id: str
    prompt: str


def prompt_id(prompt: str) -> str:
    """A short id of a prompt's text, so that the same prompt has the same noise in every list.

    Example:
        >>> prompt_id("a photo of grass")
        'f26046a52df8'
    """
    return content_hash(prompt)[:12]


def read_prompts(source: str | Path) -> list[PromptRow]:
    """Read a list of prompts; a prompt that is repeated keeps its first row, and a warning says how many went.

    Args:
        source: the name of a list in ``PROMPT_LISTS`` ("photographs": the captions of the embedded photographs), or a
            UTF-8 file. ``.txt``: one prompt a line. ``.jsonl``: an object a line with "prompt" and perhaps "id".
            ``.tsv`` and ``.csv``: a heading with a column "prompt", in any case, and perhaps "id", such as HPDv2's
            style and prompt or PartiPrompts' table; quotes are part of the text in ``.tsv`` and enclose it in ``.csv``.

    Returns:
        The rows in the list's order; an id that is not given is ``prompt_id``.

    Raises:
        DiffalignError: no such list, or a line without a prompt, or one id for two prompts (with the line).

    Example:
        >>> read_prompts("photographs")[0].prompt
        'a photo of an astronaut'
    """
    if str(source) in PROMPT_LISTS:
        return [PromptRow(prompt_id(prompt), prompt) for prompt in PROMPT_LISTS[str(source)]()]
    path = Path(source)
    if path.suffix not in _READERS:
        known = [*PROMPT_LISTS, *(f"a file ending in {suffix}" for suffix in _READERS)]
        raise unknown("list of prompts", str(source), known)
    rows: dict[str, PromptRow] = {}
    ids: dict[str, str] = {}
    repeated = 0
    for where, given, text in _READERS[path.suffix](path):
        row = _row(where, given, text)
        if row.prompt in rows:
            repeated += 1
        elif row.id in ids:
            raise DiffalignError(f"{where}: the id {row.id!r} is also that of the prompt {ids[row.id]!r}")
        else:
            rows[row.prompt], ids[row.id] = row, row.prompt
    if not rows:
        raise DiffalignError(f"{path} holds no prompts")
    if repeated:
        warn(f"{path}: left out {repeated} of {len(rows) + repeated} rows, whose prompts were there before")
    return list(rows.values())


def _row(where: str, given: object, text: object) -> PromptRow:
    if not isinstance(text, str) or not text.strip():
        raise DiffalignError(f"{where}: expected a prompt, got {text!r}")
    prompt = text.strip()
    if given is None:
        given = prompt_id(prompt)
    if isinstance(given, bool) or not isinstance(given, (str, int)) or given == "":
        raise DiffalignError(f"{where}: expected an id that is text or a whole number, got {given!r}")
    for value in (prompt, str(given)):
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise DiffalignError(f"{where}: {value!r} is not valid Unicode text")
    return PromptRow(str(given), prompt)


def _text(path: Path) -> Iterator[_Found]:
    for number, line in enumerate(_read(path).split("\n"), start=1):
        if line.strip():
            yield f"{path}, line {number}", None, line


def _json_lines(path: Path) -> Iterator[_Found]:
    for number, row in enumerate(read_jsonl(path), start=1):
        yield f"{path}, row {number}", row.get("id"), row.get("prompt")


def _table(path: Path) -> Iterator[_Found]:
    plain = path.suffix == ".tsv"
    text = io.StringIO(_read(path), newline="")
    cells = csv.reader(text, delimiter="\t", quoting=csv.QUOTE_NONE) if plain else csv.reader(text, strict=True)
    try:
        heading = [name.strip().lower() for name in next(cells, [])]
        if heading.count("prompt") != 1:
            raise DiffalignError(f"{path}, line 1: expected a heading with one column 'prompt', got {heading}")
        for row in cells:
            where = f"{path}, line {cells.line_num}"
            if row and len(row) != len(heading):
                hint = "" if plain else "; put a prompt with commas into quotes"
                raise DiffalignError(f"{where}: expected {len(heading)} cells as in the heading, got {len(row)}{hint}")
            if row:
                named = dict(zip(heading, row, strict=True))
                yield where, named.get("id"), named["prompt"]
    except csv.Error as error:
        raise DiffalignError(f"{path}, line {cells.line_num}: {error}") from error


def _read(path: Path) -> str:
    return read_text(path).removeprefix("\ufeff")  # the mark some editors put first


_READERS = {".txt": _text, ".jsonl": _json_lines, ".tsv": _table, ".csv": _table}
