"""Named sets of weights on one denoiser: the policy, its reference, its average, an older policy.

The loop names what it wants (``with weights.active("reference") as predict``) and does not care whether that is a LoRA
on shared layers or a second copy of the network.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from diffalign.core import DiffalignError, content_hash, unknown
from diffalign.models import (
    Family,
    LoraSettings,
    adapter_names,
    adapter_parameters,
    add_adapter,
    copy_adapter,
    load_adapter,
    load_denoiser,
    using,
)

__all__ = [
    "BASE",
    "START",
    "FullWeights",
    "LoraWeights",
    "Predict",
    "Weights",
    "assign",
    "average",
    "tensors_hash",
    "weights_hash",
]

Predict = Callable[[Tensor, Tensor, Mapping[str, Tensor]], Tensor]

START = "start"  # what the run starts from: its own adapter is off, what it keeps is on
BASE = "base"  # the network without any adapter of the run


class Weights(Protocol):
    """What the loop needs of a set of named weights."""

    family: Family
    wrapped: dict[str, nn.Module]  # name -> the network under a distributed wrapper, called instead of the bare one

    def parameters(self, name: str) -> dict[str, nn.Parameter]:
        """The tensors that make up ``name``, by key; equal keys for every name."""

    def copy(self, source: str, target: str) -> None:
        """Add ``target``, frozen, with the present values of ``source``."""

    def active(self, name: str) -> AbstractContextManager[Predict]:
        """Inside the block, ``predict(noisy, timesteps, condition)`` under ``name``.

        Keep the backward pass inside too: gradient checkpointing computes the forward pass again there.
        """


class LoraWeights:
    """Each name is an adapter; the network's own weights are shared and frozen.

    Args:
        family: the model; its denoiser is wrapped by nothing.
        kept: adapters that a run starts from and keeps beside its own, with their weights; on under every name.
    """

    def __init__(self, family: Family, kept: Mapping[str, float] | None = None) -> None:
        self.family = family
        self.kept = dict(kept or {})
        self.alone: set[str] = set()  # names under which what is kept is off
        self.wrapped: dict[str, nn.Module] = {}

    def create(self, name: str, settings: LoraSettings, *, seed: int) -> None:
        """Add a trainable adapter that starts as the identity."""
        add_adapter(self.family.denoiser, name, settings, seed=seed)

    def load(self, name: str, path: str, *, trainable: bool, alone: bool = False) -> None:
        """Add an adapter from a file or folder; ``alone``: it belongs on the base, without what the run keeps."""
        load_adapter(self.family.denoiser, path, name, prefix=self.family.lora_prefix, trainable=trainable)
        if alone:
            self.alone.add(name)

    def parameters(self, name: str) -> dict[str, nn.Parameter]:
        """The adapter's matrices; none for ``START`` and ``BASE``."""
        return {} if name in (START, BASE) else adapter_parameters(self.family.denoiser, name)

    def copy(self, source: str, target: str) -> None:
        """Add a frozen adapter with the present values of another."""
        copy_adapter(self.family.denoiser, source, target)

    @contextmanager
    def active(self, name: str) -> Iterator[Predict]:
        """The kept adapters and this one are on; ``START`` is the kept ones alone, ``BASE`` none."""
        own = {} if name in (START, BASE) else {name: 1.0}
        if own and name not in adapter_names(self.family.denoiser):
            raise unknown("adapter", name, adapter_names(self.family.denoiser))
        kept = {} if name == BASE or name in self.alone else self.kept
        with using(self.family.denoiser, kept | own):
            yield partial(self.family.predict, denoiser=self.wrapped.get(name))


class FullWeights:
    """Each name is a network of its own; the policy is the family's, every other a frozen copy.

    Args:
        family: the model.
        policy: name of the weights that train; all of them take gradients, in float32.
    """

    def __init__(self, family: Family, policy: str = "policy") -> None:
        if family.dtype != torch.float32:
            raise DiffalignError(
                f"full fine-tuning needs float32 weights, got {family.dtype}: load the model in float32 and set "
                "mixed_precision for speed"
            )
        self.family = family
        self.networks: dict[str, nn.Module] = {policy: family.denoiser.requires_grad_(True)}
        self.wrapped: dict[str, nn.Module] = {}

    def parameters(self, name: str) -> dict[str, nn.Parameter]:
        """Every parameter of that network."""
        return dict(self._network(name).named_parameters())

    def copy(self, source: str, target: str) -> None:
        """Add a frozen copy of a network."""
        if target in self.networks:
            raise DiffalignError(f"there are weights named {target!r} already; assign to them instead")
        self.networks[target] = copy.deepcopy(self._network(source)).requires_grad_(False).eval()

    def load(self, name: str, path: str, *, trainable: bool, alone: bool = False) -> None:
        """Add a network from a folder in diffusers' format."""
        self.copy("policy", name)
        load_denoiser(self.networks[name], path)
        self.networks[name].requires_grad_(trainable)

    @contextmanager
    def active(self, name: str) -> Iterator[Predict]:
        """Predictions of that network."""
        network = self._network(name)
        yield partial(self.family.predict, denoiser=self.wrapped.get(name, network))

    def _network(self, name: str) -> nn.Module:
        if name not in self.networks:
            raise unknown("weights", name, self.networks)
        return self.networks[name]


@torch.no_grad()
def assign(weights: Weights, source: str, target: str) -> None:
    """Overwrite ``target`` by ``source``: a stale policy is refreshed, averaged weights are taken over."""
    average(weights, source, target, decay=0.0)


@torch.no_grad()
def average(weights: Weights, source: str, target: str, *, decay: float) -> None:
    """Move an exponential moving average: ``target <- decay target + (1 - decay) source``.

    Raises:
        ValueError: decay is outside [0, 1], or the two do not hold the same tensors.
    """
    if not 0 <= decay <= 1:
        raise ValueError(f"expected a decay in [0, 1], got {decay}")
    new, old = weights.parameters(source), weights.parameters(target)
    if new.keys() != old.keys():
        raise ValueError(f"{source!r} and {target!r} do not hold the same tensors")
    for key, value in old.items():
        value.lerp_(new[key].to(value.dtype), 1 - decay) if decay else value.copy_(new[key])


def weights_hash(weights: Weights, name: str) -> str:
    """A sha256 over keys, shapes and bytes, to say whether a reference is still the same."""
    return tensors_hash(weights.parameters(name))


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """A sha256 over keys, shapes, types and bytes, whatever file they came from."""
    described = {}
    for key, value in tensors.items():
        raw = value.detach().cpu().contiguous().view(torch.uint8).numpy()
        described[key] = [list(value.shape), str(value.dtype), hashlib.sha256(raw.data).hexdigest()]
    return content_hash(described)
