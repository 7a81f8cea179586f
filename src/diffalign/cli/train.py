"""``diffalign train``: run a recipe or a config file, stage by stage, resumable."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diffalign.core import DiffalignError, get_console, load_config, override, print_table

if TYPE_CHECKING:
    from diffalign.train import Plan

__all__ = ["train"]


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
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and print the plan; train nothing.")] = False,
) -> None:
    """Train the stages of a recipe or a config file.

    Ctrl-C leaves a run that the same command continues. The folder gets the resolved plan as config.yaml, which can be
    run again, and per stage metrics.jsonl, checkpoints and the trained weights.

        diffalign train realalign_sd15 --data pairs/ --out runs/real

        diffalign train realalign_sd15 --tiny --model tiny-sd --data pairs/ --set stages.0.num_steps=50
    """
    from diffalign.train import run_plan

    plan = _plan(what, data=data, model=model, start=start, settings=settings or [], tiny=tiny)
    if dry_run:
        _print_plan(plan)
        return
    try:
        result = run_plan(plan, out)
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
    from diffalign.objectives import get_objective

    rows = []
    for number, stage in enumerate(plan.stages, start=1):
        get_objective(stage.objective).bind(stage.settings)
        count = len(Preferences(stage.data))
        passes = stage.num_steps * stage.batch_size / count
        rows += [
            (number, "objective", f"{stage.objective} {stage.settings or ''}"),
            (number, "model", stage.model),
            (number, "trains", f"LoRA of rank {stage.lora.rank}" if stage.train == "lora" else "all weights"),
            (number, "starts from", stage.start or ("stage before" if number > 1 else "the base")),
            (number, "rows", f"{count} in {stage.data}"),
            (number, "steps", f"{stage.num_steps} of {stage.batch_size} rows, {passes:.1f} passes over the rows"),
        ]
    print_table(["stage", "what", "value"], rows, title="plan")
