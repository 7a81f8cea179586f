"""Choose the demo's damage and Stage 2 on validation prompts and crops; the judge of the demo has no part in it.

Prints for each setting the mean tiny-clip score, the kernel distance of its features to validation crops, diversity,
and by how much validation crops are denoised worse than by the base. The rule: the highest tiny-clip among those that
are denoised no worse. Goes on where it stopped.

    python scripts/demo/recipe.py --out runs/recipe
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from diffalign.core import numpy_generator, print_table, torch_generator
from diffalign.data import captions, draw_crop, to_tensor
from diffalign.evaluate import measure_models
from diffalign.guidance import Contrastive, attach
from diffalign.models import Family, denoising_error, load_adapter, load_family, remove_adapter, using
from diffalign.recipes.demo import EVALUATION, DemoConfig, curated_pairs, sample_model, trainings
from diffalign.rewards import clip_features
from diffalign.sample import PromptRow, family_sampler, prompt_id, sample_images
from diffalign.train import OptimizerConfig, TrainConfig, train

AREAS = ((0.15, 0.5), (0.5, 0.9))
STAGE2 = ((2000.0, 1e-4, 60), (5000.0, 5e-4, 60), (2000.0, 5e-4, 60), (5000.0, 5e-4, 120), (2000.0, 5e-4, 120),
          (2000.0, 1e-3, 60))  # fmt: skip
"""beta, learning rate, steps"""
CROPS, TIMESTEPS, BATCH = 192, 7, 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/recipe"))
    arguments = parser.parse_args()
    rows: list[tuple[object, ...]] = []
    for low, high in AREAS:
        config = DemoConfig(min_area=low, max_area=high)
        folder = arguments.out / f"{low:g}-{high:g}"
        models = trained(config, folder)
        family = load_family(config.base)
        base = validation_errors(family, None)
        for name, one in measure(config, family, models, folder).items():
            worse = "" if name == "cpgd" else said(validation_errors(family, models[name]) - base)
            rows.append((f"{low:g} to {high:g}", name, *(f"{value:.3f}" for value in one), worse))
        print_table(["damaged", "model", "tiny-clip", "1000 KID", "diversity", "1000 errors minus base's"], rows)


def trained(config: DemoConfig, folder: Path) -> dict[str, Path | None]:
    """The base, SFT, both modules, Stage 1, and Stage 2 in every setting."""
    plans = trainings(config, curated_pairs(config, folder), folder)
    stages: dict[str, TrainConfig] = {name: plans[name] for name in ("sft", "negative", "stage1", "dpo")}
    for beta, rate, steps in STAGE2:
        stages[f"beta {beta:g}, rate {rate:g}, {steps} steps"] = plans["stage2"].replace(
            settings={"beta": beta},
            optimizer=OptimizerConfig(learning_rate=rate, warmup_steps=10),
            num_steps=steps,
        )
    found = {name: train(stage, folder / "train" / name, cache=folder / "latents") for name, stage in stages.items()}
    return {"base": None, **found}


def measure(
    config: DemoConfig, family: Family, models: dict[str, Path | None], folder: Path
) -> dict[str, tuple[float, float, float]]:
    """tiny-clip, 1000 KID and diversity of every model on validation prompts, and of cPGD at 1."""
    texts = [text for index, text in enumerate(captions()) if index % 7 not in EVALUATION]
    prompts = [PromptRow(id=prompt_id(text), prompt=text) for text in texts]
    for name, weights in models.items():
        sample_model(config, family, prompts, folder / "validation" / name, weights)
    guide = Contrastive(positive=str(models["sft"]), negative=str(models["negative"]), scale=1.0)
    with attach(family.pipeline(), guide):
        sampler = family_sampler(
            family, num_steps=config.num_steps, guidance_scale=config.guidance_scale, height=config.size,
            width=config.size, predict=family.predict, adapter="cpgd 1",
        )  # fmt: skip
        sample_images(sampler, prompts, folder / "validation" / "cpgd", num_seeds=2, batch_size=BATCH)
    generator = numpy_generator("validation crops of the recipe", config.seed)
    features = partial(clip_features, reward="tiny-clip")
    found = measure_models(
        {name: folder / "validation" / name for name in (*models, "cpgd")},
        metrics={"choice": "tiny-clip"},
        features=features,
        real=features([draw_crop("validation", generator, size=config.size).image for _ in range(400)]),
        baselines=("base",),
        in_training=["tiny-clip"],
    )["models"]
    return {
        name: (one["choice"]["mean"], 1000 * one["kid"]["mean"], one["diversity"]["mean"])
        for name, one in found.items()
    }


@torch.no_grad()
def validation_errors(family: Family, weights: Path | None) -> Tensor:
    """(CROPS,) denoising errors of validation crops, each over the same timesteps and noise."""
    if weights is not None:
        load_adapter(family.denoiser, weights, "validated", prefix=family.lora_prefix)
        try:
            with using(family.denoiser, "validated"):
                return validation_errors(family, None)
        finally:
            remove_adapter(family.denoiser, "validated")
    generator = numpy_generator("validation errors")
    crops = [draw_crop("validation", generator, size=32) for _ in range(CROPS)]
    errors = torch.zeros(CROPS)
    for number, timestep in enumerate(torch.linspace(50, 950, TIMESTEPS).long()):
        for start in range(0, CROPS, BATCH):
            part = crops[start : start + BATCH]
            clean = family.encode_images(torch.stack([to_tensor(one.image) for one in part]))[0]
            noise = torch.randn(clean.shape, generator=torch_generator("validation noise", number, start))
            timesteps = timestep.expand(len(part))
            pred = family.predict(
                family.process.add_noise(clean, noise, timesteps),
                timesteps,
                family.encode_prompts([one.caption for one in part]),
            )
            errors[start : start + BATCH] += denoising_error(pred, family.process.target(clean, noise, timesteps))
    return errors / TIMESTEPS


def said(differences: Tensor) -> str:
    """The mean with its 95 % interval, times 1000."""
    half = 1.96 * differences.std() / len(differences) ** 0.5
    return f"{1000 * differences.mean():+.2f} ± {1000 * half:.2f}"


if __name__ == "__main__":
    main()
