"""Several stages as one resumable run, each from the weights of the one before."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Literal

from diffalign.core import Config, DiffalignError, RunFolder, get_console, setting
from diffalign.train.config import TrainConfig
from diffalign.train.loop import train

__all__ = ["Plan", "run_plan"]


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
            if stage.start:
                raise DiffalignError(f"stage {number} starts from the stage before it: leave its start empty")


def run_plan(plan: Plan, folder: str | Path, *, tensorboard: bool = False) -> Path:
    """Run every stage, or go on where it stopped; all stages share one latent cache.

    Args:
        plan: the stages.
        folder: gets ``stage1/``, ``stage2/``, ... and ``latents/``.
        tensorboard: write TensorBoard event files too, into each stage's folder.

    Returns:
        The folder of the last stage's trained weights.

    Raises:
        DiffalignError: see ``train``.
    """
    folder, result = Path(folder), Path()
    with RunFolder.open(folder, plan, kind="plan"):
        for number, stage in enumerate(plan.stages, start=1):
            if number > 1:
                stage = stage.replace(start=str(folder / f"stage{number - 1}" / plan.feed))
            get_console().print(
                f"stage {number} of {len(plan.stages)}: {stage.objective} on {stage.model}, {stage.num_steps} steps of "
                f"{stage.batch_size} rows",
                markup=False,
            )
            result = train(stage, folder / f"stage{number}", cache=folder / "latents", tensorboard=tensorboard)
    return result
