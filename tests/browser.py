"""A headless Chromium for tests that look at a page as its reader does.

`from browser import browser` into a conftest.py or a test file makes it a fixture.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
_started: list[Any] = []  # each place that imports the fixture has its own; Playwright allows one


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Playwright's, driving the system's Chromium; skips where one of them is missing."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs the test extra: playwright")
    if CHROMIUM is None:
        pytest.skip("needs a browser: install Debian's `chromium`, or name one in $CHROMIUM")
    if _started:
        yield _started[0]
        return
    with sync_api.sync_playwright() as play:
        _started.append(play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"]))
        yield _started[0]
        _started.pop().close()
