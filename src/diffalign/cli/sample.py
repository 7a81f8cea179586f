"""``diffalign sample``: prompts x seeds to a folder of images with a manifest, resumable."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffalign.core import DiffalignError, default_device, get_console, load_config, override, print_table

if TYPE_CHECKING:
    from diffalign.sample import PromptRow, SampleConfig

__all__ = ["plan_rows", "sample", "size_settings"]


def sample(
    config: Annotated[
        str, typer.Argument(metavar="CONFIG", help="Settings in YAML, such as config.yaml of a former run.")
    ] = "",
    model: Annotated[str | None, typer.Option(help="Model: folder, hub id, or tiny-sd, tiny-sd3.")] = None,
    adapter: Annotated[str | None, typer.Option(help="LoRA or folder of a fine-tuned denoiser.")] = None,
    prompts: Annotated[
        str | None, typer.Option(help="Prompts: .txt, .jsonl, .tsv or .csv file, or the list photographs.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the run; it goes on there.")] = Path("runs/sample"),
    seeds: Annotated[int | None, typer.Option(help="Images per prompt; 1 by default.")] = None,
    steps: Annotated[int | None, typer.Option(help="Solver steps; 25 by default.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Scale of text guidance, 1 is off; 7.5 by default.")] = None,
    size: Annotated[
        str | None,
        typer.Option(metavar="PIXELS", help="512, or height x width as 768x512; by default the model's own."),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images at a time; 4 by default.")] = None,
    limit: Annotated[int | None, typer.Option(help="Use the first so many prompts; all by default.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting: solver=ddim.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check and print what would be made; load no weights.")
    ] = False,
) -> None:
    """Make images of prompts: every prompt with seeds 0 to N - 1, and noise from the prompt's id and the seed alone.

    So two runs over the same prompts differ by their models only. Ctrl-C leaves a run that the same command continues.
    The folder gets images/, manifest.jsonl with a row per image (failed ones too), grid.png and config.yaml.

        diffalign sample --model tiny-sd --prompts photographs --limit 4 --seeds 4 --steps 12 --guidance 4

        diffalign sample --model models/sd15 --adapter runs/real/stage2/policy --prompts hpdv2.tsv --out runs/real-hpdv2
    """
    from diffalign.sample import run_sample, wanted_prompts

    given = {
        "model": model,
        "adapter": adapter,
        "prompts": prompts,
        "num_seeds": seeds,
        "num_steps": steps,
        "guidance_scale": guidance,
        "batch_size": batch_size,
        "limit": limit,
        **size_settings(size),
    }
    wanted = _config(config, {key: value for key, value in given.items() if value is not None}, settings or [])
    if dry_run:
        print_table(["what", "value"], plan_rows(wanted, wanted_prompts(wanted)), title="plan")
        return
    get_console().print(f"images: {run_sample(wanted, out, device=default_device())}", markup=False)


def _config(file: str, given: dict[str, Any], settings: list[str]) -> SampleConfig:
    from diffalign.sample import SampleConfig

    if not file and not {"model", "prompts"} <= given.keys():
        raise DiffalignError("expected --model and --prompts, or a config file that names them")
    config = load_config(SampleConfig, file).replace(**given) if file else SampleConfig(**given)
    return override(config, settings)


def size_settings(text: str | None) -> dict[str, int]:
    """The settings behind --size.

    Raises:
        DiffalignError: it is neither one side nor two.
    """
    if text is None:
        return {}
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() for side in sides):
        raise DiffalignError(f"expected --size as pixels, such as 512 or 768x512 (height x width), got {text!r}")
    return {"height": int(sides[0]), "width": int(sides[-1])}


def plan_rows(config: SampleConfig, prompts: Sequence[PromptRow]) -> list[tuple[str, str]]:
    """What would be made of these prompts, as lines of a table; no weights are loaded.

    Raises:
        DiffalignError: a setting does not fit.
    """
    from diffalign.models import outline_family
    from diffalign.sample import adapter_identity, image_size, make_scheduler

    family = outline_family(config.model)
    make_scheduler(family, config.solver)
    height, width = image_size(family, config.height, config.width)
    identity = adapter_identity(config)
    images = len(prompts) * config.num_seeds
    passes = config.num_steps * (1 if config.guidance_scale == 1 else 2)
    return [
        ("model", config.model),
        ("adapter", f"{config.adapter}, hash {identity}" if identity else "none"),
        ("images", f"{images}: {len(prompts)} prompts x {config.num_seeds} seeds, {height} x {width} pixels each"),
        ("first prompt", prompts[0].prompt),
        ("steps", f"{config.num_steps}, guidance {config.guidance_scale:g}: {passes} passes of the denoiser per image"),
        ("passes", f"{images * passes} in all"),
        ("runs on", f"{default_device()}, {config.precision}, {config.batch_size} images at a time"),
    ]
