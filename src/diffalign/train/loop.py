"""The offline loop: steps, checkpoints, what is written."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from diffalign.core import DiffalignError, RunFolder, get_console, progress, remove_stale
from diffalign.train.build import Run, build_run, is_finished, make_accelerator, save_result
from diffalign.train.checkpoints import latest_checkpoint, load_checkpoint, save_checkpoint
from diffalign.train.checks import check, tell_unused
from diffalign.train.config import TrainConfig
from diffalign.train.interrupts import finish_step_first
from diffalign.train.log import MetricsLog
from diffalign.train.step import NotFiniteError, remember, take_step, wrap
from diffalign.train.strength import has_auto_beta
from diffalign.train.trial import find_beta, tell_beta
from diffalign.train.validator import Validator, check_rewards

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
        if is_main:
            tell_unused(config)
            check_rewards(config)
        stack.enter_context(deterministic(accelerator.device))
        latents = Path(cache or folder / "latents")
        if has_auto_beta(config):
            beta = find_beta(config, accelerator, folder, latents)
            config = config.replace(settings=config.settings | {"beta": beta})
        run = build_run(config, accelerator, latents)
        if is_main:
            tell_beta(run)
        if config.remember:
            run.remembered = remember(run, folder)
        first = _restore(run, folder)
        wrap(run)
        log = stack.enter_context(MetricsLog(folder, first, tensorboard=tensorboard)) if is_main else None
        _loop(run, folder, first, log, Validator(run, folder, first))
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


def _loop(run: Run, folder: Path, first: int, log: MetricsLog | None, validator: Validator) -> None:
    config = run.config
    validator.after(first)
    with finish_step_first() as asked_to_stop:
        for step in progress(range(first, config.num_steps), description="training", unit="steps"):
            began = time.monotonic()
            try:
                row, stop = take_step(run, step, asked_to_stop)
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
            validator.after(done)
