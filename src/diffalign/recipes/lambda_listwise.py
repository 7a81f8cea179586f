"""Lambda-weighted listwise DPO: the policy's distribution over a candidate set against a mixture of the metrics'.

Source: arXiv 2506.19780, on language models, with beta 0.1, a learning rate of 5e-6 and 3 epochs, none of which means
anything for errors of images. The transfer is ours and untested at scale: every mark is [not stated].
"""

from __future__ import annotations

from diffalign.recipes.borrowed import borrowed_sd15
from diffalign.recipes.licences import SD15
from diffalign.recipes.registry import recipe
from diffalign.train import Plan

__all__ = ["lambda_listwise_sd15"]


@recipe(
    "lambda_listwise_sd15",
    paper="arXiv 2506.19780, carried over from language models",
    data="candidate sets of 4 to 8 images with 3 scores: by name hpsv2.1, image_reward and pickscore",
    sources=(),
    compute="not stated",
)
def lambda_listwise_sd15(data: str, model: str = SD15) -> Plan:
    """Lambda-weighted listwise DPO on SD 1.5, under three rewards of equal weight.

    ``--set stages.0.metrics=[...]`` names others, with as many weights and temperatures in ``stages.0.settings``.
    """
    return Plan(
        stages=(
            borrowed_sd15(data, model).replace(
                objective="lambda_listwise",
                settings={
                    "beta": 2000.0,  # [not stated] as Diffusion-DPO
                    "metric_weights": [1 / 3, 1 / 3, 1 / 3],  # [not stated] lambda, equal
                    "temperatures": [0.01, 1.0, 1.0],  # [not stated] the scale on which each reward was fitted to votes
                },
                metrics=("hpsv2.1", "image_reward", "pickscore"),  # [not stated]
            ),
        )
    )
