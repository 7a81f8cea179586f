"""attach on the pipelines of diffusers: which passes are made, that packed equals sequential, that all is restored."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler, HeunDiscreteScheduler
from guidance_helpers import (
    IMAGE_KINDS,
    PIPELINES,
    PROMPTS,
    Recorded,
    lora,
    network_of,
    prefix_of,
    sampled,
    sd_pipeline,
)
from PIL import Image
from torch import Tensor

from diffalign.core import DiffalignError
from diffalign.guidance import PGD, Contrastive, DiffusionNPO, PlusMinus, Weighted, attach
from diffalign.models import adapter_names, add_adapter, load_adapter, remove_adapter, using
from diffalign.models.adapters import LoraSettings


@pytest.fixture(scope="module", params=list(PIPELINES))
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path, Path]:
    """A pipeline and two LoRAs of its network."""
    pipe, folder = PIPELINES[request.param](), tmp_path_factory.mktemp("loras")
    return pipe, lora(pipe, folder, 1), lora(pipe, folder, 2)


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path, Path]:
    pipe, folder = sd_pipeline(), tmp_path_factory.mktemp("loras")
    return pipe, lora(pipe, folder, 1), lora(pipe, folder, 2)


def state(pipe: Any) -> list[Any]:
    network = network_of(pipe)
    names = [(name, type(layer), len(layer._forward_hooks)) for name, layer in network.named_modules()]
    own = vars(network).keys() - {"_diffalign_adapters", "_hf_peft_config_loaded"}  # bookkeeping, empty
    return [names, adapter_names(network), vars(network).get("forward"), own]


def test_packed_rows_equal_passes_one_after_the_other(model: tuple[Any, Path, Path]) -> None:
    """Two prompts with text guidance are 4 rows, 12 of them packed; each pass is the network under its own LoRA."""
    pipe, positive, negative = model
    network = network_of(pipe)
    before, plain = state(pipe), sampled(pipe)
    guide = Contrastive(positive=positive, negative=negative, scale=2.0)
    results = {}
    for packed, rows in ((True, [12, 12]), (False, [4] * 6), ("auto", [12, 12])):
        with Recorded(network) as seen, attach(pipe, guide, packed=packed):  # type: ignore[arg-type]
            results[packed] = sampled(pipe)
        assert seen.rows == rows
    torch.testing.assert_close(results[True], results[False], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(results[True], plain, atol=1e-2)
    assert torch.equal(sampled(pipe), plain) and state(pipe) == before


def test_pgd_at_1_is_the_tuned_model_and_0_is_the_base(model: tuple[Any, Path, Path]) -> None:
    pipe, tuned, _ = model
    network = network_of(pipe)
    plain = sampled(pipe)
    load_adapter(network, tuned, "tuned", prefix=prefix_of(pipe))
    with using(network, "tuned"):
        expected = sampled(pipe)
    remove_adapter(network, "tuned")
    with attach(pipe, PGD(tuned=tuned, scale=1.0), packed=False):
        assert torch.equal(sampled(pipe), expected)
    with Recorded(network) as seen, attach(pipe, PGD(tuned=tuned, scale=0.0)):
        assert torch.equal(sampled(pipe), plain) and seen.rows == [4, 4] and adapter_names(network) == []


def test_one_lora_against_its_mirror_image_and_weighted_modules(sd: tuple[Any, Path, Path]) -> None:
    pipe, positive, negative = sd
    with attach(pipe, Contrastive(positive=positive, negative=negative, scale=1.5)):
        expected = sampled(pipe)
    with attach(pipe, Weighted(positives={positive: 0.75}, negatives={negative: 0.75}, scale=2.0)):
        torch.testing.assert_close(sampled(pipe), expected, rtol=1e-4, atol=1e-4)
    mirror = PlusMinus(module=positive, scale=1.5, strength=0.5)
    with attach(pipe, mirror, packed=True):
        packed = sampled(pipe)
    with attach(pipe, mirror, packed=False):
        torch.testing.assert_close(sampled(pipe), packed, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(packed, expected, atol=1e-2)


def test_the_conditional_branch_alone_costs_fewer_rows(sd: tuple[Any, Path, Path]) -> None:
    """4 rows of the base and 2 for each module; several images per prompt stand behind each other in both halves."""
    pipe, positive, negative = sd
    guide = Contrastive(positive=positive, negative=negative, scale=2.0, branch="cond")
    with Recorded(pipe.unet) as seen, attach(pipe, guide):
        one = sampled(pipe)
    assert seen.rows == [8, 8]
    with Recorded(pipe.unet) as seen, attach(pipe, guide, packed=False):
        torch.testing.assert_close(sampled(pipe), one, rtol=1e-4, atol=1e-4)
    assert seen.rows == [4, 2, 2, 4, 2, 2]
    text = seen.texts[0]
    assert torch.equal(seen.texts[1], text[2:]) and not torch.equal(text[:2], text[2:])
    with attach(pipe, guide):
        pairs = sampled(pipe, [PROMPTS[0]], num_images_per_prompt=2)
        alone = sampled(pipe, [PROMPTS[0]] * 2)
        off = sampled(pipe, guidance_scale=1.0)
    torch.testing.assert_close(pairs, alone, rtol=1e-4, atol=1e-4)
    with attach(pipe, Contrastive(positive=positive, negative=negative, scale=2.0)):
        torch.testing.assert_close(sampled(pipe, guidance_scale=1.0), off, rtol=1e-4, atol=1e-4)


def test_windows_make_passes_where_they_are_open(sd: tuple[Any, Path, Path]) -> None:
    """Four steps at timesteps 751, 501, 251 and 1: progress 0.249, 0.499, 0.749, 0.999."""
    pipe, positive, negative = sd
    guide = Contrastive(positive=positive, negative=negative, scale=2.0, start=0.3, stop=0.8)
    with Recorded(pipe.unet) as seen, attach(pipe, guide):
        sampled(pipe, num_inference_steps=4)
    assert seen.rows == [4, 12, 12, 4]
    with (
        attach(pipe, guide),
        pytest.raises(DiffalignError, match="one timestep for all rows"),
    ):
        pipe.unet(torch.zeros(2, 4, 8, 8), torch.tensor([1, 2]), encoder_hidden_states=torch.zeros(2, 77, 96))


def test_differences_are_held_and_renewed(sd: tuple[Any, Path, Path]) -> None:
    pipe, positive, negative = sd
    guide = Contrastive(positive=positive, negative=negative, scale=1.0)

    def rows(**options: Any) -> list[int]:
        with Recorded(pipe.unet) as seen, attach(pipe, guide, **options):
            sampled(pipe, num_inference_steps=4)
            sampled(pipe, num_inference_steps=1)  # a run of its own, with a difference of its own
        return seen.rows

    assert rows(refresh_every=2) == [12, 4, 12, 4, 12]
    assert rows(refresh_every=3) == [12, 4, 4, 12, 12]
    assert rows(refresh_above=1e9) == [12, 4, 4, 4, 12]
    assert rows(refresh_above=1e-9) == [12, 4, 8, 4, 8, 4, 8, 12]
    with attach(pipe, guide, refresh_above=1e-9):
        renewed = sampled(pipe)
    with attach(pipe, guide):
        torch.testing.assert_close(sampled(pipe), renewed, rtol=1e-4, atol=1e-4)
    with (
        pytest.raises(DiffalignError, match="no difference"),
        attach(pipe, DiffusionNPO(negative=negative), refresh_every=2),
    ):
        pass


@pytest.mark.parametrize("kind", IMAGE_KINDS)
def test_image_to_image_and_inpainting(kind: Any, sd: tuple[Any, Path, Path]) -> None:
    _, positive, negative = sd
    pipe = sd_pipeline(kind)
    image = Image.new("RGB", (16, 16), "grey")
    inputs = {"image": image, "strength": 1.0, "num_inference_steps": 2}
    if "Inpaint" in kind.__name__:
        inputs |= {"mask_image": Image.new("L", (16, 16), 255)}
    else:
        inputs |= {"height": None, "width": None}
    guide = Contrastive(positive=positive, negative=negative, scale=2.0)
    results = []
    for packed in (True, False):
        with attach(pipe, guide, packed=packed):
            given = {key: value for key, value in inputs.items() if value is not None}
            results.append(_call(pipe, given))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(results[0], _call(pipe, given), atol=1e-2)


def _call(pipe: Any, inputs: dict[str, Any]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    out: torch.Tensor = pipe(PROMPTS, guidance_scale=4.0, generator=generator, output_type="latent", **inputs).images
    return out


@pytest.mark.parametrize("scheduler", [HeunDiscreteScheduler, EulerAncestralDiscreteScheduler])
def test_any_scheduler(scheduler: Any, sd: tuple[Any, Path, Path]) -> None:
    """Heun's calls the network twice a step; the window closes for both calls of one noise level."""
    _, positive, negative = sd
    pipe = sd_pipeline()
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    guide = Contrastive(positive=positive, negative=negative, scale=2.0, stop=0.8)
    generator = torch.Generator().manual_seed(0)
    with Recorded(pipe.unet) as seen, attach(pipe, guide):
        assert bool(sampled(pipe, num_inference_steps=3, generator=generator).isfinite().all())
    assert seen.rows == ([12, 12, 12, 4, 4] if scheduler is HeunDiscreteScheduler else [12, 12, 4])


