"""Scoring image files: this library against a loop that takes one image at a time.

The plain loop is what a user of transformers writes: open the file, CLIPProcessor, CLIPModel's forward pass, the cosine
times the scale. The library decodes and prepares on threads beside the network, in batches, and encodes each distinct
prompt of a batch once. Both score the same files by the same network; their scores are compared before any time is
printed.

    python benchmarks/score.py                      # 256 files of 32 pixels, as tiny-sd samples, and of 512
    python benchmarks/score.py --sizes 64 1024

``diffalign score`` also checks that each file is the image of its manifest, which is left out here.

The sides take turns; rates are medians over the turns. The larger the files, the more of the time goes into decoding,
which both sides have to do: then the ratio cannot exceed the number of cores by much.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from transformers import CLIPModel, CLIPProcessor

from diffalign.core import numpy_generator, print_table
from diffalign.data import draw_crop, encode_png
from diffalign.models import embedded_path
from diffalign.rewards import Reward, load_reward, score

Side = Callable[[list[Path], list[str]], list[float]]

MODEL = "tiny-clip"
TOLERANCE = 0.3  # of a score of about 17: with torchvision installed, CLIPProcessor resizes by it and not by Pillow


def main() -> None:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    reward, plain = load_reward(MODEL), Plain()
    rows = []
    for size in arguments.sizes:
        with tempfile.TemporaryDirectory() as name:
            files, prompts = make_images(Path(name), arguments.images, size)
            sides = {"one by one": plain.score, f"score, batch {arguments.batch}": batched(reward, arguments.batch)}
            one, many = (side(files, prompts) for side in sides.values())
            difference = max(abs(a - b) for a, b in zip(one, many, strict=True))
            print(f"{size} px: largest difference of a score {difference:.1e} (scores about {one[0]:.0f})")
            if difference > TOLERANCE:
                raise SystemExit("the sides do not compute the same scores")
            rates = {side: arguments.images / seconds for side, seconds in measure(sides, files, prompts, arguments)}
        slow, _ = rates.values()
        rows += [(size, side, f"{rate:.0f}", f"{rate / slow:.2f}") for side, rate in rates.items()]
    print(f"{MODEL}, {arguments.images} PNG files, {arguments.threads} threads, medians of {arguments.turns} turns")
    print_table(["pixels", "side", "images/s", "ratio"], rows)


def measure(
    sides: dict[str, Side], files: list[Path], prompts: list[str], arguments: argparse.Namespace
) -> list[tuple[str, float]]:
    """Median seconds of each side, which take turns."""
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(arguments.turns):
        for side, function in sides.items():
            began = time.monotonic()
            function(files, prompts)
            seconds[side].append(time.monotonic() - began)
    return [(side, statistics.median(each)) for side, each in seconds.items()]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 512], help="of the images, pixels")
    parser.add_argument("--batch", type=int, default=32, help="images per call of the network")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    return parser.parse_args()


def make_images(folder: Path, count: int, size: int) -> tuple[list[Path], list[str]]:
    generator = numpy_generator("benchmark")
    files, prompts = [], []
    for number in range(count):
        crop = draw_crop("train", generator, size=min(size, 128))
        files.append(folder / f"{number}.png")
        files[-1].write_bytes(encode_png(crop.image.resize((size, size), Image.Resampling.BICUBIC)))
        prompts.append(crop.caption)
    return files, prompts


class Plain:
    """One image at a time."""

    def __init__(self) -> None:
        folder = embedded_path(MODEL)
        self.model = CLIPModel.from_pretrained(folder).eval()
        self.processor = CLIPProcessor.from_pretrained(folder)

    @torch.no_grad()
    def score(self, files: list[Path], prompts: list[str]) -> list[float]:
        values = []
        for file, prompt in zip(files, prompts, strict=True):
            image = Image.open(file).convert("RGB")
            inputs = self.processor(text=[prompt], images=image, return_tensors="pt", padding=True, truncation=True)
            outputs = self.model(**inputs)
            cosine = (outputs.image_embeds * outputs.text_embeds).sum()
            values.append(float(self.model.logit_scale.exp() * cosine))
        return values


def batched(reward: Reward, batch: int) -> Side:
    def score_all(files: list[Path], prompts: list[str]) -> list[float]:
        values: list[float] = score(reward, files, prompts, batch_size=batch).values.tolist()
        return values

    return score_all


if __name__ == "__main__":
    main()
