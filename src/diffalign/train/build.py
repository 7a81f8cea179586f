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
from diffalign.data import Preferences
from diffalign.models import Family, LoraSettings, fuse_adapter, is_denoiser, load_denoiser, load_family, save_adapter
from diffalign.objectives import ObjectiveSpec, get_objective
from diffalign.train.checkpoints import refuse_changes
from diffalign.train.config import TrainConfig
from diffalign.train.quantities import Needs, needs_of
from diffalign.train.rows import PairRows, data_hash, fill_cache, open_cache
from diffalign.train.samples import SampleSource
from diffalign.train.weights import BASE, START, FullWeights, LoraWeights, Weights, tensors_hash, weights_hash
from diffalign.types import ObjectiveOutput

__all__ = [
    "Run",
    "build_run",
    "check",
    "frozen_dtype",
    "is_finished",
    "make_accelerator",
    "reference_path",
    "save_result",
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


def make_accelerator() -> Accelerator:
    """The processes of this run. A precision that the launcher sets would wrap the networks; the config's rules."""
    return Accelerator(mixed_precision="no", kwargs_handlers=[InitProcessGroupKwargs(timeout=_PATIENCE)])


def check(config: TrainConfig) -> ObjectiveSpec:
    """What can be known before any weight loads.

    Raises:
        DiffalignError: unknown objective or settings, something the loop cannot give it, or paths that are not there.
    """
    spec = get_objective(config.objective)
    needs = needs_of(spec)
    compute = spec.bind(config.settings)
    if ("policy" in needs.sides) != (config.samples is not None):
        verb = "needs" if config.samples is None else "does not use"
        raise DiffalignError(f"objective {spec.name!r} {verb} the policy's own samples: see the section samples")
    given = {f"{prefix}{side}_{what}" for prefix in ("", "ref_") for side in needs.sides for what in ("err", "pred")}
    given |= {f"{side}_target" for side in needs.sides} | {"label", "weight", "timesteps", "log_snr", "step"}
    absent = [name for name in spec.inputs if name not in given]
    if absent:
        raise DiffalignError(
            f"objective {spec.name!r} asks for {', '.join(absent)}, which training on pairs cannot give"
        )
    if spec.couples_batch and config.micro_batch_size < config.batch_size:
        raise DiffalignError(
            f"objective {spec.name!r} compares the rows of a batch: set micro_batch_size to batch_size "
            f"({config.batch_size})"
        )
    try:
        compute({name: _example(name) for name in spec.inputs})
    except (TypeError, ValueError) as error:
        raise DiffalignError(f"objective {spec.name!r} with {config.settings}: {error}") from error
    Preferences(config.data)  # says what is wrong with it
    for what, path in (("start", config.start), ("reference", reference_path(config))):
        if path and not Path(path).exists():
            known = "" if what == "start" else "; known names are start, base and ema"
            raise DiffalignError(f"expected a LoRA or a denoiser folder as {what}, there is no {path}{known}")
    whole = is_denoiser(config.start)
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
    return spec


def _example(name: str) -> Tensor:
    """A quantity of two rows, to try an objective on."""
    if name == "step":
        return torch.tensor(0)
    shape = (2, 4, 2, 2) if name.endswith(("_pred", "_target")) else (2,)
    return torch.full(shape, 0.5)


def build_run(config: TrainConfig, accelerator: Accelerator, cache: Path) -> Run:
    """Load the model, fill the cache, put the weights in place.

    Raises:
        DiffalignError: a setting, the data or the model does not fit.
    """
    spec = check(config)
    needs = needs_of(spec)
    preferences = usable_rows(Preferences(config.data), spec)
    family = load_family(config.model, dtype=frozen_dtype(config), device=accelerator.device)
    set_text_length(family, config)
    if accelerator.is_main_process:
        fill_cache(cache, family, preferences, resolution=config.resolution, flip=config.flip)
    accelerator.wait_for_everyone()
    latents = open_cache(cache, family, resolution=config.resolution)
    family.move_encoders("meta")  # gone: everything they would say is in the cache
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


def usable_rows(preferences: Preferences, spec: ObjectiveSpec) -> Preferences:
    """Leave out ties where an objective takes every chosen image as surely better.

    Raises:
        DiffalignError: such an objective, and a label says that the rejected image is better; or nothing is left.
    """
    needs = needs_of(spec)
    if "label" in needs.row or "rejected" not in needs.sides or preferences.form != "pair":
        return preferences
    labels = preferences.labels()
    swapped = sum(label < 0.5 for label in labels)
    if swapped:
        raise DiffalignError(
            f"objective {spec.name!r} takes every chosen image as the better one, but {swapped} labels are below 0.5: "
            "swap the images of those rows"
        )
    kept = [row for row, label in enumerate(labels) if label > 0.5]
    if len(kept) == len(labels):
        return preferences
    if not kept:
        raise DiffalignError(f"objective {spec.name!r} learns nothing from ties, and every row is one")
    warn(f"{len(labels) - len(kept)} of {len(labels)} rows are ties and left out: {spec.name} does not look at labels")
    return preferences.select(kept)


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
        _tell_other_rank(config, weights)
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


def _tell_other_rank(config: TrainConfig, weights: LoraWeights) -> None:
    ranks = {value.shape[0] for key, value in weights.parameters("policy").items() if "lora_A" in key}
    if ranks != {config.lora.rank}:
        found = ", ".join(map(str, sorted(ranks)))
        warn(
            f"training goes on with {config.start} as it is, of rank {found}; lora.rank {config.lora.rank} is not used"
        )


def reference_path(config: TrainConfig) -> str:
    """The LoRA or denoiser folder that errors are compared with; empty where ``reference`` is a name."""
    return "" if config.reference in ("start", "base", "ema") else config.reference


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
    hashes = {"data": data_hash(usable_rows(Preferences(config.data), get_objective(config.objective)))}
    if config.start:
        hashes["start"] = _weights_files_hash(Path(config.start))
    refuse_changes(folder, read_json(files[0])["hashes"], hashes)
    return True


def save_result(run: Run, folder: Path) -> None:
    """Write the trained weights, each folder whole or not at all, with ``made_with.json``: what they belong on."""
    config = run.config
    made_with: dict[str, Any] = {
        "model": config.model,
        "start": config.start,
        "start_as": ("base" if is_denoiser(config.start) else config.start_as) if config.start else "",
        "num_steps": config.num_steps,
        "hashes": run.hashes,
    }
    for name in _result_names(config):
        if (folder / name).exists():
            continue  # whole, from before an interruption
        with atomic_path(folder / name) as temporary:
            if isinstance(run.weights, FullWeights):
                run.weights.networks[name].save_pretrained(temporary)  # type: ignore[operator]
            else:
                save_adapter(run.family.denoiser, name, temporary, prefix=run.family.lora_prefix)
            write_json(temporary / "made_with.json", made_with)