def test_loras_loaded_before_stay_on_in_every_pass(sd: tuple[Any, Path, Path], tmp_path: Path) -> None:
    _, positive, negative = sd
    pipe = sd_pipeline()
    plain = sampled(pipe)
    pipe.load_lora_weights(lora(pipe, tmp_path, 3), adapter_name="style")
    pipe.set_adapters("style", 0.5)
    styled = sampled(pipe)
    guide = Contrastive(positive=positive, negative=negative, scale=2.0)
    results = []
    for packed in (True, False):
        with attach(pipe, guide, packed=packed):
            results.append(sampled(pipe))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-4)
    assert torch.equal(sampled(pipe), styled) and not torch.allclose(styled, plain, atol=1e-2)
    with attach(sd_pipeline(), guide) as other:
        assert not torch.allclose(sampled(other), results[0], atol=1e-2)
    with attach(pipe, guide), pytest.raises(DiffalignError, match="set_adapters"):
        sampled(pipe, cross_attention_kwargs={"scale": 0.5})


def test_an_adapter_that_is_on_is_guided_as_the_base(sd: tuple[Any, Path, Path]) -> None:
    pipe, positive, negative = sd
    load_adapter(pipe.unet, negative, "start", prefix="unet")
    with using(pipe.unet, "start"):
        started = sampled(pipe)
        with attach(pipe, PGD(tuned=positive, scale=0.5), packed=True):
            packed = sampled(pipe)
        with attach(pipe, PGD(tuned=positive, scale=0.5), packed=False):
            torch.testing.assert_close(sampled(pipe), packed, rtol=1e-4, atol=1e-4)
        assert torch.equal(sampled(pipe), started) and not torch.allclose(packed, started, atol=1e-2)
    remove_adapter(pipe.unet, "start")


