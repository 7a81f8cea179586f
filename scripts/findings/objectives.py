"""Every offline objective at one strength: real against degraded images, and own samples that tiny-clip has ranked.

All start at tiny-sd, take the same steps of 16 pairs or 4 sets of 8 over the same data, and those with a beta get the
one at which a trial's rows have changed the same part of their gradient (``beta: auto``, found once, with the first
seed). The learning rate is chosen for Diffusion-DPO by tiny-clip on validation prompts. tiny-judge on held-out prompts
and crops reports; the unit of the intervals is the training seed.

    python scripts/demo/full.py                                    # makes the pairs of real against degraded images
    python scripts/findings/objectives.py --rates 0.0005 0.002     # validation: what each learning rate gives
    python scripts/findings/objectives.py --seeds 0 1 2            # every objective; goes on where it stopped
    python scripts/findings/objectives.py --banks --seeds 0 1 2    # Diffusion-DPO with remembered reference errors
    python scripts/findings/objectives.py --report                 # tables and figure of what has been measured
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image

from diffalign.core import DiffalignError, numpy_generator, read_json, read_jsonl, write_json, write_text
from diffalign.data import LabelRule, Preferences, PreferenceWriter, captions, draw_crop, pairs_from_candidates, relabel
from diffalign.evaluate import measure_models
from diffalign.models import load_family
from diffalign.recipes.demo import EVALUATION, DemoConfig, curated_pairs, sample_model
from diffalign.rewards import clip_features, judge_features, load_reward
from diffalign.sample import PromptRow, family_sampler, prompt_id, sample_images
from diffalign.stats import mean_interval
from diffalign.train import LoraConfig, OptimizerConfig, TrainConfig, train
from diffalign.types import CandidateSet, Provenance

CHOOSER = "tiny-clip"
RULE = LabelRule(metrics=(CHOOSER,), temperatures=(2.0,), min_gaps=(0.5,))
IMAGES = 32  # of the rows of a step: 16 pairs, or 4 sets of 8
SET_SIZE = 8
STEPS, TRIAL, FACTOR = 60, 40, 0.6
RATE = 1e-3  # by --rates
REAL_CROPS = 400
AUTO = {"beta": "auto"}

# name -> objective and settings; those of pairs first
OBJECTIVES: dict[str, tuple[str, dict[str, Any]]] = {
    "SFT": ("sft", {}),
    "reward-weighted SFT": ("reward_weighted_sft", {}),
    "DPO": ("diffusion_dpo", AUTO),
    "IPO": ("ipo", AUTO),
    "hinge": ("hinge", AUTO),
    "conservative DPO": ("cdpo", AUTO | {"label_smoothing": 0.1}),
    "soft-label DPO": ("soft_dpo", AUTO),
    "SmPO": ("smpo", AUTO | {"gamma": 2.0}),
    "KTO": ("kto", AUTO),
    "DMPO": ("dmpo", AUTO),
    "Linear-DPO": ("linear_dpo", AUTO),
    "SDPO": ("sdpo", AUTO | {"mu": 0.9}),
    "CaPO": ("capo", AUTO | {"bias": 0.0}),
    "CW-DPO": ("cw_dpo", AUTO | {"threshold": 0.0, "temperature": 0.01}),
    "MaPO": ("mapo", {"beta": 0.1}),
    "DSPO": ("dspo", {"beta": 0.001}),
    "RankDPO": ("rank_dpo", AUTO),
    "lambda-listwise": ("lambda_listwise", AUTO | {"metric_weights": [1.0], "temperatures": [2.0]}),
    "DGPO": ("dgpo", AUTO | {"metric_weights": [1.0]}),
}
BANK_STEPS = 240  # every row is visited 15 times
BANKS = {0: "fresh draws"} | {size: f"{size} draws" for size in (1, 4, 16)}
SETS = ("RankDPO", "lambda-listwise", "DGPO")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/objectives"))
    parser.add_argument("--full", type=Path, default=Path("runs/full"), help="where scripts/demo/full.py put its seeds")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2], help="training seeds")
    parser.add_argument("--data", nargs="*", default=["real", "own"], choices=["real", "own"])
    parser.add_argument("--only", nargs="*", default=list(OBJECTIVES), help="names of objectives")
    parser.add_argument("--rates", type=float, nargs="*", default=[], help="of DPO, compared on validation")
    parser.add_argument(
        "--banks", action="store_true", help="DPO on fresh draws, and on 1, 4 and 16 remembered ones per row"
    )
    parser.add_argument("--report", action="store_true", help="only pool what has been measured")
    arguments = parser.parse_args()
    if arguments.rates:
        compare_rates(arguments)
    elif arguments.banks:
        for seed in arguments.seeds:
            folder = arguments.out / "banks" / f"seed{seed}"
            draw_images(folder, "held_out", "base", None)
            for size, name in BANKS.items():
                changes = {"remember": size, "num_steps": BANK_STEPS}
                draw_images(
                    folder, "held_out", name, fit(arguments, "real", seed, "DPO", folder / "train" / name, **changes)
                )
            measure(folder, "held_out", seed)
    elif not arguments.report:
        for seed in arguments.seeds:
            for kind in arguments.data:
                for name in arguments.only:
                    if kind == "own" or name not in SETS:
                        run_one(arguments, kind, seed, name)
                measure(arguments.out / kind / f"seed{seed}", "held_out", seed)
    if not arguments.rates:
        report(arguments.out)


def compare_rates(arguments: argparse.Namespace) -> None:
    """Diffusion-DPO with each learning rate, judged by tiny-clip on validation prompts."""
    for kind in arguments.data:
        folder = arguments.out / "rates" / kind
        for rate in arguments.rates:
            optimizer = OptimizerConfig(learning_rate=rate, warmup_steps=10)
            weights = fit(arguments, kind, 0, "DPO", folder / "train" / f"{rate:g}", optimizer=optimizer)
            draw_images(folder, "validation", f"{rate:g}", weights)
        draw_images(folder, "validation", "base", None)
        found = measure(folder, "validation", 0)
        for row in found["differences"]:
            if row["metric"] in ("choice", "kid"):
                print(
                    kind, row["model"], row["metric"], f"{row['mean']:+.3f} ({row['low']:+.3f} to {row['high']:+.3f})"
                )


def run_one(arguments: argparse.Namespace, kind: str, seed: int, name: str) -> None:
    """Train, unless it has been, and sample; an objective that cannot be brought to the strength is written down."""
    folder = arguments.out / kind / f"seed{seed}"
    draw_images(folder, "held_out", "base", None)
    failed = folder / "failed" / f"{name}.json"
    failed.unlink(missing_ok=True)
    try:
        weights = fit(arguments, kind, seed, name, folder / "train" / name)
    except (DiffalignError, FloatingPointError) as error:
        write_json(failed, str(error))
        return
    draw_images(folder, "held_out", name, weights)


def fit(arguments: argparse.Namespace, kind: str, seed: int, name: str, out: Path, **changes: Any) -> Path:
    """One training; its beta is the first seed's, by the first training of that objective."""
    objective, settings = OBJECTIVES[name]
    data = real_pairs(arguments, seed) if kind == "real" else own_samples(arguments, seed, pairs=name not in SETS)
    first = arguments.out / kind / "seed0" / "train" / name / "beta.json"
    if (seed or "remember" in changes) and settings.get("beta") == "auto":
        settings = settings | {"beta": read_json(first)["beta"]}
    rows = IMAGES // (SET_SIZE if name in SETS else 2)
    config = TrainConfig(
        model="tiny-sd",
        data=str(data),
        objective=objective,
        settings=settings,
        strength={"gradient_factor": FACTOR, "num_steps": TRIAL},
        weights={"metric": CHOOSER, "temperature": 2.0} if name == "reward-weighted SFT" else None,
        lora=LoraConfig(rank=8, alpha=8.0),
        optimizer=OptimizerConfig(learning_rate=RATE, warmup_steps=10),
        reference="ema" if name == "Linear-DPO" else "start",
        ema={"decay": 0.98, "warmup": False} if name == "Linear-DPO" else None,
        resolution=32,
        num_steps=STEPS,
        batch_size=rows,
        micro_batch_size=rows,
        checkpoint_every=STEPS,
        seed=seed,
    )
    return train(config.replace(**changes), out, cache=arguments.out / "latents")


