"""MaPO: a margin without a reference.

Source: Hong et al. 2024, arXiv 2406.06424: [code] marks settings of the authors' release, [not stated] our choice.

Departures: AdamW, where the release has the 8-bit form.
"""

from __future__ import annotations

from diffalign.recipes.diffusion_dpo import PICKAPIC_V2, SAME_PAIRS
from diffalign.recipes.licences import SDXL
from diffalign.recipes.registry import recipe
from diffalign.train import OptimizerConfig, Plan, TrainConfig

__all__ = ["mapo_sdxl"]


@recipe("mapo_sdxl", paper="arXiv 2406.06424", data=SAME_PAIRS, sources=PICKAPIC_V2, compute="8 H100, hours not stated")
def mapo_sdxl(data: str, model: str = SDXL) -> Plan:
    """MaPO on SDXL, with the released settings."""
    return Plan(
        stages=(
            TrainConfig(
                model=model,
                data=data,
                objective="mapo",
                settings={
                    "beta": 0.1,  # [code]
                    "snr": 0.5,  # [code]
                    "num_timesteps": 1000.0,  # [code]
                },
                train="full",  # [code]
                optimizer=OptimizerConfig(
                    learning_rate=1e-5,  # [code] constant, no warm-up
                    weight_decay=1e-2,  # [code]
                    max_grad_norm=1.0,  # [code]
                ),
                resolution=1024,  # [code] centre crop
                flip=True,  # [code]
                prompt_drop=0.0,  # [code]
                num_steps=2000,  # [code]
                batch_size=128,  # [code] 8 pairs x 2 accumulation x 8 GPUs
                micro_batch_size=8,  # [code]
                mixed_precision="fp16",  # [code]
                gradient_checkpointing=True,  # [code]
            ),
        )
    )
