"""Diffusion-DRO: a few hundred expert images shall gain more over the reference than the policy's own samples.

Source: arXiv 2510.18353: [paper] marks settings of the paper, [code] of the authors' release, [not stated] our choice.
``docs/findings/dro.md`` shows what the loss comes to at M = 1.

Departures: one jitter of the sampling grid per step, where the release draws one per sample; the trained weights are
held in float32, where the release holds them in bfloat16.
"""

from __future__ import annotations

from diffalign.recipes.licences import SD15
from diffalign.recipes.registry import recipe
from diffalign.train import EmaConfig, OptimizerConfig, Plan, SamplesConfig, TrainConfig

__all__ = ["diffusion_dro_sd15"]


@recipe(
    "diffusion_dro_sd15",
    paper="arXiv 2510.18353",
    data="the 500 images of highest HPSv2 score of 1,029,802; the rejected image of a pair is not looked at",
    sources=("yuvalkirstain/pickapic_v2",),
    compute="4 RTX 3090, 20 to 25 hours",
)
def diffusion_dro_sd15(data: str, model: str = SD15) -> Plan:
    """Diffusion-DRO alone on SD 1.5, in its published form."""
    return Plan(
        stages=(
            TrainConfig(
                model=model,
                data=data,
                objective="diffusion_dro",
                settings={"margin": 0.001},  # [paper]
                train="full",  # [code]
                reference="start",  # [code] a frozen copy
                optimizer=OptimizerConfig(
                    learning_rate=1e-4,  # [code] constant, no warm-up
                    weight_decay=1e-2,  # [not stated] the optimiser's default
                    max_grad_norm=1.0,  # [code]
                ),
                ema=EmaConfig(
                    decay=0.9999,  # [code]
                    warmup=True,  # [not stated]
                ),
                samples=SamplesConfig(
                    refresh_every=1,  # [paper] M = 1: the live policy
                    num_steps=20,  # [code] DPM-Solver++ on a jittered grid
                    guidance_scale=1.0,  # [code]
                    state="trajectory",  # [code]
                    target="prediction",  # [paper]
                ),
                resolution=512,  # [code] short side, centre crop
                flip=True,  # [code]
                prompt_drop=0.2,  # [code]
                num_steps=1600,  # [code] 25,600 micro-steps
                batch_size=256,  # [code] 4 images x 16 accumulation x 4 GPUs
                micro_batch_size=4,  # [code]
                mixed_precision="bf16",  # [code]
            ),
        ),
        feed="ema",
    )
