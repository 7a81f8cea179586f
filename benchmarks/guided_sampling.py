"""What contrastive preference guidance costs: the published form against one network with two adapters, and cheaper.

The published form keeps three full networks and evaluates each on both text branches: six evaluations a step where text
guidance has two. The other sides hold one network:

    adapters     one network, two LoRAs, one pass after the other
    packed       the rows of the three passes in one forward, each under its own LoRA
    reused       packed, the difference held over --refresh-every evaluations
    window       packed, the first --window of the way alone
    both         packed, held and windowed
    merged       the first-order merge in the weights: one network, two evaluations a step
    merged LoRA  the same as one LoRA beside the weights
    base         text guidance alone, the floor

Every side samples the same prompts from the same noise in one process. Before any time is printed, adapters and packed
are compared with the published form: one prediction must agree to 1e-5 (in float32 alone), latents to --tolerance. Of
the other sides, which compute something else, the relative difference of the latents is printed. Time is that spent in
the denoiser, summed over a run; the median over turns, all sides in each turn, their order turned round every time.
Weights are those that must be held: networks and LoRAs. Memory is the peak over a run beyond what was held before it,
on CUDA alone. What turning adapters on and off takes is also measured apart, per step of the sequential form.

    python benchmarks/guided_sampling.py                                   # tiny-sd on the CPU
    python benchmarks/guided_sampling.py --model sd15 --precision bf16     # SD-1.5-sized, random weights, on a GPU
    python benchmarks/guided_sampling.py --batches 1 --steps 2 --turns 1   # to see that it runs
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from diffalign.core import print_table, torch_generator, versions, write_json
from diffalign.guidance import Contrastive, attach, contrastive
from diffalign.models import (
    Family,
    LoraSettings,
    adapter_parameters,
    add_adapter,
    concatenate_adapters,
    fuse_adapter,
    load_adapter,
    load_family,
    remove_adapter,
    save_adapter,
    using,
)
from models import RANDOM_MODELS

PUBLISHED, EXACT = "published", ("adapters", "packed")
PREDICTION_TOLERANCE = 1e-5  # relative, of one forward in float32
Side = Callable[[Any], AbstractContextManager[Any]]


def main() -> None:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[arguments.precision]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make = RANDOM_MODELS.get(arguments.model)
        model = str(make(folder / "model")) if make else arguments.model
        family = load_family(model, dtype=dtype, device=device)
        modules = arguments.modules or make_modules(family, folder, rank=arguments.rank, size=arguments.effect)
        networks = three_networks(family, *modules)
        sides = make_sides(arguments, family, networks, *modules)
        switching = switch_seconds(family, *modules)
        for batch in arguments.batches:
            check_prediction(arguments, family, sides, batch)
        results = {batch: measure(arguments, family, sides, batch) for batch in arguments.batches}
        report(arguments, results, weights_of(family, networks, modules), switching)
    if arguments.json:
        found = {"settings": vars(arguments), "versions": versions(), "results": results, "switching": switching}
        write_json(arguments.json, json.loads(json.dumps(found, default=str)))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny-sd", help="tiny-sd, sd15 or sdxl (random weights), a model folder")
    parser.add_argument("--modules", nargs=2, metavar="LORA", help="positive and negative; random ones by default")
    parser.add_argument("--rank", type=int, default=8, help="of random modules")
    parser.add_argument("--effect", type=float, default=0.002, help="standard deviation of random up matrices")
    parser.add_argument("--scale", type=float, default=2.0, help="of the guidance")
    parser.add_argument("--guidance", type=float, default=4.0, help="of text guidance")
    parser.add_argument("--resolution", type=int, default=0, help="pixels; 32 for tiny-sd, 1024 for sdxl, else 512")
    parser.add_argument("--precision", default="no", choices=["no", "bf16", "fp16"])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16], help="images at a time")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--turns", type=int, default=5, help="counted, after one that is not")
    parser.add_argument("--refresh-every", type=int, default=2)
    parser.add_argument("--window", type=float, default=0.6, help="share of the way, from noise, with guidance")
    parser.add_argument("--tolerance", type=float, default=1e-3, help="relative, on latents, of the exact sides")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write everything there too")
    arguments = parser.parse_args()
    own = {"tiny-sd": 32, "tiny-sd3": 32, "sdxl": 1024}.get(arguments.model, 512)
    arguments.resolution = arguments.resolution or own
    return arguments


def make_modules(family: Family, folder: Path, *, rank: int, size: float) -> list[Path]:
    """Two LoRAs of random weights with a small effect, as short fine-tuning has."""
    paths = []
    for seed, name in enumerate(("positive", "negative")):
        settings = LoraSettings(rank=rank, alpha=rank, targets=family.lora_targets)
        add_adapter(family.denoiser, name, settings, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for key, value in adapter_parameters(family.denoiser, name).items():
                if "lora_B" in key:
                    value.copy_(size * torch.randn(value.shape, generator=generator))
        paths.append(folder / name)
        save_adapter(family.denoiser, name, paths[-1], prefix=family.lora_prefix)
        remove_adapter(family.denoiser, name)
    return paths


def three_networks(family: Family, *modules: Path) -> list[nn.Module]:
    """The base, and copies of it with each module in their weights."""
    networks = [family.denoiser]
    for path in modules:
        networks.append(copy.deepcopy(family.denoiser))
        load_adapter(networks[-1], path, "module", prefix=family.lora_prefix)
        fuse_adapter(networks[-1], "module")
    return networks


def make_sides(
    arguments: argparse.Namespace, family: Family, networks: Sequence[nn.Module], positive: Path, negative: Path
) -> dict[str, Side]:
    guide = Contrastive(positive=positive, negative=negative, scale=arguments.scale)
    early = Contrastive(positive=positive, negative=negative, scale=arguments.scale, stop=arguments.window)
    every = arguments.refresh_every
    return {
        PUBLISHED: lambda pipe: three_at_once(networks, arguments.scale),
        "adapters": partial(attach, guide=guide, packed=False),
        "packed": partial(attach, guide=guide, packed=True),
        "reused": partial(attach, guide=guide, packed=True, refresh_every=every),
        "window": partial(attach, guide=early, packed=True),
        "both": partial(attach, guide=early, packed=True, refresh_every=every),
        "merged": lambda pipe: one_merged(family, arguments.scale, positive, negative, fused=True),
        "merged LoRA": lambda pipe: one_merged(family, arguments.scale, positive, negative, fused=False),
        "base": lambda pipe: nullcontext(),
    }


@contextmanager
def three_at_once(networks: Sequence[nn.Module], scale: float) -> Iterator[None]:
    """Inside the block the first network's forward evaluates all three, as the published pipelines do."""
    base, positive, negative = networks
    forward: Any = base.forward

    def guided(*args: Any, **kwargs: Any) -> tuple[Tensor]:
        preds = [network(*args, **kwargs)[0] for network in (forward, positive, negative)]
        return (contrastive(*preds, scale=scale),)

    base.forward = guided  # type: ignore[method-assign]
    try:
        yield
    finally:
        del base.forward


