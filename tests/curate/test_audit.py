"""What an audit counts: worked numbers, hostile input, nothing seen inside the mask."""

from __future__ import annotations

import doctest
import importlib
import json
import pkgutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

import diffalign.curate.audit
from diffalign.core import DiffalignError, numpy_generator
from diffalign.curate.audit import (
    TRACES,
    Audit,
    audit_pairs,
    image_traces,
    print_audit,
)
from diffalign.curate.audit.rewards import cohen_kappa
from diffalign.curate.audit.run import _spread
from diffalign.data import Preferences, PreferenceWriter, draw_crop
from diffalign.types import Pair

SIZE = (28, 20)


def picture(number: int, size: tuple[int, int] = SIZE) -> Image.Image:
    return draw_crop("train", numpy_generator("audit", number), size=40).image.resize(size)


def pair(number: int, **changes: object) -> Pair:
    """A photograph against one with a grey left part that its mask covers: 7 of 28 columns."""
    mask = Image.new("L", SIZE)
    mask.paste(255, (0, 0, 7, 20))
    rejected = picture(number)
    rejected.paste("grey", (0, 0, 7, 20))
    fields = {"id": f"p{number}", "prompt": f"photo {number}", "chosen": picture(number), "rejected": rejected}
    return Pair(**(fields | {"mask": mask} | changes))


PAIRS = [pair(number) for number in range(24)]


