"""``diffalign sample``: prompts x seeds to a folder of images with a manifest, resumable; or one per strength."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffalign.cli.guiding import GuideOptions, parse_strengths
from diffalign.core import (
    DiffalignError,
    default_device,
    get_console,
    load_config,
    override,
    parse_yaml,
    print_table,
    read_text,
)

if TYPE_CHECKING:
    from diffalign.models import Family
    from diffalign.sample import PromptRow, SampleConfig, SweepConfig

__all__ = ["plan_rows", "sample", "size_settings", "sweep_rows"]

_STRENGTH = "<A or A:B:STEP>"


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
    guidance: Annotated[
        str | None,
        typer.Option(metavar=_STRENGTH, help="Scale of text guidance, 1 is off; 7.5 by default."),
    ] = None,
    guide: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Preference guidance: pgd, cpgd, plus_minus, weighted, npo, chats, nag."),
    ] = None,
    positive: Annotated[str | None, typer.Option(metavar="LORA", help="The guide's LoRA to go towards.")] = None,
    negative: Annotated[str | None, typer.Option(metavar="LORA", help="The guide's LoRA to go away from.")] = None,
    scale: Annotated[
        str | None, typer.Option(metavar=_STRENGTH, help="Strength of the guide, 0 is off; of nag: phi.")
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(metavar="PIXELS", help="512, or height x width as 768x512; by default the model's own."),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images at a time; 4 by default.")] = None,
    limit: Annotated[int | None, typer.Option(help="Use the first so many prompts; all by default.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a setting: solver=ddim, guide.settings.stop=0.5."),
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

    A range of --scale or --guidance, 0:10:2 say, makes a sweep: a run per strength (OUT/scale-0, OUT/scale-2, ...) and
    grid.png with prompts as rows and strengths as columns. diffalign sweep scores it and picks a strength.

        diffalign sample --model tiny-sd --prompts photographs --guide cpgd --positive pos --negative neg --scale 0:4:1
    """
    from diffalign.sample import SweepConfig, run_sample, run_sweep, wanted_prompts

    guiding = GuideOptions(
        name=guide,
        positive=positive,
        negative=negative,
        scale=() if scale is None else parse_strengths(scale, "--scale"),
        guidance=() if guidance is None else parse_strengths(guidance, "--guidance"),
    )
    given = {
        "model": model,
        "adapter": adapter,
        "prompts": prompts,
        "num_seeds": seeds,
        "num_steps": steps,
        "guidance_scale": next(iter(guiding.guidance), None),
        "batch_size": batch_size,
        "limit": limit,
        **size_settings(size),
    }
    changes = {key: value for key, value in given.items() if value is not None}
    wanted = _config(config, changes, guiding, settings or [])
    if dry_run:
        rows = sweep_rows(wanted) if isinstance(wanted, SweepConfig) else plan_rows(wanted, wanted_prompts(wanted))
        print_table(["what", "value"], rows, title="plan")
    elif isinstance(wanted, SweepConfig):
        grid = run_sweep(wanted, out, device=default_device())
        get_console().print(f"strengths side by side: {grid}; score them with: diffalign sweep {out}", markup=False)
    else:
        get_console().print(f"images: {run_sample(wanted, out, device=default_device())}", markup=False)


def _config(file: str, given: dict[str, Any], guiding: GuideOptions, settings: list[str]) -> SampleConfig | SweepConfig:
    """The settings of a run; of a sweep, where a range is given or the file is a sweep's."""
    from diffalign.sample import SampleConfig, SweepConfig

    if not file and not {"model", "prompts"} <= given.keys():
        raise DiffalignError("expected --model and --prompts, or a config file that names them")
    former = load_config(SweepConfig, file) if file and _is_sweep(file) else None
    before = former.sample if former else load_config(SampleConfig, file) if file else None
    sample = before.replace(**given) if before else SampleConfig(**given)
    asked = sample.replace(guide=guiding.merged(sample.guide))
    sample = override(asked, settings)
    if guiding.range:
        wanted = SweepConfig(sample=sample, axis=guiding.axis(sample.guide), strengths=guiding.range)
    else:
        fixed = guiding.guidance if former and former.axis == "guidance" else guiding.scale
        if former is None or fixed:
            return sample
        wanted = former.replace(sample=sample)
    _refuse_set_strength(asked, wanted)
    return wanted


