"""The main job, start to end: photographs, pairs, two stages and their controls, guidance, measurements, report.

The folder gets ``pairs/``, a folder per training under ``train/`` and per model under ``samples/``, ``results.json``
and ``report.html``. Every part goes on where it stopped.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

from PIL import Image, ImageFilter

from diffalign.core import (
    Config,
    DiffalignError,
    RunFolder,
    atomic_path,
    dump_config,
    dump_yaml,
    get_console,
    numpy_generator,
    read_json,
    read_jsonl,
    setting,
    versions,
    warn,
    write_json,
    write_jsonl,
)
from diffalign.curate import CurateConfig, KeepConfig, SelectConfig, curate
from diffalign.data import Preferences, captions, draw_crop, encode_png, image_sha256
from diffalign.evaluate import measure_models
from diffalign.guidance import Contrastive, attach
from diffalign.models import EMBEDDED_MODELS, Family, find_index, load_adapter, load_family, remove_adapter, using
from diffalign.report import (
    KeyFigure,
    Page,
    alarms,
    audit_section,
    curves,
    difference_figure,
    funnel_section,
    headline,
    pair_gallery,
    provenance,
    results_table,
    sample_grid,
    scatter,
    strength_slider,
)
from diffalign.rewards import clip_features, judge_features, load_reward
from diffalign.sample import PromptRow, family_sampler, prompt_id, sample_images
from diffalign.train import LoraConfig, OptimizerConfig, TrainConfig, train

__all__ = ["DemoConfig", "curated_pairs", "evaluation_prompts", "run_demo", "sample_model", "trainings"]

PHOTOGRAPHS_NAME = "photographs"  # the embedded ones
EVALUATION = (0, 2, 4, 6)  # captions, by their number modulo 7; the others serve validation
MODELS = ("base", "sft", "dpo", "stage1", "stage2", "cpgd", "sharpened")
HELD_OUT_CROPS = 400


class DemoConfig(Config):
    """What the demo does; the defaults fit ten minutes on two cores."""

    base: str = setting("tiny-sd", "folder, hub id or embedded name of the model to align")
    photos: str = setting("photographs", "folder of photographs, or photographs: crops of the embedded ones")
    size: int = setting(32, "side of the images", unit="pixels", ge=8)
    num_photos: int = setting(384, "photographs to start from; 0 for all of a folder", ge=0)
    min_area: float = setting(
        0.5, "least share of a photograph that is damaged", gt=0, lt=1, source="docs/demo.md; curation's own: 0.15"
    )
    max_area: float = setting(0.9, "largest share", gt=0, lt=1, source="docs/demo.md; curation's own: 0.5")
    reward: str = setting("tiny-clip", "what scores both images of a pair")
    min_gap: float = setting(0.5, "score by which the photograph must lead", ge=0)
    num_pairs: int = setting(256, "the best so many pairs are trained on; 0 for all", unit="pairs", ge=0)
    rank: int = setting(8, "of the LoRAs", ge=1)
    batch_size: int = setting(16, "rows per optimiser step", unit="rows", ge=1)
    micro_batch_size: int = setting(0, "rows per forward pass; 0 for all of a step", unit="rows", ge=0)
    mixed_precision: Literal["no", "bf16", "fp16"] = setting("no", "what training computes in")
    gradient_checkpointing: bool = setting(False, "recompute activations at backward: less memory, slower")
    num_fit_steps: int = setting(200, "of Stage 1, of SFT and of the modules of guidance", unit="steps", ge=1)
    num_pair_steps: int = setting(60, "of Stage 2 and of DPO alone", unit="steps", ge=1)
    fit_learning_rate: float = setting(5e-4, "of what fits images", gt=0)
    pair_learning_rate: float = setting(5e-4, "of what compares pairs", gt=0)
    beta: float = setting(5000.0, "of Diffusion-DPO", gt=0)
    margin: float = setting(0.01, "of the gate of Stage 1", ge=0, source="docs/findings/dro.md; RealAlign 0.001")
    preference_scale: float = setting(1.0, "of contrastive guidance, where it is compared with the others", ge=0)
    shown_scales: tuple[float, ...] = setting((0.0, 0.5, 1.0, 2.0, 4.0), "strengths shown as small grids")
    num_prompts: int = setting(64, "prompts that models are compared on", ge=10)
    num_seeds: int = setting(2, "images per prompt", ge=2)
    num_steps: int = setting(12, "of the solver", unit="steps", ge=1)
    guidance_scale: float = setting(2.0, "of text guidance", ge=1)
    sample_batch: int = setting(32, "images at a time", ge=1)
    seed: int = setting(0, "of everything", ge=0)


def trainings(config: DemoConfig, pairs: Path, folder: Path) -> dict[str, TrainConfig]:
    """Every training by name, in order: those that start from another come after it."""
    fit = TrainConfig(
        model=config.base,
        data=str(pairs),
        objective="sft",
        lora=LoraConfig(rank=config.rank, alpha=float(config.rank)),
        optimizer=OptimizerConfig(learning_rate=config.fit_learning_rate, warmup_steps=20),
        resolution=config.size,
        prompt_drop=0.1,
        num_steps=config.num_fit_steps,
        batch_size=config.batch_size,
        micro_batch_size=config.micro_batch_size or config.batch_size,
        mixed_precision=config.mixed_precision,
        gradient_checkpointing=config.gradient_checkpointing,
        checkpoint_every=50,
        seed=config.seed,
    )
    compare = fit.replace(
        objective="diffusion_dpo",
        settings={"beta": config.beta},
        optimizer=OptimizerConfig(learning_rate=config.pair_learning_rate, warmup_steps=10),
        prompt_drop=0.0,
        num_steps=config.num_pair_steps,
        seed=config.seed + 1,
    )
    return {
        "sft": fit,
        "negative": fit.replace(objective="sft_on_rejected"),
        "stage1": fit.replace(objective="gated_sft", settings={"margin": config.margin}),
        "stage2": compare.replace(start=str(folder / "train" / "stage1" / "policy")),
        "dpo": compare,
    }


def run_demo(config: DemoConfig, folder: str | Path, *, device: str = "cpu") -> dict[str, Any]:
    """Run the demo, or go on with it where it stopped.

    Args:
        config: the settings.
        folder: of the run.
        device: where curation, sampling and measuring run; training takes a GPU wherever there is one.

    Returns:
        What ``results.json`` holds: see ``measure_models``, and ``seconds``, ``versions``, ``funnel``.

    Raises:
        DiffalignError: a setting does not fit, the folder belongs to another run, or too few pairs are left.
    """
    folder = Path(folder)
    if config.photos != PHOTOGRAPHS_NAME and not Path(config.photos).is_dir():
        raise DiffalignError(f"expected a folder of photographs, there is none at {config.photos}")
    if config.photos != PHOTOGRAPHS_NAME and config.reward in EMBEDDED_MODELS:
        warn(
            f"{config.reward} knows the embedded photographs alone, and chooses the pairs of yours nearly by chance: "
            "set reward to one that knows the world, such as reward=pickscore with min_gap=0.52"
        )
    find_index(config.base)  # says what is wrong with it, before the run's folder is made
    with RunFolder.open(folder, config, kind="demo"):
        clock = _Clock(folder / "seconds.json")
        with clock("curate"):
            pairs = curated_pairs(config, folder, device=device)
        with clock("train"):
            for name, stage in trainings(config, pairs, folder).items():
                get_console().print(f"training {name}: {stage.objective}, {stage.num_steps} steps", markup=False)
                train(stage, folder / "train" / name, cache=folder / "latents")
        with clock("sample"):
            family = load_family(config.base, device=device)
            prompts = evaluation_prompts(config, pairs)
            _sample_all(config, family, prompts, folder)
        with clock("measure"):
            results = _measure(config, folder, device)
        results |= {
            "funnel": read_json(folder / "curation" / "funnel.json"),
            "parts": clock.parts(),
            "versions": versions(),
        }
        results["seconds"] = sum(results["parts"].values())
        write_json(folder / "results.json", results)
        write_report(config, results, folder)
    return results


def write_report(config: DemoConfig, results: dict[str, Any], folder: Path) -> Path:
    """One page of what was done: ``report.html`` in the run's folder."""
    logs = {name: folder / "train" / name / "metrics.jsonl" for name in ("sft", "stage1", "stage2", "dpo", "negative")}
    scales = sorted(config.shown_scales)
    page = Page("Aligned with real photographs", f"{config.base}, {len(Preferences(folder / 'pairs'))} pairs")
    page.add(headline(_told(config, results), _figures(results)))
    page.add(pair_gallery(Preferences(folder / "pairs")))
    page.add(funnel_section(read_json(folder / "curation" / "funnel.json")))
    page.add(audit_section(read_json(folder / "curation" / "audit.json")))
    page.add(sample_grid({name: folder / "samples" / name for name in MODELS}))
    page.add(results_table(results))
    if all("realism" in measured for measured in results["models"].values()):
        page.add(scatter(results))
    strengths = [(scale, folder / "strengths" / f"{scale:g}") for scale in scales]
    page.add(strength_slider(strengths, [results["strengths"][f"{scale:g}"] for scale in scales]))
    page.add(curves(logs))
    page.add(alarms(logs))
    page.add(provenance(dump_yaml(dump_config(config)), results["versions"]))
    page.write(folder / "report.html")
    return folder / "report.html"


