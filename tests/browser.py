"""A headless Chromium for tests that look at a page as its reader does.

`from browser import browser` into a conftest.py or a test file makes it a fixture; `font_browser`
is the same with one family of fonts and no other.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
# Debian's packages fonts-dejavu-core, fonts-liberation and fonts-noto-core.
FONTS = {
    name: Path("/usr/share/fonts/truetype") / name for name in ("dejavu", "liberation", "noto")
}
_play = list[Any]()  # each place that imports a fixture has its own; Playwright allows one
_started = dict[str, Any]()


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Playwright's, driving the system's Chromium; skips where one of them is missing."""
    yield from _browser("", {})


@pytest.fixture(scope="session", params=FONTS)
def font_browser(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    """One that finds no other fonts on the machine; skips where these are not installed."""
    fonts = FONTS[request.param]
    if not fonts.is_dir():
        pytest.skip(f"needs fonts: {fonts} is not there, see .ci/run for the packages")
    folder = tmp_path_factory.mktemp(request.param)
    file = folder / "fonts.conf"
    # Debian's own rules, of which font stands for sans-serif, name no folders.
    file.write_text(
        '<?xml version="1.0"?><!DOCTYPE fontconfig SYSTEM "urn:fontconfig:fonts.dtd"><fontconfig>'
        f"<dir>{fonts}</dir><cachedir>{folder / 'cache'}</cachedir>"
        '<include ignore_missing="yes">/etc/fonts/conf.d</include></fontconfig>'
    )
    yield from _browser(request.param, {"FONTCONFIG_FILE": str(file)})


def _browser(name: str, variables: dict[str, str]) -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs the test extra: playwright")
    if CHROMIUM is None:
        pytest.skip("needs a browser: install Debian's `chromium`, or name one in $CHROMIUM")
    if name in _started:
        yield _started[name]
        return
    first = not _play
    if first:
        _play.append(sync_api.sync_playwright().start())
    _started[name] = _play[0].chromium.launch(
        executable_path=CHROMIUM, args=["--no-sandbox"], env=os.environ | variables
    )
    yield _started[name]
    _started.pop(name).close()
    if not _started:
        _play.pop().stop()
