"""Put a guide on an unmodified diffusers pipeline, for the length of a with-block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

from torch import nn

from diffalign.core import DiffalignError
from diffalign.guidance.branches import TextRows
from diffalign.guidance.contract import Guide, Site
from diffalign.guidance.registry import refuse_denoiser
from diffalign.guidance.running import GuidedForward, Packed, Refresh
from diffalign.models import RowSwitch, adapter_names, load_adapter, remove_adapter, row_adapters

__all__ = ["attach"]

Pipeline = TypeVar("Pipeline")

_PREFIX = "guide_"  # of the adapters' names on the denoiser
_GUIDED = "_diffalign_guided"  # on the denoiser while a guide is on it


@contextmanager
def attach(
    pipeline: Pipeline,
    guide: Guide,
    *,
    packed: Packed = "auto",
    refresh_every: int | None = None,
    refresh_above: float | None = None,
    text_rows: TextRows = "auto",
) -> Iterator[Pipeline]:
    """Inside the block the pipeline's denoiser predicts as the guide says; the pipeline's own code runs unchanged.

    Schedulers, text guidance, batches, several images per prompt and callbacks work as they do. LoRAs that were loaded
    before, and adapters that are on, stay on in every pass. At the end, also after an exception, everything is as it
    was.

    Args:
        pipeline: any diffusers pipeline with a ``unet`` or a ``transformer``.
        guide: such as ``Contrastive``; ``compose`` joins several.
        packed: True computes the rows of all passes in one forward, each under its own adapters, exact to rounding;
            False computes one pass after the other. "auto" packs up to 24 rows (cPGD with text guidance: four images),
            but never a compiled denoiser, which would be compiled anew for every number of rows.
        refresh_every: hold the guide's difference over so many evaluations of the denoiser; None or 1 does not.
        refresh_above: hold it until the prediction it is added to has changed by more than this share (2-norm over the
            batch). With both, whichever comes first. A new run, known by another text tensor or a rising noise level,
            never starts with a held one.
        text_rows: how guides that look at one text branch know its rows. "auto" asks the pipeline, while it is called;
            of Stable Diffusion's, Kolors', HunyuanDiT's and Sana's it is known how they lay them out. Where something
            else calls the denoiser: "uncond_cond" for batches whose first half is unconditional, "cond" without text
            guidance.

    Yields:
        The same pipeline.

    Raises:
        DiffalignError: no such denoiser, a guide is on it already, a LoRA does not fit, or a setting does not.

    Example:
        ``with attach(pipe, Contrastive(positive="runs/pos", negative="runs/neg", scale=4.0)): pipe("a corgi's head")``
    """
    refresh = Refresh(every=refresh_every, above=refresh_above)
    refresh.check(guide)
    prefix, denoiser = _denoiser_of(pipeline)
    network: nn.Module = getattr(denoiser, "_orig_mod", denoiser)  # inside what torch.compile returned
    if vars(network).get(_GUIDED):
        raise DiffalignError(
            "expected a denoiser without a guide: leave the block of the one that is on it first, or join both with "
            "compose()"
        )
    compiled = network is not denoiser or any(module._compiled_call_impl for module in network.modules())
    if compiled and packed is True:
        raise DiffalignError("packed rows do not work with a compiled denoiser: use packed=False")
    with ExitStack() as stack:
        setattr(network, _GUIDED, True)
        stack.callback(delattr, network, _GUIDED)
        site = Site(pipeline, network, _load(stack, network, guide, prefix), compiled=compiled)
        stack.enter_context(guide.hooked(site))
        if site.adapters or guide.needs_branches:
            switch: RowSwitch | None = None
            if packed and site.adapters and not compiled:
                switch = stack.enter_context(row_adapters(network))
            place = _place(denoiser)
            forward = GuidedForward(
                getattr(denoiser, place),
                guide,
                site,
                switch=switch,
                packed=packed,
                refresh=refresh,
                text_rows=text_rows,
            )
            stack.enter_context(_put(denoiser, place, forward))
        yield pipeline


def _load(stack: ExitStack, network: nn.Module, guide: Guide, prefix: str) -> dict[str, str]:
    """Role -> name of its adapter; each is removed when the stack is."""
    if guide.adapters and any(parameter.is_meta for parameter in network.parameters()):
        raise DiffalignError(
            "the denoiser's weights are offloaded layer by layer, where LoRAs cannot be added: use "
            "enable_model_cpu_offload instead of enable_sequential_cpu_offload"
        )
    loaded = {}
    for role, path in guide.adapters.items():
        name = _PREFIX + role
        refuse_denoiser(path)
        load_adapter(network, path, name, prefix=prefix)
        stack.callback(_unload, network, name)
        loaded[role] = name
    return loaded


def _unload(network: nn.Module, name: str) -> None:
    if name in adapter_names(network):
        remove_adapter(network, name)


def _place(denoiser: nn.Module) -> str:
    """The attribute whose call computes the prediction, and which stays what it is made during the block.

    Offloading's own forward calls ``_old_forward``. It is taken off and put on anew at the end of every run of a
    pipeline, around whatever is there.
    """
    if denoiser._compiled_call_impl is not None:
        return "_compiled_call_impl"
    return "_old_forward" if hasattr(denoiser, "_hf_hook") and hasattr(denoiser, "_old_forward") else "forward"


@contextmanager
def _put(denoiser: nn.Module, place: str, guided: GuidedForward) -> Iterator[None]:
    """Inside the block the guided forward has the place; what was there comes back, wherever it lies by then."""
    own_forward = "forward" in vars(denoiser)
    setattr(denoiser, place, guided)
    try:
        yield
    finally:
        guided.end()
        for name in ("_compiled_call_impl", "_old_forward", "forward"):
            if getattr(denoiser, name, None) is guided:
                if name == "forward" and not own_forward:
                    delattr(denoiser, name)
                else:
                    setattr(denoiser, name, guided.before)


def _denoiser_of(pipeline: Any) -> tuple[str, nn.Module]:
    for name in ("unet", "transformer"):
        denoiser = getattr(pipeline, name, None)
        if isinstance(denoiser, nn.Module):
            return name, denoiser
    raise DiffalignError(f"expected a pipeline with a unet or a transformer, {type(pipeline).__name__} has neither")
