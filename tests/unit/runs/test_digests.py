"""What a checkpoint knows of the rows before it: any other row is refused, and named."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from fedsdr.errors import CorruptArtifact
from fedsdr.runs import digests
from fedsdr.runs.digests import MOST_MARKS, Written, read_written, trusted
from fedsdr.runs.files import append_row

pytestmark = pytest.mark.usefixtures("no_fsync")
ROUNDS, LEDGER, NEVER = "rounds.jsonl", "ledger.jsonl", "validation.jsonl"
FILES = (ROUNDS, LEDGER, NEVER)


def play(root: Path, first: int, last: int, written: Written | None = None) -> Written:
    """One row a round, and three of the ledger."""
    written = written or Written(FILES)
    for number in range(first, last + 1):
        for client in "abc":
            append_row(root / LEDGER, {"round": number, "client": client, "sum": number / 7})
        append_row(root / ROUNDS, {"round": number, "loss": 1 / number})
        written = written.after(root, number)
    return written


def lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


def test_what_was_written_is_in_order_and_later_rows_go(tmp_path: Path) -> None:
    written = play(tmp_path, 1, 3)
    kept = {file: (tmp_path / file).read_bytes() for file in (ROUNDS, LEDGER)}
    play(tmp_path, 4, 4, written)
    (tmp_path / NEVER).write_text('{"round": 4}\n')
    with (tmp_path / ROUNDS).open("ab") as file:
        file.write(b'{"roun')
    written.verify(tmp_path)
    assert {file: (tmp_path / file).read_bytes() for file in kept} == kept
    assert (tmp_path / NEVER).read_bytes() == b""
    assert stat.S_IMODE((tmp_path / ROUNDS).stat().st_mode) == 0o600


def test_it_survives_the_checkpoint(tmp_path: Path) -> None:
    written = play(tmp_path, 1, 5)
    again = read_written(FILES, json.loads(json.dumps(written.facts())))
    assert again == written


def test_a_resume_ends_with_the_same_marks(tmp_path: Path) -> None:
    """Else the checkpoints of a run that was killed would have other bytes."""
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    whole = play(tmp_path / "whole", 1, 80)
    written = play(tmp_path / "cut", 1, 41)
    play(tmp_path / "cut", 42, 43, written)
    written = read_written(FILES, written.facts())
    written.verify(tmp_path / "cut")
    assert play(tmp_path / "cut", 42, 80, written) == whole


CHANGES: dict[str, tuple[Callable[[list[bytes]], list[bytes]], str]] = {
    "edited": (lambda rows: [*rows[:2], rows[2].replace(b"0.33", b"0.34"), *rows[3:]], "line 3"),
    "a space more": (
        lambda rows: [*rows[:3], rows[3].replace(b":", b": ", 1), *rows[4:]],
        "line 4",
    ),
    "the first one": (lambda rows: [rows[0].replace(b"1.0", b"1.5"), *rows[1:]], "line 1"),
    "the last one": (lambda rows: [*rows[:-1], rows[-1].replace(b"0.2", b"0.3")], "line 5"),
    "missing": (lambda rows: rows[:1] + rows[2:], "line 2"),
    "doubled": (lambda rows: rows[:2] + rows[1:], "line 3"),
    "two swapped": (lambda rows: [rows[0], rows[2], rows[1], *rows[3:]], "line 2"),
    "the last missing": (lambda rows: rows[:-1], "ends after line 4, 5 were written"),
    "a letter for a number": (
        lambda rows: [*rows[:2], rows[2].replace(b'"round": 3', b'"round": "three"'), *rows[3:]],
        "line 3",
    ),
    "no JSON": (lambda rows: [*rows[:3], b"{]\n", *rows[4:]], "line 4"),
    "a torn last line": (lambda rows: [*rows[:-1], rows[-1][:-1]], "ends after line 4"),
    "a blank line": (lambda rows: [*rows[:1], b"\n", *rows[1:]], "line 2"),
    "empty": (lambda rows: [], "ends after line 0"),
    "of another run": (lambda rows: [row.replace(b"loss", b"Loss") for row in rows], "line 1"),
    "Windows line ends": (lambda rows: [row[:-1] + b"\r\n" for row in rows], "line 1"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_row_is_refused_and_named(tmp_path: Path, change: str) -> None:
    written = play(tmp_path, 1, 5)
    alter, said = CHANGES[change]
    there = (tmp_path / ROUNDS).read_bytes()
    altered = b"".join(alter(lines(tmp_path / ROUNDS)))
    assert altered != there
    (tmp_path / ROUNDS).write_bytes(altered)
    if "ends after" not in said:
        play(tmp_path, 6, 6)  # rows of a round that was under way
    before = (tmp_path / ROUNDS).read_bytes(), (tmp_path / LEDGER).read_bytes()
    with pytest.raises(CorruptArtifact, match=rf"rounds\.jsonl: .*{said}.*put the file back"):
        written.verify(tmp_path)
    assert before == ((tmp_path / ROUNDS).read_bytes(), (tmp_path / LEDGER).read_bytes())


def test_of_several_rows_a_round_the_round_is_named(tmp_path: Path) -> None:
    written = play(tmp_path, 1, 4)
    rows = lines(tmp_path / LEDGER)
    rows[7] = rows[7].replace(b'"b"', b'"x"')
    (tmp_path / LEDGER).write_bytes(b"".join(rows))
    with pytest.raises(CorruptArtifact, match=r"ledger\.jsonl: a line of 7 to 9 \(round 3\)"):
        written.verify(tmp_path)
    (tmp_path / LEDGER).unlink()
    with pytest.raises(CorruptArtifact, match=r"ledger\.jsonl: it is missing"):
        written.verify(tmp_path)
    os.mkfifo(tmp_path / LEDGER)
    with pytest.raises(CorruptArtifact, match=r"ledger\.jsonl: is a named pipe"):
        written.verify(tmp_path)


def test_marks_stay_few_and_a_round_reads_its_own_rows_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: list[tuple[str, int]] = []
    plain = digests._lines  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(
        digests,
        "_lines",
        lambda path, start, *rest: starts.append((path.name, start)) or plain(path, start, *rest),
    )
    written = play(tmp_path, 1, 300)
    assert all(len(marks) <= MOST_MARKS + 1 for marks in written.marks.values())
    assert len(json.dumps(written.facts())) < 10_000
    of_rounds = [start for name, start in starts if name == ROUNDS]
    ends = [0]
    for line in lines(tmp_path / ROUNDS):
        ends.append(ends[-1] + len(line))
    assert of_rounds == ends[:-1]
    rows = lines(tmp_path / ROUNDS)
    rows[200] = rows[200].replace(b"0.00", b"0.01")
    (tmp_path / ROUNDS).write_bytes(b"".join(rows))
    with pytest.raises(CorruptArtifact, match=r"a line of 193 to 208 \(rounds 193 to 208\)"):
        written.verify(tmp_path)


def test_rows_of_an_older_run_are_taken_as_they_are_if_they_can_be_rows(tmp_path: Path) -> None:
    play(tmp_path, 1, 4)
    kept = b"".join(lines(tmp_path / ROUNDS)[:3])
    written = trusted(tmp_path, FILES, 3)
    assert (tmp_path / ROUNDS).read_bytes() == kept
    assert len(lines(tmp_path / LEDGER)) == 9
    written.verify(tmp_path)
    for bad in ('{"round": "one"}', '{"round": true}', '{"round": 1.0}', '{"loss": 1}', "[]", "{",
                '{"round": -1}', '{"round": 2}', "null", '{"round": null}'):  # fmt: skip
        (tmp_path / ROUNDS).write_bytes(kept + bad.encode() + b"\n")
        with pytest.raises(CorruptArtifact, match=r"rounds\.jsonl: line 4 is no row"):
            trusted(tmp_path, FILES, 3)
    (tmp_path / ROUNDS).write_bytes(kept + lines(tmp_path / ROUNDS)[2])
    with pytest.raises(CorruptArtifact, match=r"line 4 is no row"):
        trusted(tmp_path, FILES, 3)
