"""A Diffusion-DPO training step: this library against a plain script, on the same rows, draws and network.

The plain step does what published scripts do with their defaults: image files are decoded and resized in the training
process, images and prompts pass through the autoencoder and the text encoder in every step, and the reference is a
second pass. "plain, decoded before" leaves the first out. The library's step reads latents and prompt embeddings from
the cache; "remembered" also reads the reference's errors, which were measured once under a few fixed draws per row. All
sides switch adapters alike. Before any time is printed, the losses of the sides that share draws are compared step by
step, and the remembered errors with those of a plain pass.

    python benchmarks/train_step.py                                      # tiny-sd on the CPU
    python benchmarks/train_step.py --model sd15 --precision bf16        # SD-1.5-sized, random weights, on a GPU

Each side runs in a process of its own, in turns; rates are medians over all turns.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from diffalign.core import numpy_generator, print_table
from diffalign.data import Preferences, PreferenceWriter, ResizeRecipe, apply_flaw, batch_rows, draw_crop, to_tensor
from diffalign.models import Family, LoraSettings, adapter_parameters, add_adapter, denoising_error, load_family, using
from diffalign.objectives import diffusion_dpo
from diffalign.train import (
    TrainConfig,
    draw_rows,
    estimate,
    fill_cache,
    forward_noiser,
    frozen_dtype,
    matrix_rate,
    train,
)
from diffalign.train.batches import remembered_rows
from diffalign.train.rows import PreferenceRows, open_cache
from diffalign.types import Pair
from models import RANDOM_MODELS

SIDES = ("chosen", "rejected")
REMEMBER = 8  # draws per row


def main() -> None:
    arguments = parse()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make = RANDOM_MODELS.get(arguments.model)
        model = str(make(folder / "model")) if make else arguments.model
        pairs = make_pairs(folder / "pairs", arguments.rows, arguments.image_size)
        config = TrainConfig(
            model=model,
            data=str(pairs),
            objective="diffusion_dpo",
            settings={"beta": 2000.0},
            resolution=arguments.resolution,
            flip=False,
            num_steps=arguments.steps,
            batch_size=arguments.batch,
            micro_batch_size=arguments.micro_batch or arguments.batch,
            mixed_precision=arguments.precision,
            checkpoint_every=10**6,
        )
        sides = {
            "plain": plain,
            "plain, decoded before": plain_decoded,
            "cached": cached,
            "cached, remembered": remembered,
        }
        in_a_process(fill, config, folder / "latents", arguments.threads)
        measured: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
        for turn in range(arguments.turns):
            for side, function in sides.items():
                measured[side].append(in_a_process(function, config, folder / f"{side}{turn}", arguments.threads))
        report(config, measured, arguments.threads)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny-sd", help="tiny-sd, sd15 or sdxl (random weights), a model folder")
    parser.add_argument("--resolution", type=int, default=0, help="pixels; 32 for tiny-sd, 1024 for sdxl, else 512")
    parser.add_argument("--image-size", type=int, default=512, help="pixels of the image files")
    parser.add_argument("--precision", default="no", choices=["no", "bf16", "fp16"])
    parser.add_argument("--batch", type=int, default=8, help="pairs per optimiser step")
    parser.add_argument("--micro-batch", type=int, default=0, help="pairs per pass; the batch by default")
    parser.add_argument("--rows", type=int, default=32, help="pairs of data")
    parser.add_argument("--steps", type=int, default=12, help="per turn; the first two are not counted")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    own = {"tiny-sd": 32, "tiny-sd3": 32, "sdxl": 1024}.get(arguments.model, 512)
    arguments.resolution = arguments.resolution or own
    return arguments


def make_pairs(folder: Path, count: int, size: int) -> Path:
    generator = numpy_generator("benchmark")
    with PreferenceWriter(folder, form="pair") as writer:
        for number in range(count):
            crop = draw_crop("train", generator, size=64)
            image = crop.image.resize((size, size))
            rejected = apply_flaw("blur", image, generator)
            writer.write(Pair(id=str(number), prompt=crop.caption, chosen=image, rejected=rejected))
    return folder


def in_a_process(function: Any, config: TrainConfig, out: Path, threads: int) -> dict[str, Any]:
    """So that peak memory is that of one side alone."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
        return dict(pool.apply(function, (config, out)))


