"""What every registered reward keeps to; a new one is picked up by itself."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from reward_helpers import PROMPTS, images

from diffalign.core import DiffalignError
from diffalign.rewards import REWARDS, Reward, load_reward

NAMES = [*REWARDS, "sgp:clip_score", "sgp:image_reward"]
OFFLINE = ("tiny-", "clip_score", "pickscore")
TEXTS = ["a photo of grass", "a wide photo of a tabby cat, top", "a photo of old coins"]
_loaded: dict[str, Reward] = {}


@pytest.fixture(params=NAMES)
def reward(request: pytest.FixtureRequest, converted: dict[str, Path], clip_folder: Path) -> Reward:
    name = request.param
    plain = name.removeprefix("sgp:")
    weights = clip_folder if plain.startswith(("clip_score", "pickscore")) else converted.get(plain)
    if name not in _loaded:
        _loaded[name] = load_reward(name, weights=weights)
    return _loaded[name]


def test_scores_are_float32_per_image_and_in_range(reward: Reward) -> None:
    scores = reward(images(), TEXTS)
    assert scores.shape == (3,) and scores.dtype == torch.float32 and not scores.requires_grad
    low, high = reward.card.range
    assert scores.isfinite().all() and (scores >= low).all() and (scores <= high).all()


def test_rows_do_not_depend_on_order_or_company(reward: Reward) -> None:
    scores, order = reward(images(), TEXTS), [2, 0, 1]
    permuted = reward([images()[i] for i in order], [TEXTS[i] for i in order])
    assert torch.allclose(permuted, scores[order], atol=1e-5, rtol=1e-4)
    assert torch.allclose(reward(images()[1:2], TEXTS[1:2]), scores[1:2], atol=1e-5, rtol=1e-4)


def test_the_prompt_matters_where_the_card_says_so(reward: Reward) -> None:
    changed = not torch.allclose(reward(images(), TEXTS), reward(images(), [TEXTS[1], TEXTS[2], TEXTS[0]]), atol=1e-5)
    if reward.card.name not in ("tiny-judge-subject", "clip_score_hessel"):  # 0 on images of noise
        assert changed == ("prompt" in reward.card.needs)


def test_nothing_in_gives_nothing_out(reward: Reward) -> None:
    assert reward([], []).shape == (0,)


def test_grey_and_transparent_images_score_as_their_rgb_form(reward: Reward) -> None:
    grey = [one.convert("L") for one in images()]
    opaque = [one.convert("RGBA") for one in images()]
    assert torch.equal(reward(grey, TEXTS), reward([one.convert("RGB") for one in grey], TEXTS))
    assert torch.equal(reward(opaque, TEXTS), reward(images(), TEXTS))


def test_identity_names_weights_and_preprocessing(reward: Reward) -> None:
    card = reward.card
    assert card.identity == f"{card.name}@{card.weights}/{card.preprocessing}" and card.licence
    assert card.weights == "none" or len(card.weights) == 12
    assert card.differentiable == (card.tensor_identity is not None)


def test_the_differentiable_path_is_close_and_has_a_gradient(reward: Reward) -> None:
    """To 0.2 % of the range (cosines), or 0.02 where there is none; pixels of the three images at one size."""
    pixels = torch.stack([_pixels(one.resize((41, 33))) for one in images()]).requires_grad_()
    if not reward.card.differentiable:
        with pytest.raises(DiffalignError, match="no differentiable path"):
            reward.differentiable_score(pixels, TEXTS)
        return
    scores = reward.differentiable_score(pixels, TEXTS)
    low, high = reward.card.range
    tolerance = 0.002 * (high - low) if math.isfinite(high) else 0.02
    assert torch.allclose(scores, reward([one.resize((41, 33)) for one in images()], TEXTS), rtol=0, atol=tolerance)
    scores[1].backward()
    grads = pixels.grad.abs().sum((1, 2, 3))  # type: ignore[union-attr]
    if reward.card.name != "clip_score_hessel":  # flat where the cosine is below 0
        assert grads[1] > 0
    assert grads[0] == 0 and grads[2] == 0
    assert all(parameter.grad is None for parameter in _parameters(reward))


def test_mismatched_inputs_are_errors(reward: Reward) -> None:
    with pytest.raises(ValueError, match="3 images and 2 prompts"):
        reward(images(), TEXTS[:2])
    with pytest.raises(ValueError, match="a list of prompts"):
        reward(images()[:1], "a photo")


def test_pixels_out_of_range_or_shape_are_errors(clip_folder: Path) -> None:
    reward = load_reward("clip_score", weights=clip_folder)
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        reward.differentiable_score(torch.full((3, 3, 5, 6), -1.0), PROMPTS)
    with pytest.raises(ValueError, match="B, 3, H, W"):
        reward.differentiable_score(torch.zeros(3, 4, 5, 6), PROMPTS)


def test_half_precision_around_a_reward_does_not_reach_it(clip_folder: Path) -> None:
    reward = load_reward("clip_score", weights=clip_folder)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = reward(images(), PROMPTS)
    assert torch.equal(inside, reward(images(), PROMPTS))


def _pixels(image: object) -> torch.Tensor:
    from diffalign.data import to_tensor

    return (to_tensor(image) + 1) / 2  # type: ignore[arg-type]


def _parameters(reward: Reward) -> list[torch.nn.Parameter]:
    modules = [value for value in vars(reward).values() if isinstance(value, torch.nn.Module)]
    return [parameter for module in modules for parameter in module.parameters()]
