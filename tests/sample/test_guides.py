"""A sampling run under a guide: as on the pipeline, off at strength 0, undone afterwards, counted, refused in time."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from sample_helpers import difference, save_loras

from diffalign.core import DiffalignError, load_config, read_jsonl, write_text
from diffalign.guidance import attach, make_guide
from diffalign.models import adapter_names, load_family, outline_family
from diffalign.sample import (
    CandidatesConfig,
    GuideConfig,
    ImageSampler,
    LoadedModel,
    SampleConfig,
    evaluations_per_image,
    generate_candidates,
    initial_noise,
    load_model,
    load_sampler,
    make_sampler,
    make_scheduler,
    pipeline_sampler,
    run_sample,
)

PROMPTS = ["a photo of grass", "a photo of the moon"]


@pytest.fixture(scope="module", params=["tiny-sd", "tiny-sd3"])
def loras(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, str]]:
    """A model's name and three LoRAs of it."""
    return request.param, save_loras(request.param, tmp_path_factory.mktemp("loras"), ["pos", "neg", "own"])


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Three LoRAs of tiny-sd."""
    return save_loras("tiny-sd", tmp_path_factory.mktemp("loras"), ["pos", "neg", "own"])


def config(model: str = "tiny-sd", **changes: Any) -> SampleConfig:
    return SampleConfig(model=model, prompts="photographs", limit=2, num_steps=2, guidance_scale=3.0).replace(**changes)


def cpgd(loras: dict[str, str], scale: float, **options: Any) -> GuideConfig:
    names = {name: options.pop(name) for name in ("packed", "refresh_every", "refresh_above") if name in options}
    settings = {"positive": loras["pos"], "negative": loras["neg"], "scale": scale, **options}
    return GuideConfig(name="cpgd", settings=settings, **names)


def draw(sampler: ImageSampler) -> list[Image.Image]:
    return sampler(PROMPTS, torch.stack([initial_noise(sampler.latent_shape, prompt, 0) for prompt in PROMPTS]))


@functools.cache
def loaded(model: str, adapter: str, adapter_scale: float) -> LoadedModel:
    return load_model(config(model, adapter=adapter, adapter_scale=adapter_scale))


def drawn(wanted: SampleConfig) -> list[Image.Image]:
    with make_sampler(loaded(wanted.model, wanted.adapter, wanted.adapter_scale), wanted) as sampler:
        return draw(sampler)


def test_a_guide_does_what_it_does_on_a_pipeline(loras: tuple[str, dict[str, str]]) -> None:
    model, paths = loras
    guides = {
        "cpgd": {"positive": paths["pos"], "negative": paths["neg"], "scale": 2.0, "stop": 0.9},
        "npo": {"positive": paths["pos"], "negative": paths["neg"]},
    }
    family = loaded(model, "", 1.0).family
    for name, settings in guides.items():
        pipe = family.pipeline()
        pipe.scheduler = make_scheduler(family)
        with attach(pipe, make_guide(name, settings)):
            expected = draw(pipeline_sampler(pipe, model=model, num_steps=2, guidance_scale=3.0))
        found = drawn(config(model, guide=GuideConfig(name=name, settings=settings)))
        assert difference(found, expected) <= 1
        assert difference(found, drawn(config(model))) > 1


def test_without_text_guidance_all_rows_have_the_prompt(sd: dict[str, str]) -> None:
    """At guidance 1 the conditional rows alone are in a batch, so a guide of that branch is one of both."""
    one, both = (config(guidance_scale=1.0, guide=cpgd(sd, 2.0, branch=branch)) for branch in ("cond", "both"))
    assert difference(drawn(one), drawn(both)) == 0 < difference(drawn(one), drawn(config(guidance_scale=1.0)))
    assert difference(drawn(config(guide=cpgd(sd, 2.0, branch="cond"))), drawn(config(guide=cpgd(sd, 2.0)))) > 0


def test_strength_zero_is_the_model_and_says_so(sd: dict[str, str]) -> None:
    with load_sampler(config(guide=cpgd(sd, 0.0))) as off:
        assert difference(draw(off), drawn(config())) == 0
        assert off.identity["guide"]["scale"] == 0 and len(off.identity["guide"]["positive"]) == 64
    phi = GuideConfig(name="nag", settings={"negative_prompt": "blur", "phi": 0})
    assert difference(drawn(config(guide=phi)), drawn(config())) == 0


def test_everything_is_undone_afterwards(sd: dict[str, str]) -> None:
    before, denoiser = drawn(config()), loaded("tiny-sd", "", 1.0).family.denoiser
    guided = drawn(config(guide=cpgd(sd, 3.0)))
    assert "forward" not in vars(denoiser) and not adapter_names(denoiser)
    assert not [name for name, _ in denoiser.named_parameters() if "lora" in name]
    assert difference(drawn(config()), before) == 0 < difference(before, guided)


def test_an_adapter_stays_on_under_a_guide(sd: dict[str, str], tmp_path: Path) -> None:
    """cPGD of a LoRA against itself adds nothing, so what is left is the adapter; packed or not, and full weights."""
    nothing = GuideConfig(name="cpgd", settings={"positive": sd["neg"], "negative": sd["neg"], "scale": 5.0})
    alone = drawn(config(adapter=sd["own"], adapter_scale=0.5))
    assert difference(alone, drawn(config())) > 1
    for packed in (True, False):
        guide = nothing.replace(packed=packed)
        assert difference(drawn(config(adapter=sd["own"], adapter_scale=0.5, guide=guide)), alone) <= 1
    family = load_family("tiny-sd")
    with torch.no_grad():
        next(family.denoiser.parameters()).mul_(0.5)
    family.denoiser.save_pretrained(tmp_path / "unet")  # type: ignore[operator]
    tuned = config(adapter=str(tmp_path / "unet"))
    assert difference(drawn(tuned.replace(guide=nothing)), drawn(tuned)) <= 1
    guided = drawn(tuned.replace(guide=cpgd(sd, 3.0)))
    assert difference(guided, drawn(tuned)) > 1 < difference(guided, drawn(config(guide=cpgd(sd, 3.0))))


@pytest.mark.parametrize("options", [{"stop": 0.6}, {"refresh_every": 2, "branch": "cond"}])
def test_evaluations_are_those_that_are_made(
    sd: dict[str, str], options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = config(num_steps=3, guide=cpgd(sd, 2.0, packed=False, **options))
    counted: list[int] = []
    denoiser = loaded("tiny-sd", "", 1.0).family.denoiser
    forward = denoiser.forward

    def counting(*args: Any, **kwargs: Any) -> Any:
        counted.append(len(kwargs["encoder_hidden_states"]))
        return forward(*args, **kwargs)

    monkeypatch.setattr(denoiser, "forward", counting)
    drawn(wanted)
    expected = evaluations_per_image(
        outline_family("tiny-sd"), wanted.guide, num_steps=3, solver=None, guidance_scale=3.0
    )
    assert sum(counted) == expected * len(PROMPTS) > 2 * 3 * len(PROMPTS)


def test_a_run_keeps_its_guide_and_refuses_changed_modules(tmp_path: Path) -> None:
    paths = save_loras("tiny-sd", tmp_path, ["pos", "neg"])
    wanted = config(guide=cpgd(paths, 2.0))
    rows = list(read_jsonl(run_sample(wanted, tmp_path / "run")))
    assert {row["guide"]["name"] for row in rows} == {"cpgd"} and {row["sampler_hash"] for row in rows} == {""}
    assert load_config(SampleConfig, tmp_path / "run" / "config.yaml") == wanted
    save_loras("tiny-sd", tmp_path, ["neg", "pos"])  # other numbers under the same names
    with pytest.raises(DiffalignError, match="begun with another key"):
        run_sample(wanted, tmp_path / "run")


def test_settings_of_before_guides_still_load(tmp_path: Path) -> None:
    write_text(tmp_path / "config.yaml", "model: tiny-sd\nprompts: photographs\nnum_steps: 3\n")
    assert load_config(SampleConfig, tmp_path / "config.yaml").guide is None
    assert "guide" not in next(read_jsonl(run_sample(config(limit=1, num_steps=1), tmp_path / "run")))


def test_candidates_are_made_under_a_guide(sd: dict[str, str], tmp_path: Path) -> None:
    wanted = config(limit=1, num_seeds=2, guide=cpgd(sd, 2.0))
    generate_candidates(CandidatesConfig(sample=wanted, rewards=("luminance",)), tmp_path / "sets")
    run_sample(wanted, tmp_path / "run")
    images = [list(read_jsonl(tmp_path / part / "manifest.jsonl")) for part in ("sets/sample", "run")]
    assert images[0] == images[1] and images[0][0]["guide"]["scale"] == 2.0


@pytest.mark.parametrize(
    ("guide", "changes", "message"),
    [
        (GuideConfig(name="cgpd"), {}, "nearest: cpgd"),
        (GuideConfig(name="pgd", settings={"tuned": "nowhere", "scale": 1}), {}, "nowhere does not exist"),
        (GuideConfig(name="npo", settings={"negative": "x"}), {"guidance_scale": 1.0}, "text guidance is off"),
        (GuideConfig(name="nag", settings={"negative_prompt": ["a", "b"]}), {}, "for all images of a run"),
        (GuideConfig(name="npo", settings={"negative": "x"}, refresh_every=2), {}, "no difference that could be held"),
        (GuideConfig(name="pgd", settings={"tuned": "x"}), {}, "needs scale"),
    ],
)
def test_mistakes_are_told_before_any_weight_loads(
    guide: GuideConfig, changes: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffalign.sample.run.load_family", lambda *args, **kwargs: pytest.fail("weights were loaded"))
    with pytest.raises(DiffalignError, match=message):
        run_sample(config(guide=guide, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()
