"""Which rows a gallery shows, and what its filters are given."""

from __future__ import annotations

import html
import json
import re

import pytest
from report_helpers import HOSTILE, make_pair

from diffalign.core import DiffalignError
from diffalign.report import pair_gallery
from diffalign.types import Provenance

DROPPED = {"stage": "gap", "reason": "gap too small", "detail": "-0.2, expected more than 0"}


def scored(number: int, gap: float, **changes):
    return make_pair(number, scores={"clip@1": (0.5 + gap, 0.5)}, **changes)


def data(body: str, name: str) -> list[str]:
    return [html.unescape(value) for value in re.findall(rf"""data-{name}=["']([^"']*)["']""", body)]


def chips(body: str, facet: str) -> list[str]:
    (field,) = re.findall(rf'<fieldset data-facet="{facet}">(.*?)</fieldset>', body, re.DOTALL) or [""]
    return [" ".join(re.sub("<[^>]*>", " ", label).split()) for label in re.findall("<label.*?</label>", field)]


@pytest.mark.parametrize(
    ("num_kept", "num_dropped", "limit", "shown"),
    [
        (7, 5, 6, (3, 3)),
        (7, 5, 5, (3, 2)),
        (1, 11, 6, (1, 5)),
        (11, 1, 6, (5, 1)),
        (3, 2, 9, (3, 2)),
        (4, 3, 1, (1, 0)),
    ],
)
def test_the_limit_is_shared_evenly_by_kept_and_dropped(num_kept, num_dropped, limit, shown):
    fates = [None] * num_kept + [DROPPED] * num_dropped
    body = pair_gallery([make_pair(number) for number in range(len(fates))], limit, fates=fates).body
    stages = data(body, "stage")
    assert (stages.count("kept"), stages.count("gap")) == shown


def test_both_kinds_are_spread_and_what_is_left_out_is_counted():
    fates = [DROPPED if number % 2 else None for number in range(11)]
    body = pair_gallery([make_pair(number) for number in range(11)], 4, fates=fates).body
    assert data(body, "id") == ["row-0", "row-10", "row-1", "row-9"]
    note = " ".join(re.sub("<[^>]*>", " ", body[: body.index("</p>")]).split())
    assert note.startswith("2 of 6 kept rows, spread evenly over all; 4 left out. 2 of 5 dropped rows, spread")


def test_a_dropped_row_says_where_and_why():
    body = pair_gallery([make_pair(0), make_pair(1)], fates=[None, DROPPED]).body
    assert '<li class="fate kept">kept</li>' in body and '<li class="fate dropped">gap too small</li>' in body
    assert "gap: gap too small (-0.2, expected more than 0)" in body
    assert chips(body, "stage") == ["kept 1", "gap 1"]


def test_without_fates_nothing_is_told_of_stages():
    body = pair_gallery([make_pair(0), make_pair(1)]).body
    assert chips(body, "stage") == [] and "fate" not in body


def test_fates_must_fit_the_rows():
    with pytest.raises(ValueError, match="expected a fate for each of 2 rows, got 1"):
        pair_gallery([make_pair(0), make_pair(1)], fates=[None])
    with pytest.raises(DiffalignError, match="expected a fate with the stage that dropped the row"):
        pair_gallery([make_pair(0)], fates=[{"reason": "gap too small"}])


def test_methods_are_filtered_by_where_there_are_several():
    blurred, told = make_pair(0), make_pair(1, provenance=Provenance())
    assert chips(pair_gallery([blurred, told, make_pair(2)]).body, "method") == ["blur 2", "not told 1"]
    assert chips(pair_gallery([blurred]).body, "method") == []


def test_gaps_are_listed_in_the_order_of_the_rewards():
    """The second row lacks the first reward, and the third has a score that is not finite."""
    rows = [
        make_pair(0, scores={"clip@1/a": (0.75, 0.5), "pickscore@2": (21.0, 22.5)}),
        make_pair(1, scores={"pickscore@2": (20.0, 19.0)}),
        make_pair(2, scores={"clip@1/a": (float("nan"), 0.5), "pickscore@2": (20.0, 20.0)}),
    ]
    body = pair_gallery(rows).body
    assert [json.loads(gaps) for gaps in data(body, "gaps")] == [[0.25, -1.5], [None, 1.0], [None, 0.0]]
    (options,) = re.findall("<select data-reward.*?</select>", body, re.DOTALL)
    assert re.findall(r'<option value="(\d)">([^<]*)', options) == [("0", "clip"), ("1", "pickscore")]
    assert "<li data-gap-shown>gap +0.25</li>" in body


def test_gaps_that_are_all_alike_are_no_filter():
    assert "data-gap>" in pair_gallery([scored(0, 0.25), scored(1, 0.5)]).body
    assert "data-gap>" not in pair_gallery([scored(0, 0.25), scored(1, 0.25)]).body


def test_ids_and_methods_of_others_stay_text():
    quote = "it's \" > & <b>"
    row = scored(0, 0.1, id=quote, prompt=HOSTILE, provenance=Provenance(method=HOSTILE, source=quote))
    fate = {"stage": HOSTILE, "reason": HOSTILE, "detail": HOSTILE}
    body = pair_gallery([row, scored(1, 0.2)], fates=[fate, None]).body
    assert "<b>" not in body and "<script" not in body and "<img src=x" not in body
    (marked,) = re.findall(r'data-id="([^"]*)" data-mark="" data-stage="[^"]*&lt;', body)
    assert html.unescape(marked) == quote
