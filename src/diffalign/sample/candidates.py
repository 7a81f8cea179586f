"""Prompts to candidate sets: K images of a model for each prompt, scored by several rewards, as preference rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from diffalign.core import (
    Config,
    DiffalignError,
    RunFolder,
    Shard,
    content_hash,
    plan_shards,
    progress,
    read_json,
    read_jsonl,
    resolve,
    run_shards,
    safe_name,
    setting,
    unknown,
    warn,
    write_json,
    write_jsonl,
)
from diffalign.data import decode_image, write_preferences
from diffalign.data.writing import MadeRow
from diffalign.rewards import REWARDS, UNVERSIONED, Reward, load_reward, score
from diffalign.sample.images import OK, sample_images
from diffalign.sample.run import SampleConfig, load_sampler, wanted_prompts
from diffalign.types import CandidateSet, Provenance

__all__ = ["CandidateCounts", "CandidatesConfig", "check_rewards", "generate_candidates"]

NOT_GENERATED, BLACK, NO_SCORE = "not generated", "black image", "no score"
_BATCHES_PER_SHARD = 4  # of scores: what a kill loses

Row = dict[str, Any]  # of the manifest of images
Outcome = tuple[float | None, str]  # a score and its status, as ``diffalign.rewards.score`` has them


class CandidatesConfig(Config):
    """Candidate sets of a model, with an adapter or without."""

    sample: SampleConfig = setting(..., "the images: num_seeds of them, at least 2, for each prompt")
    rewards: tuple[str, ...] = setting(..., "what scores them, as diffalign score names it")
    weights: dict[str, str] = setting({}, "of rewards, by name: folder or hub id")
    score_batch_size: int = setting(32, "images per call of a reward", unit="images", ge=1)

    def model_post_init(self, _: object) -> None:
        """Checks that concern several settings.

        Raises:
            DiffalignError: fewer than 2 images, no reward, one twice, or weights of what is no reward of these.
        """
        if self.sample.num_seeds < 2:
            raise DiffalignError(
                f"sample.num_seeds: expected at least 2 images per prompt to choose from, got {self.sample.num_seeds}"
            )
        if not self.rewards or len(set(self.rewards)) < len(self.rewards):
            raise DiffalignError(f"rewards: expected at least one, each once, got {list(self.rewards)}")
        for name in self.weights:
            if name not in self.rewards:
                raise unknown("reward with weights", name, self.rewards)


@dataclass(frozen=True, kw_only=True)
class CandidateCounts:
    """What became of the prompts.

    Attributes:
        prompts: asked for.
        sets: written.
        set_aside: prompts without a set, by reason.
    """

    prompts: int
    sets: int
    set_aside: Mapping[str, int]


@dataclass(frozen=True)
class _Asked:
    """The K images of a prompt: their rows, and per reward's identity their outcomes."""

    rows: Sequence[Row]
    outcomes: Mapping[str, Sequence[Outcome]]


def generate_candidates(
    config: CandidatesConfig, folder: str | Path, *, device: str | torch.device = "cpu"
) -> CandidateCounts:
    """Write the candidate sets that the settings describe into ``folder/candidates``, or go on with the run of before.

    Image k of a prompt is that of seed k, so its noise depends on the prompt's id and k alone (see ``sample_images``;
    the images lie in ``folder/sample``). A prompt of which an image failed, is black or has no score gets no set: it is
    a row of ``folder/rejected.jsonl`` with its reason. ``counts.json`` has the numbers. A killed run goes on and ends
    with the same bytes.

    Args:
        config: the settings.
        folder: of the run.
        device: where the networks run, the model and then each reward.

    Raises:
        DiffalignError: a setting does not fit; the folder belongs to another run; everything fails; or no set is left.

    Example:
        >>> import tempfile
        >>> from diffalign.data import Preferences
        >>> images = SampleConfig(
        ...     model="tiny-sd", prompts="photographs", limit=2, num_seeds=3, num_steps=4, guidance_scale=4.0
        ... )
        >>> folder = tempfile.mkdtemp()
        >>> generate_candidates(CandidatesConfig(sample=images, rewards=("saturation",)), folder)
        CandidateCounts(prompts=2, sets=2, set_aside={})
        >>> row = Preferences(folder)[0]
        >>> len(row.images), [len(values) for values in row.scores.values()]
        (3, [3])
    """
    check_rewards(config)
    prompts = wanted_prompts(config.sample)
    identities = _identities(config, device)
    count, batch_size = config.sample.num_seeds, config.sample.batch_size
    with ExitStack() as loaded:
        sampler = loaded.enter_context(load_sampler(config.sample, device=device))
        sampler_identity = dict(sampler.identity)
        with RunFolder.open(folder, config, kind="candidates") as run:
            _refuse_changed(run.path / "inputs.json", {"rewards": identities})
            manifest = sample_images(
                sampler, prompts, run.path / "sample", num_seeds=count, batch_size=batch_size, config=config.sample
            )
            del sampler
            loaded.close()  # the rewards may need its memory
            rows = list(read_jsonl(manifest))
            scores = {identities[name]: _score(config, name, rows, run.path, device) for name in config.rewards}
            asked = [
                _Asked(rows[at : at + count], {name: found[at : at + count] for name, found in scores.items()})
                for at in range(0, len(rows), count)
            ]
            make = partial(_make, config=config, sampler=sampler_identity, images=manifest.parent)
            return _write(asked, make, run.path)


