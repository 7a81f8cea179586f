"""DMPO: the reverse divergence from a nearly certain preference.

Source: Li et al. 2025, arXiv 2507.07510: [code] marks settings of the scripts in the release of Diffusion-SDPO (arXiv
2511.03317), which trains it with that method's gate on top; here it is alone.

Departures: AdamW on SDXL too, where that release has Adafactor.
"""

from __future__ import annotations

from diffalign.recipes.diffusion_dpo import PICKAPIC_V2, SAME_PAIRS
from diffalign.recipes.licences import SD15, SDXL
from diffalign.recipes.registry import recipe
from diffalign.recipes.sdpo import sdpo_sd15, sdpo_sdxl
from diffalign.train import Plan

__all__ = ["dmpo_sd15", "dmpo_sdxl"]


@recipe("dmpo_sd15", paper="arXiv 2507.07510", data=SAME_PAIRS, sources=PICKAPIC_V2, compute="not stated")
def dmpo_sd15(data: str, model: str = SD15) -> Plan:
    """DMPO on SD 1.5."""
    stage = sdpo_sd15(data, model).stages[0]
    return Plan(
        stages=(
            stage.replace(
                objective="dmpo",
                settings={
                    "beta": 2000.0,  # [code]
                    "alpha": 0.01,  # [code]
                },
            ),
        )
    )


@recipe("dmpo_sdxl", paper="arXiv 2507.07510", data=SAME_PAIRS, sources=PICKAPIC_V2, compute="not stated")
def dmpo_sdxl(data: str, model: str = SDXL) -> Plan:
    """DMPO on SDXL."""
    stage = sdpo_sdxl(data, model).stages[0]
    return Plan(
        stages=(
            stage.replace(
                objective="dmpo",
                settings={
                    "beta": 6000.0,  # [code]
                    "alpha": 0.01,  # [code]
                },
            ),
        )
    )
