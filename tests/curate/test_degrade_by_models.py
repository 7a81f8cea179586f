"""Damage by models: real inpainting pipelines, images drawn from prompts, and from photographs under noise."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    FluxFillPipeline,
    FluxInpaintPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3InpaintPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionXLInpaintPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from torch import Tensor

from diffalign.core import DiffalignError, torch_generator
from diffalign.curate import colour_saliency, embedded_photographs, mask_of
from diffalign.curate.degrade import Degradation, ImageToImage, Inpaint, Regenerate, contract, load_degradation
from diffalign.curate.degrade.pipelines import load_inpainting_model
from diffalign.data import from_tensor, to_tensor
from diffalign.models import Family, load_family
from diffalign.sample import family_sampler

SD, SD3 = load_family("tiny-sd"), load_family("tiny-sd3")
PHOTOS = list(embedded_photographs("train", 3, 32))
IMAGES, PROMPTS = [photo.image for photo in PHOTOS], [photo.prompt for photo in PHOTOS]
MASKS = [mask_of(colour_saliency(image)) for image in IMAGES]
SEEDS = [21, 22, 23]


def parts(family: Family, *names: str) -> dict[str, Any]:
    components = family.pipeline().components
    return {name: components[name] for name in names}


def unet(channels: int, **changes: Any) -> UNet2DConditionModel:
    small = {"block_out_channels": (16, 32, 48), "norm_num_groups": 8, "in_channels": channels}
    return UNet2DConditionModel.from_config({**SD.pipeline().unet.config, **small, **changes})


def sd(channels: int = 9) -> Any:
    components = parts(SD, "vae", "text_encoder", "tokenizer", "scheduler") | {"unet": unet(channels)}
    nothing = dict.fromkeys(("safety_checker", "feature_extractor"))
    return StableDiffusionInpaintPipeline(**components, **nothing, requires_safety_checker=False)


def sdxl(channels: int = 9) -> Any:
    """Two encoders of width 24 each, so prompts of width 48, and 6 time ids of width 8 beside the pooled 24."""
    texts = parts(SD3, "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    added = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8, "cross_attention_dim": 48}
    network = unet(channels, projection_class_embeddings_input_dim=72, **added)
    return StableDiffusionXLInpaintPipeline(**parts(SD, "vae", "scheduler"), **texts, unet=network)


def sd3(channels: int = 33) -> Any:
    pipe = SD3.pipeline()
    vae = AutoencoderKL.from_config({**pipe.vae.config, "latent_channels": 16})
    network = {**pipe.transformer.config, "num_layers": 1, "in_channels": channels, "out_channels": 16}
    changed = {"vae": vae, "transformer": SD3Transformer2DModel.from_config(network)}
    return StableDiffusion3InpaintPipeline(**pipe.components | changed)


def flux(kind: Any, channels: int) -> Any:
    texts = parts(SD, "text_encoder", "tokenizer")
    t5 = parts(SD3, "text_encoder_3", "tokenizer_3")
    network = FluxTransformer2DModel(
        in_channels=channels,
        out_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=48,
        pooled_projection_dim=96,
        guidance_embeds=True,
        axes_dims_rope=(2, 2, 4),
    )
    renamed = {"text_encoder_2": t5["text_encoder_3"], "tokenizer_2": t5["tokenizer_3"]}
    return kind(**parts(SD3, "vae", "scheduler"), **texts, **renamed, transformer=network)


BUILDERS: dict[str, Callable[[], Any]] = {
    "sd": sd,
    "sdxl": sdxl,
    "sd3": sd3,
    "flux fill": lambda: flux(FluxFillPipeline, 4 * (4 + 4 + 4)),
    "flux": lambda: flux(FluxInpaintPipeline, 16),
    "sd of 4 channels": lambda: sd(4),
}


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folders in the published format; that of "sd" names a safety checker that is not there."""
    saved: dict[str, Path] = {}

    def save(kind: str) -> Path:
        if kind not in saved:
            torch.manual_seed(0)
            saved[kind] = tmp_path_factory.mktemp("inpainting") / kind.replace(" ", "-")
            BUILDERS[kind]().save_pretrained(saved[kind])
            index = saved[kind] / "model_index.json"
            if kind == "sd":
                checker = ["stable_diffusion", "StableDiffusionSafetyChecker"]
                told = {"safety_checker": checker, "requires_safety_checker": True}
                index.write_text(json.dumps(json.loads(index.read_text()) | told))
        return saved[kind]

    return save


def inpainter(folder: Path, **options: Any) -> Degradation:
    return load_degradation({"name": "inpaint", "weights": str(folder), "num_steps": 2}, batch_size=3, **options)


