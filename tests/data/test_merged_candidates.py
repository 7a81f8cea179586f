"""Candidate sets of several models merged: which image and score is whose, and what does not fit."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest

from diffalign.core import DiffalignError
from diffalign.data import (
    LabelRule,
    Preferences,
    PreferenceWriter,
    image_sha256,
    merge_candidates,
    merge_sets,
    pairs_from_candidates,
)
from diffalign.types import Provenance

ORIGINS = {
    0: Provenance(source="prompts", license="MIT", method="sample", parameters={"seeds": [0, 1]}, model_revision="sd"),
    1: Provenance(source="prompts", method="sample", parameters={"seeds": [4]}, seed=4, model_revision="sdxl"),
}


@pytest.fixture
def two(candidates):
    """Of one prompt: two images of the first model, and one of the second, which has one more score."""
    first, second = candidates(0, num_images=2), candidates(5, num_images=1)
    first = replace(first, scores={"pickscore": (1.0, 2.0), "clip": (0.1, 0.2)}, provenance=ORIGINS[0])
    scores = {"clip": (0.3,), "hps": (9.0,), "pickscore": (3.0,)}
    return first, replace(second, id=first.id, prompt=first.prompt, scores=scores, provenance=ORIGINS[1])


def test_images_scores_and_origins_stay_together(two):
    both = merge_sets(two)
    assert both.images == (*two[0].images, *two[1].images)
    assert both.scores == {"pickscore": (1.0, 2.0, 3.0), "clip": (0.1, 0.2, 0.3)}
    origin = both.provenance
    assert (origin.method, origin.source, origin.license, origin.model_revision) == ("merge", "prompts", "", "")
    for part, images, provenance in zip(origin.parameters["parts"], ([0, 1], [2]), ORIGINS.values(), strict=True):
        told = asdict(provenance)
        del told["sha256"]
        assert part == {"images": images, **told}


def test_a_pair_of_a_merged_set_says_which_model_made_each_image(two):
    (pair,) = pairs_from_candidates(merge_sets(two), LabelRule(metrics=("pickscore",)))
    told = pair.provenance.parameters
    makers = {image: part["model_revision"] for part in told["parts"] for image in part["images"]}
    assert [makers[image] for image in told["candidates"]["images"]] == ["sdxl", "sd"]


def test_folders_are_merged_by_id_and_keep_the_bytes(candidates, encoded, tmp_path, capsys):
    """The ids stand in another order, and one is missing in the second."""
    rows = {"a": [candidates(0), candidates(1), candidates(2)], "b": []}
    rows["b"] = [replace(candidates(10 + n, num_images=2), id=f"set-{n}", prompt=f"{n} dogs") for n in (2, 0)]
    jpegs = [encoded(image, "WEBP", lossless=True) for image in rows["b"][0].images]
    for name, sets in rows.items():
        with PreferenceWriter(tmp_path / name, form="candidates") as writer:
            for number, row in enumerate(sets):
                writer.write(row, original=jpegs if (name, number) == ("b", 0) else None)
    assert merge_candidates([tmp_path / "a", tmp_path / "b"], tmp_path / "both") == 2
    assert "1 candidate sets are left out" in capsys.readouterr().err
    both = Preferences(tmp_path / "both")
    assert both.ids() == ["set-0", "set-2"] and both[1].prompt == "2 dogs"
    expected = [*candidates(2).images, *rows["b"][0].images]
    assert both[1].provenance.sha256 == tuple(image_sha256(image) for image in expected)
    assert [one["bytes"] for one in both.record(1)["images"]][3:] == jpegs
    assert both.scores()[1] == {"pickscore": (20.0, 21.0, 22.0, 20.0, 21.0)}


def test_what_does_not_fit_is_refused(two, candidates, pair, tmp_path):
    first, second = two
    hashed = replace(first, provenance=Provenance(sha256=tuple(image_sha256(image) for image in first.images)))
    for sets, words in (
        ((first, replace(second, prompt="2 dogs")), "one id and prompt"),
        ((first, replace(second, id="set-9")), "one id and prompt"),
        ((first, replace(second, scores={"hps": (9.0,)})), "no score in common"),
        ((hashed, hashed), "an image comes twice"),
    ):
        with pytest.raises(DiffalignError, match=words):
            merge_sets(sets)
    for name, form, row in (("a", "candidates", first), ("b", "candidates", candidates(3)), ("p", "pair", pair(0))):
        with PreferenceWriter(tmp_path / name, form=form) as writer:
            writer.write(row)
    for sources, words in ((("a",), "two or more"), (("a", "p"), "two or more"), (("a", "b"), "no id in common")):
        with pytest.raises(DiffalignError, match=words):
            merge_candidates([tmp_path / name for name in sources], tmp_path / "out")
    assert not (tmp_path / "out").exists()
