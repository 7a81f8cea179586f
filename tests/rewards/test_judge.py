"""The held-out judge's two scores, the style gap, and features."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from reward_helpers import PROMPTS, images
from torch.nn import functional as F
from transformers import AutoProcessor, ResNetForImageClassification

from diffalign.core import DiffalignError, numpy_generator
from diffalign.data import PHOTOGRAPHS, apply_flaw, draw_crop
from diffalign.models import embedded_path
from diffalign.rewards import clip_features, judge_features, load_reward, realism, shows_subject

CROPS = [draw_crop("held_out", numpy_generator("judge reward", n), size=32) for n in range(48)]


def test_realism_worked() -> None:
    """z_clean = 1, two of ten flaws at log 3, the rest at 0: 1 - log(3 + 3 + 8)."""
    logits = torch.zeros(1, 27)
    logits[0, 16], logits[0, 17], logits[0, 26] = 1.0, math.log(3), math.log(3)
    logits[0, 3] = 50.0  # subjects have no say
    assert realism(logits, ["any"]).item() == pytest.approx(1 - math.log(14))


def test_subject_is_the_likeliest_of_the_subjects_alone() -> None:
    logits = torch.zeros(3, 27)
    logits[:, 8] = 2.0
    logits[:, 20] = 9.0  # a flaw
    named = [f"a photo of {PHOTOGRAPHS[index].subject}" for index in (8, 9, 8)]
    assert shows_subject(logits, named).tolist() == [1, 0, 1]
    with pytest.raises(DiffalignError, match="no embedded photograph"):
        shows_subject(logits[:1], ["a photo of a submarine"])


def test_scores_are_those_of_the_model_behind_its_processor() -> None:
    path = embedded_path("tiny-judge")
    model = ResNetForImageClassification.from_pretrained(path, dtype=torch.float32).eval()
    pixels = AutoProcessor.from_pretrained(path)([crop.image for crop in CROPS], return_tensors="pt")
    with torch.no_grad():
        logits = model(**pixels).logits
    reward = load_reward("tiny-judge-realism")
    scores = reward([crop.image for crop in CROPS], [""] * len(CROPS))
    assert torch.allclose(scores, logits[:, 16] - logits[:, 17:].exp().sum(1).log(), atol=1e-4)
    assert reward.card.role == "held-out" and reward.card.needs == ()


def test_it_knows_flaws_and_subjects() -> None:
    clean, texts = [crop.image for crop in CROPS], [crop.caption for crop in CROPS]
    flawed = [apply_flaw("noise", image, numpy_generator("judge flaw", n)) for n, image in enumerate(clean)]
    judge = load_reward("tiny-judge-realism")
    assert (judge(clean, texts) > judge(flawed, texts)).float().mean() > 0.9
    assert load_reward("tiny-judge-subject")(clean, texts).mean() > 0.7


def test_style_gap_is_the_difference_of_two_prompts(clip_folder: Path) -> None:
    inner, gap = (load_reward(f"{prefix}clip_score", weights=clip_folder) for prefix in ("", "sgp:"))
    photo = inner(images(), [f"Realistic photo {text}" for text in PROMPTS])
    render = inner(images(), [f"CG Render {text}" for text in PROMPTS])
    assert torch.allclose(gap(images(), PROMPTS), photo - render, atol=1e-6)
    assert gap.card.identity == f"sgp:{inner.card.identity}" and gap.card.range == (-2, 2)
    assert inner.num_truncated(["a " * 22]) == 0 and gap.num_truncated(["a " * 22, "grass"]) == 1


def test_style_gap_sees_renders_and_needs_a_score_that_reads() -> None:
    gap = load_reward("sgp:tiny-clip")
    clean = [crop.image for crop in CROPS]
    render = [apply_flaw("posterise", image, numpy_generator("gap", n)) for n, image in enumerate(clean)]
    texts = [crop.caption for crop in CROPS]
    assert (gap(clean, texts) > gap(render, texts)).float().mean() > 0.85
    with pytest.raises(DiffalignError, match="reads the prompt"):
        load_reward("sgp:luminance")


def test_features_do_not_depend_on_batches_and_tell_images_apart() -> None:
    clean = [crop.image for crop in CROPS[:7]]
    for features, width in ((judge_features, 128), (clip_features, 64)):
        found = features(clean, batch_size=3)
        assert found.shape == (7, width) and found.dtype == torch.float32
        assert torch.allclose(found, features(clean, batch_size=7), atol=1e-5)
        assert torch.pdist(found).min() > 1e-3
    assert torch.allclose(clip_features(clean).norm(dim=1), torch.ones(7), atol=1e-5)
    with pytest.raises(DiffalignError, match="at least one image"):
        judge_features([])


def test_judge_features_lead_to_its_logits() -> None:
    model = ResNetForImageClassification.from_pretrained(embedded_path("tiny-judge"), dtype=torch.float32).eval()
    weight, bias = model.classifier[1].weight, model.classifier[1].bias
    clean = [crop.image for crop in CROPS[:5]]
    logits = F.linear(judge_features(clean), weight, bias)
    assert torch.allclose(realism(logits, []), load_reward("tiny-judge-realism")(clean, [""] * 5), atol=1e-4)