def real_pairs(arguments: argparse.Namespace, seed: int) -> Path:
    """The demo's pairs, photographs against damaged copies, with soft labels from tiny-clip's gaps."""
    folder = arguments.out / "data" / f"real{seed}"
    if not folder.exists():
        source = Preferences(curated_pairs(DemoConfig(seed=seed), arguments.full / f"seed{seed}"))
        with PreferenceWriter(folder, form="pair") as writer:
            for pair in source:
                labelled = relabel(pair, RULE)
                if labelled is not None:
                    writer.write(labelled)
    return folder


def own_samples(arguments: argparse.Namespace, seed: int, *, pairs: bool) -> Path:
    """Eight samples of the base for every prompt that is not evaluated, scored; all their pairs with a clear gap."""
    folder, kind = arguments.out / "data", "pairs" if pairs else "sets"
    if not (folder / f"{kind}{seed}").exists():
        images, config = folder / f"samples{seed}", DemoConfig()
        prompts = [PromptRow(id=f"{seed}-{row.id}", prompt=row.prompt) for row in prompts_of("validation")]
        family = load_family("tiny-sd")
        sampler = family_sampler(
            family, num_steps=config.num_steps, guidance_scale=config.guidance_scale, height=32, width=32
        )
        sample_images(sampler, prompts, images, num_seeds=SET_SIZE, batch_size=32)
        rows: dict[str, list[Image.Image]] = defaultdict(list)
        for row in read_jsonl(images / "manifest.jsonl"):
            rows[row["prompt"]].append(Image.open(images / row["file"]).convert("RGB"))
        reward = load_reward(CHOOSER)
        with (
            PreferenceWriter(folder / f"sets{seed}", form="candidates") as sets,
            PreferenceWriter(folder / f"pairs{seed}", form="pair") as writer,
        ):
            for number, (prompt, images_of) in enumerate(rows.items()):
                scores = tuple(float(score) for score in reward(images_of, [prompt] * len(images_of)))
                row = candidate_set(f"{seed}-{number}", prompt, images_of, scores)
                sets.write(row)
                for pair in pairs_from_candidates(row, RULE, pairs="all"):
                    writer.write(pair)
    return folder / f"{kind}{seed}"