class Toy(torch.nn.Module):
    """A denoiser of one layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.to_q = torch.nn.Linear(3, 3)

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> tuple[Tensor]:
        return (self.to_q(sample) + encoder_hidden_states,)


class Folding(Toy):
    """One that folds two frames of each row into its batch."""

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> tuple[Tensor]:
        return (self.to_q(sample.reshape(-1, 3)).reshape(sample.shape) + encoder_hidden_states,)


def test_a_network_that_folds_rows_is_not_packed(tmp_path: Path) -> None:
    folding = SimpleNamespace(unet=Folding())
    paths = [lora(folding, tmp_path, seed, targets=("to_q",)) for seed in (1, 2)]
    inputs = {"sample": torch.ones(2, 2, 3), "timestep": torch.tensor(5), "encoder_hidden_states": torch.zeros(2, 2, 3)}
    guide = Contrastive(positive=paths[0], negative=paths[1], scale=2.0)
    with torch.no_grad():
        with attach(folding, guide, packed=False):
            expected = folding.unet(**inputs)[0]
        with Recorded(folding.unet) as seen, attach(folding, guide):
            assert torch.equal(folding.unet(**inputs)[0], expected) and seen.rows == [6, 2, 2, 2]
            assert torch.equal(folding.unet(**inputs)[0], expected) and seen.rows[4:] == [2, 2, 2]
        with attach(folding, guide, packed=True), pytest.raises(DiffalignError, match="folds rows"):
            folding.unet(**inputs)


@pytest.mark.parametrize("how", ["in place", "wrapped"])
def test_compiled_denoisers(how: str, tmp_path: Path) -> None:
    """The compiled network computes, here by a backend that needs no compiler; its passes are not packed."""
    toy = SimpleNamespace(unet=Toy())
    paths = [lora(toy, tmp_path, seed, targets=("to_q",)) for seed in (1, 2)]
    inputs = torch.ones(2, 3), torch.tensor(5), torch.zeros(2, 3)
    guide, graphs = Contrastive(positive=paths[0], negative=paths[1], scale=2.0), []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph

    with torch.no_grad():
        with attach(toy, guide):
            expected = toy.unet(*inputs)[0]
        plain = toy.unet(*inputs)[0]
        if how == "wrapped":
            toy.unet = torch.compile(toy.unet, backend=backend)
        else:
            toy.unet.compile(backend=backend)
        with attach(toy, guide):
            torch.testing.assert_close(toy.unet(*inputs)[0], expected)
        assert len(graphs) >= 3 and torch.equal(toy.unet(*inputs)[0], plain)
        with pytest.raises(DiffalignError, match="packed=False"), attach(toy, guide, packed=True):
            pass


def test_exceptions_and_second_guides(sd: tuple[Any, Path, Path], tmp_path: Path) -> None:
    pipe, positive, negative = sd
    guide = Contrastive(positive=positive, negative=negative, scale=2.0)
    plain, before = sampled(pipe), state(pipe)

    def stop(*_: Any) -> Any:
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"), attach(pipe, guide):
        sampled(pipe, callback_on_step_end=stop)
    missing = Contrastive(positive=positive, negative=tmp_path, scale=1.0)
    with pytest.raises(DiffalignError), attach(pipe, missing):
        pass
    refused = pytest.raises(DiffalignError, match="leave the block")
    with attach(pipe, guide), refused, attach(pipe, guide):
        pass
    with pytest.raises(DiffalignError, match="refresh_every"), attach(pipe, guide, refresh_every=0):
        pass
    pipe.unet.save_pretrained(tmp_path / "whole")
    with pytest.raises(DiffalignError, match="whole denoiser"), attach(pipe, PGD(tuned=tmp_path / "whole", scale=1.0)):
        pass
    assert state(pipe) == before and torch.equal(sampled(pipe), plain)
    add_adapter(pipe.unet, "new", LoraSettings(rank=1, alpha=1, targets=("to_q",)), seed=0)
    remove_adapter(pipe.unet, "new")
