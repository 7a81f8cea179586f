"""Readers of published preference data: each a lazy generator of pairs, all through safe decoding.

What one row does wrong is a `BadRow`, given to ``on_bad`` (raised when there is none) so that one broken image does not
end a long import; what the whole data set does wrong, such as a missing column, is an error at once. A file that a row
names must lie inside the reader's root folder.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from diffalign.core import DiffalignError, Registry, read_json, read_jsonl, read_text
from diffalign.data.files import parquet_files
from diffalign.data.images import BadImage, ImageLimits, decode_image, image_sha256
from diffalign.data.schema import is_unicode, require_columns
from diffalign.types import Pair, Provenance

__all__ = [
    "HPDV3_COLUMNS",
    "IMAGE_SUFFIXES",
    "READERS",
    "REALALIGN_COLUMNS",
    "BadRow",
    "OnBad",
    "read_folders",
    "read_hpdv3",
    "read_pickapic",
    "read_realalign",
]

READERS: Registry[Callable[..., Iterator[Pair]]] = Registry("reader")

IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".avif", ".gif", ".tif", ".tiff", ".bmp", ".jp2", ".ppm"))
"""How the names of image files end that `decode_image` reads."""
_PICKAPIC_COLUMNS = ("jpg_0", "jpg_1", "caption", "label_0", "label_1", "has_label", "image_0_uid", "image_1_uid")
_PICKAPIC_OPTIONAL = ("model_0", "model_1", "ranking_id")
HPDV3_COLUMNS = ("path1", "path2", "prompt")
_HPDV3_OPTIONAL = ("model1", "model2", "confidence", "choice_dist")
REALALIGN_COLUMNS = {
    "chosen": ("real_image_path", "win_image_path"),
    "rejected": ("fake_image_path", "lose_image_path"),
    "prompt": ("prompt", "caption"),
}


class BadRow(DiffalignError):  # noqa: N818 (a report to on_bad as much as an exception)
    """A row that a reader leaves out.

    Attributes:
        index: the row's number in its source, from 0.
        reason: why, in words.
    """

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(f"row {index}: {reason}")
        self.index = index
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return BadRow, (self.index, self.reason)


OnBad = Callable[[BadRow], None]


@READERS.register("pickapic")
def read_pickapic(
    path: str | Path | Sequence[str | Path], *, on_bad: OnBad | None = None, limits: ImageLimits | None = None
) -> Iterator[Pair]:
    """Pairs of Pick-a-Pic v2 (yuvalkirstain/pickapic_v2) Parquet files.

    The image of the larger label is chosen and that label kept; a tie (0.5, 0.5) has image 0 as chosen and label 0.5.
    Rows without a label are bad rows. A row's id is its file's name and its place there.

    Args:
        path: a folder of Parquet files, one, or a list of them.
        on_bad: told of each row left out; without it the first one is raised.
        limits: what images may measure.
    """
    limits = limits or ImageLimits()
    index = 0
    for file in parquet_files(path):
        for number, row in enumerate(_pickapic_rows(file)):
            yield from _one(index, on_bad, _pickapic_pair, row, f"{file.stem}:{number}", limits)
            index += 1


def _pickapic_rows(file: Path) -> Iterator[dict[str, Any]]:
    try:
        with pq.ParquetFile(file) as parquet:
            there = parquet.schema_arrow.names
            require_columns(there, _PICKAPIC_COLUMNS, file)
            columns = [*_PICKAPIC_COLUMNS, *(name for name in _PICKAPIC_OPTIONAL if name in there)]
            for batch in parquet.iter_batches(batch_size=16, columns=columns):
                for number in range(batch.num_rows):  # row by row, so that only one row's images are Python bytes
                    yield batch.slice(number, 1).to_pylist()[0]
    except (OSError, pa.ArrowException) as error:
        raise DiffalignError(f"cannot read {file}: {error}") from error


def _pickapic_pair(row: Mapping[str, Any], row_id: str, limits: ImageLimits) -> Pair:
    if not row["has_label"]:
        raise _Reason("it has no label")
    labels = [row["label_0"], row["label_1"]]
    valid = all(isinstance(label, (int, float)) and 0 <= label <= 1 for label in labels)
    if not valid or abs(sum(labels) - 1) > 1e-6:
        raise _Reason(f"expected two labels in [0, 1] that sum to 1, got {labels}")
    chosen, rejected = (0, 1) if labels[0] >= labels[1] else (1, 0)
    order = (chosen, rejected)
    return _pair(
        id=row_id,
        prompt=row["caption"],
        images=[_decode(_embedded(row[f"jpg_{side}"]), f"jpg_{side}", limits) for side in order],
        label=float(labels[chosen]),
        source="pickapic_v2",
        method="human_vote",
        parameters={
            "image_uids": [row[f"image_{side}_uid"] for side in order],
            "models": [row.get(f"model_{side}") for side in order],
            "ranking_id": row.get("ranking_id"),
        },
    )


def _embedded(value: Any) -> bytes:
    """Image bytes, plain or as a `datasets` Image cell."""
    data = value.get("bytes") if isinstance(value, Mapping) else value
    if not isinstance(data, bytes):
        raise _Reason("an image has no bytes")
    return data


@READERS.register("hpdv3")
def read_hpdv3(
    path: str | Path,
    *,
    root: str | Path | None = None,
    sources: Iterable[str] | None = None,
    columns: Mapping[str, str] | None = None,
    on_bad: OnBad | None = None,
    limits: ImageLimits | None = None,
) -> Iterator[Pair]:
    """Pairs of HPDv3 (MizzenAI/HPDv3) annotations, in which ``path1`` is the preferred image.

    Args:
        path: a JSON list or a JSON-lines file of {path1, path2, prompt, model1?, model2?, confidence?, choice_dist?}.
            A list is read whole, lines one at a time.
        root: the folder the image paths start from; by default the file's own.
        sources: keep only rows whose two images both come from one of these (``model1`` and ``model2``; photographs are
            "real_images"); the others are passed over silently.
        columns: the file's name for a column of the list above, where it differs, e.g. {"prompt": "caption"}.
        on_bad: told of each row left out; without it the first one is raised.
        limits: what images may measure.
    """
    path, limits = Path(path), limits or ImageLimits()
    root = Path(path.parent if root is None else root)
    names = {name: name for name in (*HPDV3_COLUMNS, *_HPDV3_OPTIONAL)}
    require_columns(names, columns or (), "the mapping of columns")
    names.update(columns or {})
    kept = None if sources is None else frozenset(sources)

    def pair(row: Mapping[str, Any], index: int) -> Pair | None:
        values = {name: row.get(there) for name, there in names.items()}
        models = [values["model1"], values["model2"]]
        if kept is not None and not all(isinstance(model, str) for model in models):
            raise _Reason("it does not say which models its images come from, so it cannot be filtered by source")
        if kept is not None and not kept.issuperset(models):
            return None
        return _pair(
            id=str(index),
            prompt=values["prompt"],
            images=[_decode(_inside(root, values[side]), side, limits) for side in ("path1", "path2")],
            source="hpdv3",
            method="human_vote",
            parameters={"models": models, "confidence": values["confidence"], "choice_dist": values["choice_dist"]},
        )

    for index, row in enumerate(_json_rows(path)):
        if index == 0:
            require_columns(row, [names[name] for name in HPDV3_COLUMNS], path)
        yield from _one(index, on_bad, pair, row, index)


def _json_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON list or of JSON lines, whichever the file holds."""
    try:
        with path.open(encoding="utf-8") as file:
            is_list = next((line.lstrip()[0] for line in file if line.strip()), "") == "["
    except (OSError, UnicodeDecodeError) as error:
        raise DiffalignError(f"cannot read {path}: {error}") from error
    if not is_list:
        yield from read_jsonl(path)
        return
    for index, row in enumerate(read_json(path)):
        if not isinstance(row, dict):
            raise DiffalignError(f"{path}, entry {index}: expected an object, got {type(row).__name__}")
        yield row


