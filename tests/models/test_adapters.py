"""Adapters: switching restores everything, files are understood by and from others."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from builders import sd3_pipeline, sd_pipeline
from diffusers import DiffusionPipeline
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file

from diffalign.core import DiffalignError
from diffalign.models import (
    LoraSettings,
    StableDiffusion,
    StableDiffusion3,
    adapter_names,
    add_adapter,
    copy_adapter,
    fuse_adapter,
    load_adapter,
    remove_adapter,
    save_adapter,
    trainable_parameters,
    using,
)

BUILDERS = {"sd": (sd_pipeline, StableDiffusion), "sd3": (sd3_pipeline, StableDiffusion3)}


@pytest.fixture(params=["sd", "sd3"])
def kind(request):
    return request.param


@pytest.fixture
def family(kind):
    build, cls = BUILDERS[kind]
    return cls(build())


@pytest.fixture
def sd():
    return StableDiffusion(sd_pipeline())


def settings(family, **changes):
    return LoraSettings(**{"rank": 3, "alpha": 5.0, "targets": family.lora_targets} | changes)


def randomise(denoiser, name: str, seed: int = 0) -> None:
    """Gives the up matrices, which start at 0, something to do."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trainable_parameters(denoiser, name):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)


def add(family, name: str, seed: int = 0, **changes) -> None:
    add_adapter(family.denoiser, name, settings(family, **changes), seed=seed)
    randomise(family.denoiser, name, seed)


@torch.no_grad()
def output(family) -> torch.Tensor:
    channels, height, width = family.latent_shape(12, 16)
    noisy = torch.randn(3, channels, height, width, generator=torch.Generator().manual_seed(9))
    return family.predict(noisy, torch.tensor([100, 500, 900]), family.encode_prompts(["a fox", "owl", "moss"]))


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
def test_foreign_loras_keep_their_state(family, tmp_path, order):
    """Somebody's LoRA loaded through the pipeline stays active at its weight under every switch."""
    donor = type(family)(BUILDERS["sd" if family.lora_prefix == "unet" else "sd3"][0]())
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
    add(sd, "a")
    denoiser.conv_in.weight.requires_grad_(True)
    flags = {name: p.requires_grad for name, p in denoiser.named_parameters()}
    copy_adapter(denoiser, "a", "reference")
    after = {name: p.requires_grad for name, p in denoiser.named_parameters()}
    assert {name: after[name] for name in flags} == flags
    assert not any(flag for name, flag in after.items() if ".reference." in name)


def test_gradients_reach_only_the_policy(sd):
    denoiser = sd.denoiser
    add(sd, "policy")
    copy_adapter(denoiser, "policy", "reference")
    with pytest.raises(DiffalignError, match="frozen"):
        trainable_parameters(denoiser, "reference")
    condition = sd.encode_prompts(["a fox"] * 3)
    with using(denoiser, "policy"):
        pred = sd.predict(torch.ones(3, 4, 6, 8), torch.tensor([1, 2, 3]), condition)
        pred.square().mean().backward()
    trained = trainable_parameters(denoiser, "policy")
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
    a, b, c = (trainable_parameters(sd.denoiser, name) for name in "abc")
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert not torch.equal(a[0], c[0])
    downs = torch.cat([parameter.flatten() for parameter in a[::2]])
    assert abs(downs.std().item() - 1 / 3) < 0.02  # gaussian: N(0, 1/rank^2)


def test_half_precision_networks_get_float32_adapters(sd):
    sd.denoiser.to(torch.bfloat16)
    add(sd, "a")
    assert all(parameter.dtype == torch.float32 for parameter in trainable_parameters(sd.denoiser, "a"))
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


# ------------------------------------------------------------------------------------------- files


def pixels(pipe) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(2)
    return pipe("a fox", height=16, width=24, num_inference_steps=2, generator=generator, output_type="pt").images


