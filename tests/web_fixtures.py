"""A small page and a headless browser; `pytest_plugins = ["web_fixtures"]` brings them into a test module."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from web_pages import chromium, small_page


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
