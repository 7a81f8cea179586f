"""The offline loop: rows, draws, reference passes, policy pass, loss, step. Nothing in it belongs to one method."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from diffalign.core import DiffalignError, RunFolder, progress, read_jsonl, warn, write_jsonl
from diffalign.data import Preferences, batch_rows
from diffalign.models import Family, LoraSettings, fuse_adapter, load_family, save_adapter
from diffalign.objectives import ObjectiveSpec, get_objective
from diffalign.train.batches import draw_rows, forward_noiser
from diffalign.train.checkpoints import latest_checkpoint, load_checkpoint, save_checkpoint
from diffalign.train.config import EmaConfig, TrainConfig
from diffalign.train.monitor import Monitor
from diffalign.train.quantities import Needs, evaluate, needs_of
from diffalign.train.rows import PairRows, data_hash, fill_cache
from diffalign.train.samples import SampleSource
from diffalign.train.weights import BASE, START, FullWeights, LoraWeights, Weights, average, weights_hash
from diffalign.types import ObjectiveOutput

__all__ = ["train"]


@dataclass
class _Run:
    """What a step needs."""

    config: TrainConfig
    family: Family
    weights: Weights
    reference: str
    spec: ObjectiveSpec
    compute: Callable[[Mapping[str, Tensor]], ObjectiveOutput]
    needs: Needs
    rows: PairRows
    optimizer: torch.optim.Optimizer
    accelerator: Accelerator
    source: SampleSource | None

    @property
    def changing(self) -> tuple[str, ...]:
        """The weights that a checkpoint holds."""
        average_too = ("ema",) if self.config.ema is not None else ()
        old_too = ("old",) if self.source is not None and self.source.behaviour == "old" else ()
        return ("policy", *average_too, *old_too)


def train(config: TrainConfig, folder: str | Path, *, cache: str | Path | None = None) -> Path:
    """Run one stage, or go on with it where it stopped.

    Args:
        config: the stage.
        folder: of the run: config, versions, ``metrics.jsonl``, ``checkpoints/``, and at the end ``policy/``.
        cache: folder of the latent cache, shared between runs; ``latents/`` in the run's folder by default.

    Returns:
        The folder of the trained weights: a LoRA that ``pipe.load_lora_weights`` reads, or a denoiser in diffusers'
        format.

    Raises:
        DiffalignError: a setting, the data or the model does not fit, or the run cannot go on from its checkpoint.
        FloatingPointError: the loss is not finite; names the rows.
    """
    folder = Path(folder)
    accelerator = Accelerator(mixed_precision=config.mixed_precision)
    spec = get_objective(config.objective)
    compute, needs = spec.bind(config.settings), needs_of(spec)
    if ("policy" in needs.sides) != (config.samples is not None):
        verb = "needs" if config.samples is None else "does not use"
        raise DiffalignError(f"objective {spec.name!r} {verb} the policy's own samples: see the section samples")
    with ExitStack() as stack:
        if accelerator.is_main_process:
            stack.enter_context(RunFolder.open(folder, config, kind="train"))
        family = load_family(config.model, device=accelerator.device)
        preferences = Preferences(config.data)
        with accelerator.main_process_first():
            latents = fill_cache(
                cache or folder / "latents", family, preferences, resolution=config.resolution, flip=config.flip
            )
        rows = PairRows(
            preferences,
            latents,
            sides=[side for side in needs.sides if side != "policy"],
            flip=config.flip,
            prompt_drop=config.prompt_drop,
            device=accelerator.device,
        )
        weights, reference = _build_weights(config, family, needs)
        if config.gradient_checkpointing:
            family.denoiser.enable_gradient_checkpointing()  # type: ignore[operator]
        optimizer = _build_optimizer(config, weights)
        source = None if config.samples is None else SampleSource(config.samples, weights, seed=config.seed)
        run = _Run(config, family, weights, reference, spec, compute, needs, rows, optimizer, accelerator, source)
        hashes = {"data": data_hash(preferences), "base model": family.revision}
        if reference == "reference":
            hashes["reference"] = weights_hash(weights, reference)
        _loop(run, folder, hashes)
        return _save_result(run, folder)


def _build_weights(config: TrainConfig, family: Family, needs: Needs) -> tuple[Weights, str]:
    """The policy at its start, its average if wanted, and the name of what ``ref_*`` is measured with."""
    weights: LoraWeights | FullWeights
    settings = LoraSettings(
        rank=config.lora.rank,
        alpha=config.lora.alpha,
        targets=config.lora.targets or family.lora_targets,
        init=config.lora.init,
    )
    if config.start and config.start_as == "fuse":
        LoraWeights(family).load("start", config.start, trainable=False)
        fuse_adapter(family.denoiser, "start")
    if config.train == "full":
        weights = FullWeights(family)
    elif config.start and config.start_as == "continue":
        weights = LoraWeights(family)
        weights.load("policy", config.start, trainable=True)
    else:
        kept = config.start and config.start_as == "keep"
        weights = LoraWeights(family, kept={"kept": 1.0} if kept else None)
        if kept:
            weights.load("kept", config.start, trainable=False)
        weights.create("policy", settings, seed=config.seed)
    if config.ema is not None:
        weights.copy("policy", "ema")
    return weights, _reference(config, weights) if needs.reference else ""


def _reference(config: TrainConfig, weights: Weights) -> str:
    """The name of what ``ref_*`` is measured with; a copy is made only where switching adapters off is not enough."""
    if config.reference == "ema":
        return "ema"
    if config.train == "lora" and config.reference == "base":
        return BASE
    if config.train == "lora" and not (config.start and config.start_as == "continue"):
        return START  # a new LoRA begins as the identity, so the start is the network with it off
    weights.copy("policy", "reference")
    return "reference"


def _build_optimizer(config: TrainConfig, weights: Weights) -> torch.optim.Optimizer:
    settings = config.optimizer
    return torch.optim.AdamW(
        weights.parameters("policy").values(),
        lr=settings.learning_rate,
        betas=settings.betas,
        eps=settings.eps,
        weight_decay=settings.weight_decay,
    )


def learning_rate(config: TrainConfig, step: int) -> float:
    """The learning rate of a step, from the step alone."""
    settings = config.optimizer
    rate = settings.learning_rate * min(1.0, (step + 1) / max(1, settings.warmup_steps))
    if settings.schedule == "cosine":
        after = max(0, step - settings.warmup_steps) / max(1, config.num_steps - settings.warmup_steps)
        rate *= 0.5 * (1 + math.cos(math.pi * after))
    return rate


def ema_decay(config: EmaConfig, updates: int) -> float:
    """The decay of the n-th update (from 0)."""
    return min(config.decay, (1 + updates) / (10 + updates)) if config.warmup else config.decay


def _loop(run: _Run, folder: Path, hashes: dict[str, str]) -> None:
    config, accelerator = run.config, run.accelerator
    found = latest_checkpoint(folder / "checkpoints")
    first = 0
    if found is not None:
        state = load_checkpoint(found, run.weights, run.optimizer, hashes)
        first = int(state["step"])
        if accelerator.scaler is not None and state.get("scaler"):
            accelerator.scaler.load_state_dict(state["scaler"])
    metrics_path = folder / "metrics.jsonl"
    if accelerator.is_main_process:
        _forget_after(metrics_path, first)
    monitor = Monitor()
    for row in read_jsonl(metrics_path) if metrics_path.exists() else ():
        monitor.watch(row)  # what was said before the interruption is not said again
    if accelerator.num_processes > 1:
        run.weights.wrapped["policy"] = accelerator.prepare_model(run.family.denoiser)
    for step in progress(
        range(first, config.num_steps), total=config.num_steps - first, description="train", unit="steps"
    ):
        began = time.monotonic()
        row = _step(run, step)
        done = step + 1
        row |= {"step": done, "rows_per_second": config.batch_size / (time.monotonic() - began)}
        if accelerator.is_main_process:
            for alarm in monitor.watch(row):
                warn(f"step {alarm.step}, {alarm.name}: {alarm.message}")
                row.setdefault("alarms", []).append(alarm.name)
            with metrics_path.open("a") as file:
                file.write(json.dumps(row) + "\n")
            if done % config.checkpoint_every == 0 or done == config.num_steps:
                scaler = accelerator.scaler.state_dict() if accelerator.scaler is not None else {}
                state = {"hashes": hashes, "scaler": scaler}
                save_checkpoint(folder / "checkpoints", done, run.weights, run.changing, run.optimizer, state)


def _step(run: _Run, step: int) -> dict[str, Any]:
    """One optimiser step over the whole batch; returns what to log."""
    config, accelerator = run.config, run.accelerator
    rows = batch_rows(len(run.rows), batch_size=config.batch_size, seed=config.seed, step=step)
    places = range(accelerator.process_index, config.batch_size, accelerator.num_processes)
    chunks = [places[i : i + config.micro_batch_size] for i in range(0, len(places), config.micro_batch_size)]
    totals: dict[str, float] = {}
    if run.source is not None:
        run.source.before_step(step)
    for number, chunk in enumerate(chunks):
        last = number == len(chunks) - 1
        wrapped = run.weights.wrapped.get("policy")
        waiting = nullcontext() if last or wrapped is None else accelerator.no_sync(wrapped)
        with waiting:
            _accumulate(run, step, [rows[place] for place in chunk], list(chunk), totals)
    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate(config, step)
    parameters = list(run.weights.parameters("policy").values())
    if accelerator.scaler is not None:
        accelerator.scaler.unscale_(run.optimizer)
    norm = nn.utils.clip_grad_norm_(parameters, config.optimizer.max_grad_norm)
    if accelerator.scaler is not None:
        accelerator.scaler.step(run.optimizer)
        accelerator.scaler.update()
    else:
        run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    if config.ema is not None and (step + 1) % config.ema.every == 0:
        average(run.weights, "policy", "ema", decay=ema_decay(config.ema, step // config.ema.every))
    summed = accelerator.reduce(torch.tensor([totals[key] for key in sorted(totals)], dtype=torch.float64), "sum")
    logged = {key: value / config.batch_size for key, value in zip(sorted(totals), summed.tolist(), strict=True)}
    return logged | {"grad_norm": float(norm), "learning_rate": run.optimizer.param_groups[0]["lr"]}


def _accumulate(run: _Run, step: int, rows: list[int], places: list[int], totals: dict[str, float]) -> None:
    """Forward and backward of some rows; adds to the gradients and to ``totals``."""
    config, process = run.config, run.family.process
    shape = run.family.latent_shape(config.resolution, config.resolution)
    draws = draw_rows(process, places, shape, seed=config.seed, step=step, sides=run.needs.sides)
    batch = run.rows.batch(rows, draws)
    own = {}
    if run.source is not None:
        noise = draws.noise["chosen"].to(batch.label.device)
        empty = run.rows.empty_condition()
        own["policy"] = run.source.draw(step, places, shape, batch.condition, empty, noise, draws.timesteps)
        draws = replace(draws, timesteps=own["policy"].timesteps.cpu())  # real and own share the timestep
    noised = forward_noiser(process, batch.latents, draws) | own
    quantities: dict[str, Tensor] = {
        "label": batch.label,
        "weight": torch.ones_like(batch.label),
        "timesteps": draws.timesteps,
        "log_snr": process.log_snr(draws.timesteps),
        "step": torch.tensor(step),
    }
    quantities |= {f"{side}_target": one.target for side, one in noised.items()}
    if run.needs.reference:  # before the policy's pass, which gradient checkpointing computes again at backward
        with torch.no_grad(), run.weights.active(run.reference) as predict, run.accelerator.autocast():
            quantities |= evaluate(predict, run.needs.reference, noised, batch.condition, prefix="ref_")
    with run.weights.active("policy") as predict:
        with run.accelerator.autocast():
            quantities |= evaluate(predict, run.needs.policy, noised, batch.condition)
        output = run.compute(quantities)
        if not bool(output.loss.isfinite().all()):
            wrong = [
                name for name, loss in zip(batch.ids, output.loss.tolist(), strict=True) if not math.isfinite(loss)
            ]
            raise FloatingPointError(f"the loss is not finite at step {step + 1}, rows {', '.join(wrong[:5])}")
        loss = output.loss.sum() * (run.accelerator.num_processes / config.batch_size)
        scaler = run.accelerator.scaler
        (loss if scaler is None else scaler.scale(loss)).backward()
    for key, value in {"loss": output.loss.detach(), **output.metrics}.items():
        totals[key] = totals.get(key, 0.0) + float(value.double().sum())


def _forget_after(path: Path, step: int) -> None:
    """Drop logged steps that the checkpoint does not hold; they will be made again."""
    if path.exists():
        write_jsonl(path, [row for row in read_jsonl(path) if row["step"] <= step])


def _save_result(run: _Run, folder: Path) -> Path:
    if run.accelerator.is_main_process:
        for name in ("policy", "ema") if run.config.ema is not None else ("policy",):
            if isinstance(run.weights, FullWeights):
                run.weights.networks[name].save_pretrained(folder / name)  # type: ignore[operator]
            else:
                save_adapter(run.family.denoiser, name, folder / name, prefix=run.family.lora_prefix)
    run.accelerator.wait_for_everyone()
    return folder / "policy"