def fill(config: TrainConfig, out: Path) -> dict[str, Any]:
    """Encode once, in a process of its own, so that its memory is not counted with the step's."""
    device = device_of()
    family = load_family(config.model, dtype=frozen_dtype(config), device=device)
    fill_cache(out, family, Preferences(config.data), resolution=config.resolution, flip=config.flip)
    return {}


def cached(config: TrainConfig, out: Path) -> dict[str, Any]:
    train(config, out, cache=out.parent / "latents")
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {
        "losses": [row["loss"] for row in rows],
        "seconds": [config.batch_size / row["rows_per_second"] for row in rows],
        "memory": peak_memory(),
    }


def remembered(config: TrainConfig, out: Path) -> dict[str, Any]:
    """The reference's errors are measured before the first step; their time is told apart from the steps'."""
    config = config.replace(remember=REMEMBER)
    measured = cached(config, out)
    family = load_family(config.model, dtype=frozen_dtype(config), device=device_of())
    autocast = torch.autocast(family.device.type, dtype=frozen_dtype(config), enabled=config.mixed_precision != "no")
    preferences = Preferences(config.data)
    latents = open_cache(out.parent / "latents", family, resolution=config.resolution)
    rows = PreferenceRows(preferences, latents, sides=SIDES, flip=False, prompt_drop=0, device=family.device)
    bank, shape = (
        load_file(out / "reference_errors.safetensors")["errors"],
        family.latent_shape(*[config.resolution] * 2),
    )
    began, worst = time.monotonic(), 0.0
    for first in range(0, len(rows), config.micro_batch_size):
        chunk = range(first, min(first + config.micro_batch_size, len(rows)))
        draws = remembered_rows(family.process, chunk, [0] * len(chunk), shape, seed=config.seed, count=REMEMBER)
        batch = rows.batch(chunk, draws)
        noised = forward_noiser(family.process, batch.latents, draws)
        for number, side in enumerate(SIDES):
            with torch.no_grad(), autocast:
                pred = family.predict(noised[side].noisy, noised[side].timesteps, batch.condition)
            errors = denoising_error(pred, noised[side].target).cpu()
            worst = max(worst, float((errors - bank[list(chunk), 0, number]).abs().max()))
    once = (time.monotonic() - began) * REMEMBER
    return measured | {"losses": [], "difference": worst, "once": once}


def device_of() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def plain(config: TrainConfig, out: Path, *, decoded: bool = False) -> dict[str, Any]:
    """What published training scripts do in a step, with the draws of this library so that losses can be compared."""
    device = device_of()
    family = load_family(config.model, dtype=frozen_dtype(config), device=device)
    settings = LoraSettings(rank=config.lora.rank, alpha=config.lora.alpha, targets=family.lora_targets)
    add_adapter(family.denoiser, "policy", settings, seed=config.seed)
    parameters = adapter_parameters(family.denoiser, "policy").values()
    optimizer = torch.optim.AdamW(parameters, lr=config.optimizer.learning_rate, weight_decay=1e-2)
    preferences, recipe = Preferences(config.data), ResizeRecipe(size=config.resolution)

    def load(number: int) -> tuple[str, list[Tensor]]:
        row = preferences[number]
        return row.prompt, [to_tensor(recipe(image)) for image in (row.chosen, row.rejected)]

    ready = [load(number) for number in range(len(preferences))] if decoded else []
    losses, seconds = [], []
    for step in range(config.num_steps):
        began = time.monotonic()
        order = batch_rows(len(preferences), batch_size=config.batch_size, seed=config.seed, step=step)
        rows = [ready[number] if decoded else load(number) for number in order]
        losses.append(plain_step(config, family, rows, optimizer, step))
        seconds.append(time.monotonic() - began)
    return {"losses": losses, "seconds": seconds, "memory": peak_memory()}


