"""Inpainting: outside the mask nothing changes, inside it depends on the seed alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel
from PIL import Image
from torch import Tensor

from diffalign.core import DiffalignError
from diffalign.curate import colour_saliency, composite, embedded_photographs, inpaint, mask_of
from diffalign.curate.degrade import check_inpainting, inpainting
from diffalign.curate.degrade.composites import touched_cells
from diffalign.data import to_tensor
from diffalign.models import Family, load_family
from diffalign.models.families import StableDiffusion3

PHOTOS = list(embedded_photographs("train", 3, 32))
IMAGES = [photo.image for photo in PHOTOS]
PROMPTS = [photo.prompt for photo in PHOTOS]
MASKS = [mask_of(colour_saliency(image)) for image in IMAGES]


def sd3() -> Family:
    """tiny-sd3 with 16 latent channels, as the real ones have, and random weights."""
    torch.manual_seed(0)
    pipe = load_family("tiny-sd3").pipeline()
    vae = AutoencoderKL.from_config({**pipe.vae.config, "latent_channels": 16})
    transformer = SD3Transformer2DModel.from_config({**pipe.transformer.config, "in_channels": 16, "out_channels": 16})
    return StableDiffusion3(type(pipe)(**pipe.components | {"vae": vae, "transformer": transformer}))


@pytest.fixture(scope="module", params=["tiny-sd", "tiny-sd bf16", "sd3", "tiny-sd3"])
def family(request: pytest.FixtureRequest) -> Family:
    if request.param == "sd3":
        return sd3()
    if request.param == "tiny-sd3":  # which diffusers' pipeline refuses
        return load_family("tiny-sd3")
    return load_family("tiny-sd", dtype=torch.bfloat16 if "bf16" in request.param else torch.float32)


def draw(family: Family, order: list[int], seeds: list[int], **options: int) -> list[np.ndarray]:
    images = inpaint(
        family,
        [IMAGES[index] for index in order],
        [MASKS[index] for index in order],
        [PROMPTS[index] for index in order],
        seeds=seeds,
        num_steps=3,
        guidance_scale=2.0,
        **options,
    )
    return [np.asarray(image, dtype=int) for image in images]


def test_latents_outside_the_mask_are_the_photographs(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[Tensor] = []
    decode = family.decode
    monkeypatch.setattr(family, "decode", lambda latents: decoded.append(latents) or decode(latents))
    draw(family, [0, 1, 2], [5, 6, 7])
    expected = family.encode_images(torch.stack([to_tensor(image) for image in IMAGES]))[0].to(family.dtype)
    factor = family.vae_scale_factor
    inside = torch.stack([touched_cells(mask, factor)[:, ::factor, ::factor] for mask in MASKS]).bool()
    inside = inside.expand(-1, expected.shape[1], -1, -1)
    assert torch.equal(decoded[0][~inside], expected[~inside])
    assert (decoded[0][inside] - expected[inside]).abs().mean() > 0.1


def test_an_image_depends_on_its_own_seed_alone(family: Family) -> None:
    together = draw(family, [0, 1, 2], [5, 6, 7])
    alone = draw(family, [2, 0], [7, 8], batch_size=1)
    rounding = 1 if family.dtype == torch.float32 else 12
    assert np.abs(alone[0] - together[2]).max() <= rounding
    assert np.abs(alone[1] - together[0]).max() > rounding


def test_every_cell_that_a_mask_touches_is_drawn() -> None:
    mask = np.zeros((4, 6), dtype=np.uint8)
    mask[1, 2] = 255
    expected = np.zeros((4, 6))
    expected[:2, 2:4] = 1
    np.testing.assert_array_equal(touched_cells(Image.fromarray(mask), 2)[0], expected)


def test_numbers_that_are_not_finite_give_no_image(monkeypatch: pytest.MonkeyPatch) -> None:
    family = load_family("tiny-sd")
    decode = family.decode

    def broken(latents: Tensor) -> Tensor:
        pixels = decode(latents)
        pixels[1, 0, 0, 0] = torch.nan
        return pixels

    monkeypatch.setattr(family, "decode", broken)
    drawn = inpaint(family, IMAGES, MASKS, PROMPTS, seeds=[1, 2, 3], num_steps=1, guidance_scale=1.0)
    assert [image is None for image in drawn] == [False, True, False]


def test_a_composite_is_the_photograph_outside_and_the_damage_inside() -> None:
    damaged = Image.effect_noise((32, 32), 90).convert("RGB")
    whole, inside = np.asarray(composite(IMAGES[0], damaged, MASKS[0])), np.asarray(MASKS[0]) > 0
    np.testing.assert_array_equal(whole[~inside], np.asarray(IMAGES[0])[~inside])
    np.testing.assert_array_equal(whole[inside], np.asarray(damaged)[inside])


@pytest.mark.parametrize(
    ("damaged", "mask"),
    [
        (Image.new("RGB", (32, 31)), MASKS[0]),
        (IMAGES[1], Image.new("L", (32, 32), 128)),
        (IMAGES[1], Image.new("RGB", (32, 32))),
    ],
)
def test_a_composite_refuses_what_does_not_fit(damaged: Image.Image, mask: Image.Image) -> None:
    with pytest.raises(ValueError, match="all of one size"):
        composite(IMAGES[0], damaged, mask)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": [1]}, "as many images"),
        ({"masks": [Image.new("L", (31, 32))] * 3}, "one size"),
        ({"num_steps": 0}, "of at least 1"),
        ({"guidance_scale": 0.5}, "of at least 1"),
    ],
)
def test_inpainting_refuses_what_does_not_fit(changes: dict[str, object], message: str) -> None:
    arguments = {"masks": MASKS, "seeds": [1, 2, 3], "num_steps": 1, "guidance_scale": 1.0} | changes
    with pytest.raises(ValueError, match=message):
        inpaint(load_family("tiny-sd"), IMAGES, prompts=PROMPTS, **arguments)


def test_a_model_without_an_inpainting_pipeline_is_told() -> None:
    with pytest.raises(DiffalignError, match=r"of 4 latent channels; known: .* with 16 latent channels"):
        check_inpainting(load_family("tiny-sd3"))
    check_inpainting(load_family("tiny-sd"))


def test_both_ways_to_inpaint_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    family = sd3()
    with_pipeline = draw(family, [0, 1, 2], [5, 6, 7])
    monkeypatch.setattr(inpainting, "_inpainting_pipeline", lambda *arguments: None)
    for one, other in zip(draw(family, [0, 1, 2], [5, 6, 7]), with_pipeline, strict=True):
        assert np.abs(one - other).max() <= 1


def test_the_network_sees_the_noised_photograph_outside_the_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    family = load_family("tiny-sd3")
    shown: list[tuple[Tensor, Tensor]] = []
    predict = family.predict
    monkeypatch.setattr(
        family, "predict", lambda noisy, times, rows: shown.append((noisy, times)) or predict(noisy, times, rows)
    )
    inpaint(family, IMAGES[:1], MASKS[:1], PROMPTS[:1], seeds=[8], num_steps=3, guidance_scale=2.0)
    latents = family.encode_images(to_tensor(IMAGES[0])[None])[0].float()
    noise = torch.randn(latents.shape[1:], generator=torch.Generator().manual_seed(8))[None]
    factor = family.vae_scale_factor
    outside = ~touched_cells(MASKS[0], factor)[:, ::factor, ::factor].bool().expand(latents.shape[1:])
    assert len(shown) == 3
    for noisy, times in shown:
        expected = family.process.add_noise(latents, noise, times[:1])
        assert len(noisy) == 2 and torch.equal(noisy[0][outside], expected[0][outside])
        assert torch.equal(noisy[1], noisy[0])
    inside = ~outside
    assert (shown[2][0][0][inside] - expected[0][inside]).abs().mean() > 0.05
