"""Choosing a strength by made-up numbers: the split, the rule, what is reported on whom, what a reader is told."""

from __future__ import annotations

import doctest
import math
from typing import Any

import pytest

from diffalign.core import DiffalignError
from diffalign.evaluate import Measured, SweepScores, choice, choose_strength, conclude, split_ids, strengths

PROMPTS = tuple(f"a photo of {number}" for number in range(8))
IDS = {prompt: f"id{number}" for number, prompt in enumerate(PROMPTS)}
SPLIT = split_ids(IDS.values(), 0.5)
VALIDATION = [prompt for prompt in PROMPTS if IDS[prompt] in SPLIT.validation]
REPORT = [prompt for prompt in PROMPTS if IDS[prompt] in SPLIT.report]
STRENGTHS = (0.0, 2.0, 4.0)


def test_the_examples_are_true() -> None:
    found = [doctest.testmod(module) for module in (choice, strengths)]
    assert all(each.failed == 0 and each.attempted for each in found)


def test_the_split_hangs_on_the_ids_alone() -> None:
    ids = [f"prompt {number}" for number in range(40)]
    split = split_ids(ids, 0.25)
    assert len(split.validation) == 10 and sorted([*split.validation, *split.report]) == sorted(ids)
    assert split_ids(reversed(ids), 0.25) == split
    assert set(split_ids(ids, 0.1).validation) < set(split.validation) < set(split_ids(ids, 0.9).validation)
    few = split_ids(ids[:3], 0.9)
    assert (len(few.validation), len(few.report)) == (1, 2)
    assert len(split_ids(ids[:9], 0.01).validation) == 1


@pytest.mark.parametrize(
    ("count", "share", "message"), [(2, 0.5, "at least 3 prompts"), (9, 0.0, "above 0"), (9, 1.0, "below 1")]
)
def test_a_split_that_leaves_a_part_empty_is_refused(count: int, share: float, message: str) -> None:
    with pytest.raises(DiffalignError, match=message):
        split_ids([str(number) for number in range(count)], share)


@pytest.mark.parametrize(
    ("qualities", "spreads", "least", "chosen"),
    [
        ((1.0, 2.0, 3.0), (1.0, 0.9, 0.8), 0.9, 2.0),  # the best is not diverse enough
        ((1.0, 2.0, 3.0), (1.0, 0.9, 0.8), 0.8, 4.0),
        ((1.0, 3.0, 3.0), (1.0, 1.0, 1.0), 0.9, 2.0),  # of equal ones the weaker
        ((3.0, 2.0, 1.0), (1.0, 1.0, 1.0), 0.9, 0.0),
        ((-3.0, -2.0, -1.0), (1.0, 0.1, 0.1), 0.9, 0.0),  # the weakest is in the choice always
        ((1.0, 2.0, 3.0), (None, None, None), 0.9, 4.0),  # one image per prompt: no condition
        ((1.0, None, None), (1.0, 1.0, 1.0), 0.9, 0.0),
        ((None, 2.0, 3.0), (1.0, 1.0, None), 0.9, 2.0),
    ],
)  # fmt: skip
def test_the_rule(qualities: Any, spreads: Any, least: float, chosen: float) -> None:
    assert choose_strength(measured(qualities, spreads), least).strength == chosen


def measured(qualities: Any, spreads: Any, failed: Any = (0, 0, 0)) -> list[Measured]:
    """Of 60 images at each strength."""
    return [
        Measured(strength=strength, quality=quality, diversity=spread, num_images=60, num_failed=count)
        for strength, quality, spread, count in zip(STRENGTHS, qualities, spreads, failed, strict=True)
    ]


@pytest.mark.parametrize(
    ("failed", "chosen"),
    [((0, 0, 3), 4.0), ((0, 0, 4), 2.0), ((9, 0, 12), 4.0), ((9, 12, 13), 2.0), ((0, 60, 59), 0.0), ((60, 60, 60), 4)],
)
def test_a_strength_that_fails_far_more_often_than_the_weakest_is_never_chosen(failed: Any, chosen: float) -> None:
    """5 % of 60 images are 3."""
    assert choose_strength(measured((1.0, 2.0, 3.0), (1.0, 1.0, 1.0), failed), 0.9).strength == chosen


