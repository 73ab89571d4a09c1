"""A hundred hostile texts in every place of the report and its live pages, in a real browser.

Nothing may run, nothing may leave, each is read as text, and a page has the same elements and
attributes as one in whose place only plain words stand.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from browser import browser as browser
from fedsdr.cli.app import app
from fedsdr.report.page import PageOptions, render_report
from fedsdr.report.read import read_records
from fedsdr.report.record import RunRecord
from fedsdr.report.safe_text import LONGEST_NAME, LONGEST_SENTENCE, short, visible
from growing_runs import add, hold
from hostile_runs import in_yaml, write_cell, write_hostile
from made_runs import write_run
from payloads import PAYLOADS, Payload

pytestmark = [pytest.mark.browser, pytest.mark.usefixtures("no_fsync")]
ALL = PageOptions(include_texts=True)
GROUPS = [PAYLOADS[at : at + 25] for at in range(0, 100, 25)]  # what a page's tables hold
GROUP = pytest.mark.parametrize("group", GROUPS, ids=("scripts", "ends", "breakers", "unseen"))

# Section and element where each text must be read whole, in a page about one run.
EXACT = {
    "scores": ("th",), "curves": ("th",), "data": ("th",), "heterogeneity": ("th", "@data-tip"),
    "agreement": ("th",), "drift": ("th",), "personal": ("th",), "cost": ("th",),
    "absences": ("th", "td"), "rewrites": ("th", "span"), "answers": ("span", "bdi", "dd"),
}  # fmt: skip
WITHIN = {
    "header": ("p",), "scores": ("@data-tip",), "curves": ("@data-tip",), "data": ("@data-tip",),
    "agreement": ("@data-tip",), "drift": ("@data-tip",), "personal": ("@data-tip",),
    "cost": ("@data-tip",), "absences": ("@data-tip",), "answers": ("@aria-label", "dt"),
    "rewrites": ("label", "option"),
}  # fmt: skip
COMPARED = {"scores": ("th", "@data-tip"), "differences": ("td",), "again": ("th", "td"),
            "notes": ("li",)}  # fmt: skip
CELLS = {"scores": ("h3", "th"), "differences": ("td",), "again": ("td",)}

WORDS = """() => {
  const found = {};
  const put = (where, kind, text) => ((found[where] ??= {})[kind] ??= new Set()).add(text);
  for (const e of document.querySelectorAll("body *")) {
    if (e.localName === "script") continue;
    const where = e.closest("main > section[id]")?.id ?? e.closest("header, nav")?.localName ?? "";
    if (e.textContent) put(where, e.localName, e.textContent);
    for (const a of e.attributes) if (/^(data-|aria-l)/.test(a.name)) put(where, `@${a.name}`, a.value);
  }
  const lists = ([name, sets]) => [name, Object.fromEntries(Object.entries(sets).map(([k, s]) => [k, [...s]]))];
  return Object.fromEntries(Object.entries(found).map(lists));
}"""  # noqa: E501
# Which words of an answer are shared, and whether a column holds words, depends on the texts.
SHAPE = """(root) => [...document.querySelectorAll(root)].filter((e) => !e.matches(".an-shared"))
  .map((e) => { const names = e.getAttributeNames().filter((n) => !/class|open|current/.test(n));
    return `${e.parentNode.nodeName} > ${e.nodeName}[${names.sort()}]`; })"""
POKE = """() => {
  const kinds = ["mouseover", "pointerover", "focus", "toggle", "error", "load", "animationstart"];
  for (const e of document.querySelectorAll("body *"))
    for (const kind of kinds) e.dispatchEvent(new Event(kind));
  const moved = () => new PointerEvent("pointermove", { bubbles: true });
  for (const mark of document.querySelectorAll("[data-tip]:nth-child(7n)")) mark.dispatchEvent(moved());
}"""  # noqa: E501
WATCH = """window.hits = []; window.refused = [];
  addEventListener("securitypolicyviolation", (e) => window.refused.push(e.violatedDirective));"""
VIEWER = {"HEADER", "H3", "H4", "SPAN", "A", "P", "STRONG", "DL", "DIV", "DT", "DD", "MARK", "BDI",
          "BUTTON", "SECTION", "DEL", "INS"}  # fmt: skip
VIEWED = """async () => {
  const all = (selector) => [...document.querySelectorAll(`.rw-detail ${selector}`)];
  const texts = (selector) => all(selector).map((e) => e.textContent);
  const found = [];
  for (let at = 0; document.querySelector(`[data-at="${at}"]`); at += 1) {
    document.querySelector(`[data-at="${at}"]`).click();
    const link = all("a.rw-link")[0].hash;
    document.querySelector('[data-at="0"]').click();
    const followed = new Promise((done) => addEventListener("hashchange", done, { once: true }));
    history.replaceState(null, "", "#"); location.hash = link; await followed;
    const row = { id: all("h3")[0].lastChild.data, boxes: texts(".rw-text > div"),
      facts: texts(".rw-facts bdi"), outcome: texts(".rw-outcome")[0] };
    all("[data-inline=true]")[0].click();
    row.inline = texts(".rw-text > div");
    row.wide = document.documentElement.scrollWidth - innerWidth;
    row.tags = all("*").map((e) => e.tagName);
    row.hits = [...hits];
    all("[data-inline=false]")[0].click();
    found.push(row);
  }
  return found;
}"""
HEAD = """() => ({
  title: document.title, heading: document.querySelector("h1").textContent,
  note: document.querySelector(".notes li").textContent,
  recipe: document.querySelector("pre.recipe").textContent,
  facts: [...document.querySelectorAll("#again td")].map((e) => e.textContent),
  wide: document.documentElement.scrollWidth - innerWidth, hits, refused,
})"""
# Clipped headings and the tables' own scrolling do not count: the page itself must not scroll.
WIDE = "document.documentElement.scrollWidth - innerWidth"


@dataclass
class Watched:
    """A page, with all that it asked for and complained of."""

    page: Any
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.add_init_script(WATCH)
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda said: self.complaints.append(said.text[:300]))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)[:300]))
        self.page.on("dialog", lambda dialog: self.complaints.append("a dialog"))
        self.page.on("popup", lambda opened: self.complaints.append("a window"))

    def harmless(self) -> None:
        self.page.evaluate(POKE)
        ran = [PAYLOADS[number].name for number in self.page.evaluate("hits")]
        assert (ran, self.page.evaluate("refused"), self.complaints) == ([], [], [])
        assert len(self.page.frames) == 1

    def shape(self, root: str = "html *") -> Counter[str]:
        return Counter(self.page.evaluate(SHAPE, root))


@pytest.fixture
def watched(browser: Any) -> Iterator[Callable[..., Watched]]:
    contexts = list[Any]()

    def watch(width: int = 1280, **more: Any) -> Watched:
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, **more))
        return Watched(contexts[-1].new_page())

    yield watch
    for context in contexts:
        context.close()


@pytest.fixture
def open_file(watched: Callable[..., Watched], tmp_path: Path) -> Callable[..., Watched]:
    def open_(html: str, name: str = "report", **more: Any) -> Watched:
        file = tmp_path / f"{name}.html"
        file.write_text(html, encoding="utf-8")  # fails on what no encoding takes
        found = watched(**more)
        found.page.goto(file.as_uri())
        return found

    return open_


def plain(payload: Payload) -> Payload:
    """Words of the same place and kind, that harm nobody."""
    size = max(0, len(payload.text) - 200)
    gap = " " if payload.is_folder_name else "/"
    return replace(
        payload, text=f"text{payload.number}{gap}here{'y' * size if size > 1000 else ''}"
    )


def missing(
    shown: Mapping[str, Mapping[str, Sequence[str]]],
    places: Mapping[str, Sequence[str]],
    group: Sequence[Payload],
    whole: bool,
) -> list[str]:
    """Payloads that cannot be read where they were put."""
    lost = list[str]()
    for where, kinds in places.items():
        for kind in kinds:
            texts = shown.get(where, {}).get(kind, ())
            alone, joined = {text.strip() for text in texts}, "\n".join(texts)
            for payload in group:
                long = len(payload.text) > LONGEST_NAME  # a name is cut there, a text is not
                wanted = visible(payload.text[:150] if long else payload.text).strip()
                within = alone if whole and not long else joined
                if wanted not in within and wanted.replace("_", " ") not in within:
                    lost.append(f"{payload.name} in {where} {kind}")
    return lost


def rendered(records: Sequence[RunRecord]) -> str:
    return render_report(records, ALL)


@GROUP
def test_a_run_full_of_them(
    open_file: Callable[..., Watched], tmp_path: Path, group: Sequence[Payload]
) -> None:
    run = write_hostile(tmp_path / "hostile", group)
    html = rendered(read_records([run]))
    assert len(html) < 15_000_000
    seen = open_file(html)
    page = seen.page
    page.wait_for_selector(".rw-list li")
    shown = page.evaluate(WORDS)
    assert missing(shown, EXACT, group, True) == []
    assert missing(shown, WITHIN, group, False) == []
    recipe = (run / "recipe.yaml").read_text()
    assert page.text_content("pre.recipe") == visible(recipe)
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 900})
        page.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")
        assert page.evaluate(WIDE) == 0
    shape = seen.shape()
    seen.harmless()
    assert seen.requests == [page.url]
    twin = open_file(
        rendered(read_records([write_hostile(tmp_path / "plain", [*map(plain, group)])])), "plain"
    )
    twin.page.wait_for_selector(".rw-list li")
    assert shape - twin.shape() == Counter()


@GROUP
def test_each_in_the_viewer(
    open_file: Callable[..., Watched], tmp_path: Path, group: Sequence[Payload]
) -> None:
    """Each by its own link, side by side and inline."""
    seen = open_file(rendered(read_records([write_hostile(tmp_path / "run", group)])))
    page, base = seen.page, seen.page.url
    page.wait_for_selector(".rw-list li")
    shown = {row["id"]: row for row in page.evaluate(VIEWED)}
    assert len(shown) == 2 * len(group)
    for payload in group:
        name, text = visible(short(payload.text)), visible(payload.text[:20_000])
        row = shown[name]
        assert row["boxes"] == [text] * 3, payload.name
        assert row["inline"] == [text] * 2, payload.name
        assert row["facts"] == [name] * 4, payload.name
        assert row["outcome"].count(name) >= 2, payload.name  # domain and verdict
        assert name.replace("-", " ") in row["outcome"], payload.name  # the reason
        assert row["wide"] == 0, payload.name
        assert row["hits"] == [], payload.name
        assert set(row["tags"]) <= VIEWER, payload.name
    page.fill(".rw input[type=search]", visible(short(group[3].text)).split()[0])
    page.wait_for_selector("[data-reset]:not([hidden])")
    assert page.locator(".rw-list li").count() >= 2
    seen.harmless()
    assert {url.partition("#")[0] for url in seen.requests} == {base}


@GROUP
def test_runs_compared_that_are_named_so(
    open_file: Callable[..., Watched], tmp_path: Path, group: Sequence[Payload]
) -> None:
    def records(payloads: Sequence[Payload], place: str) -> list[RunRecord]:
        made = list[RunRecord]()
        for payload in payloads:
            text = payload.text
            run = write_run(
                tmp_path / place / str(payload.number), rounds=1, detailed=False,
                options={"note": in_yaml(text), in_yaml(text): 1}, clients=[text, "other"],
            )  # fmt: skip
            record = read_records([run])[0]
            results = {**(record.results or {}), "method": text}
            made.append(replace(record, name=text[:250], notes=(text,), results=results))
        return made

    seen = open_file(rendered(records(group, "hostile")))
    page = seen.page
    assert missing(page.evaluate(WORDS), COMPARED, group, False) == []
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate(WIDE) == 0
    for label in page.locator("#curves .tabs label").all():
        label.click()
    for button in page.locator("table thead button").all():
        button.evaluate("(e) => e.click()")
    shape = seen.shape()
    seen.harmless()
    assert seen.requests == [page.url]
    twin = open_file(rendered(records([*map(plain, group)], "plain")), "plain")
    assert shape - twin.shape() == Counter()


def test_each_as_the_title(open_file: Callable[..., Watched], tmp_path: Path) -> None:
    """Alone in a page's head: title, heading, sentences, command, facts, notes."""
    seen = open_file("<!doctype html>", "blank")
    page, shapes = seen.page, list[Counter[str]]()
    for payload in [*PAYLOADS, plain(PAYLOADS[0])]:
        run = write_run(
            tmp_path / str(len(shapes)), rounds=1, detailed=False, finished=False,
            clients=("c0",), options={"x": in_yaml(payload.text)},
        )  # fmt: skip
        record = read_records([run])[0]
        text = f"{payload.text}\n"
        record = replace(
            record, notes=(payload.text,), recipe_text=text,
            facts={**record.facts, "algorithm": payload.text, "python": payload.text},
        )  # fmt: skip
        file = tmp_path / "page.html"
        file.write_text(rendered([record]), encoding="utf-8")
        page.goto(file.as_uri())
        name, shown = visible(short(payload.text)), page.evaluate(HEAD)
        assert " ".join(shown["title"].split()).startswith(" ".join(name.split())), payload.name
        assert shown["heading"].startswith(name), payload.name
        assert shown["note"] == visible(payload.text), payload.name
        assert shown["recipe"] == visible(text), payload.name
        assert visible(short(payload.text, LONGEST_SENTENCE)) in shown["facts"], payload.name
        assert (shown["wide"], shown["hits"], shown["refused"]) == (0, [], []), payload.name
        shapes.append(seen.shape())
    seen.harmless()
    assert [p.name for p, s in zip(PAYLOADS, shapes, strict=False) if s != shapes[-1]] == []
    assert {url.rpartition("/")[2] for url in seen.requests} == {"blank.html", "page.html"}


