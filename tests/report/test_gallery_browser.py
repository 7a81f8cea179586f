"""The gallery and a curation's page in Chromium: filters, order, marks and keys."""

from __future__ import annotations

import json

import pytest
from curation_helpers import make_audit, make_funnel
from report_helpers import CHROMIUM, COLOURS, CONTRASTS, HOSTILE, make_pair, plain

from diffalign.curate import read_marks
from diffalign.report import Page, audit_section, funnel_section, pair_gallery, rejected_section
from diffalign.types import Provenance

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

QUOTED = 'it\'s "__proto__" & <img src=x onerror=alert(1)>'
# method, gaps of clip and pickscore, stage; the gaps of clip reach from -1 to 4
ROWS = [
    ("blur", (4.0, -2.0), None),
    ("jpeg", (1.0, 3.0), None),
    (HOSTILE, (0.5, 1.0), None),
    ("blur", (None, 0.5), None),
    ("jpeg", (-1.0, 2.0), "gap"),
    ("blur", (0.25, 0.25), "keep"),
    ("jpeg", (0.75, -1.0), "keep"),
]
NO_STORAGE = "Object.defineProperty(window, 'localStorage', { get() { throw new DOMException('refused') } })"


def gallery():
    rows, fates = [], []
    for number, (method, gaps, stage) in enumerate(ROWS):
        names = ("clip@1", "pickscore@2")
        scores = {name: (20 + gap, 20.0) for name, gap in zip(names, gaps, strict=True) if gap is not None}
        changes = {"id": QUOTED, "prompt": HOSTILE} if number == 2 else {}
        rows.append(make_pair(number, scores=scores, provenance=Provenance(method=method), **changes))
        fates.append({"stage": stage, "reason": f"dropped at {stage}", "detail": HOSTILE} if stage else None)
    return pair_gallery(rows, fates=fates)


@pytest.fixture(scope="module")
def curation(tmp_path_factory):
    """The page of a curation."""
    page = Page("A curation", HOSTILE)
    page.add(funnel_section(make_funnel()))
    page.add(audit_section(make_audit(warnings=[HOSTILE])))
    page.add(gallery())
    row = {"stage": "read", "reason": "corrupt", "name": "m" * 150, "detail": HOSTILE}
    page.add(rejected_section([row]))
    page.write(tmp_path_factory.mktemp("curation") / "page.html")
    return tmp_path_factory.getbasetemp() / "curation0" / "page.html"


@pytest.fixture
def open_curation(open_page, curation):
    """Opens the page of the curation; it moves at once."""
    return lambda **options: open_page(curation, **{"reduced_motion": "reduce", **options})


def places(page) -> list[int]:
    """Numbers of the cards that are seen, in their order."""
    ids = page.locator(".card").evaluate_all("all => all.filter(e => e.checkVisibility()).map(e => e.dataset.id)")
    return [2 if each == QUOTED else int(each.removeprefix("row-")) for each in ids]


def count(page) -> str:
    return page.locator("[data-count]").inner_text()


def choose(page, name: str) -> None:
    """A chip of the filters, by keyboard."""
    page.get_by_role("checkbox", name=name, exact=True).focus()
    page.keyboard.press("Space")


def test_filters_hide_by_stage_and_method_and_count(open_curation):
    page = open_curation()
    assert places(page) == list(range(7)) and count(page) == "7 of 7 shown"
    choose(page, "kept 4")
    assert places(page) == [0, 1, 2, 3] and count(page) == "4 of 7 shown"
    choose(page, "keep 2")  # either of them
    assert places(page) == [0, 1, 2, 3, 5, 6]
    choose(page, "blur 3")  # and this
    assert places(page) == [0, 3, 5] and count(page) == "3 of 7 shown"
    page.get_by_role("button", name="Clear filters").press("Enter")
    assert places(page) == list(range(7)) and not page.locator("[data-clear]").is_visible()


def test_what_nothing_fits_is_said(open_curation):
    page = open_curation()
    choose(page, "gap 1")
    choose(page, "blur 3")
    assert places(page) == [] and page.get_by_text("No row fits these filters.").is_visible()


