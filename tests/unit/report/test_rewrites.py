"""The rewrite viewer's counts, sample and privacy; what the browser shows is in
test_rewrites_in_a_browser.py."""

from __future__ import annotations

import base64
import gzip
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from fedsdr.report.answer_view import answers_section
from fedsdr.report.damage import ClientDamage, in_words, kinds_of
from fedsdr.report.page import PageOptions, render_report
from fedsdr.report.record import RunRecord
from fedsdr.report.section import Absent, Section
from fedsdr.report.viewer import MOST_CHARACTERS, pack, rewrites_section, stratified
from fedsdr.report.viewer_rows import read_rewrites
from rewritten import answer_row, rewrite_row, write_rows


def made(
    run: Path, rows: Mapping[str, Sequence[Any]], audit: Sequence[Any] = (), atlas: bool = False
) -> RunRecord:
    for client, own in rows.items():
        write_rows(run / "clients" / client / "rewrites.jsonl", own)
    recipe = {"data": {"atlas": {"preset": "small"}}} if atlas else {"data": {"file": "x.jsonl"}}
    facts = {"from_python": {"clients": False}}
    return RunRecord(
        path=run,
        name="made",
        state="finished",
        facts=facts,
        recipe_text="",
        recipe=recipe,
        audit=audit,
    )


def shown(section: Section | Absent) -> Section:
    assert isinstance(section, Section), section
    return section


def unpacked(payload: Mapping[str, Any]) -> dict[str, Any]:
    if "json" in payload:
        return json.loads(json.dumps(payload["json"]))
    return json.loads(gzip.decompress(base64.b64decode(payload["gzip"])))


# -- kinds of damage ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "kinds"),
    [
        ({}, ()),
        ({"numbers_lost": ["12"], "length_ratio": 2.01}, ("number-lost", "too-long")),
        ({"numbers_lost": 2, "names_invented": 1}, ("number-lost", "name-invented")),  # the audit
        ({"reasons": ["lost-number", "truncated", "leak:your turn"]},
         ("number-lost", "leak", "truncated")),
        # The reason speaks of another draft: this one has lost nothing.
        ({"reasons": ["lost-number"], "numbers_lost": []}, ()),
        ({"negation_invented": True, "dates_lost": 1}, ("date", "negation")),
        ({"reasons": ["other-call"], "length_ratio": None}, ("answer",)),
        ({"reasons": ["lost-meaning", "changed-language"], "length_ratio": "x"},
         ("meaning", "language")),
        ({"reasons": "lost-number", "length_ratio": float("inf")}, ()),
    ],
)  # fmt: skip
def test_kinds(row: Mapping[str, Any], kinds: tuple[str, ...]) -> None:
    assert sorted(kinds_of(row)) == sorted(kinds)


def test_reasons_in_words() -> None:
    assert in_words("lost-number") == "lost a number"
    assert in_words("leak:your turn") == "says “your turn”"
    assert in_words("some-new-reason:x") == "some new reason:x"


# -- counts ---------------------------------------------------------------------------------------

ROWS = {
    "c10": [rewrite_row("a", numbers_invented=["7"], reasons=["invented-number"], kept=False)],
    "c2": [
        rewrite_row("a", numbers_invented=["7"], judged="wrong value", length_ratio=3.0),
        rewrite_row("b", judged="faithful"),
        rewrite_row("c", names_lost=["velorin"], length_ratio=0.5),
    ],
}


def test_counts_by_hand(tmp_path: Path) -> None:
    data = shown(rewrites_section(made(tmp_path, ROWS), True)).data
    assert [client.client for client in data["clients"]] == ["c2", "c10"]
    assert data["clients"][0] == ClientDamage(
        client="c2", rewrites=3, kept=3, ratio=1.0, judged=2, faithful=1,
        written={"number-invented": 1, "too-long": 1, "name-lost": 1},
        trained={"number-invented": 1, "too-long": 1, "name-lost": 1},
    )  # fmt: skip
    assert data["total"].written["number-invented"] == 2
    assert data["total"].trained["number-invented"] == 1
    assert data["sentences"] == [
        "3 of 4 rewrites (75 %) passed the checks and are trained on; 1 fell back to the raw "
        "answer.",
        "The median rewrite is 1.00 times as long as its raw answer; 1 are over twice as long.",
        "Other damage was found in 3 (75 %), of which 2 are trained on all the same.",
        "By the exact verdict, 1 of 2 (50 %) say what is true and nothing else.",
    ]


