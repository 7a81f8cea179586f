"""Photographs to preference pairs: the photograph against itself with its salient part drawn anew by the base model.

A folder holds ``pairs/`` (Preferences), ``rejected.jsonl`` (every photograph that made no pair, with stage and reason),
``funnel.json`` (the counts), ``config.yaml``, ``versions.json``, and ``shards/``, by which a stopped run goes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from diffalign.core import (
    DiffalignError,
    RunFolder,
    Shard,
    content_hash,
    plan_shards,
    read_json,
    read_jsonl,
    run_shards,
    warn,
    write_json,
    write_jsonl,
)
from diffalign.curate.config import EMBEDDED, CurateConfig
from diffalign.curate.degrade import check_inpainting
from diffalign.curate.funnel import Funnel, count_funnel, print_funnel
from diffalign.curate.locate import check_area
from diffalign.curate.make import Row, drop_repeated, make_pairs
from diffalign.curate.select import select_pairs
from diffalign.curate.sources import Photos, embedded_photographs, photo_folder
from diffalign.data import Preferences, PreferenceWriter
from diffalign.models import load_family
from diffalign.rewards import Reward, load_reward
from diffalign.sample import image_size
from diffalign.types import Pair

__all__ = ["curate"]

_SHARD_PHOTOS = 16  # at least, in whole batches: what a kill loses, and how often progress is shown


def curate(config: CurateConfig, folder: str | Path, *, device: str | torch.device = "cpu") -> Funnel:
    """Make the pairs that the settings describe in a new folder, or go on with the same run in the folder of before.

    Each photograph is read; its salient part is located, drawn anew and put back into the photograph; both are scored;
    the pair is kept where the gap says that something was damaged. What comes out depends on the photographs, the
    settings and the models alone, not on where a run was interrupted.

    Args:
        config: the settings.
        folder: of the run, outside the folder of photographs.
        device: where the networks run.

    Returns:
        The counts, which are printed and in ``funnel.json`` too.

    Raises:
        DiffalignError: a setting does not fit, or the folder belongs to another run.

    Source:
        RealAlign, arXiv 2605.19839, data curation. Departures: colour saliency without weights instead of U2-Net; the
        base inpaints instead of an inpainting model; the drawn part is put back into the photograph; seeds are fixed;
        photographs are not enlarged; no filter of colourfulness or style.

    Example:
        >>> import tempfile
        >>> config = CurateConfig(model="tiny-sd", count=3, num_steps=2, guidance_scale=4.0)
        >>> funnel = curate(config, tempfile.mkdtemp())  # doctest: +ELLIPSIS, +NORMALIZE_WHITESPACE
        curation
        stage        left  dropped
        photographs  3
        ...
        >>> funnel.photos
        3
    """
    check_area((config.min_area, config.max_area))
    _check_apart(config, Path(folder))
    reward = _load_reward(config, device)
    family = load_family(config.model, device=device)
    check_inpainting(family)
    photos = _photos(config, image_size(family, config.size, config.size)[0])
    with RunFolder.open(folder, config, kind="curate") as run:

        def work(shard: Shard, path: Path) -> None:
            rows, pairs = make_pairs(photos[shard.start : shard.stop], family, reward, config)
            with PreferenceWriter(path / "pairs", form="pair") as writer:
                for pair in pairs:
                    writer.write(pair)
            write_jsonl(path / "rows.jsonl", rows)

        shards = plan_shards(len(photos), -(-_SHARD_PHOTOS // config.batch_size) * config.batch_size)
        key = content_hash(photos.identity, family.revision, reward.card.identity)
        made = run_shards(shards, work, run.path / "shards", key=key, description="curate")
        if not (run.path / "funnel.json").exists():  # written last
            _finish(made, config, run.path)
        funnel = Funnel(**read_json(run.path / "funnel.json"))
    print_funnel(funnel)
    if not funnel.kept:
        warn(f"no pair is left; {Path(folder) / 'rejected.jsonl'} says why")
    return funnel


def _check_apart(config: CurateConfig, folder: Path) -> None:
    """The run's own files must not be taken for photographs."""
    if config.photos != EMBEDDED and folder.resolve().is_relative_to(Path(config.photos).resolve()):
        raise DiffalignError(f"expected a folder outside the photographs {config.photos} for the run, got {folder}")


def _load_reward(config: CurateConfig, device: str | torch.device) -> Reward:
    reward = load_reward(config.reward, device=device)
    if reward.card.higher_is_better is not True:
        raise DiffalignError(f"expected a reward of which more is better, got {config.reward!r}, which sees no damage")
    return reward


def _photos(config: CurateConfig, size: int) -> Photos:
    if config.photos == EMBEDDED:
        if not config.count:
            raise DiffalignError("expected a count of crops of the embedded photographs, got 0; set count=64, say")
        return embedded_photographs("train", config.count, size, config.seed)
    photos = photo_folder(config.photos, size)
    return photos[: config.count] if config.count else photos


def _finish(made: Sequence[Path], config: CurateConfig, folder: Path) -> None:
    """Select among the pairs of all shards and write what came out."""
    rows: list[Row] = [row for shard in made for row in read_jsonl(shard / "rows.jsonl")]
    drop_repeated(rows)
    scored = [row for row in rows if "stage" not in row]
    selection = select_pairs(
        [tuple(row["scores"]) for row in scored], min_gap=config.min_gap, keep=config.keep, rank_by=config.rank_by
    )
    for index, dropped in selection.dropped.items():
        scored[index] |= asdict(dropped)
    kept = {scored[index]["id"] for index in selection.kept}
    with PreferenceWriter(folder / "pairs", form="pair", resume=True) as writer:
        for pair in _stored_pairs(made, kept):
            writer.write(pair)
    rejected = [{key: value for key, value in row.items() if key != "cleaned"} for row in rows if "stage" in row]
    write_jsonl(folder / "rejected.jsonl", rejected)
    cleaned = sum(bool(row.get("cleaned")) for row in rows)
    write_json(folder / "funnel.json", asdict(count_funnel(len(rows), rejected, cleaned)))


def _stored_pairs(made: Sequence[Path], wanted: set[str]) -> Iterator[Pair]:
    """The wanted pairs in the order of the photographs; of two that are alike, the first."""
    left = set(wanted)
    for shard in made:
        if not any((shard / "pairs").glob("*.parquet")):
            continue
        there = Preferences(shard / "pairs")
        for index, name in enumerate(there.ids()):
            if name in left:
                left.remove(name)
                yield there[index]
