"""DSPO: the preference moves what the network should predict.

Source: Zhu et al., ICLR 2025, OpenReview xyfb9HHvMe: [code] marks settings of the authors' release, whose script grew
out of Diffusion-DPO's. Its SDXL form is another loss and not here.
"""

from __future__ import annotations

from diffalign.recipes.diffusion_dpo import PICKAPIC_V2, SAME_PAIRS, released_script
from diffalign.recipes.licences import SD15
from diffalign.recipes.registry import recipe
from diffalign.train import Plan

__all__ = ["dspo_sd15"]


@recipe("dspo_sd15", paper="OpenReview xyfb9HHvMe", data=SAME_PAIRS, sources=PICKAPIC_V2, compute="not stated")
def dspo_sd15(data: str, model: str = SD15) -> Plan:
    """DSPO on SD 1.5, with the released settings."""
    return Plan(
        stages=(
            released_script(data, model).replace(
                objective="dspo",
                settings={"beta": 0.001},  # [code] in both places
                batch_size=2048,  # [code] 16 pairs x 128 accumulation
                micro_batch_size=16,  # [code]
            ),
        )
    )