def _told(config: DemoConfig, results: dict[str, Any]) -> list[str]:
    """What the first screen says, whichever way the numbers fall."""
    told = [
        f"{config.base} was aligned with {results['funnel']['passed']['keep']} real photographs against copies of "
        "themselves whose salient part it had drawn anew."
    ]
    for metric, sign in (("realism", 1), ("kid", -1)):
        for baseline in ("base", "sft"):
            row = _difference(results, "stage2", baseline, metric)
            if row is not None:
                low, high = sorted((sign * row["low"], sign * row["high"]))
                verdict = "better than" if low > 0 else "worse than" if high < 0 else "not told apart from"
                told.append(f"Under {metric}, Stage 1 + 2 is {verdict} {baseline} (95 % interval of the difference).")
    if not any("kid" in measured for measured in results["models"].values()):
        judges = [metric for metric, role in results["roles"].items() if role == "held-out" and metric != "diversity"]
        told.append(
            "No photographs were held out, so there is no distance to real images here. Judged by "
            f"{', '.join(judges) or 'no held-out reward, since the weights of none are on this machine'}."
        )
    row = _difference(results, "sharpened", "base", "realism")
    if row is not None and row["low"] > 0:
        told.append("Sharpened images of the base score higher in realism too: by itself it carries no claim.")
    return told


