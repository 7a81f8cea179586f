"""The offline loop: rows, draws, reference passes, policy pass, loss, step. Nothing in it belongs to one method."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn

from diffalign.core import DiffalignError, RunFolder, get_console, progress, remove_stale
from diffalign.data import batch_rows
from diffalign.train.batches import draw_rows, forward_noiser
from diffalign.train.build import Run, build_run, check, is_finished, make_accelerator, save_result
from diffalign.train.checkpoints import latest_checkpoint, load_checkpoint, save_checkpoint
from diffalign.train.config import EmaConfig, TrainConfig
from diffalign.train.interrupts import finish_step_first
from diffalign.train.log import MetricsLog
from diffalign.train.quantities import evaluate
from diffalign.train.weights import average

__all__ = ["NotFiniteError", "train"]


def train(
    config: TrainConfig,
    folder: str | Path,
    *,
    cache: str | Path | None = None,
    root: str | Path | None = None,
    tensorboard: bool = False,
) -> Path:
    """Run one stage, or go on with it where it stopped; a finished one is left as it is.

    Ctrl-C or SIGTERM ends it after the step at hand, with a checkpoint.

    Args:
        config: the stage.
        folder: of the run: config, versions, ``metrics.jsonl``, ``checkpoints/``, and at the end ``policy/``.
        cache: folder of the latent cache, shared between runs; ``latents/`` in the run's folder by default.
        root: folder that a relative ``start`` lies in; where the command runs by default.
        tensorboard: write TensorBoard event files too.

    Returns:
        The folder of the trained weights: a LoRA that ``pipe.load_lora_weights`` reads, or a denoiser in diffusers'
        format, with ``made_with.json`` beside them.

    Raises:
        DiffalignError: a setting, the data or the model does not fit, or the run cannot go on from its checkpoint.
        FloatingPointError: a loss, a metric, a gradient or an own sample is not finite; names the rows.
    """
    folder, written = Path(folder), config
    if root is not None and config.start:
        config = config.replace(start=str(Path(root) / config.start))
    check(config)
    accelerator = make_accelerator()
    if config.batch_size < accelerator.num_processes:
        raise DiffalignError(
            f"expected batch_size of at least one row for each of {accelerator.num_processes} processes"
        )
    is_main = bool(accelerator.is_main_process)
    with ExitStack() as stack:
        if is_main:
            stack.enter_context(RunFolder.open(folder, written, kind="train"))
        if is_finished(config, folder):
            return folder / "policy"
        stack.enter_context(deterministic(accelerator.device))
        run = build_run(config, accelerator, Path(cache or folder / "latents"))
        first = _restore(run, folder)
        if accelerator.num_processes > 1:
            run.weights.wrapped["policy"] = accelerator.prepare_model(run.family.denoiser)
        log = stack.enter_context(MetricsLog(folder, first, tensorboard=tensorboard)) if is_main else None
        _loop(run, folder, first, log)
        if is_main:
            save_result(run, folder)
        accelerator.wait_for_everyone()
    return folder / "policy"


@contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """On a GPU, take kernels that give the same numbers again; those of the CPU do so anyway."""
    if device.type != "cuda":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS first runs
    settings = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    debugging: Any = torch.utils.deterministic
    fill, benchmark = debugging.fill_uninitialized_memory, torch.backends.cudnn.benchmark
    try:
        torch.use_deterministic_algorithms(True, warn_only=True)
        debugging.fill_uninitialized_memory = False  # it is for finding mistakes, and slow
        torch.backends.cudnn.benchmark = False
        yield
    finally:
        torch.use_deterministic_algorithms(settings[0], warn_only=settings[1])
        debugging.fill_uninitialized_memory = fill
        torch.backends.cudnn.benchmark = benchmark


def learning_rate(config: TrainConfig, step: int) -> float:
    """The learning rate of a step, from the step alone."""
    settings = config.optimizer
    rate = settings.learning_rate * min(1.0, (step + 1) / max(1, settings.warmup_steps))
    if settings.schedule == "cosine":
        after = max(0, step - settings.warmup_steps) / max(1, config.num_steps - 1 - settings.warmup_steps)
        rate *= 0.5 * (1 + math.cos(math.pi * after))
    return rate


def ema_decay(config: EmaConfig, updates: int) -> float:
    """The decay of the n-th update (from 0)."""
    return min(config.decay, (1 + updates) / (10 + updates)) if config.warmup else config.decay


def _restore(run: Run, folder: Path) -> int:
    """Put the newest checkpoint back, if there is one; returns the steps done."""
    if run.accelerator.is_main_process:
        remove_stale(folder / "checkpoints")  # halves that a kill has left
    found = latest_checkpoint(folder / "checkpoints")
    if found is None:
        return 0
    state = load_checkpoint(found, run.weights, run.optimizer, run.hashes)
    if run.scaler is not None:
        run.scaler.load_state_dict(state["scaler"])
    if run.accelerator.is_main_process:
        get_console().print(f"going on after step {state['step']} of {run.config.num_steps}", markup=False)
    return int(state["step"])


def _save(run: Run, folder: Path, done: int) -> None:
    scaler = {} if run.scaler is None else run.scaler.state_dict()
    state = {"hashes": run.hashes, "scaler": scaler}
    save_checkpoint(folder / "checkpoints", done, run.weights, run.changing, run.optimizer, state)


def _loop(run: Run, folder: Path, first: int, log: MetricsLog | None) -> None:
    config = run.config
    with finish_step_first() as asked_to_stop:
        for step in progress(range(first, config.num_steps), description="training", unit="steps"):
            began = time.monotonic()
            try:
                row, stop = _step(run, step, asked_to_stop)
            except NotFiniteError as error:
                if log is not None:
                    log.stop(step + 1, error.ids)
                raise
            done = step + 1
            if log is not None:
                log.write({"step": done, **row, "rows_per_second": config.batch_size / (time.monotonic() - began)})
                if done % config.checkpoint_every == 0 or done == config.num_steps or stop:
                    _save(run, folder, done)
            if stop:
                run.accelerator.wait_for_everyone()
                raise KeyboardInterrupt


class NotFiniteError(FloatingPointError):
    """Something is not a finite number.

    Attributes:
        ids: of the rows it comes from.
    """

    def __init__(self, what: str, step: int, ids: list[str]) -> None:
        more = f" and {len(ids) - 5} more" if len(ids) > 5 else ""
        super().__init__(f"{what} is not finite at step {step + 1}, rows {', '.join(ids[:5])}{more}")
        self.ids = ids


@dataclass
class _Totals:
    """What a step's micro-batches gave, left on their device until the step is over."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    finite: list[Tensor] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)

    def add(self, loss: Tensor, metrics: Mapping[str, Tensor], ids: list[str]) -> None:
        values = {"loss": loss.detach(), **metrics}
        self.finite.append(torch.stack([value.isfinite() for value in values.values()]).all(0))
        self.ids += ids
        for key, value in values.items():
            total = value.float().sum()
            self.sums[key] = self.sums[key] + total if key in self.sums else total

    def not_finite(self) -> list[str]:
        finite = torch.cat(self.finite).tolist()
        return [name for name, fine in zip(self.ids, finite, strict=True) if not fine]


