"""The settings of one training stage."""

from __future__ import annotations

from typing import Any, Literal

from diffalign.core import Config, DiffalignError, setting, unknown

__all__ = [
    "EmaConfig",
    "InversionConfig",
    "LoraConfig",
    "OptimizerConfig",
    "SamplesConfig",
    "StrengthConfig",
    "TrainConfig",
    "ValidationConfig",
    "WeightsConfig",
]


class LoraConfig(Config):
    """The adapter that is trained."""

    rank: int = setting(4, "rank of the update", ge=1, source="RealAlign, SD 1.5")
    alpha: float = setting(4.0, "the update is scaled by alpha / rank", gt=0, source="RealAlign, SD 1.5")
    targets: tuple[str, ...] = setting((), "layer names or endings; empty for the family's own")
    init: Literal["gaussian", "default"] = setting("gaussian", "of the down matrices", source="RealAlign, SD 1.5")


class OptimizerConfig(Config):
    """AdamW and its learning rate."""

    learning_rate: float = setting(1e-4, "after warm-up", gt=0, source="Diffusion-DRO")
    betas: tuple[float, float] = setting((0.9, 0.999), "of AdamW")
    eps: float = setting(1e-8, "of AdamW", gt=0)
    weight_decay: float = setting(1e-2, "of AdamW", ge=0)
    warmup_steps: int = setting(0, "linear warm-up from 0", unit="optimiser steps", ge=0)
    schedule: Literal["constant", "cosine"] = setting("constant", "after warm-up; cosine ends at 0 at the last step")
    max_grad_norm: float = setting(1.0, "gradients are clipped to this norm", gt=0, source="Diffusion-DRO")


class EmaConfig(Config):
    """An exponential moving average of the policy."""

    decay: float = setting(0.9999, "of the old average at each update", gt=0, lt=1, source="Diffusion-DRO")
    warmup: bool = setting(True, "bound the decay by (1 + n) / (10 + n) at the n-th update")
    every: int = setting(1, "update the average every so often", unit="optimiser steps", ge=1)


class SamplesConfig(Config):
    """The policy's own samples, for objectives that ask for policy_err."""

    refresh_every: int = setting(
        1,
        "M: sample from a copy of the policy refreshed this often; 1 is the live policy",
        unit="optimiser steps",
        ge=1,
    )
    num_steps: int = setting(20, "network calls per sample", ge=1, source="Diffusion-DRO, SD 1.5")
    guidance_scale: float = setting(
        1.0, "text guidance while sampling; 1 is off, 0 is the empty prompt alone", source="Diffusion-DRO"
    )
    state: Literal["trajectory", "renoised", "truncated"] = setting(
        "trajectory",
        "a state on the way to the sample; the finished sample noised again; or a state where the way was broken off, "
        "noised further, whose target is the clean image that was seen there",
        source="Diffusion-DRO",
    )
    truncate: int = setting(
        5, "truncated: steps of num_steps that are taken; 0 for a random number", unit="steps", ge=0, source="Self-NPO"
    )
    target: Literal["prediction", "noise"] = setting(
        "prediction", "score against the sampling policy's own output, or the true noise", source="Diffusion-DRO"
    )
    noise: Literal["shared", "independent"] = setting(
        "independent", "renoised: with the noise of the real image, or another", source="Diffusion-DRO"
    )

    def model_post_init(self, _: object) -> None:
        """Checks that concern several settings.

        Raises:
            DiffalignError: a state that was not made by adding noise shall be scored against noise; a way is broken
                off after its end; or a setting belongs to another state.
        """
        if self.state != "renoised" and self.target == "noise":
            raise DiffalignError(f"samples.target noise needs samples.state renoised: a {self.state} has no true noise")
        if self.noise != _default(self, "noise") and self.state != "renoised":
            raise DiffalignError(
                f"samples.noise {self.noise} needs samples.state renoised: a {self.state} is not noised with it"
            )
        if self.truncate != _default(self, "truncate") and self.state != "truncated":
            raise DiffalignError(
                f"samples.truncate {self.truncate} needs samples.state truncated: a {self.state} goes its whole way"
            )
        if self.state == "truncated" and self.truncate >= self.num_steps:
            raise DiffalignError(
                f"samples.truncate {self.truncate} must stay below samples.num_steps {self.num_steps}: the way is "
                "broken off before its end"
            )


