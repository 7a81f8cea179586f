"""One checkpoint in place of guidance, to first order, with its error measured."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from diffalign.core import DiffalignError, atomic_path, torch_generator, versions, write_json
from diffalign.guidance.contrastive import contrastive
from diffalign.guidance.pgd import pgd
from diffalign.guidance.registry import module_hash
from diffalign.models import (
    Family,
    RectifiedFlow,
    adapter_names,
    concatenate_adapters,
    fuse_adapter,
    is_denoiser,
    load_adapter,
    load_denoiser,
    load_family,
    remove_adapter,
    save_adapter,
    using,
)

__all__ = ["MergeReport", "merge", "merge_error"]

PROMPTS = ("a photo of a cat", "a portrait of an old man", "a city street at night", "")

_Predict = Callable[[str], Tensor]  # of base, positive, negative or merged -> predictions on all probes


@dataclass(frozen=True, kw_only=True)
class MergeReport:
    """How far a merged checkpoint is from the guidance that it replaces.

    Attributes:
        error: |merged - guided| / |guided - base|, over all probes: 0 is exact, 1 as wrong as no guidance at all.
        prediction_error: |merged - guided| / |guided|.
        module_effect: |D| / |base|, D the difference before the scale: merging is faithful while scale times this is
            small.
        by_timestep: timestep -> error.
        num_probes: predictions compared.
    """

    error: float
    prediction_error: float
    module_effect: float
    by_timestep: Mapping[str, float]
    num_probes: int


def merge_error(base: Tensor, guided: Tensor, merged: Tensor) -> float:
    """|merged - guided| / |guided - base| in the 2-norm, the share of the guidance that merging gets wrong.

    Example:
        >>> merge_error(torch.zeros(2), torch.tensor([3.0, 4.0]), torch.tensor([3.0, 3.0]))
        0.2
    """
    return _ratio(merged - guided, guided - base)


def merge(
    model: str | Path,
    out: str | Path,
    *,
    positive: str | Path,
    negative: str | Path | None = None,
    scale: float,
    form: Literal["lora", "denoiser"] = "lora",
    prompts: Sequence[str] = PROMPTS,
    num_timesteps: int = 4,
    max_error: float = 0.3,
    force: bool = False,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> MergeReport:
    """Write theta + w (theta_positive - theta_negative), or theta + w (theta_positive - theta) without a negative.

    f(theta + w d) = f(theta) + w J d + O(w^2 |d|^2), so that one network with two evaluations a step stands for
    guidance while w d is small. How small is measured: predictions on seeded noise at several timesteps, merged against
    guided. A LoRA of LoRAs is exact, their ranks side by side with weights w and -w.

    Args:
        model: folder, hub id or embedded name of the base.
        out: new folder; ``merge.json`` in it records what was merged and the measured error.
        positive: LoRA, or folder of a fine-tuned denoiser.
        negative: the same; None merges PGD.
        scale: w, above 0.
        form: "lora", or "denoiser" for all weights, which fine-tuned denoisers need.
        prompts: of the probes.
        num_timesteps: of the probes, evenly over all noise levels.
        max_error: largest ``MergeReport.error`` that is written.
        force: write whatever the error.
        seed: of the probes' noise.
        device: where to compute.

    Returns:
        The measured error.

    Raises:
        DiffalignError: a module does not fit, ``out`` exists, or the error is above ``max_error``.

    Source:
        PGD 2026, arXiv 2602.18799, whose merge scripts are empty: the formula is inferred, the measurement ours.
    """
    _check(out, scale, form, prompts, num_timesteps, modules=[positive, negative])
    family = load_family(model, device=device)
    whole = is_denoiser(positive) or (negative is not None and is_denoiser(negative))
    make = _with_denoisers if whole else _with_adapters
    probes = _probes(family, prompts, num_timesteps, seed)
    predict = make(family, positive, negative, scale, lambda network: _predictions(family, network, probes))
    report = _report(predict, scale, negative is not None, [str(timestep) for _, timestep, _ in probes])
    if not report.error <= max_error and not force:
        raise DiffalignError(
            f"merged and guided predictions differ by {report.error:.0%} of the guidance, expected at most "
            f"{max_error:.0%}: lower the scale ({scale:g}), use attach(), or pass force (--force)"
        )
    paths = {"positive": positive, "negative": negative}
    with atomic_path(Path(out)) as temporary:
        temporary.mkdir()
        if form == "lora":
            save_adapter(family.denoiser, "merged", temporary, prefix=family.lora_prefix)
        else:
            _merged_network(family).save_pretrained(temporary)
        record = {
            "model": str(model),
            "revision": family.revision,
            "scale": scale,
            "form": form,
            "modules": {name: {"path": str(path), "hash": module_hash(path)} for name, path in paths.items() if path},
            "probes": {"prompts": list(prompts), "seed": seed, "num_timesteps": num_timesteps},
            "max_error": max_error,
            "forced": not report.error <= max_error,
            "measured": asdict(report),
            "versions": versions(),
        }
        write_json(temporary / "merge.json", record)
    return report


def _check(
    out: str | Path,
    scale: float,
    form: str,
    prompts: Sequence[str],
    num_timesteps: int,
    *,
    modules: Sequence[str | Path | None],
) -> None:
    if not scale > 0 or form not in ("lora", "denoiser") or not prompts or num_timesteps < 1:
        raise DiffalignError(
            "expected a scale above 0, the form lora or denoiser, at least one prompt and one timestep, got "
            f"{scale}, {form!r}, {list(prompts)}, {num_timesteps}"
        )
    if Path(out).exists():
        raise DiffalignError(f"{out} exists: give a new folder, or remove it first")
    for path in modules:
        if path is not None and not Path(path).exists():
            raise DiffalignError(f"expected a LoRA or the folder of a fine-tuned denoiser, found nothing at {path}")
        if path is not None and form == "lora" and is_denoiser(path):
            raise DiffalignError(
                f"{path} holds a whole denoiser, which no LoRA can: use form denoiser (--form denoiser)"
            )


def _with_adapters(
    family: Family,
    positive: str | Path,
    negative: str | Path | None,
    scale: float,
    predictions: Callable[[nn.Module], Tensor],
) -> _Predict:
    """Predictions with LoRAs on one network, which also gets the merged one."""
    weights = {"positive": scale}
    load_adapter(family.denoiser, positive, "positive", prefix=family.lora_prefix)
    if negative is not None:
        load_adapter(family.denoiser, negative, "negative", prefix=family.lora_prefix)
        weights["negative"] = -scale
    concatenate_adapters(family.denoiser, weights, "merged")

    def predict(which: str) -> Tensor:
        with using(family.denoiser, which) if which != "base" else nullcontext():
            return predictions(family.denoiser)

    return predict


def _with_denoisers(
    family: Family,
    positive: str | Path,
    negative: str | Path | None,
    scale: float,
    predictions: Callable[[nn.Module], Tensor],
) -> _Predict:
    """Predictions with whole networks, one at a time; the family's own becomes the merged one."""
    base = {name: value.clone() for name, value in family.denoiser.state_dict().items()}
    found = {"base": predictions(family.denoiser)}
    merged = {name: value.float() if value.is_floating_point() else value for name, value in base.items()}
    for which, path, weight in (("positive", positive, scale), ("negative", negative, -scale)):
        if path is None:
            continue
        network = _tuned(family, path)
        found[which] = predictions(network)
        for name, value in network.state_dict().items():
            if value.is_floating_point():
                merged[name] = merged[name] + weight * (value.float() - base[name].float())
    family.denoiser.load_state_dict({name: value.to(base[name].dtype) for name, value in merged.items()})
    found["merged"] = predictions(family.denoiser)
    return found.__getitem__


