"""CLIP scores and PickScore against transformers' own CLIPModel, and what their names promise."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from reward_helpers import PROMPTS, images
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, CLIPModel

from diffalign.core import DiffalignError
from diffalign.rewards import load_reward
from diffalign.rewards.clip import CLIP_SCORES, load_clip_score


def cosines_and_scale(folder: Path, prefix: str = "") -> tuple[torch.Tensor, torch.Tensor]:
    """By the library's own processor and forward pass."""
    from transformers import CLIPImageProcessor

    model, tokenizer = CLIPModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    size = model.config.vision_config.image_size
    processor = CLIPImageProcessor(size={"shortest_edge": size}, crop_size=size)
    with torch.no_grad():
        out = model(
            **tokenizer([prefix + text for text in PROMPTS], padding="max_length", max_length=24, return_tensors="pt"),
            pixel_values=processor(images(), return_tensors="pt").pixel_values,
        )
    return (out.image_embeds * out.text_embeds).sum(-1), model.logit_scale.exp().detach()


def test_each_variant_is_its_formula_of_the_librarys_cosine(clip_folder: Path) -> None:
    """cos; 2.5 max(cos, 0) of the prefixed text; 100 cos; exp(logit_scale) cos with logit_scale = ln 90."""
    cosine, scale = cosines_and_scale(clip_folder)
    prefixed, _ = cosines_and_scale(clip_folder, "A photo depicts ")
    assert scale.item() == pytest.approx(90, rel=1e-5) and cosine.unique().numel() == 3
    wanted = {
        "clip_score": cosine,
        "clip_score_torchmetrics": 100 * cosine,
        "pickscore": 90 * cosine,
        "clip_score_hessel": 2.5 * prefixed.clamp_min(0),
    }
    for name, values in wanted.items():
        reward = load_reward(name, weights=clip_folder)
        assert torch.allclose(reward(images(), PROMPTS), values, rtol=1e-4, atol=1e-5), name
        assert reward.card.identity.startswith(f"{name}@") and reward.card.preprocessing == "clip28-bicubic-pil"
    assert not torch.allclose(cosine, prefixed, atol=1e-3)


def test_padding_and_repeated_prompts_change_nothing(clip_folder: Path) -> None:
    reward = load_reward("clip_score", weights=clip_folder)
    together = reward([*images(), images()[0]], [*PROMPTS, PROMPTS[0]])
    alone = torch.cat([reward([image], [text]) for image, text in zip(images(), PROMPTS, strict=True)])
    assert torch.allclose(together[:3], alone, atol=1e-6) and together[3] == together[0]


def test_truncated_prompts_are_counted_with_their_prefix(clip_folder: Path) -> None:
    """24 positions hold 22 words between the two ends; "A photo depicts " takes 3 or more of them."""
    prompts = ["a " * 22, "a " * 23, "grass"]
    assert load_reward("clip_score", weights=clip_folder).num_truncated(prompts) == 1
    assert load_reward("clip_score_hessel", weights=clip_folder).num_truncated(prompts) == 2
    cut = load_reward("clip_score", weights=clip_folder)(images()[:1] * 2, ["a " * 22, "a " * 30])
    assert cut[0] == pytest.approx(cut[1].item(), abs=1e-6)


def test_tiny_clip_prefers_the_named_subject_and_is_in_training() -> None:
    from diffalign.core import numpy_generator
    from diffalign.data import captions, draw_crop

    reward = load_reward("tiny-clip")
    assert reward.card.role == "in-training" and reward.card.needs == ("prompt",)
    crops = [draw_crop("held_out", numpy_generator("clip reward", n), size=48) for n in range(32)]
    own = reward([crop.image for crop in crops], [crop.caption for crop in crops])
    other = reward([crop.image for crop in crops], [captions()[(crop.subject + 5) % 16] for crop in crops])
    assert (own > other).float().mean() > 0.85


def test_incomplete_weights_are_an_error_and_never_random(clip_folder: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(clip_folder, tmp_path / "broken"))
    state = load_file(broken / "model.safetensors")
    del state["visual_projection.weight"]
    save_file(state, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DiffalignError, match=r"visual_projection\.weight"):
        load_reward("clip_score", weights=broken)


def test_identity_follows_the_weights(clip_folder: Path, tmp_path: Path) -> None:
    before = load_reward("pickscore", weights=clip_folder).card
    changed = Path(shutil.copytree(clip_folder, tmp_path / "changed"))
    state = load_file(changed / "model.safetensors")
    state["logit_scale"] = state["logit_scale"] + 1
    save_file(state, changed / "model.safetensors", metadata={"format": "pt"})
    after = load_reward("pickscore", weights=changed).card
    assert before.weights != after.weights and len(after.weights) == 12
    assert before.tensor_identity != before.identity


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_identity_follows_configuration_and_tokenizer(clip_folder: Path, tmp_path: Path, file: str) -> None:
    before = load_reward("clip_score", weights=clip_folder).card
    changed = Path(shutil.copytree(clip_folder, tmp_path / "changed"))
    assert load_reward("clip_score", weights=changed).card == before
    (changed / file).write_text((changed / file).read_text() + "\n")
    assert load_reward("clip_score", weights=changed).card.weights != before.weights


def test_identity_follows_a_tokenizer_from_elsewhere(clip_folder: Path, tmp_path: Path) -> None:
    """As PickScore's, whose own folder has none; other files beside that tokenizer have no say."""
    model = Path(shutil.copytree(clip_folder, tmp_path / "model", ignore=shutil.ignore_patterns("*token*", "vocab*")))
    tokenizer = Path(shutil.copytree(clip_folder, tmp_path / "tokenizer"))
    score = next(one for one in CLIP_SCORES if one.name == "pickscore")
    score = replace(score, tokenizer=str(tokenizer))

    def revision() -> str:
        return load_clip_score(score, model, torch.device("cpu")).card.weights

    before = revision()
    (tokenizer / "model.safetensors").unlink()
    assert revision() == before
    (tokenizer / "tokenizer.json").write_text((tokenizer / "tokenizer.json").read_text() + "\n")
    assert revision() != before
