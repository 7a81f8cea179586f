"""Families against the diffusers pipelines they wrap, from saved folders of the true architectures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from builders import CLIP_TOKENS, sd3_pipeline, sd_pipeline, sdxl_pipeline
from diffusers import DiffusionPipeline, UNet2DConditionModel

from diffalign.core import DiffalignError
from diffalign.models import (
    Family,
    RectifiedFlow,
    StableDiffusion,
    StableDiffusion3,
    StableDiffusionXL,
    VariancePreserving,
    load_denoiser,
    load_family,
    outline_family,
)

PROMPTS = ["a red fox", "two owls", "moss"]
SIZES = {"sd": (8, 16), "sdxl": (24, 16), "sd3": (12, 16)}  # pixels: height, width


@pytest.fixture(params=["sd", "sdxl", "sd3"])
def kind(request):
    return request.param


@pytest.fixture
def folder(kind, sd_folder, sdxl_folder, sd3_folder):
    return {"sd": sd_folder, "sdxl": sdxl_folder, "sd3": sd3_folder}[kind]


@pytest.fixture
def family(folder) -> Family:
    return load_family(folder)


@pytest.fixture
def plain(folder):
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def encode(pipe, prompts: list[str]) -> dict[str, torch.Tensor]:
    """The pipeline's own encoding, called as its documentation says."""
    if "transformer" in pipe.components:
        embeds, _, pooled, _ = pipe.encode_prompt(prompts, prompts, prompts, do_classifier_free_guidance=False)
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}
    if "text_encoder_2" in pipe.components:
        embeds, _, pooled, _ = pipe.encode_prompt(prompts, do_classifier_free_guidance=False)
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}
    return {"prompt_embeds": pipe.encode_prompt(prompts, "cpu", 1, False)[0]}


def test_the_folder_chooses_the_family(family, kind):
    expected = {
        "sd": (StableDiffusion, VariancePreserving, "unet"),
        "sdxl": (StableDiffusionXL, VariancePreserving, "unet"),
        "sd3": (StableDiffusion3, RectifiedFlow, "transformer"),
    }
    cls, process, prefix = expected[kind]
    assert type(family) is cls and type(family.process) is process and family.lora_prefix == prefix
    assert not any(p.requires_grad for part in (family.denoiser, family.vae) for p in part.parameters())
    names = dict(family.denoiser.named_modules())
    for target in family.lora_targets:
        assert any(f".{name}".endswith(f".{target}") for name in names), target


def test_v_prediction_comes_from_the_scheduler(tmp_path):
    sd_pipeline(prediction_type="v_prediction").save_pretrained(tmp_path)
    assert load_family(tmp_path).process.prediction_type == "v_prediction"


def test_prompts_encode_as_in_the_pipeline(family, plain):
    with torch.no_grad():  # as the pipeline runs it
        ours, expected = family.encode_prompts(PROMPTS), encode(plain, PROMPTS)
    assert ours.keys() == expected.keys()
    for key in expected:
        assert torch.equal(ours[key], expected[key])
    assert not torch.equal(ours["prompt_embeds"][0], ours["prompt_embeds"][1])
    with torch.autocast("cpu", dtype=torch.bfloat16):  # as inside a training step: what a cache holds stays equal
        assert torch.equal(family.encode_prompts(PROMPTS)["prompt_embeds"], ours["prompt_embeds"])
    with pytest.raises(ValueError, match="list of texts"):
        family.encode_prompts(PROMPTS[0])


@pytest.mark.parametrize("zeros", [True, False])
def test_the_empty_prompt_of_sdxl_is_the_pipelines_unconditional_branch(tmp_path, zeros):
    """Zeros where its config says so, else the encoding of the empty text; the cache's key tells them apart."""
    sdxl_pipeline(zeros_for_empty=zeros).save_pretrained(tmp_path)
    family, plain = load_family(tmp_path), DiffusionPipeline.from_pretrained(tmp_path, add_watermarker=False)
    ours = family.encode_prompts(["moss", "", "two owls"])
    with torch.no_grad():
        _, negative, _, pooled = plain.encode_prompt("moss")
        alone = encode(plain, [""])
    for key, expected in (("prompt_embeds", negative), ("pooled_prompt_embeds", pooled)):
        torch.testing.assert_close(ours[key][1:2], expected)
        assert bool((ours[key][1] == 0).all()) is zeros and not torch.equal(ours[key][0], ours[key][2])
        assert torch.allclose(alone[key], ours[key][1:2]) is not zeros
    for same in (family.pipeline(), outline_family(tmp_path)._pipeline):
        assert same.config.force_zeros_for_empty_prompt is zeros
    assert outline_family(tmp_path).encoder_options == family.encoder_options
    revision = family.encoder_revision
    family._pipeline.register_to_config(force_zeros_for_empty_prompt=not zeros)
    assert family.encoder_revision != revision


