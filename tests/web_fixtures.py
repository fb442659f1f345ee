"""A small page and a headless browser; `pytest_plugins = ["web_fixtures"]` brings them into a test module."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from web_pages import chromium, small_page


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """What the page says is part of what a failed test says: a selector that does not come says nothing of why."""
    report = yield
    tab = getattr(getattr(item, "funcargs", {}).get("page"), "tab", None)
    if report.failed and tab is not None:
        report.sections.append(("the page", tab.evaluate("document.body.innerText")))
    return report


@pytest.fixture(scope="session")
def page_folder(tmp_path_factory) -> Path:
    """The small page: one layer, 32x32, all slots. Never changed by a test."""
    return small_page(tmp_path_factory)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Playwright's handle of a headless Chromium; tabs of one `new_context` share what a page keeps, and no others.

    Of a module: a thread has one Playwright at a time.
    """
    sync_api = pytest.importorskip("playwright.sync_api")
    path = chromium()
    # Chromium has no sandbox for root.
    sandbox = os.geteuid() != 0
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, chromium_sandbox=sandbox)
        yield browser
        browser.close()
