"""Adapters: switching restores everything, removing and fusing leave a plain network."""

from __future__ import annotations

import copy

import pytest
import torch
from adapter_helpers import BUILDERS, add, output, randomise, settings
from builders import sd_pipeline
from diffusers import DiffusionPipeline
from peft.tuners.lora import LoraLayer

from diffalign.core import DiffalignError
from diffalign.models import (
    StableDiffusion,
    adapter_names,
    adapter_parameters,
    add_adapter,
    adding,
    copy_adapter,
    fuse_adapter,
    remove_adapter,
    save_adapter,
    using,
)


@pytest.fixture(params=["sd", "sdxl", "sd3"])
def kind(request):
    return request.param


@pytest.fixture
def family(kind):
    build, cls = BUILDERS[kind]
    return cls(build())


@pytest.fixture
def sd():
    return StableDiffusion(sd_pipeline())


def switches(denoiser) -> list:
    """Everything that switching touches, and everything it must not touch."""
    layers = [
        (name, layer.active_adapters, layer.disable_adapters, dict(layer.scaling))
        for name, layer in denoiser.named_modules()
        if isinstance(layer, LoraLayer)
    ]
    return [layers, {name: p.requires_grad for name, p in denoiser.named_parameters()}]


# ------------------------------------------------------------------------------------------- switching


def test_a_new_adapter_is_off_and_starts_as_the_identity(family):
    base = output(family)
    add_adapter(family.denoiser, "policy", settings(family), seed=0)
    assert torch.equal(output(family), base)
    with using(family.denoiser, "policy"):
        assert torch.equal(output(family), base)
    randomise(family.denoiser, "policy")
    assert torch.equal(output(family), base)
    with using(family.denoiser, "policy"):
        assert not torch.allclose(output(family), base, atol=1e-3)
        with using(family.denoiser, None):
            assert torch.equal(output(family), base)
    assert torch.equal(output(family), base)
    assert adapter_names(family.denoiser) == ["policy"]


def test_state_is_restored_also_after_an_exception(family):
    add(family, "a")
    add(family, "b", seed=1)
    before = switches(family.denoiser)
    with pytest.raises(RuntimeError, match="boom"), using(family.denoiser, {"a": 0.7, "b": -0.3}):
        during = switches(family.denoiser)
        raise RuntimeError("boom")
    assert switches(family.denoiser) == before
    assert during[0] != before[0] and during[1] == before[1]  # requires_grad never changes


def test_mixtures_are_the_weighted_sum_of_updates(family):
    """A mixture equals one adapter whose update is the weighted sum: its up matrices stacked with the weights."""
    add(family, "a")
    add(family, "b", seed=1)
    denoiser = family.denoiser
    add_adapter(denoiser, "sum", settings(family, rank=6, alpha=10.0), seed=0)  # the same scale, 5/3
    with torch.no_grad():
        for layer in (layer for layer in denoiser.modules() if isinstance(layer, LoraLayer)):
            layer.lora_A["sum"].weight.copy_(torch.cat([layer.lora_A["a"].weight, layer.lora_A["b"].weight]))
            ups = [0.7 * layer.lora_B["a"].weight, -0.3 * layer.lora_B["b"].weight]
            layer.lora_B["sum"].weight.copy_(torch.cat(ups, dim=1))
    with using(denoiser, {"a": 0.7, "b": -0.3}):
        mixed = output(family)
    with using(denoiser, "sum"):
        torch.testing.assert_close(mixed, output(family), rtol=0, atol=1e-5)


def test_adding_keeps_what_is_on_and_reweighs_what_is_named(family):
    add(family, "a")
    add(family, "b", seed=1)
    denoiser = family.denoiser
    with using(denoiser, {"a": 0.7, "b": -0.3}):
        mixed = output(family)
    with using(denoiser, {"a": 0.7}):
        alone = output(family)
        with adding(denoiser, {"b": -0.3}):
            torch.testing.assert_close(output(family), mixed, rtol=0, atol=1e-5)
        assert torch.equal(output(family), alone)
    with using(denoiser, {"a": 0.7, "b": 2.0}), adding(denoiser, {"b": 0.0}):
        assert torch.equal(output(family), alone)


def test_weights_do_not_stick(family):
    add(family, "a")
    with using(family.denoiser, "a"):
        full = output(family)
    with using(family.denoiser, {"a": 0.2}):
        assert not torch.allclose(output(family), full, atol=1e-3)
        with using(family.denoiser, "a"):
            assert torch.equal(output(family), full)
    with using(family.denoiser, "a"):
        assert torch.equal(output(family), full)
    with using(family.denoiser, {"a": 0.0}):
        off = output(family)
    assert torch.equal(off, output(family))


