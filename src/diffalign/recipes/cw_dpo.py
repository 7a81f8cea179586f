"""CW-DPO: gentle negatives first, then a preference whose negative term is cooled.

Source: arXiv 2510.11978, on vision-language models: [paper] marks the order of its two stages, [not stated] our choice.
The transfer to images is ours and untested at scale, and of the paper's stage 1 and of q only the idea is known.
"""

from __future__ import annotations

from diffalign.recipes.borrowed import borrowed_sd15
from diffalign.recipes.licences import SD15
from diffalign.recipes.registry import recipe
from diffalign.train import Plan

__all__ = ["cw_dpo_sd15"]


@recipe(
    "cw_dpo_sd15",
    paper="arXiv 2510.11978, carried over from vision-language models",
    data="pairs; how many is not stated",
    sources=(),
    compute="not stated",
)
def cw_dpo_sd15(data: str, model: str = SD15) -> Plan:
    """CW-DPO on SD 1.5."""
    stage = borrowed_sd15(data, model)
    fit = stage.replace(
        objective="cw_sft",  # [paper]
        settings={"rejected_weight": 0.05},  # [not stated] low, so that the rejected image is not lost altogether
        num_steps=500,  # [not stated]
    )
    compare = stage.replace(
        objective="cw_dpo",  # [paper]
        settings={
            "beta": 2000.0,  # [not stated] as Diffusion-DPO
            "threshold": 0.05,  # [not stated] the push is halved where the rejected error has risen by 5 %
            "temperature": 0.02,  # [not stated]
        },
        reference="start",  # [paper] the first stage
        num_steps=1000,  # [not stated]
    )
    return Plan(stages=(fit, compare))
