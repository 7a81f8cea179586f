"""One sampling run at several strengths of its guidance: a folder of plain runs, what they share, and a labelled grid.

A folder holds a run per strength (``scale-0/``, ``scale-2/``, ...; each as ``sample_images`` makes it), ``sweep.json``,
``grid.png``, and ``config.yaml``, by which a stopped sweep goes on.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image

from diffalign.core import (
    Config,
    DiffalignError,
    RunFolder,
    atomic_path,
    config_to_yaml,
    dump_config,
    folder_lock,
    read_json,
    read_jsonl,
    safe_name,
    setting,
    write_json,
    write_text,
)
from diffalign.data import decode_image, encode_png
from diffalign.guidance import GUIDES
from diffalign.sample.grids import draw_grid
from diffalign.sample.guides import checked_guide, guide_told
from diffalign.sample.images import OK, sample_images
from diffalign.sample.prompts import PromptRow
from diffalign.sample.run import SampleConfig, load_model, make_sampler, wanted_prompts

__all__ = ["SweepConfig", "SweepFolder", "at_strength", "read_sweep", "run_sweep", "strength_name"]

_TABLE = "sweep.json"
_GRID_PROMPTS = 8
_FEW = 12  # strengths up to which cells of the grid are 256 pixels, beyond 128


class SweepConfig(Config):
    """A sampling run at several strengths."""

    sample: SampleConfig = setting(..., "every run, but for the strength")
    axis: Literal["scale", "phi", "guidance"] = setting(..., "what changes: a setting of the guide, or text guidance")
    strengths: tuple[float, ...] = setting(..., "rising, at least two", min_length=2)

    def model_post_init(self, _: object) -> None:
        """Checks that concern several settings.

        Raises:
            DiffalignError: strengths that do not rise, or an axis that the guide has not.
        """
        if any(not high > low for low, high in pairwise(self.strengths)):
            raise DiffalignError(f"strengths: expected rising numbers, got {list(self.strengths)}")
        if self.axis != "guidance":
            own = GUIDES.get(self.sample.guide.name).strength if self.sample.guide else ""
            if own != self.axis:
                raise DiffalignError(f"axis: expected {own or 'guidance'} for this guide, got {self.axis!r}")


@dataclass(frozen=True)
class SweepFolder:
    """A sweep on disk.

    Attributes:
        axis: what changes between its runs.
        strengths: rising.
        folders: of the runs, in that order.
        guide: identity of the guide but for its strength; None without one.
        settings: of every run but for the strength.
    """

    axis: str
    strengths: tuple[float, ...]
    folders: tuple[Path, ...]
    guide: dict[str, Any] | None
    settings: dict[str, Any]


def strength_name(axis: str, strength: float) -> str:
    """The name of a run's folder.

    Example:
        >>> strength_name("scale", 0.25)
        'scale-0.25'
    """
    return f"{axis}-{strength:.10g}"


def at_strength(config: SweepConfig, strength: float) -> SampleConfig:
    """The settings of one run of the sweep."""
    sample = config.sample
    if config.axis == "guidance":
        return sample.replace(guidance_scale=strength)
    assert sample.guide is not None  # checked above
    return sample.replace(guide=sample.guide.replace(settings={**sample.guide.settings, config.axis: strength}))


def run_sweep(config: SweepConfig, folder: str | Path, *, device: str | torch.device = "cpu") -> Path:
    """Make the images of every strength, or go on with the sweep of before; the model is loaded once.

    Each run is that of ``run_sample`` with its strength: the same images, the same noise at all strengths. A range that
    holds all strengths of before goes on in the same folder with the new ones.

    Args:
        config: the settings.
        folder: of the sweep.
        device: where the model runs.

    Returns:
        The grid: the first seed of the first prompts, a column for each strength.

    Raises:
        DiffalignError: a setting does not fit, or the folder belongs to another sweep, whose files stay as they are.
    """
    configs = [at_strength(config, strength) for strength in config.strengths]
    for each in configs:
        if each.guide is not None:
            checked_guide(each.guide, each.guidance_scale)
    prompts, table = wanted_prompts(config.sample), _described(config)
    _check_former(Path(folder), table)
    loaded = load_model(configs[-1], device=device)
    with make_sampler(loaded, configs[-1]):
        pass  # what does not fit the model is told before anything is written
    _widen(Path(folder), config, table)
    with RunFolder.open(folder, config, kind="sweep") as run:
        write_json(run.path / _TABLE, table)
        for strength, each in zip(config.strengths, configs, strict=True):
            name = strength_name(config.axis, strength)
            with make_sampler(loaded, each) as sampler:
                try:
                    sample_images(
                        sampler,
                        prompts,
                        run.path / name,
                        num_seeds=each.num_seeds,
                        batch_size=each.batch_size,
                        config=each,
                    )
                except DiffalignError as error:
                    raise DiffalignError(f"{name}: {error}") from error
        return _write_grid(config, prompts, run.path)


def read_sweep(folder: str | Path) -> SweepFolder:
    """What ``run_sweep`` wrote.

    Raises:
        DiffalignError: no sweep is there, its runs lie elsewhere, or one of them is missing or not finished.
    """
    folder = Path(folder)
    if not (folder / _TABLE).is_file():
        raise DiffalignError(
            f"{folder} holds no {_TABLE}, so it is no sweep: make one with diffalign sample and a range, such as "
            "--scale 0:10:2"
        )
    found = read_json(folder / _TABLE)
    try:
        names = found["folders"]
        if any(not isinstance(name, str) or safe_name(name) != name for name in names):
            raise DiffalignError(f"{folder / _TABLE}: expected plain names of folders beside it, got {names}")
        runs = tuple(folder / name for name in names)
        sweep = SweepFolder(found["axis"], tuple(found["strengths"]), runs, found["guide"], found["settings"])
    except (KeyError, TypeError) as error:
        raise DiffalignError(f"{folder / _TABLE} is not a sweep's: {error} is missing or wrong") from error
    left = [run.name for run in runs if not (run / "manifest.jsonl").is_file()]
    if left:
        raise DiffalignError(
            f"{folder}: {', '.join(left)} of {len(runs)} runs are not finished; the same diffalign sample command goes "
            f"on with them (diffalign sample {folder / 'config.yaml'} --out {folder})"
        )
    return sweep


def _described(config: SweepConfig) -> dict[str, Any]:
    weakest = at_strength(config, config.strengths[0])
    guide = guide_told(weakest.guide) if weakest.guide is not None else None
    settings = dump_config(config.sample)
    if config.axis == "guidance":
        del settings["guidance_scale"]
    else:
        settings["guide"]["settings"].pop(config.axis, None)
    return {
        "axis": config.axis,
        "strengths": list(config.strengths),
        "folders": [strength_name(config.axis, strength) for strength in config.strengths],
        "guide": {key: value for key, value in guide.items() if key != config.axis} if guide else None,
        "settings": settings,
    }


def _former(folder: Path, table: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The table of a sweep of the same settings in the folder; None where there is none."""
    if not (folder / _TABLE).is_file():
        return None
    found: dict[str, Any] = read_json(folder / _TABLE)
    return found if all(found.get(key) == table[key] for key in ("axis", "settings")) else None


