"""From a name to a loaded reward."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from diffalign.core import DiffalignError, resolve, sha256_file
from diffalign.rewards.contract import REWARDS, UNVERSIONED, Reward, RewardCard
from diffalign.rewards.sgp import StyleGap

__all__ = ["FunctionReward", "load_reward"]


class FunctionReward(Reward):
    """The user's own ``function(images, prompts)``: B RGB images and B texts to B numbers.

    Its version is its attribute ``version`` if it has one, else a sha256 over the file that it stands in. What has
    neither (a builtin, an instance that can be called) scores all the same, but its scores are neither kept nor
    compared between runs.

    Args:
        name: as ``"module:function"``.
        function: the function.
        device: where the scores are put.
    """

    def __init__(
        self,
        name: str,
        function: Callable[[Sequence[Image.Image], Sequence[str]], Any],
        device: str | torch.device = "cpu",
    ) -> None:
        super().__init__(RewardCard(name=name, weights=_source_revision(function), preprocessing="own"), device)
        self.function = function

    def compare(self, features: Sequence[Image.Image], prompts: Sequence[str]) -> Tensor:
        """What the function returns."""
        return torch.as_tensor(self.function(features, prompts), dtype=torch.float32, device=self.device)


def load_reward(spec: str, *, weights: str | Path | None = None, device: str | torch.device = "cpu") -> Reward:
    """Load a reward.

    Args:
        spec: a name in `REWARDS`; ``"sgp:<name>"`` for the style gap of a text-image score; or ``"module:function"``, a
            function ``(images, prompts)`` of the user's own (or an instance of `Reward`).
        weights: a model folder, a hub id or the name of an embedded model of the same form; for rewards that need
            conversion, what `convert_reward` wrote. None takes the published weights from the hub.
        device: where to run.

    Raises:
        DiffalignError: an unknown name (with the nearest), or weights that are missing (with how to get them).

    Example:
        >>> reward = load_reward("luminance")
        >>> reward([Image.new("RGB", (5, 6), "white")], ["a photo of snow"])
        tensor([1.])
        >>> reward.card.identity
        'luminance@none/grey8'
    """
    if spec.startswith("sgp:"):
        return StyleGap(load_reward(spec.removeprefix("sgp:"), weights=weights, device=device))
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise DiffalignError(
            f"cannot use the device {device!r}: {str(error).splitlines()[0]}; `diffalign env` lists those that are here"
        ) from error
    if ":" not in spec:
        return REWARDS.get(spec)(weights, torch.device(device))
    if weights is not None:
        raise DiffalignError(f"{spec!r} is a function of your own and takes no weights; let it load them itself")
    found = resolve(spec)
    return found if isinstance(found, Reward) else FunctionReward(spec, found, device)


def _source_revision(function: Callable[..., Any]) -> str:
    if (version := getattr(function, "version", None)) is not None:
        return str(version)
    try:
        file = inspect.getsourcefile(function)
    except TypeError:  # a builtin, or an instance that can be called
        file = None
    return sha256_file(file)[:12] if file else UNVERSIONED
