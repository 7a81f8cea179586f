"""Each stage by itself: rows to rows, in their places, with a reason for each that is dropped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from curate_helpers import nan_for_flowers
from PIL import Image

from diffalign.core import numpy_generator
from diffalign.curate import (
    Candidate,
    Dropped,
    caption_photos,
    composite_regions,
    degrade_regions,
    drop_artwork,
    load_degradation,
    load_locator,
    locate_regions,
    read_photos,
    score_pairs,
    select_photos,
)
from diffalign.curate.sources import Photo, Rejected
from diffalign.curate.stages import ARTWORK, PHOTOGRAPH
from diffalign.data import draw_crop
from diffalign.rewards import load_reward

SIZE = 24


def photo(name: str, image: Image.Image, prompt: str = "a photo") -> Photo:
    return Photo(id=name, image=image, prompt=prompt, source=f"album/{name}")


def grey(level: int) -> Image.Image:
    """A square whose left half is darker, so that it is not blank."""
    image = Image.new("RGB", (SIZE, SIZE), (level, level, level))
    image.paste((level // 2, level // 2, level // 2), (0, 0, SIZE // 2, SIZE))
    return image


CROPS = [draw_crop("train", numpy_generator("stages", number), size=SIZE) for number in range(4)]
PHOTOS = [photo(str(number), crop.image, crop.caption) for number, crop in enumerate(CROPS)]


def rows_with_a_dropped_one() -> list[Candidate]:
    """Photograph 0, a file that could not be read, photographs 1 and 2."""
    return read_photos([PHOTOS[0], Rejected("album/bad", "truncated", "ends early"), *PHOTOS[1:3]])


def reasons(rows: Sequence[Candidate]) -> list[str]:
    return [row.dropped.reason if row.dropped else "" for row in rows]


def brightness(images: Sequence[Image.Image], prompts: Sequence[str]) -> list[float]:
    return [float(np.asarray(image).mean()) for image in images]


def likes_photographs_bright(images: Sequence[Image.Image], prompts: Sequence[str]) -> list[float]:
    """How well a text fits: "a photograph" fits what is bright, "anime" what is dark; none fits what is black."""
    fits = {PHOTOGRAPH: 1.0, "anime": -1.0}
    levels = [float(np.asarray(image).mean()) - 100 for image in images]
    return [fits.get(prompt, 0.0) * level for level, prompt in zip(levels, prompts, strict=True)]


STAGES: dict[str, Any] = {
    "select": lambda rows: select_photos(rows, rewards={"luminance": load_reward("luminance")}, min_contrast=0.01),
    "artwork": lambda rows: drop_artwork(rows, load_reward("tiny-clip")),
    "caption": lambda rows: caption_photos(rows, lambda images: ["a caption"] * len(images)),
    "locate": lambda rows: locate_regions(rows, load_locator("random_shapes")),
    "degrade": lambda rows: degrade_regions(rows, load_degradation("jpeg")),
    "composite": composite_regions,
    "score": lambda rows: score_pairs(rows, [load_reward("tiny-clip")]),
}


@pytest.mark.parametrize("name", STAGES)
def test_dropped_rows_keep_their_place_and_all_may_be_dropped(name: str) -> None:
    rows = rows_with_a_dropped_one()
    if name == "score":
        rows = [row if row.dropped else replace(row, rejected=row.image) for row in rows]
    before = list(rows)
    after = STAGES[name](rows)
    assert [row.name for row in after] == ["album/0", "album/bad", "album/1", "album/2"]
    assert after[1].dropped == Dropped("read", "truncated", "ends early") and rows == before
    assert STAGES[name]([before[1]]) == [before[1]] and STAGES[name]([]) == []


def test_all_stages_together_make_pairs_whose_records_say_what_became_of_each() -> None:
    rows = rows_with_a_dropped_one()
    for name in ("select", "locate", "degrade", "composite", "score"):
        rows = STAGES[name](rows)
    pair = rows[2].pair()
    assert (pair.id, pair.prompt, pair.chosen) == ("1", CROPS[1].caption, CROPS[1].image)
    assert pair.provenance.parameters["locate"]["name"] == "random_shapes" and pair.provenance.seed == rows[2].seed
    records = [row.record() for row in rows]
    assert [record.get("stage") for record in records] == [None, "read", None, None]
    assert records[1]["reason"] == "truncated" and records[1]["detail"] == "ends early" and not records[1]["id"]
    assert set(records[0]["statistics"]) == {"contrast", "luminance"} and len(records[0]["fingerprint"]) == 16
    with pytest.raises(ValueError, match="not a pair yet, or no longer"):
        rows[1].pair()
    with pytest.raises(ValueError, match="was not read"):
        rows[1].image  # noqa: B018


def test_a_row_does_not_depend_on_those_beside_it() -> None:
    together = read_photos(PHOTOS)
    alone = read_photos([PHOTOS[2]])
    for name in ("locate", "degrade", "composite"):
        together, alone = STAGES[name](together), STAGES[name](alone)
    assert together[2] == alone[0] and together[2].seed != together[1].seed


def test_blank_and_low_photographs_are_dropped() -> None:
    flat = Image.new("RGB", (SIZE, SIZE), "navy")
    rows = read_photos([photo("flat", flat), photo("dark", grey(60)), photo("bright", grey(200))])
    luminance = {"luminance": load_reward("luminance")}
    after = select_photos(rows, rewards=luminance, min_scores={"luminance": 0.5}, min_contrast=0.01)
    assert reasons(after) == ["blank", "low luminance", ""]
    assert after[1].dropped is not None and after[1].dropped.detail == "0.1765, expected at least 0.5"  # 45 / 255
    assert after[2].statistics["luminance"] == pytest.approx(150 / 255) and after[0].fingerprint == ""
    assert reasons(select_photos(rows, min_contrast=0.0)) == ["", "", ""]
    assert reasons(select_photos(rows[1:], rewards=luminance, min_scores={"luminance": 45 / 255 - 1e-6})) == ["", ""]


def test_a_photograph_without_score_is_not_selected() -> None:
    rows = read_photos([photo("rose", grey(90), "a flower"), photo("wall", grey(91), "a wall")])
    own = load_reward("curate_helpers:nan_for_flowers")
    after = select_photos(rows, rewards={"own": own})
    assert reasons(after) == ["no own", ""] and after[1].statistics["own"] == nan_for_flowers([grey(91)], ["a wall"])[0]
    with pytest.raises(ValueError, match=r"min_scores of what is measured, \['own'\], got \['other'\] too"):
        select_photos(rows, rewards={"own": own}, min_scores={"other": 1.0})


def test_what_fits_a_kind_of_art_better_is_no_photograph() -> None:
    judge = load_reward("test_stages:likes_photographs_bright")
    rows = read_photos([photo("bright", grey(200)), photo("dark", grey(90)), photo("black", Image.new("RGB", (9, 9)))])
    after = drop_artwork(rows, judge)
    assert reasons(after) == ["", "not a photograph", "no test_stages:likes_photographs_bright"]
    assert after[1].dropped is not None and after[1].dropped.detail == "rather anime"
    tiny = load_reward("tiny-clip")
    best = [max((PHOTOGRAPH, *ARTWORK), key=lambda text: float(tiny([one.image], [text]))) for one in PHOTOS[:3]]
    told = [
        row.dropped.detail if row.dropped else f"rather {PHOTOGRAPH}"
        for row in drop_artwork(read_photos(PHOTOS[:3]), tiny)
    ]
    assert told == [f"rather {text}" for text in best]


def test_a_model_that_is_asked_must_say_no() -> None:
    class Says:
        identity = "says"

        def __call__(self, images: Sequence[Image.Image]) -> list[str]:
            return [" No.", "yes", "", "I cannot tell"][: len(images)]

    after = drop_artwork(read_photos(PHOTOS), Says())
    assert reasons(after) == ["", *["not a photograph"] * 3]
    assert [row.dropped.detail for row in after if row.dropped] == ["yes", "", "I cannot tell"]


def test_captions_are_filled_in_where_they_lack() -> None:
    bare = [replace(PHOTOS[0], prompt=""), PHOTOS[1], replace(PHOTOS[2], prompt="")]
    asked: list[Image.Image] = []

    def captioner(images: Sequence[Image.Image]) -> list[str]:
        asked.extend(images)
        return ["a new caption", ""]

    after = caption_photos(read_photos(bare), captioner)  # type: ignore[arg-type]
    assert asked == [PHOTOS[0].image, PHOTOS[2].image] and reasons(after) == ["", "", "no caption"]
    assert [row.photo.prompt for row in after[:2] if row.photo] == ["a new caption", PHOTOS[1].prompt]


def test_where_nothing_stands_out_nothing_is_damaged() -> None:
    rows = read_photos([photo("flat", Image.new("RGB", (SIZE, SIZE), "navy")), PHOTOS[0]])
    after = locate_regions(rows, load_locator("colour_saliency"))
    assert reasons(after) == ["nothing stands out", ""] and after[0].mask is None and after[1].mask is not None


def test_the_photograph_comes_back_outside_the_mask() -> None:
    mask = Image.new("L", (SIZE, SIZE))
    mask.paste(255, (3, 5, 12, 19))
    row = replace(read_photos([PHOTOS[0]])[0], mask=mask, rejected=Image.new("RGB", (SIZE, SIZE)), method="paint")
    after = composite_regions([row])[0].rejected
    inside = np.asarray(mask) == 255
    assert after is not None and not np.asarray(after)[inside].any()
    assert (np.asarray(after)[~inside] == np.asarray(PHOTOS[0].image)[~inside]).all()
    (soft,) = composite_regions([row], feather=2.0)
    assert soft.parameters["feather"] == 2.0 and soft.rejected != after
    (whole,) = composite_regions([replace(row, mask=None)])
    assert whole.rejected == Image.new("RGB", (SIZE, SIZE))


def test_damage_that_changes_nothing_is_no_pair() -> None:
    mask = Image.new("L", (SIZE, SIZE), 255)
    row = replace(read_photos([PHOTOS[0]])[0], mask=mask, rejected=PHOTOS[0].image.copy(), method="paint")
    (after,) = composite_regions([row])
    assert after.dropped == Dropped("degrade", "no damage", "paint changed nothing")


def test_what_a_model_draws_of_nan_is_dropped() -> None:
    class Breaks(type(load_degradation("jpeg"))):  # type: ignore[misc]
        def damage(self, images: Any, masks: Any, prompts: Any, seeds: Any) -> Any:
            return [None, *super().damage(images[1:], masks[1:], prompts[1:], seeds[1:])]

    degradation = load_degradation("jpeg")
    degradation.__class__ = Breaks
    assert reasons(degrade_regions(read_photos(PHOTOS[:2]), degradation)) == ["not finite", ""]


def test_each_image_of_a_mixture_says_what_damaged_it() -> None:
    mixture = load_degradation({"name": "mixture", "of": ["jpeg", "posterise", "downsample"]})
    rows = degrade_regions(read_photos(PHOTOS), mixture)
    assert {row.method for row in rows} <= {"jpeg", "posterise", "downsample"} and len({row.method for row in rows}) > 1
    assert all(mixture.method_for(row.seed or 0).name == row.method for row in rows)


def test_a_pair_without_a_score_is_dropped_with_what_the_reward_says() -> None:
    rows = [replace(row, rejected=grey(80)) for row in read_photos(PHOTOS[:2])]
    rows[0] = replace(rows[0], photo=replace(PHOTOS[0], prompt="a flower"))
    rows[1] = replace(rows[1], photo=replace(PHOTOS[1], prompt="a wall"), rejected=Image.new("RGB", (SIZE, SIZE)))
    own, bright = load_reward("curate_helpers:nan_for_flowers"), load_reward("test_stages:brightness")
    after = score_pairs(rows, [own, bright])
    assert reasons(after) == ["no score", "no score"]
    assert after[0].dropped is not None and after[1].dropped is not None
    assert after[0].dropped.detail == "curate_helpers:nan_for_flowers: the photograph: nan; damaged: nan"
    assert after[1].dropped.detail.endswith("the photograph: ok; damaged: black image")
    (scored,) = score_pairs([replace(rows[1], rejected=grey(80))], [bright])
    ours, theirs = scored.scores[bright.card.identity]
    assert theirs == 60.0 and math.isclose(ours, float(np.asarray(PHOTOS[1].image).mean()), rel_tol=1e-6)
