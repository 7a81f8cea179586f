"""Several degradations as one: each image's is drawn from its own seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from diffalign.core import Config, DiffalignError, numpy_generator, setting
from diffalign.curate.degrade.contract import DEGRADATIONS, Damaged, Degradation, Kind, Setup, build_degradation

__all__ = ["Mixture", "MixtureSettings"]


class MixtureSettings(Config):
    """What is mixed."""

    of: list[dict[str, Any] | str] = setting(
        ..., "degradations: a name, or settings with a name and an optional weight (1)", min_length=1
    )


class Mixture(Degradation):
    """One of several degradations for each image, with a probability in proportion to its weight.

        method = the i with c_{i-1} <= u < c_i,  c the cumulated shares of the weights,  u uniform, from the seed

    ``method_for(seed)`` says which one it is; it gets the same seed.

    Args:
        parts: what is mixed.
        weights: one for each, above 0.

    Raises:
        DiffalignError: there are no parts, or a weight is not a number above 0.
    """

    def __init__(self, parts: Sequence[Degradation], weights: Sequence[float]) -> None:
        if not parts or len(parts) != len(weights) or not all(0 < one < math.inf for one in weights):
            raise DiffalignError(f"mixture: expected degradations with a weight above 0 each, got weights {weights}")
        pairs = zip(parts, weights, strict=True)
        told = [{"name": one.name, "weight": float(weight), "parameters": one.parameters} for one, weight in pairs]
        super().__init__("mixture", {"of": told})
        self._parts = list(parts)
        # a mixture in a mixture needs a draw of its own
        self._height: int = 1 + max((one._height for one in parts if isinstance(one, Mixture)), default=0)
        self._bounds = np.cumsum(weights)[:-1] / np.sum(weights)

    @property
    def model_revision(self) -> str:
        """Those of its parts, each once, in their order."""
        return " ".join(dict.fromkeys(one.model_revision for one in self._parts if one.model_revision))

    def method_for(self, seed: int) -> Degradation:
        """The one that damages an image of this seed."""
        return self._parts[self._index(seed)].method_for(seed)

    def damage(
        self, images: Sequence[Image.Image], masks: Sequence[Image.Image], prompts: Sequence[str], seeds: Sequence[int]
    ) -> Damaged:
        """Each part its images, in one call."""
        chosen = [self._index(seed) for seed in seeds]
        made: Damaged = [None] * len(images)
        for index in sorted(set(chosen)):
            mine = [place for place, one in enumerate(chosen) if one == index]
            columns: Any = ([column[place] for place in mine] for column in (images, masks, prompts, seeds))
            for place, image in zip(mine, self._parts[index](*columns), strict=True):
                made[place] = image
        return made

    def _index(self, seed: int) -> int:
        u = numpy_generator("mixture", self._height, seed).random()
        return int(np.searchsorted(self._bounds, u, side="right"))


def _build(settings: MixtureSettings, setup: Setup) -> Degradation:
    parts, weights = [], []
    for one in settings.of:
        rest: dict[str, Any] | str = one
        weight: Any = 1.0
        if isinstance(one, Mapping):
            rest = {key: value for key, value in one.items() if key != "weight"}
            weight = one.get("weight", 1.0)
        if isinstance(weight, bool) or not isinstance(weight, (int, float)):
            raise DiffalignError(f"mixture: expected a number above 0 as weight, got {weight!r} in {one}")
        parts.append(build_degradation(rest, setup))
        weights.append(float(weight))
    return Mixture(parts, weights)


DEGRADATIONS.register("mixture")(Kind(MixtureSettings, _build))
