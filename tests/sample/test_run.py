"""Settings to images: adapters as diffusers loads them, and mistakes before any weight loads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from sample_helpers import difference

from diffalign.core import DiffalignError, load_config, read_jsonl
from diffalign.models import Family, LoraSettings, add_adapter, load_family, save_adapter
from diffalign.models.adapters import adapter_parameters
from diffalign.sample import (
    ImageSampler,
    SampleConfig,
    adapter_identity,
    initial_noise,
    load_sampler,
    make_scheduler,
    pipeline_sampler,
    run_sample,
    wanted_prompts,
)

PROMPTS = ["a photo of grass", "a photo of the moon"]


def config(model: str = "tiny-sd", **changes: object) -> SampleConfig:
    return SampleConfig(model=model, prompts="photographs", num_steps=3, guidance_scale=2.0).replace(**changes)


def with_lora(model: str) -> Family:
    """A family with a LoRA that changes what it computes."""
    family = load_family(model)
    add_adapter(family.denoiser, "policy", LoraSettings(rank=2, alpha=3, targets=family.lora_targets), seed=0)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in adapter_parameters(family.denoiser, "policy").items():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return family


@pytest.fixture(scope="module", params=["tiny-sd", "tiny-sd3"])
def lora(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A model's name and a LoRA of it."""
    family = with_lora(request.param)
    folder = tmp_path_factory.mktemp("lora") / request.param
    save_adapter(family.denoiser, "policy", folder, prefix=family.lora_prefix)
    return request.param, str(folder)


def draw(sampler: ImageSampler) -> list[Image.Image]:
    return sampler(PROMPTS, torch.stack([initial_noise(sampler.latent_shape, prompt, 0) for prompt in PROMPTS]))


def drawn(wanted: SampleConfig) -> list[Image.Image]:
    with load_sampler(wanted) as sampler:
        return draw(sampler)


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_a_lora_acts_as_in_diffusers(lora: tuple[str, str], scale: float) -> None:
    model, path = lora
    family = load_family(model)
    pipe = family.pipeline()
    pipe.scheduler = make_scheduler(family)
    pipe.load_lora_weights(path, adapter_name="policy")
    pipe.set_adapters("policy", scale)
    expected = draw(pipeline_sampler(pipe, model=model, num_steps=3, guidance_scale=2.0))
    with load_sampler(config(model, adapter=path, adapter_scale=scale)) as ours:
        assert difference(draw(ours), expected) <= 1
    assert difference(drawn(config(model)), expected) > 1
    assert ours.identity["adapter"] == adapter_identity(config(adapter=path)) + ("" if scale == 1 else " x 0.5")


def test_an_adapter_at_scale_zero_is_the_model(lora: tuple[str, str]) -> None:
    model, path = lora
    assert difference(drawn(config(model, adapter=path, adapter_scale=0.0)), drawn(config(model))) == 0


def test_a_denoiser_folder_takes_the_models_place(tmp_path: Path) -> None:
    family = load_family("tiny-sd")
    before = drawn(config())
    with torch.no_grad():
        next(family.denoiser.parameters()).mul_(0.5)
    family.denoiser.save_pretrained(tmp_path / "unet")  # type: ignore[operator]
    with load_sampler(config(adapter=str(tmp_path / "unet"))) as tuned:
        assert difference(draw(tuned), before) > 1 and tuned.identity["adapter"]
    with pytest.raises(DiffalignError, match="no adapter_scale"):
        drawn(config(adapter=str(tmp_path / "unet"), adapter_scale=0.5))


def test_precision_is_part_of_the_identity() -> None:
    with load_sampler(config()) as full, load_sampler(config(precision="bf16")) as half:
        assert full.identity | {"dtype": "torch.bfloat16"} == half.identity
        assert difference(draw(full), draw(half)) > 0


def test_a_run_from_settings_keeps_them(tmp_path: Path) -> None:
    wanted = config(limit=3, num_seeds=2)
    rows = list(read_jsonl(run_sample(wanted, tmp_path / "run")))
    assert len(rows) == 6 and [row["prompt"] for row in rows[::2]] == [row.prompt for row in wanted_prompts(wanted)]
    assert load_config(SampleConfig, tmp_path / "run" / "config.yaml") == wanted
    with pytest.raises(DiffalignError, match=r"guidance_scale: 2\.0 there, 3\.0 now"):
        run_sample(wanted.replace(guidance_scale=3.0), tmp_path / "run")


def test_changed_files_behind_the_same_settings_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("grass\n")
    wanted = config(prompts=str(path))
    run_sample(wanted, tmp_path / "run")
    for changed, words in (
        ("gravel\n", "1 there, 1 now.* 'grass' there, 'gravel' now"),
        ("grass\nice\n", "None there, 'ice'"),
    ):
        path.write_text(changed)
        with pytest.raises(DiffalignError, match=f"the prompts changed.*{words}"):
            run_sample(wanted, tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": "photograph"}, "nearest: photographs"),
        ({"adapter": "nowhere"}, "nowhere does not exist"),
        ({"adapter_scale": 0.5}, "needs an adapter"),
        ({"solver": "euler"}, "expected solver dpm"),
        ({"height": 33}, "in multiples of"),
        ({"model": "nowhere"}, "nowhere"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(DiffalignError, match=message):
        run_sample(config(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()
