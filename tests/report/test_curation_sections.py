"""What a page says of a curation, and what it refuses."""

from __future__ import annotations

import re
from copy import deepcopy

import pytest
from curation_helpers import interval, make_audit, make_funnel
from report_helpers import HOSTILE

from diffalign.core import DiffalignError
from diffalign.report import audit_section, funnel_section, rejected_section


def words(body: str) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", body).split())


def bars(body: str) -> list[tuple[float, float, float]]:
    """Low, mean and high of each bar, in per cent."""
    found = re.findall(r'class="arm" x1="([\d.]+)" x2="([\d.]+)".*?class="mean" x1="([\d.]+)"', body)
    return [(float(low), float(mean), float(high)) for low, high, mean in found]


def test_the_funnel_tells_every_stage_that_dropped_and_names_the_others():
    text = words(funnel_section(make_funnel()).body)
    assert text.startswith("17 of 1,200 photographs became pairs.")
    assert "photographs 1,200 read 5 corrupt 2 too small" in text  # most first
    assert "gap 23 gap too small" in text and "1,170 keep 1,153 not best" in text
    assert "Nothing was dropped at locate." in text and "out of 3 captions" in text


def test_a_bar_of_the_funnel_is_what_was_left_and_what_was_lost():
    """Of 40, 10 fall at one stage: 30 are 75 % of the bar and the lost 25 % begin there."""
    body = funnel_section({"photos": 40, "passed": {"gap": 30}, "dropped": {"gap": {"small": 10}}}).body
    left = re.findall(r'class="left" x="0" y="0" width="([\d.]+)"', body)
    assert left == ["100.0", "75.0"]
    assert re.findall(r'class="lost" x="([\d.]+)" y="4" width="([\d.]+)"', body) == [("75.0", "25.0")]


def test_a_funnel_of_nothing_has_no_bars():
    body = funnel_section({"photos": 0, "passed": {"read": 0}, "dropped": {}}).body
    assert "0 of 0 photographs" in body and "<rect" not in body


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({}, "expected a funnel with photos, passed and dropped"),
        ({"photos": 5, "passed": {}, "dropped": {}}, "expected a funnel with photos, passed and dropped"),
        ({"photos": 5, "passed": {"read": 4}, "dropped": {}}, "stage read: 5 less 0 dropped are not the 4 left"),
        ({"photos": 5, "passed": {"read": "4"}, "dropped": {}}, "stage read: expected counts, got '4' left"),
        ({"photos": 5, "passed": {"read": 6}, "dropped": {"read": {"odd": -1}}}, "stage read: expected counts"),
        ({"photos": 5, "passed": {"read": 4}, "dropped": {"read": ["odd"]}}, "stage read: expected counts"),
    ],
)
def test_counts_that_do_not_add_up_are_refused(wrong, message):
    with pytest.raises(DiffalignError, match=message):
        funnel_section(wrong)


def test_rejected_photographs_are_counted_by_reason_with_a_few_names():
    rows = [{"stage": "read", "reason": "too_small", "name": f"{n}.png", "detail": f"{n} pixels"} for n in range(5)]
    rows.insert(0, {"stage": "select", "reason": "blank", "name": "grey.png", "detail": ""})
    text = words(rejected_section(rows, examples=2).body)
    assert "too small read 5 0.png 0 pixels 1.png 1 pixels blank select 1 grey.png" in text and "2.png" not in text
    assert words(rejected_section([]).body) == "Every photograph made a pair."
    with pytest.raises(DiffalignError, match="expected a rejected row with stage and reason"):
        rejected_section([{"stage": "read"}])


def test_the_audit_tells_its_warnings_before_its_figures():
    text = words(audit_section(make_audit()).body)
    assert text.startswith("Pixels outside the mask differ in 13 of 1990 pairs. figure")
    assert "2,000 of 5,000 pairs were looked at, 4 of them ties." in text
    assert words(audit_section(make_audit(warnings=[])).body).startswith("Nothing found that should be mended")


