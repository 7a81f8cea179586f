"""The masked part of a photograph drawn anew, by a text-to-image model or by a real inpainting model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from diffalign.core import Config, DiffalignError, setting, torch_generator
from diffalign.curate.degrade.composites import touched_cells
from diffalign.curate.degrade.contract import DEGRADATIONS, Damaged, Degradation, Kind, Setup, in_batches
from diffalign.curate.degrade.pipelines import InpaintingModel, is_inpainting_model, load_inpainting_model
from diffalign.data import from_tensor, to_tensor
from diffalign.models import Family, quiet_loading
from diffalign.sample import Solver, fitting_solvers, image_size, make_scheduler, sample_latents

with quiet_loading():  # diffusers warns of packages that nothing here needs
    from diffusers import StableDiffusion3InpaintPipeline, StableDiffusionInpaintPipeline

__all__ = ["Inpaint", "InpaintSettings", "InpaintWithPipeline", "check_inpainting", "inpaint"]

# By text-to-image pipeline, diffusers' inpainting one and the number of latent channels that is written into it.
_INPAINTERS = {
    "StableDiffusionPipeline": (StableDiffusionInpaintPipeline, 4),
    "StableDiffusion3Pipeline": (StableDiffusion3InpaintPipeline, 16),
}


class InpaintSettings(Config):
    """How a model inpaints."""

    weights: str = setting("", "folder, hub id or embedded name of the model; empty for the one shared by all")
    solver: Solver | None = setting(None, "null for the model's first; an inpainting model has its own")
    num_steps: int = setting(50, "of the solver", unit="steps", ge=1, source="RealAlign")
    guidance_scale: float | None = setting(
        None, "of text guidance, 1 is off; null for 7.5, or 30 with a FluxFillPipeline", ge=1, source="RealAlign"
    )


class Inpaint(Degradation):
    """What the masks cover, drawn by a text-to-image model; see ``inpaint``.

    Args:
        family: a loaded text-to-image model.
        solver: see ``make_scheduler``.
        num_steps: of the solver.
        guidance_scale: of text guidance; 1 is off.
        batch_size: images at a time.

    Raises:
        DiffalignError: the solver does not fit the model.
    """

    def __init__(
        self,
        family: Family,
        *,
        solver: Solver | None = None,
        num_steps: int = 50,
        guidance_scale: float = 7.5,
        batch_size: int = 4,
    ) -> None:
        make_scheduler(family, solver)
        used = solver or fitting_solvers(family)[0]
        super().__init__("inpaint", {"solver": used, "num_steps": num_steps, "guidance_scale": float(guidance_scale)})
        self._family, self._batch_size = family, batch_size

    @property
    def model_revision(self) -> str:
        """Of the text-to-image model."""
        return self._family.revision

    def damage(
        self, images: Sequence[Image.Image], masks: Sequence[Image.Image], prompts: Sequence[str], seeds: Sequence[int]
    ) -> Damaged:
        """In batches."""
        image_size(self._family, images[0].height, images[0].width)
        return inpaint(
            self._family, images, masks, prompts, seeds=seeds, batch_size=self._batch_size, **self.parameters
        )


class InpaintWithPipeline(Degradation):
    """What the masks cover, drawn by a model trained to inpaint, with its own pipeline and scheduler.

    Args:
        model: as ``load_inpainting_model`` gives it: without safety checker and without watermark.
        num_steps: of its scheduler.
        guidance_scale: of text guidance, as the pipeline means it; None for its default here.
        batch_size: images at a time.
    """

    def __init__(
        self,
        model: InpaintingModel,
        *,
        num_steps: int = 50,
        guidance_scale: float | None = None,
        batch_size: int = 4,
    ) -> None:
        scale = model.default_guidance_scale if guidance_scale is None else float(guidance_scale)
        told = {"pipeline": model.pipeline_class, "scheduler": model.scheduler_class}
        super().__init__("inpaint", told | {"num_steps": num_steps, "guidance_scale": scale})
        self._model, self._batch_size = model, batch_size
        self._options: dict[str, Any] = {"num_steps": num_steps, "guidance_scale": scale}

    @property
    def model_revision(self) -> str:
        """Of the inpainting model."""
        return self._model.revision

    def damage(
        self, images: Sequence[Image.Image], masks: Sequence[Image.Image], prompts: Sequence[str], seeds: Sequence[int]
    ) -> Damaged:
        """In batches."""
        made: Damaged = []
        for start in range(0, len(images), self._batch_size):
            batch = slice(start, start + self._batch_size)
            generators = [torch_generator("degrade", "inpaint", seed) for seed in seeds[batch]]
            pixels = self._model.draw(images[batch], masks[batch], prompts[batch], generators, **self._options)
            made += [from_tensor(one) if bool(one.isfinite().all()) else None for one in pixels]
        return made


def _build(settings: InpaintSettings, setup: Setup) -> Degradation:
    weights = setup.weights(settings.weights, "inpaint")
    options: dict[str, Any] = {"num_steps": settings.num_steps, "batch_size": setup.batch_size}
    if is_inpainting_model(weights):
        if settings.solver is not None:
            raise DiffalignError(
                f"inpaint: the inpainting model {weights} samples with its own scheduler; leave out solver="
                f"{settings.solver!r}"
            )
        model = setup.once(weights, lambda: load_inpainting_model(weights, dtype=setup.dtype, device=setup.device))
        return InpaintWithPipeline(model, guidance_scale=settings.guidance_scale, **options)
    scale = 7.5 if settings.guidance_scale is None else settings.guidance_scale
    return Inpaint(setup.family(weights), solver=settings.solver, guidance_scale=scale, **options)


DEGRADATIONS.register("inpaint")(Kind(InpaintSettings, _build))


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
    solver: Solver | None = None,
) -> list[Image.Image | None]:
    """Draw what the masks cover anew, with a text-to-image model's own denoiser.

    At every step the latents outside the mask are those of the photograph under the same noise. Every latent cell that
    a mask touches is drawn; the rest of the image comes back from the autoencoder and so is not quite the photograph:
    see ``composite``. Where diffusers has an inpainting pipeline for the model that one runs, else the sampling loop of
    this package; both compute the same, up to the first step outside the mask.

    Args:
        family: a text-to-image model.
        images: N "RGB" images of one size, a multiple of the family's ``size_multiple``.
        masks: N "L" images of that size, 255 where to draw.
        prompts: N texts.
        seeds: N seeds of the noise; an image depends on its own alone.
        num_steps: of the solver.
        guidance_scale: of text guidance; 1 is off.
        batch_size: images at a time; it changes them by float noise only.
        solver: see ``make_scheduler``.

    Returns:
        N "RGB" images; None where a number was not finite.

    Raises:
        DiffalignError: the solver does not fit the model.
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
    pipe = _inpainting_pipeline(family, solver)
    options: dict[str, Any] = {"num_steps": num_steps, "guidance_scale": guidance_scale}

    def draw(images: Any, masks: Any, prompts: Any, seeds: Any) -> list[Image.Image | None]:
        latents = family.encode_images(torch.stack([to_tensor(image) for image in images]))[0]
        covered = torch.stack([touched_cells(mask, family.vae_scale_factor) for mask in masks])
        condition = family.encode_prompts(prompts)
        noise = _start_noise(latents.shape, seeds)
        if pipe is None:
            drawn = _draw_around(family, latents, covered, condition, noise, solver=solver, **options)
        else:
            drawn = _draw_with_pipeline(pipe, family, latents, covered, condition, noise, **options)
        return [from_tensor(one) if bool(one.isfinite().all()) else None for one in family.decode(drawn)]

    return in_batches(draw, batch_size, images, masks, prompts, seeds)


