"""What a guide is: the passes it needs, and a pure formula that combines their predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from torch import Tensor, nn

__all__ = ["BASE", "BASE_ALONE", "Branch", "Guide", "HoldingGuide", "Pass", "Site"]

BASE = "base"  # the pass without any adapter of the guide

Branch = Literal["both", "cond", "uncond"]
"""Rows of a text-guided batch: all of them, those with the prompt, those with the empty or negative prompt."""


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One evaluation of the denoiser.

    Attributes:
        adapters: role -> weight of the guide's adapters that are on.
        branch: the rows it is made for.
        text_extrapolation: alpha; the text of unconditional rows becomes (1 + alpha) uncond - alpha cond.
    """

    adapters: Mapping[str, float] = field(default_factory=dict)
    branch: Branch = "both"
    text_extrapolation: float = 0.0


BASE_ALONE: Mapping[str, Pass] = {BASE: Pass()}


@dataclass(eq=False)
class Site:
    """Where a guide's hooks sit, and what they may know of the forward pass that is running.

    Attributes:
        pipeline: the pipeline.
        denoiser: its network.
        adapters: role -> name of the adapter on the network.
        compiled: whether torch.compile made it or a part of it.
        conditional: positions of the conditional rows in the running batch.
        samples: for each of them, the number of its image, 0 to ``num_samples`` - 1.
        num_samples: images that are being made.
        progress: from 0, pure noise, to 1, the image.
    """

    pipeline: Any
    denoiser: nn.Module
    adapters: Mapping[str, str]
    compiled: bool = False
    conditional: Sequence[int] = ()
    samples: Sequence[int] = ()
    num_samples: int = 0
    progress: float = 0.0


class Guide(Protocol):
    """Combines predictions of one denoiser, under several adapters and on one or both text branches.

    ``combine`` is called for each branch apart where passes differ between branches, and not at all where the plain
    base is the only pass. Text guidance happens afterwards, in the pipeline.
    """

    @property
    def adapters(self) -> Mapping[str, str | Path]:
        """Role -> the LoRA that plays it; none where the guide is off."""

    @property
    def timed(self) -> bool:
        """Whether it depends on the noise level; its passes are asked with progress 0 otherwise."""

    @property
    def needs_branches(self) -> bool:
        """Whether it must be known which rows are conditional."""

    @property
    def held(self) -> frozenset[str]:
        """Passes of whose predictions only a difference is used, which may be held over several evaluations."""

    def passes(self, progress: float) -> Mapping[str, Pass]:
        """Name -> pass, at this point between pure noise, 0, and the image, 1."""

    def combine(self, preds: Mapping[str, Tensor], *, branch: Branch, progress: float) -> Tensor:
        """One prediction from those of the passes that cover the branch, all of one shape (B, ...)."""

    def hooked(self, site: Site) -> AbstractContextManager[None]:
        """Inside the block whatever it does within the network is installed."""


class HoldingGuide(Guide, Protocol):
    """A guide that adds a difference, which several evaluations of the denoiser may share; ``held`` names passes."""

    def difference(self, preds: Mapping[str, Tensor]) -> Tensor:
        """From all passes' predictions, before any scale."""

    def shift(self, preds: Mapping[str, Tensor], difference: Tensor, *, branch: Branch, progress: float) -> Tensor:
        """As ``combine``, from the passes that are not held and a former difference."""
