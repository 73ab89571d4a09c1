"""The page: whole, self-contained, readable by machines that read it aloud, and deaf to what its
data say."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
import time
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from fedsdr.report.page import PageOptions, json_block, prose, render_report
from fedsdr.report.read import read_records
from made_runs import rows, write_diagnosis, write_run

pytestmark = pytest.mark.usefixtures("no_fsync")
HOSTILE = "<script>hit()</script>\u202e\"' onload=hit() {{7*7}} </style> ]]> \x00&amp;"


class Tags(HTMLParser):
    """All that a page is made of."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    run = write_run(tmp_path / "run", refused={2: ["client 'c1' lost: it hung up"]})
    write_diagnosis(run)
    return run


@pytest.fixture
def page(run: Path) -> str:
    return render_report(read_records([run]))


def test_every_section_is_there(page: str) -> None:
    ids = [tag.get("id") for tag in Tags(page).of("section")]
    assert ids == [
        "scores", "curves", "data", "heterogeneity", "agreement", "drift", "personal", "cost",
        "absences", "again", "notes", "not-here",
    ]  # fmt: skip
    for words in (
        "Recall, global model", "worst 10 %", "Training rows by client and domain",
        "Jensen–Shannon divergence of words, rewritten", "Cosine of updates, the personal branch S",
        "Aggregation error", "Recall: global against personal", "Bytes by round", "Time by phase",
        "it hung up", "fedsdr train", "preset: mild",
    ):  # fmt: skip
        assert words in page


def test_the_policy_admits_these_scripts_and_styles_and_nothing_else(page: str) -> None:
    found = Tags(page)
    (policy,) = [m["content"] for m in found.of("meta") if m.get("http-equiv")]
    assert policy is not None
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    for tag, rule in (("script", "script-src"), ("style", "style-src")):
        (allowed,) = re.findall(rf"{rule} ([^;]*)", policy)
        written = [
            text for attributes, text in re.findall(rf"<{tag}([^>]*)>(.*?)</{tag}>", page, re.S)
            if "application/json" not in attributes
        ]  # fmt: skip
        hashed = [
            f"'sha256-{base64.b64encode(hashlib.sha256(t.encode()).digest()).decode()}'"
            for t in written
        ]
        assert allowed.split() == hashed


def test_nothing_is_loaded_and_nothing_is_inline(page: str) -> None:
    for tag, attributes in Tags(page).tags:
        assert "style" not in attributes, tag
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in ("src", "href", "action", "xlink:href", "srcset"):
            assert (attributes.get(name) or "#").startswith("#"), (tag, attributes)
    assert "innerHTML" not in page
    assert not re.search(r"@import|url\(", page)


