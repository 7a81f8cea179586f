"""``diffalign merge``: preference guidance as one checkpoint, with its error measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from diffalign.core import default_device, get_console, print_table, warn

if TYPE_CHECKING:
    from diffalign.guidance import MergeReport

__all__ = ["merge"]


def merge(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The base: folder, hub id, or tiny-sd, tiny-sd3.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New folder of the result.")],
    positive: Annotated[str, typer.Option(help="LoRA or denoiser's folder: fitted to chosen images, or tuned.")],
    scale: Annotated[float, typer.Option(help="Strength w of the guidance.")],
    negative: Annotated[
        str, typer.Option(help="LoRA or denoiser's folder fitted to rejected images; without it, PGD is merged.")
    ] = "",
    form: Annotated[str, typer.Option(help="lora, or denoiser for all weights.")] = "lora",
    prompt: Annotated[list[str] | None, typer.Option(metavar="TEXT", help="A prompt to measure with.")] = None,
    timesteps: Annotated[int, typer.Option(min=1, help="Steps of the guided sampling that is measured.")] = 6,
    guidance: Annotated[float, typer.Option(min=0.0, help="Scale of its text guidance; 1 is off.")] = 7.5,
    max_error: Annotated[
        float, typer.Option(help="Largest error at any timestep that is written, as a share of the guidance.")
    ] = 0.3,
    force: Annotated[bool, typer.Option("--force", help="Write it whatever the error.")] = False,
) -> None:
    """Write theta + w (positive - negative): guidance at the price of the base, where that is accurate.

    Prints how far merged predictions are from guided ones at the states of a short guided sampling, after text
    guidance, and refuses if any is above --max-error. merge.json in the folder keeps all that. Measuring evaluates the
    denoiser 8 times per prompt and step: 144 times, on three prompts.

        diffalign merge tiny-sd runs/merged --positive runs/pos --negative runs/neg --scale 1
    """
    from diffalign.guidance import merge as merge_modules
    from diffalign.guidance.merging import PROMPTS

    report = merge_modules(
        model,
        out,
        positive=positive,
        negative=negative or None,
        scale=scale,
        form=cast(Literal["lora", "denoiser"], form),
        prompts=prompt or PROMPTS,
        num_timesteps=timesteps,
        guidance_scale=guidance,
        max_error=max_error,
        force=force,
        device=default_device(),
    )
    print_table(["merged against guided", "value"], _rows(report, scale))
    if report.worst_error > max_error:
        warn(f"the worst error is above {max_error:.0%}: what was written is another model than the guided one")
    get_console().print(f"merged: {out}", markup=False)


def _rows(report: MergeReport, scale: float) -> list[tuple[str, str]]:
    return [
        ("worst error, as a share of the guidance", f"{report.worst_error:.1%}"),
        ("error over all timesteps", f"{report.error:.1%}"),
        *((f"  at timestep {timestep}", f"{error:.1%}") for timestep, error in report.by_timestep.items()),
        ("error, as a share of the prediction", f"{report.prediction_error:.2%}"),
        (f"size of the guidance at scale {scale:g}, as a share of the base", f"{scale * report.module_effect:.1%}"),
        ("predictions compared", str(report.num_probes)),
    ]
