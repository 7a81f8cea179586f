"""Photographs of a data set on the hub, or in a folder that `datasets` reads."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffalign.core import DiffalignError, content_hash
from diffalign.curate.sources.columns import Columns, find_columns
from diffalign.curate.sources.photo import MAX_BYTES, Photo, PhotoRecipe, Photos, Rejected
from diffalign.curate.sources.store import LocalStore, Unreadable

__all__ = ["HUB", "hub_photos"]

HUB = "hub:"
_SPEC = re.compile(r"hub:(?P<name>[^@:]+)(@(?P<revision>[^:]+))?(:(?P<split>.+))?")


@dataclass(frozen=True)
class _Reader:
    rows: Any  # a datasets.Dataset, which travels as the names of its Arrow files
    name: str
    columns: Columns
    roots: tuple[str, ...]  # folders from which the library may have taken paths of images
    recipe: PhotoRecipe

    def read(self, key: int) -> Photo | Rejected:
        source, row = f"{self.name}:{key}", self.rows[key]
        image = row[self.columns.image]
        data = image
        if isinstance(image, Mapping):
            data, path = image.get("bytes"), image.get("path")
            if data is None and path:
                try:
                    data = _read_inside(self.roots, path)
                except Unreadable as error:
                    return Rejected(source, error.reason, error.detail)
        return self.columns.photo(row, data, source, self.recipe)


def hub_photos(spec: str, recipe: PhotoRecipe) -> Photos:
    """The rows of a data set, through `datasets.load_dataset`.

    Columns are found as in Parquet files.

    Args:
        spec: ``hub:user/dataset[@revision][:split]``; the split is "train" unless said, and may be a part of one as in
            ``train[:1000]``. A folder may stand in the place of ``user/dataset``.
        recipe: how rows become photographs.

    Raises:
        DiffalignError: there is no such data set, revision or split, the hub cannot be reached, or columns lack.
    """
    match = _SPEC.fullmatch(spec)
    if match is None:
        raise DiffalignError(f"expected hub:user/dataset[@revision][:split], got {spec!r}")
    name, revision, split = match["name"], match["revision"], match["split"] or "train"
    rows = _load(name, revision, split)
    columns = find_columns(rows.features.arrow_schema, spec, need_captions=recipe.need_captions)
    rows = _undecoded(rows.select_columns(columns.all), columns.image)
    if not len(rows):
        raise DiffalignError(f"{spec} has no rows")
    sizes = sorted((one or {}).get("num_bytes") or 0 for one in (rows.info.download_checksums or {}).values())
    version = [str(rows.info.version), sizes, rows.info.dataset_size]
    identity = content_hash("hub", spec, recipe.size, recipe.need_captions, columns.all, len(rows), version)
    return Photos(range(len(rows)), _Reader(rows, name, columns, _roots(name), recipe), identity)


def _load(name: str, revision: str | None, split: str) -> Any:
    import datasets
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return datasets.load_dataset(name, split=split, revision=revision)
    except (ConnectionError, HfHubHTTPError) as error:
        raise DiffalignError(
            f"{name} is not in the local cache, and the hub cannot be reached (or HF_HUB_OFFLINE is set): load it once "
            f"while online ({_first_line(error)})"
        ) from error
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DiffalignError(
            f"cannot load the data set {name}, split {split!r}: {_first_line(error)}; expected "
            "hub:user/dataset[@revision][:split]"
        ) from error


def _undecoded(rows: Any, image: str) -> Any:
    """Rows whose images stay bytes: they are decoded here, under limits."""
    from datasets import Image

    return rows.cast_column(image, Image(decode=False)) if isinstance(rows.features[image], Image) else rows


def _roots(name: str) -> tuple[str, ...]:
    from datasets.config import HF_DATASETS_CACHE
    from huggingface_hub.constants import HF_HUB_CACHE

    own = [name] if Path(name).is_dir() else []
    return tuple(str(Path(one).resolve()) for one in (*own, HF_HUB_CACHE, HF_DATASETS_CACHE))


def _read_inside(roots: tuple[str, ...], path: str) -> bytes:
    """The file of a row that has a path in the place of bytes, as folders of images have; nothing else on the disk."""
    for root in roots:
        try:
            place = Path(path).resolve()
        except (OSError, RuntimeError, ValueError) as error:
            raise Unreadable("unreadable", f"{path!r}: {error}") from error
        if place.is_relative_to(root):
            return LocalStore(root).read(str(place.relative_to(root)), 0, MAX_BYTES + 1)
    raise Unreadable("outside", f"{path!r} leads out of the data set and of the hub's cache")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
