"""Models trained to inpaint, behind one call: whatever diffusers' inpainting pipelines differ in is settled here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn

from diffalign.core import DiffalignError, content_hash, read_json, sha256_file
from diffalign.curate.degrade.composites import touched_cells
from diffalign.models import find_index, quiet_loading

__all__ = ["InpaintingModel", "is_inpainting_model", "load_inpainting_model"]

# What is passed while loading, by the class in model_index.json. A safety checker blackens images, a watermark would
# tell the damaged images from the photographs, and image encoders serve adapters that nothing here uses.
_OPTIONS: dict[str, dict[str, Any]] = {
    "StableDiffusionInpaintPipeline": {
        "safety_checker": None,
        "requires_safety_checker": False,
        "feature_extractor": None,
        "image_encoder": None,
    },
    "StableDiffusionXLInpaintPipeline": {"add_watermarker": False, "feature_extractor": None, "image_encoder": None},
    "StableDiffusion3InpaintPipeline": {"feature_extractor": None, "image_encoder": None},
    "FluxInpaintPipeline": {"feature_extractor": None, "image_encoder": None},
    "FluxFillPipeline": {},
}
_GUIDANCE_SCALE = {"FluxFillPipeline": 30.0}  # as published; the others 7.5, RealAlign's


class InpaintingModel:
    """A pipeline of diffusers that was trained to inpaint (or that inpaints with its own denoiser).

    Attributes:
        pipeline_class: the name in its ``model_index.json``.
        scheduler_class: what samples.
        default_guidance_scale: where none is chosen.
    """

    def __init__(self, pipeline: Any, *, folder: Path | None = None, commit: str = "") -> None:
        self._pipeline, self._folder, self._commit = pipeline, folder, commit
        self.pipeline_class = type(pipeline).__name__
        self.scheduler_class = type(pipeline.scheduler).__name__
        self.default_guidance_scale = _GUIDANCE_SCALE.get(self.pipeline_class, 7.5)
        for component in pipeline.components.values():
            if isinstance(component, nn.Module):
                component.eval().requires_grad_(False)
        pipeline.set_progress_bar_config(disable=True)

    @cached_property
    def revision(self) -> str:
        """Hub id and commit, or a sha256 over all files of the folder.

        Raises:
            DiffalignError: the model was made in memory.
        """
        if self._commit:
            return self._commit
        if self._folder is None:
            raise DiffalignError("this model was made in memory and has no revision; save it and load it from there")
        parts = [self._folder / name for name, part in sorted(self._pipeline.components.items()) if part is not None]
        files = sorted(file for part in parts for file in part.rglob("*") if file.is_file())
        return content_hash({file.relative_to(self._folder).as_posix(): sha256_file(file) for file in files})

    @property
    def size_multiple(self) -> int:
        """Image height and width must be multiples of this many pixels."""
        patch = int(getattr(self._pipeline, "patch_size", 1))  # of SD 3; the processor of Flux counts its own
        return int(self._pipeline.image_processor.config.vae_scale_factor) * patch

    @torch.no_grad()
    def draw(
        self,
        images: Sequence[Image.Image],
        masks: Sequence[Image.Image],
        prompts: Sequence[str],
        generators: Sequence[torch.Generator],
        *,
        num_steps: int,
        guidance_scale: float,
    ) -> Tensor:
        """Draw what the masks cover from pure noise; every latent cell that a mask touches is drawn.

        Args:
            images: B "RGB" images of one size.
            masks: B "L" images of that size, 255 where to draw.
            prompts: B texts.
            generators: B generators on the CPU, of the noise and of the autoencoder's posterior.
            num_steps: of the scheduler.
            guidance_scale: of text guidance, as the pipeline means it.

        Returns:
            (B, 3, H, W) in [-1, 1]; what is not finite is left so.

        Raises:
            DiffalignError: a size that does not fit the model.
        """
        width, height = images[0].size
        if width % self.size_multiple or height % self.size_multiple:
            raise DiffalignError(
                f"expected height and width in multiples of {self.size_multiple} pixels for this inpainting model, got "
                f"{height} x {width}"
            )
        factor = int(self._pipeline.vae_scale_factor)
        unshifted = self.pipeline_class == "StableDiffusion3InpaintPipeline"
        made: Tensor = self._pipeline(
            prompt=list(prompts),
            image=list(images),
            mask_image=torch.stack([touched_cells(mask, factor) for mask in masks]),
            height=height,
            width=width,
            strength=1.0,
            num_inference_steps=num_steps,
            guidance_scale=guidance_scale,
            generator=list(generators),
            output_type="latent" if unshifted else "pt",
            return_dict=False,
        )[0]
        return self._decode(made) if unshifted else made.float() * 2 - 1

    def _decode(self, latents: Tensor) -> Tensor:
        """Of SD 3, whose inpainting pipeline forgets the autoencoder's shift."""
        vae = self._pipeline.vae
        decoded: Tensor = vae.decode(latents / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)).sample
        return decoded.float().clamp(-1, 1)


