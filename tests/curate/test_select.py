"""Selection and counting: worked numbers."""

from __future__ import annotations

import math

import pytest

from diffalign.curate import STAGES, Dropped, select_pairs
from diffalign.curate.funnel import count_funnel

SCORES = [(21.0, 20.0), (23.0, 22.9), (22.0, 20.0), (20.0, 17.0), (22.0, 21.0)]  # gaps 1, 0.1, 2, 3, 1


def test_the_gap_must_be_exceeded() -> None:
    selection = select_pairs(SCORES, min_gap=1.0)
    assert selection.kept == [2, 3] and set(selection.dropped) == {0, 1, 4}
    assert selection.dropped[0] == Dropped("gap", "gap too small", "1, expected more than 1")


def test_the_best_come_first_and_ties_keep_their_order() -> None:
    assert select_pairs(SCORES, min_gap=0.5).kept == [2, 4, 0, 3]
    assert select_pairs(SCORES, min_gap=0.5, rank_by="gap").kept == [3, 2, 0, 4]


def test_the_rest_is_told() -> None:
    selection = select_pairs(SCORES, min_gap=0.5, keep=3)
    assert selection.kept == [2, 4, 0]
    assert selection.dropped[3] == Dropped("keep", "not among the best", "4 of 4 by score")
    assert select_pairs(SCORES, min_gap=0.5, keep=9).kept == [2, 4, 0, 3]
    assert select_pairs([], min_gap=0.5) == select_pairs([], min_gap=0.0, keep=2)


def test_what_is_not_a_score_is_refused() -> None:
    with pytest.raises(ValueError, match="numbers"):
        select_pairs([(1.0, math.nan)], min_gap=0.0)
    with pytest.raises(ValueError, match="keep=-1"):
        select_pairs(SCORES, min_gap=0.0, keep=-1)


def test_a_funnel_adds_up() -> None:
    dropped = [{"stage": "gap", "reason": "small"}] * 3 + [{"stage": "read", "reason": each} for each in "aba"]
    funnel = count_funnel(11, dropped, captions_cleaned=2)
    assert list(funnel.passed) == list(STAGES) and list(funnel.passed.values()) == [8, 8, 8, 8, 5, 5]
    assert funnel.dropped["read"] == {"a": 2, "b": 1} and funnel.kept == 5 and funnel.captions_cleaned == 2
