"""Small published checkpoints, converted once."""

from __future__ import annotations

from pathlib import Path

import pytest
import reward_helpers as helpers
import torch

from diffalign.rewards import convert_reward


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return helpers.clip_folder(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory, clip_folder: Path) -> dict[str, Path]:
    """Converted folders by reward."""
    place = tmp_path_factory.mktemp("converted")
    helpers.bert_tokenizer().save_pretrained(place / "bert")
    v1 = helpers.random_state({"weight": (1, helpers.PROJECTION), "bias": (1,)})
    checkpoints = {
        "hpsv2": ({"state_dict": helpers.open_clip_state()}, clip_folder),
        "hpsv2.1": ({"state_dict": {k: v * 1.01 for k, v in helpers.open_clip_state().items()}}, clip_folder),
        "image_reward": (helpers.image_reward_state(), place / "bert"),
        "aesthetic_v1": (v1, clip_folder),
        "aesthetic_v2": (helpers.head_state(helpers.PROJECTION), clip_folder),
    }
    folders = {}
    for name, (state, base) in checkpoints.items():
        torch.save(state, place / f"{name}.pt")
        folders[name] = convert_reward(name, place / f"{name}.pt", place / name, base=base)
    return folders
