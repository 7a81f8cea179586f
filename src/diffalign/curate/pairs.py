"""Photographs to preference pairs: the photograph against a damaged copy of itself.

A folder holds ``pairs/`` (Preferences), ``rejected.jsonl`` (every photograph that made no pair, with stage and reason),
``funnel.json`` (the counts), ``audit.json`` (traces that could give the sides away), ``config.yaml``,
``versions.json``, ``inputs.json`` (the identities of photographs and models), and ``looked/`` and ``made/``, the shards
by which a stopped run goes on.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from numpy.typing import ArrayLike

from diffalign.core import (
    DiffalignError,
    Mapper,
    RunFolder,
    atomic_path,
    content_hash,
    plan_shards,
    read_json,
    read_jsonl,
    run_shards,
    warn,
    write_json,
    write_jsonl,
)
from diffalign.curate.audit import Audit, audit_pairs, print_audit
from diffalign.curate.config import EMBEDDED, CurateConfig
from diffalign.curate.engine import Engine, open_engine
from diffalign.curate.funnel import Funnel, count_funnel, print_funnel
from diffalign.curate.review import Marks, read_marks
from diffalign.curate.rows import Dropped, Record
from diffalign.curate.select import (
    cluster,
    drop_below_mean,
    drop_near_duplicates,
    drop_repeated,
    is_left,
    select_pairs,
)
from diffalign.curate.sources import Photo, Photos, embedded_photographs, open_photos
from diffalign.curate.sources.hub import HUB
from diffalign.curate.sources.store import LocalStore, open_store
from diffalign.curate.work import Look, Make, load_models, release_models, threads
from diffalign.data import Preferences, PreferenceWriter
from diffalign.models import find_index
from diffalign.rewards import load_reward
from diffalign.rewards.contract import whole_float32

__all__ = ["curate", "open_source", "read_audit"]


def curate(
    config: CurateConfig,
    folder: str | Path,
    *,
    device: str = "cpu",
    engine: Engine = "local",
    workers: int = 1,
    review: str | Path | None = None,
) -> Funnel:
    """Make the pairs that the settings describe in a new folder, or go on with the same run in the folder of before.

    Every photograph is looked at, and those that are blank, repeated or below a threshold are dropped. Of the others
    a region is located, damaged and put back; both images are scored; the pair is kept where the gap says that
    something was damaged. An audit then looks for traces that give the damaged side away. What comes out depends on
    the photographs, the settings and the models alone: not on the engine, the workers, or where a run was interrupted.

    Args:
        config: the settings.
        folder: of the run, outside the folder of photographs.
        device: where the networks run.
        engine: see ``open_engine``.
        workers: how many at once.
        review: a file of marks that somebody made in the gallery: what they rejected is left out, what they accepted
            is kept whatever its scores.

    Returns:
        The counts, which are printed and in ``funnel.json`` too.

    Raises:
        DiffalignError: a setting does not fit, no photograph has a caption, or the folder belongs to another run.

    Source:
        RealAlign, arXiv 2605.19839, data curation. Departures by default: colour saliency without weights instead of
        U2-Net; the base inpaints instead of an inpainting model; the drawn part is put back into the photograph; seeds
        are fixed; photographs are not enlarged; near duplicates are dropped; no filter of colourfulness or style.

    Example:
        >>> import tempfile
        >>> config = CurateConfig(count=3, degrade={"name": "inpaint", "num_steps": 2})
        >>> funnel = curate(config, tempfile.mkdtemp())  # doctest: +ELLIPSIS, +NORMALIZE_WHITESPACE
        curation
        stage        left  dropped
        photographs  3
        ...
        >>> funnel.photos
        3
    """
    folder = Path(folder)
    check_apart(config, folder)
    marks = read_marks(review) if review else Marks()
    models = load_models(config, device)
    models.check()
    identities = models.identities
    if engine != "local" or workers > 1:
        del models
        release_models()  # the workers load their own
    photos = open_source(config)
    _check_captions(photos)
    key = content_hash(photos.identity, identities)
    with RunFolder.open(folder, config, kind="curate") as run:
        _refuse_changed(run.path / "inputs.json", {"photographs": photos.identity, "models": identities})
        with open_engine(engine, workers, threads=config.threads) as mapper:
            records, made = _shards(config, photos, device, run.path, key, mapper)
        finished = content_hash(key, asdict(marks))
        if _finished(run.path) != finished:
            _finish(records, made, config, marks, run.path, finished)
        found = read_json(run.path / "funnel.json")
    funnel = Funnel(**{name: value for name, value in found.items() if name != "key"})
    print_funnel(funnel)
    if (audit := read_audit(folder)) is not None:
        print_audit(audit)
    if not funnel.kept:
        warn(f"no pair is left; {folder / 'rejected.jsonl'} says why")
    return funnel


def _shards(
    config: CurateConfig, photos: Photos, device: str, folder: Path, key: str, mapper: Mapper
) -> tuple[list[Record], list[Path]]:
    """Look at all photographs, choose, make pairs of those that are left: what became of each, and the made shards."""
    rows = -(-config.shard_size // config.batch_size) * config.batch_size
    looked = run_shards(
        plan_shards(len(photos), rows), Look(config, photos, device), folder / "looked",
        key=key, description="look", mapper=mapper,
    )  # fmt: skip
    records: list[Record] = [record for shard in looked for record in read_jsonl(shard / "rows.jsonl")]
    drop_repeated(records)
    drop_near_duplicates(records, config.select.max_likeness)
    for name in config.select.above_mean:
        drop_below_mean(records, name)
    left = [number for number, record in enumerate(records) if is_left(record)]
    selected = replace(photos, keys=[photos.keys[number] for number in left])
    made = run_shards(
        plan_shards(len(left), rows), Make(config, selected, device), folder / "made",
        key=content_hash(key, left), description="make pairs", mapper=mapper,
    )  # fmt: skip
    again = (record for shard in made for record in read_jsonl(shard / "rows.jsonl"))
    for number, record in zip(left, again, strict=True):
        known = {name: records[number][name] for name in ("statistics", "fingerprint")}
        records[number] = record | known
    return records, made


def open_source(config: CurateConfig) -> Photos:
    """The photographs that the settings name, unread.

    Raises:
        DiffalignError: there are none.
    """
    size = config.size or own_size(config.model)
    if config.photos == EMBEDDED:
        if not config.count:
            raise DiffalignError(
                "expected a count of crops of the embedded photographs, got 0; set count=64, say (a folder of your own "
                "that is called photographs is ./photographs)"
            )
        return embedded_photographs("train", config.count, size, config.seed)
    photos = open_photos(config.photos, size, need_captions=not config.captioner)
    return photos[: config.count] if config.count else photos


def own_size(model: str) -> int:
    """The side in pixels of a model's images, from its configuration."""
    index, commit = find_index(model)
    if commit:
        snapshot_download(model, revision=commit, allow_patterns=["*.json"])
    folder = index.parent
    denoiser = next((folder / name for name in ("unet", "transformer") if (folder / name).is_dir()), None)
    if denoiser is None:
        raise DiffalignError(f"{model} has neither a UNet nor a transformer: set size to the images' side in pixels")
    cells = read_json(denoiser / "config.json").get("sample_size")
    levels = len(read_json(folder / "vae" / "config.json")["block_out_channels"])
    if not isinstance(cells, int):
        raise DiffalignError(f"{model} does not say how large its images are: set size, in pixels")
    return cells << (levels - 1)


