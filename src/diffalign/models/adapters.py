"""Named LoRA adapters on a denoiser: add, switch, mix, save, load, fuse.

An adapter made here is *off* until ``using`` turns it on, so adding one never changes what the network computes. LoRAs
that others loaded (``pipe.load_lora_weights``) belong to the network's own state: they stay as they are, on or off.
Switching writes peft's list of active adapters on each layer directly: ``set_adapters`` also rewrites every
``requires_grad`` and takes tens of milliseconds.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from diffusers.utils.peft_utils import delete_adapter_layers
from peft.tuners.lora import LoraLayer
from torch import nn

from diffalign.core import DiffalignError, unknown
from diffalign.models.adapter_layers import (
    adaptable_layers,
    adapters_of,
    configs_of,
    fused_error,
    inject,
    layers_of,
    lora_shapes,
    pairs_of,
)
from diffalign.models.lora_formats import LoraPair, read_lora, write_lora

__all__ = [
    "LoraSettings",
    "adapter_names",
    "adapter_parameters",
    "add_adapter",
    "adding",
    "concatenate_adapters",
    "copy_adapter",
    "fuse_adapter",
    "load_adapter",
    "remove_adapter",
    "save_adapter",
    "using",
]

Init = Literal["gaussian", "default"]


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """Size and place of a new adapter.

    Attributes:
        rank: rows of the down matrix.
        alpha: the update is scaled by ``alpha / rank``.
        targets: layer names or endings, e.g. ``family.lora_targets``.
        init: down matrix, "gaussian" N(0, 1/rank^2) or "default" Kaiming uniform; the up matrix starts at 0.
        dropout: on the input of the down matrix; 0 keeps policy and reference equal at the start.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]
    init: Init = "gaussian"
    dropout: float = 0.0


def add_adapter(denoiser: nn.Module, name: str, settings: LoraSettings, *, seed: int) -> None:
    """Adds a trainable float32 adapter that starts as the identity (up = 0) and is off.

    Args:
        denoiser: the bare network (``family.denoiser``), not a compiled or distributed wrapper.
        name: new, without dots.
        settings: rank, alpha, targets.
        seed: of the down matrices; the same seed gives the same weights on every device.

    Raises:
        DiffalignError: the name is taken or unfit, a setting is out of range, or a target matches no layer.
    """
    if settings.rank < 1 or settings.alpha <= 0 or not 0 <= settings.dropout < 1:
        raise DiffalignError(f"expected rank >= 1, alpha > 0 and 0 <= dropout < 1, got {settings}")
    if settings.init not in get_args(Init):
        raise unknown("LoRA initialisation", settings.init, get_args(Init))
    generator = torch.Generator().manual_seed(seed)
    layers = _matching_layers(denoiser, settings.targets)
    pairs = {module: _initial_pair(layer, settings, generator) for module, layer in layers.items()}
    inject(denoiser, name, pairs, trainable=True, dropout=settings.dropout)


def using(denoiser: nn.Module, adapters: str | Mapping[str, float] | None) -> AbstractContextManager[None]:
    """Inside the block exactly these adapters are on, in addition to LoRAs that others loaded and left on.

    ``using(denoiser, None)`` is bit for bit the network before any adapter was added here. The state of before is
    restored at exit, also after an exception; blocks nest. No ``requires_grad`` changes. Gradient checkpointing
    recomputes at backward, so keep the backward pass inside the block of its forward pass.

    Args:
        denoiser: the network.
        adapters: a name, a mixture ``{name: weight}`` (the update is multiplied by the weight), or None for all off.

    Raises:
        DiffalignError: an adapter not made here, or fused foreign LoRAs, under which adapters have no effect.

    Example:
        ``with using(unet, {"chosen": 1.0, "rejected": -0.3}): unet(...)``
    """
    return _switched(denoiser, adapters, replaced=list(adapters_of(denoiser)))


def adding(denoiser: nn.Module, adapters: str | Mapping[str, float]) -> AbstractContextManager[None]:
    """As ``using``, but adapters that are on stay on beside these, with their weights."""
    return _switched(denoiser, adapters, replaced=[adapters] if isinstance(adapters, str) else list(adapters))


