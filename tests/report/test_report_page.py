"""The page as a file: whole, self-contained, and allowed to run one script alone."""

from __future__ import annotations

import base64
import doctest
import hashlib
import importlib
import pkgutil
import re

import pytest
from markupsafe import Markup
from report_helpers import HOSTILE, make_pair, make_results

import diffalign.report
from diffalign.core import DiffalignError
from diffalign.report import Page, Section, headline, pair_gallery, scatter


def written(tmp_path, page: Page) -> str:
    page.write(tmp_path / "report.html")
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def full_page() -> Page:
    page = Page("A title", "A subtitle")
    page.add(headline(["It is better."], []))
    page.add(pair_gallery([make_pair(number) for number in range(3)]))
    page.add(scatter(make_results()))
    page.add(scatter(make_results(), y="kid", title="Distance against texture detail"))
    return page


def test_the_page_names_nothing_outside_itself(tmp_path):
    text = written(tmp_path, full_page())
    addresses = set(re.findall(r"https?://[^\"' )]+", text))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}  # names, not addresses
    sources = re.findall(r'(?:src|href)="([^"]{0,40})', text)
    assert sources and all(source.startswith(("data:", "#")) for source in sources)


def test_only_the_page_s_own_script_may_run(tmp_path):
    text = written(tmp_path, full_page())
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in policy and policy.startswith("default-src 'none';")
    assert "unsafe-inline" not in policy.split("script-src")[1]


def test_headings_are_in_order_and_contents_lead_to_them(tmp_path):
    page = full_page()
    page.add(Section("Notes", Markup("<p>none</p>")))
    text = written(tmp_path, page)
    assert re.findall(r"<h(\d)", text) == ["1", "2", "2", "2", "2"]
    linked = re.findall(r'<a href="#(section-\d)">([^<]*)', text)
    titles = ["Preference pairs", "Realism against texture detail", "Distance against texture detail", "Notes"]
    assert [title for _, title in linked] == titles
    assert all(f'<section id="{target}"' in text for target, _ in linked)


def test_ids_are_unique(tmp_path):
    ids = re.findall(r'\bid="([^"]*)"', written(tmp_path, full_page()))
    assert len(ids) == len(set(ids)) > 5


def test_a_title_is_text(tmp_path):
    assert "<img src=x" not in written(tmp_path, Page(HOSTILE, HOSTILE))


def test_the_same_input_gives_the_same_bytes(tmp_path):
    assert written(tmp_path, full_page()) == written(tmp_path, full_page())


def test_a_place_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DiffalignError, match="cannot make the folder"):
        Page("A title").write(tmp_path / "file" / "report.html")


@pytest.mark.parametrize("name", [module.name for module in pkgutil.iter_modules(diffalign.report.__path__)])
def test_examples(name):
    assert doctest.testmod(importlib.import_module(f"diffalign.report.{name}")).failed == 0