def test_the_page_can_be_read_aloud(page: str) -> None:
    found = Tags(page)
    assert {"header", "nav", "main", "footer"} <= {tag for tag, _ in found.tags}
    assert [a["lang"] for a in found.of("html")] == ["en"]
    levels = [int(tag[1]) for tag, _ in found.tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    ids = Counter(a["id"] for _, a in found.tags if a.get("id"))
    assert [name for name, times in ids.items() if times > 1] == []
    assert page.count("<table") == page.count("<caption")
    for svg in found.of("svg"):
        assert svg["role"] == "img"
        assert all(name in ids for name in (svg["aria-labelledby"] or "").split())
    for link in found.of("a"):
        assert (link["href"] or "#")[1:] in ids


def test_texts_of_others_are_text(tmp_path: Path) -> None:
    hostile = HOSTILE.replace("\x00", "")
    run = write_run(
        tmp_path / "run", clients=[hostile, "c1"],
        refused={1: [f"client {hostile!r} lost: {HOSTILE}"]},
        options={HOSTILE: HOSTILE},
    )  # fmt: skip
    write_diagnosis(run, [hostile, "c1"])
    rows(run / "timings.jsonl", [{"round": 0, "phase": HOSTILE, "seconds": 1}])
    page = render_report(read_records([run]))
    assert "<script>hit" not in page
    assert "\u202e" not in page
    assert "\x00" not in page
    assert "⟨U+202E⟩" in page
    assert "⟨U+0000⟩" in page
    found = Tags(page)
    assert {tag for tag, _ in found.tags} <= {
        "html", "head", "meta", "title", "style", "body", "a", "header", "div", "p", "span",
        "button", "h1", "dl", "dt", "dd", "small", "nav", "details", "summary", "ol", "li",
        "main", "section", "h2", "ul", "table", "caption", "thead", "tbody", "tr", "th", "td",
        "figure", "figcaption",
        "h3", "svg", "desc", "text", "line", "g", "path", "circle", "rect", "label", "input",
        "output", "script", "code", "pre", "footer", "strong", "br",
    }  # fmt: skip
    assert all(not name.startswith("on") for _, attributes in found.tags for name in attributes)


@pytest.mark.parametrize(
    "file", ["rounds.jsonl", "diagnostics.jsonl", "validation.jsonl", "timings.jsonl"]
)
@pytest.mark.parametrize(
    "value", [None, "x", [], {}, 7, [[1]], {"R": 3}, {"c0": {"a": "b"}}, -1e308]
)
def test_values_of_another_kind_do_not_bring_the_page_down(
    run: Path, file: str, value: object
) -> None:
    found = [json.loads(line) for line in (run / file).read_text().splitlines()]
    for key in {key for row in found for key in row} - {"round"}:
        rows(run / file, [{**row, key: value} for row in found])
        page = render_report(read_records([run]))
        assert "How to run" in page or "how to run it again" in page


@pytest.mark.parametrize("file", ["results.json", "profile.json", "diagnosis.json"])
@pytest.mark.parametrize("value", [None, "x", [], {}, 7, [[1]], {"global": 3}, {"raw": {"cka": 1}}])
def test_nor_in_other_files(run: Path, file: str, value: object) -> None:
    found = json.loads((run / file).read_text())
    for key in found:
        (run / file).write_text(json.dumps({**found, key: value}))
        assert "how to run it again" in render_report(read_records([run]))


def test_a_run_that_has_just_begun(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", rounds=0, finished=False, detailed=False)
    page = render_report(read_records([run]))
    assert "No round is finished yet." in page
    assert "fedsdr diagnose" in page


def test_a_private_run_without_and_with_its_texts(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", synthetic=False)
    own = run / "clients" / "c0"
    own.mkdir(parents=True)
    answers = {"base": "SECRET"}
    row = {"id": "q", "prompt": "SECRET", "reference": "SECRET", "answers": answers}
    rows(own / "answers.jsonl", [row])
    records = read_records([run])
    quiet = render_report(records)
    assert "SECRET" not in quiet
    assert "Holds records’ texts" not in quiet
    told = render_report(records, PageOptions(include_texts=True))
    assert "SECRET" in told
    assert "Holds records’ texts" in told


def test_several_runs(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / f"{m}-{s}", m, s) for m in ("fedavg", "fedsdr") for s in (1, 2)]
    page = render_report(read_records(runs))
    assert "95 %\ninterval" in page or "interval of that mean" in page
    assert "too few seeds to tell" in page
    assert "Keys that differ" in page
    labels = re.findall(r'<label for="tab-curves-\d+">([^<]*)</label>', page)
    assert labels == [
        "all runs",
        "fedavg, seed 1",
        "fedavg, seed 2",
        "fedsdr, seed 1",
        "fedsdr, seed 2",
    ]


def test_two_hundred_runs_are_summarised_small_and_quick(tmp_path: Path) -> None:
    for seed in range(20):
        for number in range(10):
            place, clients = tmp_path / f"m{number}-{seed}", [f"c{n}" for n in range(20)]
            write_run(place, f"m{number}", seed, clients, detailed=seed == 0)
    began = time.process_time()
    page = render_report(read_records([tmp_path]))
    assert time.process_time() - began < 8  # a second or two, on a machine that does nothing else
    assert len(page.encode()) < 3_000_000
    assert "Of 200 runs, 6 are shown one by one" in page
    assert "Cosine of updates" in page  # the first of each method is read in full


def test_neither_torch_nor_transformers_is_needed(run: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from fedsdr.report.page import render_report\n"
        "from fedsdr.report.read import read_records\n"
        f"render_report(read_records([Path({str(run)!r})] ))\n"
        "print([m for m in ('torch', 'transformers', 'starlette') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_json_in_a_page_ends_no_element() -> None:
    text = json_block({"a": "</script><!-- \u2028 & é"})
    assert not re.search("[<>&\u2028é]", text)
    assert json.loads(text) == {"a": "</script><!-- \u2028 & é"}
    with pytest.raises(ValueError, match="JSON"):
        json_block(float("nan"))


def test_code_in_a_sentence() -> None:
    assert prose("Do `fedsdr a <b>` now.") == "Do <code>fedsdr a &lt;b&gt;</code> now."
    assert prose("Client `a` and client `b`.") == "Client `a` and client `b`."
    assert prose("A lone ` & more.") == "A lone ` &amp; more."
