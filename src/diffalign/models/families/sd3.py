"""Stable Diffusion 3 and 3.5: a transformer over 16-channel latents, two CLIP encoders and T5, rectified flow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from diffalign.models.families.base import Family, families

__all__ = ["StableDiffusion3"]


@families.register("StableDiffusion3Pipeline")
class StableDiffusion3(Family):
    """SD 3.x. A model folder without T5 works: its tokens are then zeros, as in diffusers.

    Attributes:
        max_sequence_length: T5 tokens per prompt.
    """

    lora_prefix: ClassVar[str] = "transformer"
    lora_targets: ClassVar[tuple[str, ...]] = (
        *("to_q", "to_k", "to_v", "to_out.0"),
        *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    )
    left_out: ClassVar[tuple[str, ...]] = ("feature_extractor", "image_encoder")
    max_sequence_length: int = 256

    @property
    def size_multiple(self) -> int:
        """Image height and width must be multiples of this many pixels: latent cells times patch size."""
        return self.vae_scale_factor * int(self._pipeline.patch_size)

    @property
    def encoder_options(self) -> Mapping[str, Any]:
        """The number of T5 tokens, which decides the length of ``prompt_embeds``."""
        return {"max_sequence_length": self.max_sequence_length}

    @property
    def condition_shapes(self) -> dict[str, tuple[int, ...]]:
        """(CLIP and T5 tokens, width) of ``prompt_embeds``, (width,) of ``pooled_prompt_embeds``."""
        config = self._pipeline.transformer.config
        tokens = self._pipeline.tokenizer.model_max_length + self.max_sequence_length
        return {
            "prompt_embeds": (tokens, config.joint_attention_dim),
            "pooled_prompt_embeds": (config.pooled_projection_dim,),
        }

    def _encode_prompts(self, prompts: list[str]) -> dict[str, Tensor]:
        embeds, _, pooled, _ = self._pipeline.encode_prompt(
            prompts,
            None,
            None,
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.max_sequence_length,
        )
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}

    def _forward(
        self, denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, condition: Mapping[str, Tensor]
    ) -> Tensor:
        pred: Tensor = denoiser(
            hidden_states=noisy,
            timestep=timesteps.to(self.device),
            encoder_hidden_states=condition["prompt_embeds"],
            pooled_projections=condition["pooled_prompt_embeds"],
            return_dict=False,
        )[0]
        return pred
