"""How cheap may preference guidance be and still be as good? Settings chosen by three training seeds, tested on others.

The settings hold the difference over evaluations and leave it out of part of the way, so that at most half of the steps
evaluate the modules. Of those that do both, the one whose images are closest to exact cPGD's is taken (validation
prompts, modules of the first seeds, mean square of pixels). It is then tested with modules of new training seeds on
held-out prompts.

Stated beforehand: it counts as no worse where the lower end of the 95 % interval over the new training seeds of its
realism minus that of the exact form, of the same modules at the same strength, lies above -0.1.

    python scripts/findings/guidance.py                 # makes the modules of seeds 0, 1, 2
    python scripts/findings/guidance_cheap.py --choose  # prints the distances
    python scripts/findings/guidance_cheap.py --test 3 4 5 6 7 8
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from guidance_forms import FORMS, Form, contrast, draw_form
from PIL import Image

from diffalign.core import read_jsonl
from diffalign.data import to_tensor
from diffalign.evaluate import score_folder
from diffalign.recipes.demo import DemoConfig, curated_pairs, trainings
from diffalign.stats import mean_interval
from diffalign.train import train
from objectives import cell, interval

MARGIN = -0.1
JUDGE = "tiny-judge-realism"
EXACT = FORMS["cPGD (SFT)"]
STRENGTHS = (1, 2)
CHOSEN = "every 2, to 0.8"
SIZES = {"validation": (48, 2), "held_out": (64, 4)}  # prompts, images of each
WINDOWS = {"": {}, ", to 0.8": {"stop": 0.8}, ", to 0.6": {"stop": 0.6}, ", from 0.2": {"start": 0.2}}
CHEAP = {
    f"every {every}{name}": Form(
        strengths=STRENGTHS, guide=contrast("sft", "negative", **window), attach={"refresh_every": every}
    )
    for every in (2, 3)
    for name, window in WINDOWS.items()
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/guidance"), help="of scripts/findings/guidance.py")
    parser.add_argument("--full", type=Path, default=Path("runs/full"), help="where scripts/demo/full.py put its seeds")
    parser.add_argument("--choose", action="store_true", help="compare the settings on validation prompts")
    parser.add_argument("--test", type=int, nargs="*", default=[], metavar="SEED", help="new training seeds")
    arguments = parser.parse_args()
    if arguments.choose:
        choose(arguments)
    if arguments.test:
        test(arguments)


def choose(arguments: argparse.Namespace) -> None:
    """Print how far the images of each setting are from the exact form's."""
    for strength in STRENGTHS:
        for name in CHEAP:
            found = []
            for seed in (0, 1, 2):
                folder = arguments.out / f"seed{seed}"
                modules = {module: folder / "train" / module / "policy" for module in ("sft", "negative")}
                exact, cheap = (draw(folder / "cheap", "validation", one, modules, strength) for one in ("exact", name))
                found.append(float((pixels(exact) - pixels(cheap)).square().mean()))
            print(f"w {strength}, {name}: mean square {sum(found) / len(found):.5f}", flush=True)


def test(arguments: argparse.Namespace) -> None:
    """Train modules of each seed and print the differences to the exact form."""
    found: dict[int, list[float]] = {strength: [] for strength in STRENGTHS}
    for seed in arguments.test:
        folder = arguments.out / f"seed{seed}"
        config = DemoConfig(seed=seed)
        stages = trainings(config, curated_pairs(config, arguments.full / f"seed{seed}"), folder)
        modules = {
            name: train(
                stages[name].replace(checkpoint_every=stages[name].num_steps),
                folder / "train" / name,
                cache=folder / "latents",
            )
            for name in ("sft", "negative")
        }
        for strength in STRENGTHS:
            exact, cheap = (
                realism(draw(folder / "cheap", "held_out", name, modules, strength)) for name in ("exact", CHOSEN)
            )
            difference = mean_interval({key: cheap[key] - exact[key] for key in exact})
            found[strength].append(difference.mean)
            print(f"seed {seed}, w {strength}: {cell(vars(difference))} over prompts", flush=True)
    for strength, values in found.items():
        pooled = interval(values)
        print(f"w {strength}: {cell(pooled)} over training seeds; no worse: {pooled['low'] > MARGIN}")


def draw(folder: Path, split: str, name: str, modules: dict[str, Path], strength: float) -> Path:
    """Images of a setting; a folder that is finished is left alone."""
    out = folder / split / f"{name} @ {strength}"
    if not (out / "manifest.jsonl").exists():
        draw_form(out, split, name, EXACT if name == "exact" else CHEAP[name], modules, strength, size=SIZES[split])
    return out


def pixels(folder: Path) -> torch.Tensor:
    rows = read_jsonl(folder / "manifest.jsonl")
    return torch.stack([to_tensor(Image.open(folder / row["file"]).convert("RGB")) for row in rows])


def realism(folder: Path) -> dict[tuple[str, int], float]:
    """By prompt and seed."""
    return {
        (row.prompt_id, row.seed): row.value
        for row in score_folder(folder, [JUDGE], in_training=[])
        if row.value is not None
    }


if __name__ == "__main__":
    main()