def _figures(results: dict[str, Any]) -> list[KeyFigure]:
    asked = (("base", "realism"), ("base", "kid"), ("sft", "realism"), ("sft", "kid"))
    rows = [_difference(results, "stage2", baseline, metric) for baseline, metric in asked]
    return [difference_figure(row) for row in rows if row is not None]


def _difference(results: dict[str, Any], model: str, baseline: str, metric: str) -> dict[str, Any] | None:
    wanted = (model, baseline, metric)
    found = [row for row in results["differences"] if (row["model"], row["baseline"], row["metric"]) == wanted]
    return found[0] if found else None


def evaluation_prompts(config: DemoConfig, pairs: Path) -> list[PromptRow]:
    """What models are compared on: four in seven of the embedded photographs' captions, since the rest serves
    validation; for photographs of one's own the pairs' prompts."""
    if config.photos == PHOTOGRAPHS_NAME:
        texts = [text for index, text in enumerate(captions()) if index % 7 in EVALUATION]
    else:
        texts = list(dict.fromkeys(Preferences(pairs).prompts()))
    return [PromptRow(id=prompt_id(text), prompt=text) for text in texts[: config.num_prompts]]


def curated_pairs(config: DemoConfig, folder: Path, *, device: str = "cpu") -> Path:
    """Make the pairs in ``pairs/`` of the folder, unless they are there.

    Raises:
        DiffalignError: fewer than a batch of them are left.
    """
    curate(
        CurateConfig(
            model=config.base,
            photos=config.photos,
            count=config.num_photos,
            size=config.size,
            min_area=config.min_area,
            max_area=config.max_area,
            select=SelectConfig(min_contrast=0.0, max_likeness=-1),  # crops of few photographs are alike
            degrade={
                "name": "inpaint",
                "num_steps": config.num_steps,
                "guidance_scale": max(config.guidance_scale, 2.0),
            },
            rewards=(config.reward,),
            keep=KeepConfig(min_gap=config.min_gap, keep=config.num_pairs, rank_by="gap"),
            batch_size=config.sample_batch,
            shard_size=config.sample_batch,
            seed=config.seed,
        ),
        folder / "curation",
        device=device,
    )
    if not (folder / "pairs").exists():
        with atomic_path(folder / "pairs") as temporary:
            shutil.copytree(folder / "curation" / "pairs", temporary)
    found = len(Preferences(folder / "pairs"))
    if found < config.batch_size:
        raise DiffalignError(
            f"{found} pairs are left after curation, fewer than a batch of {config.batch_size}: give more photographs, "
            "or lower min_gap"
        )
    return folder / "pairs"


