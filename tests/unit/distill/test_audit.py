"""The audit counts, by hand, and keeps the records' text to itself."""

from __future__ import annotations

import json
import stat
from dataclasses import asdict
from pathlib import Path

import pytest

from fedsdr.distill.audit import AuditRow, audit_row, in_a_line, summarise, write_audit
from fedsdr.distill.prompts import TEMPLATES
from fedsdr.distill.selection import Draft, select
from fedsdr.parts.views import parse_selection
from fedsdr.types import Example

FREE = TEMPLATES["free"]
EXAMPLE = Example("e1", "Who built it?", "Ada built it in 1832.")
FAITHFUL = "It was Ada who, in 1832, built it, and of course let me know."  # 14 words
UNFAITHFUL = "In 1833 it was surely Bob."
SECRETS = ("Ada", "1832", "Bob", "1833", "Who built")


def row(client: str, rule: str, *texts: str, include_texts: bool = False) -> AuditRow:
    drafts = [Draft(text, False) for text in texts]
    choice = select(parse_selection(rule), EXAMPLE, drafts)
    return audit_row(EXAMPLE, client, FREE, choice, drafts, include_texts=include_texts)


def test_a_row_by_hand() -> None:
    kept = row("c", "resample(2)", UNFAITHFUL, FAITHFUL)
    assert (kept.kept, kept.draw, kept.draws, kept.reasons) == (True, 1, 2, ())
    assert (kept.before.words, kept.after.words, kept.length_ratio) == (5, 14, 2.8)
    assert (kept.before.filler, kept.after.filler) == (0, 2)
    assert (kept.numbers_lost, kept.names_invented) == (0, 0)

    fell_back = row("c", "facts", UNFAITHFUL)
    assert (fell_back.kept, fell_back.draw, fell_back.template) == (False, None, "free")
    assert (fell_back.numbers_lost, fell_back.numbers_invented) == (1, 1)
    assert fell_back.names_invented == 1
    assert fell_back.changed
    assert set(fell_back.reasons) >= {"lost-number", "invented-number", "invented-name"}


def test_no_text_is_written_unless_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    write_audit(path, [row("c", "facts", UNFAITHFUL), row("c", "none", FAITHFUL)])
    written = path.read_text()
    assert not [secret for secret in SECRETS if secret in written]
    assert [json.loads(line)["kept"] for line in written.splitlines()] == [False, True]
    assert "texts" not in json.loads(written.splitlines()[0])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]

    write_audit(path, [row("c", "facts", UNFAITHFUL, include_texts=True)])
    (line,) = path.read_text().splitlines()
    assert json.loads(line)["texts"] == [EXAMPLE.response, UNFAITHFUL]


def test_summary_per_client_and_overall() -> None:
    rows = [
        row("b", "facts", UNFAITHFUL),
        row("a", "facts", FAITHFUL),
        row("b", "facts", FAITHFUL),
        row("b", "facts", EXAMPLE.response),
    ]
    summary = summarise(rows)
    assert list(summary.clients) == ["a", "b"]
    a, b = summary.clients["a"], summary.clients["b"]
    assert (a.kept, a.fell_back, a.reasons) == (1.0, 0.0, {})
    assert (b.examples, b.kept, b.changed) == (3, pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert b.reasons["lost-number"] == 1
    # written: 6, 14 and 5 words for 5 each; the first falls back, so the ratios trained: 1, 2.8, 1
    assert b.written.length_ratio == pytest.approx(1.2)
    assert b.trained.length_ratio == pytest.approx(1.0)
    assert b.written.longer_than_twice == b.trained.longer_than_twice == pytest.approx(1 / 3)
    assert b.written.numbers_lost == pytest.approx(1 / 3)
    assert b.trained.numbers_lost == 0.0
    assert b.filler_per_1000_before == 0.0
    assert b.written.filler_per_1000 == pytest.approx(1000 * 2 / 25)
    assert b.trained.filler_per_1000 == pytest.approx(1000 * 2 / 24)
    assert summary.overall.examples == 4
    assert summary.overall.kept == pytest.approx(3 / 4)
    assert json.loads(json.dumps(asdict(summary)))["clients"]["b"]["reasons"]["invented-name"] == 1


def test_forms_are_counted_apart() -> None:
    label = Example("e2", "Positive or negative?", "positive")
    draft = Draft("It is negative.", False)
    choice = select(parse_selection("task"), label, [draft])
    rows = [row("a", "none", FAITHFUL), audit_row(label, "a", FREE, choice, [draft])]
    forms = summarise(rows).overall.forms
    assert list(forms) == ["label", "prose"]
    assert (forms["label"].examples, forms["label"].kept) == (1, 0.0)
    assert (forms["prose"].examples, forms["prose"].kept) == (1, 1.0)


def test_a_phrase_of_the_original_is_not_counted_as_a_leak() -> None:
    letter = Example("e3", "Write to him.", "I look forward to your response.")
    drafts = [Draft("I await your response. This is my response.", False)]
    choice = select(parse_selection("none"), letter, drafts)
    assert audit_row(letter, "a", FREE, choice, drafts).leaks == 1


def test_without_selection_what_is_trained_is_what_was_written() -> None:
    summary = summarise([row("a", "none", UNFAITHFUL), row("a", "none", FAITHFUL)]).overall
    assert summary.written == summary.trained
    assert summary.written.numbers_lost == 0.5


def test_a_summary_of_nothing_is_a_bug() -> None:
    with pytest.raises(ValueError, match="no audit rows"):
        summarise([])


@pytest.mark.parametrize(
    ("kept", "lost", "said"),
    [
        (3, 0, "rewriting: 3 of 3 rewrites kept"),
        (2, 2, "rewriting: 2 of 4 rewrites kept; 2 fell back to the original answer (most: "),
        (1, 2, "warning: only 1 of 3 rewrites kept; 2 fell back to the original answer (most: "),
        (0, 1000, "warning: only 0 of 1,000 rewrites kept; 1,000 fell back to the original"),
    ],
)
def test_in_a_line_it_warns_of_rewrites_that_were_not_kept(kept: int, lost: int, said: str) -> None:
    rows = [row("c", "none", FAITHFUL)] * kept + [row("c", "facts", UNFAITHFUL)] * lost
    line = in_a_line(summarise(rows).overall)
    assert line.startswith(said)
    assert not lost or line.endswith(f"(most: invented-name, {lost:,})")
