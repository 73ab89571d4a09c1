"""What a watcher sees: plain lines where there is no terminal, bars where there is one."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fedsdr.cli import progress
from fedsdr.cli.printing import UNPRINTABLE, complain, figure, plain
from fedsdr.cli.progress import DriftFile, progress_watch, round_line, rounds_table


def row(number: int, **more: Any) -> dict[str, Any]:
    measures = {"recall": 0.25, "hallucination": 0.5, "redundancy": 0.0, "words": 9.0}
    return {
        "round": number,
        "loss": 1.5,
        "validation": {"global": measures, "personal": {}},
        "bytes_up": 1234,
        "bytes_down": 999,
        "refused": [],
        **more,
    }


def console(terminal: bool) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, force_terminal=terminal, width=200, markup=False), out


def test_a_round_in_a_line() -> None:
    line = "round  3/10 | loss 1.5000 | global: recall 0.250, hallucination 0.500, redundancy 0.000"
    assert round_line(row(3), 10) == line + " | 1.23 kB up, 999 B down"


def test_without_a_terminal_there_are_plain_lines_and_no_bars() -> None:
    to, out = console(terminal=False)
    with progress_watch(to, 2, "FedSD") as watch:
        watch.note("the embedded world")
        watch.advance("clients", 1, 8)
        watch.told(row(1, refused=["client 'c1' lost: [red]gone[/red]"]))
    assert out.getvalue().splitlines() == [
        "FedSD: the embedded world",
        f"FedSD: {round_line(row(1), 2)}",
        "FedSD:   client 'c1' lost: [red]gone[/red]",
    ]


def test_slow_work_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    to, out = console(terminal=False)
    with progress_watch(to) as watch:
        for done in range(1, 5):
            now[0] += 4.0
            watch.advance("rewriting clients", done, 4)
    assert out.getvalue() == "rewriting clients: 3 of 4\n"


def test_on_a_terminal_there_are_bars_and_a_table_of_the_rounds() -> None:
    to, out = console(terminal=True)
    with progress_watch(to, 2, "FedSD") as watch:
        watch.advance("clients", 1, 8)
        watch.told(row(1, losses={"c1": 1.0, "c2": 2.0}, clients=2))
        watch.advance("scoring [b]global", 2, 8)
    seen = out.getvalue()
    assert "FedSD rounds" in seen
    assert "scoring [b]global" in seen
    left = seen[seen.rindex("\x1b[2K") :]  # after the bars were cleared away
    words = [re.sub(r"\x1b\[[0-9;]*m", "", line).split() for line in left.splitlines()]
    head, line = [found for found in words if len(found) > 1]
    assert head == [
        *("round", "clients", "loss", "highest", "of", "client", "recall", "global", "up", "down")
    ]
    assert line == ["1/2", "2", "1.500", "2.000", "c2", "0.250", "1.23", "kB", "999", "B"]


OTHERS = {
    "loss_of": "R on raw",
    "other_losses": {"S on rewritten": {"mean": 0.25, "clients": {"c1": 0.25}}},
}


def test_every_loss_has_a_column_of_its_own_and_a_name() -> None:
    to, out = console(terminal=True)
    with progress_watch(to, 2, "FedSDR") as watch:
        watch.told(row(1, losses={"c1": 1.5}, **OTHERS))
    seen = out.getvalue()
    left = re.sub(r"\x1b\[[0-9;]*m", "", seen[seen.rindex("\x1b[2K") :])
    head, line = [words for text in left.splitlines() if len(words := text.split()) > 6][:2]
    assert " ".join(head).startswith("round clients loss R highest of client loss S recall")
    assert (line[2], line[5]) == ("1.500", "0.250")
    assert "loss R: R on raw; loss S: S on rewritten" in left


def test_every_loss_is_in_a_plain_line_too() -> None:
    assert "| loss 1.5000 (R on raw), 0.2500 (S on rewritten) |" in round_line(row(1, **OTHERS), 2)
    assert "| loss 1.5000 |" in round_line(row(1), 2)


def test_the_live_table_shows_the_rounds_that_fit_and_the_last_one_all() -> None:
    to, out = console(terminal=True)
    to.height = 14
    with progress_watch(to, 30) as watch:
        for number in range(1, 31):
            watch.told(row(number))
        live = to.render_lines(watch.told.__self__.progress.get_renderable())
        assert len(live) <= to.height
    assert all(f"{number}/30" in out.getvalue() for number in range(1, 31))


def test_a_resumed_run_is_not_taken_for_a_quick_one(monkeypatch: pytest.MonkeyPatch) -> None:
    to, _ = console(terminal=True)
    now = [0.0]
    with progress_watch(to, 10) as watch:
        bars = watch.told.__self__
        monkeypatch.setattr(bars.progress, "get_time", lambda: now[0])
        for number in (7, 8, 9):
            now[0] += 60.0
            watch.told(row(number))
        rounds = bars.progress.tasks[0]
        assert rounds.completed == 9
        assert rounds.time_remaining == 60  # rounds of a minute, though rich's own memory is 30 s


def test_drift_is_read_from_the_run_as_it_grows(tmp_path: Path) -> None:
    file = tmp_path / "diagnostics.jsonl"
    drift = DriftFile(tmp_path)
    assert drift.by_round() == {}
    file.write_text('{"round": 1, "branches": {"R": {"drift": 0.5}}}\n{"round": 2, "bran')
    assert drift.by_round() == {1: 0.5}
    with file.open("a") as grown:
        grown.write('ches": {"R": {"drift": 0.25}}}\nnot JSON\n{"round": 3, "branches": {}}\n')
    assert drift.by_round() == {1: 0.5, 2: 0.25}
    to, out = console(terminal=False)
    to.print(rounds_table([row(2), row(3)], 3, "", drift.by_round()))
    head, _rule, second, third = out.getvalue().splitlines()
    assert head.split()[-3:] == ["drift", "up", "down"]
    assert second.split()[-5:] == ["0.250", "1.23", "kB", "999", "B"]
    assert third.split()[-5:] == ["0.250", "1.23", "kB", "999", "B"]  # recall; no drift is known


def test_refused_clients_are_told_above_the_table_and_counted_in_it() -> None:
    to, out = console(terminal=True)
    with progress_watch(to, 2) as watch:
        watch.told(row(1, clients=7, refused=["client '\x1b[31mc1' lost: [red]gone[/red]"]))
    assert "client '\\x1b[31mc1' lost: [red]gone[/red]" in out.getvalue()
    assert "7 (1 lost)" in out.getvalue()


def test_a_failure_inside_goes_through() -> None:
    to, _ = console(terminal=True)
    with pytest.raises(KeyboardInterrupt), progress_watch(to, 2):
        raise KeyboardInterrupt


def test_users_text_is_neither_markup_nor_terminal_control(
    capsys: pytest.CaptureFixture[str],
) -> None:
    complain("[bold]key[/bold] \x1b[31m\udc80 \\ :smile:")
    assert capsys.readouterr().err == "error: [bold]key[/bold] \\x1b[31m\\udc80 \\ :smile:\n"
    assert plain("two\nlines\there").plain == "two\nlines\there"
    assert UNPRINTABLE.search("é中 ± –") is None


def test_a_long_message_is_not_broken(capsys: pytest.CaptureFixture[str]) -> None:
    path = "/very/long/" + "name/" * 40 + "recipe.yaml"
    complain(f"{path} does not exist")
    assert path in capsys.readouterr().err


def test_figures() -> None:
    assert [figure(v) for v in (None, 0.1234, 12.0, 123456.0)] == [
        "–",
        "0.123",
        "12.000",
        "123,456",
    ]
