"""Preference rows as latents and prompt embeddings, from the cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from diffalign.core import DiffalignError, content_hash, progress
from diffalign.data import LatentCache, Posterior, Preferences, ResizeRecipe, View, to_tensor
from diffalign.models import Family
from diffalign.train.batches import Draws, sample_posterior

__all__ = ["Latents", "LiveLatents", "PairRows", "RowBatch", "data_hash", "fill_cache", "open_cache"]


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
        label: (B,) float32.
        ids: of the rows.
    """

    latents: dict[str, Tensor]
    condition: dict[str, Tensor]
    label: Tensor
    ids: list[str]


class PairRows:
    """Pairs behind row numbers; columns are read at once, latents when asked for.

    Args:
        preferences: pairs.
        latents: the filled cache.
        sides: "chosen", "rejected" or both: what the objective needs.
        flip: mirror rows whose draw is below 0.5.
        prompt_drop: empty the prompt of rows whose draw is below it, for both sides.
        device: where batches go.
    """

    def __init__(
        self,
        preferences: Preferences,
        latents: Latents,
        *,
        sides: Sequence[str],
        flip: bool,
        prompt_drop: float,
        device: torch.device | str = "cpu",
    ) -> None:
        if preferences.form != "pair":
            raise DiffalignError(f"expected pairs, got rows of form {preferences.form!r}")
        self._latents = latents
        self._sides = tuple(sides)
        self._flip, self._prompt_drop, self._device = flip, prompt_drop, device
        self._ids, self._prompts, self._labels = preferences.ids(), preferences.prompts(), preferences.labels()
        self._hashes = [dict(zip(("chosen", "rejected"), both, strict=True)) for both in preferences.image_hashes()]

    def __len__(self) -> int:
        return len(self._ids)

    def batch(self, rows: Sequence[int], draws: Draws) -> RowBatch:
        """The tensors of these rows under these draws."""
        views: list[View] = ["flipped" if self._flip and draw < 0.5 else "plain" for draw in draws.flip.tolist()]
        latents = {}
        for side in self._sides:
            posteriors = [
                self._latents.latents(self._hashes[row][side], view) for row, view in zip(rows, views, strict=True)
            ]
            whole = Posterior(torch.stack([p.mean for p in posteriors]), torch.stack([p.std for p in posteriors]))
            latents[side] = sample_posterior(whole, draws.posterior[side]).to(self._device)
        dropped = (draws.prompt_drop < self._prompt_drop).tolist()
        prompts = ["" if drop else self._prompts[row] for row, drop in zip(rows, dropped, strict=True)]
        embeds = [self._latents.prompt(prompt) for prompt in prompts]
        condition = {key: torch.stack([one[key] for one in embeds]).to(self._device) for key in embeds[0]}
        label = torch.tensor([self._labels[row] for row in rows], device=self._device)
        return RowBatch(latents, condition, label, [self._ids[row] for row in rows])

    def empty_condition(self) -> dict[str, Tensor]:
        """The empty prompt's, one row."""
        return {key: value[None].to(self._device) for key, value in self._latents.prompt("").items()}


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
    folder: str | Path, family: Family, preferences: Preferences, *, resolution: int, flip: bool, batch_size: int = 8
) -> LatentCache:
    """Encode what the cache in ``folder`` does not hold yet, and open it.

    Args:
        folder: of the cache; several models and resolutions may share it.
        family: the model whose autoencoder and text encoders are used.
        preferences: rows whose images and prompts are wanted.
        resolution: pixels, resized by the shorter side and cropped at the centre.
        flip: encode the mirrored view too.
        batch_size: images per pass.
    """
    cache = open_cache(folder, family, resolution=resolution)
    views: tuple[View, ...] = ("plain", "flipped") if flip else ("plain",)
    images = progress(preferences.images(), total=None, description="encoding images", unit="images")
    cache.fill(images, family.encode_images, views=views, batch_size=batch_size)
    prompts = dict.fromkeys(["", *preferences.prompts()])
    cache.fill_prompts(list(prompts), family.encode_prompts)
    return cache


def open_cache(folder: str | Path, family: Family, *, resolution: int) -> LatentCache:
    """The cache of a family's latents at this size, as it is."""
    return LatentCache.open(folder, model_revision=family.encoder_revision, recipe=ResizeRecipe(size=resolution))


def data_hash(preferences: Preferences) -> str:
    """What a resumed run must find unchanged: ids, prompts, labels and image hashes, in order."""
    return content_hash(
        preferences.ids(), preferences.prompts(), preferences.labels(), [list(h) for h in preferences.image_hashes()]
    )