def values(images: Any) -> np.ndarray:
    return np.stack([np.asarray(image, dtype=int) for image in images])


def draw(
    degradation: Degradation, order: tuple[int, ...] = (0, 1, 2), seeds: Any = SEEDS, **changes: Any
) -> np.ndarray:
    columns = {"images": IMAGES, "masks": MASKS, "prompts": PROMPTS} | changes
    picked = {name: [column[index] for index in order] for name, column in columns.items()}
    return values(degradation(**picked, seeds=[seeds[index] for index in order]))


@pytest.mark.parametrize("kind", BUILDERS)
def test_an_inpainting_model_draws_each_image_from_its_own_seed(kind: str, folder_of: Callable[[str], Path]) -> None:
    degradation = inpainter(folder_of(kind))
    together, alone = draw(degradation), draw(degradation, (2, 0))
    assert np.abs(alone - together[[2, 0]]).max() <= 1
    assert np.abs(draw(degradation, (2,), seeds=[0, 0, 4])[0] - together[2]).max() > 1
    assert degradation.name == "inpaint" and degradation.severity is None
    told = {"num_steps": 2, "guidance_scale": 30 if kind == "flux fill" else 7.5}
    scheduler = "PNDMScheduler" if kind.startswith("sd") and kind != "sd3" else "FlowMatchEulerDiscreteScheduler"
    pipeline = json.loads((folder_of(kind) / "model_index.json").read_text())["_class_name"]
    assert degradation.parameters == told | {"pipeline": pipeline, "scheduler": scheduler}


@pytest.mark.parametrize("kind", ["sd", "sdxl", "sd3", "flux fill"])
def test_a_model_trained_to_inpaint_sees_the_surroundings_and_not_what_is_covered(
    kind: str, folder_of: Callable[[str], Path]
) -> None:
    degradation = inpainter(folder_of(kind))
    plain, red = draw(degradation, (0,)), Image.new("RGB", (32, 32), (220, 30, 10))
    covered = Image.composite(red, IMAGES[0], MASKS[0])
    around = Image.composite(IMAGES[0], red, MASKS[0])
    assert np.array_equal(draw(degradation, (0,), images=[covered]), plain)
    assert np.abs(draw(degradation, (0,), images=[around]) - plain)[0][np.asarray(MASKS[0]) > 0].max() > 1


