"""Curation: this library against the plain loop of a paper's script, and what of its time is not networks.

The plain loop takes one photograph at a time, in one process with torch's own number of threads: Pillow opens and
resizes it, colour saliency gives the mask, diffusers' inpainting pipeline draws one image, CLIP scores photograph and
drawn copy one by one, and PNG files and a line of a CSV file are written. The library does the same work in batches, on
``--workers`` processes of one thread each, and also measures and hashes the photographs, puts the drawn part back, and
writes Parquet that survives a kill; "audited" adds the audit. Both sides read the same files and take as many steps.

    python benchmarks/curate.py                                        # tiny-sd at 32 pixels, all cores
    python benchmarks/curate.py --model sd15 --precision bfloat16      # SD-1.5-sized, random weights, on a GPU
    python benchmarks/curate.py --many 100000                          # small images, no network: memory, images/s

The sides take turns; rates are medians over the turns but the first, in which processes start and models load. The
shares of the stages are those of one worker, of the processor's time in all of its threads.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import resource
import statistics
import sys
import tarfile
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionInpaintPipeline
from PIL import Image
from transformers import CLIPModel, CLIPProcessor

import diffalign.curate.work as work
from diffalign.core import default_device, numpy_generator, plan_shards, print_table
from diffalign.curate import (
    CurateConfig,
    KeepConfig,
    SelectConfig,
    colour_saliency,
    curate,
    mask_of,
    open_engine,
    open_source,
    pairs,
)
from diffalign.data import draw_crop, encode_png, resize_crop
from diffalign.models import embedded_path
from diffalign.rewards.statistics import laplacian_variance
from models import random_sd15

CLIP = "tiny-clip"
NETWORKS = ("caption", "degrade", "score")
PER_TAR = 10_000


def main() -> None:
    arguments = parse()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.many:
            measure_many(arguments, folder)
        else:
            compare(arguments, folder)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--steps", type=int, default=10, help="of the solver")
    parser.add_argument("--batch", type=int, default=4, help="images at a time through a network")
    parser.add_argument("--turns", type=int, default=3, help="of which the first does not count")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--model", default="tiny-sd", help="an embedded model, a folder, or sd15: random weights")
    parser.add_argument("--precision", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--many", type=int, default=0, help="so many images of 32 pixels through JPEG instead")
    return parser.parse_args()


def compare(arguments: argparse.Namespace, folder: Path) -> None:
    model = str(random_sd15(folder / "model")) if arguments.model == "sd15" else arguments.model
    base = CurateConfig(
        photos=str(folder / "photos"),
        model=model,
        degrade={"name": "inpaint", "num_steps": arguments.steps, "guidance_scale": 7.5},
        rewards=(CLIP,),
        keep=KeepConfig(min_gap=0.0),
        select=SelectConfig(max_likeness=-1),
        batch_size=arguments.batch,
        shard_size=max(arguments.batch, arguments.images // (4 * arguments.workers)),
        precision=arguments.precision,
        audit=False,
    )
    size = pairs.own_size(model)
    write_photos(folder / "photos", arguments.images, size)
    with open_engine("local", arguments.workers) as mapper:
        plain = Plain(model, size, arguments.steps, arguments.precision)
        sides: dict[str, Callable[[Path], object]] = {
            "plain loop": partial(plain.run, folder / "photos"),
            "diffalign": partial(library, base, arguments.workers, mapper),
            "diffalign, audited": partial(library, base.replace(audit=True), arguments.workers, mapper),
        }
        seconds = take_turns(sides, arguments.turns, folder)
    rates = {side: arguments.images / statistics.median(each) for side, each in seconds.items()}
    print(
        f"{arguments.model}, {size} px, {arguments.precision}, {device_name()}: {arguments.images} images, "
        f"{arguments.steps} steps, {arguments.workers} workers, batches of {arguments.batch}"
    )
    slow = rates["plain loop"]
    print_table(
        ["side", "images/s", "ratio"], [(side, f"{rate:.3g}", f"{rate / slow:.2f}") for side, rate in rates.items()]
    )
    print_shares(base)


def take_turns(sides: dict[str, Callable[[Path], object]], turns: int, folder: Path) -> dict[str, list[float]]:
    """Seconds of each side's turns; of several the first is left out."""
    seconds: dict[str, list[float]] = defaultdict(list)
    for turn in range(turns):
        for side, run in sides.items():
            began = time.monotonic()
            with redirect_stdout(io.StringIO()):
                run(folder / f"{side} {turn}")
            seconds[side].append(time.monotonic() - began)
    return {side: each[turns > 1 :] for side, each in seconds.items()}