def test_the_range_of_the_gap_goes_by_the_chosen_reward(open_curation):
    """Of 0 to 100 over -1 to 4, 40 is a gap of 1: the rows of 1 and 4 stay. Row 3 has no gap of clip."""
    page = open_curation()
    slider = page.get_by_role("slider", name="Smallest gap shown")
    slider.focus()
    for _ in range(4):
        page.keyboard.press("PageUp")
    assert (slider.input_value(), slider.get_attribute("aria-valuetext")) == ("40", "+1")
    assert places(page) == [0, 1] and page.locator("[data-ends]").inner_text() == "+1 to +4"
    largest = page.get_by_role("slider", name="Largest gap shown")
    largest.focus()
    page.keyboard.press("PageDown")
    assert places(page) == [1]
    page.get_by_role("combobox", name="Reward of the gap").select_option("pickscore")
    assert places(page) == list(range(7)) and slider.input_value() == "0"
    assert page.locator("[data-gap-shown]").first.inner_text() == "gap -2"
    slider.focus()
    page.keyboard.press("End")  # one thumb pushes the other
    assert (slider.input_value(), largest.input_value(), places(page)) == ("100", "100", [1])


def test_the_order_is_by_gap_and_back(open_curation):
    page = open_curation()
    order = page.get_by_role("combobox", name="Order")
    order.select_option("largest gap first")
    assert places(page) == [0, 1, 6, 2, 5, 4, 3]  # without a gap last
    order.select_option("smallest gap first")
    assert places(page) == [4, 5, 2, 6, 1, 0, 3]
    order.select_option("as stored")
    assert places(page) == list(range(7))


def test_keys_go_from_card_to_card_and_mark_the_one_in_focus(open_curation):
    page = open_curation()
    page.keyboard.press("a")  # none is in focus
    assert page.locator("[data-export]").is_disabled()
    for key in "jja":
        page.keyboard.press(key)
    page.keyboard.press("j")
    page.keyboard.press("R")
    assert page.locator(".card").evaluate_all("all => all.map(e => e.dataset.mark)")[:4] == ["", "accept", "reject", ""]
    assert page.get_by_role("status").inner_text() == "7 of 7 shown 1 accepted, 1 rejected"
    page.keyboard.press("r")  # takes it back
    page.keyboard.press("k")
    assert page.locator("[data-marks]").inner_text() == "1 accepted, 0 rejected"
    card = page.locator(".card:has(:focus)")
    assert card.get_attribute("data-id") == "row-1"
    box, bar = card.bounding_box(), page.locator(".status").bounding_box()
    assert bar["y"] + bar["height"] <= box["y"] and box["y"] + box["height"] <= 900  # the whole card is seen


def test_a_card_that_its_mark_hides_hands_the_focus_on(open_curation):
    page = open_curation()
    choose(page, "unmarked")
    page.locator(".card .stage").nth(5).focus()
    page.keyboard.press("a")
    assert places(page) == [0, 1, 2, 3, 4, 6]
    page.keyboard.press("a")
    assert places(page) == [0, 1, 2, 3, 4] and count(page) == "5 of 7 shown"
    assert page.evaluate("document.activeElement.closest('.card').dataset.id") == "row-4"


def test_marks_are_exported_as_curation_reads_them(open_curation, tmp_path):
    page = open_curation(accept_downloads=True)
    page.get_by_role("group", name="Mark of row-1").get_by_role("button", name="Accept").click()
    page.locator(".card [data-set=reject]").nth(2).press("Enter")
    page.locator(".card [data-set=reject]").nth(6).press("Space")
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Export 3 marks").press("Enter")
    assert waiting.value.suggested_filename == "marks.json"
    waiting.value.save_as(tmp_path / "marks.json")
    assert json.loads((tmp_path / "marks.json").read_text()) == {"accept": ["row-1"], "reject": [QUOTED, "row-6"]}
    marks = read_marks(tmp_path / "marks.json")
    assert (marks.accept, marks.reject) == (("row-1",), (QUOTED, "row-6"))


def test_marks_outlive_a_reload(open_curation):
    page = open_curation()
    page.locator(".card [data-set=accept]").nth(2).click()
    page.reload()
    assert page.locator("[data-marks]").inner_text() == "1 accepted, 0 rejected"
    assert page.locator(".card [data-set=accept]").nth(2).get_attribute("aria-pressed") == "true"
    assert "This browser keeps the marks" in page.locator(".hint").inner_text()


def test_without_storage_marks_are_kept_by_the_page_alone(open_curation):
    page = open_curation(script=NO_STORAGE)
    page.locator(".card [data-set=accept]").first.click()
    assert page.locator("[data-marks]").inner_text() == "1 accepted, 0 rejected"
    assert "export them before the page is closed" in page.locator(".hint").inner_text()


