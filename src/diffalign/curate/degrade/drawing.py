"""The whole image drawn anew by a text-to-image model: from its prompt alone, or from the photograph under noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from diffalign.core import Config, DiffalignError, setting, torch_generator
from diffalign.curate.degrade.contract import DEGRADATIONS, Damaged, Degradation, Kind, Setup, in_batches
from diffalign.data import from_tensor, to_tensor
from diffalign.models import Family, RectifiedFlow
from diffalign.sample import Solver, family_sampler, fitting_solvers, image_size, make_scheduler, sample_latents

__all__ = [
    "FewStepSettings",
    "ImageToImage",
    "ImageToImageSettings",
    "LowGuidanceSettings",
    "Regenerate",
    "RegenerateSettings",
    "WeakerModelSettings",
]


class RegenerateSettings(Config):
    """How a model draws a prompt."""

    weights: str = setting("", "folder, hub id or embedded name of the model; empty for the one shared by all")
    solver: Solver | None = setting(None, "null for the first that fits the model")
    num_steps: int = setting(50, "of the solver", unit="steps", ge=1, source="RealAlign")
    guidance_scale: float = setting(7.5, "of text guidance; 1 is off", ge=1, source="RealAlign")


class FewStepSettings(RegenerateSettings):
    """How a model draws a prompt in a hurry."""

    num_steps: int = setting(5, "of the solver", unit="steps", ge=1)


class LowGuidanceSettings(RegenerateSettings):
    """How a model draws a prompt that it hardly heeds."""

    guidance_scale: float = setting(1.0, "of text guidance; 1 is off", ge=1)


class WeakerModelSettings(RegenerateSettings):
    """How another model draws a prompt."""

    weights: str = setting(..., "folder, hub id or embedded name of the weaker model", min_length=1)


class ImageToImageSettings(RegenerateSettings):
    """How a model draws on from a photograph under noise."""

    severity: float = setting(0.8, "the share of the steps that are drawn", ge=0, le=1, source="RealAlign's history")


class Regenerate(Degradation):
    """Images of the prompts; of the photograph nothing is left but its size and its caption.

    The noise depends on the seed alone: with the same seed, other settings or models draw from the same noise.

    Args:
        family: a loaded text-to-image model.
        name: "regenerate", or what the settings stand for.
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
        name: str = "regenerate",
        solver: Solver | None = None,
        num_steps: int = 50,
        guidance_scale: float = 7.5,
        batch_size: int = 4,
    ) -> None:
        make_scheduler(family, solver)
        used = solver or fitting_solvers(family)[0]
        super().__init__(name, {"solver": used, "num_steps": num_steps, "guidance_scale": float(guidance_scale)})
        self._family, self._batch_size = family, batch_size

    @property
    def model_revision(self) -> str:
        """Of the text-to-image model."""
        return self._family.revision

    def damage(
        self, images: Sequence[Image.Image], masks: Sequence[Image.Image], prompts: Sequence[str], seeds: Sequence[int]
    ) -> Damaged:
        """In batches."""
        width, height = images[0].size
        sampler = family_sampler(self._family, height=height, width=width, **self.parameters)

        def draw(prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
            return sampler(prompts, _noise(sampler.latent_shape, seeds))

        return in_batches(draw, self._batch_size, prompts, seeds)


class ImageToImage(Degradation):
    """The photograph noised to a middle level and drawn on from there: its layout stays, its details are the model's.

        x_k = a_k x0 + b_k noise,  then the last k = round(severity num_steps) steps of the solver's own grid

    At severity 0 the image only goes through the autoencoder.

    Args:
        family: a loaded text-to-image model.
        severity: the strength of diffusers' image-to-image pipelines.
        solver: see ``make_scheduler``; "ddim" has no grid that starts in the middle.
        num_steps: of the whole grid.
        guidance_scale: of text guidance; 1 is off.
        batch_size: images at a time.

    Raises:
        DiffalignError: the solver does not fit.

    Source:
        Meng et al. 2022, SDEdit, arXiv 2108.01073. Departure: deterministic solvers.
    """

    def __init__(
        self,
        family: Family,
        *,
        severity: float = 0.8,
        solver: Solver | None = None,
        num_steps: int = 50,
        guidance_scale: float = 7.5,
        batch_size: int = 4,
    ) -> None:
        fitting = [one for one in fitting_solvers(family) if one != "ddim"]
        if solver is not None and solver not in fitting:
            raise DiffalignError(f"image_to_image: expected solver {' or '.join(fitting)} for this model, got {solver}")
        self._solver = solver or fitting[0]
        parameters = {"severity": float(severity), "solver": self._solver, "num_steps": num_steps}
        super().__init__("image_to_image", parameters | {"guidance_scale": float(guidance_scale)}, severity)
        self._family, self._batch_size, self._guidance_scale = family, batch_size, guidance_scale
        self._grid, self._start = _last_steps(family, self._solver, num_steps, round(severity * num_steps))

    @property
    def model_revision(self) -> str:
        """Of the text-to-image model."""
        return self._family.revision

    def damage(
        self, images: Sequence[Image.Image], masks: Sequence[Image.Image], prompts: Sequence[str], seeds: Sequence[int]
    ) -> Damaged:
        """In batches."""
        image_size(self._family, images[0].height, images[0].width)
        return in_batches(self._draw, self._batch_size, images, prompts, seeds)

    @torch.no_grad()
    def _draw(self, images: Sequence[Image.Image], prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        family = self._family
        latents = family.encode_images(torch.stack([to_tensor(image) for image in images]))[0].float()
        if count := len(self._start):
            noise = _noise(latents.shape[1:], seeds).to(latents.device)
            start = self._start[:1].to(latents.device).expand(len(latents))
            negative = family.encode_prompts([""] * len(prompts)) if self._guidance_scale != 1 else None
            latents = sample_latents(
                family,
                family.encode_prompts(prompts),
                family.process.add_noise(latents, noise, start),
                num_steps=count,
                solver=self._solver,
                guidance_scale=self._guidance_scale,
                negative_condition=negative,
                **self._grid,
            ).latents
        pixels = family.decode(latents)
        if not bool(pixels.isfinite().all()):
            raise FloatingPointError("the decoded image is not finite")
        return [from_tensor(one) for one in pixels]


def _last_steps(family: Family, solver: Solver, num_steps: int, count: int) -> tuple[dict[str, Any], Tensor]:
    """The last ``count`` steps of a solver's grid, as ``sample_latents`` takes them, and what the network is fed."""
    scheduler = make_scheduler(family, solver)
    first = num_steps - count
    if isinstance(family.process, RectifiedFlow):  # the scheduler shifts what it is given
        sigmas = torch.linspace(scheduler.sigma_max, scheduler.sigma_min, num_steps, dtype=torch.float64)
        grid = {"sigmas": sigmas[first:].tolist()}
    else:
        scheduler.set_timesteps(num_steps)
        grid = {"timesteps": scheduler.timesteps[first:].tolist()}
    if not count:
        return grid, torch.empty(0)
    try:
        scheduler.set_timesteps(**grid)
    except ValueError as error:
        raise DiffalignError(
            f"image_to_image: this model's scheduler cannot start in the middle of its grid: {error}"
        ) from error
    return grid, scheduler.timesteps


def _noise(shape: Sequence[int], seeds: Sequence[int]) -> Tensor:
    """(B, C, h, w) on the CPU, each image's from its own seed."""
    return torch.stack([torch.randn(tuple(shape), generator=torch_generator("degrade", seed)) for seed in seeds])


def _register(name: str, settings: type[RegenerateSettings]) -> None:
    def build(values: RegenerateSettings, setup: Setup) -> Degradation:
        family = setup.family(setup.weights(values.weights, name))
        options: dict[str, Any] = {"solver": values.solver, "num_steps": values.num_steps}
        options |= {"guidance_scale": values.guidance_scale, "batch_size": setup.batch_size}
        if isinstance(values, ImageToImageSettings):
            return ImageToImage(family, severity=values.severity, **options)
        return Regenerate(family, name=name, **options)

    DEGRADATIONS.register(name)(Kind(settings, build))


_register("regenerate", RegenerateSettings)
_register("few_step", FewStepSettings)
_register("low_guidance", LowGuidanceSettings)
_register("weaker_model", WeakerModelSettings)
_register("image_to_image", ImageToImageSettings)
