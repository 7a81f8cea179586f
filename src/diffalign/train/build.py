"""From a stage's config to everything its steps need: model, weights, rows, optimiser."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from diffalign.core import DiffalignError, content_hash, write_json
from diffalign.data import Preferences
from diffalign.models import Family, LoraSettings, fuse_adapter, load_denoiser, load_family, save_adapter
from diffalign.objectives import ObjectiveSpec, get_objective
from diffalign.train.config import TrainConfig, is_denoiser
from diffalign.train.quantities import Needs, needs_of
from diffalign.train.rows import PairRows, data_hash, fill_cache
from diffalign.train.samples import SampleSource
from diffalign.train.weights import BASE, START, FullWeights, LoraWeights, Weights, tensors_hash, weights_hash
from diffalign.types import ObjectiveOutput

__all__ = ["Run", "build_run", "check", "frozen_dtype", "save_result"]

DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Run:
    """What a step needs.

    Attributes:
        reference: the name of what ``ref_*`` is measured with; empty when nothing asks for it.
        hashes: of what must be the same when the run goes on.
    """

    config: TrainConfig
    family: Family
    weights: Weights
    reference: str
    compute: Callable[[Mapping[str, Tensor]], ObjectiveOutput]
    needs: Needs
    rows: PairRows
    optimizer: torch.optim.Optimizer
    accelerator: Accelerator
    source: SampleSource | None
    scaler: torch.amp.GradScaler | None
    hashes: dict[str, str]

    @property
    def changing(self) -> tuple[str, ...]:
        """The weights that a checkpoint holds."""
        average_too = ("ema",) if self.config.ema is not None else ()
        old_too = ("old",) if self.source is not None and self.source.behaviour == "old" else ()
        return ("policy", *average_too, *old_too)

    def autocast(self) -> torch.autocast:
        """What the networks compute in."""
        precision = self.config.mixed_precision
        return torch.autocast(self.accelerator.device.type, dtype=DTYPES[precision], enabled=precision != "no")


def check(config: TrainConfig) -> ObjectiveSpec:
    """What can be known before any weight loads.

    Raises:
        DiffalignError: unknown objective or settings, or own samples that nobody asks for.
    """
    spec = get_objective(config.objective)
    spec.bind(config.settings)
    if ("policy" in needs_of(spec).sides) != (config.samples is not None):
        verb = "needs" if config.samples is None else "does not use"
        raise DiffalignError(f"objective {spec.name!r} {verb} the policy's own samples: see the section samples")
    for what, path in (("start", config.start), ("reference", _reference_path(config))):
        if path and not Path(path).exists():
            known = "" if what == "start" else "; known names are start, base and ema"
            raise DiffalignError(f"expected a LoRA or a denoiser folder as {what}, there is no {path}{known}")
    return spec


def build_run(config: TrainConfig, accelerator: Accelerator, cache: Path) -> Run:
    """Load the model, fill the cache, put the weights in place.

    Raises:
        DiffalignError: a setting, the data or the model does not fit.
    """
    spec = check(config)
    needs = needs_of(spec)
    preferences = Preferences(config.data)
    family = load_family(config.model, dtype=frozen_dtype(config), device=accelerator.device)
    with accelerator.main_process_first():
        latents = fill_cache(cache, family, preferences, resolution=config.resolution, flip=config.flip)
    family.move_encoders("cpu")
    rows = PairRows(
        preferences,
        latents,
        sides=[side for side in needs.sides if side != "policy"],
        flip=config.flip,
        prompt_drop=config.prompt_drop,
        device=accelerator.device,
    )
    hashes = {"data": data_hash(preferences), "base model": family.revision}
    if config.start:
        hashes["start"] = _weights_files_hash(Path(config.start))
    weights = build_weights(config, family)
    reference = _reference(config, weights) if needs.reference else ""
    if reference == "reference":
        hashes["reference"] = weights_hash(weights, reference)
    if config.gradient_checkpointing:
        family.denoiser.enable_gradient_checkpointing()  # type: ignore[operator]
    source = None if config.samples is None else SampleSource(config.samples, weights, seed=config.seed)
    scaler = torch.amp.GradScaler(accelerator.device.type) if config.mixed_precision == "fp16" else None
    return Run(
        config=config,
        family=family,
        weights=weights,
        reference=reference,
        compute=spec.bind(config.settings),
        needs=needs,
        rows=rows,
        optimizer=build_optimizer(config, weights),
        accelerator=accelerator,
        source=source,
        scaler=scaler,
        hashes=hashes,
    )


def frozen_dtype(config: TrainConfig) -> torch.dtype:
    """What the model is loaded in: weights that train are float32, those that do not may be smaller."""
    return torch.float32 if config.train == "full" else DTYPES[config.mixed_precision]


def build_weights(config: TrainConfig, family: Family) -> LoraWeights | FullWeights:
    """The policy at its start, and its average if wanted."""
    weights: LoraWeights | FullWeights
    if config.start_is_denoiser:
        load_denoiser(family.denoiser, config.start)
    elif config.start and config.start_as == "fuse":
        LoraWeights(family).load("start", config.start, trainable=False)
        fuse_adapter(family.denoiser, "start")
    lora = config.start if config.start and not config.start_is_denoiser else ""
    if config.train == "full":
        weights = FullWeights(family)
    elif lora and config.start_as == "continue":
        weights = LoraWeights(family)
        weights.load("policy", lora, trainable=True)
    else:
        kept = lora and config.start_as == "keep"
        weights = LoraWeights(family, kept={"kept": 1.0} if kept else None)
        if kept:
            weights.load("kept", lora, trainable=False)
        weights.create("policy", lora_settings(config, family), seed=config.seed)
    if config.ema is not None:
        weights.copy("policy", "ema")
    return weights


def lora_settings(config: TrainConfig, family: Family) -> LoraSettings:
    """The adapter that the config describes, on this family's layers."""
    lora = config.lora
    return LoraSettings(rank=lora.rank, alpha=lora.alpha, targets=lora.targets or family.lora_targets, init=lora.init)


