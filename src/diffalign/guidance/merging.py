"""One checkpoint in place of guidance, to first order, with its error measured."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from diffalign.core import DiffalignError, atomic_path, torch_generator, versions, write_json
from diffalign.guidance.contrastive import contrastive
from diffalign.guidance.registry import module_hash
from diffalign.models import (
    Family,
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

PROMPTS = ("a photo of a cat", "a portrait of an old man", "a city street at night")

_Network = Callable[[str, Tensor, Tensor, Mapping[str, Tensor]], Tensor]  # of base, positive, negative or merged
_Predict = Callable[[str, Tensor, Tensor], Tensor]  # the same after text guidance; noisy and (B,) timesteps


@dataclass(frozen=True, kw_only=True)
class MergeReport:
    """How far a merged checkpoint is from the guidance that it replaces.

    Attributes:
        error: |merged - guided| / |guided - base|, over all probes: 0 is exact, 1 as wrong as no guidance at all.
        worst_error: the same at the timestep where it is largest.
        prediction_error: |merged - guided| / |guided|.
        module_effect: |D| / |base|, D the difference before the scale: merging is faithful while scale times this is
            small.
        by_timestep: timestep -> error.
        num_probes: predictions compared.
    """

    error: float
    worst_error: float
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
    num_timesteps: int = 6,
    guidance_scale: float = 7.5,
    max_error: float = 0.3,
    force: bool = False,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> MergeReport:
    """Write theta + w (theta_positive - theta_negative), or theta + w (theta_positive - theta) without a negative.

    f(theta + w d) = f(theta) + w J d + O(w^2 |d|^2), so that one network with two evaluations a step stands for
    guidance while w d is small. How small is measured: guided sampling takes a few steps from seeded noise, and at each
    state that it visits merged predictions are compared with guided ones, after text guidance, on which the error
    depends. A LoRA of LoRAs is exact, their ranks side by side with weights w and -w.

    The measurement takes 8 evaluations per prompt and step, 6 without a negative.

    Args:
        model: folder, hub id or embedded name of the base.
        out: new folder; ``merge.json`` in it records what was merged and the measured error.
        positive: LoRA, or folder of a fine-tuned denoiser.
        negative: the same; None merges PGD.
        scale: w, above 0.
        form: "lora", or "denoiser" for all weights, which fine-tuned denoisers need.
        prompts: of the probes.
        num_timesteps: steps of the sampling.
        guidance_scale: g of its text guidance; 1 is off.
        max_error: largest ``MergeReport.worst_error`` that is written.
        force: write whatever the error.
        seed: of the noise.
        device: where to compute.

    Returns:
        The measured error.

    Raises:
        DiffalignError: a module does not fit, ``out`` exists, or the worst error is above ``max_error``.

    Source:
        PGD 2026, arXiv 2602.18799, whose merge scripts are empty: the formula is inferred, the measurement ours.
    """
    _check(out, scale, form, prompts, num_timesteps, modules=[positive, negative])
    family = load_family(model, device=device)
    whole = is_denoiser(positive) or (negative is not None and is_denoiser(negative))
    make = _with_denoisers if whole else _with_adapters
    predict = _after_text(family, make(family, positive, negative, scale), prompts, guidance_scale)
    noise = _noise(family, len(prompts), seed)
    report = _measured(family, predict, noise, _timesteps(family, num_timesteps), scale, negative is not None)
    if not report.worst_error <= max_error and not force:
        raise DiffalignError(
            f"merged and guided predictions differ by up to {report.worst_error:.0%} of the guidance "
            f"({report.error:.0%} over all timesteps), expected at most {max_error:.0%}: lower the scale ({scale:g}), "
            "use attach(), or pass force (--force)"
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
            "probes": {
                "prompts": list(prompts),
                "seed": seed,
                "num_timesteps": num_timesteps,
                "guidance_scale": guidance_scale,
            },
            "max_error": max_error,
            "forced": not report.worst_error <= max_error,
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
    if not scale > 0:
        raise DiffalignError(f"expected a scale above 0, got {scale}: at 0 the merge is the base itself")
    if form not in ("lora", "denoiser"):
        raise DiffalignError(f"expected the form lora or denoiser, got {form!r}")
    if not prompts or num_timesteps < 1:
        raise DiffalignError(f"expected at least one prompt and one step, got {list(prompts)} and {num_timesteps}")
    if Path(out).exists():
        raise DiffalignError(f"{out} exists: give a new folder, or remove it first")
    for path in modules:
        if path is not None and not Path(path).exists():
            raise DiffalignError(f"expected a LoRA or the folder of a fine-tuned denoiser, found nothing at {path}")
        if path is not None and form == "lora" and is_denoiser(path):
            raise DiffalignError(
                f"{path} holds a whole denoiser, which no LoRA can: use form denoiser (--form denoiser)"
            )


def _with_adapters(family: Family, positive: str | Path, negative: str | Path | None, scale: float) -> _Network:
    """LoRAs on one network, which also gets the merged one."""
    weights = {"positive": scale}
    load_adapter(family.denoiser, positive, "positive", prefix=family.lora_prefix)
    if negative is not None:
        load_adapter(family.denoiser, negative, "negative", prefix=family.lora_prefix)
        weights["negative"] = -scale
    concatenate_adapters(family.denoiser, weights, "merged")

    def network(which: str, noisy: Tensor, timesteps: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        with using(family.denoiser, which if which != "base" else None):
            return family.predict(noisy, timesteps, condition)

    return network


def _with_denoisers(family: Family, positive: str | Path, negative: str | Path | None, scale: float) -> _Network:
    """Whole networks side by side; the family's own becomes the merged one."""
    networks = {"base": copy.deepcopy(family.denoiser), "positive": _tuned(family, positive)}
    networks["negative"] = _tuned(family, negative) if negative is not None else networks["base"]
    plus, minus = (networks[which].state_dict() for which in ("positive", "negative"))
    for name, value in family.denoiser.state_dict().items():
        if value.is_floating_point():
            value.copy_(value.float() + scale * (plus[name].float() - minus[name].float()))
    networks["merged"] = family.denoiser

    def network(which: str, noisy: Tensor, timesteps: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        return family.predict(noisy, timesteps, condition, denoiser=networks[which])

    return network


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


def _after_text(family: Family, network: _Network, prompts: Sequence[str], guidance_scale: float) -> _Predict:
    """Predictions, float32 on the CPU, with text guidance, which commutes with the formulas of PGD and cPGD."""
    branches = [family.encode_prompts([""] * len(prompts)), family.encode_prompts(prompts)]
    condition = {key: torch.cat([branch[key] for branch in branches]) for key in branches[0]}

    def predict(which: str, noisy: Tensor, timesteps: Tensor) -> Tensor:
        preds = network(which, torch.cat([noisy, noisy]), torch.cat([timesteps, timesteps]), condition)
        uncond, cond = preds.float().cpu().chunk(2)
        return uncond + guidance_scale * (cond - uncond)

    return predict


def _noise(family: Family, num_prompts: int, seed: int) -> Tensor:
    """(B, C, h, w) standard normal, of the network's own size."""
    config = family.denoiser.config  # type: ignore[union-attr]
    side = config.sample_size if isinstance(config.sample_size, int) else config.sample_size[0]  # type: ignore[union-attr,operator,index]
    shape = family.latent_shape(*[int(side) * family.vae_scale_factor] * 2)
    return torch.randn(num_prompts, *shape, generator=torch_generator("merge probes", seed))


def _timesteps(family: Family, count: int) -> Tensor:
    """(S,) evenly over the training levels, pure noise first."""
    num_levels = family.process.num_train_timesteps
    levels = family.process.timesteps_at(torch.arange(num_levels)).sort(descending=True).values
    return levels[torch.arange(count) * num_levels // count]


@torch.no_grad()
def _measured(
    family: Family, predict: _Predict, noisy: Tensor, timesteps: Tensor, scale: float, is_contrastive: bool
) -> MergeReport:
    """Merged against guided predictions along the way that guided sampling takes: DDIM, which is Euler for flows."""
    process, found = family.process, []
    for timestep, following in zip(timesteps, [*timesteps[1:], None], strict=True):
        now = timestep.expand(len(noisy))
        base, positive, merged = (predict(which, noisy, now) for which in ("base", "positive", "merged"))
        negative = predict("negative", noisy, now) if is_contrastive else base
        guided = contrastive(base, positive, negative, scale=scale)
        found.append((base, guided, merged, positive - negative))
        if following is not None:
            x0, noise = process.to_x0(guided, noisy, now), process.to_noise(guided, noisy, now)
            noisy = process.add_noise(x0, noise, following.expand(len(noisy)))
    base, guided, merged, difference = (torch.stack(part) for part in zip(*found, strict=True))  # (S, B, C, h, w)
    if not bool(difference.any()):
        raise DiffalignError("the modules do not change the predictions, so there is nothing to merge")
    if not bool((guided + merged).isfinite().all()):
        raise DiffalignError(f"guided or merged predictions are not finite: lower the scale ({scale:g})")
    by_timestep = [merge_error(*each) for each in zip(base, guided, merged, strict=True)]
    return MergeReport(
        error=merge_error(base, guided, merged),
        worst_error=max(by_timestep),
        prediction_error=_ratio(merged - guided, guided),
        module_effect=_ratio(difference, base),
        by_timestep={f"{timestep:g}": error for timestep, error in zip(timesteps.tolist(), by_timestep, strict=True)},
        num_probes=base.shape[0] * base.shape[1],
    )


def _ratio(difference: Tensor, size: Tensor) -> float:
    return round(float(difference.norm() / size.norm()), 6)
