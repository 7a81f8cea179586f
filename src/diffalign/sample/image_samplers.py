"""Prompts and noise to images: a family under any guide, or any diffusers pipeline as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch import Tensor

from diffalign.core import DiffalignError, torch_generator
from diffalign.data import from_tensor
from diffalign.models import Family
from diffalign.sample.sampler import Predict, Solver, fitting_solvers, make_scheduler, sample_latents

__all__ = ["ImageSampler", "family_sampler", "image_size", "pipeline_sampler"]


class ImageSampler(Protocol):
    """What turns prompts and noise into images, each from its own prompt and noise alone."""

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of the noise of one image."""
        ...

    @property
    def identity(self) -> Mapping[str, Any]:
        """All that decides the images besides prompts and noise, as JSON values.

        At least model, adapter, sampler, negative_prompt, dtype (texts), num_steps, guidance_scale, and height and
        width in pixels; with a guide attached, guide (its identity).
        """
        ...

    def __call__(self, prompts: Sequence[str], noise: Tensor) -> list[Image.Image]:
        """B "RGB" images of B prompts from standard normal noise (B, C, h, w) on the CPU.

        Raises:
            FloatingPointError: a number on the way is not finite.
        """
        ...


@dataclass(frozen=True)
class _Sampler:
    latent_shape: tuple[int, int, int]
    identity: Mapping[str, Any]
    draw: Callable[[Sequence[str], Tensor], list[Image.Image]]

    def __call__(self, prompts: Sequence[str], noise: Tensor) -> list[Image.Image]:
        if noise.shape != (len(prompts), *self.latent_shape):
            expected = (len(prompts), *self.latent_shape)
            raise ValueError(f"expected noise {expected} for {len(prompts)} prompts, got {tuple(noise.shape)}")
        return self.draw(prompts, noise)


def family_sampler(
    family: Family,
    *,
    num_steps: int,
    solver: Solver | None = None,
    guidance_scale: float = 1.0,
    negative_prompt: str = "",
    height: int = 0,
    width: int = 0,
    predict: Predict | None = None,
    adapter: str = "",
    guide: Mapping[str, Any] | None = None,
) -> ImageSampler:
    """Images through ``sample_latents``.

    Args:
        family: a loaded model.
        num_steps: solver steps.
        solver: see ``make_scheduler``.
        guidance_scale: of text guidance; 1 is off.
        negative_prompt: of the unconditional branch.
        height: of the images, pixels; 0 for the model's own.
        width: of the images, pixels; 0 for the model's own.
        predict: any guide, called as (noisy, timesteps, condition) instead of ``family.predict``.
        adapter: what identifies the adapters or the guide, such as a hash; needed with ``predict``.
        guide: what identifies a guide that is attached while the sampler is called, as JSON values.

    Raises:
        DiffalignError: the solver or the size does not fit the model.
        ValueError: ``predict`` without ``adapter``.

    Example:
        >>> from diffalign.models import load_family
        >>> from diffalign.sample import initial_noise
        >>> sampler = family_sampler(load_family("tiny-sd"), num_steps=12, guidance_scale=4.0)
        >>> noise = initial_noise(sampler.latent_shape, "a photo of grass", 0)
        >>> sampler(["a photo of grass"], noise[None])[0].size
        (32, 32)
    """
    if predict is not None and not adapter:
        raise ValueError("expected adapter to say what predict does, so that its images are not taken for the model's")
    make_scheduler(family, solver)
    height, width = image_size(family, height, width)
    identity = {
        "model": family.revision,
        "adapter": adapter,
        "sampler": solver or fitting_solvers(family)[0],
        "num_steps": num_steps,
        "guidance_scale": float(guidance_scale),
        "negative_prompt": negative_prompt,
        "height": height,
        "width": width,
        "dtype": str(family.dtype),
    }
    if guide is not None:
        identity["guide"] = dict(guide)

    @torch.no_grad()
    def draw(prompts: Sequence[str], noise: Tensor) -> list[Image.Image]:
        negative = None
        if guidance_scale != 1:
            one = family.encode_prompts([negative_prompt])
            negative = {key: value.expand(len(prompts), *value.shape[1:]) for key, value in one.items()}
        latents = sample_latents(
            family,
            family.encode_prompts(prompts),
            noise.to(family.device),
            num_steps=num_steps,
            solver=solver,
            guidance_scale=guidance_scale,
            negative_condition=negative,
            predict=predict,
        ).latents
        pixels = family.decode(latents)
        _check_finite(pixels)
        return [from_tensor(image) for image in pixels]

    return _Sampler(family.latent_shape(height, width), identity, draw)


