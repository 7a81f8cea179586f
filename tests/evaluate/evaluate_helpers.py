"""Sample runs and tables of scores in small, with images whose grey level is their score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from diffalign.core import write_jsonl
from diffalign.data import image_sha256
from diffalign.evaluate import ScoreRow
from diffalign.rewards import Reward, RewardCard

SETTINGS = {
    "width": 6, "height": 5, "sampler": "dpm++", "num_steps": 10, "guidance_scale": 4.0, "negative_prompt": "",
    "dtype": "torch.float32", "sampler_hash": "",
}  # fmt: skip


class GreyLevel(Reward):
    """The level of the first pixel; remembers what it was shown, and misbehaves where it is told to."""

    def __init__(self, name: str = "level", *, act: Mapping[int, Any] | None = None, **card: Any) -> None:
        super().__init__(RewardCard(name=name, preprocessing="rgb8", **card))
        self.act = act or {}  # level: the score, or an exception to raise
        self.seen: list[tuple[int, str]] = []

    def prepare(self, image: Image.Image) -> int:
        return int(image.getpixel((0, 0))[0])  # type: ignore[index]

    def compare(self, features: Sequence[int], prompts: Sequence[str]) -> Tensor:
        values = []
        for level, prompt in zip(features, prompts, strict=True):
            self.seen.append((level, prompt))
            value = self.act.get(level, float(level))
            if isinstance(value, BaseException):
                raise value
            values.append(value)
        return torch.tensor(values)


def grey(level: int) -> Image.Image:
    return Image.new("RGB", (6, 5), (level, level, level))


def write_run(folder: Path, levels: Mapping[tuple[str, int], int | None], **settings: Any) -> Path:
    """A sample run: grey images by (prompt id, seed); None failed."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for (prompt, seed), level in levels.items():
        row = {"prompt_id": prompt, "prompt": f"a photo of {prompt}", "seed": seed, **SETTINGS, **settings}
        row |= {"model": folder.name, "adapter": "", "status": "not finite", "file": "", "sha256": ""}
        if level is not None:
            row |= {"status": "ok", "file": f"images/{prompt}-{seed}.png", "sha256": image_sha256(grey(level))}
            grey(level).save(folder / str(row["file"]))
        rows.append(row)
    write_jsonl(folder / "manifest.jsonl", rows)
    return folder


def write_table(
    folder: Path,
    metrics: Mapping[str, Mapping[tuple[str, int], float | None]],
    *,
    roles: Mapping[str, str] | None = None,
    **changes: Any,
) -> Path:
    """A table of scores by metric and (prompt id, seed); None is an error of the reward."""
    rows = []
    for name, values in metrics.items():
        for (prompt, seed), value in values.items():
            row = {"prompt_id": prompt, "prompt": f"a photo of {prompt}", "seed": seed, "file": "x.png", "sha256": "0"}
            row |= {**SETTINGS, "metric": f"{name}@1/rgb8", "name": name, "value": value}
            row |= {"status": "error: broken" if value is None else "ok", "higher_is_better": True}
            rows.append(asdict(ScoreRow(**row | {"role": (roles or {}).get(name, "undeclared")} | changes)))
    write_jsonl(folder / "scores.jsonl", rows)
    return folder
