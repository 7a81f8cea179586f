"""One optimiser step: draws, noise, reference and policy passes, loss, update. Nothing in it belongs to one method."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn

from diffalign.data import batch_rows
from diffalign.train.batches import Draws, NoisedBatch, draw_rows, forward_noiser, remembered_rows
from diffalign.train.build import Run
from diffalign.train.config import EmaConfig, TrainConfig
from diffalign.train.inversion import inversion_noises, invert
from diffalign.train.quantities import evaluate
from diffalign.train.remembered import draw_number, remember_errors
from diffalign.train.rows import RowBatch
from diffalign.train.weights import average

__all__ = ["NotFiniteError", "remember", "take_step", "wrap"]


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


def wrap(run: Run) -> None:
    """Put the policy under the wrapper that averages gradients over processes, where there are several."""
    if run.accelerator.num_processes > 1:
        run.weights.wrapped["policy"] = run.accelerator.prepare_model(run.family.denoiser)


def remember(run: Run, folder: Path) -> Tensor:
    """Measure the reference once under the fixed draws of every row, each process its share."""
    config, sides = run.config, run.needs.reference

    def measure(rows: Sequence[int], number: int) -> Tensor:
        draws = _remembered_draws(run, rows, [number] * len(rows))
        batch, noised = _noise(run, 0, rows, rows, draws)
        with torch.no_grad(), run.weights.active(run.reference) as predict, run.autocast():
            return _errors(evaluate(predict, sides, noised, batch.condition, prefix="ref_"), sides)

    made_with = {"run": config.model_dump(mode="json"), "hashes": run.hashes}
    return remember_errors(
        folder,
        made_with,
        measure,
        run.accelerator,
        num_rows=len(run.rows),
        count=config.remember,
        batch_size=config.micro_batch_size,
    )


def _errors(quantities: Mapping[str, Tensor], sides: Sequence[str]) -> Tensor:
    """(B, S) reference errors by side."""
    if "ref_err" in quantities:
        return quantities["ref_err"]
    return torch.stack([quantities[f"ref_{side}_err"] for side in sides], dim=1)


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


def take_step(run: Run, step: int, asked_to_stop: Callable[[], bool]) -> tuple[dict[str, Any], bool]:
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
    config, process, numbers = run.config, run.family.process, list[int]()
    if run.remembered is None:
        shape = run.family.latent_shape(config.resolution, config.resolution)
        draws = draw_rows(process, places, shape, seed=config.seed, step=step, sides=run.needs.sides)
    else:
        numbers = [draw_number(config.seed, step, place, config.remember) for place in places]
        draws = _remembered_draws(run, rows, numbers)
    batch, noised = _noise(run, step, rows, places, draws)
    timesteps = next(iter(noised.values())).timesteps
    quantities: dict[str, Tensor] = batch.row | {
        "timesteps": timesteps,
        "log_snr": process.log_snr(timesteps.cpu()).to(timesteps.device),
        "step": torch.tensor(step),
    }
    quantities |= {f"{side}_target": one.target for side, one in noised.items()}
    if run.remembered is not None:
        errors = run.remembered[rows, numbers].to(timesteps.device)
        named = {f"ref_{side}_err": errors[:, place] for place, side in enumerate(run.needs.reference)}
        quantities |= {"ref_err": errors} if "scores" in quantities else named
    elif run.needs.reference:  # before the policy's pass, which gradient checkpointing computes again at backward
        with torch.no_grad(), run.weights.active(run.reference) as predict, run.autocast():
            quantities |= evaluate(predict, run.needs.reference, noised, batch.condition, prefix="ref_")
    with run.weights.active("policy") as predict:
        with run.autocast():
            quantities |= evaluate(predict, run.needs.policy, noised, batch.condition)
        output = run.compute(quantities)
        loss = output.loss.sum() * (run.accelerator.num_processes / config.batch_size)
        (loss if run.scaler is None else run.scaler.scale(loss)).backward()
    totals.add(output.loss, output.metrics, batch.ids)


def _remembered_draws(run: Run, rows: Sequence[int], numbers: Sequence[int]) -> Draws:
    config = run.config
    shape = run.family.latent_shape(config.resolution, config.resolution)
    return remembered_rows(
        run.family.process, rows, numbers, shape, seed=config.seed, count=config.remember, sides=run.needs.sides
    )


def _noise(
    run: Run, step: int, rows: Sequence[int], places: Sequence[int], draws: Draws
) -> tuple[RowBatch, dict[str, NoisedBatch]]:
    """The rows and what the networks see of them: noised images, inverted ones, own samples."""
    config, process, batch = run.config, run.family.process, run.rows.batch(rows, draws)
    own = {}
    if run.source is not None:
        noise = next(iter(draws.noise.values())).to(run.accelerator.device)
        empty = run.rows.empty_condition()
        try:
            with run.autocast():
                own["policy"] = run.source.draw(
                    step, places, noise.shape[1:], batch.condition, empty, noise, draws.timesteps
                )
        except FloatingPointError as error:
            raise NotFiniteError("an own sample", step, batch.ids) from error
        draws = replace(draws, timesteps=own["policy"].timesteps.cpu())  # real and own share the timestep
    if config.inversion is None:
        noised = forward_noiser(process, batch.latents, draws)
    else:
        noised = _invert(run, step, places, batch, draws)
    if batch.mask is not None:
        noised = {side: replace(one, mask=batch.mask) for side, one in noised.items()}
    return batch, noised | own


def _invert(run: Run, step: int, places: Sequence[int], batch: RowBatch, draws: Draws) -> dict[str, NoisedBatch]:
    config, settings = run.config, run.config.inversion
    assert settings is not None
    found = {}
    with run.weights.active("policy") as predict, run.autocast():
        for side, clean in batch.latents.items():
            noises = inversion_noises(settings, places, clean.shape[1:], seed=config.seed, step=step, side=side)
            found[side] = invert(
                run.family.process,
                predict,
                clean,
                draws.timesteps.to(clean.device),
                batch.condition,
                averaged=settings.averaged,
                extra_noise=settings.extra_noise,
                noises=noises.to(clean.device),
            )
    return found
