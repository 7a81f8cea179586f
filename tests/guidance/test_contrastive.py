"""cPGD: worked numbers, its limits, and that a pipeline is left as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from diffalign.core import DiffalignError
from diffalign.guidance import Contrastive, attach, contrastive
from diffalign.models import (
    LoraSettings,
    adapter_parameters,
    add_adapter,
    load_adapter,
    load_family,
    remove_adapter,
    save_adapter,
    using,
)

MODELS = ["tiny-sd", "tiny-sd3"]


def test_worked_numbers_and_swapping_sides() -> None:
    """1 + 2 (0.5 - 0.2) = 1.6; swapping the modules mirrors the difference."""
    base, positive, negative = (torch.full((2, 3, 4, 5), value) for value in (1.0, 0.5, 0.2))
    assert torch.allclose(contrastive(base, positive, negative, scale=2.0), torch.tensor(1.6))
    there = contrastive(base, positive, negative, scale=3.0) - base
    back = contrastive(base, negative, positive, scale=3.0) - base
    assert torch.allclose(there, -back)
    assert torch.equal(contrastive(base, positive, positive, scale=3.0), base)
    with pytest.raises(ValueError, match="one shape"):
        contrastive(base, positive[:1], negative, scale=1.0)


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path, Path]:
    """A family and two LoRA folders that change its predictions."""
    family = load_family(request.param)
    folders = []
    for seed, name in enumerate(("positive", "negative")):
        add_adapter(family.denoiser, name, LoraSettings(rank=3, alpha=3, targets=family.lora_targets), seed=seed)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for key, value in adapter_parameters(family.denoiser, name).items():
                if "lora_B" in key:
                    value.copy_(0.05 * torch.randn(value.shape, generator=generator))
        folders.append(tmp_path_factory.mktemp("lora") / name)
        save_adapter(family.denoiser, name, folders[-1], prefix=family.lora_prefix)
    return load_family(request.param), folders[0], folders[1]


def images(family: Any, **kwargs: Any) -> np.ndarray:
    pipe = family.pipeline()
    pipe.set_progress_bar_config(disable=True)
    noise = torch.randn(2, *family.latent_shape(32, 32), generator=torch.Generator().manual_seed(0))
    prompts = ["a photo of grass", "a photo of gravel"]
    out = pipe(prompts, num_inference_steps=3, guidance_scale=4.0, latents=noise, height=32, width=32,
               output_type="np", **kwargs)  # fmt: skip
    return np.asarray(out.images)


def test_the_pipeline_predicts_as_the_formula_says(model: tuple[Any, Path, Path]) -> None:
    """Each pass is the denoiser under its own adapter, on the same inputs, with and without return_dict."""
    family, positive, negative = model
    noisy = torch.randn(3, *family.latent_shape(32, 16), generator=torch.Generator().manual_seed(1))
    timesteps = torch.tensor([100, 500, 900])
    condition = family.encode_prompts(["a", "b", "c"])

    def predict() -> Tensor:
        with torch.no_grad():
            return family.predict(noisy, timesteps, condition)  # type: ignore[no-any-return]

    base, one = predict(), {}
    for name, folder in (("p", positive), ("n", negative)):
        load_adapter(family.denoiser, folder, name, prefix=family.lora_prefix)
        with using(family.denoiser, name):
            one[name] = predict()
        remove_adapter(family.denoiser, name)
    assert not torch.allclose(one["p"], one["n"], atol=1e-3)
    with attach(family.pipeline(), Contrastive(positive=positive, negative=negative, scale=2.5)):
        torch.testing.assert_close(predict(), base + 2.5 * (one["p"] - one["n"]))
    assert torch.equal(predict(), base)


def test_scale_0_is_the_base_bit_for_bit_without_another_pass(model: tuple[Any, Path, Path]) -> None:
    family, positive, negative = model
    calls: list[int] = []
    hook = family.denoiser.register_forward_hook(lambda *_: calls.append(1))
    plain, single = images(family), len(calls)
    with attach(family.pipeline(), Contrastive(positive=positive, negative=negative, scale=0.0)):
        assert np.array_equal(images(family), plain) and len(calls) == 2 * single
    with attach(family.pipeline(), Contrastive(positive=positive, negative=negative, scale=3.0)):
        assert not np.allclose(images(family), plain, atol=1e-3)
    hook.remove()
    assert np.array_equal(images(family), plain)


def test_everything_is_restored_after_an_exception(model: tuple[Any, Path, Path], tmp_path: Path) -> None:
    family, positive, negative = model
    plain, layers = images(family), {name: type(layer) for name, layer in family.denoiser.named_modules()}
    guide = Contrastive(positive=positive, negative=negative, scale=3.0)
    with pytest.raises(RuntimeError, match="on purpose"), attach(family.pipeline(), guide):
        images(family, callback_on_step_end=lambda *_: (_ for _ in ()).throw(RuntimeError("on purpose")))
    assert np.array_equal(images(family), plain)
    with (
        pytest.raises(DiffalignError),
        attach(family.pipeline(), Contrastive(positive=positive, negative=tmp_path, scale=1.0)),
    ):
        pass  # the second LoRA is missing: the first is taken off again
    assert np.array_equal(images(family), plain)
    assert {name: type(layer) for name, layer in family.denoiser.named_modules()} == layers


def test_a_second_guide_and_foreign_pipelines_are_refused(model: tuple[Any, Path, Path]) -> None:
    family, positive, negative = model
    guide = Contrastive(positive=positive, negative=negative, scale=3.0)
    refused = pytest.raises(DiffalignError, match="leave the block")
    with attach(family.pipeline(), guide), refused, attach(family.pipeline(), guide):
        pass
    with pytest.raises(DiffalignError, match="a unet or a transformer"), attach(object(), guide):
        pass
    with pytest.raises(DiffalignError, match="swap positive and negative"):
        Contrastive(positive=positive, negative=negative, scale=-1.0)
