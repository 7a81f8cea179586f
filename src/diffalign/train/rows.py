"""Preference rows as latents and prompt embeddings, from the cache."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from diffalign.core import DiffalignError, content_hash, progress
from diffalign.data import LatentCache, Posterior, Preferences, ResizeRecipe, View, find_metric, to_tensor
from diffalign.models import Family
from diffalign.train.batches import Draws, sample_posterior
from diffalign.train.config import WeightsConfig
from diffalign.train.masks import DamageMasks
from diffalign.train.quantities import candidate_sides

__all__ = [
    "Latents",
    "LiveLatents",
    "PreferenceRows",
    "RowBatch",
    "candidate_count",
    "common_metrics",
    "data_hash",
    "fill_cache",
    "image_positions",
    "open_cache",
    "row_weights",
    "score_tensor",
]

PAIR = ("chosen", "rejected")  # as rows hold them


class Latents(Protocol):
    """Where posteriors and prompt embeddings come from: a ``LatentCache``, or ``LiveLatents``."""

    def latents(self, sha256: str, view: View = "plain") -> Posterior: ...

    def prompt(self, prompt: str) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class RowBatch:
    """B rows.

    Attributes:
        latents: {side: (B, C, h, w)} sampled from the posteriors.
        condition: what ``family.predict`` takes.
        row: what comes with the rows: label and weight (B,) float32, and of candidate sets scores (B, K, M).
        mask: (B, 1, h, w) weights of the errors, or None for all 1.
        ids: of the rows.
    """

    latents: dict[str, Tensor]
    condition: dict[str, Tensor]
    row: dict[str, Tensor]
    mask: Tensor | None
    ids: list[str]


class PreferenceRows:
    """Preferences behind row numbers; columns are read at once, latents when asked for.

    Args:
        preferences: pairs, or candidate sets of K images each.
        latents: the filled cache.
        sides: "chosen", "rejected" or both, or "candidate0" to "candidate<K - 1>": what the objective needs.
        flip: mirror rows whose draw is below 0.5.
        prompt_drop: empty the prompt of rows whose draw is below it, for all images of the row.
        metrics: which scores of candidate sets; empty for all that every row has, by name.
        weights: what the rows weigh; 1 each by default.
        masks: the pairs' damage masks at latent size.
        device: where batches go.

    Raises:
        DiffalignError: a row lacks a score, or candidate sets are not of one size.
    """

    def __init__(
        self,
        preferences: Preferences,
        latents: Latents,
        *,
        sides: Sequence[str],
        flip: bool,
        prompt_drop: float,
        metrics: Sequence[str] = (),
        weights: WeightsConfig | None = None,
        masks: DamageMasks | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self._latents = latents
        self._sides = tuple(sides)
        self._flip, self._prompt_drop, self._device = flip, prompt_drop, device
        self._ids, self._prompts, self.masks = preferences.ids(), preferences.prompts(), masks
        self._row = {"weight": row_weights(preferences, weights)}
        if preferences.form == "pair":
            names: tuple[str, ...] = PAIR
            self._row["label"] = torch.tensor(preferences.labels())
        else:
            names = candidate_sides(candidate_count(preferences))
            self._row["scores"] = score_tensor(preferences, metrics)
        self._hashes = [dict(zip(names, row, strict=True)) for row in preferences.image_hashes()]

    def __len__(self) -> int:
        return len(self._ids)

    def batch(self, rows: Sequence[int], draws: Draws) -> RowBatch:
        """The tensors of these rows under these draws."""
        flipped = [self._flip and draw < 0.5 for draw in draws.flip.tolist()]
        latents = {}
        for side in self._sides:
            posteriors = [
                self._latents.latents(self._hashes[row][side], "flipped" if mirror else "plain")
                for row, mirror in zip(rows, flipped, strict=True)
            ]
            whole = Posterior(torch.stack([p.mean for p in posteriors]), torch.stack([p.std for p in posteriors]))
            latents[side] = sample_posterior(whole, draws.posterior[side]).to(self._device)
        dropped = (draws.prompt_drop < self._prompt_drop).tolist()
        prompts = ["" if drop else self._prompts[row] for row, drop in zip(rows, dropped, strict=True)]
        embeds = [self._latents.prompt(prompt) for prompt in prompts]
        return RowBatch(
            latents=latents,
            condition={key: torch.stack([one[key] for one in embeds]).to(self._device) for key in embeds[0]},
            row={name: values[list(rows)].to(self._device) for name, values in self._row.items()},
            mask=None if self.masks is None else self.masks.weights(rows, flipped).to(self._device),
            ids=[self._ids[row] for row in rows],
        )

    def empty_condition(self) -> dict[str, Tensor]:
        """The empty prompt's, one row."""
        return {key: value[None].to(self._device) for key, value in self._latents.prompt("").items()}


def candidate_count(preferences: Preferences) -> int:
    """K of candidate sets, the same in every row.

    Raises:
        DiffalignError: it differs, or a set is a single image.
    """
    counts = {len(hashes) for hashes in preferences.image_hashes()}
    if len(counts) != 1 or min(counts) < 2:
        raise DiffalignError(
            "expected candidate sets of one size, at least 2 images each, to train on; the rows have "
            f"{', '.join(map(str, sorted(counts)))}"
        )
    return counts.pop()