def _tuned(family: Family, path: str | Path) -> nn.Module:
    """A copy of the network with a module's weights."""
    network = copy.deepcopy(family.denoiser)
    if is_denoiser(path):
        load_denoiser(network, path)
    else:
        load_adapter(network, path, "module", prefix=family.lora_prefix)
        fuse_adapter(network, "module")
    return network


def _merged_network(family: Family) -> Any:
    """The family's network with the merged weights in it, and without the LoRAs that they came from."""
    for name in adapter_names(family.denoiser):
        if name == "merged":
            fuse_adapter(family.denoiser, name)
        else:
            remove_adapter(family.denoiser, name)
    return family.denoiser


def _probes(
    family: Family, prompts: Sequence[str], num_timesteps: int, seed: int
) -> list[tuple[Tensor, float, dict[str, Tensor]]]:
    """Standard normal latents, a timestep, and the prompts' condition, once per timestep."""
    config = family.denoiser.config  # type: ignore[union-attr]
    side = config.sample_size if isinstance(config.sample_size, int) else config.sample_size[0]  # type: ignore[union-attr,operator,index]
    shape = family.latent_shape(*[int(side) * family.vae_scale_factor] * 2)
    last = int(family.pipeline().scheduler.config.num_train_timesteps)
    condition = family.encode_prompts(prompts)
    probes = []
    for number in range(num_timesteps):
        timestep = last * (number + 0.5) / num_timesteps
        if not isinstance(family.process, RectifiedFlow):
            timestep = int(timestep)
        generator = torch_generator("merge probes", seed, number)
        probes.append((torch.randn(len(prompts), *shape, generator=generator), timestep, condition))
    return probes


@torch.no_grad()
def _predictions(
    family: Family, network: nn.Module, probes: Sequence[tuple[Tensor, float, dict[str, Tensor]]]
) -> Tensor:
    """(timesteps, prompts, C, h, w) float32."""
    preds = []
    for noisy, timestep, condition in probes:
        timesteps = torch.full((len(noisy),), timestep)
        preds.append(family.predict(noisy, timesteps, condition, denoiser=network).float().cpu())
    return torch.stack(preds)


def _report(predict: _Predict, scale: float, is_contrastive: bool, timesteps: Sequence[str]) -> MergeReport:
    base, positive, merged = predict("base"), predict("positive"), predict("merged")
    if is_contrastive:
        negative = predict("negative")
        guided, difference = contrastive(base, positive, negative, scale=scale), positive - negative
    else:
        guided, difference = pgd(base, positive, scale=scale), positive - base
    if not bool(difference.any()):
        raise DiffalignError("the modules do not change the predictions, so there is nothing to merge")
    rows = zip(timesteps, base, guided, merged, strict=True)
    return MergeReport(
        error=merge_error(base, guided, merged),
        prediction_error=_ratio(merged - guided, guided),
        module_effect=_ratio(difference, base),
        by_timestep={timestep: merge_error(*each) for timestep, *each in rows},
        num_probes=base.shape[0] * base.shape[1],
    )


def _ratio(difference: Tensor, size: Tensor) -> float:
    return round(float(difference.norm() / size.norm()), 6)