def _reference_path(config: TrainConfig) -> str:
    return "" if config.reference in ("start", "base", "ema") else config.reference


def _reference(config: TrainConfig, weights: LoraWeights | FullWeights) -> str:
    """The name of what ``ref_*`` is measured with; a copy is made only where switching adapters off is not enough."""
    path = _reference_path(config)
    if path and is_denoiser(path) != isinstance(weights, FullWeights):
        wanted = "a denoiser folder" if isinstance(weights, FullWeights) else "a LoRA"
        raise DiffalignError(f"expected {wanted} as reference, like what is trained; {path} is none")
    if path:
        weights.load("reference", path, trainable=False)
        return "reference"
    if config.reference == "ema":
        return "ema"
    if config.train == "lora" and config.reference == "base":
        return BASE
    if config.train == "lora" and (not config.start or config.start_is_denoiser or config.start_as != "continue"):
        return START  # a new LoRA begins as the identity, so the start is the network with it off
    if isinstance(weights, FullWeights) and config.reference == "base" and config.start:
        raise DiffalignError("with train full the base is gone once a start is loaded: set reference to start")
    weights.copy("policy", "reference")
    return "reference"


def build_optimizer(config: TrainConfig, weights: Weights) -> torch.optim.Optimizer:
    """AdamW over the policy."""
    settings = config.optimizer
    return torch.optim.AdamW(
        weights.parameters("policy").values(),
        lr=settings.learning_rate,
        betas=settings.betas,
        eps=settings.eps,
        weight_decay=settings.weight_decay,
    )


def _weights_files_hash(path: Path) -> str:
    """Of the tensors and metadata of a safetensors file or of all in a folder; equal for equal weights, although the
    bytes of two files may differ in the order of their metadata."""
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    described = {}
    for file in files:
        with safe_open(file, framework="pt") as opened:
            metadata: dict[str, str] = opened.metadata() or {}
        described[file.name] = [metadata, tensors_hash(load_file(file))]
    return content_hash(described)


def save_result(run: Run, folder: Path) -> Path:
    """Write the trained weights, and beside them ``made_with.json``: what they belong on.

    Returns:
        ``policy/`` in the folder.
    """
    config = run.config
    made_with: dict[str, Any] = {
        "model": config.model,
        "start": config.start,
        "start_as": ("base" if config.start_is_denoiser else config.start_as) if config.start else "",
        "num_steps": config.num_steps,
        "hashes": run.hashes,
    }
    for name in ("policy", "ema") if config.ema is not None else ("policy",):
        if isinstance(run.weights, FullWeights):
            run.weights.networks[name].save_pretrained(folder / name)  # type: ignore[operator]
        else:
            save_adapter(run.family.denoiser, name, folder / name, prefix=run.family.lora_prefix)
        write_json(folder / name / "made_with.json", made_with)
    return folder / "policy"