class InversionConfig(Config):
    """Noisy latents from walking the images up the policy's own trajectory, in place of added noise."""

    num_steps: int = setting(10, "network calls from the clean image to its timestep", ge=1, source="InPO, 10")
    averaged: bool = setting(False, "each step once more with the mean of both its ends", source="SmPO")
    extra_noise: float = setting(
        0.1, "share of fresh noise added at every step, of its size there", ge=0, source="InPO"
    )


class WeightsConfig(Config):
    """The weight of a row from a score of its chosen image: exp(score / temperature), over its mean."""

    metric: str = setting(..., "a score that every row has")
    temperature: float = setting(1.0, "in the unit of the score; large makes all rows alike", gt=0)


class StrengthConfig(Config):
    """How ``beta: auto`` is found: a few steps are taken, beta is solved for, and the run begins anew with it."""

    gradient_factor: float = setting(
        0.6,
        "share of the rows' gradients that after those steps is as at policy = reference; see training.md",
        gt=0,
        lt=1,
    )
    num_steps: int = setting(20, "optimiser steps of the trial", ge=2)


class ValidationConfig(Config):
    """Images of validation prompts while the run goes, always from the same noise."""

    prompts: str = setting(..., "file of prompts or a named list, as diffalign sample takes them")
    limit: int = setting(16, "use the first so many prompts; 0 for all", unit="prompts", ge=0)
    num_seeds: int = setting(2, "images per prompt; diversity needs 2", unit="images", ge=1)
    num_steps: int = setting(25, "of the solver", unit="steps", ge=1, le=1000)
    guidance_scale: float = setting(7.5, "of text guidance; 1 is off", ge=0, source="diffusers, SD 1.x")
    every: int = setting(100, "before the first step, every so often, and at the end", unit="optimiser steps", ge=1)
    rewards: tuple[str, ...] = setting((), "rewards that score the images, as diffalign score names them")
    weights: dict[str, str] = setting({}, "folder or hub id of rewards' weights, by the reward's name")
    choose: str = setting("", "keep the weights with the highest mean of this reward as best/; empty keeps none")
    min_diversity: float = setting(
        0.5, "alarm, and no choice, where images of a prompt differ by less than this share of the start's", ge=0
    )

    def model_post_init(self, _: object) -> None:
        """Checks that concern several settings.

        Raises:
            DiffalignError: a reward is named that is not among the rewards, or one is named twice; or nothing can have
                the diversity that is asked for.
        """
        if len(set(self.rewards)) != len(self.rewards):
            raise DiffalignError(f"expected every one of validation.rewards once, got {', '.join(self.rewards)}")
        named = [("choose", name) for name in (self.choose,) if name] + [("weights", name) for name in self.weights]
        for where, name in named:
            if name not in self.rewards:
                raise unknown(f"one of validation.rewards in validation.{where}", name, self.rewards)
        if self.num_seeds == 1 and self.min_diversity not in (0, _default(self, "min_diversity")):
            raise DiffalignError(
                f"validation.min_diversity {self.min_diversity:g} needs validation.num_seeds of at least 2: one image "
                "per prompt has no diversity"
            )


