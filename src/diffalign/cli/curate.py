"""``diffalign curate``: photographs to audited preference pairs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from diffalign.cli.train import in_bytes, in_time
from diffalign.core import DiffalignError, default_device, get_console, override, print_table

if TYPE_CHECKING:
    from diffalign.curate import CurateConfig

__all__ = ["curate"]


def curate(
    photos: Annotated[
        str,
        typer.Argument(
            help="Folder of photographs, Parquet, tars, HPDv3's JSON, RealAlign's CSV, hub:user/dataset, a URL of any "
            "of these, or photographs: crops of the embedded ones (with --count)."
        ),
    ],
    out: Annotated[Path, typer.Argument(help="Folder of the run; it goes on there. Pairs come to OUT/pairs.")],
    recipe: Annotated[str, typer.Option(help="Settings of a paper: realalign.")] = "",
    model: Annotated[str, typer.Option(help="Model that draws damage: folder, hub id, or an embedded one.")] = "",
    degrade: Annotated[str, typer.Option(help="How to damage: inpaint, image_to_image, jpeg, ...")] = "",
    locate: Annotated[str, typer.Option(help="Where: colour_saliency, onnx_saliency, sam, random_shapes, ...")] = "",
    reward: Annotated[
        list[str] | None, typer.Option(help="What scores both images; repeat for several, the first one ranks.")
    ] = None,
    count: Annotated[int, typer.Option(min=0, help="Use the first so many photographs; 0 for all.")] = 0,
    captioner: Annotated[
        str, typer.Option(help="What captions photographs without caption: a model, or openai:MODEL@URL.")
    ] = "",
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting: keep.min_gap=0.3.")
    ] = None,
    review: Annotated[Path | None, typer.Option(help="marks.json of the gallery: leave out what it rejects.")] = None,
    engine: Annotated[Literal["local", "ray"], typer.Option(help="Processes of this machine, or a Ray cluster.")] = (
        "local"
    ),
    workers: Annotated[int, typer.Option(min=0, help="At once; 0 for one per GPU, else per core up to 8.")] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write nothing; say what would run.")] = False,
) -> None:
    """Make preference pairs of real photographs: each against a copy of itself that is damaged on purpose.

    Photographs are read and selected; a region of each is located, damaged and put back; both images are scored; pairs
    in which the photograph leads are kept, and audited. Captions come from .txt files beside the images,
    metadata.jsonl, metadata.csv or the folders' names. Killed at any moment, the same command goes on. `diffalign
    inspect OUT` shows the pairs, what was dropped and why, and the audit.

        diffalign curate photos/ runs/curated --dry-run

        diffalign curate photos/ runs/curated --model stable-diffusion-v1-5/stable-diffusion-inpainting

        diffalign curate hub:user/dataset runs/curated --recipe realalign

        diffalign curate photographs runs/curated --count 64 --degrade jpeg --set degrade.severity=0.9

        diffalign curate photos/ runs/curated --review marks.json
    """
    from diffalign.curate import CurateConfig, default_workers, read_marks
    from diffalign.curate import curate as run_curation
    from diffalign.recipes import CURATIONS

    config = CURATIONS.get(recipe)(photos) if recipe else CurateConfig(photos=photos)
    changes: dict[str, Any] = {
        "model": model,
        "degrade": {"name": degrade} if degrade else None,
        "locate": {"name": locate} if locate else None,
        "rewards": tuple(reward or ()),
        "count": count,
        "captioner": captioner,
    }
    config = override(config.replace(**{key: value for key, value in changes.items() if value}), settings or [])
    workers = workers or default_workers(engine)
    if review is not None:
        read_marks(review)
    if dry_run:
        _print_plan(config, out, engine, workers)
        return
    run_curation(config, out, device=default_device(), engine=engine, workers=workers, review=review)
    get_console().print(f"pairs: {out / 'pairs'}; look at them with: diffalign inspect {out}", markup=False)


def _print_plan(config: CurateConfig, out: Path, engine: str, workers: int) -> None:
    from diffalign.curate import open_source
    from diffalign.curate.pairs import check_apart
    from diffalign.curate.work import check_names, load_models

    check_apart(config, out)
    check_names(config)
    photos, device, keep = open_source(config), default_device(), config.keep
    rows = [
        ("photographs", f"{len(photos):,} of {config.photos}"),
        ("select", ", ".join(_selected_by(config))),
        ("locate", f"{config.locate}, {config.min_area:.3g} to {config.max_area:.3g} of the image"),
        ("degrade", f"{config.degrade} with {config.model}"),
        ("score", ", ".join(config.rewards)),
        ("keep", f"gap above {keep.min_gap:g}" + (f", best {keep.keep} by {keep.rank_by}" if keep.keep else "")),
        ("runs on", f"{device}, engine {engine}, {workers} workers of {config.batch_size} images at a time"),
    ]
    if problems := load_models(config, device).problems():
        rows += [(f"missing for {setting}", problem) for setting, problem in problems.items()]
        rows.append(("memory, disk, time", "unknown until these are here"))
    else:
        rows += _measured(config, device, workers)
    print_table(["what", "value"], rows, title="plan")


def _measured(config: CurateConfig, device: str, workers: int) -> list[tuple[str, str]]:
    from diffalign.curate import estimate_curation

    try:
        found = estimate_curation(config, device=device)
    except DiffalignError as error:
        return [("memory, disk, time", f"unknown: {error}")]
    return [
        ("memory", f"{in_bytes(found.memory)} for each worker"),
        ("disk", f"at most {in_bytes(found.disk)}"),
        ("time", f"about {in_time(found.seconds / workers)}, from {found.timed} photographs timed on one worker"),
    ]


def _selected_by(config: CurateConfig) -> list[str]:
    select = config.select
    told = [f"contrast of at least {select.min_contrast:g}"]
    told += ["no near duplicates"] if select.max_likeness >= 0 else []
    told += [f"{name} of at least {least:g}" for name, least in select.min_scores.items()]
    told += [f"{name} above its mean" for name in select.above_mean]
    return told + ([f"photographic by {select.photographic}"] if select.photographic else [])
