"""``diffalign train``: run a recipe or a config file, stage by stage, resumable."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diffalign.core import DiffalignError, default_device, get_console, load_config, override, print_table

if TYPE_CHECKING:
    from diffalign.train import Plan, TrainConfig

__all__ = ["in_bytes", "in_time", "train"]

_SHARE = 0.5  # of a device's matrix rate that training reaches, roughly: 0.6 to 0.7 of a CPU core on tiny-sd


def train(
    what: Annotated[str, typer.Argument(metavar="RECIPE|CONFIG", help="A recipe's name, or a plan in YAML or JSON.")],
    data: Annotated[str, typer.Option(help="Preference rows: a folder or Parquet file.")] = "",
    model: Annotated[str, typer.Option(help="Base model: folder, hub id, or tiny-sd, tiny-sd3.")] = "",
    start: Annotated[str, typer.Option(help="LoRA that the first stage starts from.")] = "",
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting: stages.0.num_steps=50.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the run; it goes on there.")] = Path("runs/train"),
    tiny: Annotated[bool, typer.Option(help="The tiny twin: the same plan on --model tiny-sd or tiny-sd3.")] = False,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write TensorBoard event files too.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check and print the plan, its memory, disk and time; train nothing.")
    ] = False,
) -> None:
    """Train the stages of a recipe or a config file.

    Ctrl-C finishes the step at hand and leaves a run that the same command continues. The folder gets the resolved plan
    as config.yaml, which can be run again, and per stage metrics.jsonl, checkpoints and the trained weights.

        diffalign train realalign_sd15 --data pairs/ --out runs/real

        diffalign train realalign_sd15 --tiny --model tiny-sd --data pairs/ --set stages.0.num_steps=50
    """
    from diffalign.train import run_plan

    plan = _plan(what, data=data, model=model, start=start, settings=settings or [], tiny=tiny)
    if dry_run:
        _print_plan(plan)
        return
    try:
        result = run_plan(plan, out, tensorboard=tensorboard)
    except FloatingPointError as error:
        raise DiffalignError(
            f"{error}. Lower the learning rate, or set mixed_precision to bf16 or no; checkpoints are kept."
        ) from error
    get_console().print(f"trained weights: {result}", markup=False)


def _plan(what: str, *, data: str, model: str, start: str, settings: list[str], tiny: bool) -> Plan:
    """The plan that the arguments describe, validated."""
    from diffalign.recipes import RECIPES, tiny_twin
    from diffalign.train import Plan

    if Path(what).suffix in {".yaml", ".yml", ".json"}:
        plan = load_config(Plan, what)
        changes = {key: value for key, value in (("data", data), ("model", model)) if value}
        plan = plan.replace(stages=tuple(stage.replace(**changes) for stage in plan.stages))
    else:
        build = RECIPES.get(what).build
        if not data:
            raise DiffalignError(f"recipe {what} needs --data, a folder of preference rows")
        if tiny and model not in ("tiny-sd", "tiny-sd3"):
            raise DiffalignError("--tiny needs --model tiny-sd or tiny-sd3")
        plan = build(data, model) if model else build(data)
    if tiny:
        plan = tiny_twin(plan, model=model or plan.stages[0].model)
    if start:
        plan = plan.replace(stages=(plan.stages[0].replace(start=start), *plan.stages[1:]))
    return override(plan, settings)


def _print_plan(plan: Plan) -> None:
    from diffalign.data import Preferences
    from diffalign.train import check_plan

    rows: list[tuple[object, ...]] = []
    check_plan(plan)
    for number, stage in enumerate(plan.stages, start=1):
        count = len(Preferences(stage.data))
        passes = stage.num_steps * stage.batch_size / count
        rows += [
            (number, "objective", f"{stage.objective} {stage.settings or ''}"),
            (number, "model", stage.model),
            (number, "trains", f"LoRA of rank {stage.lora.rank}" if stage.train == "lora" else "all weights"),
            (number, "starts from", stage.start or ("the stage before" if number > 1 else "the base")),
            (number, "reference", stage.reference),
            (number, "rows", f"{count} in {stage.data}"),
            (number, "steps", f"{stage.num_steps} of {stage.batch_size} rows, {passes:.1f} passes over the rows"),
            *((number, what, value) for what, value in _costs(stage, follows=number > 1)),
        ]
    print_table(["stage", "what", "value"], rows, title="plan")


def _costs(stage: TrainConfig, *, follows: bool) -> list[tuple[str, str]]:
    """Memory, disk and time of a stage on this machine, one that may start from the stage before it."""
    import torch

    from diffalign.train import estimate, frozen_dtype, matrix_rate

    if follows and stage.train == "lora":
        stage = stage.replace(start="the stage before")
    try:
        found = estimate(stage)
    except DiffalignError as error:
        return [("memory, disk, time", f"unknown: {error}")]
    device = torch.device(default_device())
    seconds = stage.num_steps * found.flops / (_SHARE * matrix_rate(device, frozen_dtype(stage)))
    return [
        ("memory", _sizes(found.memory)),
        ("disk", _sizes(found.disk)),
        ("time", f"about {in_time(seconds)} on one {device.type}, at {_SHARE:.0%} of its matrix rate"),
    ]


def _sizes(parts: Mapping[str, int]) -> str:
    each = ", ".join(f"{name} {in_bytes(value)}" for name, value in parts.items() if value)
    return f"{in_bytes(sum(parts.values()))}: {each}"


def in_bytes(count: float) -> str:
    """A number of bytes for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def in_time(seconds: float) -> str:
    """A duration for people."""
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 1):.0f} seconds"
