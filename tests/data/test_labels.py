"""From scores to labels: worked numbers, symmetries, agreement with the objectives, rows under rules, whole sets."""

from __future__ import annotations

import doctest
import importlib
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import diffalign.objectives as objectives
from diffalign.core import DiffalignError, content_hash, read_json, read_jsonl
from diffalign.data import (
    LabelConfig,
    LabelRule,
    Preferences,
    PreferenceWriter,
    binary_labels,
    bradley_terry_labels,
    calibrated_win_rates,
    find_metric,
    label_preferences,
    label_scores,
    majority_vote,
    mixture,
    pairs_from_candidates,
    pareto_pairs,
    pareto_sets,
    plan_labels,
    relabel,
    rule_labels,
    validate_row,
    win_fractions,
    write_preferences,
)
from diffalign.data.labels import run as run_module
from diffalign.data.labels.formulas import against_others, best_and_worst, leads
from diffalign.types import CandidateSet, Pair, Provenance

RULES = ("binary", "bradley_terry", "win_rate", "win_fraction", "majority")

# few distinct values, so that ties and dominated candidates are common
score = st.integers(-3, 3).map(float) | st.floats(-5, 5)
tables = st.integers(2, 6).flatmap(
    lambda count: st.integers(1, 3).flatmap(
        lambda metrics: st.lists(
            st.lists(score, min_size=metrics, max_size=metrics), min_size=count, max_size=count
        ).map(np.array)
    )
)


def rule(name: str = "bradley_terry", *metrics: str, **changes: Any) -> LabelRule:
    return LabelRule(name=name, metrics=metrics or ("clip",), **changes)  # type: ignore[arg-type]


def grey(level: int) -> Image.Image:
    return Image.new("RGB", (6, 5), (level, level, level))


def a_set(number: int = 0, levels: tuple[int, ...] = (10, 40, 20), **scores: tuple[float, ...]) -> CandidateSet:
    """Grey images whose level over 10 is their clip@1 score."""
    return CandidateSet(
        id=f"set-{number}",
        prompt=f"{number} dogs",
        images=tuple(grey(level) for level in levels),
        scores={"clip@1": tuple(level / 10 for level in levels), **scores},
        provenance=Provenance(source="test", method="sample", parameters={"steps": 4}, seed=7, model_revision="abc"),
    )


def a_pair(number: int = 0, gap: float = -2.0, **changes: Any) -> Pair:
    """The chosen image leads by ``gap`` in clip@1 and trails by 1 in hps@2."""
    fields: dict[str, Any] = {
        "id": f"row-{number}", "prompt": "a cat", "chosen": grey(100 + number), "rejected": grey(200),
        "scores": {"clip@1": (1.0 + gap, 1.0), "hps@2": (0.0, 1.0)}, "label": 1.0,
        "provenance": Provenance(source="test", method="jpeg", parameters={"severity": 0.5}),
    }  # fmt: skip
    return Pair(**{**fields, **changes})


# ---------------------------------------------------------------- formulas


def test_binary_and_soft_labels_worked_numbers() -> None:
    """sigmoid(log 3) = 3/4, and with a temperature of 2 a gap of 2 log 3 is that."""
    assert binary_labels([2.0, 0.5, -0.5, -2.0], ties=0.5).tolist() == [1, 0.5, 0.5, 0]
    assert binary_labels([[1.0, 1.0]], ties=[0.5, 2.0]).tolist() == [[1, 0.5]]
    assert bradley_terry_labels([math.log(3), 0.0]).tolist() == pytest.approx([0.75, 0.5])
    assert bradley_terry_labels([2 * math.log(3)], temperatures=2.0).tolist() == pytest.approx([0.75])
    assert bradley_terry_labels([1e4, -1e4]).tolist() == [1, 0]


def test_smpos_softmax_is_a_soft_label_with_the_range_as_temperature() -> None:
    low, high = 0.1154, 0.2820
    pickscores = np.array([21.7, 20.3])
    scaled = np.exp((pickscores / 100 - low) / (high - low))
    found = bradley_terry_labels(pickscores[0] - pickscores[1], temperatures=100 * (high - low))
    assert float(found) == pytest.approx(scaled[0] / scaled.sum())


