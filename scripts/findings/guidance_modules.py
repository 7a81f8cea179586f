"""The modules of the finding on guidance, and the data that they are made of."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from diffalign.core import torch_generator, write_json
from diffalign.data import Preferences, PreferenceWriter, from_tensor, to_tensor
from diffalign.models import denoising_error, load_adapter, load_family, using
from diffalign.recipes.demo import DemoConfig, curated_pairs, trainings
from diffalign.train import LoraConfig, OptimizerConfig, SamplesConfig, train
from diffalign.types import Pair
from objectives import CHOOSER, own_samples

STEPS = 8  # of the solver
TAGS = ("good, ", "bad, ")
Modules = Mapping[str, Path]


def train_modules(arguments: argparse.Namespace, seed: int, folder: Path) -> dict[str, Path]:
    """Every module by name; the reversed one serves as Diffusion-NPO's too."""
    config = DemoConfig(seed=seed)
    pairs = curated_pairs(config, arguments.full / f"seed{seed}")
    stages = trainings(config, pairs, folder)
    fit = stages["sft"]
    faster = OptimizerConfig(learning_rate=1e-3, warmup_steps=10)  # with its beta: docs/findings/objectives.md
    stages["dpo"] = stages["dpo"].replace(optimizer=faster, settings={"beta": 1450.0})
    stages["reversed"] = stages["dpo"].replace(objective="diffusion_npo")
    stages["self_npo"] = fit.replace(
        objective="self_npo",
        prompt_drop=0.0,
        num_steps=100,
        samples=SamplesConfig(state="truncated", num_steps=STEPS, truncate=0, guidance_scale=0.0, refresh_every=100),
    )
    stages["nag"] = stages["negative"].replace(lora=LoraConfig(rank=8, alpha=8.0, targets=("attn2.to_k", "attn2.to_v")))
    stages["tagged"] = fit.replace(data=str(tagged_pairs(pairs, folder)), num_steps=400)
    own, apart = own_samples(arguments, seed, pairs=True), own_apart(arguments, seed)
    for name, data in (("own_all", own), ("own_apart", apart)):
        stages[f"{name}+"] = fit.replace(data=str(data), num_steps=100)
        stages[f"{name}-"] = stages[f"{name}+"].replace(objective="sft_on_rejected")
    stages["tinted"] = fit.replace(
        data=str(tinted_pairs(pairs, folder)),
        train="full",
        num_steps=100,
        optimizer=OptimizerConfig(learning_rate=1e-4, warmup_steps=20),
    )
    return {
        name: train(stage.replace(checkpoint_every=stage.num_steps), folder / "train" / name, cache=folder / "latents")
        for name, stage in stages.items()
    }


def tagged_pairs(pairs: Path, folder: Path) -> Path:
    """Both images of every pair as rows of their own, with what they are in their prompts."""
    out = folder / "data" / "tagged"
    if not out.exists():
        with PreferenceWriter(out, form="pair") as writer:
            for pair in Preferences(pairs):
                sides = ((pair.chosen, pair.rejected), (pair.rejected, pair.chosen))
                for tag, (image, other) in zip(TAGS, sides, strict=True):
                    writer.write(Pair(id=f"{tag}{pair.id}", prompt=tag + pair.prompt, chosen=image, rejected=other))
    return out


def own_apart(arguments: argparse.Namespace, seed: int) -> Path:
    """Of every set of own samples the best three against the worst three: no image is on both sides."""
    out = arguments.out / "data" / f"apart{seed}"
    own_samples(arguments, seed, pairs=False)
    if not out.exists():
        with PreferenceWriter(out, form="pair") as writer:
            for row in Preferences(arguments.out / "data" / f"sets{seed}"):
                order = sorted(range(len(row.images)), key=row.scores[CHOOSER].__getitem__)
                for rank in range(3):
                    best, worst = row.images[order[-1 - rank]], row.images[order[rank]]
                    writer.write(Pair(id=f"{row.id}-{rank}", prompt=row.prompt, chosen=best, rejected=worst))
    return out


def tinted_pairs(pairs: Path, folder: Path) -> Path:
    """The photographs in warm colours: the data of another fine-tune of the base."""
    out = folder / "data" / "tinted"
    if not out.exists():
        with PreferenceWriter(out, form="pair") as writer:
            for pair in Preferences(pairs):
                writer.write(Pair(id=pair.id, prompt=pair.prompt, chosen=warm(pair.chosen), rejected=pair.rejected))
    return out


def warm(image: Image.Image) -> Image.Image:
    """Red up, blue down."""
    shift = torch.tensor([0.2, 0.0, -0.3])[:, None, None]
    return from_tensor((to_tensor(image) + shift).clamp(-1, 1))


@torch.no_grad()
def calibrate(modules: Modules, arguments: argparse.Namespace, seed: int, folder: Path) -> None:
    """How often the modules' errors tell the photograph from its damaged copy, on pairs of another training seed.

    The guess is the image with the larger err(negative) - err(positive), the implicit log-ratio; four noise levels.
    """
    if (folder / "calibration.json").exists():
        return
    family = load_family("tiny-sd")
    other_seed = 1 if seed == 0 else 0
    other = Preferences(curated_pairs(DemoConfig(seed=other_seed), arguments.full / f"seed{other_seed}"))
    trained = set(Preferences(curated_pairs(DemoConfig(seed=seed), arguments.full / f"seed{seed}")).ids())
    rows = [row for row in other if row.id not in trained][:128]
    kinds = {"cPGD (SFT)": ("sft", "negative"), "cPGD (DPO, reversed)": ("dpo", "reversed"), "DPO": ("dpo", None)}
    for name in {name for pair in kinds.values() for name in pair if name}:
        load_adapter(family.denoiser, modules[name], name, prefix=family.lora_prefix)
    condition = family.encode_prompts([row.prompt for row in rows])
    ratios: dict[str, Tensor] = {}
    for side in ("chosen", "rejected"):
        clean, _ = family.encode_images(torch.stack([to_tensor(getattr(row, side)) for row in rows]))
        for level in (125, 375, 625, 875):
            timesteps = torch.full((len(rows),), level)
            noise = torch.randn(clean.shape, generator=torch_generator("calibration", level))
            noisy, target = (
                family.process.add_noise(clean, noise, timesteps),
                family.process.target(clean, noise, timesteps),
            )
            errors = {}
            for name in ("sft", "negative", "dpo", "reversed", None):
                with using(family.denoiser, name):
                    errors[name] = denoising_error(family.predict(noisy, timesteps, condition), target)
            for kind, (positive, negative) in kinds.items():
                ratio = errors[negative] - errors[positive]
                ratios[f"{kind}/{side}"] = ratios.get(f"{kind}/{side}", 0) + ratio
    found = {kind: float((ratios[f"{kind}/chosen"] > ratios[f"{kind}/rejected"]).float().mean()) for kind in kinds}
    write_json(folder / "calibration.json", found | {"rows": len(rows)})
