"""Every training loss of a run has a curve of its own, and says what it is of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedsdr.report.losses import Loss, loss_names, losses_of
from fedsdr.report.page import render_report
from fedsdr.report.read import read_records
from made_runs import rows, write_run

pytestmark = pytest.mark.usefixtures("no_fsync")
OTHER = {"S on rewritten": {"mean": 0.5, "clients": {"c1": 0.25, "c2": 0.75}}}


def test_the_main_loss_comes_first_and_old_rows_name_none() -> None:
    new = {"loss": 1.0, "loss_of": "R on raw", "losses": {"c1": 1.0}, "other_losses": OTHER}
    old = {"loss": 2.0, "losses": {"c1": 2.0}}
    assert losses_of(new) == {
        "R on raw": Loss(1.0, {"c1": 1.0}),
        "S on rewritten": Loss(0.5, {"c1": 0.25, "c2": 0.75}),
    }
    assert losses_of(old) == {"": Loss(2.0, {"c1": 2.0})}
    assert loss_names([old, new]) == ["R on raw", "S on rewritten", ""]
    assert loss_names([old]) == [""]
    assert loss_names([]) == []


def test_what_a_stranger_wrote_into_the_rows_is_left_out() -> None:
    for odd in (None, 3, "x", [], {"S": 3}, {"S": {"mean": "x", "clients": [1]}}):
        row: dict[str, Any] = {"loss": "high", "loss_of": 7, "losses": [], "other_losses": odd}
        assert all(loss.mean is None and not loss.clients for loss in losses_of(row).values())


def page(*runs: Path) -> str:
    return render_report(read_records(list(runs)))


def with_losses(path: Path, method: str, main: str, others: bool) -> Path:
    """A made-up run whose rows name their losses."""
    write_run(path, method)
    file = path / "rounds.jsonl"
    found = [json.loads(line) for line in file.read_text().splitlines()]
    rows(
        file,
        (
            row
            | {"loss_of": main}
            | ({"other_losses": {"S on rewritten": {"mean": 9.0, "clients": row["losses"]}}})
            if others
            else row | {"loss_of": main, "other_losses": {}}
            for row in found
        ),
    )
    return path


def test_each_loss_is_drawn_and_named_on_the_page(tmp_path: Path) -> None:
    """FedSDR's R and S; an old run's one loss goes on without a name."""
    new = page(with_losses(tmp_path / "new", "fedsdr", "R on raw", others=True))
    assert "Training loss of R on raw" in new
    assert "Training loss of S on rewritten" in new
    assert new.count("What tables call the loss is this one") == 2  # shown, and for the SVG
    write_run(tmp_path / "old", "fedsdr")
    old = page(tmp_path / "old")
    assert "Training loss" in old
    assert "Training loss of" not in old


def test_losses_of_unlike_answers_are_told_apart_between_methods(tmp_path: Path) -> None:
    one = with_losses(tmp_path / "one", "fedavg", "R on raw", others=False)
    other = with_losses(tmp_path / "two", "fedsd", "R on rewritten", others=False)
    assert "fedsd · R on rewritten" in page(one, other)
    assert "fedavg · R on raw" in page(one, other)
    alike = with_losses(tmp_path / "three", "fedprox", "R on raw", others=False)
    assert "· R on raw" not in page(one, alike)