def test_votes_worked_numbers() -> None:
    """Three metrics: two to one; one to one and a tie within the tolerance; a tie against one."""
    gaps = [[1.0, 2.0, -9.0], [1.0, -1.0, 0.2], [0.0, -1.0, 0.2]]
    assert majority_vote(gaps, ties=[0.0, 0.0, 0.5]).tolist() == [1, 0.5, 0]
    assert majority_vote(gaps).tolist() == [1, 1, 0.5]


def test_mixtures_are_weighted_means_and_ties_stay_ties() -> None:
    assert mixture([1.0, 0.0, 0.5], [0.5, 0.3, 0.2]).tolist() == pytest.approx(0.6)
    assert mixture([[0.1 + 0.2, 0.7]], [0.5, 0.5]).tolist() == [0.5]  # 0.5000000000000001 of rounding
    for weights in ([0.5], [0.6, 0.6], [1.5, -0.5]):
        with pytest.raises(ValueError, match="expected"):
            mixture([0.5, 0.5], weights)


def test_win_rates_worked_numbers() -> None:
    """Leads of log 3 and log 9 are odds of 3 and 9: sigmoids .75 and .9."""
    found = calibrated_win_rates([[math.log(9)], [math.log(3)], [0.0]])
    assert found[:, 0].tolist() == pytest.approx([(0.75 + 0.9) / 2, 0.5, (0.25 + 0.1) / 2])
    assert win_fractions([[3.0], [1.1], [1.0], [0.0]], ties=0.2)[:, 0].tolist() == pytest.approx([1, 0.5, 0.5, 0])


def test_pareto_sets_worked_numbers() -> None:
    """a and b lead in one metric each; c and d lose to them; e is best in one and worst in the other: in both sets."""
    a, b, c, d, e = (3.0, 1.0), (1.0, 3.0), (1.0, 0.0), (0.0, 1.0), (-1.0, 9.0)
    assert pareto_sets([a, b, c, d, e]) == ([0, 1], [2, 3])
    assert pareto_pairs([a, b, c, d, e]) == [(0, 2), (0, 3), (1, 2), (1, 3)]
    assert pareto_sets([a, b]) == ([], [])
    # 3 > 1 by 2 beats 1 < 3 by 1.9 in the mean of two sigmoids
    assert pareto_pairs([(1.0, 2.9), (3.0, 1.0)]) == [(1, 0)]
    assert pareto_pairs([(1.0, 2.9), (3.0, 1.0)], rewards=[0.6, 0.4]) == [(0, 1)]


def test_best_and_worst_are_two_even_where_all_are_alike() -> None:
    assert best_and_worst([0.5, 0.5, 0.5]) == (0, 2) and best_and_worst([1.0, 3.0, 3.0, 1.0]) == (1, 3)
    assert best_and_worst([0.1 + 0.2, 0.3, 0.0]) == (0, 2) == best_and_worst([0.3, 0.1 + 0.2, 0.0])


@given(tables)
def test_formulas_agree_with_the_objectives(scores: np.ndarray) -> None:
    batch = torch.from_numpy(scores)[None]
    for ours, theirs in (
        (calibrated_win_rates(scores), objectives.calibrated_rewards(batch)),
        (win_fractions(scores), objectives.win_fractions(batch)),
    ):
        np.testing.assert_allclose(ours.mean(1), theirs[0].numpy(), rtol=0, atol=1e-12)


@given(tables)
def test_win_rates_add_up_to_half_the_candidates(scores: np.ndarray) -> None:
    for rates in (calibrated_win_rates(scores, temperatures=0.3), win_fractions(scores, ties=0.5)):
        np.testing.assert_allclose(rates.sum(0), len(scores) / 2, atol=1e-12)
        assert (rates >= 0).all() and (rates <= 1).all()