def plain_decoded(config: TrainConfig, out: Path) -> dict[str, Any]:
    return plain(config, out, decoded=True)


def plain_step(
    config: TrainConfig, family: Family, rows: list[Any], optimizer: torch.optim.Optimizer, step: int
) -> float:
    autocast = torch.autocast(family.device.type, dtype=frozen_dtype(config), enabled=config.mixed_precision != "no")
    shape = family.latent_shape(config.resolution, config.resolution)
    total = 0.0
    for start in range(0, config.batch_size, config.micro_batch_size):
        places = range(start, start + config.micro_batch_size)
        draws = draw_rows(family.process, places, shape, seed=config.seed, step=step)
        prompts, images = zip(*(rows[place] for place in places), strict=True)
        mean, std = family.encode_images(torch.stack([image[side] for side in (0, 1) for image in images]))
        latents = (mean + std * torch.cat([draws.posterior[side] for side in SIDES]).to(mean)).chunk(2)
        condition = {key: torch.cat([value] * 2) for key, value in family.encode_prompts(prompts).items()}
        noised = forward_noiser(family.process, dict(zip(SIDES, latents, strict=True)), draws)
        noisy, timesteps, target = (
            torch.cat([getattr(noised[side], what) for side in SIDES]) for what in ("noisy", "timesteps", "target")
        )
        with torch.no_grad(), autocast, using(family.denoiser, None):
            ref = denoising_error(family.predict(noisy, timesteps, condition), target)
        with using(family.denoiser, "policy"):
            with autocast:
                errors = denoising_error(family.predict(noisy, timesteps, condition), target)
            loss = diffusion_dpo(*errors.chunk(2), *ref.chunk(2), beta=config.settings["beta"]).loss.sum()
            (loss / config.batch_size).backward()
        total += float(loss.detach()) / config.batch_size
    nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return total


def peak_memory() -> float:
    """Bytes: of the GPU where there is one, otherwise of this process."""
    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024.0)


def report(config: TrainConfig, measured: dict[str, list[dict[str, Any]]], threads: int) -> None:
    device = device_of()
    tolerance = 1e-3 if config.mixed_precision == "no" else 2e-2
    losses = [turn["losses"] for turns in measured.values() for turn in turns if turn["losses"]]
    worst = max(max(each) - min(each) for each in zip(*losses, strict=True))
    if worst > tolerance:
        raise SystemExit(f"the sides do not compute the same losses: they differ by {worst:.2g}")
    once = measured["cached, remembered"][-1]
    if once["difference"] > tolerance:
        raise SystemExit(f"the remembered errors differ from measured ones by {once['difference']:.2g}")
    rates = {
        side: config.batch_size / statistics.median([s for turn in turns for s in turn["seconds"][2:]])
        for side, turns in measured.items()
    }
    memory = {side: max(turn["memory"] for turn in turns) / 1e6 for side, turns in measured.items()}
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {threads} threads"
    what = f"{Path(config.model).name}, {config.resolution} px, {config.mixed_precision}, {name}"
    print(f"{what}: {config.batch_size} pairs a step, {config.micro_batch_size} a pass")
    print(f"largest difference of a loss between the sides: {worst:.1e}")
    print(f"largest difference of a remembered error: {once['difference']:.1e}")
    print(f"measuring {REMEMBER} draws of each of {len(Preferences(config.data))} rows, once: {once['once']:.1f} s")
    print_table(
        ["side", "pairs/s", "ratio", "peak MB", "ratio"],
        [
            (side, f"{rates[side]:.2f}", f"{rates[side] / rates['plain']:.2f}", f"{memory[side]:.0f}",
             f"{memory[side] / memory['plain']:.2f}")
            for side in rates
        ],
    )  # fmt: skip
    flops = estimate(config).flops * rates["cached"] / config.batch_size
    torch.set_num_threads(threads)
    peak = matrix_rate(device, frozen_dtype(config))
    print(f"cached: {flops / 1e12:.3g} TFLOP/s, {flops / peak:.0%} of the {peak / 1e12:.3g} of a large matrix product")


if __name__ == "__main__":
    main()
