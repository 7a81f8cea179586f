"""What Diffusion-DRO does beyond plain fitting: every form of Stage 1, each followed by Stage 2 or not.

All forms train on the demo's pairs of the same seed, with its steps and draws. tiny-clip on validation prompts and
crops chooses; tiny-judge on held-out ones reports. The unit of the intervals is the training
seed; of what was trained with one seed alone, the prompt.

    python scripts/demo/full.py                                # the pairs, and the forms that the demo trains itself
    python scripts/findings/dro.py --seeds 0 1 2               # every form; goes on where it stopped
    python scripts/findings/dro.py --seeds 3 4 --only sft gated
    python scripts/findings/dro.py --report                    # tables and figure of what has been measured
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from diffalign.core import numpy_generator, read_json, read_jsonl, write_json, write_text
from diffalign.data import captions, draw_crop
from diffalign.evaluate import measure_models
from diffalign.models import load_family
from diffalign.recipes.demo import EVALUATION, DemoConfig, curated_pairs, sample_model, trainings
from diffalign.rewards import clip_features, judge_features
from diffalign.sample import PromptRow, prompt_id
from diffalign.stats import mean_interval
from diffalign.train import SamplesConfig, TrainConfig, train

OWN = {"num_steps": 8, "guidance_scale": 1.0}
SAME_TIME = 6  # a step of Diffusion-DRO costs so many of plain fitting: 283 s against 48 s for 200 steps, two cores
REAL_CROPS = 400


def variants(fit: TrainConfig) -> dict[str, TrainConfig]:
    """The forms of Stage 1."""

    def gated(margin: float, objective: str = "gated_sft") -> TrainConfig:
        return fit.replace(objective=objective, settings={"margin": margin})

    def dro(**samples: Any) -> TrainConfig:
        return fit.replace(
            objective="diffusion_dro", settings={"margin": 0.001}, samples=SamplesConfig(**OWN | samples)
        )

    return {
        "sft": fit,
        "gated, margin 0.01": gated(0.01),
        "gated, margin 0.001": gated(0.001),
        "gated, proxy drift": gated(0.001, "gated_sft_proxy_drift"),
        "dro, M 1": dro(refresh_every=1),
        "dro, M 16": dro(refresh_every=16),
        "dro, M 64": dro(refresh_every=64),
        "dro, true noise": dro(refresh_every=1, state="renoised", target="noise"),
        "in the time of sft: dro, M 1": dro(refresh_every=1).replace(num_steps=fit.num_steps // SAME_TIME),
        "in the time of dro: sft": fit.replace(num_steps=fit.num_steps * SAME_TIME),
        "in the time of dro: gated, margin 0.01": gated(0.01).replace(num_steps=fit.num_steps * SAME_TIME),
    }


OF_THE_DEMO = {"sft": "sft", "gated, margin 0.01": "stage1"}
STAGE2 = {"settings": {"beta": 2000.0}, "num_steps": 120}  # stronger than the demo's, so that it shows
AGAINST_BASE = ("sft", "gated, margin 0.01", "dro, M 1")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/full"), help="where scripts/demo/full.py put its seeds")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2, 3, 4], help="training seeds")
    parser.add_argument("--only", nargs="*", default=[""], help="how the names of the wanted forms begin")
    parser.add_argument("--report", action="store_true", help="only pool what has been measured")
    arguments = parser.parse_args()
    for seed in [] if arguments.report else arguments.seeds:
        config, folder = DemoConfig(seed=seed), arguments.out / f"seed{seed}"
        for name, weights in trained(config, folder, tuple(arguments.only)):
            images(config, folder, name, weights)
        measure(config, folder)
    report(arguments.out)


def trained(config: DemoConfig, folder: Path, only: tuple[str, ...]) -> Iterator[tuple[str, Path | None]]:
    """The base, and each form with its name as soon as it is trained; long runs have no second stage."""
    plans = trainings(config, curated_pairs(config, folder), folder)
    yield "base", None
    for name, stage in variants(plans["sft"]).items():
        if not name.startswith(only):
            continue
        first = timed(stage, folder, name)
        yield name, first
        if "in the time of" in name:
            continue
        for reference, said in (("start", "stage 1"), ("base", "the base")):
            if reference == "start" or name in AGAINST_BASE:
                second = plans["stage2"].replace(start=str(first), reference=reference, **STAGE2)
                both = f"{name} + dpo against {said}"
                yield both, timed(second, folder, both)


def timed(stage: TrainConfig, folder: Path, name: str) -> Path:
    """Train, and keep how long it took."""
    demo = OF_THE_DEMO.get(name)
    out = folder / "train" / demo if demo else folder / "dro" / "train" / name
    began = time.monotonic()
    result = train(stage, out, cache=folder / "latents")
    if not demo and not (out / "seconds.json").exists():
        write_json(out / "seconds.json", time.monotonic() - began)
    return result


def prompts_of(split: str) -> list[PromptRow]:
    """The captions of a split; the demo is judged on the held-out ones."""
    held_out = split == "held_out"
    texts = [text for index, text in enumerate(captions()) if (index % 7 in EVALUATION) == held_out]
    return [PromptRow(id=prompt_id(text), prompt=text) for text in texts]


def images(config: DemoConfig, folder: Path, name: str, weights: Path | None) -> None:
    """Samples of both splits."""
    family = load_family(config.base)
    for split in ("validation", "held_out"):
        sample_model(config, family, prompts_of(split), folder / "dro" / split / name, weights)


def measure(config: DemoConfig, folder: Path) -> None:
    """Everything that has been sampled of a seed, into measured.json."""
    found = {}
    for split, features, metrics in (
        ("validation", partial(clip_features, reward="tiny-clip"), {"choice": "tiny-clip"}),
        ("held_out", judge_features, {"realism": "tiny-judge-realism", "subject_accuracy": "tiny-judge-subject"}),
    ):
        generator = numpy_generator("crops of the finding", split, config.seed)
        real = features([draw_crop(split, generator, size=config.size).image for _ in range(REAL_CROPS)])
        found[split] = measure_models(
            {one.name: one for one in sorted((folder / "dro" / split).iterdir()) if one.is_dir()},
            metrics=metrics,
            features=features,
            real=real,
            baselines=("base",),
            in_training=[reward for reward in metrics.values() if reward == "tiny-clip"],
        )
    write_json(folder / "dro" / "measured.json", found)


def report(out: Path) -> None:
    """Pool the seeds: dro.json, dro.md, dro.svg."""
    columns = {
        "choice": ("validation", "choice"),
        "validation KID": ("validation", "kid"),
        "realism": ("held_out", "realism"),
        "kid": ("held_out", "kid"),
        "subject": ("held_out", "subject_accuracy"),
        "diversity": ("held_out", "diversity"),
    }
    gains: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    extra: dict[str, list[dict[str, float]]] = defaultdict(list)
    over_prompts: dict[tuple[str, str], dict[str, float]] = {}
    for file in sorted(out.glob("seed*/dro/measured.json")):
        measured = read_json(file)
        for name in measured["held_out"]["models"]:
            for column, (split, metric) in columns.items():
                model, base = (measured[split]["models"][one][metric]["mean"] for one in (name, "base"))
                gains[name][column].append(model - base)
                for row in measured[split]["differences"]:
                    if (row["model"], row["metric"]) == (name, metric):
                        over_prompts[name, column] = {end: row[end] for end in ("mean", "low", "high")}
            extra[name].append(logged(file.parent, name))
    order = [name for stage in variants(trainings(DemoConfig(), Path(), Path())["sft"]) for name in gains
             if name == stage or name.startswith(f"{stage} + ")]  # fmt: skip
    pooled = {
        name: {
            column: interval(values) if len(values) > 1 else over_prompts[name, column]
            for column, values in gains[name].items()
        }
        | {"seeds": len(gains[name]["realism"])}
        | {key: sum(one[key] for one in extra[name]) / len(extra[name]) for key in extra[name][0]}
        for name in order
    }
    write_json(out / "dro.json", pooled)
    write_text(out / "dro.md", table(pooled))
    draw(pooled, out / "dro.svg")
    print(table(pooled))


def logged(folder: Path, name: str) -> dict[str, float]:
    """Of a training's log: the share of rows whose gate is open, drift, and seconds per step; over the second half."""
    demo = OF_THE_DEMO.get(name)
    place = folder.parent / "train" / demo if demo else folder / "train" / name
    rows = list(read_jsonl(place / "metrics.jsonl")) if (place / "metrics.jsonl").exists() else []
    late = rows[len(rows) // 2 :]
    return {
        key: sum(row.get(key, 0.0) for row in late) / max(len(late), 1) for key in ("gate", "drift", "grad_norm")
    } | {"rows_per_second": sum(row.get("rows_per_second", 0.0) for row in rows) / max(len(rows), 1)}


def interval(values: Sequence[float]) -> dict[str, float]:
    """Mean and 95 % interval over training seeds."""
    found = mean_interval([[value] for value in values])
    return {"mean": found.mean, "low": found.low, "high": found.high}


def table(pooled: dict[str, Any]) -> str:
    """Gains over the base in Markdown."""
    lines = [
        "| Form | seeds | tiny-clip (validation) | realism | KID | subject | diversity | gate open | rows/s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, one in pooled.items():
        cells = [f"{one[key]['mean']:+.3f} ({one[key]['low']:+.3f} to {one[key]['high']:+.3f})"
                 for key in ("choice", "realism", "kid")]  # fmt: skip
        cells += [f"{one[key]['mean']:+.3f}" for key in ("subject", "diversity")]
        lines.append(f"| {name} | {one['seeds']} | {' | '.join(cells)} | {one['gate']:.2f} | "
                     f"{one['rows_per_second']:.0f} |")  # fmt: skip
    return "\n".join(lines) + "\n"


def draw(pooled: dict[str, Any], path: Path) -> None:
    """Held-out gains over the base, a row per form."""
    figure = Figure(figsize=(9, 0.32 * len(pooled) + 1), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, metric, said in ((left, "realism", "realism (more is better)"), (right, "kid", "KID (less)")):
        for place, one in enumerate(pooled.values()):
            axes.plot([one[metric]["low"], one[metric]["high"]], [place, place], color="0.6")
            axes.plot(one[metric]["mean"], place, "o", color="tab:blue", markersize=4)
        axes.axvline(0, color="0.3", linewidth=0.8)
        axes.set_xlabel(f"{said}, minus the base")
    left.set_yticks(range(len(pooled)), list(pooled), fontsize=7)
    left.invert_yaxis()
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
