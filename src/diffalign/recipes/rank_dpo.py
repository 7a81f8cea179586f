"""RankDPO: Diffusion-DPO on all pairs of a ranked candidate set, weighted by discounted cumulative gain.

Source: Karthik et al. 2024, arXiv 2410.18013: [paper] marks settings of the paper, [not stated] our choice. The paper's
errors are sums over the latent, its beta is unknown here.
"""

from __future__ import annotations

from diffalign.recipes.borrowed import borrowed_sd3, borrowed_sdxl
from diffalign.recipes.licences import SD3M, SDXL
from diffalign.recipes.registry import recipe
from diffalign.train import Plan

__all__ = ["rank_dpo_sd3m", "rank_dpo_sdxl"]

SETS = "58,000 candidate sets of 4 images, one each of 4 models, with the scores of 5 reward models"


@recipe(
    "rank_dpo_sdxl",
    paper="arXiv 2410.18013",
    data=SETS,
    sources=("Syn-Pic",),
    compute="8 A100, 16 hours, base model not stated",
)
def rank_dpo_sdxl(data: str, model: str = SDXL) -> Plan:
    """RankDPO on SDXL."""
    stage = borrowed_sdxl(data, model)
    return Plan(
        stages=(
            stage.replace(
                objective="rank_dpo",
                settings={"beta": 5000.0},  # [not stated] as Diffusion-DPO
                metrics=(),  # [paper] every score votes
                optimizer=stage.optimizer.replace(
                    learning_rate=1.024e-6,  # [not stated] 1e-9 x 1024, the rule of SDPO and PGD
                ),
                num_steps=400,  # [paper]
                batch_size=1024,  # [paper]
            ),
        )
    )


@recipe(
    "rank_dpo_sd3m",
    paper="arXiv 2410.18013",
    data=SETS,
    sources=("Syn-Pic",),
    compute="8 A100, 16 hours, base model not stated",
)
def rank_dpo_sd3m(data: str, model: str = SD3M) -> Plan:
    """RankDPO on SD 3 medium."""
    return Plan(
        stages=(
            borrowed_sd3(data, model).replace(
                objective="rank_dpo",
                settings={"beta": 100.0},  # [not stated] as RealAlign
                metrics=(),  # [paper] every score votes
                num_steps=400,  # [paper]
                batch_size=1024,  # [paper]
            ),
        )
    )