def _sample_all(config: DemoConfig, family: Family, prompts: list[PromptRow], folder: Path) -> None:
    """The images of every model on the same noise, and small grids along the strength of guidance."""
    weights = {name: folder / "train" / name / "policy" for name in ("sft", "negative", "dpo", "stage1", "stage2")}
    for name in ("base", "sft", "dpo", "stage1", "stage2"):
        sample_model(config, family, prompts, folder / "samples" / name, weights.get(name))
    few = prompts[:: max(1, len(prompts) // 8)][:8]
    for scale in dict.fromkeys((config.preference_scale, *config.shown_scales)):
        guide = Contrastive(positive=weights["sft"], negative=weights["negative"], scale=scale)
        with attach(family.pipeline(), guide):
            said = f"cpgd {scale:g}"
            if scale == config.preference_scale:
                _sample(config, family, prompts, folder / "samples" / "cpgd", adapter=said)
            if scale in config.shown_scales:
                _sample(config, family, few, folder / "strengths" / f"{scale:g}", adapter=said)
    _sharpen(folder / "samples" / "base", folder / "samples" / "sharpened")


def sample_model(
    config: DemoConfig, family: Family, prompts: list[PromptRow], folder: Path, weights: Path | None
) -> None:
    """Sample the base with a LoRA, or alone."""
    if weights is None:
        _sample(config, family, prompts, folder, adapter="")
        return
    load_adapter(family.denoiser, weights, "shown", prefix=family.lora_prefix)
    try:
        with using(family.denoiser, "shown"):
            _sample(config, family, prompts, folder, adapter=weights.parent.name)
    finally:
        remove_adapter(family.denoiser, "shown")


def _sample(config: DemoConfig, family: Family, prompts: list[PromptRow], folder: Path, *, adapter: str) -> None:
    get_console().print(f"sampling {adapter or 'base'}", markup=False)
    sampler = family_sampler(
        family,
        num_steps=config.num_steps,
        guidance_scale=config.guidance_scale,
        height=config.size,
        width=config.size,
        predict=family.predict if adapter else None,
        adapter=adapter,
    )
    sample_images(sampler, prompts, folder, num_seeds=config.num_seeds, batch_size=config.sample_batch)


def _sharpen(source: Path, target: Path) -> None:
    """The control: the base's images with their edges raised. A metric that prefers them carries no claim."""
    if (target / "manifest.jsonl").exists():
        return
    rows = []
    for row in read_jsonl(source / "manifest.jsonl"):
        image = Image.open(source / row["file"]).filter(ImageFilter.UnsharpMask(radius=1, percent=150, threshold=0))
        with atomic_path(target / row["file"]) as temporary:
            temporary.write_bytes(encode_png(image))
        rows.append(row | {"sha256": image_sha256(image), "adapter": "sharpened"})
    write_jsonl(target / "manifest.jsonl", rows)


def _measure(config: DemoConfig, folder: Path, device: str) -> dict[str, Any]:
    tiny = config.base in EMBEDDED_MODELS and config.photos == PHOTOGRAPHS_NAME
    metrics = {"detail": "laplacian_variance", "choice": config.reward}
    if tiny:
        metrics |= {"realism": "tiny-judge-realism", "subject_accuracy": "tiny-judge-subject"}
        features: Callable[..., Any] = partial(judge_features, device=device)
        generator = numpy_generator("held-out crops of the demo", config.seed)
        crops = [draw_crop("held_out", generator, size=config.size).image for _ in range(HELD_OUT_CROPS)]
        real = features(crops)
    else:
        metrics |= _present(config.reward)
        features, real = partial(clip_features, reward=config.reward, device=device), None
    measure = partial(
        measure_models,
        metrics=metrics,
        features=features,
        in_training=[config.reward],
        held_out=[reward for name, reward in metrics.items() if name not in ("choice", "detail")],
        device=device,
    )
    results = measure({name: folder / "samples" / name for name in MODELS}, real=real, baselines=("base", "sft"))
    grids = {f"{scale:g}": folder / "strengths" / f"{scale:g}" for scale in config.shown_scales}
    return {**results, "strengths": measure(grids, real=None, baselines=())["models"]}


def _present(chooser: str) -> dict[str, str]:
    """Published rewards whose weights are on this machine, besides the one that chose the pairs."""
    found = {}
    for name in ("pickscore", "hpsv2.1", "image_reward", "aesthetic_v2", "clip_score"):
        if name == chooser:
            continue
        try:
            load_reward(name)
        except DiffalignError:
            continue
        found[name] = name
    return found


class _Clock:
    """Seconds of each part, over all the runs that it took."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seconds: dict[str, float] = read_json(path) if path.exists() else {}

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self._seconds[part] = self._seconds.get(part, 0.0) + time.monotonic() - began
            write_json(self._path, self._seconds)

    def parts(self) -> dict[str, float]:
        """Seconds by part."""
        return dict(self._seconds)
