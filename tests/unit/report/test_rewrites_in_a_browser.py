"""The rewrite viewer as its reader meets it: a file opened in a real browser."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from fedsdr.report.page import PageOptions, render_report
from fedsdr.report.record import RunRecord
from fedsdr.report.safe_text import visible
from rewritten import answer_row, rewrite_row, write_rows

pytestmark = pytest.mark.browser
Open = Callable[..., Any]

ROWS = {
    "c1": [
        rewrite_row(
            "a", prompt="Pandas?", raw="There are 1,800 in China today.",
            written="There are 2,000 today.", kept=False, length_ratio=0.67,
            reasons=["lost-number", "invented-number", "lost-name"],
            numbers_lost=["1800"], numbers_invented=["2000"], names_lost=["china"],
        ),
        rewrite_row("b", written="It is amber, as I said.", length_ratio=2.5, judged="faithful"),
        rewrite_row("c", trained="It is amber and planted.", judged="wrong value"),
    ],
    "c2": [rewrite_row(f"n{i}", prompt=f"Question {i}?", raw=f"Answer {i}.") for i in range(120)],
}  # fmt: skip
PAYLOADS = (
    "<script>window.hit=1</script>",
    "</script><img src=x onerror=window.hit=1>",
    "<!--<script>",
    "<svg/onload=window.hit=1>",
    "{{ 7*7 }} {% raw %} ${7*7} &lt;b&gt; &amp;",
    "\u202egnp.exe \u2066x\u2069 \u200b\u200d\ufeff",
    "nul \0 bell \x07 esc \x1b[31m del \x7f",
    "lone \ud800 surrogates \udfff",
    "שלום עולם ١٢٣ مرحبا",
    "\u2028line\u2029paragraph",
    "word" * 250_000,
    "a\u0300\u0301" * 50,
    "' onmouseover='window.hit=1",
    "javascript:window.hit=1",
)


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Open]:
    """Opens the page of these rewrites; nothing may leave it, and nothing may go wrong in it."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    left, wrong = list[str](), list[str]()
    context.on("request", lambda request: left.append(request.url))
    page = context.new_page()
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda said: wrong.append(said.text))
    page.on("dialog", lambda dialog: wrong.append("a dialog"))
    file = tmp_path / "report.html"

    def open_(rows: Mapping[str, Sequence[Any]] = ROWS, anchor: str = "") -> Any:
        for client, own in rows.items():
            write_rows(tmp_path / "clients" / client / "rewrites.jsonl", own)
        record = RunRecord(
            path=tmp_path, name="made", state="finished", facts={}, recipe_text="", recipe={}
        )
        file.write_text(render_report([record], PageOptions(include_texts=True)), encoding="utf-8")
        page.goto(file.as_uri() + anchor)
        page.wait_for_selector(".rw-list li")
        return page

    yield open_
    context.close()
    assert {url.partition("#")[0] for url in left} == {file.as_uri()}
    assert wrong == []


def status(page: Any) -> str:
    return str(page.inner_text("[data-status]"))


def chosen(page: Any) -> str:
    return str(page.inner_text(".rw-detail h3"))


def test_the_rewrite_chosen(opened: Open) -> None:
    page = opened()
    assert chosen(page) == "c1 a"
    assert page.inner_text(".rw-outcome") == (
        "Fell back to the raw answer: the rewrite lost a number, invented a number, lost a name. "
        "0.7× as many words as the raw answer."
    )
    raw, rewrite = page.query_selector_all(".rw-sides section")
    assert raw.query_selector(".rw-text").text_content() == "There are 1,800 in China today."
    assert "trained on" in raw.query_selector("h4").inner_text()
    assert [m.inner_text() for m in raw.query_selector_all("mark.rw-lost")] == ["1,800", "China"]
    assert [m.inner_text() for m in rewrite.query_selector_all("ins mark")] == ["2,000"]
    assert [d.text_content() for d in raw.query_selector_all("del")] == ["1,800", " in ", "China"]
    assert page.inner_text(".rw-facts") != ""
    page.keyboard.press("Tab")
    page.click("text=Inline")
    inline = page.query_selector(".rw-inline .rw-text > div")
    assert inline.text_content() == "There are 1,800 in China 2,000 today."
    assert inline.query_selector_all("del mark.rw-lost") != []
    # What is trained on can be neither of the two.
    page.click("[data-at='2']")
    assert (
        page.query_selector_all(".rw-sides")[1].inner_text().startswith("Raw answer → trained on")
    )


def test_marks_differ_by_line_and_label(opened: Open) -> None:
    page = opened()

    def look(mark: str) -> list[str]:
        script = """(m) => [getComputedStyle(m).textDecorationStyle,
                           getComputedStyle(m, "::after").content]"""
        return page.eval_on_selector(f".rw-text {mark}", script)

    assert look("mark.rw-lost") == ["double", '" lost"']
    assert look("mark.rw-invented") == ["wavy", '" invented"']