def test_both_sides_of_a_pair_are_told_one_size(sdxl_folder, monkeypatch):
    """H, W, 0, 0, H, W of the latents, 24 x 16 pixels, which is what the pipeline says of such an image."""
    family, plain = load_family(sdxl_folder), DiffusionPipeline.from_pretrained(sdxl_folder, add_watermarker=False)
    seen, forward = [], UNet2DConditionModel.forward

    def record(self, *args, **kwargs):
        seen.append(kwargs["added_cond_kwargs"]["time_ids"])
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(UNet2DConditionModel, "forward", record)
    chosen, rejected = noise(2, 3, *family.latent_shape(24, 16))
    condition = {key: value.repeat(2, *[1] * (value.ndim - 1)) for key, value in family.encode_prompts(PROMPTS).items()}
    family.predict(torch.cat([chosen, rejected]), torch.tensor([7, 500, 900] * 2), condition)
    plain("moss", height=24, width=16, num_inference_steps=1, guidance_scale=1.0, output_type="latent")
    assert seen[0].tolist() == [[24, 16, 0, 0, 24, 16]] * 6 and torch.equal(seen[0][:1], seen[1])


@pytest.mark.parametrize("t5", [True, False])
def test_sd3_with_and_without_t5(tmp_path, t5):
    sd3_pipeline(t5=t5).save_pretrained(tmp_path)
    family = load_family(tmp_path)
    family.max_sequence_length = 7
    embeds = family.encode_prompts(PROMPTS)["prompt_embeds"]
    assert embeds.shape == (3, CLIP_TOKENS + 7, 32)
    assert bool((embeds[:, CLIP_TOKENS:] == 0).all()) is not t5


def test_images_encode_to_the_scaled_posterior(family, plain, kind):
    images = noise(3, 3, *SIZES[kind]).clamp(-1, 1)
    mean, std = family.encode_images(images)
    posterior = plain.vae.encode(images).latent_dist
    shift, scale = {"sd": (0.0, 0.18215), "sdxl": (0.0, 0.13025), "sd3": (0.0609, 1.5305)}[kind]
    torch.testing.assert_close(mean, (posterior.mean - shift) * scale)
    torch.testing.assert_close(std, posterior.std * scale)
    assert mean.shape == (3, *family.latent_shape(*SIZES[kind]))


def test_decode_inverts_the_scaling_and_passes_gradients(family, plain, kind):
    latents = noise(3, *family.latent_shape(*SIZES[kind])).requires_grad_()
    images = family.decode(latents)
    config = plain.vae.config
    expected = plain.vae.decode(latents / config.scaling_factor + (config.shift_factor or 0)).sample.clamp(-1, 1)
    torch.testing.assert_close(images, expected)
    assert images.shape == (3, 3, *SIZES[kind])
    images.sum().backward()
    assert latents.grad is not None and latents.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(3, 12, 16), "B, 3, H, W"),
        (torch.zeros(1, 3, 12, 16, dtype=torch.uint8), "float images"),
        (torch.full((1, 3, 12, 16), 255.0), "values from 255"),
        (torch.zeros(1, 3, 13, 16), "multiples of"),
    ],
)
def test_unfit_images_are_refused(family, images, message):
    with pytest.raises(ValueError, match=message):
        family.encode_images(images)


def test_predict_is_what_the_pipeline_calls(family, plain, kind, monkeypatch):
    """Records every call of the plain pipeline's network and repeats it through predict: bit for bit."""
    height, width = SIZES[kind]
    network = getattr(plain, family.lora_prefix)
    calls, forward = [], network.forward

    def record(*args, **kwargs):
        output = forward(*args, **kwargs)
        noisy = args[0] if args else kwargs["hidden_states"]
        timestep = args[1] if args else kwargs["timestep"]
        calls.append((noisy.clone(), timestep.expand(len(noisy)), output[0].clone()))
        return output

    monkeypatch.setattr(network, "forward", record)
    latents = noise(3, *family.latent_shape(height, width))
    plain(
        PROMPTS,
        height=height,
        width=width,
        latents=latents,
        num_inference_steps=3,
        guidance_scale=1.0,
        output_type="latent",
    )
    assert len(calls) == 3
    condition = family.encode_prompts(PROMPTS)
    for noisy, timesteps, expected in calls:
        with torch.no_grad():
            assert torch.equal(family.predict(noisy, timesteps, condition), expected)
    if kind == "sd3":  # the network is fed 1000 s
        assert calls[0][1][0] == 1000


