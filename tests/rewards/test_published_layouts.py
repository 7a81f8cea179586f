"""HPSv2, ImageReward and the aesthetic heads: from their published layout through the converter and the loader."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from reward_helpers import (
    BERT_WORDS,
    PROMPTS,
    bert_tokenizer,
    head_state,
    image_reward_hidden,
    image_reward_state,
    images,
    open_clip_cosine,
    open_clip_state,
    random_state,
    run_head,
    tiny_tokenizer,
)
from torch.nn import functional as F
from transformers import CLIPModel

from diffalign.core import DiffalignError, sha256_file
from diffalign.rewards import collapse_affine, convert_reward, load_reward

BERT_PROMPTS = ["a photo of grass", "old coins, a cat", "cat"]
CONVERTED = ("hpsv2", "hpsv2.1", "image_reward", "aesthetic_v1", "aesthetic_v2")


def test_hps_is_the_cosine_of_its_checkpoint(converted: dict[str, Path]) -> None:
    """The forward pass of open_clip's layout on the same pixels; the second version has other weights."""
    reward = load_reward("hpsv2", weights=converted["hpsv2"])
    pixels = torch.stack([reward.prepare(image) for image in images()])
    expected = open_clip_cosine(open_clip_state(), pixels, tiny_tokenizer()(PROMPTS).input_ids)
    assert torch.allclose(reward(images(), PROMPTS), expected, atol=1e-5)
    assert expected.std() > 0.02, "the comparison must not be of constants"
    assert reward.card.preprocessing == "letterbox28-bicubic-antialias"
    newer = load_reward("hpsv2.1", weights=converted["hpsv2.1"])
    assert newer.card.weights != reward.card.weights
    assert not torch.allclose(newer(images(), PROMPTS), expected, atol=1e-4)


def test_image_reward_is_the_forward_pass_of_its_checkpoint(converted: dict[str, Path]) -> None:
    """(head(first token) - 0.16717362830052426) / 1.0333394966054072, the head layer by layer in float64."""
    reward = load_reward("image_reward", weights=converted["image_reward"])
    state = image_reward_state()
    pixels = torch.stack([reward.prepare(image) for image in images()])
    hidden = image_reward_hidden(state, pixels, bert_tokenizer()(BERT_PROMPTS).input_ids)
    expected = (run_head(state, hidden, "mlp.") - 0.16717362830052426) / 1.0333394966054072
    assert torch.allclose(reward(images(), BERT_PROMPTS).double(), expected, atol=1e-5)
    assert expected.std() > 0.02
    swapped = reward(images(), BERT_PROMPTS[::-1]).double()
    assert not torch.allclose(swapped[[0, 2]], expected[[0, 2]], atol=1e-3), "the prompt must matter"


def test_image_reward_counts_prompts_beyond_35_tokens(converted: dict[str, Path]) -> None:
    reward = load_reward("image_reward", weights=converted["image_reward"])
    assert reward.num_truncated(["a " * 33, "a " * 34]) == 1
    assert len(BERT_WORDS) + 2 == reward.text.config.vocab_size  # type: ignore[attr-defined]


def test_aesthetic_heads_are_affine_in_the_normalised_embedding(converted: dict[str, Path], clip_folder: Path) -> None:
    clip = CLIPModel.from_pretrained(clip_folder).eval()
    for name, state in (("aesthetic_v1", None), ("aesthetic_v2", head_state(24))):
        reward = load_reward(name, weights=converted[name])
        pixels = torch.stack([reward.prepare(image) for image in images()])
        with torch.no_grad():
            pooled = clip.visual_projection(clip.vision_model(pixel_values=pixels).pooler_output)
        embeds = F.normalize(pooled, dim=-1)
        if state is None:
            one = random_state({"weight": (1, 24), "bias": (1,)})
            expected = (embeds @ one["weight"][0] + one["bias"]).double()
        else:
            expected = run_head(state, embeds)
        assert torch.allclose(reward(images(), PROMPTS).double(), expected, atol=1e-5), name
        assert reward.card.needs == ()
        assert torch.equal(reward(images(), PROMPTS), reward(images(), PROMPTS[::-1]))


def test_a_linear_stack_collapses_to_one_map() -> None:
    """Equal to the stack to float64's last digits, and on 1/sqrt(d) worth b + sum(w)/sqrt(d)."""
    state = head_state(31)
    weight, bias = collapse_affine([(state[f"layers.{n}.weight"], state[f"layers.{n}.bias"]) for n in (0, 2, 4, 6, 7)])
    features = torch.randn(6, 31, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert weight.dtype == bias.dtype == torch.float64 and weight.shape == (31,) and bias.shape == ()
    assert torch.allclose(features @ weight + bias, run_head(state, features), rtol=0, atol=1e-13)
    constant = torch.full((1, 31), 31**-0.5, dtype=torch.float64)
    assert (bias + weight.sum() / 31**0.5).item() == pytest.approx(run_head(state, constant).item(), abs=1e-13)


@pytest.mark.parametrize("name", CONVERTED)
def test_converted_folders_hold_no_pickle_and_say_what_they_are(name: str, converted: dict[str, Path]) -> None:
    folder = converted[name]
    assert {file.suffix for file in folder.rglob("*") if file.is_file()} <= {".json", ".safetensors", ".txt"}
    mark = json.loads((folder / "reward.json").read_text())
    checkpoint = folder.parent / f"{name}.pt"
    assert mark == {"reward": name, "source": checkpoint.name, "source_sha256": sha256_file(checkpoint)}


def test_weights_of_another_reward_and_missing_ones_are_errors(converted: dict[str, Path], clip_folder: Path) -> None:
    with pytest.raises(DiffalignError, match=r"reward 'hpsv2', not of 'hpsv2\.1'"):
        load_reward("hpsv2.1", weights=converted["hpsv2"])
    with pytest.raises(DiffalignError, match="no converted weights of reward 'image_reward'"):
        load_reward("image_reward", weights=clip_folder)
    for name, file in (("hpsv2", "HPS_v2_compressed.pt of hub xswu/HPSv2"), ("aesthetic_v1", "sa_0_4_vit_l_14")):
        with pytest.raises(DiffalignError, match=rf"{file}.*convert_reward\('{name}'"):
            load_reward(name)


def test_converter_refuses_other_layouts_and_names(tmp_path: Path, clip_folder: Path) -> None:
    torch.save({"state_dict": {"wrong": torch.zeros(2)}}, tmp_path / "wrong.pt")
    with pytest.raises(DiffalignError, match="layout of 'hpsv2'"):
        convert_reward("hpsv2", tmp_path / "wrong.pt", tmp_path / "out", base=clip_folder)
    torch.save(head_state(23), tmp_path / "other.pt")
    with pytest.raises(DiffalignError, match="24"):
        convert_reward("aesthetic_v2", tmp_path / "other.pt", tmp_path / "out", base=clip_folder)
    torch.save({"image": Image.new("RGB", (2, 3))}, tmp_path / "pickled.pt")
    with pytest.raises(DiffalignError, match="tensors alone"):
        convert_reward("hpsv2", tmp_path / "pickled.pt", tmp_path / "out", base=clip_folder)
    assert not (tmp_path / "out").exists()
    with pytest.raises(DiffalignError, match=r"hpsv2\.1"):
        convert_reward("hpsv21", tmp_path / "wrong.pt", tmp_path / "out")
