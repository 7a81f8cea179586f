"""The demo once per training seed: each draws its own crops, pairs, adapters and noise of training.

    make demo-full                                       # five seeds: hours on two cores
    python scripts/demo/full.py --seeds 2 --set num_seeds=2

A seed's run is an ordinary demo in ``seed0``, ``seed1``, ...; what is finished is not done again. ``results.json`` and
``tables.md`` pool them: the unit of every interval is the training seed, on the same prompts and sampling noise.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image

from diffalign.core import numpy_generator, override, read_jsonl, write_json, write_text
from diffalign.data import draw_crop, subject_index
from diffalign.recipes.demo import MODELS, DemoConfig, run_demo
from diffalign.stats import Estimate, mean_interval

METRICS = ("realism", "kid", "subject_accuracy", "detail", "diversity", "choice")
DIFFERENCES = (("stage2", "base"), ("stage2", "sft"), ("stage2", "stage1"), ("sft", "base"), ("stage1", "base"),
               ("dpo", "base"), ("cpgd", "base"), ("cpgd", "sft"), ("sharpened", "base"))  # fmt: skip
SHOWN = {"base": "base", "stage2": "Stage 1 + 2", "cpgd": "guidance"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/full"))
    parser.add_argument("--seeds", type=int, default=5, help="training seeds, at least 2")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the demo")
    arguments = parser.parse_args()
    runs = []
    for seed in range(arguments.seeds):
        config = override(DemoConfig(seed=seed, num_seeds=4), arguments.set)
        runs.append(run_demo(config, arguments.out / f"seed{seed}"))
    pooled = pool(runs)
    write_json(arguments.out / "results.json", pooled)
    write_text(arguments.out / "tables.md", tables(pooled))
    samples(arguments.out / "seed0", arguments.out / "demo.png")
    draw(pooled, arguments.out / "results.svg")
    print(tables(pooled))


def pool(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over training seeds, and differences seed by seed."""
    models = {
        model: {metric: _numbers([run["models"][model][metric]["mean"] for run in runs]) for metric in METRICS}
        for model in MODELS
    }
    differences = [
        {"model": model, "baseline": baseline, "metric": metric}
        | _numbers([_mean(run, model, metric) - _mean(run, baseline, metric) for run in runs])
        for model, baseline in DIFFERENCES
        for metric in METRICS
    ]
    seconds = [run["seconds"] for run in runs]
    return {"models": models, "differences": differences, "seconds": seconds, "versions": runs[0]["versions"]}


def tables(pooled: dict[str, Any]) -> str:
    """The pooled results in Markdown."""
    lines = ["| Model | " + " | ".join(METRICS) + " |", "|---" * (len(METRICS) + 1) + "|"]
    for model, measured in pooled["models"].items():
        cells = [f"{measured[metric]['mean']:.2f}" for metric in METRICS]
        lines.append(f"| {model} | " + " | ".join(cells) + " |")
    lines += ["", "| Difference | realism | KID | subject accuracy | diversity |", "|---|---|---|---|---|"]
    for model, baseline in DIFFERENCES:
        cells = [
            _cell(row)
            for metric in ("realism", "kid", "subject_accuracy", "diversity")
            for row in pooled["differences"]
            if (row["model"], row["baseline"], row["metric"]) == (model, baseline, metric)
        ]
        lines.append(f"| {model} - {baseline} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def samples(run: Path, path: Path, *, columns: int = 12, zoom: int = 2) -> None:
    """The first prompts under three models, and held-out crops of the same subjects."""
    rows: dict[str, list[Image.Image]] = {}
    for model, said in SHOWN.items():
        listed = [row for row in read_jsonl(run / "samples" / model / "manifest.jsonl") if row["seed"] == 0][:columns]
        rows[said] = [Image.open(run / "samples" / model / row["file"]) for row in listed]
    generator = numpy_generator("crops of the picture")
    subjects = [subject_index(row["prompt"]) for row in listed]
    rows["real, held out"] = [draw_crop("held_out", generator, size=32, subject=one).image for one in subjects]
    figure = Figure(figsize=(columns * 0.75, len(rows) * 0.78), dpi=64 * zoom, layout="constrained")
    axes = figure.subplots(len(rows), columns)
    for row, (said, images) in zip(axes, rows.items(), strict=True):
        for place, (one, image) in enumerate(zip(row, images, strict=True)):
            one.imshow(image, interpolation="nearest")
            one.set_xticks([])
            one.set_yticks([])
            if not place:
                one.set_ylabel(said, fontsize=7)
    figure.savefig(path, metadata={"Software": None})


def draw(pooled: dict[str, Any], path: Path) -> None:
    """Differences from the base with their intervals over training seeds."""
    models = ["sft", "dpo", "stage1", "stage2", "cpgd"]
    figure = Figure(figsize=(8, 2.4), layout="constrained")
    for axes, metric, said in zip(
        figure.subplots(1, 3), ("realism", "kid", "diversity"), ("more", "less", "more"), strict=True
    ):
        found = {
            row["model"]: row for row in pooled["differences"] if (row["baseline"], row["metric"]) == ("base", metric)
        }
        for place, model in enumerate(models):
            axes.plot([found[model]["low"], found[model]["high"]], [place, place], color="0.6")
            axes.plot(found[model]["mean"], place, "o", color="tab:blue", markersize=5)
        axes.axvline(0, color="0.3", linewidth=0.8)
        axes.set_yticks(range(len(models)), models if metric == "realism" else [])
        axes.invert_yaxis()
        axes.set_xlabel(f"{metric} minus base ({said} is better)", fontsize=8)
    figure.savefig(path, metadata={"Date": None})


def _mean(run: dict[str, Any], model: str, metric: str) -> float:
    return float(run["models"][model][metric]["mean"])


def _numbers(values: Sequence[float]) -> dict[str, Any]:
    found: Estimate = mean_interval([[value] for value in values])
    return {"mean": found.mean, "low": found.low, "high": found.high, "num_training_seeds": len(values)}


def _cell(row: dict[str, Any]) -> str:
    return f"{row['mean']:+.3f} ({row['low']:+.3f} to {row['high']:+.3f})"


if __name__ == "__main__":
    main()