def test_own_loop_equals_the_whole_pipeline(family, plain, kind):
    """Text guidance, scheduler and decoder around predict give the pipeline's pixels."""
    height, width = SIZES[kind]
    latents = start = noise(3, *family.latent_shape(height, width))
    expected = plain(
        PROMPTS,
        height=height,
        width=width,
        latents=start.clone(),
        num_inference_steps=4,
        guidance_scale=5.0,
        output_type="pt",
    ).images
    scheduler = family.pipeline().scheduler
    scheduler.set_timesteps(4)
    cond, uncond = family.encode_prompts(PROMPTS), family.encode_prompts([""] * 3)
    with torch.no_grad():
        for t in scheduler.timesteps:
            pred_cond, pred_uncond = (family.predict(latents, t.expand(3), c) for c in (cond, uncond))
            pred = pred_uncond + 5.0 * (pred_cond - pred_uncond)
            latents = scheduler.step(pred, t, latents, return_dict=False)[0]
        images = family.decode(latents) / 2 + 0.5
    torch.testing.assert_close(images, expected, rtol=0, atol=2e-5)


def test_predict_takes_another_denoiser_and_checks_sizes(family, kind):
    noisy, condition = noise(3, *family.latent_shape(*SIZES[kind])), family.encode_prompts(PROMPTS)
    timesteps = torch.full((3,), 500)
    base = family.predict(noisy, timesteps, condition)
    other = load_family(family._folder).denoiser
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)
    assert not torch.allclose(family.predict(noisy, timesteps, condition, denoiser=other), base)
    for bad in (torch.tensor(500), timesteps[:2]):
        with pytest.raises(ValueError, match="batch size"):
            family.predict(noisy, bad, condition)


def test_conditions_take_the_denoisers_dtype_but_masks_keep_theirs(family, kind, monkeypatch):
    family.denoiser.to(torch.bfloat16)
    seen = {}
    monkeypatch.setattr(family, "_forward", lambda denoiser, noisy, timesteps, condition: seen.update(condition))
    condition = family.encode_prompts(PROMPTS) | {"mask": torch.ones(3, 5, dtype=torch.int64)}
    family.predict(noise(3, *family.latent_shape(*SIZES[kind])), torch.full((3,), 500), condition)
    assert seen["prompt_embeds"].dtype == torch.bfloat16 and seen["mask"].dtype == torch.int64


def test_pipeline_shares_modules_but_not_the_scheduler(family, kind):
    one, two = family.pipeline(), family.pipeline()
    assert getattr(one, family.lora_prefix) is family.denoiser and one.vae is family.vae
    one.scheduler.set_timesteps(5)
    assert len(one.scheduler.timesteps) == 5 and len(two.scheduler.timesteps) == 1000
    assert type(family.process) is type(load_family(family._folder).process)


