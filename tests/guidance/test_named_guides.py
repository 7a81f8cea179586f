"""Guides by name: from settings to what would be built by hand, mistakes told, identities, evaluations counted."""

from __future__ import annotations

import doctest
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from diffalign.core import DiffalignError
from diffalign.guidance import (
    CHATS,
    GUIDES,
    NAG,
    PGD,
    Contrastive,
    DiffusionNPO,
    PlusMinus,
    Weighted,
    cost,
    count_evaluations,
    guide_identity,
    make_guide,
    registry,
)

PAIR = {"positive": "pos", "negative": "neg"}


@pytest.mark.parametrize(
    ("name", "settings", "guide"),
    [
        ("pgd", {"tuned": "dpo", "scale": 2}, PGD(tuned="dpo", scale=2.0)),
        (
            "cpgd",
            {**PAIR, "scale": 4, "stop": 0.5, "schedule": [[0, 1], [0.5, 0.25]]},
            Contrastive(positive="pos", negative="neg", scale=4.0, stop=0.5, schedule=((0.0, 1.0), (0.5, 0.25))),
        ),
        ("plus_minus", {"module": "dpo", "scale": 1, "strength": 0.5}, PlusMinus(module="dpo", scale=1, strength=0.5)),
        (
            "weighted",
            {"positives": {"a": 0.5, "b/c.d": 1}, "negatives": {"e": 0.25}, "scale": 2},
            Weighted(positives={"a": 0.5, "b/c.d": 1.0}, negatives={"e": 0.25}, scale=2.0),
        ),
        ("npo", {"negative": "neg", "negative_share": 0.5}, DiffusionNPO(negative="neg", negative_share=0.5)),
        ("chats", {"winner": "w", "loser": "l", "alpha": 0}, CHATS(winner="w", loser="l", alpha=0.0)),
        ("nag", {"negative_prompt": "blur", "phi": 3}, NAG(negative_prompt="blur", phi=3.0)),
    ],
)
def test_settings_make_the_guide(name: str, settings: dict[str, Any], guide: object) -> None:
    assert make_guide(name, json.loads(json.dumps(settings))) == guide


def test_the_examples_are_true() -> None:
    found = [doctest.testmod(module) for module in (cost, registry)]
    assert all(each.failed == 0 and each.attempted for each in found)


def test_every_guide_names_fields_that_it_has() -> None:
    assert GUIDES.names() == ["chats", "cpgd", "nag", "npo", "pgd", "plus_minus", "weighted"]
    strengths = {name: GUIDES.get(name).strength for name in GUIDES}
    without = {"chats": "", "nag": "phi", "npo": ""}
    assert strengths == without | dict.fromkeys(("cpgd", "pgd", "plus_minus", "weighted"), "scale")
    for spec in map(GUIDES.get, GUIDES):
        modules = {*spec.modules, *spec.weighted}
        assert modules and {spec.strength, *modules} - {""} <= {field.name for field in fields(spec.kind)}


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("cpdg", {}, "unknown guide 'cpdg'; nearest: cpgd"),
        ("cpgd", {**PAIR, "scale": 1, "stpo": 1}, "unknown setting of guide 'cpgd' 'stpo'; nearest: stop"),
        ("cpgd", {"positive": "pos"}, r"guide 'cpgd' needs scale \(--scale\) and negative \(--negative\)"),
        ("pgd", {"scale": 1}, r"needs tuned \(--positive\)"),
        ("cpgd", {**PAIR, "scale": "much"}, "guide 'cpgd', scale: expected a valid number, got 'much'"),
        ("cpgd", {**PAIR, "scale": True}, "scale: expected a valid number"),
        ("cpgd", {**PAIR, "scale": float("inf")}, "scale: expected a finite number"),
        ("cpgd", {**PAIR, "scale": -1}, "at least 0"),
        ("nag", {}, "expected a negative_prompt or a negative_adapter"),
        ("weighted", {"scale": 1}, r"needs positives \(--set 'guide.settings.positives=\{LORA: WEIGHT, ...\}'\)"),
        ("weighted", {"scale": 1, "positives": "a"}, "guide 'weighted', positives: expected an object, got 'a'"),
        ("weighted", {"scale": 1, "positives": {"a": "much"}}, "positives: expected a valid number, got"),
        ("weighted", {"scale": 1, "positives": {"a": float("inf")}}, "positives: expected a finite number"),
        ("weighted", {"scale": 1, "positives": {"a": -1}}, "weights above 0"),
        ("weighted", {"scale": 1, "positives": {}}, "at least one LoRA"),
    ],
)
def test_mistakes_are_told(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DiffalignError, match=message):
        make_guide(name, settings)


def module(folder: Path, content: bytes) -> str:
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(content)
    return str(folder)