def test_nothing_scored_is_an_error() -> None:
    with pytest.raises(DiffalignError, match="scores none"):
        choose_strength(measured((None, None, None), (1.0, 1.0, 1.0)), 0.9)


def column(validation: float, report: float, *, missing: tuple[str, ...] = ()) -> dict[tuple[str, int], float]:
    """Two images a prompt, whose mean is the level of the prompt's part plus the prompt's number."""
    levels = dict.fromkeys(VALIDATION, validation) | dict.fromkeys(REPORT, report)
    return {
        (prompt, seed): math.nan if prompt in missing and seed else level + PROMPTS.index(prompt) + seed - 0.5
        for prompt, level in levels.items()
        for seed in (0, 1)
    }


def scores(**changes: Any) -> SweepScores:
    """The chooser rises on validation up to 2 and on the report's prompts up to 4; the judge falls there."""
    spread = [{(prompt, 0): 1 - each / 100 for prompt in PROMPTS} for each in STRENGTHS]
    fields: dict[str, Any] = {
        "axis": "scale",
        "strengths": STRENGTHS,
        "ids": IDS,
        "columns": {
            "chooser": [column(0, 0), column(5, 1), column(4, 9)],
            "judge": [column(0, 0), column(0, -2), column(0, -3)],
            "diversity": spread,
        },
        "roles": {"chooser": "in-training", "judge": "held-out", "diversity": "in-training"},
        "higher_is_better": {"chooser": True, "judge": True, "diversity": True},
    }
    return SweepScores(**fields | changes)


def test_what_chooses_is_not_reported_on() -> None:
    """Chosen by validation alone, 2, though the other prompts would have taken 4; differences from the others alone."""
    found = conclude(scores(), "chooser", min_diversity=0.9)
    assert (found["chosen"], found["weakest"]) == (2.0, 0.0)
    assert found["prompts"] == {"validation": list(SPLIT.validation), "report": list(SPLIT.report)}
    mean = sum(map(PROMPTS.index, VALIDATION)) / 4
    assert [row["quality"] for row in found["validation"]] == pytest.approx([mean, mean + 5, mean + 4])
    assert all(row["in_choice"] for row in found["validation"])
    mean = sum(map(PROMPTS.index, REPORT)) / 4
    measured = [found["models"][f"scale {each}"]["chooser"]["mean"] for each in (0, 2, 4)]
    assert measured == pytest.approx([mean, mean + 1, mean + 9])
    gains = {row["metric"]: row for row in found["differences"]}
    assert gains["chooser"]["mean"] == pytest.approx(1) and gains["judge"]["mean"] == pytest.approx(-2)
    assert gains["diversity"]["mean"] == pytest.approx(-0.02)
    assert {(row["model"], row["baseline"]) for row in found["differences"]} == {("scale 2", "scale 0")}
    assert found["models"]["scale 2"]["num_images"] == 8 and found["models"]["scale 2"]["judge"]["num_prompts"] == 4
    assert "highest mean chooser on 4 validation prompts" in found["rule"] and "0.9 of the diversity" in found["rule"]
    assert any("Only 4 prompts choose" in note for note in found["notes"])
    assert any("Only 4 prompts are reported on" in note for note in found["notes"])


def test_alarms_ring_where_the_judge_falls_while_the_chooser_rises() -> None:
    """Differences must vary between prompts, or there is no interval."""
    uneven = {key: value + (0.1 if key[0] == REPORT[0] else 0) for key, value in column(5, 1).items()}
    fallen = {key: value + (0.1 if key[0] == REPORT[0] else 0) for key, value in column(0, -2).items()}
    columns = {
        **scores().columns,
        "chooser": [column(0, 0), uneven, column(4, 9)],
        "judge": [column(0, 0), fallen, fallen],
    }
    alarms = conclude(scores(columns=columns), "chooser")["alarms"]
    assert any("held-out judge fell" in alarm for alarm in alarms)
    lower = {"chooser": True, "judge": False, "diversity": True}
    alarms = conclude(scores(columns=columns, higher_is_better=lower), "chooser")["alarms"]
    assert not any("judge" in alarm for alarm in alarms)


