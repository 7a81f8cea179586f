"""Damage on purpose: the masked part of a photograph drawn anew by the model itself, everything else left as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate, max_pool2d

from diffalign.core import DiffalignError
from diffalign.data import from_tensor, to_tensor
from diffalign.models import Family, quiet_loading
from diffalign.sample import make_scheduler

with quiet_loading():  # diffusers warns of packages that nothing here needs
    from diffusers import StableDiffusion3InpaintPipeline, StableDiffusionInpaintPipeline

__all__ = ["check_inpainting", "composite", "inpaint"]

# By text-to-image pipeline, diffusers' inpainting one and the number of latent channels that is written into it.
_INPAINTERS = {
    "StableDiffusionPipeline": (StableDiffusionInpaintPipeline, 4),
    "StableDiffusion3Pipeline": (StableDiffusion3InpaintPipeline, 16),
}


@torch.no_grad()
def inpaint(
    family: Family,
    images: Sequence[Image.Image],
    masks: Sequence[Image.Image],
    prompts: Sequence[str],
    *,
    seeds: Sequence[int],
    num_steps: int,
    guidance_scale: float,
    batch_size: int = 4,
) -> list[Image.Image | None]:
    """Draw what the masks cover anew, with a text-to-image model's own denoiser and diffusers' inpainting pipeline.

    After every step the latents outside the mask are those of the photograph under the same noise. Every latent cell
    that a mask touches is drawn; the rest of the image comes back from the autoencoder and so is not quite the
    photograph: see ``composite``.

    Args:
        family: Stable Diffusion 1, 2 or 3.
        images: N "RGB" images of one size, a multiple of the family's ``size_multiple``.
        masks: N "L" images of that size, 255 where to draw.
        prompts: N texts.
        seeds: N seeds of the noise; an image depends on its own alone.
        num_steps: of the default solver.
        guidance_scale: of text guidance; 1 is off.
        batch_size: images at a time; it changes them by float noise only.

    Returns:
        N "RGB" images; None where a number was not finite.

    Raises:
        DiffalignError: diffusers has no inpainting pipeline for this model.
        ValueError: counts or sizes differ, or a number is below 1.

    Source:
        Lugmayr et al. 2022, RePaint, arXiv 2201.09865, Alg. 1 without resampling (as diffusers has it).
    """
    _check_inputs(images, masks, prompts, seeds)
    if num_steps < 1 or batch_size < 1 or guidance_scale < 1:
        raise ValueError(
            f"expected num_steps, batch_size and guidance_scale of at least 1, got {num_steps}, {batch_size} and "
            f"{guidance_scale}"
        )
    pipe = _inpainting_pipeline(family)
    negative = {f"negative_{key}": value for key, value in family.encode_prompts([""]).items()}
    drawn: list[Image.Image | None] = []
    for start in range(0, len(images), batch_size):
        batch = slice(start, start + batch_size)
        latents = family.encode_images(torch.stack([to_tensor(image) for image in images[batch]]))[0]
        covered = torch.stack([_touched_cells(mask, family.vae_scale_factor) for mask in masks[batch]])
        made = pipe(
            **family.encode_prompts(prompts[batch]),
            **{key: value.expand(len(latents), *value.shape[1:]) for key, value in negative.items()},
            image=latents,
            masked_image_latents=latents,  # for UNets that also see them; the others leave them alone
            mask_image=covered,
            latents=_noise(latents.shape, seeds[batch]).to(family.dtype),
            height=images[0].height,
            width=images[0].width,
            strength=1.0,
            num_inference_steps=num_steps,
            guidance_scale=guidance_scale,
            output_type="latent",  # decoded here: the pipeline for SD 3 forgets the autoencoder's shift
            return_dict=False,
        )[0]
        drawn += [from_tensor(one) if bool(one.isfinite().all()) else None for one in family.decode(made)]
    return drawn


def composite(original: Image.Image, damaged: Image.Image, mask: Image.Image) -> Image.Image:
    """``damaged`` where the mask is 255, ``original``, bit for bit, where it is 0.

    Args:
        original: "RGB".
        damaged: "RGB" of the same size.
        mask: "L" of the same size, of 0 and 255 alone.

    Raises:
        ValueError: sizes or modes differ, or the mask has other values.

    Example:
        >>> white, black = (Image.new("RGB", (2, 1), colour) for colour in ("white", "black"))
        >>> mask = Image.fromarray(np.array([[0, 255]], dtype=np.uint8))
        >>> np.asarray(composite(white, black, mask))[0, :, 0]
        array([255,   0], dtype=uint8)
    """
    modes, sizes = (original.mode, damaged.mode, mask.mode), {original.size, damaged.size, mask.size}
    if modes != ("RGB", "RGB", "L") or len(sizes) != 1 or not set(np.unique(np.asarray(mask)).tolist()) <= {0, 255}:
        raise ValueError(f"expected RGB, RGB and a mask (L) of 0 and 255, all of one size, got {modes} and {sizes}")
    return Image.composite(damaged, original, mask)


def check_inpainting(family: Family) -> None:
    """Refuse a model that `inpaint` cannot use.

    Raises:
        DiffalignError: diffusers has no inpainting pipeline for it.
    """
    _inpainting_pipeline(family)


def _inpainting_pipeline(family: Family) -> Any:
    pipe = family.pipeline()
    kind, channels = type(pipe).__name__, int(family.vae.config.latent_channels)
    pipeline, expected = _INPAINTERS.get(kind, (None, 0))
    if pipeline is None or channels != expected:
        known = ", ".join(f"{name} with {number} latent channels" for name, (_, number) in _INPAINTERS.items())
        raise DiffalignError(f"cannot inpaint with a {kind} of {channels} latent channels; known: {known}")
    inpainter = pipeline(**pipe.components | {"scheduler": make_scheduler(family)}, **family.pipeline_options)
    inpainter.set_progress_bar_config(disable=True)
    return inpainter


def _noise(shape: Sequence[int], seeds: Sequence[int]) -> Tensor:
    """(B, C, h, w): each image's from a generator of its own, on the CPU."""
    return torch.stack([torch.randn(tuple(shape[1:]), generator=torch.Generator().manual_seed(one)) for one in seeds])


def _touched_cells(mask: Image.Image, factor: int) -> Tensor:
    """(1, H, W) in {0, 1}: every pixel of every latent cell of which the mask covers a pixel."""
    pixels = torch.from_numpy(np.array(mask)).gt(127).float()[None]
    cells = max_pool2d(pixels[None], factor)
    return interpolate(cells, scale_factor=float(factor))[0]


def _check_inputs(
    images: Sequence[Image.Image], masks: Sequence[Image.Image], prompts: Sequence[str], seeds: Sequence[int]
) -> None:
    counts = (len(images), len(masks), len(prompts), len(seeds))
    if len(set(counts)) != 1:
        raise ValueError(f"expected as many images, masks, prompts and seeds, got {counts}")
    sizes = {image.size for image in (*images, *masks)}
    if len(sizes) > 1:
        raise ValueError(f"expected images and masks of one size, got {sorted(sizes)}")
