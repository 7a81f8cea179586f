"""Several guides at once, in a stated order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from torch import Tensor

from diffalign.core import DiffalignError
from diffalign.guidance.chats import CHATS
from diffalign.guidance.contract import BASE, BASE_ALONE, Branch, Guide, Pass, Site
from diffalign.guidance.diffusion_npo import DiffusionNPO
from diffalign.guidance.nag import NAG
from diffalign.guidance.strength import PreferenceGuide

__all__ = ["Composed", "compose"]


def compose(*guides: Guide) -> Composed:
    """Join guides of different kinds, at most one of each, in this order whatever the order of the arguments.

    1. NAG within the attention of every pass, as if it were part of the network;
    2. Diffusion-NPO or CHATS: which model predicts on which text branch;
    3. a preference difference (Contrastive, PlusMinus, PGD, Weighted), added to what 2 gives on each branch;
    4. text guidance of the pipeline.

    Args:
        guides: such as ``Contrastive(...)`` and ``NAG(...)``.

    Raises:
        DiffalignError: two of one kind, a kind that is not known, or a difference that starts from the base where
            Diffusion-NPO or CHATS have replaced it.

    Example:
        ``compose(Contrastive(positive="pos", negative="neg", scale=2.0), NAG(negative_prompt="blurry"))``
    """
    kinds = {"attention": NAG, "branches": (DiffusionNPO, CHATS), "preference": PreferenceGuide}
    found: dict[str, Guide] = {}
    for guide in guides:
        kind = next((name for name, types in kinds.items() if isinstance(guide, types)), None)  # type: ignore[arg-type]
        if kind is None:
            raise DiffalignError(f"{type(guide).__name__} does not compose; known are PGD, cPGD, NPO, CHATS and NAG")
        if kind in found:
            names = f"{type(found[kind]).__name__} and {type(guide).__name__}"
            hint = "; Weighted takes several modules" if kind == "preference" else ""
            raise DiffalignError(f"{names} do not compose: both decide on the {kind}{hint}")
        found[kind] = guide
    preference, branches = found.get("preference"), found.get("branches")
    if branches is not None and isinstance(preference, PreferenceGuide) and preference.needs_base:
        raise DiffalignError(
            f"{type(preference).__name__} and {type(branches).__name__} do not compose: the former's difference starts "
            "from the base, which the latter replaces; use Contrastive, or Weighted with sides of equal weight"
        )
    return Composed(
        cast(PreferenceGuide | None, preference),
        cast(DiffusionNPO | CHATS | None, branches),
        cast(NAG | None, found.get("attention")),
    )


@dataclass(frozen=True)
class Composed:
    """What ``compose`` returns.

    Attributes:
        preference: adds a difference.
        branches: decides on the model of each text branch; None is the base on both.
        attention: acts within the network.
    """

    preference: PreferenceGuide | None
    branches: DiffusionNPO | CHATS | None
    attention: NAG | None

    @property
    def _parts(self) -> list[Guide]:
        return [part for part in (self.preference, self.branches, self.attention) if part is not None]

    @property
    def adapters(self) -> Mapping[str, str | Path]:
        """Those of all parts."""
        return {role: path for part in self._parts for role, path in part.adapters.items()}

    @property
    def timed(self) -> bool:
        """Whether any part is."""
        return any(part.timed for part in self._parts)

    @property
    def needs_branches(self) -> bool:
        """Whether any part does."""
        return any(part.needs_branches for part in self._parts)

    @property
    def held(self) -> frozenset[str]:
        """Those of the difference."""
        return self.preference.held if self.preference else frozenset()

    def passes(self, progress: float) -> Mapping[str, Pass]:
        """Those of the branches, or the base, and of the difference."""
        anchors = self.branches.passes(progress) if self.branches else BASE_ALONE
        members = self.preference.passes(progress) if self.preference else {}
        return {**anchors, **{name: each for name, each in members.items() if name != BASE}}

    def combine(self, preds: Mapping[str, Tensor], *, branch: Branch, progress: float) -> Tensor:
        """The difference added to the branch's own prediction."""
        anchored = self._anchored(preds, branch, progress)
        if self.preference is None:
            return anchored[BASE]
        return self.preference.combine(anchored, branch=branch, progress=progress)

    def difference(self, preds: Mapping[str, Tensor]) -> Tensor:
        """The preference's."""
        assert self.preference is not None  # held is empty otherwise
        return self.preference.difference(preds)

    def shift(self, preds: Mapping[str, Tensor], difference: Tensor, *, branch: Branch, progress: float) -> Tensor:
        """A former difference added to the branch's own prediction."""
        assert self.preference is not None
        anchored = self._anchored(preds, branch, progress)
        return self.preference.shift(anchored, difference, branch=branch, progress=progress)

    def _anchored(self, preds: Mapping[str, Tensor], branch: Branch, progress: float) -> Mapping[str, Tensor]:
        if self.branches is None:
            return preds
        return {**preds, BASE: self.branches.combine(preds, branch=branch, progress=progress)}

    @contextmanager
    def hooked(self, site: Site) -> Iterator[None]:
        """Those of all parts."""
        with ExitStack() as stack:
            for part in self._parts:
                stack.enter_context(part.hooked(site))
            yield
