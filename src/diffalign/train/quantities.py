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

__all__ = ["Needs", "candidate_sides", "evaluate", "needs_of", "takes_candidates"]

SIDES = ("chosen", "rejected", "policy")
ROW = ("label", "weight", "scores", "timesteps", "log_snr", "step")
PREFIXES = {"policy": "", "reference": "ref_", "old": "old_"}


@dataclass(frozen=True)
class Needs:
    """What an objective's inputs ask of the loop.

    Attributes:
        sides: sides to noise, in a fixed order.
        policy: sides the policy predicts, with gradient.
        reference: sides the reference predicts; empty means that no reference is needed.
        old: sides the behaviour policy predicts.
        row: what comes with the rows: label, weight, scores, timesteps, log_snr, step.
    """

    sides: tuple[str, ...]
    policy: tuple[str, ...]
    reference: tuple[str, ...]
    old: tuple[str, ...]
    row: tuple[str, ...] = field(default=())

    @property
    def images(self) -> tuple[str, ...]:
        """The sides that are images of the rows; own samples are none."""
        return tuple(side for side in self.sides if side != "policy")


def takes_candidates(spec: ObjectiveSpec) -> bool:
    """Whether an objective looks at candidate sets rather than at pairs."""
    return bool({"err", "ref_err", "old_err", "scores"} & set(spec.inputs))


def candidate_sides(count: int) -> tuple[str, ...]:
    """The K images of a candidate set as sides of a row."""
    return tuple(f"candidate{number}" for number in range(count))


def needs_of(spec: ObjectiveSpec, num_candidates: int = 2) -> Needs:
    """Read the needs off an objective's inputs.

    Args:
        spec: the objective.
        num_candidates: K of its candidate sets, where it takes such.
    """

    def predicted(prefix: str) -> tuple[str, ...]:
        if takes_candidates(spec):
            return candidate_sides(num_candidates) if f"{prefix}err" in spec.inputs else ()
        return tuple(s for s in SIDES if {f"{prefix}{s}_err", f"{prefix}{s}_pred"} & set(spec.inputs))

    passes = {who: predicted(prefix) for who, prefix in PREFIXES.items()}
    targets = {side for side in SIDES if f"{side}_target" in spec.inputs}
    wanted = targets.union(*passes.values())
    sides = tuple(side for side in (*SIDES, *candidate_sides(num_candidates)) if side in wanted)
    row = tuple(name for name in ROW if name in spec.inputs)
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
        ``{prefix}{side}_err`` (B,) float32 and ``{prefix}{side}_pred`` (B, C, h, w); for the K images of a candidate
        set ``{prefix}err`` (B, K).
    """
    if not sides:
        return {}
    repeated = {key: torch.cat([value] * len(sides)) for key, value in condition.items()}
    batches = [noised[side] for side in sides]
    pred = predict(torch.cat([b.noisy for b in batches]), torch.cat([b.timesteps for b in batches]), repeated)
    parts = pred.chunk(len(sides))
    if sides[0] not in SIDES:
        errors = [denoising_error(part, batch.target, batch.mask) for part, batch in zip(parts, batches, strict=True)]
        return {f"{prefix}err": torch.stack(errors, dim=1)}
    quantities = {}
    for side, batch, part in zip(sides, batches, parts, strict=True):
        quantities[f"{prefix}{side}_pred"] = part
        quantities[f"{prefix}{side}_err"] = denoising_error(part, batch.target, batch.mask)
    return quantities