def check_inpainting(family: Family) -> None:
    """Refuse a model that diffusers has no inpainting pipeline for; ``inpaint`` itself takes any.

    Raises:
        DiffalignError: diffusers has no inpainting pipeline for it.
    """
    if _inpainting_pipeline(family) is None:
        pipe, channels = family.pipeline(), int(family.vae.config.latent_channels)
        known = ", ".join(f"{name} with {number} latent channels" for name, (_, number) in _INPAINTERS.items())
        raise DiffalignError(
            f"cannot inpaint with a {type(pipe).__name__} of {channels} latent channels; known: {known}"
        )


def _start_noise(shape: Sequence[int], seeds: Sequence[int]) -> Tensor:
    """(B, C, h, w): each image's from a generator of its own, on the CPU."""
    return torch.stack([torch.randn(tuple(shape[1:]), generator=torch.Generator().manual_seed(one)) for one in seeds])


def _inpainting_pipeline(family: Family, solver: Solver | None = None) -> Any:
    """Diffusers' inpainting pipeline over the model; None where there is none for it."""
    scheduler, pipe = make_scheduler(family, solver), family.pipeline()
    pipeline, channels = _INPAINTERS.get(type(pipe).__name__, (None, 0))
    if pipeline is None or int(family.vae.config.latent_channels) != channels:
        return None
    inpainter = pipeline(**pipe.components | {"scheduler": scheduler}, **family.pipeline_options)
    inpainter.set_progress_bar_config(disable=True)
    return inpainter


