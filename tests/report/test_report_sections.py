"""What each section says, and what it refuses."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from report_helpers import COLOURS, HOSTILE, estimate, make_folder, make_pair, make_results, plain, write_metrics

from diffalign.core import DiffalignError
from diffalign.data import Preferences, PreferenceWriter
from diffalign.report import (
    alarms,
    curves,
    difference_figure,
    headline,
    pair_gallery,
    provenance,
    results_table,
    sample_grid,
    scatter,
    strength_slider,
)
from diffalign.report.runs import _smooth
from diffalign.types import CandidateSet


class _Text(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.text, self.tags = "", []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += f" {data}"


def read(body: str) -> _Text:
    parser = _Text()
    parser.feed(body)
    parser.text = " ".join(parser.text.split())
    return parser


def frames(body: str) -> list[str]:
    return [attributes["alt"] for tag, attributes in read(body).tags if tag == "img"]


def test_a_gallery_spreads_over_all_rows_and_counts_the_rest():
    found = read(pair_gallery([make_pair(number) for number in range(11)], limit=3).body)
    assert "3 of 11 rows, spread evenly over all; 8 left out." in found.text
    assert re.findall(r"row-\d+", found.text) == ["row-0", "row-5", "row-10"]


def test_a_card_has_both_images_the_outline_and_what_is_known():
    body = pair_gallery([make_pair(4, label=0.8)]).body
    assert frames(body) == ["chosen: prompt 4", "rejected: prompt 4"]
    assert body.count('class="outline"') == 2 and "data-outlines" in body
    for word in ("clip@1", "0.75", "0.25", "CC0-1.0", "blur", '{"radius": 3}', "0.8 (1: chosen", "10 x 7 pixels"):
        assert word in read(body).text


def test_without_masks_there_is_nothing_to_hide():
    body = pair_gallery([make_pair(mask=None)]).body
    assert "outline" not in body and "data-flip-all" in body


def test_candidates_come_one_after_another():
    images = tuple(plain(colour) for colour in COLOURS[:3])
    row = CandidateSet(id="a", prompt="a set", images=images, scores={"clip@1": (0.1, 0.2, 0.3)})
    body = pair_gallery([row]).body
    assert frames(body) == [f"candidate {number} of 3: a set" for number in (1, 2, 3)]
    assert len(re.findall("data-frame hidden", body)) == 2


def test_a_row_that_cannot_be_read_is_shown_as_its_error(tmp_path):
    with PreferenceWriter(tmp_path, form="pair") as writer:
        writer.write(make_pair(0))
        writer.write(make_pair(1, chosen=plain("red", (40, 30)), mask=None))

    class Broken(list):
        def __getitem__(self, index):
            if index == 1:
                raise DiffalignError("row 'row-1': truncated")
            return Preferences(tmp_path)[0]

    found = read(pair_gallery(Broken([0, 1])).body)
    assert "row 'row-1': truncated" in found.text and "prompt 0" in found.text


def test_no_rows_make_an_empty_gallery():
    assert "0 rows." in read(pair_gallery([]).body).text
    with pytest.raises(ValueError, match="limit of at least 1, got 0"):
        pair_gallery([], limit=0)


def test_a_grid_pairs_models_by_prompt_and_seed(tmp_path):
    """The first seed of every prompt comes first; b lacks prompt z, so it is not shown."""
    a = make_folder(tmp_path / "a", {"x": "an x", "y": "a y", "z": "a z"}, colour="#c03020", seeds=(0, 1))
    b = make_folder(tmp_path / "b", {"y": "a y", "x": "an x"}, colour="#2060c0", seeds=(0, 1), failed=("y",))
    body = sample_grid({"base": a, "dpo": b}, limit=3).body
    found = read(body)
    assert frames(body) == ["base: an x", "dpo: an x", "base: a y", "base: an x", "dpo: an x"]
    assert "3 of 4 prompts and seeds; 1 left out." in found.text and "not finite" in found.text
    assert re.findall(r"seed \d", found.text) == ["seed 0", "seed 0", "seed 1"]


@pytest.mark.parametrize(
    ("prompts", "message"),
    [({"x": "another"}, "prompt id 'x' stands for different prompts"), ({"w": "a w"}, "share no prompt id and seed")],
)
def test_a_grid_refuses_what_is_not_the_same(tmp_path, prompts, message):
    a = make_folder(tmp_path / "a", {"x": "an x"}, colour="#c03020")
    b = make_folder(tmp_path / "b", prompts, colour="#2060c0")
    with pytest.raises(DiffalignError, match=message):
        sample_grid({"base": a, "dpo": b})


@pytest.mark.parametrize("file", ["../secret.png", "/etc/secret.png", ""])
def test_a_manifest_cannot_name_files_elsewhere(tmp_path, file):
    folder = make_folder(tmp_path / "a", {"x": "an x"}, colour="#c03020")
    manifest = folder / "manifest.jsonl"
    manifest.write_text(manifest.read_text().replace("images/x-0.png", file))
    with pytest.raises(DiffalignError, match="expected a file inside the folder"):
        sample_grid({"base": folder})


def test_a_manifest_lacking_a_field_is_refused(tmp_path):
    (tmp_path / "manifest.jsonl").write_text('{"prompt_id": "x", "prompt": "an x", "seed": "0"}\n')
    with pytest.raises(DiffalignError, match="row 1: expected seed of type int, got '0'"):
        sample_grid({"base": tmp_path})


def slider(tmp_path, strengths):
    folders = [
        (strength, make_folder(tmp_path / str(number), {"x": "an x"}, colour=COLOURS[number]))
        for number, strength in enumerate(strengths)
    ]
    return strength_slider(folders, [{"kid": estimate(strength**2, 0.1), "num_images": 3} for strength in strengths])


def test_the_slider_goes_by_strength_and_marks_where_it_is(tmp_path):
    """Strengths 0, 1, 3: the marks lie on the axis at the same proportions."""
    body = slider(tmp_path, (1.0, 0.0, 3.0)).body
    assert frames(body) == ["an x, strength 0", "an x, strength 1", "an x, strength 3"]
    (attributes,) = [attributes for tag, attributes in read(body).tags if "data-positions" in attributes]
    left, middle, right = (float(value) for value in attributes["data-positions"].split("|"))
    assert 0 < left < right < 100 and (middle - left) / (right - left) == pytest.approx(1 / 3, abs=1e-3)


def test_the_slider_refuses_too_little(tmp_path):
    with pytest.raises(ValueError, match="at least two strengths, each once"):
        strength_slider([(1.0, tmp_path), (1.0, tmp_path)], [{}, {}])
    with pytest.raises(ValueError, match="results for each of 2 strengths, got 1"):
        strength_slider([(1.0, tmp_path), (2.0, tmp_path)], [{}])


def test_the_headline_has_its_sentences_and_numbers():
    row = {"model": "dpo", "baseline": "base", "metric": "kid", **estimate(-0.03, 0.01)}
    text = read(headline(["It is better."], [difference_figure(row)]).body).text
    assert text == "It is better. -0.03 kid, dpo minus base 95 % interval -0.04 to -0.02"


def test_the_table_has_every_mean_its_interval_and_its_role():
    text = read(results_table(make_results()).body).text
    assert "kid held-out lower is better realism in-training higher is better detail images" in text
    assert "stage2 0.05 0.045 to 0.055 0.03 0.02 to 0.04 2100 2040 to 2160 1,234" in text
    assert "Everything took 98 seconds." in text


def test_differences_are_judged_by_their_interval_and_direction():
    """KID falls by 0.03 +- 0.01: better. By 0.01 +- 0.02: not told apart. Detail has no direction: higher."""
    text = read(results_table(make_results()).body).text
    assert "kid stage2 against base -0.03 -0.04 to -0.02 better" in text
    assert "dpo against base -0.01 -0.03 to +0.01 not told apart" in text
    assert "detail stage2 against base +600 +520 to +680 higher" in text
    assert "realism stage2 against base 70.0 % 60.0 % to 80.0 % wins" in text


def test_the_bar_of_a_difference_keeps_its_proportions():
    """The furthest end, -0.04, lies 48 of 50 from the middle; the mean of -0.03 three quarters of that."""
    body = results_table(make_results()).body
    arm, mean = re.search(r'class="arm" x1="([\d.]+)".*?class="mean" x1="([\d.]+)"', body).groups()
    assert float(arm) == pytest.approx(2) and float(mean) == pytest.approx(50 - 36)


@pytest.mark.parametrize("results", [{}, {"models": {}}, {"models": {"base": {"kid": {"mean": 1.0, "low": 0.5}}}}])
def test_incomplete_results_are_refused(results):
    with pytest.raises(DiffalignError, match="expected"):
        results_table(results)


def test_the_scatter_names_every_model():
    body = scatter(make_results()).body
    assert all(f">{name}</text>" in body for name in ("base", "dpo", "stage2"))
    with pytest.raises(DiffalignError, match="unknown metric 'realims'"):
        scatter(make_results(), y="realims")


def test_plots_take_their_colours_from_the_page():
    body = scatter(make_results()).body
    assert "var(--series-2)" in body and "<style" not in body
    assert not re.search(r"#[0-9a-f]{6}", re.sub(r'"#[pm][0-9a-f]+"|url\([^)]*\)', "", body).replace("#000000", ""))


def test_curves_have_a_panel_for_what_was_logged(tmp_path):
    runs = {"one": write_metrics(tmp_path / "1.jsonl"), "two": write_metrics(tmp_path / "2.jsonl", alarm_at=30)}
    found = read(curves(runs).body)
    summaries = [attributes["aria-label"] for tag, attributes in found.tags if attributes.get("role") == "img"]
    assert [summary.split()[0] for summary in summaries] == ["loss", "margin"]
    assert "one" in found.text and "chosen excess" not in found.text
    with pytest.raises(DiffalignError, match="none of drift stands in"):
        curves(runs, ["drift"])


def test_a_cut_last_line_of_a_running_run_is_left_out(tmp_path):
    path = write_metrics(tmp_path / "1.jsonl")
    path.write_text(path.read_text() + '{"step": 51, "lo')
    assert "(50 steps)" in read(alarms({"one": path}).body).text


def test_smoothing_keeps_a_constant_and_calms_noise():
    assert _smooth(np.full(7, 3.0)).tolist() == pytest.approx([3] * 7)
    assert abs(_smooth(np.tile([1.0, -1.0], 100))).max() < 0.01


def test_alarms_are_named_with_their_step(tmp_path):
    quiet, loud = write_metrics(tmp_path / "1.jsonl"), write_metrics(tmp_path / "2.jsonl", alarm_at=30)
    assert "two 30 saturation Nearly all pairs were learned" in read(alarms({"one": quiet, "two": loud}).body).text
    assert read(alarms({"one": quiet}).body).text == "No alarm was raised. Watched: one (50 steps)."


def test_provenance_shows_settings_and_versions():
    text = read(provenance("beta: 2000\n", {"torch": "2.13.0", "peft": ""}).body).text
    assert text == "Configuration beta: 2000 Versions torch 2.13.0 peft not installed"


def test_nothing_foreign_becomes_markup(tmp_path):
    results = make_results()
    results["models"][HOSTILE] = results["models"]["base"]
    results["differences"][0] |= {"model": HOSTILE}
    folder = make_folder(tmp_path / "a", {"x": HOSTILE}, colour="#c03020")
    metrics = {HOSTILE: write_metrics(tmp_path / "1.jsonl", alarm_at=3)}
    sections = [
        headline([HOSTILE], [difference_figure(results["differences"][0])]),
        pair_gallery([make_pair(prompt=HOSTILE, id=HOSTILE, scores={HOSTILE: (1.0, 2.0)})]),
        sample_grid({HOSTILE: folder}),
        strength_slider([(0.0, folder), (1.0, folder)], [{HOSTILE: estimate(1, 0.5)}] * 2),
        results_table(results),
        scatter(results),
        curves(metrics),
        alarms(metrics),
        provenance(HOSTILE, {HOSTILE: HOSTILE}),
    ]
    for section in sections:
        found = read(section.body)
        assert "script" not in [tag for tag, _ in found.tags]
        assert not [
            attributes for _, attributes in found.tags if "onerror" in attributes or attributes.get("src") == "x"
        ]