def test_cells_of_a_sweep_that_are_named_so(
    open_file: Callable[..., Watched], tmp_path: Path
) -> None:
    for payload in PAYLOADS:
        write_cell(tmp_path / "sweep", payload)
        write_cell(tmp_path / "broken", payload, failed=True)
    seen = open_file(rendered(read_records([tmp_path / "sweep"])))
    assert missing(seen.page.evaluate(WORDS), CELLS, PAYLOADS, False) == []
    assert seen.page.evaluate(WIDE) == 0
    seen.harmless()
    broken = open_file(rendered(read_records([tmp_path / "broken"])), "broken")
    assert missing(broken.page.evaluate(WORDS), {"absences": ("td",)}, PAYLOADS, False) == []
    broken.harmless()
    assert {*seen.requests, *broken.requests} == {seen.page.url, broken.page.url}


@pytest.fixture
def serve() -> Iterator[Callable[[Path], str]]:
    pytest.importorskip("uvicorn", reason="needs the serve extra")
    listening = pytest.importorskip("fedsdr.report.gate", reason="needs the serve extra")
    running = list[tuple[Any, threading.Thread]]()

    def start(folder: Path) -> str:
        server = listening.listen(folder, "127.0.0.1", 0, include_texts=True)
        thread = threading.Thread(target=server.run)
        thread.start()
        running.append((server, thread))
        return str(server.address)

    yield start
    for server, thread in running:
        server.stop()
        thread.join(timeout=60)


