"""The guider of diffusers' modular pipelines: through the library's own denoising block, against the formula."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.modular_pipelines.modular_pipeline import BlockState
from diffusers.modular_pipelines.stable_diffusion_xl.denoise import StableDiffusionXLLoopDenoiser
from guidance_helpers import lora, sdxl_pipeline
from torch import Tensor

from diffalign.core import DiffalignError
from diffalign.guidance import PreferenceGuider


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Any:
    pipe, folder = sdxl_pipeline(), tmp_path_factory.mktemp("loras")
    paths = {name: lora(pipe, folder, seed) for seed, name in enumerate(("positive", "negative", "style"))}
    for name, path in paths.items():
        pipe.load_lora_weights(path, adapter_name=name)
    pipe.set_adapters(["style"])
    return pipe


def block_state() -> Any:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return BlockState(
        scaled_latents=draw(2, 4, 8, 8), prompt_embeds=draw(2, 9, 40), negative_prompt_embeds=draw(2, 9, 40),
        add_time_ids=draw(2, 6), negative_add_time_ids=draw(2, 6), pooled_prompt_embeds=draw(2, 12),
        negative_pooled_prompt_embeds=draw(2, 12), num_inference_steps=4, timestep_cond=None,
        cross_attention_kwargs=None,
    )  # fmt: skip


def denoise(pipe: Any, guider: Any, step: int = 1) -> tuple[Tensor, int]:
    """The block's prediction, and how often it called the network."""
    calls: list[int] = []
    handle = pipe.unet.register_forward_hook(lambda *_: calls.append(1))
    components = SimpleNamespace(unet=pipe.unet, guider=guider)
    _, state = StableDiffusionXLLoopDenoiser()(components, block_state(), step, torch.tensor(500))
    handle.remove()
    pred: Tensor = state.noise_pred
    return pred, len(calls)


def manual(pipe: Any, branch: str, adapters: list[str]) -> Tensor:
    state = block_state()
    pipe.set_adapters(adapters)
    pooled = getattr(state, f"{branch}pooled_prompt_embeds")
    added = {"time_ids": getattr(state, f"{branch}add_time_ids"), "text_embeds": pooled}
    text = getattr(state, f"{branch}prompt_embeds")
    with torch.no_grad():
        pred: Tensor = pipe.unet(
            state.scaled_latents, torch.tensor(500), encoder_hidden_states=text, added_cond_kwargs=added
        )[0]
    pipe.set_adapters(["style"])
    return pred


def test_six_predictions_and_the_formula_with_save_and_load(pipe: Any, tmp_path: Path) -> None:
    branches = {}
    for branch in ("", "negative_"):
        base, p, n = (manual(pipe, branch, ["style", *extra]) for extra in ([], ["positive"], ["negative"]))
        branches[branch] = base + 1.5 * (p - n)
    expected = branches["negative_"] + 4 * (branches[""] - branches["negative_"])
    before = [layer._active_adapter for layer in pipe.unet.modules() if hasattr(layer, "_active_adapter")]
    PreferenceGuider(preference_scale=1.5, guidance_scale=4.0, stop=0.5).save_pretrained(tmp_path)
    guider = PreferenceGuider.from_pretrained(tmp_path)
    assert dict(guider.config)["preference_scale"] == 1.5
    pred, calls = denoise(pipe, guider)
    torch.testing.assert_close(pred, expected, rtol=1e-5, atol=1e-5)
    assert calls == 6 and denoise(pipe, guider, step=2)[1] == 2  # its window is closed from half of the steps
    assert before == [layer._active_adapter for layer in pipe.unet.modules() if hasattr(layer, "_active_adapter")]


def test_pgd_text_guidance_off_and_off(pipe: Any) -> None:
    base, tuned = manual(pipe, "", ["style"]), manual(pipe, "", ["style", "positive"])
    pgd = PreferenceGuider(preference_scale=1.0, guidance_scale=1.0, negative="")
    pred, calls = denoise(pipe, pgd)
    assert torch.equal(pred, tuned) and calls == 2
    pipe.set_adapters(["style", "negative"])  # load_lora_weights leaves the last one on
    off, calls = denoise(pipe, PreferenceGuider(preference_scale=0.0, guidance_scale=1.0))
    pipe.set_adapters(["style"])
    assert torch.equal(off, base) and calls == 1


def test_loras_are_as_they_were_after_an_exception(pipe: Any) -> None:
    def active() -> list[Any]:
        return [layer._active_adapter for layer in pipe.unet.modules() if hasattr(layer, "_active_adapter")]

    guider, before, calls = PreferenceGuider(preference_scale=1.5), active(), []

    def second(*_: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("on purpose")

    handle = pipe.unet.conv_out.register_forward_pre_hook(second)
    with pytest.raises(RuntimeError, match="on purpose"):
        denoise(pipe, guider)
    handle.remove()
    assert active() == before
    hooks = len(pipe.unet._forward_hooks)
    guider.set_state(step=1, num_inference_steps=4, timestep=torch.tensor(500))
    guider.prepare_models(pipe.unet)
    guider.prepare_models(pipe.unet)  # the first prediction was never made
    guider.cleanup_models(pipe.unet)
    assert active() == before and len(pipe.unet._forward_hooks) == hooks
    fresh, _ = denoise(pipe, PreferenceGuider(preference_scale=1.5))
    assert torch.equal(denoise(pipe, guider)[0], fresh) and active() == before


def test_mistakes(pipe: Any) -> None:
    with pytest.raises(DiffalignError, match="unknown LoRA of the pipeline 'positiv'; nearest: positive"):
        denoise(pipe, PreferenceGuider(positive="positiv"))
    with pytest.raises(DiffalignError, match="at least 0"):
        PreferenceGuider(preference_scale=-1.0)
