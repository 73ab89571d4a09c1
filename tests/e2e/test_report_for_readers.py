"""The report as people use it: every control against numbers reckoned here, by keyboard, with what
a screen reader is told, in both themes, without a script, and on paper."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any
from xml.etree import ElementTree

import pytest

from browser import browser as browser
from fedsdr.report.page import PageOptions, render_report
from fedsdr.report.read import read_records
from made_runs import write_diagnosis, write_run
from rewritten import answer_row, rewrite_row, write_rows

pytestmark = pytest.mark.browser
CLIENTS = tuple(f"c{n}" for n in range(12))
LENGTHS = ((0.0, 0.5), (0.5, 0.9), (0.9, 1.1), (1.1, 2.0), (2.0, 1e9))
VERDICTS = ("faithful", "wrong value", None)
DAMAGE = {  # the words on the page: what a row says of it
    "number invented": {"numbers_invented": ["7"]},
    "number lost": {"numbers_lost": ["1800"]},
    "name invented": {"names_invented": ["Ada"]},
    "name lost": {"names_lost": ["Bob"]},
}
Row = dict[str, Any]


def made_rewrites() -> list[Row]:
    """In the order of the page: by client, as they stand in its file."""
    draw, found = Random(0), list[Row]()
    for client in ("c2", "c10", "c11"):
        for number in range(40):
            kinds = [words for words in DAMAGE if draw.random() < 0.3]
            ratio = draw.choice((0.2, 0.7, 1.0, 1.5, 2.5))
            word = draw.choice(("lake", "river", "sea"))
            row = rewrite_row(
                f"{client}-{number}", prompt=f"Which {word} is it?", kept=draw.random() < 0.6,
                raw="Bob saw 1800 of them.", written="Ada saw 7.", length_ratio=ratio,
                judged=draw.choice(VERDICTS), **{k: v for w in kinds for k, v in DAMAGE[w].items()},
            )  # fmt: skip
            bits = [*kinds, *(["over twice as long"] if ratio > 2 else [])]
            found.append({"client": client, "kinds": bits, "word": word, "row": row})
    return found


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("readers")
    run = write_run(folder / "run", clients=CLIENTS, refused={2: ["client 'c1' lost: it hung up"]})
    write_diagnosis(run, CLIENTS)
    rewrites = made_rewrites()
    for client in {made["client"] for made in rewrites}:
        own = [made["row"] for made in rewrites if made["client"] == client]
        write_rows(run / "clients" / client / "rewrites.jsonl", own)
        asked = answer_row("q", "Which?", "It is blue.", base="No.", **{"global": "It is blue."})
        write_rows(run / "clients" / client / "answers.jsonl", [asked])
    other = write_run(folder / "other", "fedavg", clients=CLIENTS)
    options = PageOptions(include_texts=True)
    (folder / "two.html").write_text(render_report(read_records([run, other]), options), "utf-8")
    report = folder / "report.html"
    report.write_text(render_report(read_records([run]), options), encoding="utf-8")
    return report


@pytest.fixture
def opened(browser: Any, file: Path) -> Iterator[Callable[..., Any]]:
    contexts, wrong = list[Any](), list[str]()

    def open_(name: str = "report.html", **options: Any) -> Any:
        given = {"viewport": {"width": 1280, "height": 900}, "reduced_motion": "reduce", **options}
        contexts.append(browser.new_context(**given))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda said: wrong.append(said.text))
        page.goto(file.with_name(name).as_uri())
        if options.get("java_script_enabled", True):
            page.wait_for_selector(".rw-list li")
        return page

    yield open_
    for context in contexts:
        context.close()
    assert wrong == []


def test_filters_together_show_what_they_should(opened: Callable[..., Any]) -> None:
    """Forty random settings of all of them at once: the count, the rows and their order."""
    page, made, draw = opened(), made_rewrites(), Random(1)
    clients = list(dict.fromkeys(row["client"] for row in made))
    verdicts = list(dict.fromkeys(row["row"]["judged"] for row in made if row["row"]["judged"]))
    settings = [
        {
            "client": draw.choice([None, *clients]), "outcome": draw.choice([None, None, 0, 1]),
            "ratio": draw.choice([None, None, None, 1, 4]),
            "verdict": draw.choice([None, None, *verdicts]),
            "order": draw.choice(["data", "damage", "longest", "shortest"]),
            "kinds": draw.sample([*DAMAGE, "over twice as long"], draw.choice([0, 0, 1, 2])),
            "search": draw.choice(["", "", "lake", "c10-3 river"]),
        }
        for _ in range(40)
    ]  # fmt: skip
    shown = page.evaluate(
        """async (settings) => {
          const form = document.querySelector(".rw form"), found = [];
          for (const s of settings) {
            document.querySelector("[data-reset]").click();
            for (const b of form.querySelectorAll(".rw-kind"))
              if (s.kinds.includes(b.firstChild.data)) b.click();
            const put = (name, value) => { form.elements[name].value = value; };
            put("client", s.at.client); put("outcome", s.outcome ?? -1);
            put("ratio", s.ratio ?? -1); put("verdict", s.at.verdict);
            put("order", s.order); put("search", s.search);
            form.elements.search.dispatchEvent(new Event("input", { bubbles: true }));
            await new Promise((done) => setTimeout(done, 160));
            found.push({ status: document.querySelector("[data-status]").textContent,
              client: form.elements.client.selectedOptions[0].textContent,
              ids: [...document.querySelectorAll(".rw-row-id")].map((e) => e.textContent) });
          }
          return found;
        }""",
        [
            {**s, "at": {"client": clients.index(s["client"]) if s["client"] else -1,
                         "verdict": verdicts.index(s["verdict"]) if s["verdict"] else -1}}
            for s in settings
        ],
    )  # fmt: skip
    for setting, seen in zip(settings, shown, strict=True):
        left = [row for row in made if fits(row, setting)]
        by: Mapping[str, Callable[[Row], float]] = {
            "data": lambda row: 0, "damage": lambda row: -len(row["kinds"]),
            "longest": lambda row: -row["row"]["length_ratio"],
            "shortest": lambda row: row["row"]["length_ratio"],
        }  # fmt: skip
        left.sort(key=by[setting["order"]])
        all_ = len(left) == len(made)
        assert seen["status"] == ("" if all_ else f"{len(left)} of ") + "120 rewrites", setting
        assert seen["ids"] == [row["row"]["id"] for row in left[:50]], setting
        if not setting["client"]:
            assert seen["client"] == f"all clients ({len(left)})", setting


def fits(made: Row, setting: Mapping[str, Any]) -> bool:
    row, (low, high) = made["row"], LENGTHS[setting["ratio"] or 0]
    text = f"{row['id']} {row['prompt']} {row['raw']} {row['written']}".lower()
    return (
        setting["client"] in (None, made["client"])
        and setting["outcome"] in (None, int(row["kept"]))
        and (setting["ratio"] is None or low <= row["length_ratio"] < high)
        and setting["verdict"] in (None, row["judged"])
        and set(setting["kinds"]) <= set(made["kinds"])
        and all(word in text for word in setting["search"].split())
    )


def test_every_column_of_every_table_sorts(opened: Callable[..., Any]) -> None:
    columns = opened().evaluate(
        """() => [...document.querySelectorAll("table.sortable")].flatMap((table) =>
          [...table.tHead.rows[0].cells].map((head, at) => {
            const read = () => { head.querySelector("button").click();
              return [...table.tBodies[0].rows].map((row) =>
                row.cells[at].dataset.value ?? row.cells[at].textContent.trim()); };
            return head.querySelector("button")
              ? [table.caption.textContent + ": " + head.textContent, read(), read()] : null;
          })).filter(Boolean)"""
    )
    assert len(columns) > 50
    for name, up, down in columns:
        assert sorted(up) == sorted(down), name
        keys = [key(cell) for cell in up if cell not in ("", "–")]
        assert keys == sorted(keys), name
        keys = [key(cell) for cell in down if cell not in ("", "–")]
        assert keys == sorted(keys, reverse=True), name


def key(cell: str) -> tuple[float, tuple[tuple[int, int | str], ...]]:
    """A number by its size, words as people count: c2 before c10."""
    plain = cell.replace("−", "-").replace(",", "")
    if found := re.fullmatch(r"([+-]?\d*\.?\d+) ?(%|kB|MB|GB|B|×|s)?", plain):
        scale = {"kB": 1e3, "MB": 1e6, "GB": 1e9}.get(found[2] or "", 1.0)
        return float(found[1]) * scale, ()
    parts = [p for p in re.split(r"(\d+)", cell.lower()) if p]
    return 0.0, tuple((0, int(p)) if p.isdigit() else (1, p) for p in parts)


def test_every_slider_shows_the_numbers_of_its_round(
    opened: Callable[..., Any], file: Path
) -> None:
    page = opened()
    rows = (file.parent / "run" / "diagnostics.jsonl").read_text().splitlines()
    charts = page.locator(".chart:has(.slider)")
    assert charts.count() == 2  # R and S
    for chart in charts.all():
        branch = chart.get_attribute("data-name")[-1].upper()
        for at, line in enumerate(rows):
            chart.locator("input").fill(str(at))
            row = json.loads(line)
            matrix = row["branches"][branch]["cosine"]
            told = [
                f"{a} × {b}: {value:.2f}".replace("-", "−").replace("−0.00", "0.00")
                for a, line in zip(row["clients"], matrix, strict=True)
                for b, value in zip(row["clients"], line, strict=True)
            ]
            assert chart.locator("output").text_content() == str(row["round"])
            tips = "all => all.map((cell) => cell.dataset.tip)"
            assert chart.locator("g.cells rect").evaluate_all(tips) == told


def test_figures_can_be_saved(opened: Callable[..., Any], tmp_path: Path) -> None:
    page = opened()
    names = page.locator(".chart").evaluate_all("all => all.map((c) => c.dataset.name)")
    assert len(names) == len(set(names)) > 15
    for number in range(0, len(names), 5):  # a browser takes ten files in a row
        name = names[number]
        with page.expect_download() as waiting:
            page.locator(".chart .save").nth(number).click()
        waiting.value.save_as(tmp_path / name)
        assert waiting.value.suggested_filename == f"{name}.svg"
        drawing = ElementTree.parse(tmp_path / name).getroot()
        tags = {e.tag.rpartition("}")[2] for e in drawing.iter()}
        assert {"title", "desc", "text"} <= tags, name
        assert not tags & {"script", "foreignObject", "image", "a", "style"}, name
        assert all(e.get("fill") for e in drawing.iter() if e.tag.endswith("}text")), name


def test_the_contents_lead_to_every_section(opened: Callable[..., Any]) -> None:
    page = opened()
    sections = page.locator("main > section").evaluate_all("all => all.map((s) => s.id)")
    links = page.locator(".menu a")
    hrefs = links.evaluate_all("all => all.map((a) => a.getAttribute('href'))")
    assert hrefs == [f"#{id}" for id in sections]
    for link, id in zip(links.all(), sections, strict=True):
        link.click()
        assert page.locator(f"#{id} h2").bounding_box()["y"] < 900
        assert page.evaluate("location.hash") == f"#{id}"


def test_by_keyboard_alone(opened: Callable[..., Any]) -> None:
    """The first Tab skips to the content; each stop can be seen to have the focus, has a name, and
    is passed once, to the end of the page."""
    page = opened()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "content"
    page.evaluate("document.activeElement.blur()")
    stops = page.evaluate(
        "[...document.querySelectorAll('*')].filter((e) => e.tabIndex >= 0).length"
    )
    focus = """() => { const e = document.activeElement; if (e === document.body) return null;
      window.been ??= new Set(); const again = been.has(e); been.add(e);
      const seen = (x) => { const s = getComputedStyle(x);
        return s.outlineStyle !== "none" && parseFloat(s.outlineWidth) >= 1; };
      return { what: `${e.localName}.${e.className} ${e.textContent.slice(0, 20)}`, again,
        seen: seen(e) || Boolean(e.labels?.length && seen(e.labels[0])) }; }"""
    been = list[Any]()
    for _ in range(stops + 5):
        page.keyboard.press("Tab")
        if (now := page.evaluate(focus)) is None or now["again"]:
            break
        been.append(now)
    assert [stop["what"] for stop in been if not stop["seen"]] == []
    assert len(been) > 60
    page.keyboard.press("Shift+Tab")
    # A closed part opens by Enter, a sort button sorts by Space.
    page.locator(".tools summary").first.focus()
    page.keyboard.press("Enter")
    assert page.locator(".tools details").first.evaluate("(d) => d.open")
    button = page.locator("table.sortable thead button").first
    button.focus()
    page.keyboard.press("Space")
    assert page.locator("th[aria-sort=ascending]").count() == 1


@pytest.mark.parametrize("name", ["report.html", "two.html"])
def test_what_a_screen_reader_is_told(opened: Callable[..., Any], name: str) -> None:
    """Of Chromium's own accessibility tree: everything that does or shows something has a name."""
    page = opened(name)
    page.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")
    tree = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    named = [
        (node["role"]["value"], node.get("name", {}).get("value", ""), focusable(node))
        for node in tree
        if not node.get("ignored") and "role" in node
    ]
    told = ("button", "link", "searchbox", "combobox", "slider", "listbox", "image", "region")
    for role in told:
        assert any(r == role for r, _, _ in named), role
    figures = [words for role, words, _ in named if role in ("image", "img")]
    titles = page.locator(".chart:visible h3").all_text_contents()
    assert figures == titles
    nameless = [role for role, words, _ in named if role in told and not words.strip()]
    assert nameless == []
    # What can be focused but does nothing by itself (a table that scrolls) must say what it is.
    mute = [role for role, words, can in named if can and not words.strip() and role != "main"]
    assert mute == []
    levels = [
        int(level)
        for level in page.locator("h1, h2, h3, h4, h5, h6").evaluate_all(
            "all => all.filter((h) => h.checkVisibility()).map((h) => h.localName[1])"
        )
    ]
    assert levels[0] == levels.count(1) == 1
    assert [(a, b) for a, b in pairwise(levels) if b > a + 1] == []
    assert page.locator("html[lang=en] main").count() == 1
    ids = page.locator("[id]").evaluate_all("all => all.map((e) => e.id)")
    assert sorted(ids) == sorted(set(ids))
    lost = page.evaluate(
        """() => [...document.querySelectorAll("[aria-labelledby], label[for]")]
          .flatMap((e) => (e.getAttribute("aria-labelledby") ?? e.htmlFor).split(" "))
          .filter((id) => id && !document.getElementById(id))"""
    )
    assert lost == []


