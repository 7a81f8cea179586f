"""What a stage would take, in memory, disk and time, from its architecture alone."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from diffalign.data import Preferences, estimate_bytes
from diffalign.models import Family, outline_family
from diffalign.objectives import get_objective
from diffalign.train.build import (
    frozen_dtype,
    lora_settings,
    set_text_length,
)
from diffalign.train.checkpoints import KEEP
from diffalign.train.checks import needs_for, preferences_of, reference_path
from diffalign.train.config import TrainConfig
from diffalign.train.quantities import Needs
from diffalign.train.rows import image_positions
from diffalign.train.validation import validation_calls
from diffalign.train.weights import FullWeights, LoraWeights

__all__ = ["Estimate", "estimate", "matrix_rate"]


@dataclass(frozen=True)
class Estimate:
    """What one stage would take on one process.

    Attributes:
        memory: bytes on the training device while it trains, by what takes them.
        disk: bytes, by what takes them.
        flops: floating-point operations of one optimiser step.
    """

    memory: Mapping[str, int]
    disk: Mapping[str, int]
    flops: float


def estimate(config: TrainConfig) -> Estimate:
    """Pass one micro-batch through the architecture without weights, and count.

    Memory leaves out the text encoders and the autoencoder, which are gone once everything is encoded (with validation
    the autoencoder stays, and the rewards come), what the allocator and the workspaces of libraries take, and what
    gradient checkpointing saves.
    Attention is counted as fused: it keeps its inputs and output, not the matrix of all pairs.

    Raises:
        DiffalignError: the model's files are not at hand.
    """
    family = outline_family(config.model, dtype=frozen_dtype(config))
    set_text_length(family, config)
    weights: LoraWeights | FullWeights
    if config.train == "full":
        weights = FullWeights(family)
    else:
        weights = LoraWeights(family)
        weights.create("policy", lora_settings(config, family), seed=0)
        for parameter in weights.parameters("policy").values():
            parameter.data = parameter.to(family.dtype)  # what autocast computes in
    spec = get_objective(config.objective)
    preferences = preferences_of(config, spec)
    needs = needs_for(spec, preferences)
    with weights.active("policy") as predict:
        inputs = _inputs(family, config, config.micro_batch_size * len(needs.policy))
        forward, both, activations = _count(lambda: predict(*inputs), family.denoiser)
    if config.train == "full" and config.mixed_precision != "no":
        activations //= 2  # counted in float32, kept in half precision
    if config.gradient_checkpointing:
        both += forward  # once more at backward
    trained = 4 * sum(p.numel() for p in weights.parameters("policy").values())  # float32
    flops = (both + forward * _passes_without_gradient(config, needs)) / config.micro_batch_size * config.batch_size
    drawn = validation_calls(config) / config.num_steps
    flops += drawn * forward / (config.micro_batch_size * len(needs.policy))
    disk = _disk(config, family, preferences, needs, trained)
    return Estimate(_memory(config, family, needs, trained, activations), disk, flops)


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product, measured within half a second."""
    size = 4096 if device.type == "cuda" else 1024
    a = torch.randn(size, size, device=device, dtype=dtype)
    best, began = math.inf, time.monotonic()
    while time.monotonic() - began < 0.5:
        start = time.monotonic()
        total = (a @ a).sum().item()  # .item() waits for the device
        best = min(best, time.monotonic() - start)
    del total
    return 2 * size**3 / best


def _passes_without_gradient(config: TrainConfig, needs: Needs) -> float:
    """Reference, inversion and sampling passes per policy pass of a row's sides."""
    passes = 0.0 if config.remember else float(len(needs.reference))
    if config.inversion is not None:
        passes += config.inversion.num_steps * (2 if config.inversion.averaged else 1) * len(needs.policy)
    if config.samples is not None:
        branches = 1 if config.samples.guidance_scale == 1 else 2
        scored_by_the_policy = config.samples.state == "renoised" and config.samples.target == "prediction"
        truncated = config.samples.state == "truncated"
        calls = (config.samples.truncate or config.samples.num_steps / 2) + 1 if truncated else config.samples.num_steps
        passes += calls * branches + scored_by_the_policy
    return passes / len(needs.policy)


def _memory(config: TrainConfig, family: Family, needs: Needs, trained: int, activations: int) -> dict[str, int]:
    stale = config.samples is not None and config.samples.refresh_every > 1
    reference = bool(needs.reference) and config.reference != "ema"
    continued = bool(config.start) and config.start_as == "continue"
    reference_copy = reference and (config.train == "full" or continued or bool(reference_path(config)))
    cast = config.train == "full" and config.mixed_precision != "no"
    return {
        "model": sum(p.numel() * p.element_size() for p in family.denoiser.parameters()),
        "copies of trained weights": trained * sum([config.ema is not None, stale, reference_copy]),
        "half-precision weights": trained // 2 if cast else 0,
        "gradients": trained,
        "optimiser": 2 * trained,
        "activations" + (" before checkpointing" if config.gradient_checkpointing else ""): activations,
    }


def _disk(config: TrainConfig, family: Family, preferences: Preferences, needs: Needs, trained: int) -> dict[str, int]:
    wanted = image_positions(preferences, needs.images)
    rows = [row if wanted is None else [row[position] for position in wanted] for row in preferences.image_hashes()]
    cache = estimate_bytes(
        num_images=len({image for row in rows for image in row}),
        num_views=2 if config.flip else 1,
        latent_shape=family.latent_shape(config.resolution, config.resolution),
        num_prompts=len({"", *preferences.prompts()}),
        embed_shapes=family.condition_shapes,
    )
    averages = 1 if config.ema is not None else 0
    best = 1 if config.validation is not None and config.validation.choose else 0
    stale = 1 if config.samples is not None and config.samples.refresh_every > 1 else 0
    checkpoint = trained * (3 + averages + stale)  # weights and AdamW's two moments
    return {"latent cache": cache, "checkpoints": checkpoint * (KEEP + 1), "result": trained * (1 + averages + best)}


def _inputs(family: Family, config: TrainConfig, rows: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    def empty(*shape: int) -> Tensor:
        return torch.empty(rows, *shape, device="meta", dtype=family.dtype)

    condition = {key: empty(*shape) for key, shape in family.condition_shapes.items()}
    return empty(*family.latent_shape(config.resolution, config.resolution)), empty(), condition


def _count(call: Callable[[], Tensor], network: nn.Module) -> tuple[float, float, int]:
    """FLOPs of a forward pass, of forward and backward, and bytes that are kept between the two."""
    weights = {t.untyped_storage()._cdata for t in chain(network.parameters(), network.buffers())}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = tensor  # held, so that no other tensor gets its address
        return tensor

    with FlopCounterMode(display=False) as counter, _FusedAttention() as attention:
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            output = call()
        forward = counter.get_total_flops() + attention.flops
        bytes_kept = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
        output.float().square().mean().backward()  # type: ignore[no-untyped-call]
    return forward, counter.get_total_flops() + 3.5 * attention.flops, bytes_kept


class _FusedAttention(TorchFunctionMode):
    """Attention as fused kernels do it: what is kept is input and output; backward takes 2.5 times the forward."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0.0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        names = ("query", "key", "value")
        given = dict(zip(names, args, strict=False)) | (kwargs or {})
        query, key, value = (given[name] for name in names)
        *batch, length, width = query.shape
        self.flops += 2 * math.prod(batch) * length * key.shape[-2] * (width + value.shape[-1])
        return _Attention.apply(query, key, value)  # type: ignore[no-untyped-call]


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, output)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        query, key, value, _ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
