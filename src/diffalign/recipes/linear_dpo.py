"""Linear-DPO: the logistic weight of a pair as a clipped line, against a reference that follows the policy.

Source: arXiv 2605.21123: [paper] marks what the method asks for, [code] settings of the authors' release, whose script
grew out of Diffusion-DPO's. Learning rates are not scaled there. The scripts for SD 3 pass none of the method's
settings, so there is no recipe for it.

Departures: AdamW on SDXL too, where the release has Adafactor.
"""

from __future__ import annotations

from diffalign.recipes.diffusion_dpo import PICKAPIC_V2, released_script, released_script_sdxl
from diffalign.recipes.licences import SD15, SDXL
from diffalign.recipes.registry import recipe
from diffalign.train import EmaConfig, Plan

__all__ = ["linear_dpo_sd15", "linear_dpo_sdxl"]


@recipe(
    "linear_dpo_sd15",
    paper="arXiv 2605.21123",
    data="85,000 pairs, labelled anew by PickScore",
    sources=PICKAPIC_V2,
    compute="32 GPUs by its script, hours not stated",
)
def linear_dpo_sd15(data: str, model: str = SD15) -> Plan:
    """Linear-DPO on SD 1.5, with the released settings."""
    script = released_script(data, model)
    return Plan(
        stages=(
            script.replace(
                objective="linear_dpo",
                settings={
                    "beta": 100.0,  # [code]
                    "eta": 0.001,  # [code]
                },
                reference="ema",  # [code]
                ema=EmaConfig(
                    decay=0.99,  # [code] of 0.95, 0.99 and 0.995
                    warmup=False,  # [code]
                    every=1,  # [code]
                ),
                optimizer=script.optimizer.replace(
                    learning_rate=5e-6,  # [code] constant
                    warmup_steps=0,  # [code]
                ),
                num_steps=2000,  # [code]
                batch_size=128,  # [code] 1 pair x 4 accumulation x 32 GPUs
                micro_batch_size=1,  # [code]
            ),
        )
    )


@recipe(
    "linear_dpo_sdxl",
    paper="arXiv 2605.21123",
    data="pairs labelled anew by PickScore, number not stated",
    sources=PICKAPIC_V2,
    compute="16 GPUs by its script, hours not stated",
)
def linear_dpo_sdxl(data: str, model: str = SDXL) -> Plan:
    """Linear-DPO on SDXL; its script leaves the averaged reference out, which is the method's and kept here."""
    script = released_script_sdxl(data, model)
    return Plan(
        stages=(
            script.replace(
                objective="linear_dpo",
                settings={
                    "beta": 500.0,  # [code]
                    "eta": 0.0,  # [code]
                },
                reference="ema",  # [paper]
                ema=EmaConfig(
                    decay=0.99,  # [code] of 0.95, 0.99 and 0.995, listed and not passed on
                    warmup=False,  # [code]
                    every=1,  # [code]
                ),
                optimizer=script.optimizer.replace(
                    learning_rate=1e-5,  # [code] constant
                    warmup_steps=0,  # [code]
                ),
                num_steps=2000,  # [code]
                batch_size=128,  # [code] 1 pair x 8 accumulation x 16 GPUs
                micro_batch_size=1,  # [code]
            ),
        )
    )