def check_apart(config: CurateConfig, folder: Path) -> None:
    """The run's own files must not be taken for photographs.

    Raises:
        DiffalignError: the run's folder lies among the photographs.
    """
    spec = config.photos
    if spec == EMBEDDED or spec.startswith(HUB):
        return
    store = open_store(spec)
    if not isinstance(store, LocalStore) or not Path(store.root).is_dir():
        return  # of files named one by one or with *, the run's own are none
    if folder.resolve().is_relative_to(Path(store.root).resolve()):
        raise DiffalignError(f"expected a folder outside the photographs {spec} for the run, got {folder}")


def _check_captions(photos: Photos) -> None:
    """Refuse photographs of which none has a caption; the first one that has ends the search."""
    bare = 0
    for one in photos:
        if isinstance(one, Photo):
            return
        bare += one.reason == "no caption"
    if bare:
        raise DiffalignError(
            f"none of the {len(photos)} photographs can be used, and {bare} have no caption. Put a .txt beside each, "
            "or a metadata.jsonl or metadata.csv into the folder, sort them into folders named for what they show, or "
            "set captioner to a model (captioner=Salesforce/blip-image-captioning-base, or "
            "captioner=openai:MODEL@http://host/v1)"
        )


def _refuse_changed(path: Path, inputs: dict[str, Any]) -> None:
    """Write what the run begins with; refuse a later run that would go on with something else.

    Raises:
        DiffalignError: photographs or models changed.
    """
    if not path.exists():
        write_json(path, inputs)
    found = read_json(path)
    if changed := [name for name in inputs if found.get(name) != inputs[name]]:
        raise DiffalignError(
            f"{path.parent} was begun with other {' and '.join(changed)} (files were added, removed or changed). Bring "
            "the former ones back to go on, or choose another folder to begin anew."
        )