def test_what_only_the_audit_knows_counts_too(tmp_path: Path) -> None:
    audit = [
        {"client_id": "c2", "example_id": "b", "kept": True, "negation_lost": True, "reasons": []},
        {"client_id": "c3", "example_id": "z", "kept": False, "reasons": ["truncated"]},
    ]
    data = shown(rewrites_section(made(tmp_path, ROWS, audit), True)).data
    assert data["total"].rewrites == 5
    assert data["total"].written["negation"] == 1
    assert data["total"].written["truncated"] == 1
    assert "Of 1 other client this page holds counts only." in data["sample"]


# -- privacy --------------------------------------------------------------------------------------

AUDIT = [{"client_id": "c2", "example_id": "a", "kept": True, "names_lost": 1, "reasons": []}]


def test_no_text_unless_asked_for(tmp_path: Path) -> None:
    write_rows(tmp_path / "clients" / "c2" / "answers.jsonl", [answer_row("q", "SECRET")])
    record = made(tmp_path, {"c2": [rewrite_row("a", raw="SECRET")]}, AUDIT)
    section = shown(rewrites_section(record))
    assert section.data["payload"] is None
    assert section.data["total"].written == {"name-lost": 1}
    page = render_report([record])
    assert "SECRET" not in page
    assert f"fedsdr report {tmp_path} --include-texts --client ID" in page
    assert isinstance(answers_section(record), Absent)
    assert "SECRET" in render_report([record], PageOptions(include_texts=True))


def test_the_texts_of_one_client_only(tmp_path: Path) -> None:
    rows = {"c1": [rewrite_row("a", raw="OURS")], "c2": [rewrite_row("b", raw="THEIRS")]}
    page = render_report([made(tmp_path, rows)], PageOptions(include_texts={"c1"}))
    assert "OURS" in page
    assert "THEIRS" not in page


def test_atlas_shows_its_own_by_default(tmp_path: Path) -> None:
    section = shown(rewrites_section(made(tmp_path, ROWS, atlas=True)))
    assert section.data["payload"] is not None


@pytest.mark.parametrize(
    ("rows", "texts", "why"),
    [({}, True, "Nothing was rewritten"), ({"c1": [rewrite_row("a")]}, False, "are private")],
)
def test_absent_and_why(tmp_path: Path, rows: Mapping[str, Any], texts: bool, why: str) -> None:
    section = rewrites_section(made(tmp_path, rows), texts)
    assert isinstance(section, Absent)
    assert why in section.why


# -- what goes into the page ----------------------------------------------------------------------


def many(tmp_path: Path, count: int, text: str = "word ") -> RunRecord:
    """Of the large client c0 one in a hundred lost a name; the small one has three rewrites."""
    large = [
        rewrite_row(f"e{i}", raw=f"{text} {i * 7919 % 1000003}", names_lost=["x"] * (i % 100 == 0))
        for i in range(count)
    ]
    return made(tmp_path, {"c0": large, "c1": [rewrite_row(f"f{i}") for i in range(3)]})


def test_every_beginning_of_the_order_is_fair(tmp_path: Path) -> None:
    entries = read_rewrites(many(tmp_path, 1000).path, ["c0", "c1"]).entries
    order = stratified(entries)
    assert sorted(order) == list(range(1003))
    assert order == stratified(entries)
    assert order != stratified(entries, seed=1)
    first = [entries[at].damage for at in order[:9]]
    assert Counter((d.client, d.kinds) for d in first) == {
        ("c0", ()): 3, ("c0", ("name-lost",)): 3, ("c1", ()): 3,
    }  # fmt: skip


def test_the_page_stays_small_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = many(tmp_path, 3000)
    entries = read_rewrites(record.path, ["c0", "c1"]).entries
    packed = pack(entries, most_packed=20_000)
    assert packed.size <= 20_000
    assert 300 < packed.shown < packed.total == 3003
    rows = unpacked(packed.payload)["rows"]
    assert len(rows["id"]) == packed.shown
    assert Counter(rows["client"])[1] == 3  # the small client is there in full
    assert sum(kinds > 0 for kinds in rows["kinds"]) == 30  # and the rare damage
    assert len(pack(entries, most_unpacked=50_000).payload["json"]["rows"]["id"]) < 400
    monkeypatch.setattr("fedsdr.report.viewer.pack", partial(pack, most_packed=20_000))
    data = shown(rewrites_section(record, True)).data
    assert data["total"].rewrites == 3003  # the counts are over all
    assert data["total"].written["name-lost"] == 30
    assert "of 3,003 rewrites can be read below" in data["sample"]
    assert "(seed 0)" in data["sample"]


