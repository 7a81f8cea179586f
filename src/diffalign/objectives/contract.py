"""What an objective is: a plain function whose parameters name the quantities that the trainer computes for it.

    @objective("diffusion_dpo")
    def diffusion_dpo(chosen_err, rejected_err, ref_chosen_err, ref_rejected_err, *, beta): ...

Parameters before the star come from ``QUANTITIES`` and nowhere else: no ``ref_*`` asked, no reference pass made.
Parameters after the star are settings that a config may set.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

from diffalign.core import DiffalignError, Registry, resolve, unknown
from diffalign.types import ObjectiveOutput

__all__ = ["OBJECTIVES", "QUANTITIES", "ObjectiveSpec", "get_objective", "objective", "same_shape"]

OBJECTIVES: Registry[ObjectiveSpec] = Registry("objective")

_WHO = {"": "the policy", "ref_": "the frozen reference", "old_": "the behaviour policy"}
_WHAT = {"chosen": "the preferred image", "rejected": "the other image", "policy": "the policy's own sample"}


def _quantities() -> dict[str, str]:
    named = {}
    for prefix, who in _WHO.items():
        for side, what in _WHAT.items():
            named[f"{prefix}{side}_err"] = f"(B,) error of {who} on {what}"
            named[f"{prefix}{side}_pred"] = f"(B, C, H, W) output of {who} on {what}"
        named[f"{prefix}err"] = f"(B, K) errors of {who} on the K images of a candidate set"
    named |= {
        f"{side}_target": f"(B, C, H, W) what the network should predict on {what}" for side, what in _WHAT.items()
    }
    return named | {
        "scores": "(B, K, M) scores of a candidate set under M metrics",
        "label": "(B,) probability that chosen is better, 0.5 for a tie",
        "weight": "(B,) weight of the row",
        "timesteps": "(B,) what the network was fed",
        "log_snr": "(B,) log signal-to-noise ratio at those timesteps",
        "step": "() number of the optimiser step, from 0",
    }


# Everything an objective may ask for. Errors are means over C, H, W of the squared difference to the target, float32.
QUANTITIES: Mapping[str, str] = _quantities()

Function = TypeVar("Function", bound=Callable[..., ObjectiveOutput])


@dataclass(frozen=True)
class ObjectiveSpec:
    """An objective as the trainer sees it.

    Attributes:
        name: as configs write it.
        function: the function itself.
        inputs: quantities it asks for, in its order.
        settings: names of its settings; those without a default are in ``required``.
        required: settings that a config must give.
        couples_batch: its value for one row depends on the other rows, so accumulation in parts changes it.
    """

    name: str
    function: Callable[..., ObjectiveOutput]
    inputs: tuple[str, ...]
    settings: tuple[str, ...]
    required: tuple[str, ...]
    couples_batch: bool = False

    def bind(self, settings: Mapping[str, Any]) -> Callable[[Mapping[str, Tensor]], ObjectiveOutput]:
        """The objective as a function of the quantities alone.

        Raises:
            DiffalignError: a setting it does not have (with the nearest), one that is no number, or one is missing.
        """
        for key in settings:
            if key not in self.settings:
                raise unknown(f"setting of objective {self.name!r}", key, self.settings)
        for key, value in settings.items():
            wanted = self.function.__annotations__.get(key)
            if wanted in (float, "float") and (isinstance(value, bool) or not isinstance(value, (int, float))):
                raise DiffalignError(f"objective {self.name!r} needs a number as {key}, got {value!r}")
        missing = [key for key in self.required if key not in settings]
        if missing:
            raise DiffalignError(f"objective {self.name!r} needs the setting {', '.join(missing)}")

        def compute(quantities: Mapping[str, Tensor]) -> ObjectiveOutput:
            return self.function(*(quantities[name] for name in self.inputs), **settings)

        return compute


def objective(name: str, *, couples_batch: bool = False) -> Callable[[Function], Function]:
    """A decorator that registers an objective and returns it unchanged, a plain function.

    Args:
        name: unique.
        couples_batch: whether a row's loss depends on the other rows.
    """

    def register(function: Function) -> Function:
        OBJECTIVES.register(name)(_spec(name, function, couples_batch))
        return function

    return register


def get_objective(name: str) -> ObjectiveSpec:
    """The objective called ``name``, or the user's own named as ``"module:function"``.

    Raises:
        DiffalignError: unknown (with the nearest), or its parameters are not quantities.
    """
    if ":" not in name:
        return OBJECTIVES.get(name)
    function = resolve(name)
    decorated = [one for one in map(OBJECTIVES.get, OBJECTIVES) if one.function is function]
    return decorated[0] if decorated else _spec(name, function, False)


def _spec(name: str, function: Callable[..., ObjectiveOutput], couples_batch: bool) -> ObjectiveSpec:
    inputs, settings, required = [], [], []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY:
            settings.append(parameter.name)
            if parameter.default is parameter.empty:
                required.append(parameter.name)
        elif parameter.kind is parameter.POSITIONAL_OR_KEYWORD and parameter.default is parameter.empty:
            if parameter.name not in QUANTITIES:
                raise unknown(f"quantity asked for by objective {name!r}", parameter.name, QUANTITIES)
            inputs.append(parameter.name)
        else:
            raise DiffalignError(
                f"objective {name!r}: {parameter} must be a quantity without a default, or a setting after the star"
            )
    if not inputs:
        raise DiffalignError(f"objective {name!r} asks for no quantity; it needs at least one, such as chosen_err")
    return ObjectiveSpec(name, function, tuple(inputs), tuple(settings), tuple(required), couples_batch)


def same_shape(**tensors: Tensor) -> None:
    """Check that the tensors have one shape (B, ...), so that nothing broadcasts by accident.

    Raises:
        ValueError: they differ; names every shape.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) != 1 or () in shapes.values():
        raise ValueError(f"expected tensors of one shape (B, ...), got {shapes}")