def _check_former(folder: Path, table: Mapping[str, Any]) -> None:
    """Raise where a sweep of the same settings has other LoRAs or further strengths; other settings are told later."""
    found = _former(folder, table)
    if found is None:
        return
    guide, before = table["guide"] or {}, found.get("guide") or {}
    if before != guide:
        changed = [name for name in {**before, **guide} if before.get(name) != guide.get(name)]
        raise DiffalignError(
            f"{folder} was made with other files of guide {guide['name']!r} ({', '.join(changed)}). Restore them to go "
            "on, or give another folder to begin anew"
        )
    if not set(found["strengths"]) <= set(table["strengths"]):
        raise DiffalignError(
            f"{folder} has the strengths {_listed(found['strengths'])}: expected a range that holds all of them, to go "
            f"on with it, or another folder, got {_listed(table['strengths'])}"
        )


def _listed(strengths: Sequence[float]) -> str:
    return ", ".join(f"{strength:.10g}" for strength in strengths)


def _widen(folder: Path, config: SweepConfig, table: Mapping[str, Any]) -> None:
    """Take further strengths into a sweep of the same settings."""
    found = _former(folder, table)
    if found is not None and found["strengths"] != table["strengths"]:
        with folder_lock(folder):
            write_text(folder / "config.yaml", config_to_yaml(config))


def _write_grid(config: SweepConfig, prompts: Sequence[PromptRow], folder: Path) -> Path:
    first = prompts[:_GRID_PROMPTS]
    wanted = {row.id for row in first}
    runs = [dict(_first_seeds(folder / strength_name(config.axis, strength), wanted)) for strength in config.strengths]
    guide = f", {config.sample.guide.name}" if config.sample.guide else ""
    grid = draw_grid(
        f"{config.sample.model}{guide}: the same noise at every strength",
        [row.prompt for row in first],
        [run[row.id] for row in first for run in runs],
        columns=[f"{config.axis} {strength:.10g}" for strength in config.strengths],
        max_side=256 if len(config.strengths) <= _FEW else 128,
    )
    with atomic_path(folder / "grid.png") as temporary:
        temporary.write_bytes(encode_png(grid))
    return folder / "grid.png"


def _first_seeds(run: Path, prompt_ids: Container[str]) -> Iterator[tuple[str, Image.Image | None]]:
    """By prompt id the image of its first seed; None where it failed."""
    for row in read_jsonl(run / "manifest.jsonl"):
        if row["seed"] == 0 and row["prompt_id"] in prompt_ids:
            yield row["prompt_id"], decode_image(run / row["file"]) if row["status"] == OK else None