@contextmanager
def one_merged(family: Family, scale: float, positive: Path, negative: Path, *, fused: bool) -> Iterator[None]:
    network = family.denoiser
    before = {name: value.clone() for name, value in network.state_dict().items()} if fused else {}
    names = {"positive": positive, "negative": negative}
    for name, path in names.items():
        load_adapter(network, path, name, prefix=family.lora_prefix)
    concatenate_adapters(network, {"positive": scale, "negative": -scale}, "merged")
    for name in names:
        remove_adapter(network, name)
    try:
        if fused:
            fuse_adapter(network, "merged")
            yield
        else:
            with using(network, "merged"):
                yield
    finally:
        if fused:
            network.load_state_dict(before)
        else:
            remove_adapter(network, "merged")


def switch_seconds(family: Family, *modules: Path, repeats: int = 50) -> dict[str, float]:
    """Seconds to have each adapter on once and off again, as a step of the sequential form does."""
    for number, path in enumerate(modules):
        load_adapter(family.denoiser, path, f"m{number}", prefix=family.lora_prefix)
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        for number, _ in enumerate(modules):
            with using(family.denoiser, f"m{number}"):
                pass
        taken.append(time.perf_counter() - began)
    layers = sum(isinstance(layer, LoraLayer) for layer in family.denoiser.modules())
    for number, _ in enumerate(modules):
        remove_adapter(family.denoiser, f"m{number}")
    return {"seconds": statistics.median(taken), "layers": layers}


class Stopwatch:
    """Seconds that a network takes from outside, synchronised with its device."""

    def __init__(self, network: nn.Module) -> None:
        self.seconds = 0.0
        self._began = 0.0
        self._cuda = next(network.parameters()).is_cuda
        self._handles = [
            network.register_forward_pre_hook(lambda *_: self._start()),
            network.register_forward_hook(lambda *_: self._stop()),
        ]

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _start(self) -> None:
        if self._cuda:
            torch.cuda.synchronize()
        self._began = time.perf_counter()

    def _stop(self) -> None:
        if self._cuda:
            torch.cuda.synchronize()
        self.seconds += time.perf_counter() - self._began