@pytest.mark.parametrize("size", [(33, 41), (12, 9), (3, 5), (1, 1)])
def test_traces_see_nothing_inside_the_mask(size: tuple[int, int]) -> None:
    draw = np.random.default_rng(2)
    pixels = np.asarray(picture(1, size[::-1]), dtype=float)
    y, x = np.mgrid[: size[0], : size[1]]
    outside = (y - size[0] // 2) ** 2 + (x - size[1] // 2) ** 2 > min(size)
    others = np.where(outside[:, :, None], pixels, draw.integers(0, 256, pixels.shape))
    traces = image_traces(pixels, outside)
    np.testing.assert_array_equal(traces, image_traces(others, outside))
    assert traces.shape == (len(TRACES),) and np.isfinite(traces).all()


@pytest.mark.parametrize("level", [0, 255])
def test_traces_of_nothing_and_of_flat_images_are_finite(level: int) -> None:
    flat = np.full((32, 24, 3), float(level))
    assert not image_traces(flat, np.zeros((32, 24), bool)).any()
    assert np.isfinite(image_traces(flat, np.ones((32, 24), bool))).all()


def test_the_noise_level_is_the_deviation_of_noise() -> None:
    """Grey of independent channels of deviation 5 has 5 sqrt(.299^2 + .587^2 + .114^2) = 3.34; its floor is 0.29."""
    pixels = 128 + np.random.default_rng(0).normal(0, 5, (200, 160, 3))
    traces = dict(zip(TRACES, image_traces(pixels, np.ones((200, 160), bool)).tolist(), strict=True))
    assert np.exp(traces["noise_level"]) == pytest.approx(3.34 + 0.29, rel=0.03)
    # correlation of neighbours of white noise under (1, -2, 1): (-2 - 2) / (1 + 4 + 1)
    assert traces["correlation_x"] == pytest.approx(-2 / 3, abs=0.03)
    assert abs(traces["grid_edges"]) < 0.05 and abs(traces["grid_detail"]) < 0.1


def test_a_grid_of_eight_is_seen() -> None:
    draw = np.random.default_rng(1)
    blocks = np.kron(draw.normal(128, 4, (12, 10)), np.ones((8, 8)))
    pixels = np.repeat((blocks + draw.normal(0, 1, blocks.shape))[:, :, None], 3, axis=2)
    found = [
        dict(zip(TRACES, image_traces(one, np.ones(one.shape[:2], bool)).tolist(), strict=True))
        for one in (pixels, pixels[3:, 3:])
    ]
    assert found[0]["grid_edges"] > 0.5 > abs(found[1]["grid_edges"])  # elsewhere once cropped
    assert found[0]["any_grid_edges"] > 0.5 < found[1]["any_grid_edges"]


def test_the_difference_outside_is_counted() -> None:
    """Two of 24 pairs differ in one channel of one pixel by 9 and 30 levels: 39 / (20 x 21 x 3) / 24 in the mean."""
    changed = []
    for number, levels in ((3, 9), (5, -30)):
        pixels = np.array(PAIRS[number].rejected).astype(int)
        pixels[11, 20, 1] = 120 + levels
        chosen = np.array(PAIRS[number].chosen)
        chosen[11, 20, 1] = 120
        changed.append(pair(number, chosen=Image.fromarray(chosen), rejected=Image.fromarray(pixels.astype(np.uint8))))
    found = audit_pairs([*PAIRS[:3], changed[0], PAIRS[4], changed[1], *PAIRS[6:]]).outside
    assert (found.num_pairs, found.num_differing, found.largest, found.examples) == (24, 2, 30, ("p3", "p5"))
    assert found.mean == pytest.approx(39 / (20 * 21 * 3) / 24)


def test_pairs_that_have_no_outside_are_counted_apart() -> None:
    odd = [
        pair(24, mask=None),
        pair(25, mask=Image.new("L", SIZE, 255)),
        pair(26, rejected=picture(26, (27, 20))),
        pair(27, mask=Image.new("L", SIZE), rejected=picture(27)),
    ]
    found = audit_pairs([*PAIRS, *odd])
    outside = found.outside
    assert outside.num_pairs == 25 and outside.num_differing == 0  # an empty mask leaves everything outside
    assert (outside.num_without_mask, outside.num_all_masked, outside.num_empty_masks) == (1, 1, 1)
    assert outside.num_sizes_differ == 1 == found.parity.num_sizes_differ
    assert found.duplicates.num_equal_sides == 1 and found.leak is not None
    text = " ".join(found.warnings)
    assert "differ in size in 1 pairs" in text and "1 masks cover the whole image, 1 cover nothing" in text


def test_without_masks_parity_tells_of_a_resize_and_there_is_no_leak_test() -> None:
    pairs = [
        pair(number, mask=None, rejected=picture(number).filter(ImageFilter.GaussianBlur(0.8))) for number in range(24)
    ]
    found = audit_pairs(pairs)
    assert found.leak is None and "the whole image is damage" in found.no_leak
    assert found.parity.area == "whole" and found.parity.num_pairs == 24
    assert found.parity.differences["rolloff"].low > 0.5 and found.parity.differences["noise"].low > 0.2
    text = " ".join(found.warnings)
    assert "no leak test" in text and "rolloff of chosen and rejected differs over the whole image" in text


def test_parity_of_clean_pairs_is_zero() -> None:
    found = audit_pairs(PAIRS).parity
    assert found.area == "outside" and set(found.differences) == {"blocking", "rolloff", "noise"}
    assert all((one.low, one.mean, one.high) == (0, 0, 0) for one in found.differences.values())


def test_few_photographs_give_no_leak_test() -> None:
    found = audit_pairs(PAIRS[:19])
    assert found.leak is None and found.no_leak == "19 photographs to test, expected at least 20"
    twins = [pair(0, id=f"t{number}", prompt=f"{number}") for number in range(30)]
    assert audit_pairs(twins).no_leak == "1 photograph to test, expected at least 20"


def test_sizes_and_modes_of_files_leak() -> None:
    bigger = [pair(number, mask=None, chosen=picture(number, (29, 20))) for number in range(24)]
    leak = audit_pairs(bigger).file_leak
    assert leak is not None and leak.auc.mean == 1 and leak.cause == "files: the width tells"
    grey = [pair(number, rejected=one.rejected.convert("L")) for number, one in enumerate(PAIRS)]
    found = audit_pairs(grey)
    assert found.file_leak is not None and found.file_leak.cause == "files: the mode tells"
    assert found.parity.num_modes_differ == 24
    clean = audit_pairs(PAIRS).file_leak
    assert clean is not None and (clean.auc.low, clean.auc.high, clean.cause) == (0.5, 0.5, "")


def test_files_that_images_still_know_are_compared(tmp_path: Path) -> None:
    pairs = []
    for number, one in enumerate(PAIRS):
        one.chosen.save(tmp_path / f"{number}.png")
        one.chosen.save(tmp_path / f"{number}.jpg", quality=70)
        sides = [Image.open(tmp_path / f"{number}.{kind}") for kind in ("png", "jpg")]
        pairs.append(pair(number, mask=None, chosen=sides[0], rejected=sides[1]))
    found = audit_pairs(pairs)
    assert found.file_leak is not None and found.file_leak.auc.mean == 1
    assert found.file_leak.by_group["format"] == 1 and found.file_leak.by_group["width"] == 0.5
    assert found.parity.differences["bytes_per_pixel"].low > 0


def test_ties_have_no_side() -> None:
    ties = [pair(number, label=0.5, scores={"r": (1, 2)}) for number in range(24)]
    found = audit_pairs(ties)
    assert found.num_ties == 24 and found.leak is None and found.file_leak is None and not found.rewards


def test_rewards_are_compared_on_the_pairs_they_share() -> None:
    gaps = {"a": [1, 1, 1, 1, -1, 0], "b": [2, 3, -1, 4, -2, None]}
    pairs = []
    for number in range(6):
        scores = {name: (float(all_[number]), 0.0) for name, all_ in gaps.items() if all_[number] is not None}
        pairs.append(pair(number, scores=scores))
    found = audit_pairs(pairs)
    assert found.rewards["a"].mean == pytest.approx(4.5 / 6) and found.rewards["b"].mean == pytest.approx(0.6)
    (two,) = found.between
    assert (two.first, two.second, two.num_pairs, two.agreement) == ("a", "b", 5, 0.8)
    assert two.kappa == pytest.approx((0.8 - (0.8 * 0.6 + 0.2 * 0.4)) / (1 - 0.56))
    # of 10 couples of pairs, 4 differ in both gaps, all the same way; ties are those of a alone: 4 / sqrt(4 x 10)
    assert two.tau == pytest.approx(4 / 40**0.5)


def test_rewards_follow_a_label_below_a_half_and_are_warned_of() -> None:
    pairs = [pair(number, label=0.1, scores={"r": (1.0, 0.0)}) for number in range(24)]
    found = audit_pairs(pairs)
    assert found.rewards["r"].mean == 0 and "r prefers the rejected image in 100% of 24 pairs" in found.warnings


def test_kappa_of_constant_raters_is_none() -> None:
    assert cohen_kappa([1, 1], [1, 1]) is None and cohen_kappa([1, -1], [-1, 1]) == -1


def test_severity_is_area_and_damage_inside() -> None:
    """A quarter of the columns; 10 levels inside in every channel, whatever there is outside."""
    chosen = Image.new("RGB", SIZE, (50, 60, 70))
    rejected = Image.new("RGB", SIZE, (90, 90, 90))
    rejected.paste((60, 50, 80), (0, 0, 7, 20))
    found = audit_pairs([pair(1, chosen=chosen, rejected=rejected), pair(2, mask=None, rejected=picture(2))]).severity
    assert found.area.counts[5] == 1 == sum(found.area.counts) and found.area.high == 1
    assert found.damage.counts[1] == 1 == found.damage.counts[0] and found.damage.high / len(found.damage.counts) == 8


def test_duplicates_are_found_among_chosen_images() -> None:
    alike = picture(0).point(lambda level: min(level + 3, 255))
    pairs = [
        *PAIRS[:5],
        pair(30, chosen=picture(0)),
        pair(31, chosen=alike),
        pair(32, rejected=picture(2)),
        pair(33, chosen=Image.new("RGB", SIZE, "red")),
        pair(34, chosen=Image.new("RGB", SIZE, "blue")),
    ]
    found = audit_pairs(pairs).duplicates
    assert found.identical == (("p0", "p30"),) and found.num_identical == 2
    assert found.near == (("p0", "p30", "p31"),) and found.num_near == 3  # flat images are alike and mean nothing
    assert found.contradicting == ("p32",) and found.num_contradicting == 1


def test_captions_are_counted() -> None:
    prompts = [" \n", "word " * 61, "same", "same", "same", "twin", "twin"]
    pairs = [pair(number, prompt=prompt) for number, prompt in enumerate(prompts)]
    pairs[6] = pair(5, id="p6", prompt="twin")  # another damage of the same photograph
    found = audit_pairs(pairs).captions
    assert (found.num_empty, found.num_long, found.num_repeated, found.fit) == (1, 1, 3, None)
    assert found.most_repeated == (("same", 3),)


def fits(images: Sequence[Image.Image], prompts: Sequence[str]) -> list[float]:
    """1 where the prompt names the image's own mean, else less the farther."""
    return [1 - abs(round(np.asarray(i).mean(), 3) - float(p)) for i, p in zip(images, prompts, strict=True)]


def test_captions_that_do_not_fit_are_named() -> None:
    pairs = [pair(n, prompt=str(round(np.asarray(picture(n)).mean(), 3))) for n in range(24)]
    pairs[4] = pair(4, prompt="900")
    found = audit_pairs(pairs, fit=fits).captions.fit
    assert found is not None and (found.num_scored, found.num_misfits, found.misfits) == (24, 1, ("p4",))
    assert found.share_beaten == pytest.approx(23 / 24)


def test_captions_that_say_nothing_are_warned_of() -> None:
    found = audit_pairs(PAIRS, fit=lambda images, prompts: [0.0] * len(prompts))
    assert found.captions.fit is not None and found.captions.fit.share_beaten == 0.5
    assert found.captions.fit.num_misfits == 0
    assert any("little better than others" in warning for warning in found.warnings)
    assert audit_pairs([pair(n, prompt="a") for n in range(3)], fit=fits).captions.fit is None


@pytest.mark.parametrize("fit", [lambda images, prompts: [float("nan")] * len(prompts), lambda images, prompts: [1.0]])
def test_a_broken_score_of_fit_is_refused(fit: Callable[..., list[float]]) -> None:
    with pytest.raises(DiffalignError, match="finite scores"):
        audit_pairs(PAIRS, fit=fit)


def test_of_many_pairs_a_few_from_everywhere_are_looked_at() -> None:
    drawn = _spread(1003, 50, seed=1)
    assert len(drawn) == 50 and drawn == sorted(set(drawn))
    assert all(number * 20 <= one < number * 20 + 24 for number, one in enumerate(drawn))
    assert drawn != _spread(1003, 50, seed=2) and _spread(7, 7, seed=1) == list(range(7))
    found = audit_pairs(PAIRS, limit=5, seed=3)
    assert (found.num_pairs, found.num_audited) == (24, 5) and found == audit_pairs(PAIRS, limit=5, seed=3)


class Reads(Sequence[Pair]):
    """Counts how often each pair is read."""

    def __init__(self) -> None:
        self.reads: list[int] = []

    def __len__(self) -> int:
        return len(PAIRS)

    def __getitem__(self, index: int) -> Pair:
        self.reads.append(index)
        return PAIRS[index]


def test_each_pair_is_read_once() -> None:
    reads = Reads()
    audit_pairs(reads)
    assert reads.reads == list(range(24))


def test_rows_on_disk_are_audited_as_in_memory(tmp_path: Path) -> None:
    with PreferenceWriter(tmp_path / "pairs", form="pair") as writer:
        for one in PAIRS:
            writer.write(one)
    there = Preferences(tmp_path / "pairs")
    score: Callable[..., list[float]] = lambda images, prompts: [float(len(one)) for one in prompts]  # noqa: E731
    assert audit_pairs(there, fit=score) == audit_pairs(PAIRS, fit=score)
    with pytest.raises(DiffalignError, match="got a CandidateSet at row 0"):
        audit_pairs(there.as_candidates())


def test_what_cannot_be_audited_is_refused() -> None:
    with pytest.raises(DiffalignError, match="got none"):
        audit_pairs([])
    with pytest.raises(ValueError, match="limit of at least 1"):
        audit_pairs(PAIRS, limit=0)


def test_an_audit_goes_through_json_and_back() -> None:
    leaky = [pair(n, rejected=picture(n).filter(ImageFilter.BLUR), scores={"r": (2.0, 1.0)}) for n in range(24)]
    found = audit_pairs(leaky, fit=lambda images, prompts: [float(len(one)) for one in prompts])
    assert found.leak is not None and found.leak.likeness and found.captions.fit is not None
    assert Audit.from_dict(json.loads(json.dumps(found.to_dict(), allow_nan=False))) == found
    with pytest.raises(DiffalignError, match=r"outside\.num_pairs: Field required"):
        Audit.from_dict(found.to_dict() | {"outside": {}})


def test_what_is_printed_names_the_leak(capsys: pytest.CaptureFixture[str]) -> None:
    print_audit(audit_pairs([pair(n, rejected=picture(n).filter(ImageFilter.BLUR)) for n in range(24)]))
    out, err = capsys.readouterr()
    assert "24 of 24 pairs" in out and "AUC of pairs" in out
    assert "warning: pixels outside the mask differ in 24 of 24 pairs" in err and "smoothing: the rejected side" in err


def test_images_of_any_mode_are_audited() -> None:
    images = [picture(1), picture(1).convert("L"), picture(1).convert("RGBA"), picture(1).convert("P")]
    pairs = [pair(n, chosen=image, rejected=image) for n, image in enumerate(images)]
    assert audit_pairs(pairs).outside.num_differing == 0


NAMES = [module.name for module in pkgutil.iter_modules(diffalign.curate.audit.__path__)]


@pytest.mark.parametrize("name", NAMES)
def test_examples_of_the_audit(name: str) -> None:
    assert doctest.testmod(importlib.import_module(f"diffalign.curate.audit.{name}")).failed == 0