@given(tables)
def test_pareto_sets_are_disjoint_and_who_is_in_them_wins_or_loses(scores: np.ndarray) -> None:
    upper, lower = pareto_sets(scores)
    assert not set(upper) & set(lower) and bool(upper) == bool(lower)
    gaps = leads(scores)
    beaten = [(gaps[:, one] >= 0).all(1) & (gaps[:, one] > 0).any(1) for one in range(len(scores))]
    assert not any(beaten[one].any() for one in upper) and all(beaten[one].any() for one in lower)
    negated = pareto_sets(-scores)
    assert negated == (lower, upper)
    pairs = pareto_pairs(scores)
    assert pairs and len(set(pairs)) == len(pairs) and all(better != worse for better, worse in pairs)


@given(tables, st.sampled_from(RULES))
def test_labels_are_antisymmetric_and_follow_a_permutation(scores: np.ndarray, name: str) -> None:
    one = rule(name, *(f"m{number}" for number in range(scores.shape[1])))
    labels = rule_labels(scores, one)
    np.testing.assert_allclose(labels + labels.T, 1, atol=1e-12)
    order = np.random.default_rng(0).permutation(len(scores))
    np.testing.assert_allclose(rule_labels(scores[order], one), labels[order][:, order], atol=1e-12)
    np.testing.assert_allclose(against_others(labels).sum(), len(scores) / 2, atol=1e-9)


def test_two_candidates_win_rate_is_bradley_terry_and_one_metrics_vote_is_binary() -> None:
    pair, trio = np.array([[1.3, 0.2], [0.7, 0.9]]), np.array([[1.0], [1.0], [0.4]])
    two = ("a", "b")
    np.testing.assert_allclose(
        rule_labels(pair, rule("win_rate", *two)), rule_labels(pair, rule("bradley_terry", *two))
    )
    assert rule_labels(pair, rule("win_fraction", *two)).tolist() == rule_labels(pair, rule("binary", *two)).tolist()
    assert rule_labels(trio, rule("majority")).tolist() == rule_labels(trio, rule("binary")).tolist()


def test_capos_label_is_half_of_one_and_the_gap_of_calibrated_rewards() -> None:
    scores = np.random.default_rng(0).normal(size=(5, 3))
    rewards = objectives.calibrated_rewards(torch.from_numpy(scores)[None])[0]
    expected = (1 + rewards[:, None] - rewards[None]) / 2
    np.testing.assert_allclose(rule_labels(scores, rule("win_rate", "a", "b", "c")), expected.numpy(), atol=1e-12)


def test_weights_and_temperatures_are_per_metric() -> None:
    """Gaps of log 3 and of 2 log 9 at temperatures 1 and 2: .75 and .9 against it, weighted 0.2 and 0.8."""
    scores = np.array([[math.log(3), 0.0], [0.0, 2 * math.log(9)]])
    labels = rule_labels(scores, rule("bradley_terry", "a", "b", weights=(0.2, 0.8), temperatures=(1.0, 2.0)))
    assert labels[0, 1] == pytest.approx(0.2 * 0.75 + 0.8 * 0.1)


