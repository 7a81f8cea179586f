"""Diffusion-KTO: every image is judged by itself, as desirable or not.

Source: Li et al. 2024, arXiv 2404.04465: [code] marks settings of the authors' release, [not stated] our choice.

Departures: images come in pairs, so the weights 1.6 and 0.4 stand for the release's 80 % of desirable images. The
baseline is the mean over a whole step, which therefore is one pass: 64 pairs, where the release takes 2048 images with
the baseline of 8 at a time. AdamW, where the release has the 8-bit form.
"""

from __future__ import annotations

from diffalign.recipes.diffusion_dpo import PICKAPIC_V2
from diffalign.recipes.licences import SD15
from diffalign.recipes.registry import recipe
from diffalign.train import OptimizerConfig, Plan, TrainConfig

__all__ = ["diffusion_kto_sd15"]


@recipe(
    "diffusion_kto_sd15",
    paper="arXiv 2404.04465",
    data="likes and dislikes from the pairs of Pick-a-Pic v2, number not stated",
    sources=PICKAPIC_V2,
    compute="4 GPUs, hours not stated",
)
def diffusion_kto_sd15(data: str, model: str = SD15) -> Plan:
    """Diffusion-KTO on SD 1.5, under the sigmoid utility."""
    return Plan(
        stages=(
            TrainConfig(
                model=model,
                data=data,
                objective="kto",
                settings={
                    "beta": 1000.0,  # [code] without the factor 1/2
                    "desirable_weight": 1.6,  # [code] 1 on 80 % of the images
                    "undesirable_weight": 0.4,  # [code] 1 on 20 %
                },
                train="full",  # [code]
                reference="start",  # [code] a frozen copy
                optimizer=OptimizerConfig(
                    learning_rate=1e-7,  # [code] not scaled
                    warmup_steps=200,  # [code] then constant
                    weight_decay=1e-2,  # [code]
                    max_grad_norm=1.0,  # [code]
                ),
                resolution=512,  # [code] centre crop
                flip=True,  # [code]
                prompt_drop=0.2,  # [code]
                num_steps=20_000,  # [code]
                batch_size=64,  # [not stated] one pass; the release has 2048 images
                micro_batch_size=64,  # [not stated]
                mixed_precision="fp16",  # [code]
                gradient_checkpointing=True,  # [code]
            ),
        )
    )
