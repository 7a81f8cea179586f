"""SmPO: Diffusion-DPO whose strength follows how clear a preference is, on noise found by averaged inversion.

Source: Lu et al. 2025, arXiv 2506.02698: [code] marks settings of the authors' release, whose script grew out of
Diffusion-DPO's, [not stated] our choice. Effective learning rates are given: the release writes 1e-8 times the batch of
1024. A row's label is the softmax of its two PickScores, each scaled to [0, 1] by the range 0.1154 to 0.2820 of the
cosine, as ``diffalign label PAIRS OUT --metric pickscore --temperature 16.66`` writes it.

Departures: a label and a timestep for each row, where the release takes those of the first row for a batch; all steps
of the inversion lie below that timestep, where the release walks those of a fixed grid that do. The fine-tuned SD 1.5
that the release begins at is not described: a stage of SFT stands for it. AdamW on SDXL too, where the release has
Adafactor.
"""

from __future__ import annotations

from diffalign.recipes.diffusion_dpo import PICKAPIC_V2, released_script, released_script_sdxl
from diffalign.recipes.inpo import fitted_first
from diffalign.recipes.licences import SD15, SDXL
from diffalign.recipes.registry import recipe
from diffalign.train import Plan, TrainConfig
from diffalign.train.config import InversionConfig

__all__ = ["smpo_sd15", "smpo_sdxl"]

PAIRS = "pairs of Pick-a-Pic v2 with labels from PickScore in place of the votes, number not stated"


@recipe("smpo_sd15", paper="arXiv 2506.02698", data=PAIRS, sources=PICKAPIC_V2, compute="8 GPUs, hours not stated")
def smpo_sd15(data: str, model: str = SD15) -> Plan:
    """SmPO on SD 1.5, after a stage of SFT."""
    script = _smoothed(released_script(data, model))
    return Plan(
        stages=(
            fitted_first(data, model),
            script.replace(
                settings={
                    "beta": 2000.0,  # [code]
                    "gamma": 10.0,  # [code]
                },
                inversion=InversionConfig(
                    num_steps=5,  # [code]
                    averaged=True,  # [code] two calls a step
                    extra_noise=0.0,  # [code]
                ),
            ),
        )
    )


@recipe("smpo_sdxl", paper="arXiv 2506.02698", data=PAIRS, sources=PICKAPIC_V2, compute="8 GPUs, hours not stated")
def smpo_sdxl(data: str, model: str = SDXL) -> Plan:
    """SmPO on SDXL, from the base."""
    script = _smoothed(released_script_sdxl(data, model))
    return Plan(
        stages=(
            script.replace(
                settings={
                    "beta": 5000.0,  # [code]
                    "gamma": 10.0,  # [code]
                },
                inversion=InversionConfig(
                    num_steps=10,  # [code]
                    averaged=True,  # [code] two calls a step
                    extra_noise=0.0,  # [code]
                ),
            ),
        )
    )


def _smoothed(script: TrainConfig) -> TrainConfig:
    return script.replace(
        objective="smpo",
        optimizer=script.optimizer.replace(
            learning_rate=1.024e-5,  # [code] 1e-8 x 1024
            warmup_steps=100,  # [code] then constant
        ),
        num_steps=200,  # [code]
        batch_size=1024,  # [code] 1 pair x 128 accumulation x 8 GPUs
        micro_batch_size=1,  # [code]
    )