@torch.no_grad()
def check_prediction(arguments: argparse.Namespace, family: Family, sides: dict[str, Side], batch: int) -> None:
    """Print how far one prediction of the exact sides is from the published form's, and stop if that is too far."""
    if family.dtype != torch.float32:
        return
    shape = family.latent_shape(arguments.resolution, arguments.resolution)
    noisy = torch.randn(2 * batch, *shape, generator=torch_generator("benchmark prediction", batch))
    texts = [""] * batch + [f"a photo of {number} cats" for number in range(batch)]
    condition, timesteps = family.encode_prompts(texts), torch.full((2 * batch,), 500)
    pipe, preds = family.pipeline(), {}
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # which are not float32
        for side in (PUBLISHED, *EXACT):
            with sides[side](pipe):
                preds[side] = family.predict(noisy, timesteps, condition).cpu()
    for side in EXACT:
        difference = relative(preds[side], preds[PUBLISHED])
        print(f"one prediction of {side}, batch {batch}: {difference:.1e} from the published form")
        if not difference <= PREDICTION_TOLERANCE:
            raise SystemExit(f"expected at most {PREDICTION_TOLERANCE:g} of one prediction in float32")


def relative(value: Tensor, reference: Tensor) -> float:
    return float((value - reference).norm() / reference.norm())


def measure(
    arguments: argparse.Namespace, family: Family, sides: dict[str, Side], batch: int
) -> dict[str, dict[str, float]]:
    """Median seconds in the denoiser, peak memory, and the latents' difference from the published form's, by side."""
    pipe = family.pipeline()
    pipe.set_progress_bar_config(disable=True)
    prompts = [f"a photo of {number} cats" for number in range(batch)]
    shape = family.latent_shape(arguments.resolution, arguments.resolution)
    noise = torch.randn(batch, *shape, generator=torch_generator("benchmark", batch)).to(family.device, family.dtype)
    size = {"height": arguments.resolution, "width": arguments.resolution, "num_inference_steps": arguments.steps}
    watch = Stopwatch(family.denoiser)
    latents: dict[str, Tensor] = {}
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    peaks = dict.fromkeys(sides, 0)
    for turn in range(arguments.turns + 1):
        for side, enter in list(sides.items())[:: -1 if turn % 2 else 1]:
            with enter(pipe):
                watch.seconds = 0.0
                held = start_peak(family.device)
                out = pipe(prompts, latents=noise, guidance_scale=arguments.guidance, output_type="latent", **size)
                peaks[side] = max(peaks[side], peak(family.device) - held)
            latents[side] = out.images.float().cpu()
            if turn:
                seconds[side].append(watch.seconds)
    watch.remove()
    differences = {side: relative(one, latents[PUBLISHED]) for side, one in latents.items()}
    for side in EXACT:
        if not differences[side] <= arguments.tolerance:
            raise SystemExit(f"{side} differs from the published form by {differences[side]:.2g} at batch {batch}")
    return {
        side: {"seconds": statistics.median(taken), "difference": differences[side], "peak": peaks[side]}
        for side, taken in seconds.items()
    }


def start_peak(device: torch.device) -> int:
    """Bytes held now; the peak is counted from here. 0 off CUDA."""
    if device.type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def peak(device: torch.device) -> int:
    """Most bytes held since ``start_peak``; 0 off CUDA."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def weights_of(family: Family, networks: Sequence[nn.Module], modules: Sequence[Path]) -> dict[str, int]:
    """Bytes of weights that each kind of side holds."""

    def size(network: nn.Module) -> int:
        return sum(parameter.nbytes for parameter in network.parameters())

    base = size(family.denoiser)
    for number, path in enumerate(modules):
        load_adapter(family.denoiser, path, f"m{number}", prefix=family.lora_prefix)
    adapted = size(family.denoiser)
    for number, _ in enumerate(modules):
        remove_adapter(family.denoiser, f"m{number}")
    return {PUBLISHED: sum(map(size, networks)), "adapted": adapted, "base": base, "merged": base}


def report(
    arguments: argparse.Namespace,
    results: dict[int, dict[str, dict[str, float]]],
    held: dict[str, int],
    switching: dict[str, float],
) -> None:
    sides = next(iter(results.values()))
    rows = []
    for side in sides:
        weight = held.get(side, held["adapted"]) / held[PUBLISHED]
        cells: list[object] = [side, f"{weight:.2f}"]
        for found in results.values():
            ratio = found[side]["seconds"] / found[PUBLISHED]["seconds"]
            step = 1000 * found[side]["seconds"] / arguments.steps
            memory = f"{found[side]['peak'] / 2**20:.0f}" if found[side]["peak"] else "n/a"
            cells += [f"{ratio:.2f}", f"{step:.3g}", memory, f"{found[side]['difference']:.2g}"]
        rows.append(tuple(cells))
    columns = [f"{what}, batch {batch}" for batch in results for what in ("time", "ms a step", "MiB", "difference")]
    print_table(["side", "weights", *columns], rows, title="time and weights as shares of the published form's")
    print(
        f"switching adapters: {1000 * switching['seconds']:.2f} ms a step, {switching['layers']:.0f} layers with LoRAs"
    )


if __name__ == "__main__":
    main()