def test_the_safety_checker_and_the_watermark_are_left_out(
    folder_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module(StableDiffusionXLInpaintPipeline.__module__)
    monkeypatch.setattr(module, "is_invisible_watermark_available", lambda: True)
    monkeypatch.setattr(module, "StableDiffusionXLWatermarker", object, raising=False)
    assert load_inpainting_model(folder_of("sd"))._pipeline.safety_checker is None
    assert load_inpainting_model(folder_of("sdxl"))._pipeline.watermark is None


def test_sd3_is_decoded_with_the_shift_of_its_autoencoder(folder_of: Callable[[str], Path]) -> None:
    """Latents are (m - shift) scale, and images those of latents / scale + shift: the shift cancels."""
    torch.manual_seed(1)
    model = load_inpainting_model(folder_of("sd3"))
    model._pipeline.transformer = sd3(16).transformer  # puts the photograph's latents back outside the mask
    nothing = [Image.new("L", (32, 32))]
    drawn = []
    for shift in (0.0, 3.0):
        model._pipeline.vae.register_to_config(shift_factor=shift)
        one = model.draw(IMAGES[:1], nothing, ["a"], [torch_generator(7)], num_steps=1, guidance_scale=1.0)
        drawn.append(one)
    assert (drawn[0] - drawn[1]).abs().max() < 1e-3 and drawn[0].std() > 0.01


def test_numbers_of_an_inpainting_model_that_are_not_finite_give_no_image(
    folder_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    degradation = inpainter(folder_of("sd"))
    vae = degradation._model._pipeline.vae  # type: ignore[attr-defined]
    decode = vae.decode

    def broken(*args: Any, **options: Any) -> Any:
        made = decode(*args, **options)
        made[0][1, 2, 3, 4] = torch.inf
        made[0][1, 2, 3, 5] = torch.nan
        return made

    monkeypatch.setattr(vae, "decode", broken)
    made = degradation(IMAGES, MASKS, PROMPTS, SEEDS)
    assert [image is None for image in made] == [False, True, False]


def test_the_revision_of_an_inpainting_model_changes_with_its_files(
    folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    first = inpainter(folder_of("sd")).model_revision
    torch.manual_seed(2)
    sd().save_pretrained(tmp_path / "other")
    assert len(first) == 64 and first != inpainter(tmp_path / "other").model_revision


def test_what_an_inpainting_model_cannot_do_is_refused(folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(DiffalignError, match="its own scheduler; leave out solver='ddim'"):
        load_degradation({"name": "inpaint", "weights": str(folder_of("sd")), "solver": "ddim"})
    narrow = [Image.new("RGB", (32, 30))]
    with pytest.raises(DiffalignError, match="multiples of 4 pixels"):
        inpainter(folder_of("sd3"))(narrow, None, ["a"], [1])
    with pytest.raises(DiffalignError, match="expected a denoiser of 4 or 9 input channels, got 8 over 4"):
        sd(8).save_pretrained(tmp_path / "eight")
        inpainter(tmp_path / "eight")
    with pytest.raises(DiffalignError, match="known inpainting pipelines are StableDiffusionInpaint"):
        load_inpainting_model("tiny-sd")
    shutil.copytree(folder_of("sd"), tmp_path / "torn")
    (tmp_path / "torn" / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(DiffalignError, match="cannot load"):
        inpainter(tmp_path / "torn")


@pytest.mark.parametrize("model", ["tiny-sd", "tiny-sd3"])
def test_inpainting_by_a_text_to_image_model_is_loaded_by_name(model: str) -> None:
    degradation = load_degradation({"name": "inpaint", "num_steps": 2}, model=model, batch_size=2)
    assert degradation.parameters == {
        "solver": "dpm++" if model == "tiny-sd" else "euler",
        "num_steps": 2,
        "guidance_scale": 7.5,
    }
    assert degradation.model_revision == load_family(model).revision
    made = draw(degradation, (1,))
    assert np.abs(made - values(IMAGES)[1]).mean() > 3
    assert not np.array_equal(made, draw(Inpaint(SD3 if model == "tiny-sd3" else SD, num_steps=3), (1,)))


@pytest.mark.parametrize("model", ["tiny-sd", "tiny-sd3"])
def test_regenerating_is_sampling_the_prompt(model: str) -> None:
    family = load_family(model)
    degradation = load_degradation({"name": "regenerate", "num_steps": 2, "guidance_scale": 2}, model=model)
    made = draw(degradation, images=IMAGES[::-1], masks=MASKS[::-1])
    sampler = family_sampler(family, num_steps=2, guidance_scale=2.0, height=32, width=32)
    noise = [torch.randn(sampler.latent_shape, generator=torch_generator("degrade", seed)) for seed in SEEDS]
    expected = values(sampler(PROMPTS, torch.stack(noise)))
    assert np.array_equal(made, expected) and degradation.model_revision == family.revision
    assert np.abs(draw(degradation, (2, 0)) - expected[[2, 0]]).max() <= 1


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("few_step", {"solver": "dpm++", "num_steps": 5, "guidance_scale": 7.5}),
        ("low_guidance", {"solver": "dpm++", "num_steps": 50, "guidance_scale": 1.0}),
        ("weaker_model", {"solver": "euler", "num_steps": 50, "guidance_scale": 7.5}),
    ],
)
def test_poor_ways_to_regenerate_are_so_by_default(name: str, told: dict[str, Any]) -> None:
    weights = {"weights": "tiny-sd3"} if name == "weaker_model" else {}
    degradation = load_degradation({"name": name} | weights, model="tiny-sd")
    assert degradation.name == name and degradation.parameters == told and degradation.severity is None
    short = load_degradation({"name": name, "num_steps": 2} | weights, model="tiny-sd")
    family = SD3 if name == "weaker_model" else SD
    same = Regenerate(family, num_steps=2, guidance_scale=told["guidance_scale"])
    assert np.array_equal(draw(short, (1,)), draw(same, (1,))) and short.model_revision == family.revision


@pytest.mark.parametrize("model", ["tiny-sd", "tiny-sd3"])
def test_image_to_image_is_that_of_diffusers(model: str) -> None:
    """The same latents, noise and steps through diffusers' own pipeline: half of 6 steps."""
    family = load_family(model)
    degradation = ImageToImage(family, severity=0.5, num_steps=6, guidance_scale=3.0)
    pipe = family.pipeline()
    if model == "tiny-sd":
        kind: Any = StableDiffusionImg2ImgPipeline
        scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
        theirs = kind(**pipe.components | {"scheduler": scheduler}, requires_safety_checker=False)
    else:
        theirs = StableDiffusion3Img2ImgPipeline(**pipe.components)
    theirs.set_progress_bar_config(disable=True)
    latents = theirs(
        prompt=PROMPTS,
        image=family.encode_images(torch.stack([to_tensor(image) for image in IMAGES]))[0],
        strength=0.5,
        num_inference_steps=6,
        guidance_scale=3.0,
        generator=[torch_generator("degrade", seed) for seed in SEEDS],
        output_type="latent",
    ).images
    if model == "tiny-sd3":  # this pipeline gives sizes of its own to what it returns
        latents = latents.reshape(3, *family.latent_shape(32, 32))
    with torch.no_grad():
        expected = values(map(from_tensor, family.decode(latents)))
    assert np.abs(draw(degradation) - expected).max() <= 1


@pytest.mark.parametrize("family", [SD, SD3], ids=["sd", "sd3"])
def test_image_to_image_leaves_the_photograph_with_severity(family: Family) -> None:
    drawn = [draw(ImageToImage(family, severity=one, num_steps=4, guidance_scale=1.0)) for one in (0, 0.5, 0.75, 1)]
    errors = [np.abs(one - values(IMAGES)).mean() for one in drawn]
    assert all(first + 1 < second for first, second in pairwise(errors))
    with torch.no_grad():
        through = family.decode(family.encode_images(torch.stack([to_tensor(image) for image in IMAGES]))[0])
    assert np.array_equal(drawn[0], values(map(from_tensor, through)))


def test_image_to_image_depends_on_its_own_seed_and_tells_its_severity() -> None:
    degradation = load_degradation({"name": "image_to_image", "severity": 0.5, "num_steps": 2}, model="tiny-sd")
    together = draw(degradation)
    assert np.abs(draw(degradation, (1,)) - together[1]).max() <= 1
    assert np.abs(draw(degradation, (1,), seeds=[0, 5, 0]) - together[1]).max() > 1
    assert degradation.severity == 0.5 and degradation.parameters["severity"] == 0.5
    with pytest.raises(DiffalignError, match=r"image_to_image: expected solver dpm\+\+"):
        load_degradation({"name": "image_to_image", "solver": "ddim"}, model="tiny-sd")


@pytest.mark.parametrize("name", ["inpaint", "regenerate", "image_to_image"])
def test_a_prompt_that_breaks_the_network_spares_its_neighbours(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    degradation = load_degradation({"name": name, "num_steps": 2}, model="tiny-sd3", batch_size=3)
    family = degradation._family  # type: ignore[attr-defined]
    whole = draw(degradation)
    bad = family.encode_prompts([PROMPTS[1]])["prompt_embeds"]
    predict = family.predict

    def broken(noisy: Tensor, timesteps: Tensor, condition: Any) -> Tensor:
        hit = (condition["prompt_embeds"] - bad).abs().amax(dim=(1, 2)) < 1e-4
        return torch.where(hit[:, None, None, None], torch.nan, predict(noisy, timesteps, condition))

    monkeypatch.setattr(family, "predict", broken)
    made = degradation(IMAGES, MASKS, PROMPTS, SEEDS)
    assert [image is None for image in made] == [False, True, False]
    assert np.abs(np.asarray(made[2], dtype=int) - whole[2]).max() <= 1


@pytest.mark.parametrize("name", ["inpaint", "regenerate", "image_to_image"])
def test_a_size_that_does_not_fit_the_model_is_refused(name: str) -> None:
    degradation = load_degradation({"name": name, "num_steps": 1}, model="tiny-sd3")
    with pytest.raises(DiffalignError, match="multiples of 4 pixels"):
        degradation([Image.new("RGB", (32, 30))], None, ["a"], [1])


def test_a_mixture_loads_each_model_once_and_tells_whose_image_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    load = contract.load_family
    monkeypatch.setattr(contract, "load_family", lambda path, **options: loaded.append(path) or load(path, **options))
    ways = [{"name": name, "num_steps": 1} for name in ("inpaint", "few_step")]
    weaker = {"name": "weaker_model", "weights": "tiny-sd3", "num_steps": 1}
    mixture = load_degradation({"name": "mixture", "of": [*ways, weaker, "jpeg"]}, model="tiny-sd")
    assert loaded == ["tiny-sd", "tiny-sd3"]
    assert mixture.model_revision == f"{SD.revision} {SD3.revision}"
    told = {mixture.method_for(seed).name: mixture.method_for(seed).model_revision for seed in range(40)}
    assert told == {"inpaint": SD.revision, "few_step": SD.revision, "weaker_model": SD3.revision, "jpeg": ""}
    assert all(image is not None for image in mixture(IMAGES, MASKS, PROMPTS, SEEDS))


def test_other_precisions_run(folder_of: Callable[[str], Path]) -> None:
    for degradation in (
        inpainter(folder_of("sd"), dtype=torch.bfloat16),
        load_degradation({"name": "image_to_image", "num_steps": 2}, model="tiny-sd", dtype=torch.bfloat16),
    ):
        assert draw(degradation, (0,)).std() > 1