def test_pages_of_the_same_run_are_the_same(tmp_path: Path) -> None:
    entries = read_rewrites(many(tmp_path, 1000).path, ["c0", "c1"]).entries
    assert pack(entries) == pack(entries)


def test_columns_by_hand(tmp_path: Path) -> None:
    kept = rewrite_row("a", prompt="p", raw="r", written="w", trained="w", domain="d")
    back = rewrite_row("b", raw="r", written="w", trained="r", kept=False, reasons=["truncated"])
    other = rewrite_row("c", raw="r", written="w", trained="t\u202e", numbers_lost=["1\0"])
    section = shown(rewrites_section(made(tmp_path, {"c0": [kept, back, other]}), True))
    held = unpacked(section.data["payload"])
    assert held["rows"]["trained"] == [1, 0, "t⟨U+202E⟩"]
    assert held["rows"]["numbers_lost"] == [[], [], ["1⟨U+0000⟩"]]
    assert held["names"]["reasons"] == ["breaks off"]
    assert held["rows"]["reasons"] == [[], [0], []]
    assert [held["names"]["domains"][d] for d in held["rows"]["domain"]] == ["d", "", ""]
    assert held["rows"]["prompt"][0] == "p"


def test_damaged_files_and_boundless_texts(tmp_path: Path) -> None:
    record = made(tmp_path, {"c0": [rewrite_row("a", raw="x" * 1_000_000), rewrite_row("b")]})
    path = tmp_path / "clients" / "c0" / "rewrites.jsonl"
    path.write_bytes(path.read_bytes() + b'[1]\n\n\xff\xfe\n{"id": "cut o')
    section = shown(rewrites_section(record, True))
    assert section.data["total"].rewrites == 2
    assert "1 text too long for a page are cut" in section.data["sample"]
    assert "3 lines of the files could not be read" in section.data["sample"]
    held = unpacked(section.data["payload"])
    assert held["cut"] == {"0": {"raw": 1_000_000}}
    assert len(held["rows"]["raw"][0]) == MOST_CHARACTERS


def test_a_row_of_nonsense_is_no_crash(tmp_path: Path) -> None:
    nonsense = {"id": None, "raw": 5, "written": ["x"], "kept": "yes", "reasons": 3, "judged": 1}
    nonsense |= {"numbers_lost": 7, "names_lost": [None, {}], "length_ratio": "long"}
    section = shown(rewrites_section(made(tmp_path, {"c0": [nonsense, {}]}), True))
    assert unpacked(section.data["payload"])["rows"]["raw"] == ["5", ""]


# -- answers --------------------------------------------------------------------------------------


def test_answers_by_hand(tmp_path: Path) -> None:
    row = answer_row("q1", "Which colour?", "It is amber.")
    row["answers"] = {"base": "Red.", "global": "red", "personal": "It is AMBER", "other": " "}
    row["judged"] = {"base": "wrong value", "personal": None}
    write_rows(tmp_path / "clients" / "c0" / "answers.jsonl", [row])
    section = shown(answers_section(made(tmp_path, {}), True))
    (client,) = section.data["clients"]
    (question,) = client.questions
    assert [(a.mix, a.remark) for a in question.answers] == [
        ("base", ""), ("global", "as base"), ("personal", "the reference, word for word"),
        ("other", "says nothing"),
    ]  # fmt: skip
    assert [a.verdict for a in question.answers] == ["wrong value", "", "", ""]
    assert [piece.shared for piece in question.answers[2].pieces] == [True]


def test_answers_are_sampled_and_cut(tmp_path: Path) -> None:
    for client in range(200):
        rows = [answer_row(f"q{i}", "p", "r" * 5000, personal="a" * 5000) for i in range(20)]
        write_rows(tmp_path / "clients" / f"c{client}" / "answers.jsonl", rows)
    data = shown(answers_section(made(tmp_path, {}), True)).data
    assert (data["count"], data["total"], data["left_out"]) == (96, 4000, 104)
    page = render_report([made(tmp_path, {})], PageOptions(include_texts=True))
    assert "96 of the 4,000 test questions sampled by the run" in page
    assert "Cut: the start of 5,000 characters." in page
