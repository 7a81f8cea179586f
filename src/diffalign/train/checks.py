"""What can be known of a stage before any weight loads: settings, rows and paths that do not fit are refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from diffalign.core import DiffalignError, warn
from diffalign.data import Preferences
from diffalign.models import is_denoiser
from diffalign.objectives import ObjectiveSpec, get_objective
from diffalign.train.config import LoraConfig, StrengthConfig, TrainConfig
from diffalign.train.quantities import Needs, needs_of, takes_candidates
from diffalign.train.rows import candidate_count, common_metrics, row_weights
from diffalign.train.strength import has_auto_beta, refuse_auto
from diffalign.train.validation import check_validation

__all__ = ["check", "needs_for", "preferences_of", "reference_path", "tell_unused", "usable_rows"]


def check(config: TrainConfig) -> ObjectiveSpec:
    """What can be known before any weight loads.

    Raises:
        DiffalignError: unknown objective or settings, something the loop cannot give it, or paths that are not there.
    """
    spec = get_objective(config.objective)
    preferences = preferences_of(config, spec)
    needs = needs_for(spec, preferences)
    if ("policy" in needs.sides) != (config.samples is not None):
        verb = "needs" if config.samples is None else "does not use"
        raise DiffalignError(f"objective {spec.name!r} {verb} the policy's own samples: see the section samples")
    absent = [name for name in spec.inputs if name not in _given(spec, config)]
    if absent:
        raise DiffalignError(
            f"objective {spec.name!r} asks for {', '.join(absent)}, which offline training cannot give"
        )
    if spec.couples_batch and config.micro_batch_size < config.batch_size:
        raise DiffalignError(
            f"objective {spec.name!r} compares the rows of a batch: set micro_batch_size to batch_size "
            f"({config.batch_size})"
        )
    compute = spec.bind(config.settings | ({"beta": 1.0} if has_auto_beta(config) else {}))
    try:
        compute({name: _example(name, preferences, config) for name in spec.inputs})
    except (TypeError, ValueError) as error:
        raise DiffalignError(f"objective {spec.name!r} with {config.settings}: {error}") from error
    if has_auto_beta(config):
        refuse_auto(spec, config.settings, {name: _example(name, preferences, config) for name in spec.inputs})
    decided_rows(preferences, spec)
    _check_rows(config, spec, needs, preferences)
    _check_start(config)
    check_validation(config)
    return spec


def tell_unused(config: TrainConfig) -> None:
    """Warn of sections that serve another value of a setting: they may stay where a stage is varied."""
    if config.train == "full" and config.lora != LoraConfig():
        warn("train full trains all weights: the section lora is not used")
    if config.strength != StrengthConfig() and not has_auto_beta(config):
        warn("strength serves settings.beta auto, which is not set: the section strength is not used")


def _check_start(config: TrainConfig) -> None:
    for what, path in (("start", config.start), ("reference", reference_path(config))):
        if path and not Path(path).exists():
            known = "" if what == "start" else "; known names are start, base and ema"
            raise DiffalignError(f"expected a LoRA or a denoiser folder as {what}, there is no {path}{known}")
    whole = is_denoiser(config.start)
    if config.start_as != "continue" and (whole or not config.start):
        found = f"start is {config.start}, a denoiser" if whole else "start is empty"
        raise DiffalignError(f"start_as {config.start_as} says what becomes of a LoRA, but {found}: set it to continue")
    if config.train == "full" and config.start and not whole and config.start_as != "fuse":
        raise DiffalignError("with train full, a LoRA to start from can only be fused: set start_as to fuse")
    replaced = bool(config.start) and (whole or config.start_as == "fuse")
    if config.reference == "base" and replaced:
        raise DiffalignError(
            "the base is gone once a LoRA is fused or a denoiser put in its place: set reference to start, or start_as "
            "to keep"
        )
    path = reference_path(config)
    if path and is_denoiser(path) != (config.train == "full"):
        wanted = "a denoiser folder" if config.train == "full" else "a LoRA"
        raise DiffalignError(f"expected {wanted} as reference, like what is trained; {path} is none")
    if path and config.train == "lora" and replaced:
        raise DiffalignError(f"{path} belongs on the base, which {config.start} replaces: set reference to start")


def _given(spec: ObjectiveSpec, config: TrainConfig) -> set[str]:
    """The quantities that offline training can compute for an objective."""
    row = {"weight", "timesteps", "log_snr", "step"}
    if takes_candidates(spec):
        return row | {"err", "ref_err", "scores"}
    sides = ("chosen", "rejected", *(("policy",) if config.samples is not None else ()))
    passes = {f"{prefix}{side}_{what}" for prefix in ("", "ref_") for side in sides for what in ("err", "pred")}
    return row | passes | {f"{side}_target" for side in sides} | {"label"}


def _example(name: str, preferences: Preferences, config: TrainConfig) -> Tensor:
    """A quantity of two rows, to try an objective on."""
    if name == "step":
        return torch.tensor(0)
    if name in ("err", "ref_err"):
        return torch.full((2, candidate_count(preferences)), 0.5)
    if name == "scores":
        return torch.full((2, candidate_count(preferences), len(common_metrics(preferences, config.metrics))), 0.5)
    shape = (2, 4, 2, 2) if name.endswith(("_pred", "_target")) else (2,)
    return torch.full(shape, 0.5)


def _check_rows(config: TrainConfig, spec: ObjectiveSpec, needs: Needs, preferences: Preferences) -> None:
    """Settings about rows that this objective or these rows do not have would be silently without effect."""
    if config.weights is not None:
        if "weight" not in needs.row:
            raise DiffalignError(f"objective {spec.name!r} does not weigh its rows: leave weights out")
        row_weights(preferences, config.weights)
    if config.metrics and not takes_candidates(spec):
        raise DiffalignError(f"objective {spec.name!r} looks at pairs, not at scores: leave metrics out")
    if config.reference != "start" and not needs.reference:
        raise DiffalignError(
            f"objective {spec.name!r} compares with no reference (it asks for no ref_*): leave reference at start, not "
            f"{config.reference}"
        )
    if config.outside_weight < 1 and not (preferences.form == "pair" and any(preferences.masks())):
        raise DiffalignError("outside_weight below 1 needs pairs with damage masks, and no row has one: leave it at 1")
    if config.outside_weight < 1 and not {f"{side}_err" for side in needs.images} & set(spec.inputs):
        raise DiffalignError(f"objective {spec.name!r} has no error of an image to weigh: leave outside_weight at 1")
    if config.inversion is not None and not needs.images:
        raise DiffalignError(f"objective {spec.name!r} looks at own samples alone: leave inversion out")
    if config.remember and any(name.startswith("ref_") and name.endswith("_pred") for name in spec.inputs):
        raise DiffalignError(
            f"objective {spec.name!r} asks for the reference's outputs; remember keeps its errors alone"
        )
    if config.remember and not needs.reference:
        raise DiffalignError(f"objective {spec.name!r} has no reference to remember: leave remember at 0")


def preferences_of(config: TrainConfig, spec: ObjectiveSpec) -> Preferences:
    """The rows of a stage in the form its objective takes.

    Raises:
        DiffalignError: they cannot be read, or are candidate sets and the objective takes pairs.
    """
    preferences = Preferences(config.data)
    if takes_candidates(spec):
        return preferences.as_candidates() if preferences.form == "pair" else preferences
    if preferences.form == "candidates":
        raise DiffalignError(
            f"objective {spec.name!r} takes pairs, and {config.data} holds candidate sets: make pairs of them with "
            "diffalign label"
        )
    return preferences


def needs_for(spec: ObjectiveSpec, preferences: Preferences) -> Needs:
    """What an objective asks of these rows."""
    return needs_of(spec, candidate_count(preferences) if takes_candidates(spec) else 2)


def usable_rows(preferences: Preferences, spec: ObjectiveSpec) -> Preferences:
    """Leave out ties where an objective takes every chosen image as surely better; warn where soft labels are not soft.

    Raises:
        DiffalignError: such an objective, and a label says that the rejected image is better; or nothing is left.
    """
    kept = decided_rows(preferences, spec)
    if not takes_candidates(spec) and "label" in needs_of(spec).row and set(preferences.labels()) == {1.0}:
        warn(
            f"objective {spec.name!r} reads labels as probabilities, and all {len(preferences)} of them are 1: "
            "diffalign label makes soft ones of rewards"
        )
    if len(kept) == len(preferences):
        return preferences
    ties = len(preferences) - len(kept)
    warn(f"{ties} of {len(preferences)} rows are ties and left out: {spec.name} does not look at labels")
    return preferences.select(kept)


def decided_rows(preferences: Preferences, spec: ObjectiveSpec) -> Sequence[int]:
    """The rows whose label says what an objective takes for granted; all of them where it looks at labels itself.

    Raises:
        DiffalignError: see ``usable_rows``.
    """
    needs = needs_of(spec)
    if takes_candidates(spec) or "label" in needs.row or not {"chosen", "rejected"} & set(needs.sides):
        return range(len(preferences))
    labels = preferences.labels()
    swapped = sum(label < 0.5 for label in labels)
    if swapped:
        raise DiffalignError(
            f"objective {spec.name!r} takes every chosen image as the better one, but {swapped} labels are below 0.5: "
            "swap the images of those rows"
        )
    kept = [row for row, label in enumerate(labels) if label > 0.5]
    if not kept:
        raise DiffalignError(f"objective {spec.name!r} learns nothing from ties, and every row is one")
    return kept


def reference_path(config: TrainConfig) -> str:
    """The LoRA or denoiser folder that errors are compared with; empty where ``reference`` is a name."""
    return "" if config.reference in ("start", "base", "ema") else config.reference