def pipeline_sampler(
    pipe: Any,
    *,
    model: str,
    num_steps: int,
    guidance_scale: float = 1.0,
    negative_prompt: str = "",
    height: int = 0,
    width: int = 0,
    adapter: str = "",
    **options: Any,
) -> ImageSampler:
    """Images of a diffusers pipeline as it is: its scheduler, its LoRAs, its hooks, its safety checker if it has one.

    Where its scheduler adds noise on the way, that noise follows from the initial one.

    Args:
        pipe: a text-to-image pipeline over latents (C, h, w), packed as Flux does it or not.
        model: what identifies the weights, such as a hub id and commit; a pipeline does not know its own.
        num_steps: solver steps.
        guidance_scale: passed on; what it means is the pipeline's affair.
        negative_prompt: passed on where given.
        height: of the images, pixels; 0 for the model's own.
        width: of the images, pixels; 0 for the model's own.
        adapter: what identifies what was loaded into the pipeline or attached to it.
        **options: further arguments of every call, as JSON values, such as ``guidance_rescale=0.7``.

    Raises:
        DiffalignError: not such a pipeline, or the size does not fit.
    """
    denoiser = _denoiser(pipe)
    pack = getattr(pipe, "_pack_latents", None)  # Flux and its kin: 2x2 cells become one token
    factor, cells = int(pipe.vae_scale_factor), 2 if pack else 1
    height, width = _size(pipe, height, width, factor * cells)
    channels = int(denoiser.config.in_channels) // cells**2
    scheduler = {key: value for key, value in pipe.scheduler.config.items() if not key.startswith("_")}
    identity = {
        "model": model,
        "adapter": adapter,
        "sampler": type(pipe.scheduler).__name__,
        "num_steps": num_steps,
        "guidance_scale": float(guidance_scale),
        "negative_prompt": negative_prompt,
        "height": height,
        "width": width,
        "dtype": str(denoiser.dtype),
        "pipeline": type(pipe).__name__,
        "scheduler": scheduler,
        "options": options,
    }

    def draw(prompts: Sequence[str], noise: Tensor) -> list[Image.Image]:
        # some pipelines insist on as many negative prompts as prompts, some take none at all
        negative = {"negative_prompt": [negative_prompt] * len(prompts)} if negative_prompt else {}
        latents = pack(noise, *noise.shape) if pack else noise
        with _quiet(pipe):
            images = pipe(
                prompt=list(prompts),
                height=height,
                width=width,
                num_inference_steps=num_steps,
                guidance_scale=guidance_scale,
                latents=latents.to(denoiser.dtype),
                generator=[torch_generator("later noise", row.numpy().tobytes()) for row in noise],
                output_type="np",  # not yet rounded, so that what is not finite can be seen
                **negative,
                **options,
            ).images
        _check_finite(torch.from_numpy(images))
        return list(VaeImageProcessor.numpy_to_pil(images))

    return _Sampler((channels, height // factor, width // factor), identity, draw)


def image_size(family: Family, height: int = 0, width: int = 0) -> tuple[int, int]:
    """Height and width in pixels of a model's images, where 0 is its own.

    Raises:
        DiffalignError: the size does not fit the model.
    """
    return _size(family.pipeline(), height, width, family.size_multiple)


def _denoiser(pipe: Any) -> Any:
    denoiser = getattr(pipe, "transformer", None) or getattr(pipe, "unet", None)
    if denoiser is None or not hasattr(pipe, "vae_scale_factor"):
        raise DiffalignError(f"expected a text-to-image pipeline with a UNet or transformer, got {type(pipe).__name__}")
    return denoiser


def _size(pipe: Any, height: int, width: int, multiple: int) -> tuple[int, int]:
    """Height and width in pixels, where 0 is what the pipeline would take."""
    if not height or not width:
        cells = getattr(pipe, "default_sample_size", None) or _denoiser(pipe).config.sample_size
        own = [cells, cells] if isinstance(cells, int) else list(cells)
        height, width = height or own[0] * pipe.vae_scale_factor, width or own[1] * pipe.vae_scale_factor
    if height < 1 or width < 1 or height % multiple or width % multiple:
        raise DiffalignError(
            f"expected height and width in multiples of {multiple} pixels for this model, got {height} x {width}"
        )
    return int(height), int(width)


def _check_finite(pixels: Tensor) -> None:
    if not bool(pixels.isfinite().all()):
        raise FloatingPointError("the decoded image is not finite")


@contextmanager
def _quiet(pipe: Any) -> Iterator[None]:
    """Inside the block the pipeline shows no progress bar of its own."""
    before = getattr(pipe, "_progress_bar_config", {})
    pipe.set_progress_bar_config(**before | {"disable": True})
    try:
        yield
    finally:
        pipe.set_progress_bar_config(**before)
