"""Two models on the same prompts and seeds: numbers by hand, what is refused, what is counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from evaluate_helpers import write_run, write_table

from diffalign.core import DiffalignError
from diffalign.evaluate import MetricComparison, compare, compared_models, hacking_alarms, score_folder

Values = dict[tuple[str, int], float | None]

PROMPTS = ("cat", "dog", "hen", "fox")


def values(*seeds: tuple[float | None, ...]) -> Values:
    """Values of PROMPTS, a tuple of seeds for each."""
    return {
        (prompt, seed): value for prompt, row in zip(PROMPTS, seeds, strict=False) for seed, value in enumerate(row)
    }


A = values((5, 3), (4, 4), (1, 7), (6, 6))
B = values((3, 3), (1, 5), (1, 3), (2, 4))


def tables(tmp_path: Path, a: dict[str, Values], b: dict[str, Values], **options: Any) -> tuple[Path, Path]:
    return write_table(tmp_path / "a", a, **options), write_table(tmp_path / "b", b, **options)


def one(tmp_path: Path, a: Values, b: Values, **options: Any) -> MetricComparison:
    (row,) = compare(*tables(tmp_path, {"level": a}, {"level": b}, **options))
    return row


def test_by_hand(tmp_path: Path) -> None:
    """d_p = 1, 1, 2, 3: mean 7/4, se sqrt(11/12)/2, t_3 = 3.18245; all positive, so p = 2/2^4.

    w_p = 3/4, 1/2, 3/4, 1: mean 3/4. The outcomes within a prompt are not positively correlated, so 8 images count 8:
    1/2 + (1.95996 + 0.84162) / (2 sqrt 8).
    """
    row = one(tmp_path, A, B)
    assert (row.mean_a, row.mean_b) == (4.5, 2.75) and (row.num_prompts, row.num_seeds) == (4, 2)
    assert row.difference is not None and row.win_rate is not None
    assert row.difference.mean == 1.75 and row.difference.p_value == 0.125
    assert [row.difference.low, row.difference.high] == pytest.approx([0.22652, 3.27348], abs=1e-5)
    assert row.win_rate.mean == 0.75
    assert (row.win_rate.wins, row.win_rate.ties, row.win_rate.losses) == (5, 2, 1)
    assert row.smallest_win_rate == pytest.approx(0.99525, abs=1e-5)
    assert (row.metric, row.role, row.p_holm, row.no_worse) == ("level@1/rgb8", "undeclared", None, None)


def test_swapping_the_sides_turns_every_sign(tmp_path: Path) -> None:
    row, other = one(tmp_path / "x", A, B), one(tmp_path / "y", B, A)
    assert row.difference and other.difference and row.win_rate and other.win_rate
    assert other.difference.mean == -row.difference.mean and other.difference.low == pytest.approx(-row.difference.high)
    assert other.win_rate.mean == 1 - row.win_rate.mean and other.win_rate.losses == row.win_rate.wins
    assert other.mean_a == row.mean_b and other.difference.p_value == row.difference.p_value


def test_lower_may_be_better(tmp_path: Path) -> None:
    row = one(tmp_path, B, A, higher_is_better=False)
    assert row.difference and row.win_rate and (row.mean_a, row.mean_b) == (2.75, 4.5)
    assert (row.difference.mean, row.win_rate.mean) == (1.75, 0.75)


def test_a_model_against_itself(tmp_path: Path) -> None:
    row = one(tmp_path, A, A)
    assert row.difference and row.win_rate and row.difference.mean == 0 and row.difference.p_value == 1
    assert row.win_rate.mean == 0.5 and row.win_rate.ties == 8


def test_missing_scores_are_counted_and_leave_both_means(tmp_path: Path) -> None:
    """Of the pairs (3, 3) of cat, (7, 3) of hen and (1, 1) of hen, one side or both are missing."""
    row = one(tmp_path, A | {("cat", 1): None, ("hen", 0): None}, B | {("hen", 0): None, ("hen", 1): None})
    assert (row.num_missing_a, row.num_missing_b) == (2, 2) and (row.num_prompts, row.num_seeds) == (3, 5 / 3)
    assert row.difference and (row.mean_a, row.mean_b) == (5, 3) and row.difference.mean == 2


def test_one_prompt_is_no_comparison_and_no_error(tmp_path: Path) -> None:
    row = one(tmp_path, dict.fromkeys(A, None) | {("cat", 0): 5.0}, B)
    assert row.difference is None and row.win_rate is None and row.smallest_win_rate is None
    assert (row.num_prompts, row.num_missing_a, row.num_missing_b) == (1, 7, 0)


def test_the_same_prompt_under_two_ids_counts_once(tmp_path: Path) -> None:
    row = one(tmp_path, A, B, prompt="a photo")
    assert row.num_prompts == 1 and row.difference is None


def test_holm_covers_the_held_out_metrics_alone(tmp_path: Path) -> None:
    """p = 2/16 for three metrics; the two held-out ones are adjusted to 2 x 2/16, the smaller first."""
    metrics = dict.fromkeys(("one", "two", "three"), A), dict.fromkeys(("one", "two", "three"), B)
    write_table(tmp_path / "a", metrics[0], roles={"one": "held-out", "two": "held-out", "three": "held-out"})
    write_table(tmp_path / "b", metrics[1], roles={"one": "held-out", "three": "in-training"})
    rows = {row.name: row for row in compare(tmp_path / "a", tmp_path / "b")}
    assert [rows[name].role for name in rows] == ["held-out", "held-out", "in-training"]
    assert [rows[name].p_holm for name in rows] == [0.25, 0.25, None]


def test_holm_counts_every_held_out_metric_whatever_is_shown(tmp_path: Path) -> None:
    """p = 2/16 each; two metrics make it 4/16, also if the other is not shown, has no p value or another version."""
    roles = {"one": "held-out", "two": "held-out"}
    a, b = tables(tmp_path / "x", {"one": A, "two": A}, {"one": B, "two": B}, roles=roles)
    assert [row.p_holm for row in compare(a, b)] == [0.25, 0.25]
    assert [(row.name, row.p_holm) for row in compare(a, b, metrics=["two"])] == [("two", 0.25)]
    write_table(b, {"one": B, "two": dict.fromkeys(B, None) | {("cat", 0): 1.0}}, roles=roles)
    assert [row.p_holm for row in compare(a, b)] == [0.25, None]
    lines = (b / "scores.jsonl").read_text().replace("two@1", "two@2")
    (b / "scores.jsonl").write_text(lines)
    assert [row.p_holm for row in compare(a, b, metrics=["one"])] == [0.25]


def test_the_number_of_images_is_that_of_prompts_where_nothing_tells_how_alike_they_are(tmp_path: Path) -> None:
    """All ties, so seeds may be copies: 1/2 + 2.80158 / (2 sqrt 4), as with one seed."""
    row = one(tmp_path, A, A)
    assert row.smallest_win_rate == pytest.approx(0.5 + 2.80158 / 4, abs=1e-4)


def test_a_constant_difference_shows_nothing(tmp_path: Path) -> None:
    """All differ by 1/2, so the spread is unknown; one that differs by more makes an interval, of +-3.18245 / 8."""
    base = values((2.0, 3.0), (4.0, 5.0), (1.0, 7.0), (6.0, 6.0))
    higher: Values = {key: 0.5 + float(value or 0) for key, value in base.items()}
    (row,) = compare(*tables(tmp_path, {"level": higher}, {"level": base}), margins={"level": 1.0})
    assert row.difference and row.difference.method == "constant" and row.no_worse is False
    write_table(tmp_path / "a", {"level": higher | {("cat", 0): 3.5}})
    (row,) = compare(tmp_path / "a", tmp_path / "b", margins={"level": 1.0})
    assert row.difference and row.difference.method == "cluster_t" and row.no_worse is True


def test_no_worse_by_a_margin(tmp_path: Path) -> None:
    """The interval of B - A reaches down to -3.27."""
    folders = tables(tmp_path, {"level": B}, {"level": A})
    for margin, expected in ((3.28, True), (3.27, False)):
        assert compare(*folders, margins={"level": margin})[0].no_worse is expected


def test_alarms(tmp_path: Path) -> None:
    many: Values = {(f"p{n}", 0): float(n % 3) for n in range(20)}
    higher: Values = {key: 1 + float(value or 0) for key, value in many.items()}
    metrics = {"pick": higher, "judge": many}, {"pick": many, "judge": higher}
    folders = tables(tmp_path, *metrics, roles={"pick": "in-training", "judge": "held-out"})
    assert len(hacking_alarms(compare(*folders))) == 1 and hacking_alarms(compare(*folders[::-1])) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompt": "another"}, "prompt: 'a photo of cat' in A, 'another' in B"),
        ({"width": 7}, r"width: 6 in A, 7 in B \(in 8 of 8 images, the first of prompt 'cat', seed 0\)"),
        ({"height": None}, "height: 5 in A, unknown in B"),
        ({"num_steps": 50}, "num_steps: 10 in A, 50 in B"),
        ({"guidance_scale": 7.5}, "guidance_scale: 4.0 in A, 7.5 in B"),
        ({"sampler": "ddim"}, "sampler: 'dpm"),
        ({"negative_prompt": "blur"}, "negative_prompt: '' in A, 'blur' in B"),
        ({"dtype": "torch.bfloat16"}, "dtype: 'torch.float32' in A, 'torch.bfloat16' in B"),
        ({"sampler_hash": "0123"}, "sampler_hash: '' in A, '0123' in B"),
        ({"metric": "level@2/rgb8"}, "version of metric level: level@1/rgb8 in A, level@2/rgb8 in B"),
    ],
)
def test_what_differs_is_named_and_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    write_table(tmp_path / "a", {"level": A}), write_table(tmp_path / "b", {"level": B}, **change)
    with pytest.raises(DiffalignError, match=words):
        compare(tmp_path / "a", tmp_path / "b")


def test_all_differences_are_named_at_once_and_settings_can_be_ignored(tmp_path: Path) -> None:
    write_table(tmp_path / "a", {"level": A})
    write_table(tmp_path / "b", {"level": B}, num_steps=50, guidance_scale=1.0, model="tuned", adapter="lora")
    with pytest.raises(DiffalignError, match=r"(?s)num_steps.*guidance_scale"):
        compare(tmp_path / "a", tmp_path / "b")
    with pytest.raises(DiffalignError, match="guidance_scale"):
        compare(tmp_path / "a", tmp_path / "b", ignore=["num_steps"])
    assert compare(tmp_path / "a", tmp_path / "b", ignore=["num_steps", "guidance_scale"])[0].mean_a == 4.5


def test_other_prompts_or_seeds_are_refused(tmp_path: Path) -> None:
    write_table(tmp_path / "a", {"level": A})
    for change, words in (
        ({("owl", 0): 1.0}, "prompts: 1 in B alone, e.g. 'owl'"),
        ({("cat", 2): 1.0}, r"seeds, as \(prompt, seed\): 1 in B alone, e.g. \('cat', 2\)"),
    ):
        write_table(tmp_path / "b", {"level": B | change})  # type: ignore[dict-item]
        with pytest.raises(DiffalignError, match=words):
            compare(tmp_path / "a", tmp_path / "b")


def test_the_prompt_of_a_failed_image_must_agree_too(tmp_path: Path) -> None:
    write_table(tmp_path / "a", {"level": A})
    write_table(tmp_path / "b", {"level": B})
    lines = (tmp_path / "b" / "scores.jsonl").read_text().splitlines()
    lines[2] = lines[2].replace("a photo of dog", "a photo of a dog").replace('"ok"', '"not generated: not finite"')
    (tmp_path / "b" / "scores.jsonl").write_text("\n".join(lines))
    with pytest.raises(DiffalignError, match=r"prompt: 'a photo of dog' in A, 'a photo of a dog' in B \(in 1 of 8"):
        compare(tmp_path / "a", tmp_path / "b")


def test_a_version_that_nobody_knows_is_no_agreement(tmp_path: Path) -> None:
    folders = tables(tmp_path, {"mine": A}, {"mine": B}, metric="mine@unknown/own")
    with pytest.raises(DiffalignError, match="version of metric mine: unknown; give the function an attribute version"):
        compare(*folders)


def test_a_table_that_holds_two_of_the_same_is_refused(tmp_path: Path) -> None:
    a, b = tables(tmp_path, {"level": A}, {"level": B})
    lines = (a / "scores.jsonl").read_text().splitlines()
    for change, words in (
        ([lines[0].replace("level@1", "level@2"), *lines[1:]], "level has scores of level@1/rgb8, level@2/rgb8"),
        ([*lines, lines[0]], r"level has two scores of \(prompt id, seed\) \('cat', 0\)"),
    ):
        (a / "scores.jsonl").write_text("\n".join(change))
        with pytest.raises(DiffalignError, match=words):
            compare(a, b)


def test_settings_that_nobody_knows_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unknowns = dict.fromkeys(("sampler", "num_steps", "guidance_scale", "negative_prompt", "dtype", "sampler_hash"))
    compare(*tables(tmp_path, {"level": A}, {"level": B}, **unknowns), ignore=["dtype"])
    told = capsys.readouterr().err
    assert f"not compared: {', '.join(name for name in unknowns if name != 'dtype')}\n" in told
    compare(*tables(tmp_path, {"level": A}, {"level": B}))
    assert "unknown" not in capsys.readouterr().err


def test_the_record_of_what_was_compared(tmp_path: Path) -> None:
    a = write_table(tmp_path / "a", {"level": A}, num_steps=6, model="base", adapter="lora")
    b = write_table(tmp_path / "b", {"level": B}, num_steps=5, model="base", adapter="")
    found = compared_models(a, b, ignore=["num_steps", "guidance_scale"])
    assert found["a"] == {"folder": str(a), "model": "base", "adapter": "lora"} and found["b"]["adapter"] == ""
    assert found["ignored"] == ["num_steps (6 in A, 5 in B)"]


def test_metrics_that_only_one_side_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = tables(tmp_path, {"level": A, "extra": A}, {"level": B, "other": B})
    assert [row.name for row in compare(a, b)] == ["level"]
    told = capsys.readouterr().err
    assert "only A has extra" in told and "only B has other" in told
    with pytest.raises(DiffalignError, match="unknown metric that both have 'extra'"):
        compare(a, b, metrics=["extra"])
    with pytest.raises(DiffalignError, match="no metric in common: A has level; B has other"):
        compare(*tables(tmp_path, {"level": A}, {"other": B}))


def test_wrong_arguments(tmp_path: Path) -> None:
    folders = tables(tmp_path, {"level": A}, {"level": B})
    for options, words in (
        ({"ignore": ["num_step"]}, "nearest: num_steps"),
        ({"margins": {"levle": 1.0}}, "nearest: level"),
        ({"margins": {"level": -1.0}}, "above 0"),
    ):
        with pytest.raises(DiffalignError, match=words):
            compare(*folders, **options)  # type: ignore[arg-type]
    with pytest.raises(DiffalignError, match="no better direction"):
        compare(*tables(tmp_path, {"level": A}, {"level": B}, higher_is_better=None), margins={"level": 1.0})


def test_a_failed_generation_has_no_settings_to_compare(tmp_path: Path) -> None:
    """Its size is unknown, which is no difference of resolution."""
    levels = {(prompt, 0): 10 * n for n, prompt in enumerate(PROMPTS, start=1)}
    score_folder(write_run(tmp_path / "a", levels), ["luminance"])
    write_run(tmp_path / "b", levels | {("dog", 0): None})  # type: ignore[operator]
    lines = (tmp_path / "b" / "manifest.jsonl").read_text().splitlines()
    lines[1] = lines[1].replace('"width": 6, "height": 5', '"width": null, "height": null')
    (tmp_path / "b" / "manifest.jsonl").write_text("\n".join(lines))
    score_folder(tmp_path / "b", ["luminance"])
    (row,) = compare(tmp_path / "a", tmp_path / "b")
    assert (row.num_prompts, row.num_missing_a, row.num_missing_b) == (3, 0, 1)