@pytest.mark.parametrize("formula", [binary_labels, bradley_terry_labels, majority_vote, leads, win_fractions])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_score_that_is_not_finite_never_becomes_a_label(formula: Callable[..., Any], bad: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        formula([[1.0, bad], [0.0, 0.0]])


def test_formulas_refuse_shapes_and_settings_that_do_not_fit() -> None:
    for scores in ([1.0, 2.0], [[1.0]], [[], []]):
        with pytest.raises(ValueError, match="K >= 2"):
            leads(scores)
    with pytest.raises(ValueError, match="ties at or above 0"):
        binary_labels([1.0], ties=-1.0)
    with pytest.raises(ValueError, match="temperatures above 0"):
        bradley_terry_labels([1.0], temperatures=[1.0, 0.0])


@pytest.mark.parametrize("name", ["formulas", "rules", "pairs", "run"])
def test_examples(name: str) -> None:
    result = doctest.testmod(importlib.import_module(f"diffalign.data.labels.{name}"))
    assert result.failed == 0 and result.attempted > 0


# ---------------------------------------------------------------- rules


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metrics": ()}, "metrics: expected at least one"),
        ({"metrics": ("a", "a")}, "each once"),
        ({"metrics": ("a", "b"), "temperatures": (1.0, 2.0, 3.0)}, "temperatures: expected 1 or 2"),
        ({"temperatures": (0.0,)}, "temperatures: expected numbers above 0"),
        ({"name": "binary", "ties": (-1.0,)}, "ties: expected numbers at or above 0"),
        ({"min_gaps": (-1.0,)}, "min_gaps: expected numbers at or above 0"),
        (
            {"name": "binary", "temperatures": (2.0,)},
            "temperatures: rule binary has none, bradley_terry, win_rate have",
        ),
        ({"ties": (0.1,)}, "ties: rule bradley_terry has none, binary, win_fraction, majority have"),
        ({"name": "majority", "weights": (1.0,)}, "weights: rule majority has none"),
        ({"weights": (0.5, 0.5)}, "weights: expected 1, one for each metric"),
        ({"metrics": ("a", "b"), "weights": (0.5, 0.6)}, "add up to 1"),
        ({"name": "bradley"}, "name: expected 'binary'"),
        ({"share": 1.5}, "share"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DiffalignError, match=message):
        LabelRule(**{"metrics": ("clip",), **changes})


def test_shares_of_rules_add_up() -> None:
    with pytest.raises(DiffalignError, match=r"shares that add up to 1, got shares \[1.0, 1.0\]"):
        label_scores({"clip": (1.0, 2.0)}, [rule(), rule("binary")])
    with pytest.raises(DiffalignError, match="at least one rule"):
        LabelConfig(source="x", rules=())


def test_rules_are_mixed_by_their_shares() -> None:
    """A soft label of .75 and a vote for the other one: .25 * .75 + .75 * 0 = .1875, so the other is better."""
    rules = [rule(share=0.25), rule("majority", "hps", share=0.75)]
    (found,) = label_scores({"clip": (math.log(3), 0.0), "hps": (0.0, 1.0)}, rules)
    assert (found.chosen, found.rejected, found.dropped) == (1, 0, "")
    assert found.label == pytest.approx(1 - 0.1875)


def test_which_pairs_are_chosen() -> None:
    scores = {"a": (0.0, 3.0, 2.0, 1.0), "b": (0.0, 0.0, 2.0, 3.0)}
    one, both = rule("binary", "a"), rule("binary", "a", "b")

    def chosen(rule: LabelRule, pairs: Any) -> list[tuple[int, int]]:
        return [(pair.chosen, pair.rejected) for pair in label_scores(scores, rule, pairs=pairs)]

    assert chosen(one, "best-worst") == [(1, 0)] and chosen(one, "pareto") == [(1, 0)]
    assert chosen(one, "all") == [(1, 0), (2, 0), (3, 0), (1, 2), (1, 3), (2, 3)]
    assert chosen(both, "pareto") == [(1, 0), (2, 0), (3, 0)]
    with pytest.raises(DiffalignError, match=r"unknown choice of pairs 'paretto'; nearest: pareto"):
        chosen(one, "paretto")


@given(tables, st.sampled_from(RULES), st.sampled_from(["best-worst", "all", "pareto"]))
@settings(max_examples=60)
def test_every_pair_has_a_label_of_at_least_a_half(scores: np.ndarray, name: str, choice: Any) -> None:
    columns = {f"m{number}": tuple(column) for number, column in enumerate(scores.T)}
    found = label_scores(columns, rule(name, *columns), pairs=choice)
    assert found and all(0.5 <= pair.label <= 1 and pair.chosen != pair.rejected for pair in found)
    assert len({frozenset((pair.chosen, pair.rejected)) for pair in found}) == len(found)


def test_close_pairs_and_ties_are_dropped_with_a_reason() -> None:
    scores = {"a": (0.0, 1.0, 1.5), "b": (5.0, 5.0, 0.0)}
    found = label_scores(scores, rule("binary", "a", "b", min_gaps=(0.6, 0.0), tied="drop"), pairs="all")
    assert [(pair.dropped, pair.detail) for pair in found] == [
        ("", ""),
        ("tie", "by binary of a, b"),
        ("gap below min_gap", "a: 0.5, expected at least 0.6"),
    ]
    assert found[0].label == 0.75  # a is for it, b is tied
    (tied,) = label_scores({"a": (1.0, -1.0), "b": (-1.0, 1.0)}, rule("majority", "a", "b"))
    assert (tied.chosen, tied.label, tied.dropped) == (0, 0.5, "")


def test_names_of_metrics() -> None:
    there = ["clip@1/a", "clip@2/a", "hps@3", "sgp:clip@1/a"]
    assert find_metric("hps", there) == "hps@3" and find_metric("clip@2/a", there) == "clip@2/a"
    assert find_metric("sgp:clip", there) == "sgp:clip@1/a"
    with pytest.raises(DiffalignError, match=r"row 'r': unknown metric 'hpz'; nearest: hps"):
        find_metric("hpz", there, row="r")
    with pytest.raises(DiffalignError, match=r"several versions of 'clip'.*clip@1/a, clip@2/a"):
        find_metric("clip", there)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({"clipp@1": (1.0, 2.0)}, "row 'r': unknown metric 'clip'; nearest: clipp"),
        ({"clip": (1.0, math.nan)}, "row 'r': expected a finite score of every image in 'clip', got nan of image 1"),
        ({"clip": (1.0, None)}, "got None of image 1"),
        ({"clip": (1.0,)}, "row 'r': expected scores of the same 2 or more images"),
    ],
)
def test_a_row_without_its_scores_is_named(scores: dict[str, Any], message: str) -> None:
    with pytest.raises(DiffalignError, match=message):
        label_scores(scores, rule(), row="r")


