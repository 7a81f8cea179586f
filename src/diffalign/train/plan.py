"""Several stages as one resumable run, each from the weights of the one before."""

from __future__ import annotations

from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Literal

from diffalign.core import Config, DiffalignError, RunFolder, get_console, seed_from, setting
from diffalign.models import is_denoiser
from diffalign.train.build import make_accelerator
from diffalign.train.checks import check
from diffalign.train.config import LoraConfig, TrainConfig
from diffalign.train.loop import train

__all__ = ["Plan", "check_plan", "run_plan"]


class Plan(Config):
    """Stages in order. From the second on, a stage's ``start`` is set by the plan."""

    stages: tuple[TrainConfig, ...] = setting(..., "what is trained, in order", min_length=1)
    feed: Literal["policy", "ema"] = setting("policy", "which weights of a stage the next one starts from")

    def model_post_init(self, _: object) -> None:
        """Checks that concern several stages.

        Raises:
            DiffalignError: they contradict each other.
        """
        for number, stage in enumerate(self.stages[:-1], start=1):
            if self.feed == "ema" and stage.ema is None:
                raise DiffalignError(f"feed ema needs a moving average in stage {number}: set stages[{number - 1}].ema")
        for number, (before, stage) in enumerate(pairwise(self.stages), start=2):
            if before.train == "lora" and stage.train == "full" and stage.start_as != "fuse":
                raise DiffalignError(
                    f"stage {number} trains full weights and can only fuse the LoRA before it: set "
                    f"stages[{number - 1}].start_as to fuse"
                )
            if stage.reference == "base" and (before.train == "full" or stage.start_as == "fuse"):
                raise DiffalignError(
                    f"stage {number} has no base to refer to once the weights before it are in its place: set "
                    f"stages[{number - 1}].reference to start, or start_as to keep"
                )
            if before.train == "full" and stage.start_as != "continue":
                raise DiffalignError(
                    f"stage {number} starts from the denoiser that stages[{number - 2}].train full gives, and start_as "
                    f"{stage.start_as} says what becomes of a LoRA: set stages[{number - 1}].start_as to continue"
                )
            _refuse_idle_lora(number, before, stage)
            if before.train == "lora" and stage.start_as == "fuse" and stage.mixed_precision != "no":
                raise DiffalignError(f"stage {number}: start_as fuse rounds part of the LoRA away; set it to keep")
            if stage.start:
                raise DiffalignError(f"stage {number} starts from the stage before it: leave its start empty")


def run_plan(plan: Plan, folder: str | Path, *, tensorboard: bool = False) -> Path:
    """Run every stage, or go on where it stopped; all stages share one latent cache.

    Args:
        plan: the stages.
        folder: gets ``stage1/``, ``stage2/``, ... and ``latents/``.
        tensorboard: write TensorBoard event files too, into each stage's folder.

    Returns:
        The folder of the last stage's trained weights: its average where ``feed`` says so and it has one.

    Raises:
        DiffalignError: see ``train``; every stage is checked before the first one runs.
    """
    folder = Path(folder)
    check_plan(plan)
    is_main = make_accelerator().is_main_process
    with RunFolder.open(folder, plan, kind="plan") if is_main else nullcontext():
        for number, stage in enumerate(plan.stages, start=1):
            if number > 1:
                # other draws than the stage before: it would be judged on the very noise it was fitted to
                seed = seed_from("stage", number, stage.seed)
                stage = stage.replace(start=f"stage{number - 1}/{plan.feed}", seed=seed)
            if is_main:
                get_console().print(
                    f"stage {number} of {len(plan.stages)}: {stage.objective} on {stage.model}, "
                    f"{stage.num_steps} steps of {stage.batch_size} rows",
                    markup=False,
                )
            train(stage, folder / f"stage{number}", cache=folder / "latents", root=folder, tensorboard=tensorboard)
    return folder / f"stage{len(plan.stages)}" / (plan.feed if plan.stages[-1].ema is not None else "policy")


def check_plan(plan: Plan) -> None:
    """What can be known of every stage before the first one runs; see ``check``.

    Raises:
        DiffalignError: a stage does not fit, or what it starts from would be lost to the stage after it.
    """
    check(plan.stages[0])
    for stage in plan.stages[1:]:
        check(stage.replace(start_as="continue"))  # of the start, which is not there yet; see ``Plan``
    for number, stage in enumerate(plan.stages[:-1], start=1):
        _refuse_lost_start(number, stage)


def _refuse_idle_lora(number: int, before: TrainConfig, stage: TrainConfig) -> None:
    """A stage that goes on with the LoRA of the one before has no say in its size.

    Raises:
        DiffalignError: its section lora says something else.
    """
    goes_on = before.train == stage.train == "lora" and stage.start_as == "continue"
    if goes_on and stage.lora not in (before.lora, LoraConfig()):
        raise DiffalignError(
            f"stage {number} trains on the LoRA of the stage before it, so stages[{number - 1}].lora has no effect: "
            f"leave it out, or set it to that of stages[{number - 2}].lora; or set start_as to keep"
        )


def _refuse_lost_start(number: int, stage: TrainConfig) -> None:
    """A stage hands on its own LoRA, which the next one puts on the bare model: what lay under it would be gone.

    Raises:
        DiffalignError: the stage trains a LoRA on something else than the model.
    """
    if stage.train == "full" or not stage.start:
        return
    if is_denoiser(stage.start):
        raise DiffalignError(
            f"stage {number} trains a LoRA on the denoiser in {stage.start}, and the stage after it would put that "
            f"LoRA on {stage.model} itself: save a pipeline with this denoiser, and set model to it in every stage"
        )
    if stage.start_as != "continue":
        raise DiffalignError(
            f"stage {number} trains a LoRA beside {stage.start}, and the stage after it would go on without that one: "
            "set start_as to continue, or save a pipeline with it fused, and set model to that in every stage"
        )