@pytest.mark.parametrize(
    "line",
    [
        "pairs that differ outside the mask by up to 6 levels 13 of 1990",
        "AUC of pairs 8x8 blocking: the rejected side went through JPEG 0.820 0.760 to 0.880",
        "leak of sizes and files, AUC of single images 0.500 all pairs alike",
        "blocking of JPEG outside the mask, chosen minus rejected -0.4 -0.5 to -0.3",
        "bytes per pixel, chosen minus rejected +1.5 +1 to +2",
        "clip prefers the chosen image 90.0 % 85.0 % to 95.0 %",
        "pickscore prefers the chosen image prefers the rejected image 30.0 % 20.0 % to 40.0 %",
        "clip agrees with pickscore 62.5 %",
        "pairs that share their chosen image 1,234",
        "pairs that reject what another chooses 2",
        "captions empty, too long, repeated 0, 9, 11",
        "captions that do not fit captions beat 87.5 % of the others 5 of 50",
    ],
)
def test_the_audit_has_a_line_for_each_figure(line):
    assert line in words(audit_section(make_audit()).body)


def test_bars_of_an_audit_share_a_scale():
    """An AUC of 0.82 lies 0.32 of 0.5 from the middle, of 48 per cent; logarithms reach to their largest, 0.5."""
    pairs, singles, blocking, rolloff, *rates = bars(audit_section(make_audit()).body)
    assert pairs == pytest.approx((50 + 48 * 0.52, 50 + 48 * 0.64, 50 + 48 * 0.76))
    assert singles[1] == pytest.approx(50 + 48 * 0.42) and len(rates) == 2
    assert blocking == pytest.approx((2, 50 - 48 * 0.8, 50 - 48 * 0.6)) and rolloff[1] == pytest.approx(50 + 48 * 0.4)
    audit = make_audit()
    audit["parity"]["differences"]["rolloff"] = interval(1.5, 0.5)
    assert bars(audit_section(audit).body)[2][1] == pytest.approx(50 - 48 * 0.2)


def test_what_tells_the_sides_apart_is_shown_of_a_leak_alone():
    assert "blocking 0.900 tone 0.550" in words(audit_section(make_audit()).body)
    audit = make_audit()
    audit["leak"]["cause"] = ""
    assert "What tells the sides apart" not in audit_section(audit).body


def test_a_leak_that_was_not_tested_says_why():
    text = words(audit_section(make_audit(leak=None, no_leak="3 photographs to test", file_leak=None)).body)
    assert "leak outside the mask 3 photographs to test not tested" in text and "AUC of pairs" not in text


def test_a_histogram_is_told_to_those_who_do_not_see_it():
    """Bins of 5 %: the fullest is the third, the filled ones reach from 5 to 20; no damage was measured."""
    body = audit_section(make_audit()).body
    (label,) = re.findall(r'aria-label="(Area[^"]*)"', body)
    assert label.endswith("12 pairs between 5 and 20, most between 10 and 15 (8 pairs).")
    assert "Strength of the damage" not in body


@pytest.mark.parametrize("missing", ["outside", "leak", "parity", "severity", "duplicates", "captions", "warnings"])
def test_an_audit_lacking_a_part_is_refused(missing):
    audit = make_audit()
    del audit[missing]
    with pytest.raises(DiffalignError, match=f"expected an audit .*'{missing}' is missing"):
        audit_section(audit)


def test_an_audit_of_other_types_is_refused():
    with pytest.raises(DiffalignError, match="expected an audit"):
        audit_section(make_audit(rewards=["clip"]))


def test_words_of_others_stay_words():
    audit, funnel = deepcopy(make_audit(warnings=[HOSTILE])), make_funnel()
    audit["leak"]["cause"] = HOSTILE
    audit["rewards"] = {HOSTILE: interval(0.9, 0.05)}
    audit["captions"]["most_repeated"] = [[HOSTILE, 3]]
    funnel["dropped"]["read"] = {HOSTILE: 7}
    row = {"stage": HOSTILE, "reason": HOSTILE, "name": HOSTILE, "detail": HOSTILE}
    for section in (audit_section(audit), funnel_section(funnel), rejected_section([row])):
        assert "&lt;img" in section.body and "<img" not in section.body and "<script" not in section.body
