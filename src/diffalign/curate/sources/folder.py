"""Any folder of images, however its files came about."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from diffalign.core import DiffalignError, content_hash
from diffalign.curate.captions import MAX_LENGTH, BadCaption, CaptionRow, caption_row, decode_caption
from diffalign.curate.sources.photo import MAX_BYTES, Photo, PhotoRecipe, Photos, Rejected, printable
from diffalign.curate.sources.rows import csv_rows, jsonl_rows
from diffalign.curate.sources.store import Store, Unreadable, open_store

__all__ = ["folder_photos", "photo_folder"]

METADATA = ("metadata.csv", "metadata.jsonl")  # of an image in both, the latter counts
_NO_IMAGES = (".txt", ".jsonl", ".json", ".csv")  # captions and metadata
_NO_ROW = CaptionRow()


@dataclass(frozen=True, slots=True)
class _Key:
    """A file and all that is known of it before it is read: the caption's file, its row, or what is wrong."""

    name: str
    beside: str = ""
    row: CaptionRow = _NO_ROW
    trouble: tuple[str, str] | None = None


@dataclass(frozen=True)
class _Reader:
    store: Store
    recipe: PhotoRecipe
    shown: str

    def read(self, key: _Key) -> Photo | Rejected:
        source = self.shown + printable(key.name)
        if key.trouble:
            return Rejected(source, *key.trouble)
        try:
            beside = decode_caption(self.store.read(key.beside, 0, MAX_LENGTH + 1)) if key.beside else ""
        except BadCaption as error:
            return Rejected(source, "bad caption", str(error))
        except Unreadable as error:
            return Rejected(source, "bad caption", f"its text file cannot be read: {error.detail}")
        subfolder = printable(posixpath.basename(posixpath.dirname(key.name))).replace("_", " ")
        try:
            data = self.store.read(key.name, 0, MAX_BYTES + 1)
        except Unreadable as error:
            return Rejected(source, error.reason, error.detail)
        return self.recipe(data, (beside, key.row.caption, subfolder), source, license=key.row.license)


def photo_folder(folder: str | Path, size: int, *, need_captions: bool = True) -> Photos:
    """Every photograph below a folder, in the order of their names.

    The caption is the text of the ``.txt`` file beside the image, else its row in a ``metadata.jsonl`` or
    ``metadata.csv``, else the name of its subfolder. Rows give ``file_name``, which starts at the metadata file's own
    folder, ``text`` (or ``caption``, ``prompt``) and perhaps ``license``. Hidden files are passed over, links to
    folders are not followed, and any file that is neither an image nor text is rejected with the reason. An image
    smaller than ``size`` is rejected too: enlarged, it would be blurred.

    Args:
        folder: on the disk, or a URL that fsspec reads.
        size: side in pixels; short side to it, then the centre.
        need_captions: whether an image without caption is rejected; else its prompt is empty.

    Raises:
        DiffalignError: no such folder, no photographs in it, or metadata that cannot be read.
    """
    store = open_store(str(folder))
    files, unreadable = store.files()
    if "." in unreadable:
        raise DiffalignError(f"expected a folder of photographs, found none at {folder}: {unreadable['.']}")
    return folder_photos(store, files, unreadable, PhotoRecipe(size, need_captions))


def folder_photos(store: Store, files: Mapping[str, int], unreadable: Mapping[str, str], recipe: PhotoRecipe) -> Photos:
    """The same, of a store whose files are known.

    Args:
        store: what holds them.
        files: their bytes by name.
        unreadable: why a folder could not be read, by name.
        recipe: how they become photographs.
    """
    rows = _read_metadata(store, files)
    images = {name for name in files if not name.lower().endswith(_NO_IMAGES)}
    keys = tuple(_key(name, files, unreadable, rows) for name in sorted(images | set(rows) | set(unreadable)))
    if not keys:
        raise DiffalignError(f"{store.root} holds no photographs")
    captions = {name: [row.caption, row.license] for name, row in rows.items()}
    identity = content_hash("photo folder", recipe.size, recipe.need_captions, files, captions)
    return Photos(keys, _Reader(store, recipe, f"{store.name}/"), identity)


def _key(name: str, files: Mapping[str, int], unreadable: Mapping[str, str], rows: Mapping[str, CaptionRow]) -> _Key:
    if name in unreadable:
        return _Key(name, trouble=("unreadable", unreadable[name]))
    if name not in files:
        if name.startswith(("/", "../")) or name == "..":
            return _Key(name, trouble=("outside", "metadata names it; names start in the metadata's folder"))
        return _Key(name, trouble=("missing", "metadata names it; the folder does not hold it"))
    beside = f"{posixpath.splitext(name)[0]}.txt"
    return _Key(name, beside if beside in files else "", rows.get(name, _NO_ROW))


def _read_metadata(store: Store, files: Iterable[str]) -> dict[str, CaptionRow]:
    """By image, what the metadata files say."""
    rows: dict[str, CaptionRow] = {}
    named = [name for name in files if posixpath.basename(name) in METADATA]
    for name in sorted(named, key=lambda one: (posixpath.dirname(one), one)):
        where = f"{store.root}/{name}"
        with store.open(name) as file:
            found = csv_rows(file, where)[1] if name.endswith(".csv") else jsonl_rows(file, where)
            for number, row in enumerate(found, start=1):
                image = row.get("file_name")
                if not isinstance(image, str) or not image:
                    raise DiffalignError(f"{where}, entry {number}: expected the image's name as file_name")
                rows[posixpath.normpath(posixpath.join(posixpath.dirname(name), image))] = caption_row(row)
    return rows
