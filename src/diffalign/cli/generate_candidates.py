"""``diffalign generate-candidates``: several images of a model for each prompt, scored, as candidate sets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffalign.cli.sample import plan_rows, size_settings
from diffalign.cli.score import named_values
from diffalign.core import DiffalignError, default_device, get_console, load_config, override, print_table

if TYPE_CHECKING:
    from diffalign.sample import CandidatesConfig

__all__ = ["generate_candidates"]


def generate_candidates(
    config: Annotated[
        str, typer.Argument(metavar="CONFIG", help="Settings in YAML, such as config.yaml of a former run.")
    ] = "",
    model: Annotated[str | None, typer.Option(help="Model: folder, hub id, or tiny-sd, tiny-sd3.")] = None,
    adapter: Annotated[str | None, typer.Option(help="LoRA or folder of a fine-tuned denoiser.")] = None,
    prompts: Annotated[
        str | None, typer.Option(help="Prompts: .txt, .jsonl, .tsv or .csv file, or the list photographs.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the run; it goes on there.")] = Path("runs/candidates"),
    candidates: Annotated[int | None, typer.Option(help="Images per prompt, at least 2; 4 by default.")] = None,
    reward: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="What scores them, as in diffalign score; may be repeated.")
    ] = None,
    weights: Annotated[
        list[str] | None, typer.Option(metavar="NAME=PATH", help="Weights of a reward: folder or hub id.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Solver steps; 25 by default.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Scale of text guidance, 1 is off; 7.5 by default.")] = None,
    size: Annotated[
        str | None,
        typer.Option(metavar="PIXELS", help="512, or height x width as 768x512; by default the model's own."),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images at a time; 4 by default.")] = None,
    limit: Annotated[int | None, typer.Option(help="Use the first so many prompts; all by default.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting: sample.solver=ddim.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check and print what would be made; load no weights.")
    ] = False,
) -> None:
    """Make several images of each prompt and score them: candidate sets, to label or to train on.

    Every prompt gets seeds 0 to N - 1, each image every score. A prompt of which an image failed, is black or has no
    score is set aside in OUT/rejected.jsonl. Sets come to OUT/candidates. Killed at any moment, the same command goes
    on.

        diffalign generate-candidates --model tiny-sd --prompts photographs --limit 8 --steps 12 --reward tiny-clip

        diffalign generate-candidates --model models/sd15 --prompts hpdv2.tsv --reward pickscore --reward image_reward
    """
    from diffalign.sample import generate_candidates as run_candidates

    given = {
        "model": model,
        "adapter": adapter,
        "prompts": prompts,
        "num_seeds": candidates,
        "num_steps": steps,
        "guidance_scale": guidance,
        "batch_size": batch_size,
        "limit": limit,
        **size_settings(size),
    }
    changes = {key: value for key, value in given.items() if value is not None}
    scoring: dict[str, Any] = {"rewards": tuple(reward or ()), "weights": named_values(weights or (), "NAME=PATH")}
    wanted = _config(config, changes, {key: value for key, value in scoring.items() if value}, settings or [])
    if dry_run:
        _print_plan(wanted)
        return
    counts = run_candidates(wanted, out, device=default_device())
    rows = [("prompts", counts.prompts), ("candidate sets", counts.sets)]
    rows += [(f"set aside: {reason}", count) for reason, count in counts.set_aside.items()]
    print_table(["what", "count"], rows, title="candidates")
    get_console().print(f"candidate sets: {out / 'candidates'}; make pairs of them with: diffalign label", markup=False)


def _config(file: str, images: dict[str, Any], scoring: dict[str, Any], settings: list[str]) -> CandidatesConfig:
    from diffalign.sample import CandidatesConfig, SampleConfig

    if file:
        found = load_config(CandidatesConfig, file)
        return override(found.replace(sample=found.sample.replace(**images), **scoring), settings)
    if not {"model", "prompts"} <= images.keys() or "rewards" not in scoring:
        raise DiffalignError("expected --model, --prompts and at least one --reward, or a config file that names them")
    return override(CandidatesConfig(sample=SampleConfig(**{"num_seeds": 4, **images}), **scoring), settings)


def _print_plan(config: CandidatesConfig) -> None:
    from diffalign.sample import wanted_prompts
    from diffalign.sample.candidates import check_rewards

    check_rewards(config)
    prompts = wanted_prompts(config.sample)
    images, rewards = len(prompts) * config.sample.num_seeds, len(config.rewards)
    rows = [
        *plan_rows(config.sample, prompts),
        ("rewards to load", ", ".join(config.rewards)),
        ("scores", f"{images * rewards}: {images} images x {rewards} rewards"),
        ("candidate sets", f"at most {len(prompts)}, of {config.sample.num_seeds} images each"),
    ]
    print_table(["what", "value"], rows, title="plan")