# ---------------------------------------------------------------- rows


def test_pairs_of_a_set_keep_scores_and_say_where_they_are_from() -> None:
    wanted = rule(temperatures=(2.0,))
    made = pairs_from_candidates(a_set(aesthetic=(5.0, 6.0, 7.0)), wanted, pairs="all")
    assert [pair.id for pair in made] == ["set-0:1-0", "set-0:2-0", "set-0:1-2"]
    first = made[0]
    assert first.label == pytest.approx(1 / (1 + math.exp(-1.5)))
    assert first.scores == {"clip@1": (4.0, 1.0), "aesthetic": (6.0, 5.0)}
    assert (first.chosen.getpixel((0, 0)), first.rejected.getpixel((0, 0))) == ((40,) * 3, (10,) * 3)
    origin = first.provenance
    assert (origin.source, origin.method, origin.seed, origin.model_revision) == ("test", "sample", 7, "abc")
    assert origin.parameters["candidates"] == {"set": "set-0", "images": [1, 0]} and origin.parameters["steps"] == 4
    assert origin.parameters["label"]["rules"][0]["temperatures"] == [2.0]
    for pair in made:
        validate_row(pair)
    assert made == pairs_from_candidates(a_set(aesthetic=(5.0, 6.0, 7.0)), wanted, pairs="all")


def test_hashes_of_a_set_go_with_their_images() -> None:
    origin = Provenance(sha256=("x", "y", "z"))
    (pair,) = pairs_from_candidates(replace(a_set(), provenance=origin), rule())
    assert pair.provenance.sha256 == ("y", "x")


def test_a_pair_is_turned_where_the_rejected_image_is_better() -> None:
    """A gap of -2 at temperature 2 says sigmoid(1) that the rejected one is better."""
    pair = a_pair(provenance=Provenance(sha256=("x", "y"), parameters={"severity": 0.5}), mask=Image.new("L", (6, 5)))
    found = relabel(pair, rule(temperatures=(2.0,)))
    assert found is not None and found.label == pytest.approx(1 / (1 + math.exp(-1)))
    assert (found.id, found.chosen, found.rejected) == ("row-0", pair.rejected, pair.chosen)
    assert found.scores == {"clip@1": (1.0, -1.0), "hps@2": (1.0, 0.0)} and found.mask is pair.mask
    assert found.provenance.sha256 == ("y", "x") and found.provenance.parameters["severity"] == 0.5
    assert found.provenance.parameters["label"]["swapped"] is True
    again = relabel(found, rule("binary"))
    assert again is not None and again.chosen is pair.rejected and again.label == 1
    assert again.provenance.parameters["label"]["swapped"] is True  # still the other way round than it was made
    back = relabel(replace(found, scores=pair.scores), rule("binary", "clip"))
    assert back is not None and back.chosen is pair.chosen
    assert back.provenance.parameters["label"]["swapped"] is False


