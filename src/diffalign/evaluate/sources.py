"""What is to be scored: the images of a sample run, or a plain folder of images."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeVar

from PIL import Image
from pydantic import StrictBool, StrictFloat, StrictInt, TypeAdapter, ValidationError

from diffalign.core import DiffalignError, progress, read_jsonl, read_text, sha256_file, warn
from diffalign.data import decode_image, image_sha256
from diffalign.data.readers import IMAGE_SUFFIXES
from diffalign.rewards import UNVERSIONED
from diffalign.sample import prompt_id

__all__ = ["ImageRow", "ScoreRow", "checked_images", "parse_rows", "read_images"]

OK = "ok"
Role = Literal["in-training", "held-out", "undeclared"]
Row = TypeVar("Row", bound="ImageRow")

_MANIFEST = "manifest.jsonl"


@dataclass(frozen=True, kw_only=True)
class ImageRow:
    """One image that was asked of a model, made or not. What a plain folder does not tell is None.

    Attributes:
        prompt_id: of the prompt.
        prompt: the text.
        seed: index of the image among those of its prompt.
        status: "ok", or why there is no image.
        file: relative to the folder of the table it stands in; empty where there is no image.
        sha256: of the image's pixels as the manifest has it; for a plain folder, of the file; empty without an image.
        width: pixels.
        height: pixels.
        model: what sampled it.
        adapter: on the model.
        guide: identity of what sampling followed besides the model; None without one.
        sampler: the solver.
        num_steps: of the sampler.
        guidance_scale: of text guidance.
        negative_prompt: of the unconditional branch.
        dtype: of the denoiser.
        sampler_hash: of what else decides the images: a pipeline, its scheduler's settings, its options.
    """

    prompt_id: str
    prompt: str
    seed: StrictInt
    status: str = OK
    file: str = ""
    sha256: str = ""
    width: StrictInt | None = None
    height: StrictInt | None = None
    model: str | None = None
    adapter: str | None = None
    guide: dict[str, Any] | None = None
    sampler: str | None = None
    num_steps: StrictInt | None = None
    guidance_scale: StrictFloat | None = None
    negative_prompt: str | None = None
    dtype: str | None = None
    sampler_hash: str | None = None

    @property
    def key(self) -> tuple[str, int]:
        """(prompt id, seed index): what pairs the images of two models."""
        return self.prompt_id, self.seed


@dataclass(frozen=True, kw_only=True)
class ScoreRow(ImageRow):
    """One image under one metric: a row of the long table.

    Attributes:
        metric: identity, ``name@weights/preprocessing``; values of different identities never mix.
        name: of the metric.
        value: None where there is no score.
        status: "ok", or why there is no score: "nan", "black image", "error: ...", "not generated: ..." (with the
            manifest's status), "not scored" (the image came after the metric was last scored).
        role: "in-training" for what selected data, checkpoints or settings or was optimised; "held-out" for what was
            declared to have no such part; else "undeclared".
        higher_is_better: None for a metric without a direction.
    """

    metric: str
    name: str
    value: StrictFloat | None
    role: Role
    higher_is_better: StrictBool | None = True

    @property
    def has_version(self) -> bool:
        """Whether the metric's identity tells its version, without which scores of two runs cannot be compared."""
        return f"@{UNVERSIONED}/" not in self.metric


def read_images(source: str | Path, *, prompts: Mapping[str, str] | None = None) -> tuple[Path, list[ImageRow]]:
    """The images of a source, those that failed included.

    In a plain folder, the prompt of ``cat.png`` is ``prompts["cat.png"]``, else the text of ``cat.txt``, else the
    ``prompt`` (``text``, ``caption``) of its line in ``metadata.jsonl`` (``file_name`` names the image). A prompt's id
    is a hash of its text; its images, in order of their names, have seed 0, 1, ...

    Args:
        source: folder of a sample run, its manifest, or a folder of images (subfolders included).
        prompts: for a plain folder, prompts by the image's path in it.

    Returns:
        The folder that the rows' files are relative to; the rows.

    Raises:
        DiffalignError: no images, a wrong row, a file outside of the folder, two rows of the same prompt and seed, or
            an image without a prompt.
    """
    source = Path(source)
    manifest = _manifest(source)
    if manifest.is_file():
        if prompts:
            raise DiffalignError(f"{manifest} has its own prompts; leave out prompts=")
        rows = parse_rows(ImageRow, manifest)
        for row in rows:
            if row.status == OK and not (row.file and row.sha256):
                raise DiffalignError(
                    f"{manifest}: prompt {row.prompt_id!r}, seed {row.seed} is ok but lacks file or sha256"
                )
            if PurePosixPath(row.file).is_absolute() or ".." in PurePosixPath(row.file).parts:
                raise DiffalignError(f"{manifest}: expected files inside the folder, got {row.file!r}")
    elif source.is_dir():
        if (source / "sweep.json").exists():
            raise DiffalignError(
                f"{source} holds a sweep: give one run in it, or score all with diffalign sweep {source}"
            )
        if (source / "run.json").exists():
            raise DiffalignError(f"{source} is a run without a {_MANIFEST}; let the sampling finish first")
        rows = list(_plain_rows(source, prompts or {}))
    else:
        raise DiffalignError(f"expected a folder of images or a {_MANIFEST}, but there is no {source}")
    if not rows:
        raise DiffalignError(f"{source} holds no images; expected a {_MANIFEST} or image files")
    twice = [key for key, count in Counter(row.key for row in rows).items() if count > 1]
    if twice:
        raise DiffalignError(f"{manifest}: {len(twice)} (prompt id, seed) stand there twice, the first {twice[0]}")
    return manifest.parent, rows


def _manifest(source: Path) -> Path:
    return source / _MANIFEST if source.is_dir() else source


def checked_images(source: str | Path, *, prompts: Mapping[str, str] | None = None) -> tuple[Path, Sequence[ImageRow]]:
    """`read_images`, and an image whose file does not show what the manifest says becomes an "error: ..."."""
    folder, images = read_images(source, prompts=prompts)
    if not _manifest(Path(source)).is_file():  # of a plain folder, the files themselves were just read
        return folder, images
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        statuses = pool.map(lambda image: _status(folder, image), images)
        checked = [
            replace(image, status=status)
            for image, status in zip(
                images, progress(statuses, total=len(images), description="check images", unit="images"), strict=True
            )
        ]
    wrong = [image for image, before in zip(checked, images, strict=True) if image.status != before.status]
    if wrong:
        warn(
            f"{len(wrong)} of {len(images)} images are not those of the manifest; the first, {wrong[0].file}: "
            f"{wrong[0].status}"
        )
    return folder, checked


def _status(folder: Path, image: ImageRow) -> str:
    if image.status != OK:
        return image.status
    try:
        found = image_sha256(decode_image(folder / image.file))
    except Exception as error:  # decoders of untrusted bytes raise nearly any type
        return f"error: {type(error).__name__}: {' '.join(str(error).split())}"
    return OK if found == image.sha256 else "error: not the image of the manifest"


def parse_rows(kind: type[Row], path: Path) -> list[Row]:
    """The lines of a JSON-lines file as rows of this kind; further fields are passed over.

    Raises:
        DiffalignError: the file is missing or a row is wrong; names the row and the field.
    """
    adapter = TypeAdapter(kind)
    rows = []
    for number, row in enumerate(read_jsonl(path), start=1):
        try:
            rows.append(adapter.validate_python(row))
        except ValidationError as error:
            wrong = error.errors()[0]
            where = ".".join(map(str, wrong["loc"]))
            raise DiffalignError(f"{path}, row {number}: {where}: {wrong['msg']}, got {wrong['input']!r}") from None
    return rows


def _plain_rows(folder: Path, prompts: Mapping[str, str]) -> Iterator[ImageRow]:
    files = sorted(file.relative_to(folder).as_posix() for file in _image_files(folder))
    if unknown_files := sorted(set(prompts) - set(files)):
        raise DiffalignError(f"prompts names {unknown_files[0]!r}, which {folder} lacks")
    metadata = _metadata_prompts(folder)
    seeds: Counter[str] = Counter()
    for name in progress(files, description="read images", unit="images"):
        file, beside = folder / name, (folder / name).with_suffix(".txt")
        prompt = prompts.get(name) or (read_text(beside).strip() if beside.is_file() else "") or metadata.get(name)
        if not prompt:
            raise DiffalignError(
                f"{file} has no prompt; write it into {beside.name} beside it, or into a line "
                f'{{"file_name": "{name}", "prompt": "..."}} of {folder / "metadata.jsonl"}'
            )
        width, height = _size(file)
        yield ImageRow(
            prompt_id=prompt_id(prompt),
            prompt=prompt,
            seed=seeds[prompt],
            file=name,
            sha256=sha256_file(file),
            width=width,
            height=height,
        )
        seeds[prompt] += 1


def _image_files(folder: Path) -> Iterable[Path]:
    return (
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".") and file.is_file()
    )


def _metadata_prompts(folder: Path) -> dict[str, str]:
    path = folder / "metadata.jsonl"
    found = {}
    for row in read_jsonl(path) if path.is_file() else ():
        prompt = row.get("prompt") or row.get("text") or row.get("caption")
        if isinstance(prompt, str) and isinstance(row.get("file_name"), str):
            found[row["file_name"]] = prompt
    return found


def _size(file: Path) -> tuple[int | None, int | None]:
    """Width and height by the file's header; unknown for what is no image, which scoring will report."""
    try:
        with Image.open(file) as image:
            return image.size
    except Exception:  # parsers of untrusted bytes raise nearly any type
        return None, None