def folder_of(root: Path, payload: Payload) -> Path:
    """A run's folder by that name, where the file system takes it."""
    return root / (payload.text if payload.is_folder_name else f"p{payload.number}")


def test_live_pages_of_runs_that_are_named_so(
    watched: Callable[..., Watched], serve: Callable[[Path], str], tmp_path: Path
) -> None:
    root = tmp_path / "runs"
    for payload in PAYLOADS:
        run = folder_of(root, payload)
        write_run(run, payload.text, rounds=1, detailed=False, clients=(payload.text,))
    seen = watched()
    page, address = seen.page, serve(root)
    page.goto(address)
    page.wait_for_selector(".live[data-state=live]")
    rows = page.locator("#run-list tbody tr")
    assert rows.count() == 100
    names = set(page.locator("#run-list tbody th bdi").all_text_contents())
    methods = set(page.locator("#run-list tbody td:nth-child(3)").all_text_contents())
    for payload in PAYLOADS:
        assert visible(folder_of(root, payload).name) in names, payload.name
        assert visible(short(payload.text)) in methods, payload.name
    for button in page.locator("#run-list thead button").all():
        button.click()
    page.fill("#run-filter", "alert onload")
    page.fill("#run-filter", "")
    # A run comes while the list is open.
    late = write_run(root / "<img src=x onerror=hits.push(0)>\u202egpj", "</script>", rounds=1)
    shown = visible(late.name)
    page.wait_for_function(
        "(n) => [...document.querySelectorAll('#run-list bdi')].some((b) => b.textContent === n)",
        arg=shown,
    )
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate(WIDE) == 0
    seen.harmless()
    assert not [key for key in seen.shape("main *") if "IMG" in key or "SCRIPT" in key]
    for at in (0, 40, 80):
        page.locator("#run-list tbody input").nth(at).check()
    page.click("#run-compare")
    page.wait_for_url("**/compare?run=*")
    page.wait_for_selector(".live[data-state=live]")
    assert page.locator("#scores tbody tr").count() >= 3
    seen.harmless()
    base = address.partition("/?")[0]
    assert [url for url in seen.requests if not url.startswith(base)] == []


