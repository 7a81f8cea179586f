"""Diffusion-NPO: a LoRA that prefers the rejected image, for the negative branch of guidance.

Source: arXiv 2505.11245: [code] marks settings of the authors' release, [not stated] our choice. Its beta has no factor
1/2: what it calls 500 and 2000 is 1000 and 4000 here.

Departures: AdamW, where the release has the 8-bit form; ties are left out, where the release trains on them.
"""

from __future__ import annotations

from diffalign.recipes.licences import SD15, SDXL
from diffalign.recipes.registry import recipe
from diffalign.train import LoraConfig, OptimizerConfig, Plan, TrainConfig

__all__ = ["diffusion_npo_sd15", "diffusion_npo_sdxl"]

PAIRS = "583,747 pairs, ties among them"
PICKAPIC_V1 = ("yuvalkirstain/pickapic_v1",)


@recipe(
    "diffusion_npo_sd15",
    paper="arXiv 2505.11245",
    data=PAIRS,
    sources=PICKAPIC_V1,
    compute="153.6 A800-hours with a LoRA, base model not stated",
)
def diffusion_npo_sd15(data: str, model: str = SD15) -> Plan:
    """Diffusion-NPO on SD 1.5, the variant made from Diffusion-DPO, with the released settings."""
    return Plan(
        stages=(
            TrainConfig(
                model=model,
                data=data,
                objective="diffusion_npo",
                settings={"beta": 1000.0},  # [code] 500 in its convention
                lora=LoraConfig(
                    rank=8,  # [code] to_q, to_k, to_v, to_out.0
                    alpha=8.0,  # [code]
                    init="gaussian",  # [not stated]
                ),
                reference="start",  # [code] the base, with the LoRA off
                optimizer=OptimizerConfig(
                    learning_rate=5e-6,  # [code] constant, no warm-up
                    weight_decay=1e-2,  # [code]
                    max_grad_norm=1.0,  # [code]
                ),
                resolution=512,  # [code] centre crop
                flip=True,  # [code]
                prompt_drop=0.0,  # [code]
                num_steps=2000,  # [code] the released checkpoint of at most 5000
                batch_size=64,  # [code] per GPU; number of GPUs not stated
                micro_batch_size=64,  # [code]
                mixed_precision="fp16",  # [code]
                gradient_checkpointing=True,  # [code]
            ),
        )
    )


@recipe(
    "diffusion_npo_sdxl",
    paper="arXiv 2505.11245",
    data=PAIRS,
    sources=PICKAPIC_V1,
    compute="153.6 A800-hours with a LoRA, base model not stated",
)
def diffusion_npo_sdxl(data: str, model: str = SDXL) -> Plan:
    """Diffusion-NPO on SDXL, the variant made from Diffusion-DPO, with the released settings."""
    stage = diffusion_npo_sd15(data, model).stages[0]
    return Plan(
        stages=(
            stage.replace(
                settings={"beta": 4000.0},  # [code] 2000 in its convention
                resolution=1024,  # [code]
                batch_size=60,  # [code] 30 x 2 accumulation per GPU; number of GPUs not stated
                micro_batch_size=30,  # [code]
            ),
        )
    )