@given(st.floats(-4, 4), st.sampled_from(RULES))
@settings(max_examples=40)
def test_relabelling_does_not_depend_on_how_a_pair_stands(gap: float, name: str) -> None:
    pair = a_pair(gap=gap)
    other = replace(
        pair, chosen=pair.rejected, rejected=pair.chosen, scores={key: two[::-1] for key, two in pair.scores.items()}
    )
    one, two = relabel(pair, rule(name)), relabel(other, rule(name))
    assert one is not None and two is not None and one.label == pytest.approx(two.label, abs=1e-12)
    if one.label > 0.5:
        assert (one.chosen, one.rejected, one.scores) == (two.chosen, two.rejected, two.scores)


def test_a_mask_that_no_longer_fits_goes() -> None:
    pair = a_pair(rejected=Image.new("RGB", (4, 4)), mask=Image.new("L", (6, 5)))
    found = relabel(pair, rule())
    assert found is not None and found.mask is None
    validate_row(found)


def test_the_label_of_a_pair_is_a_metric_too() -> None:
    """A human 0.3 is hard 0 by binary: half of it and half of a soft 3/4 for chosen make 3/8."""
    pair = a_pair(gap=math.log(3), label=0.3)
    found = relabel(pair, [rule("binary", "label", share=0.5), rule(share=0.5)])
    assert found is not None and found.label == pytest.approx(1 - 0.375) and found.chosen is pair.rejected


# ---------------------------------------------------------------- whole sets


def write(folder: Path, rows: list[Any]) -> Path:
    with PreferenceWriter(folder, form="pair" if isinstance(rows[0], Pair) else "candidates") as writer:
        for row in rows:
            writer.write(row)
    return folder


def config(source: Path, *rules: LabelRule, **changes: Any) -> LabelConfig:
    return LabelConfig(source=str(source), rules=rules or (rule(),), **changes)


def whole(folder: Path) -> dict[str, str]:
    """Every file of the results by its hash."""
    files = [folder / "dropped.jsonl", folder / "labels.json", *sorted((folder / "pairs").glob("*.parquet"))]
    return {file.name: content_hash(file.read_bytes()) for file in files}


def test_pairs_on_disk_are_relabelled(tmp_path: Path) -> None:
    gaps = (-2.0, 2.0, 0.0, 0.1)
    source = write(tmp_path / "in", [a_pair(number, gap) for number, gap in enumerate(gaps)])
    wanted = config(source, rule("binary", "clip", ties=(0.05,), min_gaps=(0.0,)))
    counts = label_preferences(wanted, tmp_path / "out")
    assert (counts.rows, counts.pairs, counts.ties, counts.swapped) == (4, 4, 1, 1)
    assert counts.mean_label == pytest.approx(3.5 / 4) and read_json(tmp_path / "out" / "labels.json")["ties"] == 1
    found = Preferences(tmp_path / "out")
    assert found.labels() == [1, 1, 0.5, 1] and found.ids() == ["row-0", "row-1", "row-2", "row-3"]
    assert found[0].chosen.getpixel((0, 0)) == (200,) * 3 and found[1].chosen.getpixel((0, 0)) == (101,) * 3
    assert found[0] == relabel(Preferences(source)[0], rule("binary", "clip@1", ties=(0.05,)))
    before, after = Preferences(source).record(0), found.record(0)
    assert after["chosen"]["bytes"] == before["rejected"]["bytes"]  # no image is encoded again