def library(config: CurateConfig, workers: int, mapper: Any, out: Path) -> None:
    """A whole run, on workers that have started before."""
    pairs.open_engine = lambda *_, **__: nullcontext(mapper)  # type: ignore[assignment]
    curate(config, out, device=default_device(), workers=workers)


class Plain:
    """What a paper's script does."""

    def __init__(self, model: str, size: int, steps: int, precision: str) -> None:
        device, dtype = default_device(), getattr(torch, precision)
        place = embedded_path(model) if not Path(model).exists() else model
        self.pipe = StableDiffusionInpaintPipeline.from_pretrained(
            place, safety_checker=None, requires_safety_checker=False, dtype=dtype
        ).to(device)
        self.pipe.set_progress_bar_config(disable=True)
        self.clip = CLIPModel.from_pretrained(embedded_path(CLIP)).eval().to(device)
        self.processor = CLIPProcessor.from_pretrained(embedded_path(CLIP))
        self.size, self.steps = size, steps

    def run(self, photos: Path, out: Path) -> None:
        out.mkdir()
        with (out / "pairs.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["real_image_path", "fake_image_path", "prompt", "real_score", "fake_score"])
            for path in sorted(photos.glob("*.png")):
                rows.writerow(self.one(path, path.with_suffix(".txt").read_text(), out))

    @torch.no_grad()
    def one(self, path: Path, prompt: str, out: Path) -> list[str]:
        real = resize_crop(Image.open(path).convert("RGB"), self.size)
        mask = mask_of(colour_saliency(real))
        fake = self.pipe(
            prompt, image=real, mask_image=mask, height=self.size, width=self.size, num_inference_steps=self.steps
        ).images[0]
        names = [out / f"{path.stem}-{side}.png" for side in ("real", "fake", "mask")]
        for image, name in zip((real, fake, mask), names, strict=True):
            image.save(name)
        return [str(names[0]), str(names[1]), prompt, *(f"{self.score(image, prompt):.4f}" for image in (real, fake))]

    def score(self, image: Image.Image, prompt: str) -> float:
        inputs = self.processor(text=[prompt], images=image, return_tensors="pt", padding=True, truncation=True)
        outputs = self.clip(**inputs.to(self.clip.device))
        return float(self.clip.logit_scale.exp() * (outputs.image_embeds * outputs.text_embeds).sum())


def write_photos(folder: Path, count: int, size: int) -> None:
    """Photographs half as large again as the model's images."""
    folder.mkdir()
    generator = numpy_generator("benchmark of curation")
    for number in range(count):
        crop = draw_crop("train", generator, size=min(128, size + size // 2))
        image = crop.image.resize((size + size // 2,) * 2, Image.Resampling.BICUBIC)
        (folder / f"{number:06d}.png").write_bytes(encode_png(image))
        (folder / f"{number:06d}.txt").write_text(crop.caption)


def print_shares(config: CurateConfig) -> None:
    """Time of each stage of one worker, once warm."""
    photos = open_source(config)
    for _ in range(2):
        spent: dict[str, float] = defaultdict(float)
        with timed_stages(spent), tempfile.TemporaryDirectory() as name:
            (shard,) = plan_shards(len(photos), len(photos))
            for number, kind in enumerate((work.Look, work.Make)):
                out = Path(name, str(number))
                out.mkdir(exist_ok=kind is work.Make)
                kind(config, photos, default_device())(shard, out / "shard" if kind is work.Look else out)
    total = sum(spent.values())
    print_table(
        ["stage", "ms per image", "share"],
        [(stage, f"{1e3 * each / len(photos):.2f}", f"{each / total:.1%}") for stage, each in spent.items()],
        title="stages of one worker",
    )
    outside = sum(each for stage, each in spent.items() if stage not in NETWORKS)
    print(f"outside of {', '.join(NETWORKS)}: {outside / total:.1%} (reading and writing run beside the networks)")


@contextmanager
def timed_stages(spent: dict[str, float]) -> Iterator[None]:
    """Count the seconds that each stage of a worker takes; on a GPU up to the end of its work there."""

    def timed(stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            began = time.thread_time() if default_device() == "cpu" else time.monotonic()
            result = function(*arguments, **options)
            if default_device() == "cuda" and stage in NETWORKS:
                torch.cuda.synchronize()
            ended = time.thread_time() if default_device() == "cpu" else time.monotonic()
            spent[stage] += ended - began
            return result

        return run

    names = {
        "read": "read_photos", "select": "select_photos", "locate": "locate_regions", "degrade": "degrade_regions",
        "composite": "composite_regions", "score": "score_pairs", "write": "_write",
    }  # fmt: skip
    before = {name: getattr(work, name) for name in names.values()}
    for stage, name in names.items():
        setattr(work, name, timed(stage, before[name]))
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(work, name, function)


def detail(images: Sequence[Image.Image], prompts: Sequence[str]) -> list[float]:
    """A reward that costs little."""
    return [laplacian_variance(image) for image in images]


def measure_many(arguments: argparse.Namespace, folder: Path) -> None:
    """Many small images without a network: what the machinery itself takes."""
    (folder / "photos").mkdir()
    began = time.monotonic()
    write_tars(folder / "photos", arguments.many)
    print(f"{arguments.many:,} images written in {time.monotonic() - began:.0f} s")
    config = CurateConfig(
        photos=str(folder / "photos"),
        size=32,
        degrade={"name": "jpeg", "severity": 0.9},
        rewards=("curate:detail",),
        keep=KeepConfig(min_gap=0.0),
        batch_size=64,
        shard_size=1024,
    )
    peaks: dict[int, int] = {}
    done = threading.Event()
    watcher = threading.Thread(target=watch_memory, args=(peaks, done))
    watcher.start()
    began = time.monotonic()
    curate(config, folder / "run", workers=arguments.workers)
    seconds = time.monotonic() - began
    done.set()
    watcher.join()
    peaks[os.getpid()] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    disk = sum(path.stat().st_size for path in (folder / "run").rglob("*") if path.is_file())
    print(
        f"{arguments.many:,} images in {seconds:.0f} s: {arguments.many / seconds:.0f} images/s, "
        f"{disk / 1e6:.0f} MB written"
    )
    rows = [("main" if process == os.getpid() else "worker", f"{peak / 1e6:.0f}") for process, peak in peaks.items()]
    print_table(["process", "peak MB"], sorted(rows))
    print(f"largest: {max(peaks.values()) / 1e9:.2f} GB (must stay below 3)")


def watch_memory(peaks: dict[int, int], done: threading.Event) -> None:
    """The peak memory of every process that this one has started, bytes."""
    while not done.wait(0.5):
        for status in Path("/proc").glob("[0-9]*/status"):
            try:
                found = dict(line.split(":", 1) for line in status.read_text().splitlines())
            except OSError:  # it has ended meanwhile
                continue
            if found["PPid"].strip() == str(os.getpid()) and "VmHWM" in found:
                process = int(found["Pid"])
                peaks[process] = max(peaks.get(process, 0), int(found["VmHWM"].split()[0]) * 1024)


def write_tars(folder: Path, count: int) -> None:
    """Crops of photographs under noise and a colour of their own, so that no two look alike."""
    generator = numpy_generator("many small images")
    crops = [draw_crop("train", generator, size=48) for _ in range(256)]
    for first in range(0, count, PER_TAR):
        with tarfile.open(folder / f"photos-{first // PER_TAR:05d}.tar", "w") as tar:
            for number in range(first, min(first + PER_TAR, count)):
                crop = crops[number % len(crops)]
                left, top = generator.integers(0, 17, 2).tolist()
                pixels = np.asarray(crop.image.crop((left, top, left + 32, top + 32)), dtype=np.float32)
                coarse = np.kron(generator.normal(0, 40, (8, 8, 3)), np.ones((4, 4, 1)))
                image = Image.fromarray(
                    (pixels + coarse + generator.normal(0, 6, (32, 32, 3))).clip(0, 255).astype(np.uint8)
                )
                for suffix, data in ((".png", encode_png(image)), (".txt", crop.caption.encode())):
                    member = tarfile.TarInfo(f"{number:09d}{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


def device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"


if __name__ == "__main__":
    sys.exit(main())
