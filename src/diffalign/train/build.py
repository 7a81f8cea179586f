"""From a stage's config to everything its steps need: model, weights, rows, optimiser."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from diffalign.core import DiffalignError, atomic_path, content_hash, read_json, warn, write_json
from diffalign.data import LatentCache
from diffalign.models import Family, LoraSettings, fuse_adapter, is_denoiser, load_denoiser, load_family, save_adapter
from diffalign.objectives import get_objective
from diffalign.train.checkpoints import refuse_changes
from diffalign.train.checks import check, needs_for, preferences_of, reference_path, usable_rows
from diffalign.train.config import TrainConfig
from diffalign.train.masks import damage_masks
from diffalign.train.quantities import Needs
from diffalign.train.rows import (
    PreferenceRows,
    data_hash,
    fill_cache,
    open_cache,
    row_weights,
)
from diffalign.train.samples import SampleSource
from diffalign.train.validation import validation_prompts
from diffalign.train.weights import BASE, START, FullWeights, LoraWeights, Weights, tensors_hash, weights_hash
from diffalign.types import ObjectiveOutput

__all__ = [
    "Run",
    "build_run",
    "frozen_dtype",
    "is_finished",
    "make_accelerator",
    "save_result",
    "save_weights",
    "set_text_length",
]

_PATIENCE = timedelta(hours=12)  # of processes that wait while the main one encodes; 10 minutes by default
DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Run:
    """What a step needs.

    Attributes:
        reference: the name of what ``ref_*`` is measured with; empty when nothing asks for it.
        hashes: of what must be the same when the run goes on.
        remembered: (N, R, S) reference errors of S sides under R draws per row, where they are remembered.
    """

    config: TrainConfig
    family: Family
    weights: Weights
    reference: str
    compute: Callable[[Mapping[str, Tensor]], ObjectiveOutput]
    needs: Needs
    rows: PreferenceRows
    latents: LatentCache
    optimizer: torch.optim.Optimizer
    accelerator: Accelerator
    source: SampleSource | None
    scaler: torch.amp.GradScaler | None
    hashes: dict[str, str]
    remembered: Tensor | None = None

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


def make_accelerator() -> Accelerator:
    """The processes of this run. A precision that the launcher sets would wrap the networks; the config's rules."""
    return Accelerator(mixed_precision="no", kwargs_handlers=[InitProcessGroupKwargs(timeout=_PATIENCE)])


def build_run(config: TrainConfig, accelerator: Accelerator, cache: Path) -> Run:
    """Load the model, fill the cache, put the weights in place.

    Raises:
        DiffalignError: a setting, the data or the model does not fit.
    """
    spec = check(config)
    if spec.couples_batch and accelerator.num_processes > 1:
        raise DiffalignError(f"objective {spec.name!r} compares all rows of a batch: run it on one process")
    preferences = usable_rows(preferences_of(config, spec), spec)
    needs = needs_for(spec, preferences)
    family = load_family(config.model, dtype=frozen_dtype(config), device=accelerator.device)
    set_text_length(family, config)
    validated = validation_prompts(config)
    if accelerator.is_main_process:
        filled = fill_cache(
            cache, family, preferences, resolution=config.resolution, flip=config.flip, sides=needs.images
        )
        filled.fill_prompts([row.prompt for row in validated], family.encode_prompts)
    accelerator.wait_for_everyone()
    latents = open_cache(cache, family, resolution=config.resolution)
    family.move_encoders("meta", vae=config.validation is None)  # gone: what they would say is in the cache
    shape = family.latent_shape(config.resolution, config.resolution)
    masked = config.outside_weight < 1
    rows = PreferenceRows(
        preferences,
        latents,
        sides=needs.images,
        flip=config.flip,
        prompt_drop=config.prompt_drop,
        metrics=config.metrics,
        weights=config.weights,
        masks=damage_masks(preferences, latents.recipe, shape, config.outside_weight) if masked else None,
        device=accelerator.device,
    )
    hashes = {"data": data_hash(preferences), "base model": family.revision}
    if rows.masks is not None:
        hashes["masks"] = tensors_hash(vars(rows.masks))
    if config.weights is not None:
        hashes["weights"] = content_hash(row_weights(preferences, config.weights).tolist())
    if config.start:
        hashes["start"] = _weights_files_hash(Path(config.start))
    if validated:
        hashes["validation prompts"] = content_hash([[row.id, row.prompt] for row in validated])
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
        latents=latents,
        optimizer=build_optimizer(config, weights),
        accelerator=accelerator,
        source=source,
        scaler=scaler,
        hashes=hashes,
    )


