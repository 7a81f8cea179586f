"""Settings for what a paper does not publish: those of Diffusion-DPO and RealAlign, at a batch that few GPUs can hold.

Every mark here is [not stated]: no number of these is the paper's whose recipe they serve.
"""

from __future__ import annotations

from diffalign.train import LoraConfig, OptimizerConfig, TrainConfig

__all__ = ["borrowed_sd3", "borrowed_sd15", "borrowed_sdxl"]


def borrowed_sd15(data: str, model: str) -> TrainConfig:
    """Full weights of SD 1.5, as Diffusion-DPO trains them; the objective is Diffusion-DPO's until it is replaced."""
    return TrainConfig(
        model=model,
        data=data,
        objective="diffusion_dpo",
        settings={"beta": 2000.0},  # [not stated] as Diffusion-DPO
        train="full",  # [not stated] as Diffusion-DPO
        reference="start",  # [not stated] as Diffusion-DPO
        optimizer=OptimizerConfig(
            learning_rate=2.56e-6,  # [not stated] 1e-8 x 256, the rule of Diffusion-DPO's release
            warmup_steps=100,  # [not stated]
            weight_decay=1e-2,  # [not stated] as Diffusion-DPO
            max_grad_norm=1.0,  # [not stated] as Diffusion-DPO
        ),
        resolution=512,  # [not stated] as Diffusion-DPO
        flip=True,  # [not stated] as Diffusion-DPO
        prompt_drop=0.2,  # [not stated] as Diffusion-DPO
        num_steps=2000,  # [not stated] as Diffusion-DPO
        batch_size=256,  # [not stated] as RealAlign
        micro_batch_size=4,  # [not stated]
        mixed_precision="bf16",  # [not stated]
    )


def borrowed_sdxl(data: str, model: str) -> TrainConfig:
    """Full weights of SDXL, as those train them that came after Diffusion-DPO: at a tenth of its learning rate."""
    stage = borrowed_sd15(data, model)
    return stage.replace(
        settings={"beta": 5000.0},  # [not stated] as Diffusion-DPO
        optimizer=stage.optimizer.replace(
            learning_rate=2.56e-7,  # [not stated] 1e-9 x 256, the rule of SDPO and PGD
        ),
        resolution=1024,  # [not stated] as Diffusion-DPO
        micro_batch_size=1,  # [not stated]
        gradient_checkpointing=True,  # [not stated] as Diffusion-DPO
    )


def borrowed_sd3(data: str, model: str) -> TrainConfig:
    """A LoRA on SD 3 or 3.5 medium, as Stage 2 of RealAlign trains it."""
    return TrainConfig(
        model=model,
        data=data,
        objective="diffusion_dpo",
        settings={"beta": 100.0},  # [not stated] as RealAlign
        lora=LoraConfig(
            rank=32,  # [not stated] as RealAlign
            alpha=64.0,  # [not stated] as RealAlign
            init="gaussian",  # [not stated]
        ),
        reference="start",  # [not stated]
        optimizer=OptimizerConfig(
            learning_rate=2.56e-6,  # [not stated] as RealAlign
            weight_decay=1e-4,  # [not stated] as RealAlign
            max_grad_norm=1.0,  # [not stated] as RealAlign
        ),
        resolution=512,  # [not stated] as RealAlign
        max_sequence_length=128,  # [not stated] as RealAlign
        flip=True,  # [not stated]
        prompt_drop=0.0,  # [not stated] as RealAlign
        num_steps=2000,  # [not stated]
        batch_size=256,  # [not stated] as RealAlign
        micro_batch_size=1,  # [not stated] as RealAlign
        mixed_precision="bf16",  # [not stated]
    )
