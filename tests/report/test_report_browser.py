"""The page in Chromium, opened from a file, as people open it."""

from __future__ import annotations

import pytest
from report_helpers import (
    CHROMIUM,
    COLOURS,
    CONTRASTS,
    HOSTILE,
    estimate,
    make_folder,
    make_pair,
    make_results,
    write_metrics,
)

from diffalign.report import (
    Page,
    alarms,
    curves,
    headline,
    pair_gallery,
    provenance,
    results_table,
    sample_grid,
    scatter,
    strength_slider,
    win_rate_figure,
)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A page with every section, in which a hostile caption stands wherever text of others can."""
    folder = tmp_path_factory.mktemp("report")
    prompts = {"x": "an x", "y": HOSTILE, "z": "a very long word " + "m" * 120}
    models = {name: make_folder(folder / name, prompts, colour=COLOURS[at]) for at, name in enumerate(("base", "dpo"))}
    strengths = [(at / 2, make_folder(folder / f"s{at}", prompts, colour=COLOURS[at])) for at in range(4)]
    metrics = {"one": write_metrics(folder / "1.jsonl"), HOSTILE: write_metrics(folder / "2.jsonl", alarm_at=30)}
    page = Page("A report", HOSTILE)
    page.add(headline(["It is better."], map(win_rate_figure, make_results()["win_rates"])))
    page.add(pair_gallery([*(make_pair(number) for number in range(5)), make_pair(5, prompt=HOSTILE)]))
    page.add(sample_grid(models))
    page.add(curves(metrics))
    page.add(results_table(make_results()))
    page.add(scatter(make_results()))
    page.add(strength_slider(strengths, [{"kid": estimate(strength, 0.2)} for strength, _ in strengths]))
    page.add(alarms(metrics))
    page.add(provenance("beta: 2000\nlong: " + "m" * 300, {"torch": "2.13.0"}))
    page.write(folder / "report.html")
    return folder / "report.html"


@pytest.fixture
def open_report(open_page, report):
    """Opens the report with options of a browser context."""
    return lambda **options: open_page(report, **options)


def shown(page, selector: str) -> list[str]:
    return page.locator(f"{selector} img").evaluate_all("all => all.filter(e => e.checkVisibility()).map(e => e.alt)")


def test_every_image_is_there_and_nothing_hostile_ran(open_report):
    page = open_report()
    assert page.title() == "A report" and HOSTILE in page.locator(".subtitle").inner_text()
    widths = page.locator("main img").evaluate_all(
        "async all => Promise.all(all.map(e => e.decode().then(() => e.naturalWidth)))"
    )
    assert len(widths) > 20 and set(widths) == {10}
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<p>added</p>')")
    assert page.locator("img[src=x]").count() == 0 and page.locator("script").count() == 1


@pytest.mark.parametrize("key", ["Enter", "Space", "ArrowRight", "ArrowLeft"])
def test_a_pair_flips_by_keyboard_in_place(open_report, key):
    page = open_report(reduced_motion="reduce")
    stage = page.locator(".card .stage").nth(1)
    stage.focus()  # and scrolled to, at once
    before = stage.bounding_box()
    page.keyboard.press(key)
    assert shown(page, ".card")[:3] == ["chosen: prompt 0", "rejected: prompt 1", "chosen: prompt 2"]
    assert stage.bounding_box() == before
    page.keyboard.press(key)
    assert shown(page, ".card")[1] == "chosen: prompt 1"


def test_tab_reaches_the_images_and_focus_is_seen(open_report):
    page = open_report()
    page.get_by_role("checkbox", name="rejected", exact=True).focus()
    page.keyboard.press("Tab")  # no marks are there to export
    assert page.evaluate("document.activeElement.className") == "stage"
    outlines = page.locator(".card").evaluate_all("all => all.map(e => getComputedStyle(e).outlineStyle)")
    assert outlines[0] == "solid" and set(outlines[1:]) == {"none"}


def test_all_flip_and_outlines_hide(open_report):
    page = open_report()
    page.keyboard.press("f")
    assert all(alt.startswith("rejected") for alt in shown(page, ".card"))
    page.get_by_role("button", name="Flip all").click()
    assert all(alt.startswith("chosen") for alt in shown(page, ".card"))
    assert page.locator(".card .outline").first.is_visible()
    page.keyboard.press("m")
    assert not page.locator(".card .outline").first.is_visible()
    assert page.locator("[data-outlines]").get_attribute("aria-pressed") == "false"


def test_an_outline_is_red_and_lies_over_its_image(open_report):
    page = open_report()
    stroke = page.locator(".outline path:not(.halo)").first.evaluate("e => getComputedStyle(e).stroke")
    assert stroke == "rgb(240, 24, 45)"
    image, path = (page.locator(f".stage {what}").first.bounding_box() for what in ("img", ".outline path:not(.halo)"))
    assert path["x"] - image["x"] == pytest.approx(image["width"] * 2 / 10, abs=3)
    assert path["width"] == pytest.approx(image["width"] * 4 / 10, abs=6)


def test_the_slider_swaps_images_and_moves_the_mark(open_report):
    page = open_report()
    before = page.locator(".cursor").bounding_box()["x"]
    page.get_by_role("slider").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.locator("output").inner_text() == "1" == page.get_by_role("slider").get_attribute("aria-valuetext")
    assert [alt.rsplit(", ")[-1] for alt in shown(page, ".stacks")] == ["strength 1"] * 3
    assert page.locator(".cursor").bounding_box()["x"] > before + 50


def test_an_enlarged_sample_goes_through_the_models(open_report):
    page = open_report()
    page.locator(".zoom").first.press("Enter")
    page.keyboard.press("ArrowRight")
    assert page.locator("dialog img").get_attribute("alt") == "dpo: an x"
    page.keyboard.press("ArrowRight")
    assert page.locator("dialog p").inner_text() == "base: an x"
    page.keyboard.press("Escape")
    assert not page.locator("dialog").is_visible()
    assert page.evaluate("document.activeElement === document.querySelector('.zoom')")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable(open_report, scheme):
    page = open_report(color_scheme=scheme)
    page.locator("details").evaluate_all("all => all.forEach((each) => { each.open = true })")
    contrasts = page.evaluate(CONTRASTS)
    assert len(contrasts) > 100 and contrasts[0][0] >= 4.5, contrasts[:5]
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 22, 23)"
    assert dark == (scheme == "dark")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_measure_of_contrast_sees_what_is_unreadable(open_report, scheme):
    page = open_report(color_scheme=scheme)
    page.evaluate("document.querySelector('.subtitle').style.color = getComputedStyle(document.body).backgroundColor")
    assert page.evaluate(CONTRASTS)[0][0] == pytest.approx(1)


def test_a_phone_scrolls_down_only(open_report):
    page = open_report(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    page.locator("details").evaluate_all("all => all.forEach((each) => { each.open = true })")
    assert page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]") == [360, 360]
    assert page.locator(".scroll").first.evaluate("e => e.scrollWidth > e.clientWidth")  # a table, in its own box
    page.locator(".card .stage").first.tap()
    assert shown(page, ".card")[0] == "rejected: prompt 0"


def test_without_script_both_images_of_a_pair_are_shown(open_report):
    page = open_report(java_script_enabled=False)
    assert (
        page.get_by_alt_text("rejected: prompt 0").is_visible()
        and page.get_by_alt_text("chosen: prompt 0").is_visible()
    )


def test_everything_that_can_be_pressed_or_seen_has_a_name(open_report):
    """As Chromium tells it to a screen reader."""
    page = open_report()
    nodes = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    named: dict[str, list[str]] = {}
    for node in nodes:
        if not node["ignored"]:
            named.setdefault(node["role"]["value"], []).append(node.get("name", {}).get("value", "").strip())
    wanted = ("button", "link", "slider", "image", "region", "navigation", "DisclosureTriangle")
    assert all(named[role] and all(named[role]) for role in wanted), {role: named.get(role) for role in wanted}
    assert "chosen: prompt 0" in named["button"] and "base: an x" in named["button"]
    assert page.evaluate("document.documentElement.lang") == "en"