def test_half_precision_keeps_the_vae_in_float32_where_its_config_asks(folder, kind):
    family = load_family(folder, dtype=torch.bfloat16)
    assert family.dtype == torch.bfloat16 and family.vae.dtype == torch.float32
    images = noise(3, 3, *SIZES[kind]).clamp(-1, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mean, _ = family.encode_images(images)
    assert torch.equal(mean, load_family(folder).encode_images(images)[0])
    pipe = family.pipeline()
    pipe.set_progress_bar_config(disable=True)
    height, width = SIZES[kind]
    images = pipe("a fox", height=height, width=width, num_inference_steps=2, output_type="pt").images
    assert images.shape == (1, 3, height, width) and bool(images.isfinite().all())


def test_half_precision_vae_where_its_config_allows(tmp_path):
    sd_pipeline(force_upcast=False).save_pretrained(tmp_path)
    assert load_family(tmp_path, dtype=torch.bfloat16).vae.dtype == torch.bfloat16


def test_revision_is_a_hash_of_the_files(sd_folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(sd_folder, copy)
    revision = load_family(sd_folder).revision
    assert load_family(copy).revision == revision
    weights = copy / "vae" / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1  # one bit of one weight: headers and sizes stay the same
    weights.write_bytes(data)
    assert load_family(copy).revision != revision
    with pytest.raises(DiffalignError, match="in memory"):
        _ = StableDiffusion(sd_pipeline()).revision


def test_encoder_revision_tells_apart_what_encodes_differently(family, folder, kind):
    revision = family.encoder_revision
    assert load_family(folder).encoder_revision == revision
    family.denoiser.to(torch.bfloat16)
    assert family.encoder_revision == revision  # the denoiser encodes nothing
    assert load_family(folder, dtype=torch.bfloat16).encoder_revision != revision
    if kind == "sd3":
        family.max_sequence_length = 7
        assert family.encoder_revision != revision


def test_latent_shape(family, kind):
    assert family.latent_shape(*SIZES[kind]) == {"sd": (4, 4, 8), "sdxl": (4, 12, 8), "sd3": (16, 6, 8)}[kind]
    assert family.vae_scale_factor == 2
    with pytest.raises(ValueError, match="multiples"):
        family.latent_shape(0, 16)


def test_load_errors_say_what_to_do(sd_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DiffalignError, match="none in"):
        load_family(tmp_path)
    with pytest.raises(DiffalignError, match="neither a folder nor in the local hub cache"):
        load_family("nobody/no-such-model")
    with pytest.raises(DiffalignError, match="not a hub id"):
        load_family("/no/such/folder")
    unknown = tmp_path / "unknown"
    unknown.mkdir()
    (unknown / "model_index.json").write_text(json.dumps({"_class_name": "StableVideoPipeline"}))
    with pytest.raises(DiffalignError, match=r"StableVideoPipeline.*StableDiffusionPipeline.*adding-a-family"):
        load_family(unknown)
    broken = tmp_path / "broken"
    shutil.copytree(sd_folder, broken)
    (broken / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(DiffalignError, match="safetensors"):
        load_family(broken)


def test_damaged_weights_and_other_processes_are_told_plainly(folder, tmp_path):
    for name in ("damaged", "scheduler"):
        shutil.copytree(folder, tmp_path / name)
    weights = tmp_path / "damaged" / "text_encoder" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(DiffalignError, match="cannot load"):
        load_family(tmp_path / "damaged")
    scheduler = {"_class_name": "FlowMatchHeunDiscreteScheduler"}
    index = tmp_path / "scheduler" / "model_index.json"
    components = json.loads(index.read_text()) | {"scheduler": ["diffusers", scheduler["_class_name"]]}
    index.write_text(json.dumps(components))
    (tmp_path / "scheduler" / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    with pytest.raises(DiffalignError, match=r"cannot use .*variance-preserving"):
        load_family(tmp_path / "scheduler")


def test_inpainting_unets_are_refused(tmp_path):
    sd_pipeline(in_channels=9).save_pretrained(tmp_path)
    with pytest.raises(DiffalignError, match="9: inpainting"):
        load_family(tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"in_channels": 9}, "9: inpainting"),
        ({"projection_class_embeddings_input_dim": 12 + 5 * 8}, "beside 12 pooled numbers.*got room for 4: refiners"),
        ({"addition_embed_type": None}, "text_time, got None"),
        ({"vae_config": {"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}}, "latents_mean"),
    ],
)
def test_what_is_not_the_base_of_sdxl_is_refused(config, message):
    with pytest.raises(DiffalignError, match=message):
        StableDiffusionXL(sdxl_pipeline(**config))


@pytest.mark.parametrize("name", ["tiny-sd", "sdxl", "tiny-sd3"])
def test_an_outline_has_the_shapes_of_the_loaded_model(name: str, sdxl_folder: Path) -> None:
    name = str(sdxl_folder) if name == "sdxl" else name
    loaded, outline = load_family(name), outline_family(name, dtype=torch.bfloat16)
    assert outline.device.type == "meta" and outline.dtype == torch.bfloat16
    assert outline.latent_shape(64, 32) == loaded.latent_shape(64, 32)
    assert type(outline.process) is type(loaded.process)
    shapes = {key: tuple(value.shape) for key, value in loaded.denoiser.state_dict().items()}
    assert {key: tuple(value.shape) for key, value in outline.denoiser.state_dict().items()} == shapes
    embeds = loaded.encode_prompts(["a", "b"])
    assert {key: tuple(value.shape[1:]) for key, value in embeds.items()} == outline.condition_shapes


def test_a_fine_tuned_denoiser_takes_the_place_of_the_base(tmp_path: Path) -> None:
    base, tuned = load_family("tiny-sd3"), load_family("tiny-sd3")
    with torch.no_grad():
        for parameter in tuned.denoiser.parameters():
            parameter.add_(0.01)
    tuned.denoiser.save_pretrained(tmp_path / "tuned")
    load_denoiser(base.denoiser, tmp_path / "tuned")
    after = dict(base.denoiser.named_parameters())
    assert all(torch.equal(value, after[key]) for key, value in tuned.denoiser.named_parameters())
    load_family("tiny-sd").denoiser.save_pretrained(tmp_path / "other")
    with pytest.raises(DiffalignError, match="does not hold weights of this model's SD3Transformer2DModel"):
        load_denoiser(base.denoiser, tmp_path / "other")
