"""What the training scripts of the embedded models share: the corpus of crops and one resumable training loop."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diffalign.core import atomic_path, numpy_generator, progress, read_json, torch_generator, write_json
from diffalign.data.flaws import apply_flaw
from diffalign.data.photographs import Split, draw_crop

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "runs" / "embedded"  # ignored by git: corpora and checkpoints
OUT = ROOT / "src" / "diffalign" / "models" / "embedded"
SIZE = 32  # pixels


def load_as_float32(folder: Path) -> None:
    """Make transformers load the float16 weights in ``folder`` as float32, as diffusers does, unless told otherwise.

    It takes the type its config names; mixed types in one pipeline would not run.
    """
    for path in folder.rglob("config.json"):
        config = read_json(path)
        if "dtype" in config:
            write_json(path, _named_float32(config))


def _named_float32(config: dict[str, object]) -> dict[str, object]:
    return {
        key: "float32" if key == "dtype" else _named_float32(value) if isinstance(value, dict) else value
        for key, value in config.items()
    }


@dataclass(frozen=True)
class Corpus:
    """Crops in memory.

    Attributes:
        images: (N, 3, 32, 32) uint8.
        captions: N captions; they never name the flaw.
        subjects: (N,) int64, index into PHOTOGRAPHS.
        flaws: (N,) int64, index into the flaws asked for, -1 for a clean crop.
    """

    images: Tensor
    captions: list[str]
    subjects: Tensor
    flaws: Tensor

    def pixels(self, rows: Tensor) -> Tensor:
        """(B, 3, 32, 32) float32 in [-1, 1]."""
        return self.images[rows].float() / 127.5 - 1


def make_corpus(split: Split, count: int, *, flaws: tuple[str, ...], flawed_share: float, seed: int) -> Corpus:
    """Draw ``count`` crops of ``split``, a share of them flawed; kept on disk under a name that tells its settings."""
    name = f"corpus-{split}-{count}-{'+'.join(flaws) or 'clean'}-{flawed_share}-{seed}"
    path = WORK / f"{name}.safetensors"
    if not path.exists():
        generator = numpy_generator("embedded corpus", split, seed)
        images, captions, subjects, kinds = [], [], [], []
        for _ in progress(range(count), total=count, description=f"crops of {split}", unit="crops"):
            crop = draw_crop(split, generator, size=SIZE)
            kind = int(generator.integers(len(flaws))) if flaws and generator.random() < flawed_share else -1
            image = crop.image if kind < 0 else apply_flaw(flaws[kind], crop.image, generator)
            images.append(np.asarray(image).transpose(2, 0, 1))
            captions.append(crop.caption)
            subjects.append(crop.subject)
            kinds.append(kind)
        tensors = {
            "images": torch.from_numpy(np.stack(images)).contiguous(),
            "subjects": torch.tensor(subjects),
            "flaws": torch.tensor(kinds),
        }
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, metadata={"captions": json.dumps(captions)})
    with safe_open(path, framework="pt") as opened:
        captions = json.loads(opened.metadata()["captions"])
    tensors = load_file(path)
    return Corpus(tensors["images"], captions, tensors["subjects"], tensors["flaws"])


def train(
    name: str,
    module: nn.Module,
    loss_of: Callable[[torch.Generator], tuple[Tensor, dict[str, float]]],
    *,
    num_steps: int,
    learning_rate: float,
    seed: int,
    weight_decay: float = 0.0,
    warmup_steps: int = 100,
    ema_decay: float = 0.0,
    measure: Callable[[nn.Module], dict[str, float]] | None = None,
    measure_every: int = 500,
    save_every: int = 200,
) -> nn.Module:
    """Train ``module`` by AdamW with warm-up and cosine decay; killed and started again it goes on where it stopped.

    Args:
        name: of the run's folder under WORK.
        module: trained in place; its trainable parameters are all that is optimised.
        loss_of: draws everything from the generator it is given (one per step, from the seed and the step alone) and
            returns the loss and figures to log.
        num_steps: optimiser steps.
        learning_rate: peak of the cosine.
        seed: of the run.
        weight_decay: of AdamW.
        warmup_steps: linear warm-up.
        ema_decay: 0 keeps no average; else the average's weights are loaded into ``module`` at the end.
        measure: figures on validation crops, logged every ``measure_every`` steps (of the average where there is one).
        measure_every: steps.
        save_every: steps between checkpoints.
    """
    folder = WORK / name
    folder.mkdir(parents=True, exist_ok=True)
    parameters = {key: value for key, value in module.named_parameters() if value.requires_grad}
    state = dict(module.named_buffers())  # running statistics, saved with the weights
    optimiser = torch.optim.AdamW(parameters.values(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=weight_decay)
    average = {key: value.detach().clone() for key, value in parameters.items()} if ema_decay else {}
    first = _resume(folder, parameters, state, optimiser, average)
    curve = [row for row in _read_curve(folder) if row["step"] <= first]
    began = time.monotonic()
    module.train()
    for step in progress(range(first, num_steps), total=num_steps - first, description=name, unit="steps"):
        decay = 0.5 * (1 + math.cos(math.pi * step / num_steps))
        optimiser.param_groups[0]["lr"] = learning_rate * min(1.0, (step + 1) / warmup_steps) * decay
        loss, figures = loss_of(torch_generator(name, seed, step))
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"{name}: the loss is {loss.item()} at step {step}")
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimiser.step()
        done = step + 1
        if ema_decay:
            rate = min(ema_decay, done / (done + 10))
            torch._foreach_lerp_(list(average.values()), [p.detach() for p in parameters.values()], 1 - rate)
        if measure and (done % measure_every == 0 or done == num_steps):
            seconds = (time.monotonic() - began) / (done - first)
            row = {"step": done, "loss": loss.item(), "seconds_per_step": round(seconds, 4)} | figures
            with Swapped(parameters, average):
                row |= measure(module.eval())
            module.train()
            curve.append(row)
            write_json(folder / "curve.json", curve)
            print(name, {key: round(value, 4) for key, value in row.items()}, flush=True)
        if done % save_every == 0 or done == num_steps:
            _save(folder, done, parameters, state, optimiser, average)
    for key, value in average.items():
        parameters[key].data.copy_(value)
    return module.eval()


class Swapped:
    """Inside the block the parameters hold the average."""

    def __init__(self, parameters: dict[str, nn.Parameter], average: dict[str, Tensor]) -> None:
        self.parameters, self.average = parameters, average

    def _swap(self) -> None:
        for key, value in self.average.items():
            held = self.parameters[key].detach().clone()
            self.parameters[key].data.copy_(value)
            value.copy_(held)

    def __enter__(self) -> None:
        self._swap()

    def __exit__(self, *_: object) -> None:
        self._swap()


def _read_curve(folder: Path) -> list[dict[str, float]]:
    return read_json(folder / "curve.json") if (folder / "curve.json").exists() else []


def _save(
    folder: Path,
    step: int,
    parameters: dict[str, nn.Parameter],
    state: dict[str, Tensor],
    optimiser: torch.optim.AdamW,
    average: dict[str, Tensor],
) -> None:
    tensors = {f"parameter.{key}": value.detach() for key, value in parameters.items()}
    tensors |= {f"average.{key}": value for key, value in average.items()}
    tensors |= {f"state.{key}": value for key, value in state.items()}
    for key, value in parameters.items():
        moments = optimiser.state[value]
        tensors |= {f"first.{key}": moments["exp_avg"], f"second.{key}": moments["exp_avg_sq"]}
    with atomic_path(folder / "checkpoint.safetensors") as temporary:
        save_file({k: v.contiguous() for k, v in tensors.items()}, temporary, metadata={"step": str(step)})


def _resume(
    folder: Path,
    parameters: dict[str, nn.Parameter],
    state: dict[str, Tensor],
    optimiser: torch.optim.AdamW,
    average: dict[str, Tensor],
) -> int:
    path = folder / "checkpoint.safetensors"
    if not path.exists():
        return 0
    with safe_open(path, framework="pt") as opened:
        step = int(opened.metadata()["step"])
    tensors = load_file(path)
    for key, value in parameters.items():
        value.data.copy_(tensors[f"parameter.{key}"])
        optimiser.state[value] = {
            "step": torch.tensor(float(step)),
            "exp_avg": tensors[f"first.{key}"],
            "exp_avg_sq": tensors[f"second.{key}"],
        }
    for key in average:
        average[key].copy_(tensors[f"average.{key}"])
    for key in state:
        state[key].copy_(tensors[f"state.{key}"])
    return step
