"""CHATS: two models trained together, the loser on the unconditional branch under a text moved away from the prompt."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from diffalign.core import DiffalignError
from diffalign.guidance.contract import Branch, Pass, Site
from diffalign.guidance.registry import register_guide
from diffalign.guidance.strength import check_equal_shapes

__all__ = ["CHATS", "chats", "chats_text"]


def chats(winner: Tensor, loser: Tensor, *, scale: float) -> Tensor:
    """Go on from the winner's prediction, away from the loser's.

        m = m_winner(c) + s (m_winner(c) - m_loser(c~))

    Args:
        winner: prediction with the prompt, any shape.
        loser: prediction with the text of ``chats_text``, same shape.
        scale: s; 0 is the winner alone, so it is the usual guidance scale minus 1.

    Returns:
        The shape of ``winner``.

    Raises:
        ValueError: shapes differ.

    Source:
        Fu et al. 2025, CHATS, ICML; formula and text as in the authors' code.

    Example:
        >>> import torch
        >>> chats(torch.tensor([1.5]), torch.tensor([1.0]), scale=2.0)
        tensor([2.5000])
    """
    check_equal_shapes(winner, loser)
    return winner + scale * (winner - loser)


def chats_text(empty: Tensor, prompt: Tensor, *, alpha: float) -> Tensor:
    """The loser's text: the empty one, moved away from the prompt.

        c~ = (1 + alpha) c_empty - alpha c    for token and pooled embeddings

    Example:
        >>> import torch
        >>> chats_text(torch.tensor([1.0]), torch.tensor([3.0]), alpha=0.5)
        tensor([0.])
    """
    return (1 + alpha) * empty - alpha * prompt


@register_guide("chats", positive="winner", negative="loser")
@dataclass(frozen=True, kw_only=True)
class CHATS:
    """The winner on the conditional and the loser on the unconditional branch, two evaluations a step.

    The pipeline combines them: its ``guidance_scale`` is 1 + s, so s = 5 of the paper is ``guidance_scale=6``. In the
    released models the empty text is that of the pipeline's negative prompt.

    Attributes:
        winner: LoRA of the model fitted to chosen images.
        loser: LoRA of the model fitted to rejected images.
        alpha: how far the loser's text is moved away from the prompt; 0.5 in the authors' code.
    """

    winner: str | Path
    loser: str | Path
    alpha: float = 0.5

    def __post_init__(self) -> None:
        if not self.alpha >= 0:
            raise DiffalignError(f"expected alpha of at least 0, got {self.alpha}")

    @property
    def adapters(self) -> Mapping[str, str | Path]:
        """Both."""
        return {"chats_winner": self.winner, "chats_loser": self.loser}

    @property
    def timed(self) -> bool:
        """It is on at all noise levels."""
        return False

    @property
    def needs_branches(self) -> bool:
        """Always."""
        return True

    @property
    def held(self) -> frozenset[str]:
        """Nothing: both predictions are used whole."""
        return frozenset()

    def passes(self, progress: float) -> Mapping[str, Pass]:
        """One per branch."""
        return {
            "chats_loser": Pass(adapters={"chats_loser": 1.0}, branch="uncond", text_extrapolation=self.alpha),
            "chats_winner": Pass(adapters={"chats_winner": 1.0}, branch="cond"),
        }

    def combine(self, preds: Mapping[str, Tensor], *, branch: Branch, progress: float) -> Tensor:
        """The branch's own; see ``chats`` for what the pipeline makes of both."""
        return preds["chats_loser" if branch == "uncond" else "chats_winner"]

    def hooked(self, site: Site) -> AbstractContextManager[None]:
        """Nothing inside the network."""
        return nullcontext()