def _unconditional(family: Family, count: int) -> dict[str, Tensor]:
    return {key: value.expand(count, *value.shape[1:]) for key, value in family.encode_prompts([""]).items()}


def _draw_with_pipeline(
    pipe: Any,
    family: Family,
    latents: Tensor,
    covered: Tensor,
    condition: Mapping[str, Tensor],
    noise: Tensor,
    *,
    num_steps: int,
    guidance_scale: float,
) -> Tensor:
    negative = _unconditional(family, len(latents))
    made: Tensor = pipe(
        **condition,
        **{f"negative_{key}": value for key, value in negative.items()},
        image=latents,
        masked_image_latents=latents,  # for UNets that also see them; the others leave them alone
        mask_image=covered,
        latents=noise.to(family.dtype),
        height=covered.shape[2],
        width=covered.shape[3],
        strength=1.0,
        num_inference_steps=num_steps,
        guidance_scale=guidance_scale,
        output_type="latent",  # decoded later: the pipeline for SD 3 forgets the autoencoder's shift
        return_dict=False,
    )[0]
    return made


def _draw_around(
    family: Family,
    latents: Tensor,
    covered: Tensor,
    condition: Mapping[str, Tensor],
    noise: Tensor,
    *,
    num_steps: int,
    guidance_scale: float,
    solver: Solver | None,
) -> Tensor:
    """The sampling loop, in which the network always sees the photograph's noised latents outside the mask.

    Solvers work cell by cell, so what becomes of the loop's own latents out there reaches nothing inside.
    """
    factor = family.vae_scale_factor
    inside = covered[:, :, ::factor, ::factor].bool().to(family.device)
    known, noise = latents.float().to(family.device), noise.to(family.device)

    def predict(noisy: Tensor, timesteps: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        branches = len(noisy) // len(known)  # 2 under text guidance
        around = family.process.add_noise(known.repeat(branches, 1, 1, 1), noise.repeat(branches, 1, 1, 1), timesteps)
        return family.predict(torch.where(inside.repeat(branches, 1, 1, 1), noisy, around), timesteps, condition)

    made = sample_latents(
        family,
        condition,
        noise,
        num_steps=num_steps,
        solver=solver,
        guidance_scale=guidance_scale,
        negative_condition=None if guidance_scale == 1 else _unconditional(family, len(latents)),
        predict=predict,
    ).latents
    return torch.where(inside, made, known)


def _check_inputs(
    images: Sequence[Image.Image], masks: Sequence[Image.Image], prompts: Sequence[str], seeds: Sequence[int]
) -> None:
    counts = (len(images), len(masks), len(prompts), len(seeds))
    if len(set(counts)) != 1:
        raise ValueError(f"expected as many images, masks, prompts and seeds, got {counts}")
    sizes = {image.size for image in (*images, *masks)}
    if len(sizes) > 1:
        raise ValueError(f"expected images and masks of one size, got {sorted(sizes)}")
