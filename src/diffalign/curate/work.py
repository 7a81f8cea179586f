"""What a worker does with a shard: look at photographs, or make pairs of those that were selected.

Both travel to worker processes, which load each model once.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import torch

from diffalign.core import DiffalignError, Shard, content_hash, dump_config, write_jsonl
from diffalign.curate.captioners import Captioner, load_captioner
from diffalign.curate.config import CurateConfig
from diffalign.curate.degrade import DEGRADATIONS, Degradation, load_degradation
from diffalign.curate.locate import LOCATORS, Locator, load_locator
from diffalign.curate.rows import Candidate, Record
from diffalign.curate.sources import Photos
from diffalign.curate.stages import (
    caption_photos,
    composite_regions,
    degrade_regions,
    drop_artwork,
    locate_regions,
    read_photos,
    score_pairs,
    select_photos,
)
from diffalign.data import PreferenceWriter
from diffalign.rewards import ClipReward, Reward, load_reward

__all__ = ["Look", "Make", "Models", "check_names", "load_models", "release_models", "threads"]

IS_ARTWORK = "Is this image artwork or in anime style? Answer yes or no."
VLM = "vlm:"

T = TypeVar("T")


@dataclass(frozen=True)
class Models:
    """Every network of a curation, each loaded when it is first asked for.

    Attributes:
        config: the settings.
        device: where networks run.
    """

    config: CurateConfig
    device: str

    @cached_property
    def captioner(self) -> Captioner | None:
        """What captions photographs without caption."""
        return load_captioner(self.config.captioner, device=self.device) if self.config.captioner else None

    @cached_property
    def locator(self) -> Locator:
        """What finds the place to damage."""
        config = self.config
        return load_locator(config.locate, area=(config.min_area, config.max_area), device=self.device)

    @cached_property
    def degradation(self) -> Degradation:
        """What damages."""
        config = self.config
        dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[config.precision]
        return load_degradation(
            config.degrade, model=config.model, device=self.device, dtype=dtype, batch_size=config.batch_size
        )

    @cached_property
    def rewards(self) -> list[Reward]:
        """What scores pairs."""
        return [load_reward(name, device=self.device) for name in self.config.rewards]

    @cached_property
    def measures(self) -> dict[str, Reward]:
        """What photographs are selected by, under the names of the settings."""
        names = dict.fromkeys((*self.config.select.min_scores, *self.config.select.above_mean))
        return {name: load_reward(name, device=self.device) for name in names}

    @cached_property
    def art_judge(self) -> Reward | Captioner | None:
        """What tells artwork from photographs."""
        spec = self.config.select.photographic
        if spec.startswith(VLM):
            return load_captioner(spec.removeprefix(VLM), device=self.device, question=IS_ARTWORK, max_new_tokens=8)
        return load_reward(spec, device=self.device) if spec else None

    def problems(self) -> dict[str, str]:
        """Load everything; by setting, what is missing or does not fit."""
        found = {}
        for setting, check in _CHECKS.items():
            try:
                check(self)
            except DiffalignError as error:
                found[setting] = str(error)
        return found

    def check(self) -> None:
        """Load everything, and refuse what does not fit.

        Raises:
            DiffalignError: a model or name is missing, a reward is one of which less is better, or the judge of
                artwork does not read texts.
        """
        if found := self.problems():
            raise DiffalignError("\n".join(found.values()))

    def _check_rewards(self) -> None:
        names = [reward.card.identity for reward in self.rewards]
        if len(set(names)) < max(len(names), 1):
            raise DiffalignError(f"expected at least one reward to score pairs, each once, got {list(names)}")
        for reward in self.rewards:
            if reward.card.higher_is_better is not True:
                raise DiffalignError(
                    f"expected rewards of which more is better, got {reward.card.name!r}, which sees no damage"
                )
        if self.config.keep.min_agreement > len(self.rewards):
            raise DiffalignError(
                f"expected keep.min_agreement of at most {len(self.rewards)}, the number of rewards, got "
                f"{self.config.keep.min_agreement}"
            )

    def _check_clusters(self) -> None:
        keep = self.config.keep
        if keep.clusters and not isinstance(load_reward(keep.cluster_by), ClipReward):
            raise DiffalignError(
                f"expected keep.cluster_by to be a CLIP score, such as clip_score, got {keep.cluster_by!r}, which has "
                "no features of images"
            )

    def _check_judge(self) -> None:
        judge = self.art_judge
        if isinstance(judge, Reward) and "prompt" not in judge.card.needs:
            raise DiffalignError(
                f"expected select.photographic to be a reward that compares images with texts, such as clip_score, or "
                f"vlm:<captioner>, got {judge.card.name!r}"
            )

    @property
    def identities(self) -> list[str]:
        """What decides the results besides settings and photographs."""
        rewards = [reward.card.identity for reward in (*self.rewards, *self.measures.values())]
        judges = [one for one in (self.captioner, self.art_judge) if one is not None]
        told = [one.card.identity if isinstance(one, Reward) else one.identity for one in judges]
        return [self.degradation.model_revision, self.locator.model_revision, *rewards, *told]


_CHECKS: dict[str, Callable[[Models], object]] = {
    "captioner": lambda models: models.captioner,
    "select": lambda models: models.measures,
    "select.photographic": Models._check_judge,
    "locate": lambda models: models.locator,
    "degrade": lambda models: models.degradation,
    "rewards": Models._check_rewards,
    "keep.cluster_by": Models._check_clusters,
}


def check_names(config: CurateConfig) -> None:
    """Refuse names of a locator or degradation that there are not; nothing is loaded.

    Raises:
        DiffalignError: an unknown name, with the nearest.
    """
    for registry, settings in ((LOCATORS, config.locate), (DEGRADATIONS, config.degrade)):
        registry.get(str(settings.get("name", "")))


@dataclass(frozen=True)
class _Work:
    """What both kinds of work share.

    Attributes:
        config: the settings.
        photos: all photographs of the run, or those that were selected.
        device: where networks run.
    """

    config: CurateConfig
    photos: Photos
    device: str

    def batches(self, shard: Shard) -> list[Photos]:
        """The photographs of a shard; batches never cross shards."""
        size = self.config.batch_size
        return [self.photos[start : min(start + size, shard.stop)] for start in range(shard.start, shard.stop, size)]


class Look(_Work):
    """Measure the photographs of a shard; ``rows.jsonl``."""

    def __call__(self, shard: Shard, path: Path) -> None:
        """Write the shard's folder."""
        with threads(self.config.threads):
            looked = [self.look(rows) for rows in ahead(read_photos, self.batches(shard))]
        path.mkdir()
        write_jsonl(path / "rows.jsonl", (row for rows in looked for row in rows))

    def look(self, rows: Sequence[Candidate]) -> list[Record]:
        """Every stage that tells which photographs are used; what is left of a row is its record."""
        models, select = load_models(self.config, self.device), self.config.select
        rows = select_photos(
            rows, rewards=models.measures, min_scores=select.min_scores, min_contrast=select.min_contrast
        )
        if models.art_judge is not None:
            rows = drop_artwork(rows, models.art_judge)
        return [row.record() for row in rows]