class TrainConfig(Config):
    """One offline stage: an objective on preference rows."""

    model: str = setting(..., "folder, hub id or embedded name of the base model")
    data: str = setting(..., "folder or files of preference rows")
    objective: str = setting(..., "a registered name, or module:function")
    settings: dict[str, Any] = setting({}, "of the objective, such as beta, a number or auto")
    strength: StrengthConfig = setting(StrengthConfig(), "what beta auto aims at")
    start: str = setting("", "LoRA, or folder of a fine-tuned denoiser, that the run starts from; empty for the base")
    start_as: Literal["continue", "keep", "fuse"] = setting(
        "continue", "a LoRA: train on it itself, keep it on beside the new one, or fuse it into the weights"
    )
    train: Literal["lora", "full"] = setting("lora", "what is trained")
    lora: LoraConfig = setting(LoraConfig(), "the adapter, where one is trained")
    reference: str = setting(
        "start",
        "what ref_* is measured with: start, the policy as it began; base, the model without any adapter; ema, the "
        "moving average; or a LoRA or denoiser folder",
    )
    optimizer: OptimizerConfig = setting(OptimizerConfig(), "optimiser and learning rate")
    ema: EmaConfig | None = setting(None, "moving average of the policy; none by default")
    samples: SamplesConfig | None = setting(None, "own samples, for objectives that ask for policy_err")
    metrics: tuple[str, ...] = setting((), "scores of candidate sets that the objective sees; empty for all, by name")
    weights: WeightsConfig | None = setting(None, "for objectives that ask for weight; 1 for every row by default")
    outside_weight: float = setting(
        1.0, "weight in the errors of what a row's damage mask leaves out; 1 looks at the whole image", ge=0, le=1
    )
    inversion: InversionConfig | None = setting(None, "noise by inversion under the policy; added noise by default")
    remember: int = setting(
        0,
        "measure the reference once under so many fixed draws of timestep and noise per row, and train on those draws; "
        "0 draws afresh at each step",
        ge=0,
    )
    resolution: int = setting(512, "images are resized and centre-cropped to it", unit="pixels", ge=8)
    max_sequence_length: int = setting(256, "T5 tokens per prompt, where the model has T5", unit="tokens", ge=1)
    flip: bool = setting(True, "mirror half of the rows, both sides of a pair alike")
    prompt_drop: float = setting(0.0, "share of rows whose prompt is emptied", ge=0, lt=1)
    num_steps: int = setting(1000, "optimiser steps", ge=1)
    batch_size: int = setting(256, "rows per optimiser step, over all processes", unit="rows", ge=1)
    micro_batch_size: int = setting(4, "rows per forward pass on one process", unit="rows", ge=1)
    mixed_precision: Literal["no", "bf16", "fp16"] = setting(
        "no",
        "what the networks compute in; with a LoRA also what the frozen weights are held in. Trained weights and "
        "errors stay float32",
    )
    gradient_checkpointing: bool = setting(False, "recompute activations at backward: less memory, slower")
    validation: ValidationConfig | None = setting(None, "images, scores and choice while it trains; none by default")
    checkpoint_every: int = setting(100, "optimiser steps between checkpoints", ge=1)
    seed: int = setting(0, "of every draw", ge=0)

    def model_post_init(self, _: object) -> None:
        """Checks that concern several settings.

        Raises:
            DiffalignError: they contradict each other.
        """
        if self.reference == "ema" and self.ema is None:
            raise DiffalignError("reference ema needs the section ema, with its decay")
        if self.remember and (self.reference == "ema" or self.samples is not None or self.inversion is not None):
            raise DiffalignError(
                "remember keeps errors of a reference that stands still, on draws that come again: it does not go with "
                "reference ema, samples or inversion"
            )
        if self.start and self.start_as == "fuse" and self.train == "lora" and self.mixed_precision != "no":
            raise DiffalignError(
                f"start_as fuse with {self.mixed_precision} rounds part of the LoRA away: set start_as to keep, which "
                "gives the same model and loses nothing"
            )
        if self.inversion is not None and self.samples is not None and self.samples.noise == "shared":
            raise DiffalignError(
                "samples.noise shared is the noise added to the real image, and with inversion none is: leave one out"
            )


def _default(config: Config, name: str) -> Any:
    return type(config).model_fields[name].default
