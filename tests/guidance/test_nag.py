"""NAG: the formula's limits and conventions, and the cross-attention of UNets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from guidance_helpers import PIPELINES, PROMPTS, lora, sampled, sd3_pipeline, sd_pipeline, sdxl_pipeline
from torch.nn.functional import scaled_dot_product_attention

from diffalign.core import DiffalignError
from diffalign.guidance import NAG, Contrastive, attach, compose, nag
from diffalign.models import load_adapter, remove_adapter, using

CROSS = ("attn2.to_k", "attn2.to_v")


def outputs() -> tuple[torch.Tensor, torch.Tensor]:
    positive, negative = torch.randn(2, 3, 5, 6, generator=torch.Generator().manual_seed(0)).unbind()
    return positive, negative


def test_worked_numbers_and_limits() -> None:
    """Z+ = (3, 1), Z- = (1, 1), phi = 2: Zt = (7, 1), r = 8/4 = 2, times 1.5/2 gives (5.25, 0.75), half of it."""
    one = nag(torch.tensor([3.0, 1.0]), torch.tensor([1.0, 1.0]), phi=2, tau=1.5, alpha=0.5)
    assert one.tolist() == [4.125, 0.875]
    positive, negative = outputs()
    torch.testing.assert_close(nag(positive, negative, phi=3, tau=2.5, alpha=0), positive)
    torch.testing.assert_close(nag(positive, negative, phi=0, tau=2.5, alpha=0.5), positive)
    torch.testing.assert_close(nag(positive, positive, phi=3, tau=1.0, alpha=0.5), positive)
    shrunk = nag(positive, positive, phi=3, tau=0.5, alpha=1.0)
    torch.testing.assert_close(shrunk, 0.5 * positive)
    assert bool(nag(torch.zeros(1, 4), torch.zeros(1, 4), phi=3, tau=2.5, alpha=1.0).isfinite().all())
    with pytest.raises(ValueError, match="one shape"):
        nag(positive, negative[:1], phi=1, tau=1, alpha=1)


def test_the_1_norm_of_a_token_grows_by_tau_at_most() -> None:
    positive, negative = outputs()
    grown = nag(positive, negative, phi=20, tau=2.5, alpha=1.0).abs().sum(-1) / positive.abs().sum(-1)
    assert bool((grown <= 2.5 + 1e-5).all()) and bool((grown > 2.4).any())


def test_the_scale_of_the_authors_code_is_phi_plus_1() -> None:
    """Written as there: S Z+ - (S - 1) Z- with S = 3 is phi = 2."""
    positive, negative = outputs()
    torch.testing.assert_close(nag(positive, negative, phi=2, tau=1e9, alpha=1.0), 3 * positive - 2 * negative)
    assert NAG.with_scale(3.0, negative_prompt="x") == NAG(phi=2.0, negative_prompt="x")


@pytest.fixture(scope="module", params=["sd", "sdxl"])
def pipe(request: pytest.FixtureRequest) -> Any:
    return PIPELINES[request.param]()


def test_off_is_bit_identical_and_processors_come_back(pipe: Any) -> None:
    plain, before = sampled(pipe), dict(pipe.unet.attn_processors)
    for off in ({"phi": 0.0}, {"alpha": 0.0}, {"start": 0.9995}):
        with attach(pipe, NAG(negative_prompt="blurry", **off)):
            assert torch.equal(sampled(pipe), plain)
    with pytest.raises(RuntimeError), attach(pipe, NAG(negative_prompt="blurry")):
        assert not torch.allclose(sampled(pipe), plain, atol=1e-4)
        raise RuntimeError
    assert dict(pipe.unet.attn_processors) == before and torch.equal(sampled(pipe), plain)


def test_a_negative_prompt_that_is_the_prompt_changes_nothing(pipe: Any) -> None:
    """Also one per prompt, and with several images each; and the mapping follows the prompts when they swap."""
    for settings in ({}, {"num_images_per_prompt": 2}, {"guidance_scale": 1.0}):
        plain = sampled(pipe, **settings)
        with attach(pipe, NAG(negative_prompt=PROMPTS)):
            torch.testing.assert_close(sampled(pipe, **settings), plain, rtol=1e-4, atol=1e-4)
        with attach(pipe, NAG(negative_prompt=PROMPTS[::-1])):
            assert not torch.allclose(sampled(pipe, **settings), plain, atol=1e-4)
    noise = torch.randn(2, 4, *[16 // pipe.vae_scale_factor] * 2, generator=torch.Generator().manual_seed(3))
    with attach(pipe, NAG(negative_prompt=["red", "blue"])):
        there = sampled(pipe, latents=noise)
    with attach(pipe, NAG(negative_prompt=["blue", "red"])):
        back = sampled(pipe, PROMPTS[::-1], latents=noise.flip(0))
    torch.testing.assert_close(back.flip(0), there, rtol=1e-4, atol=1e-4)
    with attach(pipe, NAG(negative_prompt=["a", "b", "c"])), pytest.raises(DiffalignError, match="3 for 2 images"):
        sampled(pipe)


def test_published_strengths() -> None:
    for build, phi in ((sd_pipeline, 1.0), (sdxl_pipeline, 2.0)):
        pipe = build()
        with attach(pipe, NAG(negative_prompt="blurry")):
            default = sampled(pipe)
        with attach(pipe, NAG(negative_prompt="blurry", phi=phi, tau=2.5, alpha=0.5)):
            assert torch.equal(sampled(pipe), default)


def test_a_negative_adapter_takes_the_place_of_the_prompt(pipe: Any, tmp_path: Path) -> None:
    """By hand in one layer: Z- has the same queries, and keys and values under the LoRA."""
    path = lora(pipe, tmp_path, 5, targets=CROSS)
    _, layer = next(each for each in pipe.unet.named_modules() if each[0].endswith("attn2"))
    hidden, text = torch.randn(2, 7, layer.query_dim), torch.randn(2, 9, layer.cross_attention_dim)

    def attended() -> torch.Tensor:
        parts = [layer.to_q(hidden), layer.to_k(text), layer.to_v(text)]
        heads = [part.unflatten(-1, (layer.heads, -1)).transpose(1, 2) for part in parts]
        return scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)

    with torch.no_grad():
        positive = attended()
        load_adapter(pipe.unet, path, "loser", prefix="unet")
        with using(pipe.unet, "loser"):
            negative = attended()
        remove_adapter(pipe.unet, "loser")
        expected = layer.to_out[0](nag(positive, negative, phi=2, tau=2.5, alpha=0.5))
    results = {}

    def check(module: Any, args: Any) -> None:
        with torch.no_grad():
            site = layer.processor._shared.site
            site.conditional, site.samples, site.num_samples = [0, 1], [0, 1], 2
            results["layer"] = layer(hidden, encoder_hidden_states=text)

    with attach(pipe, NAG(negative_adapter=path, phi=2.0)):
        handle = pipe.unet.register_forward_pre_hook(check)
        sampled(pipe, num_inference_steps=1)
        handle.remove()
    torch.testing.assert_close(results["layer"], expected, rtol=1e-5, atol=1e-5)
    with (
        pytest.raises(DiffalignError, match="train it on attn2"),
        attach(pipe, NAG(negative_adapter=lora(pipe, tmp_path, 6, targets=("to_q",)))),
    ):
        pass


def test_it_acts_within_every_pass_of_another_guide(pipe: Any, tmp_path: Path) -> None:
    positive, negative = lora(pipe, tmp_path, 1), lora(pipe, tmp_path, 2)
    contrast = Contrastive(positive=positive, negative=negative, scale=2.0)
    for words in (NAG(negative_prompt="blurry", stop=0.6), NAG(negative_adapter=negative)):
        results = []
        for packed in (True, False):
            with attach(pipe, compose(contrast, words), packed=packed):
                results.append(sampled(pipe))
        torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)
        with attach(pipe, contrast):
            assert not torch.allclose(sampled(pipe), results[0], atol=1e-4)


def test_what_it_cannot_guide_is_refused() -> None:
    with pytest.raises(DiffalignError, match="SD3Transformer2DModel"), attach(sd3_pipeline(), NAG(negative_prompt="x")):
        pass
    pipe = sd_pipeline()
    pipe.unet.fuse_qkv_projections()
    with pytest.raises(DiffalignError, match="FusedAttnProcessor"), attach(pipe, NAG(negative_prompt="x")):
        pass
    pipe = sd_pipeline()
    pipe.text_encoder = None
    with pytest.raises(DiffalignError, match="this pipeline has none"), attach(pipe, NAG(negative_prompt="x")):
        pass
    for settings in ({}, {"negative_prompt": "x", "negative_adapter": "y"}, {"negative_prompt": "x", "tau": 0.0}):
        with pytest.raises(DiffalignError, match="expected"):
            NAG(**settings)  # type: ignore[arg-type]