def focusable(node: Mapping[str, Any]) -> bool:
    return any(p["name"] == "focusable" and p["value"]["value"] for p in node.get("properties", ()))


CONTRAST = """() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const rgba = (css) => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = css;
    canvas.fillRect(0, 0, 1, 1); return [...canvas.getImageData(0, 0, 1, 1).data]; };
  const over = ([r, g, b, a], under) =>
    [r, g, b].map((v, i) => (v * a) / 255 + under[i] * (1 - a / 255));
  const light = (rgb) => { const [r, g, b] = rgb.map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const ground = (e) => { const chain = [];
    for (let x = e; x; x = x.parentElement)
      chain.unshift(rgba(getComputedStyle(x).backgroundColor));
    return chain.reduce((under, top) => over(top, under), [255, 255, 255]); };
  const found = [];
  for (const e of document.querySelectorAll("body *")) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!own || !e.checkVisibility()) continue;
    if (e.closest("script, :disabled, .unseen, .skip, option")) continue;
    const style = getComputedStyle(e), drawn = e instanceof SVGElement;
    let under = ground(drawn ? e.closest("svg").parentElement : e);
    if (e.matches("svg .number")) under = rgba(getComputedStyle(e.previousElementSibling).fill);
    let opacity = 1;
    for (let x = e; x; x = x.parentElement) opacity *= Number(getComputedStyle(x).opacity);
    const ink = rgba(drawn ? style.fill : style.color);
    ink[3] *= opacity;
    const [a, b] = [light(over(ink, under)), light(under)].sort((x, y) => y - x);
    const size = parseFloat(style.fontSize), bold = Number(style.fontWeight) >= 700;
    const enough = size >= 24 || (bold && size >= 18.66) ? 3 : 4.5;
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < enough) found.push(`${ratio.toFixed(2)} ${e.localName}.${e.getAttribute("class")} `
      + `${e.closest("section")?.id}: ${e.textContent.slice(0, 30)}`);
  }
  return [...new Set(found)];
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["report.html", "two.html"])
def test_all_words_stand_out_from_their_ground(
    opened: Callable[..., Any], scheme: str, name: str
) -> None:
    """WCAG's 4.5 to 1, from what the browser computed; numbers in cells on their cell."""
    page = opened(name, color_scheme=scheme)
    page.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")
    assert page.evaluate(CONTRAST) == []
    for at in range(3):
        page.evaluate("(n) => document.querySelectorAll('.rw-list li')[n].click()", at)
        page.evaluate("document.querySelector('[data-inline=true]').click()")
        assert page.evaluate(CONTRAST) == []


