"""A sampling run as settings: which model, adapter and guide, which prompts, how it is sampled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from diffalign.core import Config, DiffalignError, setting
from diffalign.guidance import module_hash
from diffalign.models import (
    Family,
    is_denoiser,
    load_adapter,
    load_denoiser,
    load_family,
    missing_weights,
    using,
)
from diffalign.sample.guides import GuideConfig, checked_guide, guide_told, guided
from diffalign.sample.image_samplers import ImageSampler, family_sampler
from diffalign.sample.images import sample_images
from diffalign.sample.prompts import PromptRow, read_prompts
from diffalign.sample.sampler import Predict, Solver

__all__ = [
    "LoadedModel",
    "SampleConfig",
    "adapter_identity",
    "load_model",
    "load_sampler",
    "make_sampler",
    "run_sample",
    "wanted_prompts",
]

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_ADAPTER = "sampled"


class SampleConfig(Config):
    """Images of a model, with an adapter and a guide or without."""

    model: str = setting(..., "folder, hub id or embedded name of the model")
    adapter: str = setting("", "LoRA, or folder of a fine-tuned denoiser; empty for the model alone")
    adapter_scale: float = setting(1.0, "multiplies a LoRA's update; 1 is as trained, 0 is off")
    guide: GuideConfig | None = setting(None, "what sampling follows besides the model; none for the model alone")
    prompts: str = setting(..., "file of prompts (.txt, .jsonl, .tsv, .csv) or a named list, such as photographs")
    limit: int = setting(0, "use the first so many prompts; 0 for all", unit="prompts", ge=0)
    num_seeds: int = setting(1, "images per prompt", unit="images", ge=1)
    num_steps: int = setting(25, "of the solver", unit="steps", ge=1)
    solver: Solver | None = setting(None, "dpm++ or ddim, for flows euler; none for the first that fits the model")
    guidance_scale: float = setting(7.5, "of text guidance; 1 is off", ge=0, source="diffusers, SD 1.x")
    negative_prompt: str = setting("", "of the unconditional branch")
    height: int = setting(0, "of the images; 0 for the model's own", unit="pixels", ge=0)
    width: int = setting(0, "of the images; 0 for the model's own", unit="pixels", ge=0)
    batch_size: int = setting(4, "images at a time", unit="images", ge=1)
    precision: Literal["fp32", "bf16", "fp16"] = setting("fp32", "of the denoiser and the text encoders")


def run_sample(config: SampleConfig, folder: str | Path, *, device: str | torch.device = "cpu") -> Path:
    """Make the images that the settings describe; see ``sample_images``.

    Raises:
        DiffalignError: a setting does not fit, or the folder belongs to another run.

    Example:
        >>> import tempfile
        >>> config = SampleConfig(model="tiny-sd", prompts="photographs", limit=2, num_steps=4, guidance_scale=4.0)
        >>> run_sample(config, tempfile.mkdtemp()).name
        'manifest.jsonl'
    """
    prompts = wanted_prompts(config)
    with load_sampler(config, device=device) as sampler:
        return sample_images(
            sampler, prompts, folder, num_seeds=config.num_seeds, batch_size=config.batch_size, config=config
        )


def wanted_prompts(config: SampleConfig) -> list[PromptRow]:
    """The prompts that the settings name."""
    prompts = read_prompts(config.prompts)
    return prompts[: config.limit] if config.limit else prompts


@contextmanager
def load_sampler(config: SampleConfig, *, device: str | torch.device = "cpu") -> Iterator[ImageSampler]:
    """Load the model with its adapter; inside the block the guide is on.

    A LoRA stays beside the weights, as it was trained, and is not rounded into them.

    Raises:
        DiffalignError: the model, the adapter, the guide, the solver or the size does not fit.
    """
    with make_sampler(load_model(config, device=device), config) as sampler:
        yield sampler


@dataclass(frozen=True)
class LoadedModel:
    """A model with its adapter, for one sampler after the other.

    Attributes:
        family: the model.
        adapter: see ``adapter_identity``.
        predict: what calls the denoiser with the adapter, where that is not the denoiser alone.
    """

    family: Family
    adapter: str
    predict: Predict | None


def load_model(config: SampleConfig, *, device: str | torch.device = "cpu") -> LoadedModel:
    """Load the model and its adapter; mistakes in the adapter or the guide are told before.

    Raises:
        DiffalignError: the model, the adapter or the guide does not fit.
    """
    adapter = adapter_identity(config)
    if config.guide is not None:
        checked_guide(config.guide, config.guidance_scale)
        guide_told(config.guide)
    family = load_family(config.model, dtype=_DTYPES[config.precision], device=device)
    return LoadedModel(family, adapter, _load_adapter(family, config))


@contextmanager
def make_sampler(loaded: LoadedModel, config: SampleConfig) -> Iterator[ImageSampler]:
    """The sampler of these settings, and inside the block its guide on the model.

    Args:
        loaded: what ``load_model`` gave for settings of the same model, adapter and precision.
        config: the settings.

    Raises:
        DiffalignError: the guide, the solver or the size does not fit.
    """
    with guided(loaded.family, config.guide, config.guidance_scale):
        yield family_sampler(
            loaded.family,
            num_steps=config.num_steps,
            solver=config.solver,
            guidance_scale=config.guidance_scale,
            negative_prompt=config.negative_prompt,
            height=config.height,
            width=config.width,
            predict=loaded.predict,
            adapter=loaded.adapter,
            guide=guide_told(config.guide) if config.guide is not None else None,
        )


def adapter_identity(config: SampleConfig) -> str:
    """A hash of the adapter's files, and its scale where that is not 1; empty without an adapter.

    Raises:
        DiffalignError: there is no such adapter, or a denoiser has a scale.
    """
    if not config.adapter:
        if config.adapter_scale != 1:
            raise DiffalignError(f"adapter_scale {config.adapter_scale} needs an adapter")
        return ""
    path = Path(config.adapter)
    identity = module_hash(path)
    if not identity:
        raise DiffalignError(
            f"expected a LoRA or a denoiser's folder in safetensors as adapter: {missing_weights(path)}"
        )
    if config.adapter_scale != 1 and is_denoiser(path):
        raise DiffalignError(f"{path} holds a whole denoiser, which has no adapter_scale; leave it at 1")
    return identity if config.adapter_scale == 1 else f"{identity} x {config.adapter_scale}"


def _load_adapter(family: Family, config: SampleConfig) -> Predict | None:
    """Put the adapter on the family; what calls the denoiser with it, where that is not the denoiser alone."""
    if not config.adapter:
        return None
    if is_denoiser(Path(config.adapter)):
        load_denoiser(family.denoiser, config.adapter)
        return None
    load_adapter(family.denoiser, config.adapter, _ADAPTER, prefix=family.lora_prefix)

    def predict(noisy: Tensor, timesteps: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        with using(family.denoiser, {_ADAPTER: config.adapter_scale}):
            return family.predict(noisy, timesteps, condition)

    return predict