@pytest.mark.parametrize("order", ["foreign_first", "ours_first"])
def test_foreign_loras_keep_their_state(family, kind, tmp_path, order):
    """Somebody's LoRA loaded through the pipeline stays active at its weight under every switch."""
    donor = type(family)(BUILDERS[kind][0]())
    add(donor, "style", seed=5, targets=("to_q", "to_out.0"))
    save_adapter(donor.denoiser, "style", tmp_path, prefix=donor.lora_prefix)
    pipe = family.pipeline()

    def load_foreign():
        pipe.load_lora_weights(tmp_path, adapter_name="style")
        pipe.set_adapters("style", 0.6)

    base = output(family)
    if order == "foreign_first":
        load_foreign()
    styled = output(family) if order == "foreign_first" else None
    add(family, "policy")
    if order == "ours_first":
        load_foreign()
        styled = output(family)
    assert styled is not None and not torch.allclose(styled, base, atol=1e-4)
    before = switches(family.denoiser)
    assert torch.equal(output(family), styled)
    with using(family.denoiser, None):
        assert torch.equal(output(family), styled)
    with using(family.denoiser, "policy"):
        both = output(family)
    assert not torch.allclose(both, styled, atol=1e-4)
    assert switches(family.denoiser) == before
    pipe.disable_lora()
    assert torch.equal(output(family), base)
    disabled = switches(family.denoiser)
    with using(family.denoiser, "policy"):
        alone = output(family)
    assert switches(family.denoiser) == disabled
    assert not torch.allclose(alone, base, atol=1e-4) and not torch.allclose(alone, both, atol=1e-4)
    pipe.enable_lora()
    assert torch.equal(output(family), styled)


def test_trainability_of_others_survives_adding(sd):
    denoiser = sd.denoiser
    denoiser.conv_in.weight.requires_grad_(True)
    add(sd, "a")
    assert denoiser.conv_in.weight.requires_grad and not denoiser.conv_out.weight.requires_grad
    flags = {name: p.requires_grad for name, p in denoiser.named_parameters()}
    copy_adapter(denoiser, "a", "reference")
    after = {name: p.requires_grad for name, p in denoiser.named_parameters()}
    assert {name: after[name] for name in flags} == flags
    assert not any(flag for name, flag in after.items() if ".reference." in name)


def test_gradients_reach_only_the_policy(sd):
    denoiser = sd.denoiser
    add(sd, "policy")
    copy_adapter(denoiser, "policy", "reference")
    policy, reference = (adapter_parameters(denoiser, name) for name in ("policy", "reference"))
    assert policy.keys() == reference.keys() and len(policy) == 2 * sum(".lora_A." in key for key in policy)
    assert all(torch.equal(policy[key], reference[key]) for key in policy)
    assert all(p.requires_grad for p in policy.values()) and not any(p.requires_grad for p in reference.values())
    condition = sd.encode_prompts(["a fox"] * 3)
    with using(denoiser, "policy"):
        pred = sd.predict(torch.ones(3, 4, 6, 8), torch.tensor([1, 2, 3]), condition)
        pred.square().mean().backward()
    trained = list(adapter_parameters(denoiser, "policy").values())
    assert all(parameter.grad is not None for parameter in trained)
    others = {id(parameter) for parameter in denoiser.parameters()} - {id(parameter) for parameter in trained}
    assert all(p.grad is None for p in denoiser.parameters() if id(p) in others)


def test_a_copy_is_equal_then_independent(family):
    denoiser = family.denoiser
    add(family, "stage1")
    copy_adapter(denoiser, "stage1", "policy", trainable=True)
    with using(denoiser, "stage1"):
        reference = output(family)
    with using(denoiser, "policy"):
        assert torch.equal(output(family), reference)
    randomise(denoiser, "policy", seed=8)
    with using(denoiser, "stage1"):
        assert torch.equal(output(family), reference)
    with using(denoiser, "policy"):
        assert not torch.allclose(output(family), reference, atol=1e-3)


def test_a_deep_copy_of_the_network_switches_on_its_own(sd):
    add(sd, "a")
    frozen = copy.deepcopy(sd.denoiser)
    with using(frozen, "a"):
        assert all(layer.active_adapters == [] for layer in sd.denoiser.modules() if isinstance(layer, LoraLayer))
        assert any(layer.active_adapters == ["a"] for layer in frozen.modules() if isinstance(layer, LoraLayer))