def _step(run: Run, step: int, asked_to_stop: Callable[[], bool]) -> tuple[dict[str, Any], bool]:
    """One optimiser step over the whole batch; returns what to log, and whether any process was asked to stop."""
    config, accelerator = run.config, run.accelerator
    rows = batch_rows(len(run.rows), batch_size=config.batch_size, seed=config.seed, step=step)
    places = range(accelerator.process_index, config.batch_size, accelerator.num_processes)
    chunks = [places[i : i + config.micro_batch_size] for i in range(0, len(places), config.micro_batch_size)]
    totals = _Totals()
    if run.source is not None:
        run.source.before_step(step)
    for number, chunk in enumerate(chunks):
        last = number == len(chunks) - 1
        wrapped = run.weights.wrapped.get("policy")
        waiting = nullcontext() if last or wrapped is None else accelerator.no_sync(wrapped)
        with waiting:
            _accumulate(run, step, [rows[place] for place in chunk], list(chunk), totals)
    names, wrong = sorted(totals.sums), totals.not_finite()
    flags = torch.tensor([float(len(wrong)), float(asked_to_stop())], device=accelerator.device)
    sums = torch.cat([torch.stack([totals.sums[name] for name in names]), flags])
    *summed, num_wrong, num_asked = accelerator.reduce(sums, "sum").tolist()
    if num_wrong:
        raise NotFiniteError("the loss or a metric", step, _of_all_processes(run, wrong))
    logged = {name: value / config.batch_size for name, value in zip(names, summed, strict=True)}
    return logged | _update(run, step, [(rows[place], place) for place in places]), num_asked > 0