@pytest.mark.parametrize(
    ("stored", "marks"),
    [
        ([["row-0", "accept"], ["row-1", "evil"], ["row-3", None]], ["accept", "", "", ""]),
        ({"row-0": "accept"}, [""] * 4),
        (None, [""] * 4),
    ],
)
def test_what_others_stored_is_no_mark(open_curation, stored, marks):
    text = json.dumps(json.dumps(stored))
    page = open_curation(
        script=f"localStorage.setItem(`diffalign marks ${{location.pathname}} Preference pairs`, {text})"
    )
    assert page.locator(".card").evaluate_all("all => all.map(e => e.dataset.mark)")[:4] == marks
    assert places(page) == list(range(7))


def test_a_resting_mouse_shows_the_other_image_and_a_press_turns_it(open_curation):
    page = open_curation()
    stage = page.locator(".card .stage").first
    shown = lambda: stage.locator("img:visible").get_attribute("alt")  # noqa: E731
    assert shown() == "chosen: prompt 0"
    stage.hover()
    assert shown() == "rejected: prompt 0"
    page.mouse.move(0, 0)
    assert shown() == "chosen: prompt 0"
    stage.click()
    assert shown() == "chosen: prompt 0"  # the press turned what the mouse showed
    page.mouse.move(0, 0)
    assert shown() == "rejected: prompt 0"


def test_side_by_side_shows_both_images_beside_each_other(open_curation):
    page = open_curation()
    page.keyboard.press("s")
    chosen, rejected = (page.get_by_alt_text(f"{side}: prompt 0").bounding_box() for side in ("chosen", "rejected"))
    assert chosen["y"] == rejected["y"] and rejected["x"] >= chosen["x"] + chosen["width"]
    assert page.get_by_role("button", name="Side by side").get_attribute("aria-pressed") == "true"
    page.locator(".card .stage").first.hover()
    assert page.get_by_alt_text("chosen: prompt 0").is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_curation_is_readable(open_curation, scheme):
    page = open_curation(color_scheme=scheme)
    page.locator("details").evaluate_all("all => all.forEach((each) => { each.open = true })")
    page.locator(".card [data-set=accept]").first.click()
    page.locator(".card [data-set=reject]").nth(1).click()
    choose(page, "kept 4")
    contrasts = page.evaluate(CONTRASTS)
    assert len(contrasts) > 100 and contrasts[0][0] >= 4.5, contrasts[:5]


@pytest.mark.parametrize("beside", [False, True])
def test_a_curation_on_a_phone_scrolls_down_only(open_curation, beside):
    page = open_curation(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    page.locator("details").evaluate_all("all => all.forEach((each) => { each.open = true })")
    if beside:
        page.get_by_role("button", name="Side by side").tap()
    assert page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]") == [390, 390]
    page.locator(".card [data-set=reject]").first.tap()
    assert page.locator("[data-marks]").inner_text() == "0 accepted, 1 rejected"


def test_nothing_hostile_runs_and_no_form_lacks_a_name(open_curation):
    page = open_curation()
    assert page.title() == "A curation" and page.locator("img[src=x]").count() == 0
    nodes = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    roles = ("button", "checkbox", "slider", "combobox", "region", "image")
    named = {
        (node["role"]["value"], node.get("name", {}).get("value", "").strip()) for node in nodes if not node["ignored"]
    }
    assert not [one for one in named if one[0] in roles and not one[1]]
    assert ("checkbox", "kept 4") in named and ("slider", "Largest gap shown") in named
    assert ("button", "Accept") in named and ("group", f"Mark of {QUOTED}") in named


def test_without_script_a_gallery_has_no_dead_controls(open_curation):
    page = open_curation(java_script_enabled=False)
    assert not any(page.locator(what).first.is_visible() for what in (".filters", ".status", ".marks", ".toolbar"))
    assert page.get_by_alt_text("rejected: prompt 0").is_visible()


def test_two_galleries_mark_their_own(open_page, tmp_path):
    page = Page("Two")
    page.add(pair_gallery([make_pair(0)], title="First"))
    page.add(pair_gallery([make_pair(0, chosen=plain(COLOURS[2]))], title="Second"))
    page.write(tmp_path / "two.html")
    opened = open_page(tmp_path / "two.html")
    opened.locator(".card [data-set=reject]").nth(1).click()
    assert [each.inner_text() for each in opened.locator("[data-marks]").all()] == ["", "0 accepted, 1 rejected"]
