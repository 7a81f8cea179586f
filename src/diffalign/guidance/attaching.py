"""Put a guide on an unmodified diffusers pipeline, for the length of a with-block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import Tensor, nn

from diffalign.core import DiffalignError
from diffalign.guidance.contract import BASE, Guide
from diffalign.models import adapter_names, load_adapter, remove_adapter, using

__all__ = ["attach"]

Pipeline = TypeVar("Pipeline")

_PREFIX = "guide_"  # of the adapters' names on the denoiser


@contextmanager
def attach(pipeline: Pipeline, guide: Guide) -> Iterator[Pipeline]:
    """Inside the block the pipeline's denoiser predicts as the guide says; the pipeline's own code runs unchanged.

    Schedulers, text guidance, batches and callbacks work as they do. LoRAs that were loaded before stay on in every
    pass. At the end, also after an exception, everything is as it was.

    Args:
        pipeline: any diffusers pipeline with a ``unet`` or a ``transformer``.
        guide: such as ``Contrastive``.

    Yields:
        The same pipeline.

    Raises:
        DiffalignError: no such denoiser, a guide is on it already, or a LoRA does not fit.

    Example:
        ``with attach(pipe, Contrastive(positive="runs/pos", negative="runs/neg", scale=4.0)): pipe("a corgi's head")``
    """
    prefix, denoiser = _denoiser_of(pipeline)
    if any(name.startswith(_PREFIX) for name in adapter_names(denoiser)):
        raise DiffalignError("expected a denoiser without a guide: leave the block of the one that is on it first")
    loaded: dict[str, str] = {}
    before = vars(denoiser).get("forward")  # a wrapper that is there already, such as offloading's, stays inside
    try:
        for role, path in guide.adapters.items():
            load_adapter(denoiser, path, _PREFIX + role, prefix=prefix)
            loaded[role] = _PREFIX + role
        if loaded:
            denoiser.forward = _guided(denoiser, guide, loaded)
        yield pipeline
    finally:
        if loaded:
            vars(denoiser).pop("forward", None)
        if before is not None:
            denoiser.forward = before
        for name in loaded.values():
            remove_adapter(denoiser, name)


def _guided(denoiser: nn.Module, guide: Guide, adapters: dict[str, str]) -> Any:
    forward = denoiser.forward

    def guided(*args: Any, **kwargs: Any) -> Any:
        outputs = {}
        for role, adapter in {BASE: None, **adapters}.items():
            with using(denoiser, adapter):
                outputs[role] = forward(*args, **kwargs)
        combined = guide.combine({role: _prediction(output) for role, output in outputs.items()})
        base = outputs[BASE]
        return (combined, *base[1:]) if isinstance(base, tuple) else type(base)(sample=combined)

    return guided


def _prediction(output: Any) -> Tensor:
    return output[0]  # type: ignore[no-any-return]  # of a tuple, or the first field of a diffusers output


def _denoiser_of(pipeline: Any) -> tuple[str, nn.Module]:
    for name in ("unet", "transformer"):
        denoiser = getattr(pipeline, name, None)
        if isinstance(denoiser, nn.Module):
            return name, denoiser
    raise DiffalignError(f"expected a pipeline with a unet or a transformer, {type(pipeline).__name__} has neither")
