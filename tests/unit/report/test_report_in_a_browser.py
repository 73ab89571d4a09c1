"""The page in a real browser: it sends nothing, runs nothing foreign, fits, and can be worked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from fedsdr.report.page import render_report
from fedsdr.report.read import read_records
from made_runs import rows, write_diagnosis, write_run

pytestmark = [pytest.mark.browser, pytest.mark.usefixtures("no_fsync")]
Open = Callable[..., Any]
LIVE = (
    "<script>window.hit=1</script>", "<img src=x onerror=window.hit=1>",
    "<svg onload=window.hit=1>",
    "</script><script>window.hit=1</script>", "</style><script>window.hit=1</script>",
    "</title><script>window.hit=1</script>", "\"><script>window.hit=1</script>",
    "' onmouseover='window.hit=1", "javascript:window.hit=1",
    "<iframe srcdoc='<script>1</script>'>",
    "<a href=javascript:window.hit=1>x</a>", "<body onload=window.hit=1>", "<base href=//evil/>",
    "<meta http-equiv=refresh content=0;url=//evil>", "<link rel=stylesheet href=//evil/x.css>",
    "<form action=//evil><input type=submit>", "<object data=//evil>", "<embed src=//evil>",
    "<math><mtext><script>window.hit=1</script>", "<!--", "-->", "<![CDATA[", "]]>", "<plaintext>",
    "<template><script>window.hit=1</script>",
)  # fmt: skip
HIDDEN = ("\u202e", "\u2066", "\u200b", "\ufeff", "\u2028", "\x1b[31m", "\u00ad", "\U000e0041")
ODD = ("{{7*7}}", "{% raw %}", "${7*7}", "&lt;b&gt;", "&#60;b&#62;", "\\u003cb\\u003e",
       "%3Cscript%3E",
       "שלום", "مرحبا", "a\u0300" * 60, "x" * 5000, "0x7f", "__proto__", "constructor", "NaN",
       "🙂‍↔️", "\t\n tabs", "'\"`", "..")  # fmt: skip
# 100 names, each a client; the hidden characters wrap each of the live ones.
PAYLOADS = [
    *LIVE, *ODD, *(f"{a}{b}{a}" for a in HIDDEN for b in LIVE[:7])
]  # fmt: skip


def overlapping() -> str:
    """For the browser: texts within one figure whose boxes meet."""
    return """() => {
      const found = [];
      for (const svg of document.querySelectorAll("svg.figure")) {
        if (!svg.getBoundingClientRect().width) continue;
        const boxes = [...svg.querySelectorAll("text")].filter((t) => t.textContent)
          .map((t) => [t.textContent, t.getBoundingClientRect()]);
        const outer = svg.getBoundingClientRect();
        for (let i = 0; i < boxes.length; i += 1) {
          const [words, a] = boxes[i];
          if (a.left < outer.left - 1 || a.right > outer.right + 1) found.push(`cut: ${words}`);
          for (let j = i + 1; j < boxes.length; j += 1) {
            const b = boxes[j][1];
            const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
            const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
            const where = svg.getAttribute("aria-label");
            if (wide > 1 && high > 4) found.push(`${where}: ${words} / ${boxes[j][0]}`);
          }
        }
      }
      return found;
    }"""


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Open]:
    yield from opening(browser, tmp_path)


@pytest.fixture
def opened_in_a_font(font_browser: Any, tmp_path: Path) -> Iterator[Open]:
    yield from opening(font_browser, tmp_path)


def opening(browser: Any, tmp_path: Path) -> Iterator[Open]:
    left, wrong, contexts = list[str](), list[str](), list[Any]()

    def open_(text: str, width: int = 1280, scheme: str = "light", js: bool = True) -> Any:
        file = tmp_path / "report.html"
        file.write_text(text, encoding="utf-8")
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, java_script_enabled=js,
            accept_downloads=True,
        )  # fmt: skip
        contexts.append(context)
        context.on("request", lambda request: left.append(request.url))
        page = context.new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda said: wrong.append(said.text))
        page.on("dialog", lambda dialog: wrong.append("a dialog"))
        page.goto(file.as_uri())
        return page

    yield open_
    for context in contexts:
        context.close()
    assert wrong == []
    assert {url for url in left if not url.startswith(("file:", "blob:"))} == set()


@pytest.fixture
def text(tmp_path: Path) -> str:
    run = write_run(
        tmp_path / "run", clients=[f"c{n}" for n in range(12)],
        refused={2: ["client 'c1' lost: it hung up"]},
    )  # fmt: skip
    write_diagnosis(run, [f"c{n}" for n in range(12)])
    return render_report(read_records([run]))


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_and_no_words_overlap(opened: Open, text: str, width: int, scheme: str) -> None:
    page = opened(text, width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate(overlapping()) == []


def test_several_runs_fit_too(opened: Open, tmp_path: Path) -> None:
    methods = ("fedavg", "fedsdr", "fedsd+a_long_name_here")
    runs = [write_run(tmp_path / f"{m}-{s}", m, s) for m in methods for s in (1, 2)]
    made = render_report(read_records(runs))
    for width in (1280, 390):
        page = opened(made, width)
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.evaluate(overlapping()) == []


def test_figures_hold_their_words_in_any_common_font(
    opened_in_a_font: Open, tmp_path: Path
) -> None:
    """Names of wide letters, narrow ones, and those of other scripts; numbers of many digits."""
    names = ["W" * 30, "MMMM@MMMM", "i" * 40, "Клиника_Южная_Щ", "Ωμέγα", "株式会社の顧客", "c1",
             "Čeština, ženský", "1234567890123", "a_rather_long_client_name"]  # fmt: skip
    one = write_run(tmp_path / "run", "fedsdr", clients=names)
    write_diagnosis(one, names)
    methods = ("fedavg", "W" * 24, "fedsd+a_long_name_here")
    several = [write_run(tmp_path / f"{m}-{s}", m, s) for m in methods for s in (1, 2)]
    for runs in ([one], several):
        made = render_report(read_records(runs))
        for width in (1280, 390):
            page = opened_in_a_font(made, width)
            assert page.evaluate("document.documentElement.scrollWidth") == width
            assert page.evaluate(overlapping()) == []


def test_a_hundred_hostile_names_are_text(opened: Open, tmp_path: Path) -> None:
    assert len(PAYLOADS) == len(set(PAYLOADS)) == 100
    run = write_run(tmp_path / "run", clients=PAYLOADS, rounds=2, options={p: p for p in PAYLOADS},
                    refused={1: [f"client {p!r} lost: {p}" for p in PAYLOADS[:50]]})  # fmt: skip
    write_diagnosis(run, PAYLOADS)
    rows(run / "timings.jsonl", ({"round": 0, "phase": p, "seconds": 1} for p in PAYLOADS))
    page = opened(render_report(read_records([run])))
    assert page.evaluate("window.hit") is None
    assert page.locator("iframe, object, embed, form, base, link, img, math, template").count() == 0
    assert page.locator("script:not([type])").count() == 1
    shown = page.evaluate("document.documentElement.outerHTML")
    for hidden in HIDDEN:
        assert hidden not in shown
    cells = set(page.locator("table.data tbody th").all_text_contents())
    assert {p for p in (*LIVE, *ODD) if p in cells} >= {*LIVE}
    for mark in page.locator(".chart [data-tip]").all()[:200:20]:
        mark.dispatch_event("pointermove")
    page.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")
    assert page.evaluate("window.hit") is None


def test_hover_and_arrow_keys_say_the_numbers(opened: Open, text: str) -> None:
    page = opened(text)
    drawing = page.locator(".chart[data-name=curves-run-loss] .drawing")
    drawing.scroll_into_view_if_needed()
    drawing.locator("circle.mark:not(.quiet)").first.hover()
    tip = page.locator("#tip")
    assert tip.text_content() == "mean over clients · round 1 · 2"
    page.mouse.move(0, 0)
    drawing.focus()
    page.keyboard.press("ArrowRight")
    first = tip.text_content()
    page.keyboard.press("ArrowRight")
    assert tip.is_visible()
    assert tip.text_content() != first
    page.keyboard.press("Escape")
    assert tip.is_hidden()


def test_the_rounds_of_a_heat_map(opened: Open, text: str) -> None:
    """Off the diagonal the cosine is 0.1 t − 0.2."""
    page = opened(text)
    chart = page.locator(".chart[data-name=agreement-run-r]")
    cell = chart.locator("g.cells rect").nth(1)
    assert cell.get_attribute("data-tip") == "c0 × c1: 0.20"
    chart.locator("input[type=range]").fill("0")
    assert chart.locator("output").text_content() == "1"
    assert cell.get_attribute("data-tip") == "c0 × c1: −0.10"
    assert cell.get_attribute("class") == "cell d9"


def test_tables_are_sorted_and_numbers_are_numbers(opened: Open, text: str) -> None:
    page = opened(text)
    table = page.locator("#data table.data").last
    names = table.locator("tbody th")
    table.locator("thead button").first.click()
    assert names.all_text_contents()[:3] == ["c0", "c1", "c2"]  # c2 before c10
    table.locator("thead button").first.click()
    assert names.all_text_contents()[0] == "c11"
    assert table.locator("th[aria-sort=descending]").count() == 1


def test_runs_behind_tabs_and_rows_behind_a_filter(opened: Open, tmp_path: Path) -> None:
    runs = [write_run(tmp_path / f"m{n}-{s}", f"m{n}", s) for n in range(5) for s in (1, 2, 3)]
    page = opened(render_report(read_records(runs)))
    panels = page.locator("#curves .panel")
    assert [panel.is_visible() for panel in panels.all()].count(True) == 1
    page.locator("#curves .tabs label").nth(2).click()
    assert panels.nth(2).is_visible()
    assert panels.nth(0).is_hidden()
    page.keyboard.press("ArrowRight")
    assert panels.nth(3).is_visible()
    page.locator("input[name=filter-runs]").fill("m3")
    shown = page.locator("#again .filter ~ .scroll tbody tr:visible")
    assert shown.count() == 3


def test_the_theme_is_chosen_and_kept(opened: Open, text: str) -> None:
    page = opened(text)
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    page.locator("[data-theme-toggle]").click()
    assert page.evaluate(ground) != light
    page.reload()
    assert page.evaluate(ground) != light


def test_a_figure_can_be_saved(opened: Open, text: str, tmp_path: Path) -> None:
    page = opened(text)
    chart = page.locator(".chart[data-name=agreement-run-s]")
    with page.expect_download() as waiting:
        chart.locator(".save").click()
    assert waiting.value.suggested_filename == "agreement-run-s.svg"
    saved = tmp_path / "saved.svg"
    waiting.value.save_as(saved)
    drawing = ElementTree.fromstring(saved.read_text())
    assert drawing.find("{http://www.w3.org/2000/svg}title") is not None
    assert {r.get("fill") for r in drawing.iter("{http://www.w3.org/2000/svg}rect")} >= {"#005493"}


def test_without_a_script_all_is_there(opened: Open, tmp_path: Path) -> None:
    runs = [write_run(tmp_path / m, m) for m in ("fedavg", "fedsdr")]
    page = opened(render_report(read_records(runs)), js=False)
    page.locator("#curves .tabs label").nth(1).click()
    assert page.locator("#curves .panel").nth(1).is_visible()
    assert page.locator(".save:visible, .slider:visible, .filter:visible").count() == 0


def test_two_hundred_runs_open_in_two_seconds(opened: Open, tmp_path: Path) -> None:
    for seed in range(20):
        for number in range(10):
            write_run(
                tmp_path / "all" / f"m{number}-{seed}", f"m{number}", seed, detailed=seed == 0
            )
    made = render_report(read_records([tmp_path / "all"]))
    page = opened(made)
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})  # the processor's time
    page.reload()
    told = {m["name"]: m["value"] for m in session.send("Performance.getMetrics")["metrics"]}
    assert 0 < told["TaskDuration"] < 2
