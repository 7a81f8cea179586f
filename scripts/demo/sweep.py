"""Choose the demo's recipe on validation prompts and crops; tiny-judge, which judges the demo, has no part in it.

Every variant of Stage 1 trains on the same pairs with the same steps and draws, then Stage 2 on top of it against
either Stage 1 or the base. Judged by tiny-clip: the mean score, and the kernel distance of its image embeddings to
crops of the validation strips. Goes on where it stopped.

    python scripts/demo/sweep.py --seeds 2
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path
from typing import Any

from diffalign.core import numpy_generator, print_table, read_json, seed_from, write_json
from diffalign.data import captions, draw_crop
from diffalign.evaluate import measure_models
from diffalign.models import load_family
from diffalign.recipes.demo import EVALUATION, DemoConfig, curated_pairs, sample_model, trainings
from diffalign.rewards import clip_features
from diffalign.sample import PromptRow, prompt_id
from diffalign.train import SamplesConfig, TrainConfig, train

OWN = {"num_steps": 8, "guidance_scale": 1.0}


def variants(fit: TrainConfig) -> dict[str, TrainConfig]:
    """Stage 1 in the forms that are compared."""

    def dro(**samples: Any) -> TrainConfig:
        return fit.replace(
            objective="diffusion_dro", settings={"margin": 0.001}, samples=SamplesConfig(**OWN | samples)
        )

    return {
        "sft": fit,
        "gated": fit.replace(objective="gated_sft", settings={"margin": 0.001}),
        "gated, margin 0.01": fit.replace(objective="gated_sft", settings={"margin": 0.01}),
        "gated, proxy drift": fit.replace(objective="gated_sft_proxy_drift", settings={"margin": 0.001}),
        "dro, M 1": dro(refresh_every=1),
        "dro, M 16": dro(refresh_every=16),
        "dro, M 64": dro(refresh_every=64),
        "dro, true noise": dro(refresh_every=1, state="renoised", target="noise"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/sweep"))
    parser.add_argument("--seeds", type=int, default=2, help="training seeds")
    parser.add_argument("--only", nargs="*", default=[], help="names of variants; all by default")
    arguments = parser.parse_args()
    rows = []
    for seed in range(arguments.seeds):
        config = DemoConfig(seed=seed)
        folder = arguments.out / f"seed{seed}"
        pairs = curated_pairs(config, folder)
        plans = trainings(config, pairs, folder)
        models: dict[str, Path | None] = {"base": None}
        seconds = {"base": 0.0}
        for name, stage in variants(plans["sft"]).items():
            if arguments.only and name not in arguments.only:
                continue
            models[name] = timed(stage, folder / "train" / name, folder, seconds, name)
            for reference in ("start", "base"):
                second = plans["stage2"].replace(start=str(models[name]), reference=reference)
                both = f"{name} + dpo against {'stage 1' if reference == 'start' else 'base'}"
                models[both] = timed(second, folder / "train" / both, folder, seconds, both)
        measured = measure(config, models, folder)
        rows += [
            (seed, name, f"{one['choice']['mean']:.2f}", f"{1000 * one['kid']['mean']:.2f}", f"{seconds[name]:.0f}")
            for name, one in measured["models"].items()
        ]
        print_table(["seed", "variant", "tiny-clip", "1000 KID", "seconds"], rows)
    write_json(arguments.out / "sweep.json", [list(row) for row in rows])


def timed(stage: TrainConfig, out: Path, folder: Path, seconds: dict[str, float], name: str) -> Path:
    """Train, and keep how long it took."""
    file, began = out / "seconds.json", time.monotonic()
    result = train(stage, out, cache=folder / "latents")
    if not file.exists():
        write_json(file, time.monotonic() - began)
    seconds[name] = read_json(file)
    return result


def measure(config: DemoConfig, models: dict[str, Path | None], folder: Path) -> dict[str, Any]:
    texts = [text for index, text in enumerate(captions()) if index % 7 not in EVALUATION]
    prompts = [PromptRow(id=prompt_id(text), prompt=text) for text in texts]
    family = load_family(config.base)
    for name, weights in models.items():
        sample_model(config, family, prompts, folder / "validation" / name, weights)
    generator = numpy_generator("validation crops of the sweep", seed_from(config.seed))
    real = clip_features([draw_crop("validation", generator, size=config.size).image for _ in range(400)])
    return measure_models(
        {name: folder / "validation" / name for name in models},
        metrics={"choice": "tiny-clip"},
        features=partial(clip_features, reward="tiny-clip"),
        real=real,
        baselines=("base",),
        in_training=["tiny-clip"],
    )


if __name__ == "__main__":
    main()
