"""Self-NPO: a model weakened by its own over-smoothed estimates, for the negative branch of guidance; no preferences.

Source: arXiv 2505.11777: [paper] marks settings of the paper, [code] of the authors' release, [not stated] our choice.
Its guidance adds to the conditional prediction, g_self = -1 and -5; here a scale of 1 is off, so they are 0 and -4.

Departures: trajectories begin at noise, as in the paper, where the release begins at noised photographs of any level
and takes K = 5 steps; so that all levels are met here too, they are broken off after a random number of steps. Squared
error in the network's own target, where the release has a pseudo-Huber error of x0; a copy of the policy samples,
where the release samples from its average; AdamW, where the release has the 8-bit form.
"""

from __future__ import annotations

from diffalign.recipes.licences import SD15, SDXL
from diffalign.recipes.registry import recipe
from diffalign.train import EmaConfig, OptimizerConfig, Plan, SamplesConfig, TrainConfig

__all__ = ["self_npo_sd15", "self_npo_sdxl"]

PROMPTS = "images with captions, of which the captions alone are used here; which and how many is not stated"


@recipe("self_npo_sd15", paper="arXiv 2505.11777", data=PROMPTS, sources=(), compute="2 A800-hours")
def self_npo_sd15(data: str, model: str = SD15) -> Plan:
    """Self-NPO on SD 1.5."""
    return Plan(
        stages=(
            TrainConfig(
                model=model,
                data=data,
                objective="self_npo",
                train="full",  # [code]
                optimizer=OptimizerConfig(
                    learning_rate=1e-6,  # [code] constant
                    weight_decay=1e-3,  # [code]
                    max_grad_norm=1.0,  # [code]
                ),
                ema=EmaConfig(
                    decay=0.999,  # [code] what samples there
                    warmup=False,  # [code]
                ),
                samples=SamplesConfig(
                    state="truncated",  # [paper]
                    num_steps=25,  # [code] of the DDIM grid
                    truncate=0,  # [not stated] a random number: K = 5 of 25 would meet the noisiest levels alone
                    guidance_scale=0.0,  # [code] g_self = -1: the empty prompt alone
                    refresh_every=500,  # [not stated] lags behind the policy about as the average of the release does
                ),
                resolution=512,  # [code]
                flip=True,  # [not stated]
                prompt_drop=0.0,  # [code] the student sees the real prompt
                num_steps=1000,  # [code]
                batch_size=20,  # [code] number of GPUs not stated
                micro_batch_size=20,  # [code]
                mixed_precision="fp16",  # [code]
            ),
        )
    )


@recipe("self_npo_sdxl", paper="arXiv 2505.11777", data=PROMPTS, sources=(), compute="not stated")
def self_npo_sdxl(data: str, model: str = SDXL) -> Plan:
    """Self-NPO on SDXL, where the empty prompt alone would not weaken enough."""
    stage = self_npo_sd15(data, model).stages[0]
    assert stage.samples is not None
    return Plan(
        stages=(
            stage.replace(
                optimizer=stage.optimizer.replace(
                    learning_rate=1e-7,  # [code] constant
                    weight_decay=0.0,  # [code]
                ),
                samples=stage.samples.replace(
                    guidance_scale=-4.0,  # [code] g_self = -5: away from the prompt
                ),
                resolution=1024,  # [code]
                batch_size=10,  # [code] number of GPUs not stated
                micro_batch_size=10,  # [code]
                gradient_checkpointing=True,  # [code]
            ),
        )
    )