@contextmanager
def _switched(
    denoiser: nn.Module, adapters: str | Mapping[str, float] | None, *, replaced: Collection[str]
) -> Iterator[None]:
    """Inside the block these adapters are on, and of those that are on all but ``replaced``."""
    weights = {adapters: 1.0} if isinstance(adapters, str) else dict(adapters or {})
    for name in weights:
        layers_of(denoiser, name)
    weights = {name: weight for name, weight in weights.items() if weight != 0}
    before: list[tuple[dict[str, Any], Any, bool, dict[str, float]]] = []
    try:
        for layer in {id(layer): layer for layers in adapters_of(denoiser).values() for layer in layers}.values():
            state = vars(layer)  # read and written directly: nn.Module's own attribute handling is far slower
            active, disabled, scaling = state["_active_adapter"], state["_disable_adapters"], state["scaling"]
            wanted = [name for name in weights if name in scaling]
            if wanted and state["merged_adapters"]:
                raise fused_error(layer)
            before.append((state, active, disabled, {name: scaling[name] for name in wanted}))
            on = [active] if isinstance(active, str) else active
            others = [] if disabled else [name for name in on if name not in replaced]
            for name in wanted:
                scaling[name] = weights[name] * state["lora_alpha"][name] / state["r"][name]
            state["_active_adapter"] = others + wanted
            state["_disable_adapters"] = disabled and not wanted
        yield
    finally:
        for state, active, disabled, saved in before:
            state["_active_adapter"] = active
            state["_disable_adapters"] = disabled
            state["scaling"].update(saved)


def adapter_names(denoiser: nn.Module) -> list[str]:
    """Names of the adapters made here, in the order they were added."""
    return list(adapters_of(denoiser))


def adapter_parameters(denoiser: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """The adapter's own parameters by layer and part, frozen or not: to optimise, average, save or hash.

    Raises:
        DiffalignError: no such adapter.
    """
    held = {id(layer) for layer in layers_of(denoiser, name)}
    parameters = {}
    for module, layer in denoiser.named_modules():
        if id(layer) in held:
            parameters[f"{module}.lora_A.weight"] = layer.lora_A[name].weight
            parameters[f"{module}.lora_B.weight"] = layer.lora_B[name].weight
    return parameters


def save_adapter(denoiser: nn.Module, name: str, folder: str | Path, *, prefix: str) -> Path:
    """Writes ``pytorch_lora_weights.safetensors``, which ``pipe.load_lora_weights(folder)`` reads with rank and alpha.

    Args:
        denoiser: the network.
        name: which adapter.
        folder: made if missing; a previous file is replaced as a whole.
        prefix: ``family.lora_prefix``, "unet" or "transformer".

    Returns:
        The file's path.
    """
    pairs = pairs_of(denoiser, name)
    config = configs_of(denoiser)[name]
    path: Path = Path(folder) / LORA_WEIGHT_NAME_SAFE
    entries = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "target_modules")
    described = {key: getattr(config, key) for key in entries}
    write_lora(path, pairs, prefix=prefix, config=described | {"target_modules": sorted(config.target_modules)})
    return path


def load_adapter(
    denoiser: nn.Module,
    path: str | Path,
    name: str,
    *,
    prefix: str,
    trainable: bool = False,
    ignore_text_encoders: bool = False,
) -> None:
    """Reads a LoRA in diffusers', peft's or kohya's format as an adapter that is off until ``using``.

    Args:
        denoiser: the network.
        path: a ``.safetensors`` file, or a folder that holds one.
        name: new, without dots.
        prefix: ``family.lora_prefix``.
        trainable: whether its weights (float32) take gradients.
        ignore_text_encoders: leave out parts that adapt text encoders, instead of refusing the file.

    Raises:
        DiffalignError: the file is missing, pickled, damaged, or does not fit this network.
    """
    layers = adaptable_layers(denoiser)
    pairs = read_lora(path, prefix=prefix, modules=layers, ignore_text_encoders=ignore_text_encoders)
    misfits = []
    for module, pair in pairs.items():
        down, up = lora_shapes(layers[module], pair.rank)
        if pair.down.shape != down or pair.up.shape != up:
            misfits.append(
                f"{module}: expected {down} and {up}, got {tuple(pair.down.shape)} and {tuple(pair.up.shape)}"
            )
    if misfits:
        raise DiffalignError(
            f"{path} does not fit this network ({len(misfits)} layers), e.g. " + "; ".join(misfits[:3])
        )
    inject(denoiser, name, pairs, trainable=trainable)


