"""Selection and counting: worked numbers."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffalign.core import DiffalignError, numpy_generator, write_json, write_text
from diffalign.curate import STAGES, Dropped, Marks, near_duplicates, perceptual_hash, read_marks, select_pairs
from diffalign.curate.funnel import count_funnel
from diffalign.curate.select import (
    cluster,
    drop_below_mean,
    drop_near_duplicates,
    drop_repeated,
    is_left,
    spread_over_clusters,
)
from diffalign.data import draw_crop, resize_crop

SCORES = [[(21.0, 20.0)], [(23.0, 22.9)], [(22.0, 20.0)], [(20.0, 17.0)], [(22.0, 21.0)]]  # gaps 1, 0.1, 2, 3, 1


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


def test_so_many_rewards_must_prefer_the_photograph() -> None:
    """Gaps (1, -1), (1, 2), (1, 0): a tie agrees with nobody; the gap itself counts in the first reward alone."""
    scores = [[(3.0, 2.0), (1.0, 2.0)], [(3.0, 2.0), (4.0, 2.0)], [(3.0, 2.0), (2.0, 2.0)]]
    assert select_pairs(scores, min_gap=0.5).kept == [0, 1, 2]
    selection = select_pairs(scores, min_gap=0.5, min_agreement=2)
    assert selection.kept == [1] and set(selection.dropped) == {0, 2}
    assert selection.dropped[0] == Dropped("gap", "rewards disagree", "1 of 2 prefer the photograph, expected 2")


def test_what_is_kept_is_spread_over_clusters() -> None:
    """Ranked 2, 4, 0, 3; the first three are alike, so the last comes second."""
    alike = {2: 0, 4: 0, 0: 0, 3: 1}
    selection = select_pairs(SCORES, min_gap=0.5, keep=2, clusters=lambda ranked: [alike[one] for one in ranked])
    assert selection.kept == [2, 3] and set(selection.dropped) == {0, 1, 4}

    def unasked(ranked: Any) -> Any:
        raise AssertionError("there is room for all")

    assert select_pairs(SCORES, min_gap=0.5, keep=4, clusters=unasked).kept == [2, 4, 0, 3]
    assert spread_over_clusters([5, 6, 7, 8, 9], [1, 1, 2, 2, 1]) == [5, 7, 6, 8, 9]


def test_like_features_share_a_cluster() -> None:
    near = numpy_generator("clusters").normal(0, 0.01, (6, 3)) + np.repeat([[0, 0, 1], [0, 5, 0]], 3, axis=0)
    found = cluster(near, 2, seed=2**40)
    assert len(set(found[:3])) == len(set(found[3:])) == 1 and found[0] != found[3]
    assert cluster(near[:2], 5, seed=0) in ([0, 1], [1, 0])


def test_what_is_not_a_score_is_refused() -> None:
    with pytest.raises(ValueError, match="numbers"):
        select_pairs([[(1.0, math.nan)]], min_gap=0.0)
    with pytest.raises(ValueError, match="keep=-1"):
        select_pairs(SCORES, min_gap=0.0, keep=-1)


def record(name: str, **values: Any) -> dict[str, Any]:
    return {"name": name, "id": name, "fingerprint": "", "statistics": {}} | values


def test_the_second_of_two_equal_images_is_dropped() -> None:
    rows = [record("a"), record("b", id="a"), record("c"), record("d", id="c", stage="read")]
    drop_repeated(rows)
    assert [is_left(row) for row in rows] == [True, False, True, False]
    assert (rows[1]["stage"], rows[1]["detail"]) == ("read", "the same image as a") and rows[3] == record(
        "d", id="c", stage="read"
    )


def test_near_duplicates_are_dropped_unless_they_are_wanted() -> None:
    """00ff and 00fe differ in one bit; what looks like nothing, or is out already, is no original."""
    prints = {"a": "00ff", "b": "00fe", "c": "", "d": "", "e": "ff00", "f": "ff01"}
    rows = [record(name, fingerprint=bits.rjust(16, "0") if bits else "") for name, bits in prints.items()]
    rows[4] |= {"stage": "select"}
    drop_near_duplicates(rows, -1)
    assert sum(map(is_left, rows)) == 5
    drop_near_duplicates(rows, 4)
    assert [row["name"] for row in rows if is_left(row)] == ["a", "c", "d", "f"]
    assert rows[1]["reason"] == "near duplicate" and rows[1]["detail"] == "looks like a"


def test_what_does_not_exceed_the_mean_is_dropped() -> None:
    """Of 1, 2, 3 the mean is 2; the row that is out already does not count."""
    rows = [record(str(value), statistics={"colour": float(value)}) for value in (1, 2, 3, 100)]
    rows[3] |= {"stage": "select", "reason": "blank"}
    drop_below_mean(rows, "colour")
    assert [is_left(row) for row in rows] == [False, False, True, False] and rows[3]["reason"] == "blank"
    assert rows[1]["reason"] == "colour below the mean" and rows[1]["detail"] == "2, the mean is 2"
    drop_below_mean([], "colour")


@pytest.mark.parametrize("distance", [0, 3, 10])
def test_banding_finds_every_near_duplicate(distance: int) -> None:
    generator = numpy_generator("hashes", distance)
    originals = generator.integers(0, 2**63, 30)
    flips = [sum(1 << int(bit) for bit in generator.choice(64, generator.integers(0, 14), False)) for _ in range(60)]
    values = [int(one) for one in originals] + [int(originals[n % 30]) ^ flip for n, flip in enumerate(flips)]
    expected: list[int | None] = []
    for index, value in enumerate(values):
        first = (n for n in range(index) if expected[n] is None and (values[n] ^ value).bit_count() <= distance)
        expected.append(next(first, None))
    assert near_duplicates([f"{value:016x}" for value in values], distance) == expected
    assert sum(one is not None for one in expected) >= 1


def test_copies_at_one_size_differ_in_4_bits_at_most_and_others_in_many() -> None:
    images = [draw_crop("train", numpy_generator("hash", number), size=128).image for number in range(12)]

    def bits(image: Image.Image) -> int:
        return int(perceptual_hash(resize_crop(image, 64)), 16)

    def as_jpeg(image: Image.Image) -> Image.Image:
        image.save(buffer := io.BytesIO(), "JPEG", quality=80)
        return Image.open(buffer)

    hashes = [bits(image) for image in images]
    resized = [bits(image.resize((90, 90), Image.Resampling.LANCZOS)) for image in images]
    recompressed = [bits(as_jpeg(image)) for image in images]
    for copies in (resized, recompressed):
        assert max((a ^ b).bit_count() for a, b in zip(hashes, copies, strict=True)) <= 4
    assert min((a ^ b).bit_count() for n, a in enumerate(hashes) for b in hashes[:n]) > 10


def test_a_funnel_adds_up() -> None:
    dropped = [{"stage": "gap", "reason": "small"}] * 3 + [{"stage": "read", "reason": each} for each in "aba"]
    funnel = count_funnel(11, dropped, captions_cleaned=2)
    assert list(funnel.passed) == list(STAGES) and list(funnel.passed.values()) == [8, 8, 8, 8, 8, 5, 5, 5]
    assert funnel.dropped["read"] == {"a": 2, "b": 1} and funnel.kept == 5 and funnel.captions_cleaned == 2


def test_marks_are_read(tmp_path: Any) -> None:
    path = tmp_path / "marks.json"
    write_json(path, {"reject": ["b", "b"]})
    assert read_marks(path) == Marks((), ("b",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "expected"),
        ('{"accept": "a"}', "expected"),
        ('{"reject": [1]}', "expected"),
        ('{"accept": ["a"], "reject": ["a"]}', "both accepted and rejected, such as 'a'"),
        ("{", "is not JSON"),
    ],
)
def test_marks_that_are_none_are_refused(content: str, message: str, tmp_path: Any) -> None:
    write_text(tmp_path / "marks.json", content)
    with pytest.raises(DiffalignError, match=message):
        read_marks(tmp_path / "marks.json")
