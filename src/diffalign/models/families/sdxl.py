"""Stable Diffusion XL: a UNet that is also told pooled text and sizes, two CLIP encoders, variance-preserving noise."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from diffalign.core import DiffalignError
from diffalign.models.families.base import Family, families
from diffalign.models.families.sd import refuse_image_conditioned

__all__ = ["StableDiffusionXL"]

_SIZE_NUMBERS = 6  # original height and width, crop top and left, target height and width


@families.register("StableDiffusionXLPipeline")
class StableDiffusionXL(Family):
    """The base models of SDXL; epsilon or v prediction as the model's scheduler config says.

    Sizes: the UNet is told (H, W, 0, 0, H, W), H and W the pixels that the latents stand for: an uncropped image of
    just that size, as the pipeline says by default and as Diffusion-DPO is trained. So nothing in it can tell the sides
    of a pair apart. Departure from SDXL's own pretraining: each image's original size and crop are not told.

    The empty prompt: "" gives what the pipeline has on its unconditional branch by default, zeros where its config says
    ``force_zeros_for_empty_prompt``, as of the published base model, whose training dropped prompts that way; else the
    encoding of the empty text. Departure from the scripts of Diffusion-DPO: they drop prompts to the empty text.

    Raises:
        DiffalignError: inpainting and refiner UNets, or latents that a VAE normalises by channel.
    """

    lora_prefix: ClassVar[str] = "unet"
    lora_targets: ClassVar[tuple[str, ...]] = ("to_q", "to_k", "to_v", "to_out.0")
    left_out: ClassVar[tuple[str, ...]] = ("feature_extractor", "image_encoder")
    pipeline_options: ClassVar[Mapping[str, Any]] = {"add_watermarker": False}

    def __init__(self, pipeline: Any, *, folder: Path | None = None, commit: str = "") -> None:
        refuse_image_conditioned(pipeline)
        _refuse_other_conditions(pipeline)
        if pipeline.vae.config.get("latents_mean") is not None:
            raise DiffalignError(
                "expected a VAE with one scaling_factor, as SDXL's, got one with latents_mean and latents_std by "
                "channel, which is not supported"
            )
        super().__init__(pipeline, folder=folder, commit=commit)

    @property
    def encoder_options(self) -> Mapping[str, Any]:
        """Whether the empty prompt is zeros."""
        return {"force_zeros_for_empty_prompt": bool(self._pipeline.config.force_zeros_for_empty_prompt)}

    @property
    def condition_shapes(self) -> dict[str, tuple[int, ...]]:
        """(tokens, width of both encoders) of ``prompt_embeds``, (width,) of ``pooled_prompt_embeds``."""
        config = self._pipeline.unet.config
        tokens = self._pipeline.tokenizer_2.model_max_length
        return {"prompt_embeds": (tokens, config.cross_attention_dim), "pooled_prompt_embeds": (_pooled_width(config),)}

    def _encode_prompts(self, prompts: list[str]) -> dict[str, Tensor]:
        embeds, _, pooled, _ = self._pipeline.encode_prompt(
            prompts, device=self.device, do_classifier_free_guidance=False
        )
        if self._pipeline.config.force_zeros_for_empty_prompt:
            for row in (row for row, prompt in enumerate(prompts) if not prompt):
                embeds[row], pooled[row] = 0, 0
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}

    def _forward(
        self, denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, condition: Mapping[str, Tensor]
    ) -> Tensor:
        height, width = (cells * self.vae_scale_factor for cells in noisy.shape[2:])
        sizes = noisy.new_tensor([height, width, 0, 0, height, width])  # half precision has them exactly up to 2048
        pred: Tensor = denoiser(
            noisy,
            timesteps.to(self.device),
            encoder_hidden_states=condition["prompt_embeds"],
            added_cond_kwargs={
                "text_embeds": condition["pooled_prompt_embeds"],
                "time_ids": sizes.expand(len(noisy), -1),
            },
            return_dict=False,
        )[0]
        return pred


def _pooled_width(config: Any) -> int:
    """What is left for the pooled text of what the UNet takes beside the timestep."""
    return int(config.projection_class_embeddings_input_dim - _SIZE_NUMBERS * config.addition_time_embed_dim)


def _refuse_other_conditions(pipeline: Any) -> None:
    """Raises DiffalignError where the UNet is not told pooled text and six sizes, as SDXL's base is."""
    config, encoder = pipeline.unet.config, pipeline.text_encoder_2
    if config.addition_embed_type != "text_time":
        raise DiffalignError(
            "expected an SDXL UNet with addition_embed_type text_time, got "
            f"{config.addition_embed_type!r}: its model_index.json names another architecture than it has"
        )
    pooled = _pooled_width(config)
    if encoder is not None and encoder.config.projection_dim != pooled:  # an outline has no text encoders
        raise DiffalignError(
            f"expected a UNet that is told {_SIZE_NUMBERS} sizes beside {encoder.config.projection_dim} pooled numbers "
            f"of the text, as SDXL's base, got room for {pooled}: refiners, which are told an aesthetic score, are not "
            "supported; align the base model"
        )