def _refuse_set_strength(asked: SampleConfig, sweep: SweepConfig) -> None:
    """Raise where --set changed what the sweep changes, which would have no effect."""

    def strength(sample: SampleConfig) -> Any:
        if sweep.axis == "guidance":
            return sample.guidance_scale
        return sample.guide.settings.get(sweep.axis) if sample.guide else None

    given = strength(sweep.sample)
    if given is not None and given != strength(asked):
        key, option = ("guidance_scale", "guidance") if sweep.axis == "guidance" else (sweep.axis, "scale")
        raise DiffalignError(
            f"{key} is what the sweep changes, got {given} for it by --set: leave that out, or give --{option} {given} "
            "to sample at this strength alone"
        )


def _is_sweep(file: str) -> bool:
    values = parse_yaml(read_text(Path(file)), where=file)
    return isinstance(values, dict) and "strengths" in values


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

    family = outline_family(config.model)
    images, passes = len(prompts) * config.num_seeds, _passes(family, config)
    return [
        *_shared_rows(family, config, prompts),
        ("steps", f"{config.num_steps}, guidance {config.guidance_scale:g}: {passes} passes of the denoiser per image"),
        ("passes", f"{images * passes} in all"),
        ("runs on", _place(config)),
    ]


def sweep_rows(config: SweepConfig) -> list[tuple[str, str]]:
    """The same of a sweep, strength by strength."""
    from diffalign.models import outline_family
    from diffalign.sample import at_strength, wanted_prompts

    family, prompts = outline_family(config.sample.model), wanted_prompts(config.sample)
    images, runs = len(prompts) * config.sample.num_seeds, [at_strength(config, each) for each in config.strengths]
    passes = {each: _passes(family, run) for each, run in zip(config.strengths, runs, strict=True)}
    fixed = "" if config.axis == "guidance" else f", guidance {config.sample.guidance_scale:g}"
    return [
        *_shared_rows(family, runs[-1], prompts, but_for=config.axis),
        ("strengths", f"{len(runs)} of {config.axis}, each with so many images"),
        ("steps", f"{config.sample.num_steps}{fixed}"),
        *((f"{config.axis} {each:g}", f"{count} passes of the denoiser per image") for each, count in passes.items()),
        ("passes", f"{images * sum(passes.values())} in all"),
        ("runs on", _place(config.sample)),
    ]


def _shared_rows(
    family: Family, config: SampleConfig, prompts: Sequence[PromptRow], but_for: str = ""
) -> list[tuple[str, str]]:
    from diffalign.sample import adapter_identity, image_size, make_scheduler

    make_scheduler(family, config.solver)
    height, width = image_size(family, config.height, config.width)
    identity = adapter_identity(config)
    images = len(prompts) * config.num_seeds
    return [
        ("model", config.model),
        ("adapter", f"{config.adapter}, hash {identity}" if identity else "none"),
        *_guide_rows(config, but_for),
        ("images", f"{images}: {len(prompts)} prompts x {config.num_seeds} seeds, {height} x {width} pixels each"),
        ("first prompt", prompts[0].prompt),
    ]


def _guide_rows(config: SampleConfig, but_for: str) -> list[tuple[str, str]]:
    from diffalign.guidance import GUIDES, module_hash
    from diffalign.sample import guide_told

    if config.guide is None:
        return []
    guide_told(config.guide)  # that all LoRAs are there
    spec, given = GUIDES.get(config.guide.name), config.guide.settings
    loras = [(key, given[key], given[key]) for key in spec.modules if given.get(key)] + [
        (key, path, f"{path} x {weight:g}") for key in spec.weighted for path, weight in given.get(key, {}).items()
    ]
    told = [f"{key} {shown}, hash {module_hash(path)[:12]}" for key, path, shown in loras]
    told += [f"{key} {value}" for key, value in given.items() if key not in (*spec.modules, *spec.weighted, but_for)]
    return [("guide", f"{spec.name}: {'; '.join(told)}")]


def _passes(family: Family, config: SampleConfig) -> int:
    """Of the denoiser, for one image."""
    from diffalign.sample import evaluations_per_image

    return evaluations_per_image(
        family,
        config.guide,
        num_steps=config.num_steps,
        solver=config.solver,
        guidance_scale=config.guidance_scale,
    )


def _place(config: SampleConfig) -> str:
    return f"{default_device()}, {config.precision}, {config.batch_size} images at a time"
