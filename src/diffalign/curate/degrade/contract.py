"""What a degradation is: photographs, masks, prompts and seeds to damaged images, under a name and its settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from diffalign.core import Config, DiffalignError, Registry
from diffalign.models import Family, load_family

__all__ = ["DEGRADATIONS", "Degradation", "Kind", "Setup", "build_degradation", "in_batches"]

Damaged = list[Image.Image | None]


class Degradation:
    """A way to damage photographs, ready to be called; a subclass for each way overrides ``damage``.

    It may damage the whole image or what the mask covers; ``composite`` puts the rest of the photograph back. An image
    depends on its own photograph, mask, prompt and seed alone; float noise apart, not on its neighbours in a batch.

    Attributes:
        name: as the registry has it.
        parameters: all settings that decide the image, as JSON values, for its provenance.
        severity: from 0, (nearly) nothing, to 1, the strongest that is sensible; None where there is no such knob.
    """

    def __init__(self, name: str, parameters: Mapping[str, Any], severity: float | None = None) -> None:
        self.name = name
        self.parameters: dict[str, Any] = dict(parameters)
        self.severity = severity

    @property
    def model_revision(self) -> str:
        """What identifies the weights; empty where there are none. The first use may read every file of a model."""
        return ""

    def method_for(self, seed: int) -> Degradation:
        """What damages an image of this seed, for its provenance: this degradation itself, or one of a mixture."""
        return self

    def damage(
        self,
        images: Sequence[Image.Image],
        masks: Sequence[Image.Image],
        prompts: Sequence[str],
        seeds: Sequence[int],
    ) -> Damaged:
        """As the call, of at least one image, with a mask for each."""
        raise NotImplementedError

    def __call__(
        self,
        images: Sequence[Image.Image],
        masks: Sequence[Image.Image | None] | None,
        prompts: Sequence[str],
        seeds: Sequence[int],
    ) -> Damaged:
        """Damage photographs.

        Args:
            images: N "RGB" images of one size.
            masks: N "L" images of that size, 255 where to damage and 0 elsewhere; None damages the whole image.
            prompts: N texts.
            seeds: N numbers of at least 0.

        Returns:
            N "RGB" images of that size; None where a number was not finite.

        Raises:
            DiffalignError: the images do not suit the method.
            ValueError: counts, sizes or modes differ, or a mask has other values.
        """
        masks = [None] * len(images) if masks is None else masks
        _check_counts(images, masks, prompts, seeds)
        if not len(images):
            return []
        whole = Image.new("L", images[0].size, 255)
        filled = [whole if mask is None else mask for mask in masks]
        _check_images(images, filled)
        damaged = self.damage(images, filled, list(prompts), list(seeds))
        if len(damaged) != len(images) or any(one is not None and one.size != images[0].size for one in damaged):
            raise ValueError(f"{self.name}: expected {len(images)} damaged images of {images[0].size}")
        return damaged


@dataclass
class Setup:
    """What degradations are built with; each model is loaded once.

    Attributes:
        model: folder, hub id or embedded name of the model for those that name no weights of their own.
        device: where networks run.
        dtype: of their weights.
        batch_size: images at a time through a network; it changes them by float noise only.
    """

    model: str | Path | None = None
    device: str | torch.device = "cpu"
    dtype: torch.dtype = torch.float32
    batch_size: int = 4
    _loaded: dict[str, Any] = field(default_factory=dict, repr=False)

    def weights(self, own: str, name: str) -> str:
        """The model of a degradation: its own weights, else the shared model.

        Raises:
            DiffalignError: there is neither.
        """
        found = own or str(self.model or "")
        if not found:
            raise DiffalignError(
                f"{name} needs a model: expected weights among its settings, or model, such as 'tiny-sd'; got neither"
            )
        return found

    def family(self, weights: str) -> Family:
        """A text-to-image model."""
        family: Family = self.once(weights, lambda: load_family(weights, device=self.device, dtype=self.dtype))
        return family

    def once(self, weights: str, load: Callable[[], Any]) -> Any:
        """What ``load`` returns, called once for each weights."""
        if weights not in self._loaded:
            self._loaded[weights] = load()
        return self._loaded[weights]


@dataclass(frozen=True)
class Kind:
    """A registered degradation.

    Attributes:
        settings: what may be set.
        build: settings and setup to a degradation.
    """

    settings: type[Config]
    build: Callable[[Any, Setup], Degradation]


DEGRADATIONS: Registry[Kind] = Registry("degradation")


def build_degradation(settings: Mapping[str, Any] | str, setup: Setup) -> Degradation:
    """A degradation of its name and settings; see ``load_degradation``.

    Raises:
        DiffalignError: an unknown name or setting (with the nearest), a wrong value, or a model that cannot be loaded.
    """
    given: dict[Any, Any] = {"name": settings} if isinstance(settings, str) else dict(settings)
    name = given.pop("name", None)
    if not isinstance(name, str) or not all(isinstance(key, str) for key in given):
        raise DiffalignError(f"expected a degradation's name, or settings such as {{'name': 'jpeg'}}, got {settings!r}")
    kind = DEGRADATIONS.get(name)
    try:
        values = kind.settings(**given)
    except DiffalignError as error:
        raise DiffalignError(f"degradation {name!r}: {error}") from None
    return kind.build(values, setup)


def in_batches(draw: Callable[..., Sequence[Image.Image | None]], batch_size: int, *columns: Sequence[Any]) -> Damaged:
    """Draw N images, ``batch_size`` at a time; None for each that raises FloatingPointError alone as well.

    Args:
        draw: slices of the columns to images.
        batch_size: at least 1.
        *columns: N items each.
    """
    made: Damaged = []
    for start in range(0, len(columns[0]), batch_size):
        made += _draw(draw, [column[start : start + batch_size] for column in columns])
    return made


def _draw(draw: Callable[..., Sequence[Image.Image | None]], columns: Sequence[Sequence[Any]]) -> Damaged:
    try:
        return list(draw(*columns))
    except FloatingPointError:  # of one image, it may be; the others are drawn again without it
        if len(columns[0]) == 1:
            return [None]
    alone = ([column[index : index + 1] for column in columns] for index in range(len(columns[0])))
    return [one for row in alone for one in _draw(draw, row)]


def _check_counts(*columns: Sequence[Any]) -> None:
    counts = tuple(len(column) for column in columns)
    if len(set(counts)) != 1 or isinstance(columns[2], str):
        raise ValueError(f"expected as many images, masks, prompts and seeds, got {counts}")
    if any(seed < 0 for seed in columns[3]):
        raise ValueError(f"expected seeds of at least 0, got {list(columns[3])}")


def _check_images(images: Sequence[Image.Image], masks: Sequence[Image.Image]) -> None:
    sizes = {image.size for image in (*images, *masks)}
    modes = {image.mode for image in images}, {mask.mode for mask in masks}
    if len(sizes) > 1 or modes != ({"RGB"}, {"L"}):
        raise ValueError(f"expected RGB images and masks (L), all of one size, got {modes} and {sorted(sizes)}")
    if any(not set(np.unique(np.asarray(mask)).tolist()) <= {0, 255} for mask in masks):
        raise ValueError("expected masks of 0 and 255 alone; threshold them first")
