"""Named weights: LoRA and full copies behave alike, references stay put, averages and refreshes do what they say."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from diffalign.core import DiffalignError
from diffalign.models import LoraSettings, load_family
from diffalign.train import START, FullWeights, LoraWeights, assign, average, weights_hash


@pytest.fixture(params=["lora", "full"])
def weights(request: pytest.FixtureRequest) -> Any:
    family = load_family("tiny-sd3")
    if request.param == "full":
        return FullWeights(family)
    made = LoraWeights(family)
    made.create("policy", LoraSettings(rank=3, alpha=6, targets=family.lora_targets), seed=0)
    return made


def predict(weights: Any, name: str) -> Tensor:
    family = weights.family
    generator = torch.Generator().manual_seed(0)
    noisy = torch.randn(3, *family.latent_shape(32, 16), generator=generator)
    condition = family.encode_prompts(["a", "b", "c"])
    with weights.active(name) as call, torch.no_grad():
        return call(noisy, torch.tensor([100.0, 500.0, 900.0]), condition)  # type: ignore[no-any-return]


def disturb(weights: Any, name: str = "policy") -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in weights.parameters(name).values():
            value.add_(0.1 * torch.randn(value.shape, generator=generator))


def test_a_reference_is_a_frozen_copy_that_training_does_not_move(weights: Any) -> None:
    weights.copy("policy", "reference")
    assert torch.equal(predict(weights, "policy"), predict(weights, "reference"))
    before, named = predict(weights, "reference"), weights_hash(weights, "reference")
    assert named == weights_hash(weights, "policy")
    disturb(weights)
    assert torch.equal(predict(weights, "reference"), before)
    assert not torch.allclose(predict(weights, "policy"), before)
    assert weights_hash(weights, "reference") == named != weights_hash(weights, "policy")
    assert all(p.requires_grad for p in weights.parameters("policy").values())
    assert not any(p.requires_grad for p in weights.parameters("reference").values())


def test_average_and_assign(weights: Any) -> None:
    weights.copy("policy", "average")
    old = {key: value.clone() for key, value in weights.parameters("average").items()}
    disturb(weights)
    average(weights, "policy", "average", decay=0.75)
    for key, value in weights.parameters("average").items():
        expected = 0.75 * old[key] + 0.25 * weights.parameters("policy")[key]
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-7)
    assign(weights, "policy", "average")
    assert weights_hash(weights, "average") == weights_hash(weights, "policy")
    with pytest.raises(ValueError, match="decay"):
        average(weights, "policy", "average", decay=1.5)


def test_unknown_names_list_the_nearest(weights: Any) -> None:
    with pytest.raises(DiffalignError, match="policy"), weights.active("polcy"):
        pass


def test_start_is_the_network_before_the_run_with_what_it_keeps() -> None:
    """A kept adapter is on under every name; START turns the run's own off."""
    family = load_family("tiny-sd3")
    bare = predict(LoraWeights(family), START)
    settings = LoraSettings(rank=3, alpha=6, targets=family.lora_targets)
    given = LoraWeights(family)
    given.create("given", settings, seed=1)
    disturb(given, "given")
    weights = LoraWeights(family, kept={"given": 0.5})
    weights.create("policy", settings, seed=0)
    start = predict(weights, START)
    assert not torch.allclose(start, bare)
    assert torch.equal(predict(weights, "policy"), start)
    disturb(weights)
    assert torch.equal(predict(weights, START), start) and not torch.allclose(predict(weights, "policy"), start)
    assert weights.parameters(START) == {}


def test_adapters_off_equal_a_frozen_copy() -> None:
    lora, full = LoraWeights(load_family("tiny-sd3")), FullWeights(load_family("tiny-sd3"))
    lora.create("policy", LoraSettings(rank=3, alpha=6, targets=lora.family.lora_targets), seed=0)
    disturb(lora)
    full.copy("policy", "reference")
    disturb(full)
    assert torch.equal(predict(lora, START), predict(full, "reference"))


def test_full_fine_tuning_of_half_precision_weights_is_refused() -> None:
    with pytest.raises(DiffalignError, match="float32"):
        FullWeights(load_family("tiny-sd3", dtype=torch.bfloat16))
