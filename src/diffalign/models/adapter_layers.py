"""The layers of a network that hold LoRA adapters: which there are, and how one is put in.

What peft and diffusers do not say is kept on the network: which adapters were made here, and where.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping
from typing import Any, cast

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from diffalign.core import DiffalignError, unknown
from diffalign.models.lora_formats import LoraPair

__all__ = [
    "adaptable_layers",
    "adapter_update",
    "adapters_of",
    "configs_of",
    "fused_error",
    "inject",
    "layers_of",
    "lora_shapes",
    "pairs_of",
]

_OURS = "_diffalign_adapters"  # on the denoiser: adapter name -> the LoRA layers that hold it


def adapters_of(denoiser: nn.Module) -> dict[str, list[LoraLayer]]:
    """The layers of each adapter made here, kept on the network itself so that a deep copy of it copies them too."""
    return denoiser.__dict__.setdefault(_OURS, {})  # type: ignore[no-any-return]


def configs_of(denoiser: nn.Module) -> dict[str, Any]:
    """Every adapter's peft config, those of others too."""
    return getattr(denoiser, "peft_config", None) or {}


def layers_of(denoiser: nn.Module, name: str) -> list[LoraLayer]:
    """The layers that hold an adapter made here.

    Raises:
        DiffalignError: no such adapter, or it was removed from outside.
    """
    ours = adapters_of(denoiser)
    if name not in ours:
        raise unknown("adapter", name, ours)
    if name not in configs_of(denoiser):
        raise DiffalignError(
            f"adapter {name!r} was removed from outside (pipe.unload_lora_weights() removes every LoRA); add it again"
        )
    return ours[name]


def pairs_of(denoiser: nn.Module, name: str) -> dict[str, LoraPair]:
    """An adapter's own matrices by layer, not copies of them."""
    layers = set(layers_of(denoiser, name))
    return {
        module: LoraPair(layer.lora_A[name].weight, layer.lora_B[name].weight, float(layer.lora_alpha[name]))
        for module, layer in denoiser.named_modules()
        if layer in layers
    }


def adaptable_layers(denoiser: nn.Module) -> dict[str, nn.Module]:
    """Linear and convolution layers by the names they have without any LoRA around them."""
    found: dict[str, nn.Module] = {}
    inside: tuple[str, ...] = ()
    for module, layer in denoiser.named_modules():
        if isinstance(layer, BaseTunerLayer):
            inside += (f"{module}.",)
            found[module] = layer.get_base_layer()
        elif isinstance(layer, (nn.Linear, nn.Conv2d)) and not module.startswith(inside):
            found[module] = layer
    return found


def lora_shapes(layer: nn.Module, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of the down and up matrices for a linear layer, or a convolution with its kernel in the down part."""
    weight = cast(Tensor, layer.weight)
    out_features, in_features, *kernel = weight.shape
    return (rank, in_features, *kernel), (out_features, rank, *(1 for _ in kernel))


def inject(
    denoiser: nn.Module, name: str, pairs: Mapping[str, LoraPair], *, trainable: bool, dropout: float = 0.0
) -> None:
    """Adds the pairs as adapter ``name``, off, leaving every other adapter's state and flag as it was."""
    taken = configs_of(denoiser)
    if not name or "." in name or name in taken:
        raise DiffalignError(
            f"expected a new adapter name without dots, got {name!r} (taken: {sorted(taken) or 'none'})"
        )
    for layer in denoiser.modules():
        if isinstance(layer, BaseTunerLayer) and layer.merged_adapters:
            raise fused_error(layer)
    flags = [(parameter, parameter.requires_grad) for parameter in denoiser.parameters()]
    states = {
        layer: (layer._active_adapter, layer._disable_adapters)
        for layer in denoiser.modules()
        if isinstance(layer, BaseTunerLayer)
    }
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():  # peft draws weights that are replaced below
        warnings.filterwarnings("ignore", "Already found a `peft_config`")
        inject_adapter_in_model(_config(pairs, dropout), denoiser, name, state_dict=_peft_keys(pairs))
    denoiser._hf_peft_config_loaded = True  # type: ignore[assignment]  # as diffusers marks a network that holds adapters

    for parameter, flag in flags:
        parameter.requires_grad_(flag)
    layers = []
    for module, layer in denoiser.named_modules():
        if not isinstance(layer, BaseTunerLayer):
            continue
        layer._active_adapter, layer._disable_adapters = states.get(layer, ([], False))
        if module in pairs:
            for part, value in ((layer.lora_A[name], pairs[module].down), (layer.lora_B[name], pairs[module].up)):
                part.to(torch.float32).requires_grad_(trainable)
                with torch.no_grad():
                    part.weight.copy_(value)
            layers.append(layer)
    adapters_of(denoiser)[name] = layers


def _config(pairs: Mapping[str, LoraPair], dropout: float) -> LoraConfig:
    """The commonest rank and alpha, and patterns for the layers that differ."""
    rank = Counter(pair.rank for pair in pairs.values()).most_common(1)[0][0]
    alpha = Counter(pair.alpha for pair in pairs.values()).most_common(1)[0][0]
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,
        rank_pattern={f"^{module}": pair.rank for module, pair in pairs.items() if pair.rank != rank},
        alpha_pattern={f"^{module}": pair.alpha for module, pair in pairs.items() if pair.alpha != alpha},
        target_modules=list(pairs),
        lora_dropout=dropout,
    )


def _peft_keys(pairs: Mapping[str, LoraPair]) -> dict[str, Tensor]:
    return {f"{module}.lora_A.weight": pair.down for module, pair in pairs.items()}


def fused_error(layer: BaseTunerLayer) -> DiffalignError:
    """peft computes a fused layer from its base weight alone, so an adapter on it would silently do nothing."""
    return DiffalignError(
        f"LoRA {layer.merged_adapters} was fused with pipe.fuse_lora() and still holds its layers, where adapters "
        "have no effect: call pipe.unload_lora_weights() after fusing, then add adapters"
    )


def adapter_update(layer: Any, name: str, inputs: Tensor, *, weight: float = 1.0) -> Tensor:
    """What an adapter adds to a layer's output, whether it is on or off.

        weight * alpha / rank * up(down(inputs))

    Args:
        layer: one that holds adapters.
        name: the adapter; it must be on this layer.
        inputs: the layer's own.
        weight: multiplies the update.

    Returns:
        The shape of the layer's output, in the adapter's dtype.
    """
    down, up = layer.lora_A[name], layer.lora_B[name]
    scaling = weight * layer.lora_alpha[name] / layer.r[name]
    update: Tensor = up(down(layer.lora_dropout[name](inputs.to(down.weight.dtype)))) * scaling
    return update