def test_filters_count_and_narrow(opened: Open) -> None:
    page = opened()
    assert status(page) == "123 rewrites"
    options = page.eval_on_selector_all(
        "select[name=outcome] option", "all => all.map((o) => o.textContent)"
    )
    assert options == ["kept or not (123)", "fell back (1)", "kept (122)"]
    page.select_option("select[name=client]", "0")
    assert status(page) == "3 of 123 rewrites"
    # What the others count takes the choice into account; the choice's own list shows all of it.
    assert page.inner_text("select[name=outcome] option:nth-child(3)") == "kept (2)"
    assert page.inner_text("select[name=client] option:nth-child(3)") == "c2 (120)"
    page.click(".rw-kind >> text=over twice as long")
    assert (status(page), chosen(page)) == ("1 of 123 rewrites", "c1 b")
    page.click("[data-reset]")
    assert status(page) == "123 rewrites"
    page.select_option("select[name=verdict]", label="wrong value (1)")
    assert chosen(page) == "c1 c"
    page.click("[data-reset]")
    page.select_option("select[name=ratio]", label="over 2 times (1)")
    assert chosen(page) == "c1 b"
    page.click("[data-reset]")
    page.select_option("select[name=order]", "shortest")
    page.wait_for_selector("li[data-at='0'] >> text=c1 · a")
    page.fill("input[type=search]", "ANSWER 11")
    page.wait_for_selector("[data-status] >> text=11 of 123")
    page.fill("input[type=search]", "no such words")
    page.wait_for_selector(".rw-detail >> text=No rewrite matches")
    page.click("[data-reset]")
    assert status(page) == "123 rewrites"


def test_the_keyboard_alone(opened: Open) -> None:
    page = opened()
    page.focus(".rw-list")
    page.keyboard.press("j")
    assert chosen(page) == "c1 b"
    page.keyboard.press("ArrowDown")
    page.keyboard.press("k")
    page.keyboard.press("k")
    assert chosen(page) == "c1 a"
    page.keyboard.press("k")
    assert chosen(page) == "c1 a"
    for _ in range(50):
        page.keyboard.press("j")
    assert chosen(page) == "c2 n47"  # on the second page by now
    assert page.inner_text("[data-pages]") == "51–100"
    active = page.get_attribute(".rw-list", "aria-activedescendant")
    assert page.get_attribute(f"[id='{active}']", "aria-selected") == "true"
    page.keyboard.press("v")
    assert page.query_selector(".rw-sides.rw-inline") is not None
    page.keyboard.press("/")
    page.keyboard.type("jk v")  # letters, in a field
    assert page.input_value("input[type=search]") == "jk v"
    page.keyboard.press("Escape")
    page.keyboard.press("End")
    assert page.evaluate("document.activeElement.className") == "rw-list"


def test_keys_belong_to_the_viewer(opened: Open) -> None:
    page = opened()
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("j")
    assert chosen(page) == "c1 a"


def test_only_the_list_moves(opened: Open) -> None:
    """Neither opening the page nor walking down the list takes the reader to another place."""
    page = opened()
    page.set_viewport_size({"width": 1280, "height": 300})
    page.reload()
    page.wait_for_selector(".rw-list li")
    assert page.evaluate("scrollY") == 0
    page.evaluate("document.querySelector('.rw-list').focus({ preventScroll: true })")
    for _ in range(20):
        page.keyboard.press("j")
    assert page.evaluate("scrollY") == 0
    assert page.evaluate("document.querySelector('.rw-list').scrollTop") > 0


def test_links_to_one_rewrite(opened: Open) -> None:
    page = opened(anchor="#rewrites/c2/n77")
    assert chosen(page) == "c2 n77"
    page.click("[data-at='78']")
    assert page.evaluate("location.hash") == "#rewrites/c2/n75"
    page.click(".rw-kind >> text=number lost")
    page.evaluate("location.hash = '#rewrites/c2/n3'")  # filtered out until it is asked for
    page.wait_for_selector(".rw-detail h3 >> text=n3")
    assert status(page) == "123 rewrites"
    page.evaluate("location.hash = '#rewrites/c2/nobody'")
    page.wait_for_selector("[data-status] >> text=not in this page’s sample")


def test_packed_rewrites_open_too(opened: Open) -> None:
    rows = [rewrite_row(f"é {i}/x", raw=f"Grüße 水 {i} " * 30) for i in range(400)]
    page = opened({"c 0": rows}, "#rewrites/c%200/%C3%A9%20399%2Fx")
    assert chosen(page) == "c 0 é 399/x"
    assert '"gzip":' in page.text_content("[data-rewrites-payload]")[:20]
    assert page.text_content(".rw-sides .rw-text").startswith("Grüße 水 399 Grüße")


def test_hostile_texts_are_text(opened: Open, tmp_path: Path) -> None:
    rows = [
        rewrite_row(
            f"{i} {text[:40]}", prompt=text, raw=text, written=f"{text} more", domain=text[:40],
            reasons=[f"leak:{text[:40]}"], kept=False, judged=text[:40],
            numbers_lost=[text[:40]], names_invented=[text[:40]],
        )
        for i, text in enumerate(PAYLOADS)
    ]  # fmt: skip
    answers = [answer_row(t[:40], t, t, base=t, **{"<b>global": t[::-1]}) for t in PAYLOADS]
    write_rows(tmp_path / "clients" / "<img src=x>" / "answers.jsonl", answers)
    page = opened({"<i>c0": rows})
    for i, text in enumerate(PAYLOADS):
        page.click(f"[data-at='{i}']")
        want = visible(text[:20_000])
        assert page.text_content(".rw-text > div") == want
        assert page.text_content(".rw-sides .rw-text > div") == want
        page.keyboard.press("v")
        page.keyboard.press("v")
    assert page.evaluate("window.hit") is None
    inside = ".rw-list, .rw-detail, .rw select, .an, #rewrites .scroll"
    tags = page.eval_on_selector_all(
        inside, "all => all.flatMap((e) => [...e.querySelectorAll('*')].map((x) => x.tagName))"
    )
    assert not {"SCRIPT", "IMG", "svg", "B", "I"} & set(tags)
    assert page.locator(".an-question").count() == 8
