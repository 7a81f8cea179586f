"""PGD and cPGD: modules that guide at sampling time instead of replacing the model.

PGD's module is a Diffusion-DPO model. cPGD has two, fitted independently: to the chosen images and to the rejected
ones, without pairing and without a reference. ``guidance.Contrastive`` puts them to use; the released scripts take a
preference weight of 10.

Source: arXiv 2602.18799: [code] marks settings of the authors' release, whose scripts are for SDXL alone, [not stated]
our choice. Effective learning rates are given: the release writes 1e-9 times 2048 rows on one GPU.

The release trains on Pick-a-Pic v2, or on HPDv3 with an optional filter: pairs whose two images both come from one of
flux, kolors, sd3, sdxl, hunyuan, real_images, infinity and midjourney. ``read_hpdv3(path, sources=[...])`` does that.
It pads to a square at random there; images are cropped here.

Departures: on SDXL those of ``diffusion_dpo``, AdamW for Adafactor among them. Full weights as released:
``--set stages.0.train=lora`` trains modules that one network can hold side by side.
"""

from __future__ import annotations

from diffalign.recipes.diffusion_dpo import PICKAPIC_V2, SAME_PAIRS, released_script, released_script_sdxl
from diffalign.recipes.licences import SD15, SDXL
from diffalign.recipes.registry import recipe
from diffalign.train import Plan, TrainConfig

__all__ = [
    "cpgd_negative_sd15",
    "cpgd_negative_sdxl",
    "cpgd_positive_sd15",
    "cpgd_positive_sdxl",
    "pgd_sd15",
    "pgd_sdxl",
]

EITHER = ("yuvalkirstain/pickapic_v2", "MizzenAI/HPDv3")
CHOSEN = "the chosen images of pairs, ties left out"
REJECTED = "the rejected images of pairs, ties left out"


@recipe("pgd_sd15", paper="arXiv 2602.18799", data=SAME_PAIRS, sources=PICKAPIC_V2, compute="not stated")
def pgd_sd15(data: str, model: str = SD15) -> Plan:
    """PGD's module on SD 1.5: Diffusion-DPO with beta 5000. The release has no script for it; SDXL's is followed."""
    return Plan(stages=(_pair_module(released_script(data, model)),))


@recipe("pgd_sdxl", paper="arXiv 2602.18799", data=SAME_PAIRS, sources=PICKAPIC_V2, compute="not stated")
def pgd_sdxl(data: str, model: str = SDXL) -> Plan:
    """PGD's module on SDXL: Diffusion-DPO with beta 5000, at a tenth of the learning rate of that one's release."""
    return Plan(stages=(_pair_module(released_script_sdxl(data, model)),))


@recipe("cpgd_positive_sd15", paper="arXiv 2602.18799", data=CHOSEN, sources=EITHER, compute="not stated")
def cpgd_positive_sd15(data: str, model: str = SD15) -> Plan:
    """cPGD's positive module on SD 1.5, fitted to the chosen images. The release's script for SDXL is followed."""
    return Plan(stages=(_positive(released_script(data, model)),))


@recipe("cpgd_negative_sd15", paper="arXiv 2602.18799", data=REJECTED, sources=EITHER, compute="not stated")
def cpgd_negative_sd15(data: str, model: str = SD15) -> Plan:
    """cPGD's negative module on SD 1.5, fitted to the rejected images. The release's script for SDXL is followed."""
    return Plan(stages=(_negative(released_script(data, model)),))


@recipe("cpgd_positive_sdxl", paper="arXiv 2602.18799", data=CHOSEN, sources=EITHER, compute="not stated")
def cpgd_positive_sdxl(data: str, model: str = SDXL) -> Plan:
    """cPGD's positive module on SDXL, fitted to the chosen images."""
    return Plan(stages=(_positive(released_script_sdxl(data, model)),))


@recipe("cpgd_negative_sdxl", paper="arXiv 2602.18799", data=REJECTED, sources=EITHER, compute="not stated")
def cpgd_negative_sdxl(data: str, model: str = SDXL) -> Plan:
    """cPGD's negative module on SDXL, fitted to the rejected images."""
    return Plan(stages=(_negative(released_script_sdxl(data, model)),))


def _positive(script: TrainConfig) -> TrainConfig:
    return _module(script).replace(
        objective="sft",
        settings={},
    )


def _negative(script: TrainConfig) -> TrainConfig:
    return _module(script).replace(
        objective="sft_on_rejected",
        settings={},
    )


def _pair_module(script: TrainConfig) -> TrainConfig:
    return _module(script).replace(
        objective="diffusion_dpo",
        settings={"beta": 5000.0},  # [code]
    )


def _module(script: TrainConfig) -> TrainConfig:
    """What the three scripts of the release have in common."""
    return script.replace(
        optimizer=script.optimizer.replace(
            learning_rate=2.048e-6,  # [code] 1e-9 x 2048, on one GPU
            warmup_steps=200,  # [code] then constant
        ),
        num_steps=2000,  # [code]
        batch_size=2048,  # [code] 8 rows x 256 accumulation, on one GPU
        micro_batch_size=8,  # [code]
    )