def test_a_metric_of_which_less_is_better_chooses_the_least() -> None:
    found = conclude(scores(higher_is_better={"chooser": False, "judge": True, "diversity": True}), "chooser")
    assert found["chosen"] == 0.0 and found["differences"] == [] and "lowest mean chooser" in found["rule"]
    assert any("weakest strength was chosen" in note for note in found["notes"])
    with pytest.raises(DiffalignError, match="chooser has no better direction"):
        conclude(scores(higher_is_better={"chooser": None, "judge": True, "diversity": True}), "chooser")


def test_images_without_a_score_are_left_out_everywhere_and_counted() -> None:
    """At strength 0 the second image of two prompts is missing: everywhere their means rest on the first, 1/2 lower."""
    gone = (VALIDATION[0], REPORT[0])
    columns = {**scores().columns, "chooser": [column(0, 0, missing=gone), column(5, 1), column(4, 9)]}
    found = conclude(scores(columns=columns), "chooser")
    before = conclude(scores(), "chooser")
    shift = [
        one["quality"] - other["quality"] for one, other in zip(found["validation"], before["validation"], strict=True)
    ]
    assert shift == pytest.approx([-0.5 / 4] * 3)
    means = [each["models"]["scale 0"]["chooser"]["mean"] for each in (found, before)]
    assert means[0] - means[1] == pytest.approx(-0.5 / 4)
    assert found["num_failed"] == {"chooser": [2, 0, 0], "judge": [0, 0, 0]}
    assert any("without chooser: 2 at scale 0" in note for note in found["notes"])
    assert found["left_out"] == [] and not any("left out" in alarm for alarm in found["alarms"])


def test_a_strength_that_breaks_images_is_left_out_and_takes_none_from_the_others() -> None:
    """Only the first prompt of each part lives at strength 4, where it scores highest by far."""
    broken = {key: one if key[0] in (VALIDATION[0], REPORT[0]) else math.nan for key, one in column(90, 90).items()}
    spread = [scores().columns["diversity"][0]] * 2 + [{(REPORT[0], 0): 2.0}]
    columns = {**scores().columns, "chooser": [column(0, 0), column(5, 1), broken], "diversity": spread}
    found, whole = conclude(scores(columns=columns), "chooser"), conclude(scores(), "chooser")
    assert found["chosen"] == 2.0 and found["left_out"] == [4.0]
    rows = found["validation"]
    assert [(row["num_failed"], row["num_images"]) for row in rows] == [(0, 8), (0, 8), (6, 8)]
    assert rows[2]["quality"] == 90 + PROMPTS.index(VALIDATION[0]) and not rows[2]["in_choice"]
    assert [row["quality"] for row in rows[:2]] == [row["quality"] for row in whole["validation"][:2]]
    for each in ("scale 0", "scale 2"):
        assert found["models"][each]["chooser"] == whole["models"][each]["chooser"]
        assert found["models"][each]["diversity"]["num_prompts"] == 4
    assert found["differences"][0] == whole["differences"][0]
    (alarm,) = (each for each in found["alarms"] if "left out" in each)
    assert "scale 4" in alarm and "6 of 8 validation images" in alarm and "0 at scale 0" in alarm
    assert "without a score is at most 0.05 above that at scale 0" in found["rule"]


def test_a_strength_that_failed_whole_is_out_of_the_choice_and_harms_no_other() -> None:
    nothing = dict.fromkeys(column(0, 0), math.nan)
    columns = {**scores().columns, "chooser": [column(0, 0), column(5, 1), nothing]}
    found = conclude(scores(columns=columns), "chooser")
    assert found["chosen"] == 2.0 and found["validation"][2] == {
        "strength": 4.0, "quality": None, "diversity": pytest.approx(0.96), "num_images": 8, "num_failed": 8,
        "in_choice": False,
    }  # fmt: skip
    assert "chooser" not in found["models"]["scale 4"] and "judge" in found["models"]["scale 4"]


def test_without_a_second_seed_the_reward_alone_chooses() -> None:
    columns = {**scores().columns, "diversity": [{}, {}, {}]}
    found = conclude(scores(columns=columns), "chooser", min_diversity=1.0)
    assert found["chosen"] == 2.0 and "diversity" not in found["models"]["scale 2"] and "diversity" not in found["rule"]
    assert any("no diversity" in note for note in found["notes"])
    columns["chooser"] = [column(0, 0), column(1, 1), column(2, 2)]
    notes = conclude(scores(columns=columns), "chooser")["notes"]
    assert any("extend the range" in note for note in notes)
