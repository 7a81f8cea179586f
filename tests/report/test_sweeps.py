"""A sweep's page and figure, from its results and its runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from report_helpers import COLOURS, HOSTILE, estimate, make_folder

from diffalign.report import draw_sweep, sweep_page

STRENGTHS = (0.0, 0.5, 2.0)


def results(**changes: Any) -> dict[str, Any]:
    """Three strengths of two metrics and diversity; 0.5 was chosen."""
    names = [f"scale {each:g}" for each in STRENGTHS]
    found: dict[str, Any] = {
        "axis": "scale",
        "strengths": list(STRENGTHS),
        "folders": [f"scale-{each:g}" for each in STRENGTHS],
        "guide": {"name": "cpgd", "positive": "aa"},
        "settings": {"model": "tiny-sd"},
        "rule": f"the highest mean {HOSTILE} on 3 validation prompts; of equal ones the weaker",
        "chosen_by": HOSTILE,
        "chosen": 0.5,
        "weakest": 0.0,
        "validation": [
            {"strength": each, "quality": 10 + each, "diversity": None, "in_choice": each < 2}
            | {"num_images": 40, "num_failed": 35 if each == 2 else 0}
            for each in STRENGTHS
        ],
        "left_out": [2.0],
        "prompts": {"validation": ["x", "y", "z"], "report": ["u", "v"]},
        "models": {
            name: {
                HOSTILE: estimate(3 + at, 0.2),
                "judge": estimate(1 - at, 0.5),
                "diversity": estimate(0.3 - at / 20, 0.1),
            }
            | {"num_images": 4}
            for at, name in enumerate(names)
        },
        "differences": [{"model": names[1], "baseline": names[0], "metric": "judge", **estimate(-1, 0.5)}],
        "roles": {HOSTILE: "in-training", "judge": "held-out", "diversity": "in-training"},
        "higher_is_better": {HOSTILE: True, "judge": None, "diversity": True},
        "notes": ["Only 3 prompts choose."],
        "alarms": ["held-out judge fell"],
        "versions": {"torch": "2.13.0"},
    }
    return found | changes


def test_a_page_says_what_was_chosen_and_shows_every_strength(tmp_path: Path) -> None:
    for at, each in enumerate(STRENGTHS):
        make_folder(tmp_path / f"scale-{each:g}", {"x": "an x", "u": HOSTILE}, colour=COLOURS[at])
    page = str(sweep_page(results(), tmp_path).html())
    text = " ".join(re.sub(r"<[^>]+>", " ", page).split())
    assert "Chosen: scale 0.5." in text and "held-out judge fell" in text and "Only 3 prompts choose." in text
    assert 'data-values="0|0.5|2"' in page and page.count("<figcaption>") >= 3
    rows = re.findall(r'<th scope="row">(scale [\d.]+)</th><td class="number">([\d.]+)</td>.*?verdict">(\w+)', page)
    assert rows == [("scale 0", "10", "yes"), ("scale 0.5", "10.5", "chosen"), ("scale 2", "12", "no")]
    assert re.findall(r">(\d+) of 40<", page) == ["0", "0", "35"]
    assert page.count("scale 2, left out") == 1 and "scale 0, left out" not in page
    summaries = re.findall(r'aria-label="([^"]* against diversity\.[^"]*)"', page)
    assert len(summaries) == 2 and "0.5: diversity 0.25, judge 0" in summaries[1]
    assert "src=x onerror" not in page.replace("&lt;img src=x onerror", "")


def test_without_diversity_or_a_guide_the_page_is_shorter(tmp_path: Path) -> None:
    for each in STRENGTHS:
        make_folder(tmp_path / f"scale-{each:g}", {"x": "an x"}, colour=COLOURS[0])
    models = {name: {"judge": measured["judge"]} for name, measured in results()["models"].items()}
    page = str(sweep_page(results(guide=None, models=models, differences=[]), tmp_path).html())
    assert "Quality against diversity" not in page and "text guidance on tiny-sd" in page


def test_the_figure_has_a_panel_for_each_metric(tmp_path: Path) -> None:
    root = ElementTree.parse(draw_sweep(results(), tmp_path / "sweep.svg")).getroot()
    words = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"judge", "diversity", HOSTILE} <= set(words)
    assert words.count("scale; dashed: chosen; cross: left out") == 3 and "in-training, more is better" in words
    first = (tmp_path / "sweep.svg").read_bytes()
    assert draw_sweep(results(), tmp_path / "again.svg").read_bytes() == first
    wide = {f"metric {number}": estimate(number, 0.1) for number in range(5)}
    many = results(
        models=dict.fromkeys(results()["models"], wide),
        roles=dict.fromkeys(wide, "held-out"),
        higher_is_better=dict.fromkeys(wide, False),
    )
    root = ElementTree.parse(draw_sweep(many, tmp_path / "many.svg")).getroot()
    assert float(root.attrib["height"].removesuffix("pt")) > 2 * 72 * 2.5