@pytest.mark.parametrize("patterned", [False, True])
def test_saved_adapters_give_a_plain_pipeline_the_same_pixels(family, kind, tmp_path, patterned):
    """alpha 5 over rank 3 is not 1, so a reader that lost alpha would show."""
    denoiser = family.denoiser
    add(family, "policy")
    if patterned:  # ranks and alphas that differ between layers
        donor = load_file(save_adapter(denoiser, "policy", tmp_path, prefix="x"))
        module = sorted(donor)[0].removeprefix("x.").split(".lora")[0]
        layer = denoiser.get_submodule(module)
        grown = {f"base_model.model.{k.removeprefix('x.')}": v for k, v in donor.items()}
        down, up = (f"base_model.model.{module}.lora_{part}.weight" for part in "AB")
        grown[down] = torch.ones(2, layer.in_features) * 0.1
        grown[up] = torch.ones(layer.out_features, 2) * 0.1
        remove_adapter(denoiser, "policy")
        save_file(grown, tmp_path / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": 3, "lora_alpha": 5, "alpha_pattern": {f"^{module}": 7}}
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
        load_adapter(denoiser, tmp_path / "adapter_model.safetensors", "policy", prefix=family.lora_prefix)
        assert layer.get_base_layer() is denoiser.get_submodule(module).get_base_layer()
        assert denoiser.get_submodule(module).scaling["policy"] == 3.5
    folder = tmp_path / "saved"
    path = save_adapter(denoiser, "policy", folder, prefix=family.lora_prefix)
    assert path.name == "pytorch_lora_weights.safetensors"
    with using(denoiser, "policy"):
        expected = pixels(family.pipeline())
    plain = BUILDERS[kind][0]()
    base = pixels(plain)
    plain.load_lora_weights(folder)
    assert not torch.allclose(base, expected, atol=1e-3)
    torch.testing.assert_close(pixels(plain), expected, rtol=0, atol=1e-6)


def test_saved_adapters_load_back_exactly(family, tmp_path):
    denoiser = family.denoiser
    add(family, "a")
    save_adapter(denoiser, "a", tmp_path, prefix=family.lora_prefix)
    load_adapter(denoiser, tmp_path, "b", prefix=family.lora_prefix, trainable=True)
    for one, two in zip(trainable_parameters(denoiser, "a"), trainable_parameters(denoiser, "b"), strict=True):
        assert torch.equal(one, two)
    with using(denoiser, "a"):
        expected = output(family)
    with using(denoiser, "b"):
        assert torch.equal(output(family), expected)


def test_peft_folders_load(family, kind, tmp_path):
    """A network wrapped and saved by peft itself, with rank-stabilised scaling."""
    torch.manual_seed(4)
    config = LoraConfig(
        r=4, lora_alpha=6, target_modules=list(family.lora_targets), use_rslora=True, init_lora_weights=False
    )
    wrapped = get_peft_model(BUILDERS[kind][1](BUILDERS[kind][0]()).denoiser, config)
    wrapped.save_pretrained(tmp_path)
    load_adapter(family.denoiser, tmp_path, "theirs", prefix=family.lora_prefix)
    with using(family.denoiser, "theirs"):
        ours = output(family)
    other = BUILDERS[kind][1](BUILDERS[kind][0]())
    other.denoiser = wrapped.base_model.model
    torch.testing.assert_close(ours, output(other), rtol=0, atol=1e-5)


def test_kohya_files_load_with_alpha_per_layer(sd, tmp_path):
    """Built from a known adapter by writing kohya's names; convolutions included, alpha differs between layers."""
    denoiser = sd.denoiser
    add(sd, "known", targets=("to_q", "to_out.0", "conv1", "ff.net.2"))
    kohya, alphas = {}, {}
    with torch.no_grad():
        layers = [(n, m) for n, m in denoiser.named_modules() if isinstance(m, LoraLayer)]
        for index, (name, layer) in enumerate(layers):
            flat, alphas[name] = f"lora_unet_{name.replace('.', '_')}", float(1 + index % 4)
            kohya[f"{flat}.lora_down.weight"] = layer.lora_A["known"].weight.clone()
            kohya[f"{flat}.lora_up.weight"] = layer.lora_B["known"].weight.clone()
            kohya[f"{flat}.alpha"] = torch.tensor(alphas[name])
    save_file(kohya, tmp_path / "style.safetensors")
    load_adapter(denoiser, tmp_path / "style.safetensors", "kohya", prefix="unet")
    for name, layer in layers:
        assert torch.equal(layer.lora_A["kohya"].weight, layer.lora_A["known"].weight)
        assert layer.scaling["kohya"] == pytest.approx(alphas[name] / 3)
    for key in [key for key in kohya if key.endswith("alpha")]:
        kohya[key] = torch.tensor(2.0)  # one alpha everywhere, which diffusers' reader understands too
    save_file(kohya, tmp_path / "even.safetensors")
    load_adapter(denoiser, tmp_path / "even.safetensors", "even", prefix="unet")
    with using(denoiser, "even"):
        expected = output(sd)
    plain = sd_pipeline()
    plain.load_lora_weights(tmp_path / "even.safetensors")
    torch.testing.assert_close(output(StableDiffusion(plain)), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("prefixed", [True, False])
def test_old_diffusers_spelling_loads(sd, tmp_path, prefixed):
    add(sd, "known")
    old, prefix = {}, "unet." if prefixed else ""
    for name, layer in sd.denoiser.named_modules():
        if isinstance(layer, LoraLayer):
            attention, _, projection = name.removesuffix(".0").rpartition(".")
            old[f"{prefix}{attention}.processor.{projection}_lora.down.weight"] = layer.lora_A["known"].weight.detach()
            old[f"{prefix}{attention}.processor.{projection}_lora.up.weight"] = layer.lora_B["known"].weight.detach()
    save_file(old, tmp_path / "pytorch_lora_weights.safetensors")
    load_adapter(sd.denoiser, tmp_path, "old", prefix="unet", trainable=True)
    for one, two in zip(
        trainable_parameters(sd.denoiser, "known"), trainable_parameters(sd.denoiser, "old"), strict=True
    ):
        assert torch.equal(one, two)
    assert all(m.scaling["old"] == 1 for m in sd.denoiser.modules() if isinstance(m, LoraLayer))  # no alpha: scale 1


def test_text_encoder_parts_are_refused_or_left_out(sd, tmp_path):
    add(sd, "a")
    path = save_adapter(sd.denoiser, "a", tmp_path, prefix="unet")
    tensors = load_file(path) | {"text_encoder.text_model.q_proj.lora_A.weight": torch.ones(2, 2)}
    save_file(tensors, path)
    with pytest.raises(DiffalignError, match="ignore_text_encoders"):
        load_adapter(sd.denoiser, tmp_path, "b", prefix="unet")
    load_adapter(sd.denoiser, tmp_path, "b", prefix="unet", ignore_text_encoders=True)
    assert adapter_names(sd.denoiser) == ["a", "b"]


def test_unfit_files_are_refused_and_change_nothing(sd, tmp_path):
    base, names = output(sd), list(sd.denoiser.state_dict())
    add(sd, "a")
    path = save_adapter(sd.denoiser, "a", tmp_path / "a", prefix="unet")
    remove_adapter(sd.denoiser, "a")
    good = load_file(path)
    down = next(key for key in good if key.endswith("lora_A.weight"))
    cases = {
        "does not fit this network.*expected .3, ": good | {down: torch.ones(3, 99)},
        "has only up": {key: value for key, value in good.items() if key != down},
        "not plain LoRA.*dora_scale": good | {down.replace("lora_A.weight", "dora_scale"): torch.ones(3)},
        "not plain LoRA.*transformer_blocks.7": {
            "transformer.transformer_blocks.7.attn.to_q.lora_A.weight": torch.ones(3, 4)
        },
        "not plain LoRA.*lora_unet_input_blocks": {"lora_unet_input_blocks_4.lora_down.weight": torch.ones(3, 4)},
    }
    for message, tensors in cases.items():
        file = tmp_path / "bad.safetensors"
        save_file(tensors, file)
        with pytest.raises(DiffalignError, match=message):
            load_adapter(sd.denoiser, file, "bad", prefix="unet")
    (tmp_path / "cut.safetensors").write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DiffalignError, match="not a whole safetensors file"):
        load_adapter(sd.denoiser, tmp_path / "cut.safetensors", "bad", prefix="unet")
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "pytorch_lora_weights.bin").write_bytes(b"cos\nsystem\n")
    with pytest.raises(DiffalignError, match="weights_only=True"):
        load_adapter(sd.denoiser, tmp_path / "pickled", "bad", prefix="unet")
    with pytest.raises(DiffalignError, match="found nothing"):
        load_adapter(sd.denoiser, tmp_path / "missing", "bad", prefix="unet")
    with pytest.raises(DiffalignError, match="name the file"):
        load_adapter(sd.denoiser, tmp_path, "bad", prefix="unet")
    assert list(sd.denoiser.state_dict()) == names and torch.equal(output(sd), base)


