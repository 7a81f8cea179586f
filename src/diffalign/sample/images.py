"""Prompts x seeds to a folder of images with a manifest: sharded, resumable, a row for every image, also a failed one.

A folder holds ``images/``, ``manifest.jsonl`` (prompt by prompt), ``grid.png`` (the first prompts as rows, their first
seeds as columns), ``config.yaml``, ``prompts.jsonl``, ``versions.json``, and ``shards/``, by which a stopped run goes
on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from diffalign.core import (
    Config,
    DiffalignError,
    RunFolder,
    Shard,
    atomic_path,
    content_hash,
    plan_shards,
    read_jsonl,
    remove_stale,
    run_shards,
    safe_name,
    setting,
    warn,
    write_jsonl,
)
from diffalign.data import decode_image, encode_png, image_sha256
from diffalign.sample.image_samplers import ImageSampler
from diffalign.sample.prompts import PromptRow
from diffalign.sample.sampler import initial_noise

__all__ = ["SampledImagesConfig", "sample_images"]

OK, NOT_FINITE, ERROR = "ok", "not finite", "error"
_SHARD_IMAGES = 16  # at least, in whole batches: what a kill loses, and how often progress is shown
_GRID = 8  # rows and columns at most
_GRID_SIDE = 256  # pixels of a cell at most
# of the sampler's identity, in every row; what else it holds is there as one hash
_TOLD = ("model", "adapter", "guide", "sampler", "num_steps", "guidance_scale", "negative_prompt", "dtype")
_SHOWN = {*_TOLD, "width", "height"}

Row = dict[str, Any]
Item = tuple[PromptRow, int]  # a prompt and the index of a seed


class SampledImagesConfig(Config):
    """What decides a folder of images, where no other settings are given."""

    sampler: dict[str, Any] = setting(..., "the sampler's identity")
    prompts: str = setting(..., "hash of the prompts and their ids")
    num_prompts: int = setting(..., "number of prompts", unit="prompts", ge=1)
    num_seeds: int = setting(..., "images per prompt", unit="images", ge=1)
    batch_size: int = setting(..., "images per call of the sampler", unit="images", ge=1)


def sample_images(
    sampler: ImageSampler,
    prompts: Sequence[PromptRow],
    folder: str | Path,
    *,
    num_seeds: int = 1,
    batch_size: int = 4,
    config: Config | None = None,
) -> Path:
    """Make every prompt's images into a new folder, or go on with the same run in the folder of before.

    The noise of an image is ``initial_noise(sampler.latent_shape, prompt id, seed)`` and depends on nothing else, so
    models are compared on the same noise. A batch that fails is tried again image by image; an image that fails becomes
    a row whose status is "not finite" or "error: ...", and is not tried again when the run goes on.

    Args:
        sampler: of a family or a pipeline.
        prompts: with ids of their own each, see ``read_prompts``.
        folder: of the run.
        num_seeds: images per prompt, with seeds 0 to ``num_seeds - 1``.
        batch_size: images per call of the sampler; it changes images by float noise only.
        config: the settings kept in the folder; by default a ``SampledImagesConfig``.

    Returns:
        The manifest: per row prompt_id, prompt, seed, file (relative, "" where it failed), sha256 (of the pixels, see
        ``image_sha256``), width, height, status ("ok" where there is an image), model, adapter, guide (where there
        is one), sampler, num_steps, guidance_scale, negative_prompt, dtype, sampler_hash (of the rest of the sampler's
        identity).

    Raises:
        DiffalignError: the folder belongs to another run or other prompts, two prompts share an id, or everything
            fails.
        ValueError: a number is below 1.
    """
    if num_seeds < 1 or batch_size < 1:
        raise ValueError(f"expected num_seeds and batch_size of at least 1, got {num_seeds} and {batch_size}")
    if not prompts or len({row.id for row in prompts}) != len(prompts):
        raise DiffalignError("expected at least one prompt, and an id of its own for each; see read_prompts")
    listed = content_hash([[row.id, row.prompt] for row in prompts])
    config = config or SampledImagesConfig(
        sampler=dict(sampler.identity),
        prompts=listed,
        num_prompts=len(prompts),
        num_seeds=num_seeds,
        batch_size=batch_size,
    )
    items = [(row, seed) for seed in range(num_seeds) for row in prompts]  # early on, an image of every prompt
    with RunFolder.open(folder, config, kind="sample") as run:
        _keep_prompts(prompts, run.path / "prompts.jsonl")
        remove_stale(run.path / "images")

        def work(shard: Shard, path: Path) -> None:
            rows = _make(sampler, [items[index] for index in shard.rows], run.path, batch_size)
            _refuse_only_errors(rows, of=shard.count)
            write_jsonl(path, rows)

        shards = plan_shards(len(items), -(-_SHARD_IMAGES // batch_size) * batch_size)
        key = content_hash(dict(sampler.identity), listed, num_seeds, batch_size)
        files = run_shards(shards, work, run.path / "shards", suffix=".jsonl", key=key, description="sample")
        rows = [row for file in files for row in read_jsonl(file)]
        rows = [row for start in range(len(prompts)) for row in rows[start :: len(prompts)]]  # prompt by prompt
        _tell_failures(rows)
        write_jsonl(run.path / "manifest.jsonl", rows)
        _write_grid(rows, num_seeds, run.path)
        return run.path / "manifest.jsonl"


def _make(sampler: ImageSampler, items: Sequence[Item], folder: Path, batch_size: int) -> list[Row]:
    """Draw and write some images; a row for each."""
    rest = {name: value for name, value in sampler.identity.items() if name not in _SHOWN}
    told = {name: sampler.identity[name] for name in _TOLD if name in sampler.identity}
    told["sampler_hash"] = content_hash(rest)[:12] if rest else ""
    rows = []
    for start in range(0, len(items), batch_size):
        batch = items[start : start + batch_size]
        for (prompt, seed), made in zip(batch, _draw(sampler, batch), strict=True):
            image = made if isinstance(made, Image.Image) else None
            file = f"images/{safe_name(prompt.id)}-{seed}.png" if image else ""
            if image:
                with atomic_path(folder / file) as temporary:
                    temporary.write_bytes(encode_png(image))
            row = {
                "prompt_id": prompt.id,
                "prompt": prompt.prompt,
                "seed": seed,
                "file": file,
                "sha256": image_sha256(image) if image else "",
                "width": image.width if image else sampler.identity["width"],
                "height": image.height if image else sampler.identity["height"],
                "status": OK if image else made,
            }
            rows.append(row | told)
    return rows


def _keep_prompts(prompts: Sequence[PromptRow], file: Path) -> None:
    """Write the prompts of a new run; refuse others for a run that goes on."""
    now = [{"id": row.id, "prompt": row.prompt} for row in prompts]
    if not file.exists():
        write_jsonl(file, now)
        return
    before = list(read_jsonl(file))
    if before != now:
        there, here = next(
            (one, other) for one, other in zip_longest(before, now, fillvalue={"prompt": None}) if one != other
        )
        raise DiffalignError(
            f"the prompts changed since {file.parent} was begun: {len(before)} there, {len(now)} now; the first that "
            f"differs is {there['prompt']!r} there, {here['prompt']!r} now. Use those of {file.name} to go on, or "
            "another folder to begin anew."
        )


def _draw(sampler: ImageSampler, items: Sequence[Item]) -> Sequence[Image.Image | str]:
    """An image or the status of its failure per item; after an error, one item at a time."""
    noise = torch.stack([initial_noise(sampler.latent_shape, prompt.id, seed) for prompt, seed in items])
    try:
        return sampler([prompt.prompt for prompt, _ in items], noise)
    except Exception as error:  # whatever a model raises becomes a status
        status = NOT_FINITE if isinstance(error, FloatingPointError) else f"{ERROR}: {type(error).__name__}: {error}"
    # outside of the block, where the error holds the memory of the failed batch no longer
    if len(items) == 1:
        return [" ".join(status.split())[:500]]
    return [made for item in items for made in _draw(sampler, [item])]


def _refuse_only_errors(rows: Sequence[Row], *, of: int) -> None:
    """A shard of errors alone is a broken model or device: stop, and keep nothing of it, so that it is made again."""
    failed = [row["status"] for row in rows if row["status"] != OK]
    errors = [status for status in failed if status != NOT_FINITE]
    if errors and len(failed) == len(rows) and (len(rows) > 1 or of == 1):
        raise DiffalignError(f"all of {len(rows)} images failed, one with {errors[0]}. The images before are kept.")


def _tell_failures(rows: Sequence[Row]) -> None:
    failed = [row for row in rows if row["status"] != OK]
    if len(failed) == len(rows):
        raise DiffalignError(f"all of {len(rows)} images failed, the first with status {failed[0]['status']!r}")
    if failed:
        first = failed[0]
        warn(
            f"{len(failed)} of {len(rows)} images failed; the first is seed {first['seed']} of {first['prompt']!r}: "
            f"{first['status']}"
        )


def _write_grid(rows: Sequence[Mapping[str, Any]], num_seeds: int, folder: Path) -> None:
    """The first seeds of the first prompts; grey where an image failed."""
    size = next((row["width"], row["height"]) for row in rows if row["status"] == OK)
    scale = min(1.0, _GRID_SIDE / max(size))
    width, height = (max(1, round(side * scale)) for side in size)
    columns, lines = min(_GRID, num_seeds), min(_GRID, len(rows) // num_seeds)
    grid = Image.new("RGB", (columns * width, lines * height), (128, 128, 128))
    for line in range(lines):
        for column in range(columns):
            row = rows[line * num_seeds + column]
            if row["status"] == OK:
                image = decode_image(folder / row["file"])
                grid.paste(image.resize((width, height), Image.Resampling.LANCZOS), (column * width, line * height))
    with atomic_path(folder / "grid.png") as temporary:
        temporary.write_bytes(encode_png(grid))
