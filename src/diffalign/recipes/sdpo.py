"""Diffusion-SDPO: Diffusion-DPO whose push on the rejected image is held back where it would harm the chosen one.

Source: arXiv 2511.03317: [code] marks settings of the authors' release, whose script grew out of Diffusion-DPO's.
Effective learning rates are given: the release writes 1e-8 (SD 1.5) and 1e-9 (SDXL) times the batch of 2048.

Departures: one scale for each pair, where the release has one for a micro-batch (that is ``sdpo_batch``); AdamW on SDXL
too, where the release has Adafactor.
"""

from __future__ import annotations

from diffalign.recipes.diffusion_dpo import PICKAPIC_V2, SAME_PAIRS, released_script, released_script_sdxl
from diffalign.recipes.licences import SD15, SDXL
from diffalign.recipes.registry import recipe
from diffalign.train import Plan

__all__ = ["sdpo_sd15", "sdpo_sdxl"]


@recipe("sdpo_sd15", paper="arXiv 2511.03317", data=SAME_PAIRS, sources=PICKAPIC_V2, compute="not stated")
def sdpo_sd15(data: str, model: str = SD15) -> Plan:
    """Diffusion-SDPO on SD 1.5, with the released settings."""
    return Plan(
        stages=(
            released_script(data, model).replace(
                objective="sdpo",
                settings={
                    "beta": 5000.0,  # [code]
                    "mu": 0.9,  # [code]
                },
                batch_size=2048,  # [code] 8 pairs x 32 accumulation x 8 GPUs
                micro_batch_size=8,  # [code]
                mixed_precision="bf16",  # [code]
            ),
        )
    )


@recipe("sdpo_sdxl", paper="arXiv 2511.03317", data=SAME_PAIRS, sources=PICKAPIC_V2, compute="not stated")
def sdpo_sdxl(data: str, model: str = SDXL) -> Plan:
    """Diffusion-SDPO on SDXL, with the released settings."""
    script = released_script_sdxl(data, model)
    return Plan(
        stages=(
            script.replace(
                objective="sdpo",
                settings={
                    "beta": 5000.0,  # [code]
                    "mu": 0.6,  # [code]
                },
                optimizer=script.optimizer.replace(
                    learning_rate=2.048e-6,  # [code] 1e-9 x 2048
                    warmup_steps=500,  # [code] then constant
                ),
                batch_size=2048,  # [code] 8 pairs x 32 accumulation x 8 GPUs
                micro_batch_size=8,  # [code]
                mixed_precision="bf16",  # [code]
            ),
        )
    )