def test_dropped_pairs_are_listed(tmp_path: Path) -> None:
    source = write(tmp_path / "in", [a_pair(number, gap) for number, gap in enumerate((2.0, 0.1, 0.0))])
    counts = label_preferences(config(source, rule("binary", min_gaps=(0.05,), tied="drop")), tmp_path / "out")
    assert (counts.pairs, counts.dropped) == (2, {"gap below min_gap": 1})
    (row,) = read_jsonl(tmp_path / "out" / "dropped.jsonl")
    assert (row["id"], row["images"], row["reason"]) == ("row-2", [0, 1], "gap below min_gap")
    with pytest.raises(DiffalignError, match=r"no pair is left of 3 rows \(3 gap below min_gap\)"):
        label_preferences(config(source, rule("binary", min_gaps=(9.0,))), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_candidate_sets_on_disk_become_pairs(tmp_path: Path) -> None:
    sets = [
        a_set(number, levels, hps=tuple(range(len(levels)))) for number, levels in enumerate(((10, 40, 20), (5, 9)))
    ]
    source = write(tmp_path / "in", sets)
    both = rule("win_rate", "clip", "hps")
    counts = label_preferences(config(source, both, pairs="pareto"), tmp_path / "out")
    found = Preferences(tmp_path / "out")
    assert counts.swapped is None and len(found) == counts.pairs
    resolved = both.replace(metrics=("clip@1", "hps"))
    stored = Preferences(source)
    expected = [pair for row in stored for pair in pairs_from_candidates(row, resolved, pairs="pareto")]
    assert list(found) == expected and found.ids() == ["set-0:1-0", "set-0:2-0", "set-1:1-0"]


def test_pairs_read_as_candidates_make_pairs_again() -> None:
    """The view's metric "label" does not become a score, which no pair may have under this name."""
    (pair,) = pairs_from_candidates(replace(a_set(), scores={"label": (0.2, 0.8, 0.5)}), rule("binary", "label"))
    assert pair.scores == {} and pair.id == "set-0:1-0"
    validate_row(pair)


def test_versions_of_a_metric_never_mix(tmp_path: Path) -> None:
    other = replace(a_pair(1), scores={"clip@2": (1.0, 0.0)})
    source = write(tmp_path / "in", [a_pair(0), other])
    with pytest.raises(DiffalignError, match="several versions of 'clip'"):
        plan_labels(config(source))
    with pytest.raises(DiffalignError, match=r"row 'row-1': unknown metric 'clip@1'"):
        plan_labels(config(source, rule("binary", "clip@1")))
    with pytest.raises(DiffalignError, match=r"row 'row-0': unknown metric 'clipp'; nearest: clip"):
        plan_labels(config(source, rule("binary", "clipp")))


def test_a_stopped_run_goes_on_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "in", [a_pair(number, number - 3.0) for number in range(8)])
    monkeypatch.setattr(run_module, "write_preferences", partial(write_preferences, rows_per_shard=2))
    label_preferences(config(source), tmp_path / "whole")
    make, made = run_module._make, []

    def stops(*arguments: Any) -> Any:
        made.append(arguments[1])
        if len(made) == 6:
            raise KeyboardInterrupt
        return make(*arguments)

    monkeypatch.setattr(run_module, "_make", stops)
    with pytest.raises(KeyboardInterrupt):
        label_preferences(config(source), tmp_path / "parts")
    assert not (tmp_path / "parts" / "pairs").exists()
    label_preferences(config(source), tmp_path / "parts")
    assert made == [0, 1, 2, 3, 4, 5, 4, 5, 6, 7]  # two whole shards were kept
    assert whole(tmp_path / "parts") == whole(tmp_path / "whole")
    label_preferences(config(source), tmp_path / "parts")
    assert len(made) == 10 and whole(tmp_path / "parts") == whole(tmp_path / "whole")


def test_another_rule_or_other_rows_are_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "in", [a_pair()])
    label_preferences(config(source), tmp_path / "out")
    with pytest.raises(DiffalignError, match=r"temperatures: \[1.0\] there, \[2.0\] now"):
        label_preferences(config(source, rule(temperatures=(2.0,))), tmp_path / "out")
    (source / "train-00000.parquet").unlink()
    write(source, [a_pair(), a_pair(1)])
    with pytest.raises(DiffalignError, match="the rows have changed"):
        label_preferences(config(source), tmp_path / "out")


def test_rows_of_another_run_beside_the_folder_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "out-unfinished", [a_pair(3)])
    with pytest.raises(DiffalignError, match="holds other rows, such as 'row-3'"):
        write_preferences(tmp_path / "out", "pair", [("row-0", lambda: (a_pair(), None))])
    assert not (tmp_path / "out").exists()
