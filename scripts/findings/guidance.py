"""Preference as guidance on tiny-sd: every form over its strengths, against what as many evaluations buy otherwise.

Per training seed: modules on the demo's pairs of photographs against damaged copies and on ranked own samples; images
of every form and strength for validation prompts (one image each) and held-out prompts (two). Each method's strength,
and text guidance's for the base, is chosen by tiny-clip on the validation prompts, pooled over training seeds;
tiny-judge on held-out prompts and crops reports; the unit of the intervals is the training seed.

Stated beforehand: the cheap form (packed, the difference held over two evaluations, the last 0.4 of the way without it)
counts as no worse than exact cPGD where the lower end of the interval of its realism minus that of the exact form, of
the same modules at the same strength, lies above -0.1. Plain fitting gains 0.6 here.

    python scripts/findings/guidance.py --seeds 0 1 2     # everything; goes on where it stopped
    python scripts/findings/guidance.py --report          # tables and figure of what has been measured
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from guidance_forms import FORMS, GRID, SPLITS, TRANSFER, best_of, draw_forms
from guidance_modules import TAGS, calibrate, train_modules
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from diffalign.core import atomic_path, numpy_generator, read_json, read_jsonl, write_json, write_jsonl, write_text
from diffalign.data import draw_crop, to_tensor
from diffalign.evaluate import measure_models, score_folder
from diffalign.rewards import judge_features
from objectives import CHOOSER, cell, interval

MARGIN = -0.1
PAIRED = (  # differences by training seed
    ("PGD (Stage 1 + 2) @ 3", "Stage 1 + 2 @ 1"),
    ("PGD (Stage 1 + 2) @ 3", "Stage 1 + 2, more steps @ 2"),
    ("PGD (Stage 1 + 2) @ 3", "Stage 1 + 2, text guidance @ 3"),
    ("cPGD (SFT) @ 2", "base, more steps @ 3"),
    ("cPGD (SFT) @ 2", "base, best of @ 3"),
    ("cPGD (tagged SFT) @ 1", "base, more steps @ 3"),
    ("CHATS (SFT) @ 4", "base, text guidance @ 4"),
    ("Self-NPO @ 4", "base, text guidance @ 4"),
    ("NPO (DPO, reversed DPO) @ 4", "base, text guidance @ 4"),
    ("NPO (SFT on degraded) @ 4", "base, text guidance @ 4"),
)
LIMITS = {"realism": (-1.4, 2.8), "kid": (-8.0, 5.0)}  # of the figure; what breaks the images lies below
COLOURS = {  # of the forms by how they start
    "base": "black",
    "NAG, prompt": "black",
    "PGD": "C2",
    "cPGD (SFT), merged": "C9",
    "cPGD (DPO, reversed), merged": "C9",
    "cPGD": "C0",
    "NPO": "C3",
    "Self-NPO": "C3",
    "CHATS": "C4",
    "NAG, adapter": "C4",
    "": "C5",  # tuned models
}
BASES = (*(name for name, form in FORMS.items() if form.shared), "base, best of")  # without a training seed
METRICS = ("choice", "realism", "kid", "diversity", "warmth")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/guidance"))
    parser.add_argument("--full", type=Path, default=Path("runs/full"), help="where scripts/demo/full.py put its seeds")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2], help="training seeds")
    parser.add_argument("--report", action="store_true", help="only pool what has been measured")
    arguments = parser.parse_args()
    if not arguments.report:
        draw_forms(arguments.out / "shared", {}, {name: form for name, form in FORMS.items() if form.shared})
        for split in SPLITS:
            best_of(arguments.out / "shared" / split, split)
        for seed in arguments.seeds:
            folder = arguments.out / f"seed{seed}"
            modules = train_modules(arguments, seed, folder)
            calibrate(modules, arguments, seed, folder)
            draw_forms(folder, modules, {name: form for name, form in FORMS.items() if not form.shared})
            if seed == 0:
                draw_forms(folder / "grid", modules, GRID, splits=("held_out",))
                measure(folder / "grid", "held_out", seed, arguments.out / "shared")
            for split in SPLITS:
                measure(folder, split, seed, arguments.out / "shared")
    report(arguments.out)


def measure(folder: Path, split: str, seed: int, shared: Path) -> None:
    """Everything of a split, into measured-<split>.json."""
    first_seeds(shared / split / "base @ 1", shared / split / "base", SPLITS[split][1])
    folders = {one.name: one for part in (shared, folder) for one in sorted((part / split).iterdir()) if one.is_dir()}
    folders = {name: one for name, one in folders.items() if name != "base @ 1"}
    for one in folders.values():
        as_asked(one)
    if split == "validation":
        write_json(folder / "measured-validation.json", {name: chooser_mean(one) for name, one in folders.items()})
        return
    generator = numpy_generator("crops of the finding", "held_out", seed)
    crops = [draw_crop("held_out", generator, size=32).image for _ in range(400)]
    found = measure_models(
        folders,
        metrics={"choice": CHOOSER, "realism": "tiny-judge-realism"},
        features=judge_features,
        real=judge_features(crops),
        baselines=(),
        in_training=[CHOOSER],
    )["models"]
    for name, one in folders.items():
        found[name]["warmth"] = {"mean": warmth(one)}
    write_json(folder / f"measured-{split}.json", found)


def chooser_mean(folder: Path) -> dict[str, dict[str, float]]:
    """Mean of what chooses; one image per prompt has no diversity, and validation needs nothing else."""
    values = [row.value for row in score_folder(folder, [CHOOSER], in_training=[CHOOSER]) if row.value is not None]
    return {"choice": {"mean": sum(values) / len(values)}}


def first_seeds(source: Path, target: Path, seeds: int) -> None:
    """The base without the images that only the best of several needs."""
    if not (target / "manifest.jsonl").exists():
        rows = [row for row in read_jsonl(source / "manifest.jsonl") if row["seed"] < seeds]
        for row in rows:
            with atomic_path(target / row["file"]) as temporary:
                temporary.write_bytes((source / row["file"]).read_bytes())
        write_jsonl(target / "manifest.jsonl", rows)


def as_asked(folder: Path) -> None:
    """Judge what was made with a tagged prompt under the prompt itself."""
    rows = list(read_jsonl(folder / "manifest.jsonl"))
    if any(row["prompt"].startswith(TAGS[0]) for row in rows):
        write_jsonl(folder / "manifest.jsonl", [row | {"prompt": row["prompt"].removeprefix(TAGS[0])} for row in rows])


def warmth(folder: Path) -> float:
    """Mean of red minus blue, in [-1, 1]: what the other fine-tune was made to have."""
    pixels = torch.stack(
        [to_tensor(Image.open(folder / row["file"]).convert("RGB")) for row in read_jsonl(folder / "manifest.jsonl")]
    )
    return float((pixels[:, 0] - pixels[:, 2]).mean() / 2)


def report(out: Path) -> None:
    """Pool the seeds: guidance.json, guidance.md, guidance.svg."""
    pooled = {split: pool(out, split) for split in SPLITS}
    chosen = choose(pooled["held_out"], pooled["validation"])
    errors = merge_errors(out)
    calibration = [read_json(file) for file in sorted(out.glob("seed*/calibration.json"))]
    text = "\n".join(
        (
            "chosen on validation\n",
            table(pooled["held_out"], chosen),
            "\nall strengths\n",
            table(pooled["held_out"], {key: pooled["validation"].get(key) for key in pooled["held_out"]}),
            "\ncheap minus exact, realism\n",
            *(
                f"w {w:g}: {cell(found)}, no worse by the margin: {found['low'] > MARGIN}"
                for w, found in cheap_minus_exact(out).items()
            ),
            "\npaired differences, realism and KID and diversity\n",
            *paired_differences(out),
            "\nerror of merging, share of the guidance\n",
            *(f"{name}: {cell(found)}" for name, found in errors.items()),
            "\ncalibration\n",
            *(
                f"{kind}: {cell(interval([one[kind] for one in calibration]))}"
                for kind in (calibration[0] if calibration else {})
                if kind != "rows"
            ),
            "\ntext guidance x preference scale, training seed 0\n",
            grid_table(out),
        )
    )
    write_json(out / "guidance.json", {"held_out": pooled["held_out"], "chosen": sorted(chosen)})
    write_text(out / "guidance.md", text)
    draw(pooled["held_out"], chosen, out / "guidance.svg")
    print(text)


def pool(out: Path, split: str) -> dict[str, dict[str, Any]]:
    """Gains over the base by form and strength, with intervals over training seeds."""
    gains: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for file in sorted(out.glob(f"seed*/measured-{split}.json")):
        models = read_json(file)
        for name, metrics in models.items():
            for metric in METRICS:
                if metric in metrics:
                    gains[name][metric].append(metrics[metric]["mean"] - models["base"][metric]["mean"])
            if split == "held_out" and "DPO @ 1" in models:
                lead = metrics["realism"]["mean"] - models["DPO @ 1"]["realism"]["mean"]
                gains[name]["realism minus DPO"].append(lead)
    return {
        name: {metric: interval(values) for metric, values in metrics.items()} | {"seeds": len(metrics["choice"])}
        for name, metrics in gains.items()
    }


def form_of(key: str) -> str:
    return key.partition(" @ ")[0]


def choose(held_out: Mapping[str, Any], validation: Mapping[str, Any]) -> dict[str, Any]:
    """Of each form the strength with the highest mean of the chooser on validation prompts; of equal ones the first."""
    chosen: dict[str, str] = {}
    for key in held_out:
        best = chosen.setdefault(form_of(key), key)
        if key != best and validation[key]["choice"]["mean"] > validation[best]["choice"]["mean"]:
            chosen[form_of(key)] = key
    return {key: validation.get(key) for key in chosen.values()}


def evaluations(key: str) -> float:
    name, _, strength = key.partition(" @ ")
    if name == "base, best of" or name.endswith("more steps"):
        return float(strength)
    return FORMS[name].evaluations if name in FORMS else 1.0


def table(held_out: Mapping[str, Any], keys: Mapping[str, Any]) -> str:
    """Gains over the base in Markdown."""
    lines = [
        "| Form @ strength | tried | evaluations | tiny-clip, validation | realism | less DPO's | KID | diversity |"
    ]
    lines.append("|---" * 8 + "|")
    for key in sorted(keys, key=lambda key: [*FORMS, "base, best of"].index(form_of(key))):
        one, before = held_out[key], keys[key]
        validation = "" if before is None else f"{before['choice']['mean']:+.2f}"
        metrics = ("realism", "realism minus DPO", "kid", "diversity")
        cells = [f"{one[metric]['mean']:+.2f}" if form_of(key) in BASES else cell(one[metric]) for metric in metrics]
        tried = ", ".join(other.partition(" @ ")[2] for other in held_out if form_of(other) == form_of(key))
        lines.append(f"| {key} | {tried} | {evaluations(key):g} | {validation} | {' | '.join(cells)} |")
    lines.append("\nWarmth of the other fine-tune: ")
    lines += [f"{key}: {cell(held_out[key]['warmth'])}" for key in keys if form_of(key) in TRANSFER]
    return "\n".join(lines) + "\n"


def cheap_minus_exact(out: Path) -> dict[float, dict[str, float]]:
    """Realism of the cheap form minus that of the exact one, of the same modules and strength."""
    found: dict[float, list[float]] = defaultdict(list)
    for file in sorted(out.glob("seed*/measured-held_out.json")):
        models = read_json(file)
        for strength in FORMS["cPGD (SFT), cheap"].strengths:
            cheap, exact = (models[f"{name} @ {strength:g}"] for name in ("cPGD (SFT), cheap", "cPGD (SFT)"))
            found[strength].append(cheap["realism"]["mean"] - exact["realism"]["mean"])
    return {strength: interval(values) for strength, values in found.items()}


def paired_differences(out: Path) -> list[str]:
    """Of the forms of PAIRED, by training seed."""
    seeds = [read_json(file) for file in sorted(out.glob("seed*/measured-held_out.json"))]
    lines = []
    for one, other in PAIRED:
        cells = [
            cell(interval([models[one][metric]["mean"] - models[other][metric]["mean"] for models in seeds]))
            for metric in ("realism", "kid", "diversity")
        ]
        lines.append(f"{one} minus {other}: {' | '.join(cells)}")
    return lines


def merge_errors(out: Path) -> dict[str, dict[str, float]]:
    """Pooled and at the worst timestep."""
    found: dict[str, list[float]] = defaultdict(list)
    for file in sorted(out.glob("seed*/train/merged */merge.json")):
        for which in ("error", "worst_error"):
            found[f"{file.parent.name}, {which}"].append(read_json(file)["measured"][which])
    return {name: interval(values) for name, values in found.items()}


def grid_table(out: Path) -> str:
    file = out / "seed0" / "grid" / "measured-held_out.json"
    if not file.exists():
        return ""
    models = read_json(file)
    lines = ["| Scale of text @ of preference | tiny-clip | realism | KID | diversity |", "|---|---|---|---|---|"]
    for name, one in models.items():
        if form_of(name) in GRID:
            values = (f"{one[metric]['mean']:.2f}" for metric in ("choice", "realism", "kid", "diversity"))
            lines.append(f"| {name} | {' | '.join(values)} |")
    return "\n".join(lines)


def pareto(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Keys of the points that none other beats in both."""
    return [
        key
        for key, (x, y) in points.items()
        if not any(a >= x and b >= y and (a, b) != (x, y) for a, b in points.values())
    ]