@READERS.register("realalign")
def read_realalign(
    path: str | Path,
    *,
    root: str | Path | None = None,
    on_bad: OnBad | None = None,
    limits: ImageLimits | None = None,
) -> Iterator[Pair]:
    """Pairs of RealAlign's released CSV (Xixixixihahahaha/RealAlign-Dataset): a photograph and its inpainted version.

    Both of its column namings are read: ``real_image_path`` / ``fake_image_path`` and ``win_image_path`` /
    ``lose_image_path``, with ``prompt`` or ``caption``. A ``uid`` column gives the ids, else the rows' numbers do.

    Args:
        path: the CSV file.
        root: the folder the image paths start from; by default the file's own.
        on_bad: told of each row left out; without it the first one is raised.
        limits: what images may measure.
    """
    path, limits = Path(path), limits or ImageLimits()
    root = Path(path.parent if root is None else root)
    names: dict[str, str] = {}

    def pair(row: Mapping[str, str], index: int) -> Pair:
        return _pair(
            id=row.get("uid") or str(index),
            prompt=row[names["prompt"]],
            images=[_decode(_inside(root, row[names[side]]), names[side], limits) for side in ("chosen", "rejected")],
            source="realalign",
            method="inpaint",
        )

    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            there = list(rows.fieldnames or ())
            for name, known in REALALIGN_COLUMNS.items():
                found = [column for column in known if column in there]
                require_columns(there, found or known[:1], path)
                names[name] = found[0]
            for index, row in enumerate(rows):
                yield from _one(index, on_bad, pair, row, index)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DiffalignError(f"cannot read {path}: {error}") from error