class Make(_Work):
    """Make the pairs of a shard; ``pairs/`` and ``rows.jsonl``."""

    def __call__(self, shard: Shard, path: Path) -> None:
        """Write the shard's folder; pairs are encoded beside the networks."""
        records = []
        with (
            threads(self.config.threads),
            PreferenceWriter(path / "pairs", form="pair", rows_per_shard=2**20) as writer,
            ThreadPoolExecutor(1) as scribe,
        ):
            writing: Future[None] | None = None
            for rows in ahead(read_photos, self.batches(shard)):
                made = self.make(rows)
                records += [row.record() for row in made]
                if writing is not None:
                    writing.result()  # raises what the thread did; no more than one batch waits
                writing = scribe.submit(_write, writer, [row for row in made if row.dropped is None])
            if writing is not None:
                writing.result()
        write_jsonl(path / "rows.jsonl", records)

    def make(self, rows: Sequence[Candidate]) -> list[Candidate]:
        """Every stage from the photograph to the scored pair."""
        models, config = load_models(self.config, self.device), self.config
        if models.captioner is not None:
            rows = caption_photos(rows, models.captioner)
        rows = locate_regions(rows, models.locator, seed=config.seed)
        rows = degrade_regions(rows, models.degradation, seed=config.seed)
        rows = composite_regions(rows, feather=config.feather)
        return score_pairs(rows, models.rewards)


def _write(writer: PreferenceWriter, rows: Sequence[Candidate]) -> None:
    for row in rows:
        writer.write(row.pair())


def ahead(function: Callable[[Photos], list[T]], batches: Iterable[Photos]) -> Iterator[list[T]]:
    """What a function makes of each batch, with the next one made on a thread meanwhile."""
    with ThreadPoolExecutor(1) as reader:
        waiting: Future[list[T]] | None = None
        for batch in batches:
            following = reader.submit(function, batch)
            if waiting is not None:
                yield waiting.result()
            waiting = following
        if waiting is not None:
            yield waiting.result()


@contextmanager
def threads(count: int) -> Iterator[None]:
    """torch with so many threads: sums depend on it."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def release_models() -> None:
    """Let go of the networks that this process keeps."""
    _LOADED.clear()
    gc.collect()
    torch.cuda.empty_cache()


_LOADED: dict[str, Models] = {}


def load_models(config: CurateConfig, device: str) -> Models:
    """The networks of a curation; a process keeps those of the latest one."""
    key = content_hash(dump_config(config), device)
    if key not in _LOADED:
        _LOADED.clear()
        _LOADED[key] = Models(config, device)
    return _LOADED[key]