def set_text_length(family: Family, config: TrainConfig) -> None:
    """How many T5 tokens prompts are encoded with, where the model has T5."""
    if hasattr(family, "max_sequence_length"):
        family.max_sequence_length = config.max_sequence_length


def frozen_dtype(config: TrainConfig) -> torch.dtype:
    """What the model is loaded in: weights that train are float32, those that do not may be smaller."""
    return torch.float32 if config.train == "full" else DTYPES[config.mixed_precision]


def build_weights(config: TrainConfig, family: Family) -> LoraWeights | FullWeights:
    """The policy at its start, and its average if wanted."""
    weights: LoraWeights | FullWeights
    whole = is_denoiser(config.start)
    if whole:
        load_denoiser(family.denoiser, config.start)
    elif config.start and config.start_as == "fuse":
        LoraWeights(family).load("start", config.start, trainable=False)
        fuse_adapter(family.denoiser, "start")
    lora = "" if whole else config.start
    if config.train == "full":
        weights = FullWeights(family)
    elif lora and config.start_as == "continue":
        weights = LoraWeights(family)
        weights.load("policy", lora, trainable=True)
        _tell_other_size(config, weights)
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


def _tell_other_size(config: TrainConfig, weights: LoraWeights) -> None:
    ranks = {value.shape[0] for key, value in weights.parameters("policy").items() if "lora_A" in key}
    denoiser: Any = weights.family.denoiser
    alpha = denoiser.peft_config["policy"].lora_alpha  # of most layers
    if ranks != {config.lora.rank} or alpha != config.lora.alpha:
        found = ", ".join(map(str, sorted(ranks)))
        warn(
            f"training goes on with {config.start} as it is, of rank {found} and alpha {alpha:g}; lora.rank "
            f"{config.lora.rank} and lora.alpha {config.lora.alpha:g} are not used"
        )


def _reference(config: TrainConfig, weights: LoraWeights | FullWeights) -> str:
    """The name of what ``ref_*`` is measured with; a copy is made only where switching adapters off is not enough."""
    if reference_path(config):
        weights.load("reference", reference_path(config), trainable=False, alone=True)
        return "reference"
    if config.reference == "ema":
        return "ema"
    if config.train == "lora" and config.reference == "base":
        return BASE
    if config.train == "lora" and (not config.start or is_denoiser(config.start) or config.start_as != "continue"):
        return START  # a new LoRA begins as the identity, so the start is the network with it off
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


def _result_names(config: TrainConfig) -> tuple[str, ...]:
    return ("policy", "ema") if config.ema is not None else ("policy",)


def is_finished(config: TrainConfig, folder: Path) -> bool:
    """Whether a run's results are all there.

    Raises:
        DiffalignError: they are, but the data or the start has changed since.
    """
    files = [folder / name / "made_with.json" for name in _result_names(config)]
    if not all(file.is_file() for file in files):
        return False
    hashes = {"data": _rows_hash(config)}
    if config.start:
        hashes["start"] = _weights_files_hash(Path(config.start))
    refuse_changes(folder, read_json(files[0])["hashes"], hashes)
    return True


def _rows_hash(config: TrainConfig) -> str:
    spec = get_objective(config.objective)
    return data_hash(usable_rows(preferences_of(config, spec), spec))


def save_result(run: Run, folder: Path) -> None:
    """Write the trained weights, each folder whole or not at all."""
    for name in _result_names(run.config):
        if not (folder / name).exists():  # else it is whole, from before an interruption
            with atomic_path(folder / name) as temporary:
                save_weights(run, name, temporary)


def save_weights(run: Run, name: str, folder: Path, **more: Any) -> None:
    """Write weights as diffusers loads them, with ``made_with.json``: what they belong on, and what more there is."""
    config = run.config
    if isinstance(run.weights, FullWeights):
        run.weights.networks[name].save_pretrained(folder)  # type: ignore[operator]
    else:
        save_adapter(run.family.denoiser, name, folder, prefix=run.family.lora_prefix)
    made_with: dict[str, Any] = {
        "model": config.model,
        "start": config.start,
        "start_as": ("base" if is_denoiser(config.start) else config.start_as) if config.start else "",
        "num_steps": config.num_steps,
        "hashes": run.hashes,
    }
    write_json(folder / "made_with.json", made_with | more)
