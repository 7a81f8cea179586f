"""``beta: auto``: a short trial of the run, and the beta that its rows ask for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from diffalign.core import get_console, progress, read_json, write_json
from diffalign.objectives import LOGISTIC, beta_elsewhere, get_objective
from diffalign.train.build import Run, build_run
from diffalign.train.config import TrainConfig
from diffalign.train.interrupts import finish_step_first
from diffalign.train.step import take_step, wrap
from diffalign.train.strength import solve_beta
from diffalign.types import ObjectiveOutput

__all__ = ["find_beta", "tell_beta"]


def find_beta(config: TrainConfig, accelerator: Accelerator, folder: Path, latents: Path) -> float:
    """The beta of an earlier start of this run, or that of a trial, from the rows of its last quarter.

    The trial has no warm-up: it would end before the rate of the run is reached.
    """
    path, wanted = folder / "beta.json", config.strength
    if not path.exists():
        trial = config.replace(
            settings=config.settings | {"beta": 1.0},
            optimizer=config.optimizer.replace(warmup_steps=0, schedule="constant"),
        )
        run = build_run(trial, accelerator, latents)
        wrap(run)
        spec, compute, batches = get_objective(config.objective), run.compute, list[dict[str, Tensor]]()

        def keep(quantities: Mapping[str, Tensor]) -> ObjectiveOutput:
            batches.append({name: quantities[name].detach().cpu() for name in spec.inputs})
            return compute(quantities)

        with finish_step_first() as asked_to_stop:
            for step in progress(range(wanted.num_steps), description="trial for beta", unit="steps"):
                if step >= wanted.num_steps - math.ceil(wanted.num_steps / 4):
                    run.compute = keep
                if take_step(run, step, asked_to_stop)[1]:
                    raise KeyboardInterrupt
        if accelerator.num_processes > 1:
            batches = gather_object(batches)
        del run
        accelerator.free_memory()
        if accelerator.is_main_process:
            beta, factor = solve_beta(spec, config.settings, batches, wanted.gradient_factor)
            write_json(path, {"beta": beta, "gradient_factor": factor, "objective": spec.name})
        accelerator.wait_for_everyone()
    return float(read_json(path)["beta"])


def tell_beta(run: Run) -> None:
    """Print what a logistic objective's beta is called elsewhere."""
    config = run.config
    if config.objective not in LOGISTIC or "beta" not in config.settings:
        return
    shape = run.family.latent_shape(config.resolution, config.resolution)
    same = beta_elsewhere(config.settings["beta"], num_elements=math.prod(shape))
    said = ", ".join(f"{where} {value:.3g}" for where, value in same.items())
    get_console().print(f"beta {config.settings['beta']:g}; the same strength elsewhere: {said}", markup=False)