def _of_all_processes(run: Run, ids: list[str]) -> list[str]:
    return list(gather_object(ids)) if run.accelerator.num_processes > 1 else ids


def _update(run: Run, step: int, rows_and_places: list[tuple[int, int]]) -> dict[str, float]:
    """Clip, step the optimiser, average; returns what to log."""
    config, scaler = run.config, run.scaler
    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate(config, step)
    if scaler is not None:
        scaler.unscale_(run.optimizer)
    norm = nn.utils.clip_grad_norm_(run.weights.parameters("policy").values(), config.optimizer.max_grad_norm)
    finite = bool(norm.isfinite())
    if not finite and (scaler is None or scaler.get_scale() < 1):
        raise NotFiniteError("the gradient", step, _rows_with_bad_gradients(run, step, rows_and_places))
    if scaler is None:
        run.optimizer.step()
    else:
        scaler.step(run.optimizer)  # skips a step whose scaled gradients overflow, and lowers the scale
        scaler.update()
    run.optimizer.zero_grad(set_to_none=True)
    if config.ema is not None and (step + 1) % config.ema.every == 0:
        average(run.weights, "policy", "ema", decay=ema_decay(config.ema, step // config.ema.every))
    logged = {"learning_rate": learning_rate(config, step)} | ({"grad_norm": float(norm)} if finite else {})
    return logged if scaler is None else logged | {"skipped": float(not finite), "loss_scale": scaler.get_scale()}


def _rows_with_bad_gradients(run: Run, step: int, rows_and_places: list[tuple[int, int]]) -> list[str]:
    """Take the step's rows one by one, with the same draws, and keep those whose own gradient is not finite."""
    wrong = []
    run.weights.wrapped.clear()  # each process for itself: a gradient of its own, not the mean over all
    for row, place in rows_and_places:
        run.optimizer.zero_grad(set_to_none=True)
        totals = _Totals()
        _accumulate(run, step, [row], [place], totals)
        gradients = [p.grad for p in run.weights.parameters("policy").values() if p.grad is not None]
        if not all(bool(gradient.isfinite().all()) for gradient in gradients):
            wrong += totals.ids
    run.optimizer.zero_grad(set_to_none=True)
    return _of_all_processes(run, wrong) or ["(none alone: the sum overflows)"]


def _accumulate(run: Run, step: int, rows: list[int], places: list[int], totals: _Totals) -> None:
    """Forward and backward of some rows; adds to the gradients and to ``totals``."""
    config, process = run.config, run.family.process
    shape = run.family.latent_shape(config.resolution, config.resolution)
    draws = draw_rows(process, places, shape, seed=config.seed, step=step, sides=run.needs.sides)
    batch = run.rows.batch(rows, draws)
    own = {}
    if run.source is not None:
        noise = next(iter(draws.noise.values())).to(batch.label.device)
        empty = run.rows.empty_condition()
        try:
            with run.autocast():
                own["policy"] = run.source.draw(step, places, shape, batch.condition, empty, noise, draws.timesteps)
        except FloatingPointError as error:
            raise NotFiniteError("an own sample", step, batch.ids) from error
        draws = replace(draws, timesteps=own["policy"].timesteps.cpu())  # real and own share the timestep
    noised = forward_noiser(process, batch.latents, draws) | own
    quantities: dict[str, Tensor] = {
        "label": batch.label,
        "weight": torch.ones_like(batch.label),
        "timesteps": draws.timesteps.to(batch.label.device),
        "log_snr": process.log_snr(draws.timesteps).to(batch.label.device),
        "step": torch.tensor(step),
    }
    quantities |= {f"{side}_target": one.target for side, one in noised.items()}
    if run.needs.reference:  # before the policy's pass, which gradient checkpointing computes again at backward
        with torch.no_grad(), run.weights.active(run.reference) as predict, run.autocast():
            quantities |= evaluate(predict, run.needs.reference, noised, batch.condition, prefix="ref_")
    with run.weights.active("policy") as predict:
        with run.autocast():
            quantities |= evaluate(predict, run.needs.policy, noised, batch.condition)
        output = run.compute(quantities)
        loss = output.loss.sum() * (run.accelerator.num_processes / config.batch_size)
        (loss if run.scaler is None else run.scaler.scale(loss)).backward()
    totals.add(output.loss, output.metrics, batch.ids)