def test_seed_decides_the_weights_and_the_global_rng_is_left_alone(sd):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        add_adapter(sd.denoiser, name, settings(sd), seed=seed)
    assert torch.equal(torch.rand(2), expected)
    a, b, c = (list(adapter_parameters(sd.denoiser, name).values()) for name in "abc")
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert not torch.equal(a[0], c[0])
    downs = torch.cat([parameter.flatten() for parameter in a[::2]])
    assert abs(downs.std().item() - 1 / 3) < 0.02  # gaussian: N(0, 1/rank^2)


def test_half_precision_networks_get_float32_adapters(sd):
    sd.denoiser.to(torch.bfloat16)
    add(sd, "a")
    assert all(parameter.dtype == torch.float32 for parameter in list(adapter_parameters(sd.denoiser, "a").values()))
    with using(sd.denoiser, "a"):
        assert output(sd).dtype == torch.bfloat16


# ------------------------------------------------------------------------------------------- removing and fusing


def test_removing_leaves_the_plain_network(family):
    denoiser = family.denoiser
    base, names = output(family), list(denoiser.state_dict())
    add(family, "a")
    add(family, "b", seed=1)
    with using(denoiser, "a"), pytest.raises(DiffalignError, match="is on"):
        remove_adapter(denoiser, "a")
    remove_adapter(denoiser, "a")
    with pytest.raises(DiffalignError, match="unknown adapter 'a'"), using(denoiser, "a"):
        pass
    with using(denoiser, "b"):
        assert not torch.equal(output(family), base)
    remove_adapter(denoiser, "b")
    assert list(denoiser.state_dict()) == names and torch.equal(output(family), base)
    add(family, "a")
    assert adapter_names(denoiser) == ["a"]


def test_fusing_equals_the_adapter(family, tmp_path):
    denoiser = family.denoiser
    names = list(denoiser.state_dict())
    add(family, "a")
    with using(denoiser, {"a": 0.4}):
        expected = output(family)
    fuse_adapter(denoiser, "a", 0.4)
    torch.testing.assert_close(output(family), expected, rtol=0, atol=1e-5)
    assert adapter_names(denoiser) == [] and list(denoiser.state_dict()) == names
    family.pipeline().save_pretrained(tmp_path)
    reloaded = type(family)(DiffusionPipeline.from_pretrained(tmp_path))
    assert torch.equal(output(reloaded), output(family))


def test_adapters_under_a_fused_foreign_lora_are_refused(sd, tmp_path):
    """peft computes a fused layer from its base weights alone, so an adapter would silently do nothing."""
    donor = StableDiffusion(sd_pipeline())
    add(donor, "style", seed=5)
    save_adapter(donor.denoiser, "style", tmp_path, prefix="unet")
    add(sd, "a")
    pipe = sd.pipeline()
    pipe.load_lora_weights(tmp_path, adapter_name="style")
    pipe.fuse_lora()
    before = switches(sd.denoiser)
    with pytest.raises(DiffalignError, match="unload_lora_weights"), using(sd.denoiser, "a"):
        pass
    with pytest.raises(DiffalignError, match="unload_lora_weights"):
        add(sd, "b")
    assert switches(sd.denoiser) == before
    fused = output(sd)
    pipe.unload_lora_weights()
    add(sd, "b")
    assert torch.equal(output(sd), fused)


def test_adapters_unloaded_from_outside_are_noticed(sd):
    add(sd, "a")
    sd.pipeline().unload_lora_weights()
    with pytest.raises(DiffalignError, match="removed from outside"), using(sd.denoiser, "a"):
        pass


def test_bad_names_and_settings_are_refused(sd):
    for name in ("", "with.dot"):
        with pytest.raises(DiffalignError, match="without dots"):
            add_adapter(sd.denoiser, name, settings(sd), seed=0)
    add_adapter(sd.denoiser, "policy", settings(sd), seed=0)
    with pytest.raises(DiffalignError, match="taken"):
        add_adapter(sd.denoiser, "policy", settings(sd), seed=0)
    with pytest.raises(DiffalignError, match="nearest: to_q"):
        add_adapter(sd.denoiser, "b", settings(sd, targets=("to_qq",)), seed=0)
    with pytest.raises(DiffalignError, match="nearest: gaussian"):
        add_adapter(sd.denoiser, "b", settings(sd, init="gausian"), seed=0)
    for change in ({"rank": 0}, {"alpha": 0.0}, {"dropout": 1.0}, {"targets": ()}):
        with pytest.raises(DiffalignError, match="expected"):
            add_adapter(sd.denoiser, "b", settings(sd, **change), seed=0)
    with pytest.raises(DiffalignError, match="nearest: policy"), using(sd.denoiser, "polcy"):
        pass
