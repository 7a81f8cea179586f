"""The denoiser's forward under a guide: its passes, packed or one after the other, and differences that are held."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from diffalign.core import DiffalignError
from diffalign.guidance.branches import TextBranches, TextRows, extrapolate_text, pack_rows, text_branches
from diffalign.guidance.contract import Branch, Guide, HoldingGuide, Pass, Site
from diffalign.models import FoldedRowsError, RowSwitch, adding

__all__ = ["GuidedForward", "Packed", "Refresh", "clock"]

Packed = bool | Literal["auto"]

_MOST_PACKED = 24  # rows: cPGD with text guidance at four images; beyond, packing buys little and costs memory
_BATCH = ("sample", "hidden_states")
_LORA_SCALES = ("cross_attention_kwargs", "joint_attention_kwargs", "attention_kwargs")
_TOLD_STEPS = ("UNet2DConditionModel", "SD3Transformer2DModel", "PixArtTransformer2DModel", "SanaTransformer2DModel")
_OWN_LEVELS = ("IPNDMScheduler",)  # and those of EDM, which have precondition_noise
_TOLD_LEVEL = ("FluxTransformer2DModel",)


@dataclass(frozen=True, kw_only=True)
class Refresh:
    """When a held difference is computed anew; with neither setting none is held.

    Attributes:
        every: evaluations of the denoiser that one difference serves at most.
        above: relative change since then of the prediction that it is added to, in the 2-norm over the batch.
    """

    every: int | None = None
    above: float | None = None

    def __post_init__(self) -> None:
        if (self.every is not None and self.every < 1) or (self.above is not None and not self.above > 0):
            raise DiffalignError(f"expected refresh_every >= 1 and refresh_above > 0, got {self.every}, {self.above}")

    @property
    def holds(self) -> bool:
        """Whether any difference serves more than one evaluation."""
        return self.above is not None or (self.every or 1) > 1

    def check(self, guide: Guide) -> None:
        """Raise DiffalignError where differences are to be held and the guide adds none."""
        if self.holds and not guide.held:
            raise DiffalignError(f"{type(guide).__name__} adds no difference that could be held: leave refresh_* out")


@dataclass(frozen=True)
class _Call:
    """One call of the denoiser by the pipeline."""

    arguments: Mapping[str, Any]
    num_rows: int
    branches: TextBranches
    progress: float


@dataclass(frozen=True)
class _Held:
    """The difference of each branch, the prediction it was added to, and the number of the call."""

    differences: Mapping[Branch, Tensor]
    anchor: Tensor
    number: int


class GuidedForward:
    """What ``attach`` puts in the place of a denoiser's ``forward``."""

    def __init__(
        self,
        forward: Callable[..., Any],
        guide: Guide,
        site: Site,
        *,
        switch: RowSwitch | None,
        packed: Packed,
        refresh: Refresh,
        text_rows: TextRows,
    ) -> None:
        """Keeps what it is given.

        Args:
            forward: the one of before.
            guide: what to compute.
            site: the network, the names of its adapters, its hooks' view of the running pass.
            switch: gives rows of a batch their own adapters; None where they cannot have any.
            packed: whether to use it; "auto" for batches that are not too large.
            refresh: when held differences are renewed.
            text_rows: see ``text_branches``.
        """
        self.before, self._guide, self._site = forward, guide, site
        self._switch, self._packed, self._refresh, self._text_rows = switch, packed, refresh, text_rows
        self._signature = inspect.signature(type(site.denoiser).forward)
        if guide.timed:
            clock(site.denoiser, site.pipeline)  # whether it is known is told now
        self._ended = False
        self._had_uncond = False  # in this run
        self._held: _Held | None = None
        self._number = 0  # of this call
        self._timestep = 0.0  # of the call before, and its text
        self._text: Tensor | None = None
        self._output: Any = None  # of the last pass, for its type

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As the denoiser's forward, with the guide's prediction in its output."""
        if self._ended:
            return self.before(*args, **kwargs)
        self._number += 1
        arguments = self._bind(args, kwargs)
        self._note_run(arguments)
        num_rows = len(next(arguments[name] for name in _BATCH if name in arguments))
        progress = self._progress(arguments["timestep"]) if self._guide.timed else 0.0
        passes = self._guide.passes(progress)
        branches = self._branches(num_rows, passes, skips=bool(arguments.get("skip_layers")))
        if not branches.num_uncond:
            passes = {name: each for name, each in passes.items() if each.branch != "uncond"}
        self._site.progress = progress
        if all(each == Pass() for each in passes.values()):
            with self._running([branches.rows("both")], branches):
                return self.before(*args, **kwargs)
        pred = self._guided(_Call(arguments, num_rows, branches, progress), passes)
        output, self._output = self._output, None
        return (pred, *output[1:]) if isinstance(output, tuple) else type(output)(sample=pred)

    def end(self) -> None:
        """From now on it is the forward of before: something else, such as offloading, may still hold it."""
        self._ended, self._held, self._text = True, None, None

    def _bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        arguments = dict(self._signature.bind(None, *args, **kwargs).arguments)
        arguments.pop("self")
        arguments |= arguments.pop("kwargs", {})
        for name in _LORA_SCALES:
            scale = (arguments.get(name) or {}).get("scale", 1.0)
            if scale != 1 and self._site.adapters:
                raise DiffalignError(
                    f"{name} has scale {scale}, which would scale the guide's LoRAs too: set the strength of loaded "
                    "LoRAs with pipe.set_adapters, and that of the guide with its own scale"
                )
        return arguments

    def _progress(self, timestep: Any) -> float:
        levels = set(torch.as_tensor(timestep).flatten().tolist())
        if len(levels) != 1:
            raise DiffalignError(f"a window or schedule needs one timestep for all rows, got {sorted(levels)}")
        return 1 - float(levels.pop()) / clock(self._site.denoiser, self._site.pipeline)

    def _branches(self, num_rows: int, passes: Mapping[str, Pass], *, skips: bool) -> TextBranches:
        asked = {each.branch for each in passes.values()} - {"both"}
        if not asked and not self._guide.needs_branches:
            return TextBranches(0, num_rows)
        if skips:
            raise DiffalignError(
                f"{type(self._guide).__name__} does not work with skip-layer guidance, whose extra pass has other rows"
            )
        branches = text_branches(self._site.pipeline, num_rows, self._text_rows)
        self._had_uncond |= branches.num_uncond > 0
        if "uncond" in asked and not self._had_uncond:  # a callback may end it, which leaves the other branch's model
            raise DiffalignError(
                f"{type(self._guide).__name__} acts on the unconditional branch, and text guidance is off: call the "
                "pipeline with a guidance_scale above 1"
            )
        return branches

    def _guided(self, call: _Call, passes: Mapping[str, Pass]) -> Tensor:
        later = {name: each for name, each in passes.items() if name in self._guide.held}
        if not later or not self._refresh.holds:
            return self._combine(call, passes, self._predict(call, passes), {})
        first = {name: each for name, each in passes.items() if name not in later}
        if self._held is None or self._is_due(self._held):
            preds = self._predict(call, passes)
        else:
            preds = self._predict(call, first)
            if not self._has_changed(preds, self._held):
                return self._combine(call, passes, preds, self._held.differences)
            preds |= self._predict(call, later)
        self._held = self._hold(call, passes, preds, _flat([preds[name] for name in first]))
        return self._combine(call, passes, preds, {})

    def _is_due(self, held: _Held) -> bool:
        return self._refresh.every is not None and self._number - held.number >= self._refresh.every

    def _note_run(self, arguments: Mapping[str, Any]) -> None:
        """Forget what belongs to a run that is over: the noise level rises, or the text is another object.

        A run passes the same text tensor in all steps, unless a callback replaces it.
        """
        text, timestep = arguments.get("encoder_hidden_states"), _timestep(arguments)
        rises = timestep > self._timestep
        if rises:
            self._had_uncond = False
        if rises or text is not self._text:
            self._held = None
        self._timestep, self._text = timestep, text

    def _has_changed(self, preds: Mapping[str, Tensor], held: _Held) -> bool:
        if self._refresh.above is None:
            return False
        moved = (_flat(list(preds.values())) - held.anchor).norm()
        return bool(moved > self._refresh.above * held.anchor.norm())

    def _hold(self, call: _Call, passes: Mapping[str, Pass], preds: Mapping[str, Tensor], anchor: Tensor) -> _Held:
        differences = {}
        for branch in _apart(call, passes):
            found = _of_branch(call, passes, preds, branch)
            if self._guide.held <= found.keys():
                differences[branch] = cast(HoldingGuide, self._guide).difference(found)
        return _Held(differences, anchor, self._number)

    def _combine(
        self,
        call: _Call,
        passes: Mapping[str, Pass],
        preds: Mapping[str, Tensor],
        differences: Mapping[Branch, Tensor],
    ) -> Tensor:
        """The guide's formula on each branch, with a former difference where there is one."""
        parts = []
        for branch in _apart(call, passes):
            found = _of_branch(call, passes, preds, branch)
            if branch in differences:
                guide, held = cast(HoldingGuide, self._guide), differences[branch]
                parts.append(guide.shift(found, held, branch=branch, progress=call.progress))
            else:
                parts.append(self._guide.combine(found, branch=branch, progress=call.progress))
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def _predict(self, call: _Call, passes: Mapping[str, Pass]) -> dict[str, Tensor]:
        """The prediction of every pass, on the rows of its branch."""
        num_rows = sum(len(call.branches.rows(each.branch)) for each in passes.values())
        few = self._packed is True or num_rows <= max(_MOST_PACKED, call.num_rows)
        if len(passes) > 1 and self._switch and self._packed and few:
            try:
                return self._predict_packed(call, passes, self._switch)
            except FoldedRowsError:
                if self._packed is True:
                    raise
                self._switch = None
        return {name: self._predict_one(call, each) for name, each in passes.items()}

    def _predict_packed(self, call: _Call, passes: Mapping[str, Pass], switch: RowSwitch) -> dict[str, Tensor]:
        rows = [call.branches.rows(each.branch) for each in passes.values()]
        adapters = [self._adapters(each) for each in passes.values()]
        texts = [extrapolate_text(call.arguments, call.branches, each.text_extrapolation) for each in passes.values()]
        sizes = [len(each) for each in rows]
        packed = pack_rows(list(zip(texts, rows, strict=True)), call.num_rows)
        with self._running(rows, call.branches), switch(list(zip(sizes, adapters, strict=True))):
            self._output = self.before(**packed)
        return dict(zip(passes, self._output[0].split(sizes), strict=True))

    def _predict_one(self, call: _Call, each: Pass) -> Tensor:
        rows, adapters = call.branches.rows(each.branch), self._adapters(each)
        text = extrapolate_text(call.arguments, call.branches, each.text_extrapolation)
        with self._running([rows], call.branches), adding(self._site.denoiser, adapters):
            self._output = self.before(**pack_rows([(text, rows)], call.num_rows))
        return self._output[0]  # type: ignore[no-any-return]  # of a tuple, or the first field of a diffusers output

    def _adapters(self, each: Pass) -> dict[str, float]:
        return {self._site.adapters[role]: weight for role, weight in each.adapters.items()}

    @contextmanager
    def _running(self, rows: Sequence[range], branches: TextBranches) -> Iterator[None]:
        """Tells the guide's hooks which rows of the running batch are conditional."""
        conditional = branches.rows("cond")
        of = [row for part in rows for row in part]
        self._site.conditional = [position for position, row in enumerate(of) if row in conditional]
        self._site.samples = [row - conditional.start for row in of if row in conditional]
        self._site.num_samples = len(conditional)
        try:
            yield
        finally:
            self._site.conditional, self._site.samples = (), ()


