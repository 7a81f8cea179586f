"""InPO: Diffusion-DPO on noise found by inversion under the policy, from a fine-tuned start on SD 1.5.

Source: Lu et al. 2025, arXiv 2503.18454: [code] marks settings of the authors' release, whose script grew out of
Diffusion-DPO's, [not stated] our choice. Effective learning rates are given: the release writes 1e-8 times the batch of
1024.

Departures: every row has a timestep of its own, where the release gives a batch one; all steps of the inversion lie
below it, where the release walks those of a fixed grid that do. The fine-tuned SD 1.5 that the release begins at is not
described: a stage of SFT on the chosen images stands for it. AdamW on SDXL too, where the release has Adafactor.
"""

from __future__ import annotations

from diffalign.recipes.borrowed import borrowed_sd15
from diffalign.recipes.diffusion_dpo import PICKAPIC_V2, SAME_PAIRS, released_script, released_script_sdxl
from diffalign.recipes.licences import SD15, SDXL
from diffalign.recipes.registry import recipe
from diffalign.train import Plan, TrainConfig
from diffalign.train.config import InversionConfig

__all__ = ["fitted_first", "inpo_sd15", "inpo_sdxl"]


@recipe("inpo_sd15", paper="arXiv 2503.18454", data=SAME_PAIRS, sources=PICKAPIC_V2, compute="8 GPUs, hours not stated")
def inpo_sd15(data: str, model: str = SD15) -> Plan:
    """InPO on SD 1.5, after a stage of SFT."""
    script = _inverted(released_script(data, model))
    return Plan(
        stages=(
            fitted_first(data, model),
            script.replace(
                settings={"beta": 2000.0},  # [code]
            ),
        )
    )


@recipe("inpo_sdxl", paper="arXiv 2503.18454", data=SAME_PAIRS, sources=PICKAPIC_V2, compute="8 GPUs, hours not stated")
def inpo_sdxl(data: str, model: str = SDXL) -> Plan:
    """InPO on SDXL, from the base."""
    script = _inverted(released_script_sdxl(data, model))
    return Plan(
        stages=(
            script.replace(
                settings={"beta": 5000.0},  # [code]
            ),
        )
    )


def fitted_first(data: str, model: str) -> TrainConfig:
    """The stage before InPO and SmPO on SD 1.5, whose releases begin at a fine-tuned model without saying which."""
    return borrowed_sd15(data, model).replace(
        objective="sft",  # [code]
        settings={},
        num_steps=1000,  # [not stated]
    )


def _inverted(script: TrainConfig) -> TrainConfig:
    return script.replace(
        inversion=InversionConfig(
            num_steps=10,  # [code]
            averaged=False,  # [code]
            extra_noise=0.1,  # [code]
        ),
        optimizer=script.optimizer.replace(
            learning_rate=1.024e-5,  # [code] 1e-8 x 1024
            warmup_steps=200,  # [code] then constant
        ),
        num_steps=400,  # [code]
        batch_size=1024,  # [code] 1 pair x 128 accumulation x 8 GPUs
        micro_batch_size=1,  # [code]
    )
