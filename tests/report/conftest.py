"""A browser for the tests that look at pages as people do."""

from __future__ import annotations

import pytest
from report_helpers import CHROMIUM


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser):
    """Opens a file with options of a browser context; nothing else may be asked for or complained of meanwhile."""
    contexts, opened, troubles = [], set(), []

    def open_page(file, script="", **options):
        contexts.append(browser.new_context(**{"viewport": {"width": 1200, "height": 900}, **options}))
        page = contexts[-1].new_page()
        opened.add(file.as_uri())
        page.on("request", lambda request: troubles.append(request.url))
        page.on("console", lambda message: troubles.append(message.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        if script:
            page.add_init_script(script)
        page.goto(file.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert {trouble for trouble in troubles if not trouble.startswith(("data:", "blob:"))} == opened