def copy_adapter(denoiser: nn.Module, source: str, target: str, *, trainable: bool = False) -> None:
    """Adds ``target`` with the present weights of ``source``: a frozen reference, or a policy that starts from one.

    Raises:
        DiffalignError: no such source, or the target's name is taken.
    """
    pairs = pairs_of(denoiser, source)
    inject(denoiser, target, pairs, trainable=trainable, dropout=configs_of(denoiser)[source].lora_dropout)


def concatenate_adapters(denoiser: nn.Module, weights: Mapping[str, float], target: str) -> None:
    """Adds ``target``, whose update is the weighted sum of those of other adapters, exactly.

        up = [w_1 a_1/r_1 up_1, w_2 a_2/r_2 up_2, ...],  down = [down_1; down_2; ...],  alpha = rank

    Args:
        denoiser: the network.
        weights: adapter -> weight; weights may be negative.
        target: new, without dots; its rank is the sum of theirs.

    Raises:
        DiffalignError: no such adapter, no adapter, or the target's name is taken.
    """
    found: dict[str, list[LoraPair]] = {}
    for name, weight in weights.items():
        for module, pair in pairs_of(denoiser, name).items():
            scaled = LoraPair(pair.down, pair.up * (weight * pair.alpha / pair.rank), pair.rank)
            found.setdefault(module, []).append(scaled)
    if not found:
        raise DiffalignError("expected at least one adapter to concatenate, got none")
    joined = {}
    for module, pairs in found.items():
        down, up = torch.cat([pair.down for pair in pairs]), torch.cat([pair.up for pair in pairs], dim=1)
        joined[module] = LoraPair(down.detach(), up.detach(), float(len(down)))
    inject(denoiser, target, joined, trainable=False)


def remove_adapter(denoiser: nn.Module, name: str) -> None:
    """Removes an adapter; layers that hold no other become plain layers again.

    One that was removed from outside (``pipe.unload_lora_weights()``) is forgotten.

    Raises:
        DiffalignError: no such adapter, or it is on.
    """
    if name in adapters_of(denoiser) and name not in configs_of(denoiser):
        del adapters_of(denoiser)[name]
        return
    if any(name in layer.active_adapters for layer in layers_of(denoiser, name)):
        raise DiffalignError(f"adapter {name!r} is on; leave the `using` block before removing or fusing it")
    delete_adapter_layers(denoiser, name)
    del adapters_of(denoiser)[name]
    for module, layer in list(denoiser.named_modules()):
        if isinstance(layer, LoraLayer) and not layer.r:
            parent, _, child = module.rpartition(".")
            setattr(denoiser.get_submodule(parent), child, layer.get_base_layer())


def fuse_adapter(denoiser: nn.Module, name: str, scale: float = 1.0) -> None:
    """Adds ``scale`` times the adapter's update to the network's weights and removes the adapter.

    Nothing is kept to undo it: reload the network for that. The sum is taken in float32 and rounded once to the
    weights' dtype, so the result equals the adapter up to that rounding.

    Raises:
        DiffalignError: no such adapter, or it is on.
    """
    layers = layers_of(denoiser, name)
    if any(name in layer.active_adapters for layer in layers):
        raise DiffalignError(f"adapter {name!r} is on; leave the `using` block before removing or fusing it")
    with torch.no_grad():
        for layer in layers:
            layer.scaling[name] = scale * layer.lora_alpha[name] / layer.r[name]
            weight = layer.get_base_layer().weight
            weight.copy_(weight.float() + layer.get_delta_weight(name).float())
    remove_adapter(denoiser, name)


def _matching_layers(denoiser: nn.Module, targets: Iterable[str]) -> dict[str, nn.Module]:
    layers = adaptable_layers(denoiser)
    matched: dict[str, nn.Module] = {}
    for target in targets:
        hits = {module: layer for module, layer in layers.items() if f".{module}".endswith(f".{target}")}
        if not hits:
            raise unknown("LoRA target", target, {module.rpartition(".")[2] for module in layers})
        matched |= hits
    if not matched:
        raise DiffalignError("expected at least one LoRA target, such as 'to_q'; got none")
    return {module: layer for module, layer in layers.items() if module in matched}


def _initial_pair(layer: nn.Module, settings: LoraSettings, generator: torch.Generator) -> LoraPair:
    down_shape, up_shape = lora_shapes(layer, settings.rank)
    down = torch.empty(down_shape)
    if settings.init == "gaussian":
        nn.init.normal_(down, std=1 / settings.rank, generator=generator)
    else:
        nn.init.kaiming_uniform_(down, a=5**0.5, generator=generator)
    return LoraPair(down, torch.zeros(up_shape), settings.alpha)
