"""Which runs a folder holds, and what counts as a change."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from fedsdr.errors import RunError
from fedsdr.report.watch import Library, UnknownRun
from growing_runs import add, finish, hold, round_row, under_way


def names(library: Library) -> list[str]:
    return [place.name for place in library.places().values()]


def only(library: Library) -> str:
    (found,) = library.places()
    return found


def test_runs_are_found_wherever_they_lie_but_not_within_each_other(tmp_path: Path) -> None:
    for name in ("seed10", "seed9", "demo/fedavg", "sweep/work/cells/all/fedavg/1/run"):
        under_way(tmp_path / name, 1)
    under_way(tmp_path / ".made", 1)  # none can be begun within another
    (tmp_path / ".made").rename(tmp_path / "seed9" / "kept")
    under_way(tmp_path / ".hidden", 1)
    (tmp_path / "empty").mkdir()
    found = ["demo/fedavg", "seed9", "seed10", "sweep/work/cells/all/fedavg/1/run"]
    assert names(Library.open(tmp_path)) == found
    assert names(Library.open(tmp_path / "seed10")) == ["seed10"]


def test_the_cells_of_a_sweep_are_runs_too(tmp_path: Path) -> None:
    cell = tmp_path / "sweep" / "cells" / "all" / "fedavg" / "1.json"
    cell.parent.mkdir(parents=True)
    cell.write_text(json.dumps({"label": "fedavg", "seed": 1, "scores": {"global": {"recall": 1}}}))
    library = Library.open(tmp_path)
    (place,) = library.find([only(library)])
    assert place.name == "sweep/cells/all/fedavg/1"
    assert library.record(place).method == "fedavg"


def test_links_lead_nowhere(tmp_path: Path) -> None:
    outside = under_way(tmp_path / "outside", 1)
    served = tmp_path / "served"
    served.mkdir()
    (served / "linked").symlink_to(outside)
    (served / "half").mkdir()
    (served / "half" / "run.json").symlink_to(outside / "run.json")
    assert names(Library.open(served)) == []


@pytest.mark.parametrize(
    "link", ["results.json", "clients", "clients/c1", "clients/c1/answers.jsonl"]
)
def test_a_run_with_a_link_in_it_is_not_read(tmp_path: Path, link: str) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    run = under_way(tmp_path / "served" / "run", 1)
    (run / link).parent.mkdir(parents=True, exist_ok=True)
    (run / link).symlink_to(secret)
    library = Library.open(tmp_path / "served")
    with pytest.raises(RunError, match=f"run holds a link .{Path(link).name}"):
        library.record(library.find([only(library)])[0])


@pytest.mark.parametrize(
    "id", ["", "..", "../outside", "/etc/passwd", "run", "%2e%2e", "\0", "a" * 5000]
)
def test_only_ids_are_looked_up(tmp_path: Path, id: str) -> None:
    under_way(tmp_path / "run", 1)
    library = Library.open(tmp_path)
    for asked in ([id], [only(library), id]):
        with pytest.raises(UnknownRun):
            library.find(asked)


def test_every_kind_of_change_is_seen_and_nothing_else(tmp_path: Path) -> None:
    run = under_way(tmp_path / "run", 1)
    library = Library.open(tmp_path)
    chosen = [only(library)]
    seen = [library.stamp(chosen)]

    def changed() -> bool:
        seen.append(library.stamp(chosen))
        return seen[-1] not in seen[:-1]

    assert not changed()
    (run / "checkpoints").mkdir()
    (run / ".tmp-rounds.jsonl").write_text("half")
    assert not changed()
    add(run, "rounds.jsonl", round_row(2))
    assert changed()
    with (run / "rounds.jsonl").open("a") as torn:
        torn.write('{"rou')
    assert changed()
    os.replace(_beside(run / "run.json"), run / "run.json")  # replaced by the same
    assert changed()
    (run / "clients" / "c1").mkdir(parents=True)
    add(run / "clients" / "c1", "answers.jsonl", {"id": "x"})
    assert changed()
    hold(run, alive=False)
    assert changed()
    finish(run)
    assert changed()


def test_a_process_that_dies_is_a_change_though_no_file_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = Library.open(tmp_path)
    under_way(tmp_path / "run", 1)
    before = library.stamp([only(library)])

    def gone(pid: int, signal: int) -> None:
        raise ProcessLookupError

    monkeypatch.setattr(os, "kill", gone)
    assert library.stamp([only(library)]) != before


def test_the_list_changes_with_a_new_run_and_without_one(tmp_path: Path) -> None:
    library = Library.open(tmp_path)
    empty = library.stamp()
    run = under_way(tmp_path / "run", 1)
    one = library.stamp()
    assert one != empty
    run.rename(tmp_path / "other")
    assert library.stamp() not in (one, empty)


def test_the_id_stays_when_the_run_is_begun_again(tmp_path: Path) -> None:
    library = Library.open(tmp_path)
    run = under_way(tmp_path / "run", 3)
    before, stamp = only(library), library.stamp()
    for file in run.iterdir():
        file.unlink()
    run.rmdir()
    with pytest.raises(UnknownRun):
        library.stamp([before])
    under_way(run, 1)
    assert only(library) == before
    assert library.stamp() != stamp


def test_looking_at_200_runs_is_quick(tmp_path: Path) -> None:
    for number in range(200):
        under_way(tmp_path / f"run{number}", 1)
    library = Library.open(tmp_path)
    began = time.process_time()
    library.stamp()
    assert time.process_time() - began < 1.0


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"nothing is no folder; .*fedsdr serve DIR"):
        Library.open(tmp_path / "nothing")


def _beside(path: Path) -> Path:
    copy = path.with_name(".tmp-copy")
    copy.write_bytes(path.read_bytes())
    return copy