@GROUP
def test_rows_that_arrive_while_a_page_is_open(
    watched: Callable[..., Watched], serve: Callable[[Path], str], tmp_path: Path,
    group: Sequence[Payload],
) -> None:  # fmt: skip
    run = write_run(
        tmp_path / "runs" / "one", rounds=1, finished=False, detailed=False, clients=("c0", "c1")
    )
    hold(run)
    seen = watched()
    page, address = seen.page, serve(tmp_path / "runs")
    page.goto(address)
    page.click("#run-list a")
    page.wait_for_selector(".live[data-state=live]")
    texts = [payload.text for payload in group]
    losses = {text: 1.0 + at for at, text in enumerate(texts)}
    scores = {"global": {text: {"recall": 0.5} for text in texts}}
    add(run, "validation.jsonl", {"round": 2, "scores": scores})
    add(run, "timings.jsonl", {"round": 2, "phase": texts[0], "seconds": 1.0})
    add(run, "rounds.jsonl", {
        "round": 2, "clients": 25, "refused": [f"client '{t}' lost: {t}" for t in texts],
        "loss": 1.0, "losses": losses, "bytes_up": 1, "bytes_down": 1,
    })  # fmt: skip
    page.wait_for_selector("header.top:has-text('2 of 1')")
    page.wait_for_selector("#absences td", state="attached")
    shown = page.evaluate(WORDS)
    assert missing(shown, {"absences": ("th", "td")}, group, True) == []
    assert missing(shown, {"curves": ("@data-tip",)}, group, False) == []
    assert page.evaluate(WIDE) == 0
    seen.harmless()
    assert (
        page.locator("main :is(script:not([type]), img, iframe, form, base, object)").count() == 0
    )
    os.unlink(run / "lock")
    base = address.partition("/?")[0]
    assert [url for url in seen.requests if not url.startswith(base)] == []


@GROUP
def test_none_of_them_reaches_the_terminal(tmp_path: Path, group: Sequence[Payload]) -> None:
    """`fedsdr show`: no control character but line ends, and nothing is taken for markup."""
    run = write_hostile(tmp_path / "run", group)
    for directory in (run, tmp_path):
        for more in ([], ["--json"]):
            shown = CliRunner().invoke(app, ["show", str(directory), *more])
            assert shown.exit_code == 0, shown.output
            assert visible(shown.output) == shown.output