def draw(held_out: Mapping[str, Any], chosen: Mapping[str, Any], path: Path) -> None:
    """Realism, and KID, against diversity: a line per form over its strengths, its number at the chosen one."""
    figure = Figure(figsize=(13, 8), layout="constrained")
    forms = [name for name in (*FORMS, "base, best of") if name not in (*TRANSFER, "base")]
    for axes, (metric, sign) in zip(figure.subplots(1, 2), (("realism", 1), ("kid", -1)), strict=True):
        points = {}
        for number, name in enumerate(forms, start=1):
            keys = [key for key in held_out if form_of(key) == name]
            across = [held_out[key]["diversity"]["mean"] for key in keys]
            up = [sign * held_out[key][metric]["mean"] for key in keys]
            points |= dict(zip(keys, zip(across, up, strict=True), strict=True))
            colour = next(colour for start, colour in COLOURS.items() if name.startswith(start))
            axes.plot(across, up, "-o", color=colour, markersize=3, linewidth=0.8, label=f"{number}  {name}")
            for key in keys:
                if key in chosen:
                    mark(axes, held_out[key], metric, sign, number, colour, spread=name not in BASES)
        front = sorted(points[key] for key in pareto(points))
        axes.plot(*zip(*front, strict=True), "--", color="0.5", linewidth=1.2, zorder=0)
        axes.axhline(0, color="0.3", linewidth=0.8)
        axes.axvline(0, color="0.3", linewidth=0.8)
        axes.set(xlim=(-0.17, 0.095), ylim=LIMITS[metric], xlabel="diversity minus base (more is better)")
        axes.set_ylabel(f"{'minus KID' if sign < 0 else metric} over the base (more is better)")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8)
    figure.savefig(path, metadata={"Date": None})


def mark(
    axes: Axes, found: Mapping[str, Any], metric: str, sign: int, number: int, colour: str, *, spread: bool
) -> None:
    """The number of a form where its chosen strength lies, with intervals over training seeds where it has those."""
    x, y = found["diversity"]["mean"], sign * found[metric]["mean"]
    if LIMITS[metric][0] < y < LIMITS[metric][1]:
        box = {"boxstyle": "circle,pad=0.15", "facecolor": "white", "edgecolor": colour, "linewidth": 1}
        axes.text(x, y, str(number), fontsize=7, color=colour, ha="center", va="center", bbox=box, zorder=5)
    if not spread:
        return
    ends = [sign * found[metric]["low"], sign * found[metric]["high"]]
    axes.plot([x, x], ends, color=colour, linewidth=0.5, alpha=0.5)
    axes.plot([found["diversity"]["low"], found["diversity"]["high"]], [y, y], color=colour, linewidth=0.5, alpha=0.5)


if __name__ == "__main__":
    main()
