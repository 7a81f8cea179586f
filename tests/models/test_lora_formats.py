"""LoRA files: understood by plain pipelines, and read from peft, kohya and older diffusers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from adapter_helpers import BUILDERS, add, output
from builders import sd_pipeline, sdxl_pipeline
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file

from diffalign.core import DiffalignError
from diffalign.models import (
    StableDiffusion,
    StableDiffusionXL,
    adapter_names,
    adapter_parameters,
    load_adapter,
    load_family,
    remove_adapter,
    save_adapter,
    using,
)
from diffalign.models.lora_formats import missing_weights, read_lora


def assert_equal_adapters(denoiser, first, second):
    one, two = adapter_parameters(denoiser, first), adapter_parameters(denoiser, second)
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


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
    assert_equal_adapters(denoiser, "a", "b")
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


def sgm_name(module: str, layers: int) -> str:
    """The original SDXL checkpoint's name of a layer, with kohya's underscores."""
    whole = {
        "conv_in": "input_blocks_0_0", "conv_out": "out_2",
        "time_embedding.linear_1": "time_embed_0", "time_embedding.linear_2": "time_embed_2",
        "add_embedding.linear_1": "label_emb_0_0", "add_embedding.linear_2": "label_emb_0_2",
    }  # fmt: skip
    parts = {
        "conv1": "in_layers_2", "conv2": "out_layers_3", "time_emb_proj": "emb_layers_1",
        "conv_shortcut": "skip_connection",
    }  # fmt: skip
    if module in whole:
        return whole[module]
    side, *rest = module.split(".")
    if side == "mid_block":
        place = {("resnets", "0"): 0, ("attentions", "0"): 1, ("resnets", "1"): 2}[rest[0], rest[1]]
        block, inner = f"middle_block_{place}", rest[2:]
    else:
        level, kind, number, *inner = rest
        first = int(level) * (layers + 1)
        if side == "down_blocks":
            place = first + (layers + 1 if kind == "downsamplers" else 1 + int(number))
            block = f"input_blocks_{place}_{int(kind == 'attentions')}"
        else:
            place = first + (layers if kind == "upsamplers" else int(number))
            block = f"output_blocks_{place}_{['resnets', 'attentions', 'upsamplers'].index(kind)}"
        if kind == "downsamplers":
            inner = ["op"]
    return "_".join([block, *(parts.get(part, part) for part in inner)]).replace(".", "_")


@pytest.mark.parametrize("layers", [1, 2])
def test_every_layer_of_sdxl_is_found_under_its_original_name(tmp_path, layers):
    modules = sdxl_pipeline(layers_per_block=layers).unet.named_modules()
    modules = [name for name, module in modules if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)]
    parts = ("lora_down.weight", "lora_up.weight")
    file = {f"lora_unet_{sgm_name(name, layers)}.{part}": torch.ones(1, 1) for name in modules for part in parts}
    assert len(file) == 2 * len(modules)
    save_file(file, tmp_path / "style.safetensors")
    assert sorted(read_lora(tmp_path / "style.safetensors", prefix="unet", modules=modules)) == sorted(modules)
    for name in ("input_blocks_99_7_proj_in", "middle_block_5_proj_in", "output_blocks_0_9_conv"):  # none has these
        save_file(file | {f"lora_unet_{name}.alpha": torch.tensor(1.0)}, tmp_path / "misfit.safetensors")
        with pytest.raises(DiffalignError, match=f"{name}.*another architecture"):
            read_lora(tmp_path / "misfit.safetensors", prefix="unet", modules=modules)


def test_kohya_files_of_sdxl_give_what_the_adapter_gave(tmp_path):
    """Written from a known adapter; a plain pipeline, which reads the file by itself, agrees."""
    family = StableDiffusionXL(sdxl_pipeline())
    denoiser, file = family.denoiser, {}
    add(family, "known", targets=("attn1.to_q", "attn2.to_out.0", "ff.net.0.proj", "conv1", "time_emb_proj"))
    for name, layer in denoiser.named_modules():
        if isinstance(layer, LoraLayer):
            flat = f"lora_unet_{sgm_name(name, layers=1)}"
            file[f"{flat}.lora_down.weight"] = layer.lora_A["known"].weight.detach().clone()
            file[f"{flat}.lora_up.weight"] = layer.lora_B["known"].weight.detach().clone()
            file[f"{flat}.alpha"] = torch.tensor(5.0)
    save_file(file, tmp_path / "style.safetensors")
    load_adapter(denoiser, tmp_path / "style.safetensors", "kohya", prefix="unet")
    assert_equal_adapters(denoiser, "known", "kohya")
    base = output(family)
    with using(denoiser, "known"):
        expected = output(family)
    with using(denoiser, "kohya"):
        assert torch.equal(output(family), expected) and not torch.allclose(base, expected, atol=1e-2)
    plain = sdxl_pipeline()
    plain.load_lora_weights(tmp_path / "style.safetensors")
    torch.testing.assert_close(output(StableDiffusionXL(plain)), expected, rtol=0, atol=1e-5)


def test_kohya_files_of_sd3_load_under_the_original_names(sd3_folder, tmp_path):
    """A fused qkv update is computed whole and cut into three; the last block's text norm has its halves swapped."""
    family = load_family(sd3_folder)
    denoiser, width, rank = family.denoiser, 16, 3
    last = len(denoiser.transformer_blocks) - 1
    layers = {
        "joint_blocks_0_x_block_attn_qkv": 3 * width,
        "joint_blocks_0_x_block_attn_proj": width,
        "joint_blocks_0_context_block_attn_qkv": 3 * width,
        "joint_blocks_0_context_block_attn_proj": width,
        "joint_blocks_0_context_block_mlp_fc1": 4 * width,
        f"joint_blocks_{last}_x_block_adaLN_modulation_1": 6 * width,
        f"joint_blocks_{last}_context_block_adaLN_modulation_1": 2 * width,
    }
    generator, file, updates = torch.Generator().manual_seed(0), {}, {}
    for name, rows in layers.items():
        down, up = torch.randn(rank, width, generator=generator), torch.randn(rows, rank, generator=generator)
        file |= {f"lora_unet_{name}.lora_down.weight": down, f"lora_unet_{name}.lora_up.weight": up}
        file[f"lora_unet_{name}.alpha"] = torch.tensor(6.0)
        updates[name] = 2.0 * up @ down
    save_file(file, tmp_path / "sd3.safetensors")
    load_adapter(denoiser, tmp_path / "sd3.safetensors", "kohya", prefix="transformer")

    def update(module):
        return denoiser.get_submodule(f"transformer_blocks.{module}").get_delta_weight("kohya")

    for name, modules in {
        "joint_blocks_0_x_block_attn_qkv": ["0.attn.to_q", "0.attn.to_k", "0.attn.to_v"],
        "joint_blocks_0_x_block_attn_proj": ["0.attn.to_out.0"],
        "joint_blocks_0_context_block_attn_qkv": ["0.attn.add_q_proj", "0.attn.add_k_proj", "0.attn.add_v_proj"],
        "joint_blocks_0_context_block_attn_proj": ["0.attn.to_add_out"],
        "joint_blocks_0_context_block_mlp_fc1": ["0.ff_context.net.0.proj"],
        f"joint_blocks_{last}_x_block_adaLN_modulation_1": [f"{last}.norm1.linear"],
    }.items():
        torch.testing.assert_close(torch.cat([update(module) for module in modules]), updates[name])
    shift, scale = updates[f"joint_blocks_{last}_context_block_adaLN_modulation_1"].chunk(2)
    torch.testing.assert_close(update(f"{last}.norm1_context.linear"), torch.cat([scale, shift]))

    file[f"lora_unet_joint_blocks_{last}_context_block_attn_proj.alpha"] = torch.tensor(1.0)  # that block has none
    save_file(file, tmp_path / "misfit.safetensors")
    with pytest.raises(DiffalignError, match="another architecture"):
        load_adapter(denoiser, tmp_path / "misfit.safetensors", "misfit", prefix="transformer")


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
    assert_equal_adapters(sd.denoiser, "known", "old")
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
        "not one number": good | {down.replace("lora_A.weight", "alpha"): torch.ones(2)},
        "holds no matrices": good | {down: torch.ones(0, 4)},
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


def test_a_run_in_place_of_its_weights_is_told_where_they_lie(tmp_path: Path) -> None:
    (tmp_path / "run" / "stage1" / "policy").mkdir(parents=True)
    with pytest.raises(DiffalignError, match=r"found none in .*run; this run's weights lie in .*stage1/policy"):
        read_lora(tmp_path / "run", prefix="unet", modules=())
    assert missing_weights(tmp_path / "nowhere").endswith("nowhere does not exist")