def _apart(call: _Call, passes: Mapping[str, Pass]) -> tuple[Branch, ...]:
    """The parts of the batch that the formula is applied to: all of it, unless passes differ between branches."""
    if all(each.branch == "both" for each in passes.values()):
        return ("both",)
    return ("uncond", "cond") if call.branches.num_uncond else ("cond",)


def _of_branch(
    call: _Call, passes: Mapping[str, Pass], preds: Mapping[str, Tensor], branch: Branch
) -> dict[str, Tensor]:
    rows = call.branches.rows(branch)
    found = {}
    for name, pred in preds.items():
        if passes[name].branch == branch:
            found[name] = pred
        elif passes[name].branch == "both":
            found[name] = pred[rows.start : rows.stop]
    return found


def _flat(preds: Sequence[Tensor]) -> Tensor:
    return torch.cat([pred.float().flatten() for pred in preds])


def _timestep(arguments: Mapping[str, Any]) -> float:
    return float(torch.as_tensor(arguments["timestep"]).flatten()[0])


def clock(denoiser: nn.Module, pipeline: Any) -> float:
    """What the network is told at pure noise.

    Raises:
        DiffalignError: that is not known of this network, or the scheduler tells it something else.
    """
    kind = type(denoiser).__name__
    if kind in _TOLD_STEPS:
        scheduler = pipeline.scheduler
        if hasattr(scheduler, "precondition_noise") or type(scheduler).__name__ in _OWN_LEVELS:
            raise DiffalignError(
                f"{type(scheduler).__name__} tells the network noise levels of its own in place of timesteps, for "
                "which windows and schedules are not defined: leave start, stop and schedule as they are"
            )
        return float(scheduler.config.num_train_timesteps)
    if kind in _TOLD_LEVEL:
        return 1.0
    raise DiffalignError(
        f"a window or a schedule needs to know what {kind} is told as its timestep, which is known for "
        f"{', '.join((*_TOLD_STEPS, *_TOLD_LEVEL))}; leave start, stop and schedule as they are"
    )