def read_audit(folder: str | Path) -> Audit | None:
    """The audit of a run of curation; None where it has none."""
    path = Path(folder) / "audit.json"
    return Audit.from_dict(read_json(path)) if path.exists() else None


def _finished(folder: Path) -> str:
    """The key under which a run was finished; written last."""
    path = folder / "funnel.json"
    return str(read_json(path)["key"]) if path.exists() else ""


def _finish(
    records: list[Record], made: Sequence[Path], config: CurateConfig, marks: Marks, folder: Path, key: str
) -> None:
    """Select among the pairs of all shards and write what came out."""
    scored = [record for record in records if is_left(record)]
    keep = config.keep
    selection = select_pairs(
        [[(two[0], two[1]) for two in record["scores"].values()] for record in scored],
        min_gap=keep.min_gap,
        min_agreement=keep.min_agreement,
        keep=keep.keep,
        rank_by=keep.rank_by,
        clusters=partial(_clusters, scored, made, config) if keep.clusters else None,
    )
    accepted, turned_down = frozenset(marks.accept), frozenset(marks.reject)
    for index, dropped in selection.dropped.items():
        if scored[index]["id"] not in accepted:
            scored[index] |= asdict(dropped)
    for record in filter(is_left, scored):
        if record["id"] in turned_down:
            record |= asdict(Dropped("review", "rejected by hand"))
    if strange := (accepted | turned_down) - {record["id"] for record in records}:
        warn(f"{len(strange)} marks name no photograph of this run, such as {min(strange)!r}")
    (folder / "funnel.json").unlink(missing_ok=True)
    if (folder / "pairs").exists():
        shutil.rmtree(folder / "pairs")
    with atomic_path(folder / "pairs") as temporary, PreferenceWriter(temporary, form="pair") as writer:
        for stored, index in _stored(made, {record["id"] for record in scored if is_left(record)}):
            writer.copy(stored, index)
    rejected = [record for record in records if not is_left(record)]
    write_jsonl(folder / "rejected.jsonl", rejected)
    (folder / "audit.json").unlink(missing_ok=True)
    if config.audit and any(map(is_left, scored)):
        write_json(folder / "audit.json", audit_pairs(Preferences(folder / "pairs"), seed=config.seed).to_dict())
    cleaned = sum(record["cleaned"] for record in records)
    write_json(folder / "funnel.json", asdict(count_funnel(len(records), rejected, cleaned)) | {"key": key})


def _clusters(scored: Sequence[Record], made: Sequence[Path], config: CurateConfig, wanted: Sequence[int]) -> ArrayLike:
    """The cluster of each wanted pair's photograph."""
    ids = [scored[index]["id"] for index in wanted]
    photographs: dict[str, list[float]] = {}
    reward = load_reward(config.keep.cluster_by)
    with threads(config.threads), torch.no_grad(), whole_float32():
        for stored, index in _stored(made, set(ids)):
            pair = stored[index]
            photographs[pair.id] = reward.encode([reward.prepare(pair.chosen)])[0].tolist()
    return cluster([photographs[one] for one in ids], config.keep.clusters, config.seed)


def _stored(made: Sequence[Path], wanted: set[str]) -> Iterator[tuple[Preferences, int]]:
    """Where the wanted pairs are stored, in the order of the photographs."""
    for shard in made:
        if any((shard / "pairs").glob("*.parquet")):
            there = Preferences(shard / "pairs")
            yield from ((there, index) for index, name in enumerate(there.ids()) if name in wanted)
