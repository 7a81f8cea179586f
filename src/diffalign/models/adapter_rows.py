"""Rows of one batch under different adapters, in one pass of the network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from torch import Tensor, nn

from diffalign.core import DiffalignError
from diffalign.models.adapter_layers import adapter_update, adapters_of, layers_of

__all__ = ["FoldedRowsError", "RowSwitch", "row_adapters"]

RowSwitch = Callable[[Sequence[tuple[int, Mapping[str, float]]]], AbstractContextManager[None]]


class FoldedRowsError(DiffalignError):
    """A layer sees another number of rows than the network was given, so rows cannot have adapters of their own."""


@contextmanager
def row_adapters(denoiser: nn.Module) -> Iterator[RowSwitch]:
    """Lets consecutive rows of one batch pass under different adapters, in one forward.

    Every adapted layer computes what it would compute anyway, then each part of the rows gets the updates of its own
    adapters: exact to rounding, mixtures too, on top of whatever is on. For inference: the sum is taken in place.

    Args:
        denoiser: the network, with its adapters already added.

    Yields:
        A switch: ``with switch([(rows, {name: weight}), ...]): denoiser(batch)``, where the rows add up to the batch.

    Raises:
        DiffalignError: an adapter not made here.
        FoldedRowsError: on a forward, a layer that folds rows (frames, patches) into its batch.

    Example:
        ``with row_adapters(unet) as switch, switch([(2, {}), (2, {"chosen": 1.0})]): unet(torch.cat([x, x]), ...)``
    """
    parts: list[tuple[slice, Mapping[str, float]]] = []

    def add_updates(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if parts and len(inputs[0]) != parts[-1][0].stop:
            raise FoldedRowsError(
                f"expected {parts[-1][0].stop} rows in every adapted layer, one got {len(inputs[0])}: this network "
                "folds rows together, so pass the adapters one after the other"
            )
        for rows, weights in parts:
            for name, weight in weights.items():
                if name in layer.scaling:
                    output[rows] = output[rows] + adapter_update(layer, name, inputs[0][rows], weight=weight)

    @contextmanager
    def switch(wanted: Sequence[tuple[int, Mapping[str, float]]]) -> Iterator[None]:
        for name in {name for _, weights in wanted for name in weights}:
            layers_of(denoiser, name)
        start = 0
        try:
            for count, weights in wanted:
                parts.append((slice(start, start + count), {name: one for name, one in weights.items() if one}))
                start += count
            yield
        finally:
            parts.clear()

    layers = {id(layer): layer for layers in adapters_of(denoiser).values() for layer in layers}.values()
    handles = [layer.register_forward_hook(add_updates) for layer in layers]
    try:
        yield switch
    finally:
        for handle in handles:
            handle.remove()
