"""Marks that somebody made in the gallery, as a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffalign.core import DiffalignError, read_json

__all__ = ["Marks", "read_marks"]


@dataclass(frozen=True)
class Marks:
    """Ids of pairs that somebody looked at.

    Attributes:
        accept: kept whatever their scores.
        reject: left out.
    """

    accept: tuple[str, ...] = ()
    reject: tuple[str, ...] = ()


def read_marks(path: str | Path) -> Marks:
    """The marks of a file ``{"accept": [ids], "reject": [ids]}``, as the gallery exports it.

    Raises:
        DiffalignError: the file has another form, or an id is both accepted and rejected.
    """
    found = read_json(path)
    if not isinstance(found, dict) or not _are_ids(found.get("accept", [])) or not _are_ids(found.get("reject", [])):
        raise DiffalignError(f'{path}: expected {{"accept": [ids], "reject": [ids]}}, as the gallery exports it')
    accept, reject = (tuple(dict.fromkeys(found.get(name, []))) for name in ("accept", "reject"))
    if both := set(accept) & set(reject):
        raise DiffalignError(f"{path}: {len(both)} pairs are both accepted and rejected, such as {min(both)!r}")
    return Marks(accept, reject)


def _are_ids(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)