def candidate_set(name: str, prompt: str, images: Sequence[Image.Image], scores: tuple[float, ...]) -> CandidateSet:
    """A row."""
    origin = Provenance(source="tiny-sd", method="sample")
    return CandidateSet(id=name, prompt=prompt, images=tuple(images), scores={CHOOSER: scores}, provenance=origin)


def prompts_of(split: str) -> list[PromptRow]:
    """The captions of a split; own samples are of the validation prompts."""
    held_out = split == "held_out"
    texts = [text for index, text in enumerate(captions()) if (index % 7 in EVALUATION) == held_out]
    return [PromptRow(id=prompt_id(text), prompt=text) for text in texts]


def draw_images(folder: Path, split: str, name: str, weights: Path | None) -> None:
    """Samples of a split under some weights."""
    sample_model(DemoConfig(), load_family("tiny-sd"), prompts_of(split), folder / split / name, weights)


def measure(folder: Path, split: str, seed: int) -> dict[str, Any]:
    """Everything that has been sampled, into measured.json."""
    generator = numpy_generator("crops of the finding", split, seed)
    crops = [draw_crop(split, generator, size=32).image for _ in range(REAL_CROPS)]
    features: Any = judge_features if split == "held_out" else partial(clip_features, reward=CHOOSER)
    metrics = {"choice": CHOOSER}
    if split == "held_out":
        metrics |= {"realism": "tiny-judge-realism", "subject_accuracy": "tiny-judge-subject"}
    found: dict[str, Any] = measure_models(
        {one.name: one for one in sorted((folder / split).iterdir()) if one.is_dir()},
        metrics=metrics,
        features=features,
        real=features(crops),
        baselines=("base",),
        in_training=[CHOOSER],
    )
    write_json(folder / "measured.json", found)
    return found


METRICS = ("choice", "realism", "kid", "subject_accuracy", "diversity")


def report(out: Path) -> None:
    """Pool the seeds: objectives.json, objectives.md, objectives.svg."""
    pooled = {kind: pool(out / kind) for kind in ("real", "own", "banks") if (out / kind).is_dir()}
    write_json(out / "objectives.json", pooled)
    write_text(out / "objectives.md", "\n".join(f"{kind}\n\n{table(found)}" for kind, found in pooled.items()))
    draw(pooled, out / "objectives.svg")
    print((out / "objectives.md").read_text())


