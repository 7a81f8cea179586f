"""The settings of one training stage."""

from __future__ import annotations

from typing import Any, Literal

from diffalign.core import Config, DiffalignError, setting

__all__ = ["EmaConfig", "LoraConfig", "OptimizerConfig", "SamplesConfig", "TrainConfig"]


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
    guidance_scale: float = setting(1.0, "text guidance while sampling; 1 is off", source="Diffusion-DRO")
    state: Literal["trajectory", "renoised"] = setting(
        "trajectory", "a state on the way to the sample, or the finished sample noised again", source="Diffusion-DRO"
    )
    target: Literal["prediction", "noise"] = setting(
        "prediction", "score against the sampling policy's own output, or the true noise", source="Diffusion-DRO"
    )
    noise: Literal["shared", "independent"] = setting(
        "independent", "renoised: with the noise of the real image, or another", source="Diffusion-DRO"
    )

    def model_post_init(self, _: object) -> None:
        """A state of the trajectory was not made by adding noise.

        Raises:
            DiffalignError: it shall be scored against noise all the same.
        """
        if self.state == "trajectory" and self.target == "noise":
            raise DiffalignError("samples.target noise needs samples.state renoised: a trajectory has no true noise")


class TrainConfig(Config):
    """One offline stage: an objective on preference rows."""

    model: str = setting(..., "folder, hub id or embedded name of the base model")
    data: str = setting(..., "folder or files of preference rows")
    objective: str = setting(..., "a registered name, or module:function")
    settings: dict[str, Any] = setting({}, "of the objective, such as beta")
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
    checkpoint_every: int = setting(100, "optimiser steps between checkpoints", ge=1)
    seed: int = setting(0, "of every draw", ge=0)

    def model_post_init(self, _: object) -> None:
        """Checks that concern several settings.

        Raises:
            DiffalignError: they contradict each other.
        """
        if self.reference == "ema" and self.ema is None:
            raise DiffalignError("reference ema needs the section ema, with its decay")
        if self.start and self.start_as == "fuse" and self.train == "lora" and self.mixed_precision != "no":
            raise DiffalignError(
                f"start_as fuse with {self.mixed_precision} rounds part of the LoRA away: set start_as to keep, which "
                "gives the same model and loses nothing"
            )
