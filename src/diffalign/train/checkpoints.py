"""Checkpoints of a run: whole or absent, safetensors and JSON, checked against what the run goes on with."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffalign.core import DiffalignError, atomic_path, read_json, write_json
from diffalign.train.weights import Weights

__all__ = [
    "latest_checkpoint",
    "load_checkpoint",
    "optimizer_tensors",
    "refuse_changes",
    "restore_optimizer",
    "save_checkpoint",
]

KEEP = 2  # checkpoints that stay; the one before the newest is there in case the newest is damaged


def save_checkpoint(
    folder: Path,
    step: int,
    weights: Weights,
    names: tuple[str, ...],
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Any],
) -> Path:
    """Write ``step-00000700/`` beside the others, then remove all but the newest two.

    Args:
        folder: of the checkpoints.
        step: optimiser steps done.
        weights: where the named weights are.
        names: which of them change during the run: policy, average, older policy.
        optimizer: over the policy's parameters, in their order.
        state: what else decides the rest of the run, as JSON: hashes of base, reference and data, the loss scale.

    Returns:
        The new folder.

    Raises:
        DiffalignError: the disk is full; the earlier checkpoints are untouched.
    """
    target = folder / f"step-{step:08d}"
    with atomic_path(target) as temporary:
        temporary.mkdir()
        for name in names:
            _save(temporary / f"{name}.safetensors", dict(weights.parameters(name)))
        _save(temporary / "optimizer.safetensors", optimizer_tensors(optimizer, weights.parameters("policy")))
        write_json(temporary / "state.json", {"step": step, "names": list(names), **state})
    for old in sorted(folder.glob("step-*"))[:-KEEP]:
        shutil.rmtree(old)
    return target


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint, or None."""
    found = sorted(folder.glob("step-*")) if folder.is_dir() else []
    return found[-1] if found else None


def load_checkpoint(
    path: Path, weights: Weights, optimizer: torch.optim.Optimizer, expected: Mapping[str, str]
) -> dict[str, Any]:
    """Put a checkpoint's tensors back.

    Args:
        path: what ``latest_checkpoint`` found.
        weights: with all its names present; their values are overwritten.
        optimizer: over the policy's parameters.
        expected: the hashes of what must not have changed since, such as base, reference and data.

    Returns:
        The state it was saved with.

    Raises:
        DiffalignError: something it depends on has changed (named), or the checkpoint is damaged.
    """
    state: dict[str, Any] = read_json(path / "state.json")
    refuse_changes(path, state["hashes"], expected)
    for name in state["names"]:
        _copy(_load(path / f"{name}.safetensors"), weights.parameters(name), path / name)
    restore_optimizer(optimizer, weights.parameters("policy"), _load(path / "optimizer.safetensors"))
    return state


def refuse_changes(path: Path, before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Compare the hashes of what a run depends on.

    Raises:
        DiffalignError: one is not what it was; names it.
    """
    for what, value in now.items():
        if before.get(what) != value:
            raise DiffalignError(
                f"cannot go on from {path}: the {what} is not what the run was begun with (hash {value[:12]}, it was "
                f"{before.get(what, 'not recorded')[:12]}). Put it back, or begin a new run in another folder."
            )


def optimizer_tensors(optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The optimiser's state as ``<parameter>|<slot>`` tensors."""
    return {
        f"{key}|{slot}": value if isinstance(value, Tensor) else torch.tensor(value)
        for key, parameter in parameters.items()
        for slot, value in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor], tensors: Mapping[str, Tensor]
) -> None:
    """Put back what ``optimizer_tensors`` gave."""
    for name, value in tensors.items():
        key, _, slot = name.rpartition("|")
        parameter = parameters[key]
        device = "cpu" if value.ndim == 0 else parameter.device  # torch keeps its step counts on the CPU
        optimizer.state[parameter][slot] = value.to(device)


def _save(path: Path, tensors: Mapping[str, Tensor]) -> None:
    save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, path)


def _load(path: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, FileNotFoundError) as error:
        raise DiffalignError(
            f"the checkpoint file {path} is damaged ({error}). Remove its folder: the run goes on from the one before."
        ) from error
    return tensors


@torch.no_grad()
def _copy(tensors: Mapping[str, Tensor], parameters: Mapping[str, Tensor], where: Path) -> None:
    if tensors.keys() != parameters.keys():
        raise DiffalignError(f"{where} holds other layers than this run has; it was begun with other settings")
    for key, value in tensors.items():
        parameters[key].copy_(value)