@READERS.register("folders")
def read_folders(
    path: str | Path,
    *,
    prompt: str = "",
    on_bad: OnBad | None = None,
    limits: ImageLimits | None = None,
) -> Iterator[Pair]:
    """Pairs of two folders, ``chosen`` and ``rejected``, matched by file name without suffix.

    The caption of ``chosen/cat.png`` is the text of ``chosen/cat.txt``, else the ``prompt`` (``text``, ``caption``) of
    its line in ``metadata.jsonl`` (beside the two folders or inside ``chosen``; a line names its image as
    ``file_name``), else ``prompt``. Ids are the names without suffix; rows come in their order.

    Args:
        path: the folder that holds ``chosen`` and ``rejected``.
        prompt: the caption of images that have none of their own.
        on_bad: told of each row left out (no counterpart, no caption, a bad image); without it the first one is raised.
        limits: what images may measure.
    """
    root, limits = Path(path), limits or ImageLimits()
    for side in ("chosen", "rejected"):
        if not (root / side).is_dir():
            there = ", ".join(sorted(entry.name for entry in root.iterdir())) if root.is_dir() else "no such folder"
            raise DiffalignError(f"{root}: expected folders named chosen and rejected; {side} is missing ({there})")
    files = {side: _by_stem(root / side) for side in ("chosen", "rejected")}
    captions = _metadata_captions(root)

    def pair(stem: str) -> Pair:
        for side, by_stem in files.items():
            if len(by_stem.get(stem, ())) != 1:
                found = ", ".join(file.name for file in by_stem.get(stem, ())) or "none"
                raise _Reason(f"expected one image named {stem!r} in {side}, found {found}")
        return _pair(
            id=stem,
            prompt=_sidecar_caption(root, stem) or captions.get(stem) or prompt,
            images=[
                _decode(_inside(root, f"{side}/{by_stem[stem][0].name}"), side, limits)
                for side, by_stem in files.items()
            ],
            source=root.name,
        )

    for index, stem in enumerate(sorted(set(files["chosen"]) | set(files["rejected"]))):
        yield from _one(index, on_bad, pair, stem)


def _by_stem(folder: Path) -> dict[str, list[Path]]:
    by_stem: dict[str, list[Path]] = {}
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith("."):
            by_stem.setdefault(file.stem, []).append(file)
    return by_stem


def _sidecar_caption(root: Path, stem: str) -> str:
    file = _inside(root, f"chosen/{stem}.txt")
    if not file.is_file():
        return ""
    try:
        return read_text(file).strip()
    except DiffalignError as error:
        raise _Reason(str(error)) from error


def _metadata_captions(root: Path) -> dict[str, str]:
    captions: dict[str, str] = {}
    for file in (root / "metadata.jsonl", root / "chosen" / "metadata.jsonl"):
        for row in read_jsonl(file) if file.is_file() else ():
            require_columns(row, ["file_name"], file)
            caption = row.get("prompt") or row.get("text") or row.get("caption")
            name = Path(str(row["file_name"]))
            if isinstance(caption, str) and name.parent.name != "rejected":
                captions[name.stem] = caption
    return captions


class _Reason(Exception):  # noqa: N818 (becomes a BadRow)
    """Why a row is bad, before it is known which row it is."""


def _one(index: int, on_bad: OnBad | None, make: Callable[..., Pair | None], *args: Any) -> Iterator[Pair]:
    """The pair that ``make(*args)`` gives, if any; what is wrong with it goes to ``on_bad``."""
    try:
        pair = make(*args)
    except (_Reason, BadImage) as error:
        bad = BadRow(index, str(error))
        if on_bad is None:
            raise bad from error
        on_bad(bad)
        return
    if pair is not None:
        yield pair


def _pair(
    *,
    id: str,
    prompt: Any,
    images: Sequence[Image.Image],
    source: str,
    label: float = 1.0,
    method: str = "",
    parameters: Mapping[str, Any] | None = None,
) -> Pair:
    if not isinstance(prompt, str) or not prompt.strip():
        raise _Reason("it has no prompt")
    for what, text in (("id", id), ("prompt", prompt)):
        if not is_unicode(text):
            raise _Reason(f"its {what} is not valid Unicode text: {text!r}")
    hashes = tuple(image_sha256(image) for image in images)
    provenance = Provenance(source=source, sha256=hashes, method=method, parameters=parameters or {})
    return Pair(id=id, prompt=prompt, chosen=images[0], rejected=images[1], label=label, provenance=provenance)


def _decode(source: bytes | Path, what: str, limits: ImageLimits) -> Image.Image:
    try:
        return decode_image(source, limits=limits)
    except BadImage as bad:
        raise _Reason(f"{what}: {bad}") from bad


def _inside(root: Path, name: Any) -> Path:
    """The file a row names, if it really lies inside ``root``: no "..", no absolute path, no link leads out of it."""
    if not isinstance(name, str) or not name or "\0" in name:
        raise _Reason(f"expected the path of a file, got {name!r}")
    try:
        file = (root / name).resolve()
    except (OSError, RuntimeError) as error:  # a loop of links, a name too long
        raise _Reason(f"cannot follow the path {name!r}: {error}") from error
    if Path(name).is_absolute() or not file.is_relative_to(root.resolve()):
        raise _Reason(f"the path {name!r} leaves the root folder {root}; paths are relative to it")
    return file