def pool(folder: Path) -> dict[str, Any]:
    """Gains over the base, by objective."""
    gains: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for file in sorted(folder.glob("seed*/measured.json")):
        models = read_json(file)["models"]
        for name in models:
            for metric in METRICS:
                gains[name][metric].append(models[name][metric]["mean"] - models["base"][metric]["mean"])
                if "DPO" in models:
                    lead = models[name][metric]["mean"] - models["DPO"][metric]["mean"]
                    gains[name][f"{metric} minus DPO"].append(lead)
    return {
        name: {metric: interval(values) for metric, values in gains[name].items()}
        | logged(folder, name)
        | {"seeds": len(gains[name]["realism"])}
        for name in (*OBJECTIVES, *BANKS.values())
        if name in gains
    }


def logged(folder: Path, name: str) -> dict[str, Any]:
    """Of the logs: seconds per step, beta, accuracy and errors over the last quarter, alarms."""
    runs = [list(read_jsonl(file)) for file in sorted(folder.glob(f"seed*/train/{name}/metrics.jsonl"))]
    late = [row for rows in runs for row in rows[-len(rows) // 4 :]]
    beta = folder / "seed0" / "train" / name / "beta.json"
    found: dict[str, Any] = {
        key: sum(row[key] for row in late) / len(late)
        for key in ("accuracy", "chosen_excess", "rejected_excess")
        if key in late[0]
    }
    rows_per_step = IMAGES // (SET_SIZE if name in SETS else 2)
    seconds = sorted(rows_per_step / row["rows_per_second"] for rows in runs for row in rows)
    return found | {
        "seconds_per_step": seconds[len(seconds) // 2],
        "beta": read_json(beta)["beta"] if beta.exists() else None,
        "alarms": sorted({alarm for rows in runs for row in rows for alarm in row.get("alarms", [])}),
    }


def interval(values: Sequence[float]) -> dict[str, float]:
    """Mean and 95 % interval over training seeds."""
    if len(values) < 2:
        return {"mean": values[0], "low": values[0], "high": values[0]}
    found = mean_interval([[value] for value in values])
    return {"mean": found.mean, "low": found.low, "high": found.high}


def table(found: Mapping[str, Any]) -> str:
    """Gains over the base in Markdown, those in realism and KID also less those of Diffusion-DPO of the same seed."""
    lines = [
        "| Objective | beta | realism | less DPO's | KID | less DPO's | diversity | in order | s/step | alarm |",
        "|---" * 10 + "|",
    ]
    for name, one in found.items():
        keys = ("realism", "realism minus DPO", "kid", "kid minus DPO", "diversity")
        cells = [cell(one[key]) if key in one else "-" for key in keys]
        beta = "-" if one["beta"] is None else f"{one['beta']:.3g}"
        accuracy = f"{one['accuracy']:.2f}" if "accuracy" in one else "-"
        lines.append(
            f"| {name} | {beta} | {' | '.join(cells)} | {accuracy} | {one['seconds_per_step']:.2f} | "
            f"{', '.join(one['alarms']) or '-'} |"
        )
    seeds = sorted({one["seeds"] for one in found.values()})
    return "\n".join(lines) + f"\n\nTraining seeds: {', '.join(map(str, seeds))}\n"


def cell(one: Mapping[str, float]) -> str:
    """A mean with its interval."""
    return f"{one['mean']:+.2f} ({one['low']:+.2f} to {one['high']:+.2f})"


def draw(pooled: Mapping[str, Any], path: Path) -> None:
    """Held-out realism against diversity, both minus the base; crosses are 95 % intervals over seeds."""
    figure = Figure(figsize=(11, 5), layout="constrained")
    panels = figure.subplots(1, 2, squeeze=False)[0]
    for axes, kind in zip(panels, ("real", "own"), strict=True):
        for number, (name, one) in enumerate(pooled.get(kind, {}).items()):
            x, y, colour = one["diversity"], one["realism"], f"C{number % 10}"
            axes.plot([x["low"], x["high"]], [y["mean"]] * 2, color=colour, linewidth=0.6, alpha=0.6)
            axes.plot([x["mean"]] * 2, [y["low"], y["high"]], color=colour, linewidth=0.6, alpha=0.6)
            axes.plot(x["mean"], y["mean"], "os"[number // 10], color=colour, markersize=5)
            axes.annotate(name, (x["mean"], y["mean"]), xytext=(4, 3), textcoords="offset points", fontsize=7)
        axes.axhline(0, color="0.3", linewidth=0.8)
        axes.axvline(0, color="0.3", linewidth=0.8)
        axes.set_title({"real": "real against degraded", "own": "own samples ranked by tiny-clip"}[kind], fontsize=9)
        axes.set_xlabel("diversity minus base (more is better)")
        axes.set_ylabel("held-out realism minus base (more is better)")
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