def is_inpainting_model(path_or_hub_id: str | Path) -> bool:
    """Whether a folder or hub id holds an inpainting pipeline of a kind that is known here.

    Raises:
        DiffalignError: nothing is there.
    """
    return str(read_json(find_index(path_or_hub_id)[0]).get("_class_name")) in _OPTIONS


def load_inpainting_model(
    path_or_hub_id: str | Path, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> InpaintingModel:
    """Loads a StableDiffusion(XL, 3)Inpaint, FluxInpaint or FluxFill pipeline; safetensors weights alone are read.

    The safety checker is left out, since it would replace what it takes for unsafe by a black image, and no watermark
    is written, since it would give the damaged image away.

    Args:
        path_or_hub_id: a folder with a ``model_index.json``, or a hub id such as "owner/name".
        dtype: of all weights.
        device: where to put them.

    Raises:
        DiffalignError: nothing there, another pipeline, or weights that cannot be read.
    """
    index, commit = find_index(path_or_hub_id)
    components = read_json(index)
    name = str(components.get("_class_name"))
    if name not in _OPTIONS:
        raise DiffalignError(f"{path_or_hub_id} is a {name}; known inpainting pipelines are {', '.join(_OPTIONS)}")
    options = dict.fromkeys(key for key, value in components.items() if value == [None, None]) | _OPTIONS[name]
    try:
        with quiet_loading():
            from diffusers import DiffusionPipeline

            pipeline = DiffusionPipeline.from_pretrained(
                path_or_hub_id if commit else index.parent,
                revision=commit or None,
                dtype=dtype,
                use_safetensors=True,
                **options,
            )
    except (OSError, ValueError, SafetensorError) as error:
        raise DiffalignError(
            f"cannot load {path_or_hub_id}: {error}\nExpected a complete model folder with safetensors weights."
        ) from error
    _check_channels(path_or_hub_id, name, pipeline.components)
    source = f"{path_or_hub_id}@{commit}" if commit else ""
    return InpaintingModel(pipeline.to(device), folder=index.parent, commit=source)


def _check_channels(path: str | Path, name: str, components: Mapping[str, Any]) -> None:
    """Refuse while loading what the pipeline would refuse at its first call."""
    latents, stages = int(components["vae"].config.latent_channels), len(components["vae"].config.block_out_channels)
    got = int((components.get("unet") or components["transformer"]).config.in_channels)
    known: tuple[int, ...]
    if name == "FluxFillPipeline":  # 2 x 2 cells of noise, photograph and the mask's every pixel are one token
        known = (4 * (2 * latents + 4 ** (stages - 1)),)
    elif name == "FluxInpaintPipeline":
        known = (4 * latents,)
    else:  # noise alone, or noise, mask and photograph; the numbers are written into the pipelines
        known = (16, 33) if name == "StableDiffusion3InpaintPipeline" else (4, 9)
    if got not in known or (not name.startswith("Flux") and latents != known[0]):
        counts = " or ".join(map(str, known))
        raise DiffalignError(
            f"{path} is a {name} that diffusers cannot run: expected a denoiser of {counts} input channels, got {got} "
            f"over {latents} latent channels"
        )