def check_rewards(config: CandidatesConfig) -> None:
    """Refuse names of rewards that there are not; no weights are loaded.

    Raises:
        DiffalignError: an unknown name, with the nearest, or a function of one's own that cannot be found.
    """
    for name in config.rewards:
        bare = name.removeprefix("sgp:")
        if ":" in bare:
            resolve(bare)
        else:
            REWARDS.get(bare)


def _load(config: CandidatesConfig, name: str, device: str | torch.device) -> Reward:
    return load_reward(name, weights=config.weights.get(name), device=device)


def _identities(config: CandidatesConfig, device: str | torch.device) -> dict[str, str]:
    """The identity of every reward by name; each is loaded and let go, so that what is missing is told at once."""
    cards = {name: _load(config, name, device).card for name in config.rewards}
    for card in cards.values():
        if card.weights == UNVERSIONED:
            warn(f"{card.name} has no version, so nobody sees when it changes; give it an attribute version")
    return {name: card.identity for name, card in cards.items()}


def _refuse_changed(path: Path, inputs: Mapping[str, Any]) -> None:
    if not path.exists():
        write_json(path, inputs)
    elif (found := read_json(path)) != inputs:
        raise DiffalignError(
            f"{path.parent} was begun with other versions of its rewards: {found['rewards']} there, "
            f"{inputs['rewards']} now. Bring the former ones back to go on, or choose another folder to begin anew."
        )


def _score(
    config: CandidatesConfig, name: str, rows: Sequence[Row], folder: Path, device: str | torch.device
) -> list[Outcome]:
    """What one reward says of every row, in order."""
    load = cache(lambda: _load(config, name, device))  # not at all where everything is scored
    made = [row for row in rows if row["status"] == OK]

    def work(shard: Shard, path: Path) -> None:
        batch = [made[place] for place in shard.rows]
        files = [folder / "sample" / row["file"] for row in batch]
        found = score(load(), files, [row["prompt"] for row in batch], batch_size=config.score_batch_size)
        if all(status.startswith("error") for status in found.statuses):  # a broken reward or device: keep nothing
            raise DiffalignError(f"{name} failed on all of {len(batch)} images, the first with {found.statuses[0]}")
        outcomes = zip(found.values.tolist(), found.statuses, strict=True)
        write_jsonl(path, ({"value": value if status == OK else None, "status": status} for value, status in outcomes))

    files = run_shards(
        plan_shards(len(made), _BATCHES_PER_SHARD * config.score_batch_size), work, folder / "scores" / safe_name(name),
        suffix=".jsonl", key=content_hash([row["sha256"] for row in made]), description=f"score {name}",
    )  # fmt: skip
    scored = (row for file in files for row in read_jsonl(file))
    outcomes = ((row["value"], row["status"]) for row in scored)
    return [next(outcomes) if row["status"] == OK else (None, NOT_GENERATED) for row in rows]


def _write(asked: Sequence[_Asked], make: Callable[[_Asked], MadeRow], folder: Path) -> CandidateCounts:
    """Write the sets, and what was set aside."""
    reasons = [_reason(one) for one in asked]
    kept = [one for one, reason in zip(asked, reasons, strict=True) if reason is None]
    aside = [
        {"id": one.rows[0]["prompt_id"], "prompt": one.rows[0]["prompt"], "reason": reason[0], "detail": reason[1]}
        for one, reason in zip(asked, reasons, strict=True)
        if reason
    ]
    write_jsonl(folder / "rejected.jsonl", aside)
    told = f"{len(aside)} of {len(asked)} prompts have no candidate set; {folder / 'rejected.jsonl'} says why"
    if not kept:
        raise DiffalignError(f"{told}, first: {aside[0]['detail']}")
    if aside:
        warn(told)
    sets = progress(kept, description="write candidate sets", unit="sets")
    rows = ((str(one.rows[0]["prompt_id"]), partial(make, one)) for one in sets)
    write_preferences(folder / "candidates", "candidates", rows)
    counts = CandidateCounts(
        prompts=len(asked), sets=len(kept), set_aside=dict(Counter(str(row["reason"]) for row in aside))
    )
    write_json(folder / "counts.json", asdict(counts))
    return counts


def _reason(asked: _Asked) -> tuple[str, str] | None:
    """Why a prompt gets no set, and what exactly; None where it gets one."""
    for row in asked.rows:
        if row["status"] != OK:
            return NOT_GENERATED, f"seed {row['seed']}: {row['status']}"
    for metric, outcomes in asked.outcomes.items():
        for row, (_, status) in zip(asked.rows, outcomes, strict=True):
            if status != OK:
                reason = BLACK if status == BLACK else NO_SCORE
                return reason, f"seed {row['seed']}: {status}" + ("" if reason == BLACK else f", by {metric}")
    return None


def _make(asked: _Asked, config: CandidatesConfig, sampler: Mapping[str, Any], images: Path) -> MadeRow:
    """A candidate set, and its images' bytes as they are."""
    encoded = [(images / row["file"]).read_bytes() for row in asked.rows]
    seeds = [row["seed"] for row in asked.rows]
    told = {**sampler, "model": config.sample.model, "seeds": seeds}
    candidates = CandidateSet(
        id=asked.rows[0]["prompt_id"],
        prompt=asked.rows[0]["prompt"],
        images=tuple(decode_image(data) for data in encoded),
        scores={
            name: tuple(value for value, _ in found if value is not None) for name, found in asked.outcomes.items()
        },
        provenance=Provenance(
            source=config.sample.prompts,
            sha256=tuple(row["sha256"] for row in asked.rows),
            method="sample",
            parameters=told,
            seed=seeds[0],
            model_revision=str(sampler["model"]),
        ),
    )
    return candidates, encoded