def test_peft_variants_are_refused(sd, tmp_path):
    add(sd, "a")
    tensors = load_file(save_adapter(sd.denoiser, "a", tmp_path, prefix="base_model.model"))
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(DiffalignError, match=r"adapter_config.json"):
        load_adapter(sd.denoiser, tmp_path, "b", prefix="unet")
    for config in ({"use_dora": True}, {"peft_type": "LOHA"}, {"bias": "all"}):
        (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 3} | config))
        with pytest.raises(DiffalignError, match="expected plain LoRA"):
            load_adapter(sd.denoiser, tmp_path, "b", prefix="unet")


def test_bad_names_and_settings_are_refused(sd):
    for name in ("", "with.dot"):
        with pytest.raises(DiffalignError, match="without dots"):
            add_adapter(sd.denoiser, name, settings(sd), seed=0)
    add_adapter(sd.denoiser, "policy", settings(sd), seed=0)
    with pytest.raises(DiffalignError, match="taken"):
        add_adapter(sd.denoiser, "policy", settings(sd), seed=0)
    with pytest.raises(DiffalignError, match="nearest: to_q"):
        add_adapter(sd.denoiser, "b", settings(sd, targets=("to_qq",)), seed=0)
    for change in ({"rank": 0}, {"alpha": 0.0}, {"dropout": 1.0}, {"targets": ()}):
        with pytest.raises(DiffalignError, match="expected"):
            add_adapter(sd.denoiser, "b", settings(sd, **change), seed=0)
    with pytest.raises(DiffalignError, match="nearest: policy"), using(sd.denoiser, "polcy"):
        pass
