"""What happens to a pipeline in its runs: offloading, callbacks, early ends, schedulers and layouts of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import EDMEulerScheduler, IPNDMScheduler, StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from diffusers.callbacks import SDCFGCutoffCallback
from guidance_helpers import PROMPTS, Recorded, lora, sampled, sd_pipeline
from PIL import Image

from diffalign.core import DiffalignError
from diffalign.guidance import CHATS, Contrastive, DiffusionNPO, attach
from diffalign.models import adapter_names


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    pipe, folder = sd_pipeline(), tmp_path_factory.mktemp("loras")
    return lora(pipe, folder, 1), lora(pipe, folder, 2)


@pytest.fixture(scope="module")
def guide(modules: tuple[Path, Path]) -> Contrastive:
    return Contrastive(positive=modules[0], negative=modules[1], scale=2.0)


def test_callbacks_and_offloading_which_is_renewed_after_every_run(guide: Contrastive) -> None:
    plain, steps = sampled(sd_pipeline()), []
    with attach(sd_pipeline(), guide) as pipe:
        expected = sampled(pipe)
    pipe = sd_pipeline()
    pipe.enable_model_cpu_offload(device="cpu")
    with attach(pipe, guide):
        noted = sampled(pipe, callback_on_step_end=lambda pipe, step, t, given: steps.append(step) or given)
        assert torch.equal(noted, expected) and steps == [0, 1]
        assert torch.equal(sampled(pipe), expected)
    assert hasattr(pipe.unet, "_hf_hook") and torch.equal(sampled(pipe), plain) and torch.equal(sampled(pipe), plain)


def test_offloading_that_is_turned_on_or_off_inside_the_block(guide: Contrastive) -> None:
    plain = sampled(sd_pipeline())
    with attach(sd_pipeline(), guide) as pipe:
        expected = sampled(pipe)
        pipe.enable_model_cpu_offload(device="cpu")
        assert torch.equal(sampled(pipe), expected) and torch.equal(sampled(pipe), expected)
    assert hasattr(pipe.unet, "_hf_hook") and torch.equal(sampled(pipe), plain) and torch.equal(sampled(pipe), plain)
    with attach(pipe, guide):
        pipe.remove_all_hooks()
        assert torch.equal(sampled(pipe), expected)
    assert torch.equal(sampled(pipe), plain)


def test_what_wrapped_the_forward_inside_the_block_calls_the_plain_one_afterwards(guide: Contrastive) -> None:
    pipe, calls = sd_pipeline(), []
    plain = sampled(pipe)
    with attach(pipe, guide):
        guided = pipe.unet.forward
        pipe.unet.forward = lambda *args, **kwargs: calls.append(1) or guided(*args, **kwargs)
        assert not torch.allclose(sampled(pipe), plain, atol=1e-2)
    assert torch.equal(sampled(pipe), plain) and len(calls) == 4


def test_loras_unloaded_inside_the_block(guide: Contrastive) -> None:
    pipe = sd_pipeline()
    plain = sampled(pipe)
    with attach(pipe, guide):
        pipe.unload_lora_weights()
    assert torch.equal(sampled(pipe), plain) and adapter_names(pipe.unet) == []


def test_a_run_after_one_that_ended_early_has_a_difference_of_its_own(guide: Contrastive) -> None:
    """The second starts at a lower noise level than the first ended at, with the same prompt."""
    pipe = sd_pipeline(StableDiffusionImg2ImgPipeline)

    def run(colour: str, strength: float, last: int) -> torch.Tensor:
        def ending(pipe: Any, step: int, _: Any, given: Any) -> Any:
            pipe._interrupt = step == last
            return given

        images: torch.Tensor = pipe(
            PROMPTS, image=[Image.new("RGB", (16, 16), colour)] * 2, strength=strength, num_inference_steps=5,
            guidance_scale=4.0, output_type="latent", generator=torch.Generator().manual_seed(0),
            callback_on_step_end=ending,
        ).images  # fmt: skip
        return images

    with attach(pipe, guide, refresh_every=8):
        fresh = run("red", 0.4, 9)
    with Recorded(pipe.unet) as seen, attach(pipe, guide, refresh_every=8):
        run("grey", 1.0, 1)
        assert torch.equal(run("red", 0.4, 9), fresh)
    assert seen.rows == [12, 4, 12, 4]


@pytest.mark.parametrize("branches", ["npo", "chats"])
def test_text_guidance_that_a_callback_ends_leaves_the_positive_model(
    branches: str, modules: tuple[Path, Path]
) -> None:
    positive, negative = modules
    guide = DiffusionNPO(positive=positive, negative=negative)
    pipe = sd_pipeline()
    with (
        Recorded(pipe.unet) as seen,
        attach(pipe, guide if branches == "npo" else CHATS(winner=positive, loser=negative), packed=False),
    ):
        cutoff = SDCFGCutoffCallback(cutoff_step_ratio=0.5)  # of diffusers, which works for one image
        cut = sampled(pipe, PROMPTS[:1], num_inference_steps=4, callback_on_step_end=cutoff)
    assert seen.rows == [1, 1, 1, 1, 1, 1, 1] and bool(cut.isfinite().all())
    assert torch.equal(seen.texts[-1], seen.texts[1])  # the conditional half
    with attach(pipe, guide), pytest.raises(DiffalignError, match="guidance_scale above 1"):
        sampled(pipe, guidance_scale=1.0)


@pytest.mark.parametrize("scheduler", [EDMEulerScheduler, IPNDMScheduler])
def test_schedulers_with_levels_of_their_own_have_no_windows(scheduler: Any, modules: tuple[Path, Path]) -> None:
    pipe = sd_pipeline()
    pipe.scheduler = scheduler()
    window = Contrastive(positive=modules[0], negative=modules[1], scale=2.0, stop=0.5)
    with pytest.raises(DiffalignError, match="leave start, stop"), attach(pipe, window):
        pass
    with attach(pipe, Contrastive(positive=modules[0], negative=modules[1], scale=2.0)):
        assert bool(sampled(pipe).isfinite().all())


def test_a_layout_that_is_not_known_is_asked_for(modules: tuple[Path, Path]) -> None:
    class Lumina:
        """Says that it guides, and puts the conditional half first."""

        do_classifier_free_guidance = True

        def __init__(self, pipe: Any) -> None:
            self.unet = pipe.unet

    class Mine(StableDiffusionPipeline):
        """Somebody's own, which lays rows out as its parent."""

    inputs = torch.zeros(2, 4, 8, 8), torch.tensor(5), torch.zeros(2, 5, 96)
    other, guide = Lumina(sd_pipeline()), DiffusionNPO(negative=modules[1])
    with torch.no_grad(), attach(other, guide), pytest.raises(DiffalignError, match="text_rows='uncond_cond'"):
        other.unet(*inputs)
    with torch.no_grad(), attach(other, guide, text_rows="uncond_cond"):
        other.unet(*inputs)
    with attach(sd_pipeline(Mine), guide) as pipe:
        sampled(pipe)
