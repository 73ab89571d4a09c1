"""A run directory that somebody changed: a resume refuses by name, or ends with the bytes of a run
that nobody touched."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from damaged import CLIENTS, Runs, begin, remains
from fedsdr.distill.drafts import Drafts
from fedsdr.distill.selection import Draft
from fedsdr.errors import CorruptArtifact, RunError
from fedsdr.jobs import train as experiment
from fedsdr.model.base import BaseModel
from fedsdr.runs.directory import RunDirectory

pytestmark = pytest.mark.usefixtures("no_fsync")


@pytest.fixture(scope="module")
def runs(base64: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        return begin(tmp_path_factory.mktemp("runs"), base64)


@pytest.fixture
def root(runs: Runs, tmp_path: Path) -> Path:
    shutil.copytree(runs.stopped, tmp_path / "run")
    return tmp_path / "run"


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines(keepends=True)


def test_nothing_changed(runs: Runs, root: Path) -> None:
    assert RunDirectory.open(root).checkpoints() == [1, 2]
    runs.resume(root)
    assert remains(root) == remains(runs.whole)


def last_digit(row: str) -> str:
    """Another one in its place."""
    place = max(i for i, letter in enumerate(row) if letter.isdigit())
    return f"{row[:place]}{(int(row[place]) + 1) % 10}{row[place + 1 :]}"


@pytest.mark.parametrize(
    ("state", "file"),
    [
        ("stopped", "rounds"),
        ("stopped", "validation"),
        ("stopped", "diagnostics"),
        ("stopped", "ledger"),
        ("whole", "rounds"),
    ],
)
def test_rows_that_a_checkpoint_counts_on(
    runs: Runs, tmp_path: Path, state: str, file: str
) -> None:
    root = tmp_path / "run"
    shutil.copytree(getattr(runs, state), root)
    path = root / f"{file}.jsonl"
    first, second, *others = lines(path)
    one = second.replace('"round": ', '"round": "one", "x": ')
    for rows in ([first, last_digit(second), *others], [second, *others], [first, first, second],
                 [first, one, *others]):  # fmt: skip
        path.write_text("".join(rows))
        with pytest.raises(CorruptArtifact, match=rf"{file}\.jsonl: .*line .*put the file back"):
            runs.resume(root)
    shutil.copyfile(getattr(runs, state) / f"{file}.jsonl", path)
    runs.resume(root)
    assert remains(root) == remains(runs.whole)


DERIVED = (
    "partition.json",
    "profile.json",
    "clients/c1/rewrites.jsonl",
    "rewriting.json",
    "rewriting_audit.jsonl",
    "results.json",
    "adapters/global/adapter_config.json",
)


@pytest.mark.parametrize("how", ["edited", "empty", "missing"])
def test_what_the_data_decide_is_written_again(runs: Runs, tmp_path: Path, how: str) -> None:
    root = tmp_path / "run"
    shutil.copytree(runs.whole, root)
    for file in DERIVED:
        path = root / file
        if how == "missing":
            path.unlink()
        else:
            path.write_text(path.read_text().replace("1", "2") if how == "edited" else "")
    notes = runs.resume(root)
    assert remains(root) == remains(runs.whole)
    told = [note for note in notes if "written anew" in note]
    assert len(told) == (0 if how == "missing" else 3)
    assert all(any(file in note for note in told) for file in DERIVED[:3] if how != "missing")


def test_a_summary_of_rewriting_that_the_run_never_made(base64: BaseModel, tmp_path: Path) -> None:
    runs = begin(tmp_path, base64, algorithm={"name": "fedavg"})
    (runs.stopped / "rewriting.json").write_text("{]")
    runs.resume(runs.stopped)
    results = "results.json"
    assert (runs.stopped / results).read_bytes() == (runs.whole / results).read_bytes()


def edit_draft(file: Path, number: int, *, forged: bool) -> None:
    rows = [json.loads(line) for line in lines(file)]
    row = rows[number]
    if forged:  # as if an endpoint had been asked again
        rows.pop(number)
        file.write_text("".join(json.dumps(r) + "\n" for r in rows))
        draft = Draft(f"{row['text']} 40", row["hit_limit"])
        Drafts(file.parent, file.stem).add({row["key"]: draft})
    else:
        row["text"] += " 40"
        file.write_text("".join(json.dumps(r) + "\n" for r in rows))


def test_an_edited_draft_is_made_anew(runs: Runs, root: Path) -> None:
    for number in (0, 3):
        edit_draft(root / "rewrites" / "c1.jsonl", number, forged=False)
    notes = runs.resume(root)
    assert remains(root) == remains(runs.whole)
    told = [note for note in notes if "is not the draft that was written" in note]
    assert [note.partition("c1.jsonl, ")[2].partition(",")[0] for note in told] == [
        "line 1", "line 4"
    ]  # fmt: skip


def test_another_draft_is_refused(runs: Runs, root: Path) -> None:
    """Also of a client that was not asked yet."""
    for client in (c.client_id for c in CLIENTS):
        file = root / "rewrites" / f"{client}.jsonl"
        kept = file.read_bytes()
        edit_draft(file, 0, forged=True)
        with pytest.raises(RunError, match=rf"of client '{client}' are not .*row '{client}-"):
            runs.resume(root)
        file.write_bytes(kept)
    runs.resume(root)
    assert remains(root) == remains(runs.whole)


def test_a_shared_cache_that_changed(base64: BaseModel, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    how = {"max_new_tokens": 6, "cache": str(cache)}
    runs = begin(tmp_path, base64, rewriting=how)
    edit_draft(cache / "c0.jsonl", 0, forged=True)
    for root in (runs.stopped, runs.whole):
        with pytest.raises(RunError, match=r"client 'c0' are not .*rewriting\.cache"):
            runs.resume(root)
    shutil.rmtree(cache)  # the base is asked again and says the same
    runs.resume(runs.stopped)
    assert remains(runs.stopped) == remains(runs.whole)


def test_by_a_global_teacher_too(base64: BaseModel, tmp_path: Path) -> None:
    options = {"teacher": "global", "redistill_every": 2}
    runs = begin(tmp_path, base64, algorithm={"name": "fedsdr", "options": options})
    drafts = len(lines(runs.stopped / "rewrites" / "c1.jsonl"))
    assert drafts > len(CLIENTS[1].train)
    root = tmp_path / "run"
    shutil.copytree(runs.stopped, root)
    edit_draft(root / "rewrites" / "c1.jsonl", drafts - 1, forged=True)
    with pytest.raises(RunError, match="client 'c1' are not those that this run trained on"):
        runs.resume(root)
    runs.resume(runs.stopped)
    assert remains(runs.stopped) == remains(runs.whole)


@pytest.mark.parametrize("what", ["empty", "a copy"])
def test_planted_rounds(runs: Runs, root: Path, what: str) -> None:
    for where in ("checkpoints", "clients/c1", "updates"):
        for number in ("00000", "00003", "00004", "99999"):
            path = root / where / f"round-{number}"
            if not path.exists() and what == "empty":
                path.mkdir(parents=True)
            elif not path.exists() and where != "updates":
                shutil.copytree(max((root / where).glob("round-0000[12]")), path)
    runs.resume(root)
    assert remains(root) == remains(runs.whole)
    assert not list(root.rglob("*99999"))


@pytest.mark.parametrize("how", ["missing", "older", "damaged"])
def test_a_state_of_the_round_under_way(runs: Runs, root: Path, how: str) -> None:
    """Its update waits; what goes with it is gone: the client trains again."""
    waiting = [path.name for path in (root / "updates" / "round-00003").iterdir()]
    for client in waiting:
        state = root / "clients" / client / "round-00003"
        assert state.is_dir()
        if how == "missing":
            shutil.rmtree(state)
        elif how == "older":
            shutil.rmtree(state)
            older = max(state.parent.glob("round-*"))
            shutil.copytree(older, state)
        else:
            file = state / "branches.safetensors"
            file.write_bytes(file.read_bytes()[:-1] + b"\1")
    runs.resume(root)
    assert remains(root) == remains(runs.whole)


def test_seconds_stop_nobody(runs: Runs, root: Path) -> None:
    path = root / "timings.jsonl"
    junk = b'\0\0\n{"round": "one"}\n[]\n{"round": 1}\n\n\xff\xfe\n{'
    path.write_bytes(path.read_bytes() * 2 + junk)
    runs.resume(root)
    assert remains(root) == remains(runs.whole)
    found = [(r["round"], r["phase"]) for r in map(json.loads, lines(path)) if r["round"]]
    assert len(found) == len(set(found)) == 16


def test_a_run_whose_checkpoints_know_no_rows(
    runs: Runs, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an earlier version wrote it: it goes on, and says what it cannot check."""
    directory = RunDirectory.open(root)
    for number in directory.checkpoints():
        kept = directory.load_checkpoint(number)
        meta = {name: fact for name, fact in kept.meta.items() if name != "written"}
        directory.save_checkpoint(number, kept.tensors, meta)
    for record in root.glob("clients/*/rewritten"):
        shutil.rmtree(record)
    notes = runs.resume(root)
    assert [note for note in notes if "kept no digests of rows" in note]
    assert (root / "results.json").read_bytes() == (runs.whole / "results.json").read_bytes()
    assert (root / "rounds.jsonl").read_bytes() == (runs.whole / "rounds.jsonl").read_bytes()
    assert not [note for note in runs.resume(root) if "kept no digests" in note]


def test_it_is_refused_before_anything_is_trained(runs: Runs, root: Path) -> None:
    path = root / "rounds.jsonl"
    path.write_text("".join(lines(path)[1:]))
    before = remains(root)
    seen: list[str] = []
    watch = experiment.Watch(told=lambda row: seen.append("a round"))
    with pytest.raises(CorruptArtifact, match="line 1 is not what this run wrote"):
        experiment.resume(root, watch, base=runs.base, clients=CLIENTS)
    assert not seen
    assert remains(root) == before
