"""The live pages in a real browser: they follow the run, and leave the reader's doings alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="needs the serve extra")
pytest.importorskip("starlette", reason="needs the serve extra")

from fedsdr.report.gate import Server, listen
from growing_runs import add, finish, round_row, under_way, validated

pytestmark = pytest.mark.browser


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    folder = tmp_path / "runs"
    validated(under_way(folder / "first", 2), 2, 0.25, 0.5)
    finish(under_way(folder / "second", 4))
    finish(under_way(folder / "third", 4), 0.25)
    return folder


@pytest.fixture
def server(runs: Path) -> Iterator[Server]:
    found = listen(runs, "127.0.0.1", 0)
    thread = threading.Thread(target=found.run)
    thread.start()
    yield found
    found.stop()
    thread.join(timeout=60)
    assert not thread.is_alive()


@pytest.fixture
def page(browser: Any, server: Server) -> Iterator[Any]:
    """Signed in, on the list; nothing may be refused by the page's own policy."""
    context = browser.new_context(viewport={"width": 1000, "height": 500})
    opened, complaints = context.new_page(), list[str]()
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
    requests = list[str]()
    opened.on("request", lambda request: requests.append(request.url))
    opened.goto(server.address)
    yield opened
    base = server.address.partition("/?")[0]
    context.close()
    assert all(url.startswith(base) for url in requests)
    assert [text for text in complaints if "ERR_" not in text and "404" not in text] == []


def rows(page: Any) -> list[list[str]]:
    """Name, round and recall of the rows that are shown, from the top."""
    found = page.locator("#run-list tbody tr:visible")
    return [
        [found.nth(n).locator(f":nth-child({i})").first.inner_text() for i in (2, 6, 8)]
        for n in range(found.count())
    ]


def wait_live(page: Any) -> None:
    page.wait_for_selector(".live[data-state=live]")


def test_the_list_is_sorted_found_in_and_follows_its_runs(page: Any, runs: Path) -> None:
    wait_live(page)
    assert "token" not in page.url
    assert [row[0] for row in rows(page)] == ["first", "second", "third"]
    page.click("#run-list thead button:text('recall global')")
    page.click("#run-list thead button:text('recall global')")
    assert [row[0] for row in rows(page)] == ["second", "third", "first"]  # not known stands last
    page.fill("#run-filter", "ir")
    assert [row[0] for row in rows(page)] == ["third", "first"]
    page.check("input[value]:visible >> nth=0")
    page.focus("#run-filter")
    add(runs / "first", "rounds.jsonl", round_row(3, validation={"global": {"recall": 0.375}}))
    page.wait_for_selector("#run-list:has-text('0.375 v')")
    assert rows(page) == [["first", "3/4", "0.375 v"], ["third", "4/4", "0.250"]]
    assert page.input_value("#run-filter") == "ir"
    assert page.locator("input:checked").count() == 1
    assert page.evaluate("document.activeElement.id") == "run-filter"
    page.select_option("#run-state", "running")
    assert [row[0] for row in rows(page)] == ["first"]
    assert page.inner_text("#run-count") == "1 of 3 runs"


def test_ticked_runs_are_compared(page: Any) -> None:
    wait_live(page)
    assert page.is_disabled("#run-compare")
    page.check("#run-list tbody tr:nth-child(2) input")
    page.check("#run-list tbody tr:nth-child(3) input")
    page.click("#run-compare:text('Compare 2 runs')")
    page.wait_for_url("**/compare?run=*&run=*")
    wait_live(page)
    assert "second" in page.inner_text("main")
    page.click(".live a")
    page.wait_for_selector("#run-list")


def test_the_report_follows_and_keeps_place_and_what_is_open(page: Any, runs: Path) -> None:
    page.click("#run-list a:has-text('first')")
    wait_live(page)
    before = page.inner_text("header.top")
    assert "2 of 4" in before
    page.evaluate("document.querySelectorAll('main details').forEach((d) => (d.open = true))")
    opened = page.locator("main details[open]").count()
    again = page.locator("#again")
    again.scroll_into_view_if_needed()
    page.evaluate("document.querySelector('#again').scrollIntoView({behavior: 'instant'})")
    top = again.bounding_box()["y"]
    kept = page.evaluate_handle("document.querySelector('#again')")
    add(runs / "first", "rounds.jsonl", round_row(3))
    validated(runs / "first", 3, 0.75, 1.0)
    page.wait_for_selector("header.top:has-text('3 of 4')")
    assert abs(again.bounding_box()["y"] - top) <= 1
    assert page.locator("main details[open]").count() == opened
    assert page.evaluate("(old) => old.isConnected", kept)  # what did not change was not touched
    # Not every browser holds the place by itself when something is put in above it.
    page.evaluate("document.documentElement.style.setProperty('overflow-anchor', 'none')")
    height = page.evaluate("document.documentElement.scrollHeight")
    finish(runs / "first")
    page.wait_for_selector("header.top:has-text('finished')")
    assert page.evaluate("document.documentElement.scrollHeight") > height + 50
    assert abs(again.bounding_box()["y"] - top) <= 1


def test_a_paused_page_stands_still(page: Any, runs: Path) -> None:
    page.click("#run-list a:has-text('first')")
    wait_live(page)
    page.click(".live button:text('Pause')")
    add(runs / "first", "rounds.jsonl", round_row(3))
    page.wait_for_timeout(1500)
    assert "2 of 4" in page.inner_text("header.top")
    page.click(".live button:text('Go on')")
    page.wait_for_selector("header.top:has-text('3 of 4')")


def test_a_server_that_ends_is_told(page: Any, server: Server) -> None:
    wait_live(page)
    server.stop()
    page.wait_for_selector(".live:not([data-state=live])")
    assert page.inner_text(".live [role=status]") == "Waiting for the server"
    assert page.locator("#run-list tbody tr").count() == 3  # what was shown stays


def test_without_signing_in_there_is_nothing(browser: Any, server: Server) -> None:
    context = browser.new_context()
    stranger = context.new_page()
    stranger.goto(server.address.partition("?")[0])
    assert "holds the token" in stranger.inner_text("body")
    context.close()
