"""Fixtures: a browser, a server, and a page that was opened."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

import httpx
import pytest
from playwright.sync_api import Browser, sync_playwright

from browsing import Visit, visiting
from serving import serving
from support import lacking

if TYPE_CHECKING:
    pass
from page_server import Told, backend_of


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = shutil.which("chromium") or lacking("Chromium is not installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    """A server that finds a shirt and pants in every photo."""
    with serving(backend_of(Told())) as client:
        yield client


@pytest.fixture
def visit(browser: Browser, client: httpx.Client) -> Iterator[Visit]:
    with visiting(browser, client) as visit:
        yield visit
