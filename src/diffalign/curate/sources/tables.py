"""Photographs that a table names: HPDv3's annotations and RealAlign's released CSV, with the images in folders."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from diffalign.core import DiffalignError, content_hash
from diffalign.curate.sources.photo import MAX_BYTES, Photo, PhotoRecipe, Photos, Rejected, printable
from diffalign.curate.sources.rows import csv_rows, json_rows
from diffalign.curate.sources.store import Store, Unreadable
from diffalign.data.readers import HPDV3_COLUMNS, REALALIGN_COLUMNS
from diffalign.data.schema import require_columns

__all__ = ["REAL_IMAGES", "hpdv3_photos", "realalign_photos"]

REAL_IMAGES = "real_images"  # the model of HPDv3's photographs


@dataclass(frozen=True, slots=True)
class _Key:
    """A row that names an image."""

    id: str
    path: str
    prompt: str
    trouble: str = ""


@dataclass(frozen=True)
class _Reader:
    store: Store
    recipe: PhotoRecipe

    def read(self, key: _Key) -> Photo | Rejected:
        if key.trouble:
            return Rejected(f"{self.store.name}/{key.id}", "bad row", key.trouble)
        source = f"{self.store.name}/{printable(key.path)}"
        try:
            self.store.check_inside(key.path)
            data = self.store.read(key.path, 0, MAX_BYTES + 1)
        except Unreadable as error:
            return Rejected(source, error.reason, error.detail)
        return self.recipe(data, (key.prompt,), source, id=printable(key.id))


def hpdv3_photos(store: Store, name: str, recipe: PhotoRecipe) -> Photos:
    """The photographs among the images of HPDv3 (MizzenAI/HPDv3): those whose model is ``real_images``.

    An image's id is its file's name without suffix, and of several rows with one id the first counts.

    Args:
        store: the folder of the file, from which image paths start.
        name: of a JSON list, or JSON lines, of {path1, path2, model1, model2, prompt}.
        recipe: how images become photographs.

    Raises:
        DiffalignError: it is not JSON, lacks columns, or names no photographs.

    Source:
        RealAlign, arXiv 2605.19839, curation step 1.
    """
    where = f"{store.root}/{name}"
    models: Counter[str] = Counter()

    def named(rows: Iterable[dict[str, Any]]) -> Iterator[_Key]:
        for index, row in enumerate(rows):
            if not index:
                require_columns(row, (*HPDV3_COLUMNS, "model1", "model2"), where)
            for side in ("1", "2"):
                models[str(row.get(f"model{side}"))[:40]] += 1
                if row.get(f"model{side}") == REAL_IMAGES:
                    yield _row_key("", row.get(f"path{side}"), row.get("prompt"), f"{name}:{index}")

    with store.open(name) as file:
        keys = _first_of_each(named(json_rows(file, where)))
    if not keys:
        there = ", ".join(sorted(models)[:20]) or "none"
        raise DiffalignError(f"{where} names no image whose model is {REAL_IMAGES!r}; models there: {there}")
    return _photos("hpdv3", store, keys, recipe)


def realalign_photos(store: Store, name: str, recipe: PhotoRecipe) -> Photos:
    """The photographs of RealAlign's released CSV (Xixixixihahahaha/RealAlign-Dataset), without their losers.

    Both of its column namings are read: ``real_image_path`` and ``win_image_path``, with ``prompt`` or ``caption``. A
    ``uid`` column gives the ids, else file names without suffix do; of several rows with one id the first counts.

    Args:
        store: the folder of the file, from which image paths start.
        name: of the file.
        recipe: how images become photographs.

    Raises:
        DiffalignError: it is not CSV in UTF-8, lacks columns, or names no photographs.
    """
    where = f"{store.root}/{name}"
    with store.open(name) as file:
        columns, rows = csv_rows(file, where)
        images = [column for column in REALALIGN_COLUMNS["chosen"] if column in columns]
        require_columns(columns, images or REALALIGN_COLUMNS["chosen"][:1], where)
        prompts = [column for column in REALALIGN_COLUMNS["prompt"] if column in columns]
        if recipe.need_captions:
            require_columns(columns, prompts or REALALIGN_COLUMNS["prompt"][:1], where)
        keys = _first_of_each(
            _row_key(row.get("uid", ""), row[images[0]], "".join(row[one] for one in prompts[:1]), f"{name}:{index}")
            for index, row in enumerate(rows)
        )
    if not keys:
        raise DiffalignError(f"{where} holds no rows")
    return _photos("realalign", store, keys, recipe)


def _photos(kind: str, store: Store, keys: tuple[_Key, ...], recipe: PhotoRecipe) -> Photos:
    parts = [[key.id, key.path, key.prompt] for key in keys]
    identity = content_hash(kind, recipe.size, recipe.need_captions, parts)
    return Photos(keys, _Reader(store, recipe), identity)


def _row_key(id: str, path: Any, prompt: Any, where: str) -> _Key:
    if not isinstance(path, str) or not path:
        return _Key(where, "", "", trouble=f"expected the path of an image, got {path!r}")
    return _Key(id or PurePosixPath(path).stem, path, prompt if isinstance(prompt, str) else "")


def _first_of_each(keys: Iterable[_Key]) -> tuple[_Key, ...]:
    first: dict[str, _Key] = {}
    for key in keys:
        first.setdefault(key.id, key)
    return tuple(first.values())
