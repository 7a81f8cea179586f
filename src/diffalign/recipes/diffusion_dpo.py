"""Diffusion-DPO: the preferred image shall gain more over the reference than the other one.

Source: Wallace et al. 2023, arXiv 2311.12908: [paper] marks settings of the paper, [code] of the authors' release, [not
stated] our choice. Paper and release differ a thousandfold in the learning rate; the release's is taken, as by those
who reproduced it. Effective learning rates are given: the release writes 1e-8 times the batch of 2048.

Departures: AdamW on SDXL too, where the release has Adafactor. Also there: prompts are dropped to the model's own
unconditional branch, zeros, where the release encodes the empty text, and the autoencoder is the model's own in
float32, where the release has one retuned for half precision.
"""

from __future__ import annotations

from diffalign.recipes.licences import SD15, SDXL
from diffalign.recipes.registry import recipe
from diffalign.train import OptimizerConfig, Plan, TrainConfig

__all__ = ["diffusion_dpo_sd15", "diffusion_dpo_sdxl", "released_script", "released_script_sdxl"]

PAIRS = "851,293 pairs of 58,960 prompts, ties left out"
SAME_PAIRS = "the pairs of Pick-a-Pic v2, ties left out"  # of papers that give no number
PICKAPIC_V2 = ("yuvalkirstain/pickapic_v2",)


def released_script(data: str, model: str) -> TrainConfig:
    """What the released script does on SD 1.5, and with it the scripts of the papers that grew out of it.

    Those of DMPO, DSPO, InPO, Linear-DPO, PGD, SDPO and SmPO keep all that their recipes do not change.
    """
    return TrainConfig(
        model=model,
        data=data,
        objective="diffusion_dpo",
        settings={"beta": 5000.0},  # [code]
        train="full",  # [code]
        reference="start",  # [code] a frozen copy
        optimizer=OptimizerConfig(
            learning_rate=2.048e-5,  # [code] 1e-8 x 2048
            warmup_steps=500,  # [code] then constant
            weight_decay=1e-2,  # [code]
            max_grad_norm=1.0,  # [code]
        ),
        resolution=512,  # [code] short side, centre crop
        flip=True,  # [code]
        prompt_drop=0.2,  # [code]
        num_steps=2000,  # [code]
        batch_size=2048,  # [code] 1 pair x 128 accumulation x 16 GPUs
        micro_batch_size=1,  # [code]
        mixed_precision="fp16",  # [code]
    )


def released_script_sdxl(data: str, model: str) -> TrainConfig:
    """What the released script does on SDXL, and with it those of the papers that grew out of it."""
    script = released_script(data, model)
    return script.replace(
        optimizer=script.optimizer.replace(warmup_steps=200),  # [code] Adafactor there
        resolution=1024,  # [code]
        gradient_checkpointing=True,  # [code]
    )


@recipe(
    "diffusion_dpo_sd15",
    paper="arXiv 2311.12908",
    data=PAIRS,
    sources=PICKAPIC_V2,
    compute="16 A100, about 24 hours",
)
def diffusion_dpo_sd15(data: str, model: str = SD15) -> Plan:
    """Diffusion-DPO on SD 1.5: the paper's beta with the release's learning rate.

    The paper's rule, rate proportional to 1/beta, gives that rate at this beta, once multiplied by the thousand.
    """
    script = released_script(data, model)
    return Plan(
        stages=(
            script.replace(
                settings={"beta": 2000.0},  # [paper] the release has 5000; the paper found 2000 to 5000 to work
            ),
        )
    )


@recipe(
    "diffusion_dpo_sdxl",
    paper="arXiv 2311.12908",
    data=PAIRS,
    sources=PICKAPIC_V2,
    compute="16 A100, about 30 hours for 200 steps",
)
def diffusion_dpo_sdxl(data: str, model: str = SDXL) -> Plan:
    """Diffusion-DPO on SDXL, with the released settings."""
    script = released_script_sdxl(data, model)
    return Plan(
        stages=(
            script.replace(
                settings={"beta": 5000.0},  # [paper] and the release
            ),
        )
    )