def common_metrics(preferences: Preferences, metrics: Sequence[str] = ()) -> tuple[str, ...]:
    """The scores that every candidate set has: those asked for, or all of them by name.

    Args:
        preferences: candidate sets.
        metrics: names such as "pickscore", or whole identities as the rows hold them.

    Raises:
        DiffalignError: a row lacks one that is asked for (naming the nearest), or the rows have none in common.
    """
    rows = preferences.scores()
    common = sorted(set.intersection(*(set(row) for row in rows))) if rows else []
    if not common:
        raise DiffalignError("the candidate sets have no score in common: score them all by the same rewards")
    return tuple(find_metric(metric, common) for metric in metrics) or tuple(common)


def score_tensor(preferences: Preferences, metrics: Sequence[str] = ()) -> Tensor:
    """(N, K, M) float32 scores of candidate sets; see ``common_metrics``."""
    names = common_metrics(preferences, metrics)
    return torch.tensor([[row[name] for name in names] for row in preferences.scores()]).transpose(1, 2).contiguous()


def row_weights(preferences: Preferences, config: WeightsConfig | None) -> Tensor:
    """(N,) float32 ``exp(score / temperature)`` of the chosen images over its mean; 1 without a config.

    Raises:
        DiffalignError: a row lacks the score.
    """
    if config is None:
        return torch.ones(len(preferences))
    rows = zip(preferences.ids(), preferences.scores(), strict=True)
    chosen = [row[find_metric(config.metric, row, row=name)][0] for name, row in rows]
    return (torch.tensor(chosen, dtype=torch.float64) / config.temperature).softmax(0).mul(len(chosen)).float()


class LiveLatents:
    """Encode at every access what a cache would hold: slow, and equal to it."""

    def __init__(self, family: Family, preferences: Preferences, recipe: ResizeRecipe) -> None:
        self._family, self._recipe = family, recipe
        self._load = dict(preferences.images())

    def latents(self, sha256: str, view: View = "plain") -> Posterior:
        """The posterior of one image."""
        pixels = to_tensor(self._recipe(self._load[sha256]()))
        mean, std = self._family.encode_images((pixels.flip(-1) if view == "flipped" else pixels)[None])
        return Posterior(mean[0].float().cpu(), std[0].float().cpu())

    def prompt(self, prompt: str) -> dict[str, Tensor]:
        """The embeddings of one prompt."""
        return {key: value[0].cpu() for key, value in self._family.encode_prompts([prompt]).items()}


def fill_cache(
    folder: str | Path,
    family: Family,
    preferences: Preferences,
    *,
    resolution: int,
    flip: bool,
    sides: Collection[str] | None = None,
    batch_size: int = 8,
) -> LatentCache:
    """Encode what the cache in ``folder`` does not hold yet, and open it.

    The sides of pairs go one after the other, in batches of their own: a side is encoded to the same bits whether the
    other one is wanted, there already, or comes later. Of candidate sets all images are encoded.

    Args:
        folder: of the cache; several models and resolutions may share it.
        family: the model whose autoencoder and text encoders are used.
        preferences: rows whose images and prompts are wanted.
        resolution: pixels, resized by the shorter side and cropped at the centre.
        flip: encode the mirrored view too.
        sides: of pairs, which images are wanted: "chosen", "rejected"; both by default.
        batch_size: images per pass.
    """
    cache = open_cache(folder, family, resolution=resolution)
    views: tuple[View, ...] = ("plain", "flipped") if flip else ("plain",)
    positions = image_positions(preferences, sides)
    for one in [None] if positions is None else [[position] for position in positions]:
        said = "images" if one is None else f"{PAIR[one[0]]} images"
        images = progress(preferences.images(one), total=None, description=f"encoding {said}", unit="images")
        cache.fill(images, family.encode_images, views=views, batch_size=batch_size)
    prompts = dict.fromkeys(["", *preferences.prompts()])
    cache.fill_prompts(list(prompts), family.encode_prompts)
    return cache


def image_positions(preferences: Preferences, sides: Collection[str] | None) -> list[int] | None:
    """Which of a row's images are wanted: of pairs those of these sides; of candidate sets all, which is None."""
    if preferences.form == "candidates":
        return None
    return [position for position, side in enumerate(PAIR) if sides is None or side in sides]


def open_cache(folder: str | Path, family: Family, *, resolution: int) -> LatentCache:
    """The cache of a family's latents at this size, as it is."""
    return LatentCache.open(folder, model_revision=family.encoder_revision, recipe=ResizeRecipe(size=resolution))


def data_hash(preferences: Preferences) -> str:
    """What a resumed run must find unchanged: ids, prompts, labels or scores, and image hashes, in order."""
    said = preferences.labels() if preferences.form == "pair" else [dict(row) for row in preferences.scores()]
    return content_hash(preferences.ids(), preferences.prompts(), said, [list(h) for h in preferences.image_hashes()])
