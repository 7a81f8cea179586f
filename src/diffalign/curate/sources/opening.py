"""From what a person writes to photographs: which reader, on which files."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from diffalign.core import DiffalignError
from diffalign.curate.sources.folder import folder_photos
from diffalign.curate.sources.hub import HUB, hub_photos
from diffalign.curate.sources.parquet import parquet_photos
from diffalign.curate.sources.photo import PhotoRecipe, Photos
from diffalign.curate.sources.store import Store, is_url, open_file, open_store
from diffalign.curate.sources.tables import hpdv3_photos, realalign_photos
from diffalign.curate.sources.webdataset import tar_photos
from diffalign.data.readers import IMAGE_SUFFIXES

__all__ = ["open_photos"]

_MANY: dict[str, Callable[[Store, Sequence[str], PhotoRecipe], Photos]] = {
    ".parquet": parquet_photos,
    ".tar": tar_photos,
}
_ONE: dict[str, Callable[[Store, str, PhotoRecipe], Photos]] = {
    ".json": hpdv3_photos,
    ".jsonl": hpdv3_photos,
    ".csv": realalign_photos,
}
_PACKED = (".gz", ".tgz", ".bz2", ".xz", ".zst", ".zip", ".7z")
_SPLITS = ("train", "validation", "test")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_MAX_FILES = 100_000
_EXPECTED = "a folder, *.parquet, *.tar, HPDv3's *.json or *.jsonl, RealAlign's *.csv, or hub:user/dataset"


def open_photos(spec: str, size: int, *, need_captions: bool = True) -> Photos:
    """Photographs from wherever they lie.

    Args:
        spec: on the disk or as a URL (s3://, gs://, https:// and what else fsspec reads), one of

            - a folder of images with captions (`photo_folder`), of Parquet files, or of tars;
            - ``photos.parquet`` or ``train-*.parquet``, images in a column;
            - ``photos.tar``, ``shards-*.tar`` or ``shards-{000..004}.tar``, as WebDataset writes them;
            - ``annotations.json`` or ``.jsonl`` of HPDv3, from which the real images are taken;
            - ``pairs.csv`` of RealAlign, from which the photographs are taken;

            or ``hub:user/dataset[@revision][:split]``.
        size: side in pixels; short side to it, then the centre. Smaller images are rejected.
        need_captions: whether an image without caption is rejected; else its prompt is empty.

    Returns:
        Photographs in a fixed order; what cannot be used is among them as `Rejected`.

    Raises:
        DiffalignError: nothing of the kind is there, or a driver for the URL lacks (with its name).

    Example:
        >>> open_photos("album.zip", 512)
        Traceback (most recent call last):
        diffalign.core.errors.DiffalignError: album.zip is packed: unpack it, or give a plain tar
    """
    if not spec:  # which a path would take for the folder that we are in
        raise DiffalignError(f"expected the place of photographs, got nothing; known: {_EXPECTED}")
    recipe = PhotoRecipe(size, need_captions)
    if spec.startswith(HUB):
        return hub_photos(spec, recipe)
    if not is_url(spec) and Path(spec).is_dir():
        return _folder(open_store(spec), recipe, spec)
    suffix = PurePosixPath(spec.split("?")[0] if is_url(spec) else spec).suffix.lower()
    if suffix in _PACKED:
        raise DiffalignError(f"{spec} is packed: unpack it, or give a plain tar")
    store, name = open_file(spec)
    if suffix in _MANY:
        return _MANY[suffix](store, _expand(store, name), recipe)
    if suffix in _ONE:
        return _ONE[suffix](store, name, recipe)
    if is_url(spec):
        return _folder(open_store(spec), recipe, spec)
    what = "another file" if Path(spec).exists() else f"none at {spec}"
    raise DiffalignError(f"expected a folder of photographs, found {what}; known: {_EXPECTED}")


def _folder(store: Store, recipe: PhotoRecipe, spec: str) -> Photos:
    """Whatever a folder holds: tars, else images, else Parquet. Tables beside tars only describe them."""
    files, unreadable = store.files()
    if "." in unreadable:
        raise DiffalignError(f"expected a folder of photographs, found none at {spec}: {unreadable['.']}")
    kinds = Counter(PurePosixPath(name).suffix.lower() for name in files)
    images = sum(kinds[suffix] for suffix in IMAGE_SUFFIXES)
    if kinds[".tar"] and images:
        raise DiffalignError(f"{spec} holds both tars and images; give the tars as {spec.rstrip('/')}/*.tar")
    suffix = ".tar" if kinds[".tar"] else ".parquet" if kinds[".parquet"] and not images else ""
    if not suffix:
        return folder_photos(store, files, unreadable, recipe)
    names = sorted(name for name in files if name.lower().endswith(suffix))
    splits = [split for split in _SPLITS if any(PurePosixPath(name).name.startswith(split) for name in names)]
    if len(splits) > 1:
        raise DiffalignError(
            f"{spec} holds several splits ({', '.join(splits)}): give one's files, such as {splits[0]}-*{suffix}"
        )
    return _MANY[suffix](store, names, recipe)


def _expand(store: Store, name: str) -> list[str]:
    """The files that ``*`` or ``{000..004}`` stands for."""
    if found := _RANGE.search(name):
        first, last, width = int(found[1]), int(found[2]), len(found[1])
        if not first <= last < first + _MAX_FILES:
            raise DiffalignError(f"expected {{first..last}} of 1 to {_MAX_FILES} files, got {found[0]}")
        numbers = range(first, last + 1)
        return [file for n in numbers for file in _expand(store, name.replace(found[0], f"{n:0{width}d}", 1))]
    if "*" not in name:
        return [name]
    pattern = re.compile(".*".join(map(re.escape, name.split("*"))), re.DOTALL)
    names = sorted(one for one in store.names() if pattern.fullmatch(one) and not one.startswith("."))
    if not names:
        raise DiffalignError(f"no file in {store.root} is named like {name}")
    return names