@pytest.mark.parametrize("name", ["report.html", "two.html"])
def test_without_a_script_the_same_words_and_numbers(opened: Callable[..., Any], name: str) -> None:
    def words(page: Any) -> dict[str, Sequence[str]]:
        return {
            part: page.locator(part).all_text_contents()
            for part in ("h1", "h2", ".chart h3", "p.lead", "tbody td", "tbody th", "thead th",
                         "svg.figure text", "figcaption", ".an-answers dd", "#again pre")
        }  # fmt: skip

    plain, scripted = opened(name, java_script_enabled=False), opened(name)
    assert words(plain) == words(scripted)
    assert "switched off" in plain.inner_text("#rewrites")
    assert plain.locator("button.save:visible, .slider:visible, .filter:visible").count() == 0


@pytest.mark.parametrize("name", ["report.html", "two.html"])
def test_on_paper(opened: Callable[..., Any], name: str) -> None:
    page = opened(name)
    page.emulate_media(media="print")
    controls = "button, input, select, .slider, .tabs, nav, #tip"
    seen = page.locator(controls).evaluate_all(
        "all => all.filter((e) => e.checkVisibility() && !e.closest('thead'))"
        ".map((e) => e.outerHTML.slice(0, 80))"
    )
    assert seen == []
    hidden = page.locator(".panel").evaluate_all("all => all.filter((e) => !e.checkVisibility())")
    assert hidden == []
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == "rgb(255, 255, 255)"
    paper = page.pdf(format="A4")
    assert paper.startswith(b"%PDF")
    assert len(re.findall(rb"/Type\s*/Page\b", paper)) >= 3
