"""Compute exactly the quantities an objective names: reference passes first, then the policy's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from diffalign.models import denoising_error
from diffalign.objectives import ObjectiveSpec
from diffalign.train.batches import NoisedBatch
from diffalign.train.weights import Predict

__all__ = ["Needs", "evaluate", "needs_of"]

SIDES = ("chosen", "rejected", "policy")
PREFIXES = {"policy": "", "reference": "ref_", "old": "old_"}


@dataclass(frozen=True)
class Needs:
    """What an objective's inputs ask of the loop.

    Attributes:
        sides: sides to noise, in a fixed order.
        policy: sides the policy predicts, with gradient.
        reference: sides the reference predicts; empty means that no reference is needed.
        old: sides the behaviour policy predicts.
        row: what comes with the rows: label, weight, timesteps, log_snr, step.
    """

    sides: tuple[str, ...]
    policy: tuple[str, ...]
    reference: tuple[str, ...]
    old: tuple[str, ...]
    row: tuple[str, ...] = field(default=())


def needs_of(spec: ObjectiveSpec) -> Needs:
    """Read the needs off an objective's inputs."""

    def predicted(prefix: str) -> tuple[str, ...]:
        return tuple(s for s in SIDES if {f"{prefix}{s}_err", f"{prefix}{s}_pred"} & set(spec.inputs))

    passes = {who: predicted(prefix) for who, prefix in PREFIXES.items()}
    targets = {side for side in SIDES if f"{side}_target" in spec.inputs}
    sides = tuple(side for side in SIDES if side in targets.union(*passes.values()))
    row = tuple(name for name in ("label", "weight", "timesteps", "log_snr", "step") if name in spec.inputs)
    return Needs(sides, passes["policy"], passes["reference"], passes["old"], row)


def evaluate(
    predict: Predict,
    sides: Sequence[str],
    noised: Mapping[str, NoisedBatch],
    condition: Mapping[str, Tensor],
    *,
    prefix: str = "",
) -> dict[str, Tensor]:
    """Errors and outputs of one network on some sides, in one pass of ``len(sides) * B`` rows.

    Both sides of a pair share the condition, so dropping the text drops it for both.

    Args:
        predict: the network.
        sides: which sides.
        noised: by side.
        condition: B rows.
        prefix: of the names, "" for the policy, "ref_" for the reference.

    Returns:
        ``{prefix}{side}_err`` (B,) float32 and ``{prefix}{side}_pred`` (B, C, h, w).
    """
    if not sides:
        return {}
    repeated = {key: torch.cat([value] * len(sides)) for key, value in condition.items()}
    batches = [noised[side] for side in sides]
    pred = predict(torch.cat([b.noisy for b in batches]), torch.cat([b.timesteps for b in batches]), repeated)
    quantities = {}
    for side, batch, part in zip(sides, batches, pred.chunk(len(sides)), strict=True):
        quantities[f"{prefix}{side}_pred"] = part
        quantities[f"{prefix}{side}_err"] = denoising_error(part, batch.target, batch.mask)
    return quantities
