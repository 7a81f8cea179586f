"""Photographs to start from: crops of the embedded ones, or any folder, however its files came about."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from diffalign.core import DiffalignError, content_hash, numpy_generator
from diffalign.curate.captions import (
    MAX_LENGTH,
    METADATA,
    MetadataRow,
    clean_caption,
    read_metadata,
    sidecar_caption,
)
from diffalign.data import (
    PHOTOGRAPHS,
    BadImage,
    ImageLimits,
    ResizeRecipe,
    Split,
    decode_image,
    draw_crop,
    image_sha256,
)

__all__ = ["Photo", "Photos", "Rejected", "embedded_photographs", "photo_folder"]

_NO_IMAGES = (".txt", ".jsonl")  # captions and metadata


@dataclass(frozen=True, kw_only=True)
class Photo:
    """A photograph ready to be curated.

    Attributes:
        id: 16 digits of a sha256 over its pixels.
        image: RGB, a square of the size asked for.
        prompt: its caption, plain text on one line.
        source: data set or folder, and the name there.
        license: SPDX id or the source's own words; empty when unknown.
        raw_caption: the caption as it came, where ``prompt`` is another; else empty.
    """

    id: str
    image: Image.Image
    prompt: str
    source: str
    license: str = ""
    raw_caption: str = ""


@dataclass(frozen=True)
class Rejected:
    """What was left out.

    Attributes:
        name: as ``Photo.source``.
        reason: a few words from a small set, for counting.
        detail: what exactly; empty when the reason says it all.
    """

    name: str
    reason: str
    detail: str = ""


class Photos(Sequence[Photo | Rejected]):
    """Photographs in a fixed order, each read when it is asked for, so that any part can be worked on alone.

    Attributes:
        identity: a hash of what decides them; another one means other photographs.
    """

    def __init__(self, keys: Sequence[Any], read: Callable[[Any], Photo | Rejected], identity: str) -> None:
        self._keys, self._read, self.identity = keys, read, identity

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, index: Any) -> Any:
        """The photograph at ``index``, or why there is none; for a slice, those photographs."""
        if isinstance(index, slice):
            return Photos(self._keys[index], self._read, self.identity)
        return self._read(self._keys[index])


def embedded_photographs(split: Split, count: int, size: int, seed: int = 0) -> Photos:
    """Crops of the embedded photographs, each drawn from its own number.

    Args:
        split: of which strips.
        count: how many.
        size: side in pixels.
        seed: another one gives other crops.

    Example:
        >>> embedded_photographs("train", 3, 32)[2].image.size
        (32, 32)
    """

    def read(index: int) -> Photo:
        crop = draw_crop(split, numpy_generator("curate", split, seed, index), size=size)
        one = PHOTOGRAPHS[crop.subject]
        source = f"photographs/{one.name}, {one.attribution}"
        return Photo(id=_id(crop.image), image=crop.image, prompt=crop.caption, source=source, license=one.license)

    return Photos(range(count), read, content_hash("embedded photographs", split, size, seed))


def photo_folder(folder: str | Path, size: int) -> Photos:
    """Every photograph below a folder, in the order of their names.

    The caption is the text of the ``.txt`` file beside the image, else its line in ``metadata.jsonl`` (see
    ``read_metadata``), else the name of its subfolder. Hidden files are passed over, links to folders are not followed,
    and any file that is neither an image nor a caption is rejected with the reason. An image smaller than ``size`` is
    rejected too: enlarged, it would be blurred.

    Args:
        folder: on the disk.
        size: side in pixels; short side to it, then the centre.

    Raises:
        DiffalignError: no such folder, no photographs in it, or metadata that cannot be read.
    """
    root = Path(folder)
    if not root.is_dir():
        raise DiffalignError(f"expected a folder of photographs, found none at {root}")
    files, unreadable = _walk(root)
    metadata = read_metadata(root, files)
    names = sorted({name for name in files if not name.lower().endswith(_NO_IMAGES)} | set(metadata) | set(unreadable))
    if not names:
        raise DiffalignError(f"{root} holds no photographs")
    shown = f"{root.resolve().name}/"

    def read(name: str) -> Photo | Rejected:
        if name in unreadable:
            return Rejected(shown + _printable(name), "unreadable", unreadable[name])
        if name not in files:
            return Rejected(shown + _printable(name), "missing", f"{METADATA} names it; the folder does not hold it")
        return _read_file(root, name, shown + _printable(name), metadata.get(name, MetadataRow("", "")), size)

    identity = content_hash("photo folder", size, files, {name: row.caption for name, row in metadata.items()})
    return Photos(names, read, identity)


def _walk(root: Path) -> tuple[dict[str, int], dict[str, str]]:
    """By name below ``root``: the bytes of each visible file, and why a folder cannot be read."""
    files: dict[str, int] = {}
    errors: list[OSError] = []
    for place, folders, names in os.walk(root, onerror=errors.append):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith("."):
                files[Path(place, name).relative_to(root).as_posix()] = _num_bytes(Path(place, name))
    return files, {Path(error.filename).relative_to(root).as_posix(): str(error.strerror) for error in errors}


def _num_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # a link that leads nowhere, say; decoding will tell
        return 0


def _read_file(root: Path, name: str, shown: str, row: MetadataRow, size: int) -> Photo | Rejected:
    try:
        raw = sidecar_caption(root / name)
    except DiffalignError as error:
        return Rejected(shown, "bad caption", str(error))
    subfolder = _printable(Path(name).parent.name).replace("_", " ")
    raw = next((text for text in (raw, row.caption, subfolder) if clean_caption(text)), "")
    if not raw:
        return Rejected(shown, "no caption")
    if len(raw) > MAX_LENGTH:
        return Rejected(shown, "bad caption", f"it is longer than {MAX_LENGTH} characters")
    try:
        image = ResizeRecipe(size=size)(decode_image(root / name, limits=ImageLimits(min_side=max(2, size))))
    except BadImage as bad:
        return Rejected(shown, bad.reason, str(bad).removeprefix(f"{bad.reason}: "))
    prompt = clean_caption(raw)
    altered = raw if prompt != " ".join(raw.split()) else ""
    return Photo(
        id=_id(image), image=image, prompt=prompt, source=shown, license=row.license, raw_caption=_printable(altered)
    )


def _id(image: Image.Image) -> str:
    return image_sha256(image)[:16]


def _printable(name: str) -> str:
    """A name as valid Unicode: bytes of another encoding become escapes."""
    return name.encode("utf-8", "backslashreplace").decode()
