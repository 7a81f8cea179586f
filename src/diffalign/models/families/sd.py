"""Stable Diffusion 1.x and 2.x: a UNet over 4-channel latents, one CLIP text encoder, variance-preserving noise."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from diffalign.core import DiffalignError
from diffalign.models.families.base import Family, families

__all__ = ["StableDiffusion", "refuse_image_conditioned"]


@families.register("StableDiffusionPipeline")
class StableDiffusion(Family):
    """SD 1.x and 2.x; epsilon or v prediction as the model's scheduler config says. Raises DiffalignError on inpainting
    UNets, whose 9 input channels also take a mask and an image."""

    lora_prefix: ClassVar[str] = "unet"
    lora_targets: ClassVar[tuple[str, ...]] = ("to_q", "to_k", "to_v", "to_out.0")
    left_out: ClassVar[tuple[str, ...]] = ("safety_checker", "feature_extractor", "image_encoder")
    pipeline_options: ClassVar[Mapping[str, Any]] = {"requires_safety_checker": False}

    def __init__(self, pipeline: Any, *, folder: Path | None = None, commit: str = "") -> None:
        refuse_image_conditioned(pipeline)
        super().__init__(pipeline, folder=folder, commit=commit)

    @property
    def condition_shapes(self) -> dict[str, tuple[int, ...]]:
        """(tokens, width) of ``prompt_embeds``."""
        tokens = self._pipeline.tokenizer.model_max_length
        return {"prompt_embeds": (tokens, self._pipeline.unet.config.cross_attention_dim)}

    def _encode_prompts(self, prompts: list[str]) -> dict[str, Tensor]:
        embeds, _ = self._pipeline.encode_prompt(prompts, self.device, 1, False)
        return {"prompt_embeds": embeds}

    def _forward(
        self, denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, condition: Mapping[str, Tensor]
    ) -> Tensor:
        pred: Tensor = denoiser(
            noisy, timesteps.to(self.device), encoder_hidden_states=condition["prompt_embeds"], return_dict=False
        )[0]
        return pred


def refuse_image_conditioned(pipeline: Any) -> None:
    """Raises DiffalignError where a pipeline's UNet takes more than latents, as those for inpainting do."""
    channels, expected = pipeline.unet.config.in_channels, pipeline.vae.config.latent_channels
    if channels != expected:
        raise DiffalignError(
            f"expected a text-to-image UNet with {expected} input channels, got {channels}: inpainting and other "
            "image-conditioned UNets cannot be aligned here; use the text-to-image model they were made from"
        )