def test_an_identity_is_of_the_files_and_all_settings(tmp_path: Path) -> None:
    one, two, same = (module(tmp_path / name, name[:1].encode()) for name in ("a", "b", "a2"))
    found = guide_identity("cpgd", {"positive": one, "negative": two, "scale": 0, "schedule": [[0, 1]]})
    assert found == json.loads(json.dumps(found)) and str(tmp_path) not in json.dumps(found)
    assert (found["name"], found["scale"], found["branch"], found["schedule"]) == ("cpgd", 0.0, "both", [[0.0, 1.0]])
    assert found["positive"] != found["negative"]
    settings = {"positive": same, "negative": two, "scale": 0.0, "schedule": [[0.0, 1.0]], "stop": 1.0}
    assert guide_identity("cpgd", settings) == found  # the same files elsewhere, a default spelled out
    (Path(same) / "adapter_model.safetensors").write_bytes(b"changed")
    assert guide_identity("cpgd", settings) != found
    assert guide_identity("npo", {"negative": two})["positive"] is None
    with pytest.raises(DiffalignError, match=r"as negative \(--negative\): .*nowhere does not exist"):
        guide_identity("cpgd", settings | {"negative": str(tmp_path / "nowhere")})


def test_an_identity_of_several_is_of_their_files_and_weights(tmp_path: Path) -> None:
    one, two, same = (module(tmp_path / name, name[:1].encode()) for name in ("a", "b", "a2"))
    found = guide_identity("weighted", {"positives": {one: 0.5, two: 1}, "scale": 0})
    assert found == json.loads(json.dumps(found)) and str(tmp_path) not in json.dumps(found)
    assert sorted(weight for _, weight in found["positives"]) == [0.5, 1.0] and found["negatives"] == []
    assert guide_identity("weighted", {"positives": {two: 1.0, same: 0.5}, "negatives": {}, "scale": 0.0}) == found
    assert guide_identity("weighted", {"positives": {one: 1, two: 0.5}, "scale": 0}) != found
    (Path(two) / "adapter_model.safetensors").write_bytes(b"changed")
    assert guide_identity("weighted", {"positives": {one: 0.5, two: 1}, "scale": 0}) != found
    with pytest.raises(DiffalignError, match=r"as negatives .*: .*nowhere does not exist"):
        settings = {"positives": {one: 1}, "negatives": {str(tmp_path / "nowhere"): 1}, "scale": 1}
        guide_identity("weighted", settings)


def test_all_weights_are_no_module(tmp_path: Path) -> None:
    folder = Path(module(tmp_path / "unet", b"x"))
    (folder / "adapter_model.safetensors").rename(folder / "diffusion_pytorch_model.safetensors")
    (folder / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    with pytest.raises(DiffalignError, match="holds a whole denoiser"):
        guide_identity("pgd", {"tuned": str(folder), "scale": 1})
    with pytest.raises(DiffalignError, match="holds a whole denoiser"):
        guide_identity("weighted", {"positives": {str(folder): 1}, "scale": 1})


@pytest.mark.parametrize(
    ("name", "changes", "guided", "alone"),
    [
        ("pgd", {"tuned": "x"}, 16, 8),
        ("cpgd", PAIR, 24, 12),
        ("cpgd", PAIR | {"branch": "cond"}, 16, 12),
        ("cpgd", PAIR | {"stop": 0.5}, 16, 8),
        ("cpgd", PAIR | {"schedule": [[0.0, 1.0], [0.2, 0.0]]}, 12, 6),
        ("cpgd", PAIR | {"scale": 0}, 8, 4),
        ("weighted", {"positives": {"a": 1, "b": 1}, "negatives": {"c": 2}}, 32, 16),
    ],
)
def test_evaluations_of_four_steps(name: str, changes: dict[str, Any], guided: int, alone: int) -> None:
    """At progress 0, 1/4, 1/2, 3/4: the base on both branches or one, and each module's pass while it is on."""
    guide = make_guide(name, {"scale": 2, **changes})
    steps = [0.0, 0.25, 0.5, 0.75]
    assert [count_evaluations(guide, steps, text_guided=text) for text in (True, False)] == [guided, alone]


def test_evaluations_of_branches_and_of_held_differences() -> None:
    steps = [0.0, 0.2, 0.4, 0.6, 0.8]
    for guide in (DiffusionNPO(negative="neg"), CHATS(winner="w", loser="l"), NAG(negative_prompt="blur")):
        assert count_evaluations(guide, steps, text_guided=True) == 10
    cpgd = Contrastive(**PAIR, scale=1.0)
    assert count_evaluations(cpgd, steps, text_guided=True, refresh_every=2) == 3 * 6 + 2 * 2
    assert count_evaluations(cpgd, steps, text_guided=True, refresh_every=9) == 6 + 4 * 2
