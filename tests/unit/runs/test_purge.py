"""What a purge leaves, whatever lies in the run; on a full disk; and where it was killed."""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
import subprocess
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from attack import snapshot
from fedsdr.errors import RunError, RunLocked
from fedsdr.runs.contents import STAYS
from fedsdr.runs.directory import RunDirectory
from fedsdr.runs.lock import run_lock
from fedsdr.runs.purge import private, purge

pytestmark = pytest.mark.usefixtures("no_fsync")

SECRET = "Mrs Miller's blood pressure is 180"
ID = "record-4711"
SHORT = {"A": torch.zeros(3)}
NONE, HELD = (
    f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    f'<meta name="fedsdr-texts" content="{word}">\n<title>run</title>\n'
    for word in ("none", "held")
)
AUDIT = {
    "example_id": ID, "client_id": "a", "template": "paper", "kept": True, "draw": None,
    "reasons": ["numbers"], "length_ratio": 1.5, "before": {"words": 3, "filler": 0},
    "form": "prose", "texts": [SECRET, SECRET], "new_key_of_tomorrow": SECRET,
}  # fmt: skip
# Where texts or states of clients have been seen to lie, or might.
PRIVATE = (
    "clients/a/rewrites.jsonl", "clients/a/answers.jsonl", "clients/b/round-00001/notes.txt",
    "updates/round-00002/a/x.safetensors", "rewrites/a.jsonl", "rewrites/a+2.jsonl",
    "adapters/personal/a/adapter_config.json", "adapters/personal/a/adapter_model.safetensors",
    "adapters/global/notes.txt", "evaluation/personal/a/fpb.jsonl", "evaluation/global/fpb.jsonl",
    "checkpoints/round-00001/texts.json", "diagnosis/pairs.jsonl", "tensorboard/texts.txt",
    ".tmp-rewriting_audit.jsonl.x8k2", "rewriting_audit.jsonl.tmp", "merged/model.safetensors",
    "notes.txt", "drafts/a.jsonl", "pages/deep/rows.jsonl", "nohup.out", "run.json.bak",
)  # fmt: skip
PAGES = ("report-with-texts.html", "whatever.html", "pages/of a.HTML", "checkpoints/page.html",
         "wandb/page.html")  # fmt: skip
PUBLIC = (
    "partition.json", "profile.json", "validation.jsonl", "diagnostics.jsonl", "timings.jsonl",
    "ledger.jsonl", "results.json", "rewriting.json", "diagnosis.json", "diagnosis/pairs.parquet",
    "adapters/global/adapter_config.json", "adapters/global/adapter_model.safetensors",
    "evaluation/results.json", "evaluation/lock", "tensorboard/events.out.tfevents.1.vm.1.0",
    "wandb/offline-run-1-r1/run-r1.wandb", "wandb/settings",
)  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return lived_in(tmp_path / "run")


def lived_in(root: Path) -> RunDirectory:
    run = RunDirectory.create(root, "algorithm: fedsdr\n", {"run": "r1"})
    for number in (1, 2):
        run.save_client_state("a", number, {"shared": SHORT}, {"said": SECRET})
        run.append_row("rounds.jsonl", {"round": number})
        run.save_checkpoint(number, {"shared": SHORT, "slots": SHORT}, {"round": number})
    for name in (*PRIVATE, *PAGES, *PUBLIC, "report.html", "pages/fine.html"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(SECRET if name in PRIVATE else "{}\n")
    for name in PAGES:
        (root / name).write_text(HELD + SECRET)
    for name in ("report.html", "pages/fine.html"):
        (root / name).write_text(NONE + "no text")
    run.append_row("rewriting_audit.jsonl", AUDIT)
    return run


def telling(root: Path) -> list[str]:
    """Files in which a text or a record's id still stands."""
    words = (SECRET.encode(), ID.encode())
    files = [path for path in sorted(root.rglob("*")) if path.is_file()]
    return [str(f.relative_to(root)) for f in files if any(w in f.read_bytes() for w in words)]


def resumable(root: Path) -> bool:
    try:
        RunDirectory.open(root).load_latest_checkpoint()
    except RunError as error:
        return "its private state and rewrites were removed by `fedsdr purge`" not in str(error)
    return True


def test_nothing_that_tells_a_text_or_an_id_stays(run: RunDirectory) -> None:
    root = run.root
    assert len(telling(root)) > len(PRIVATE) + len(PAGES)
    expected = private(run)
    removed = purge(run)
    assert telling(root) == []
    assert (removed.files, removed.bytes, removed.linked) == (
        sum(part.size.files for part in expected), sum(part.size.bytes for part in expected), 0,
    )  # fmt: skip
    assert all((root / name).is_file() for name in (*PUBLIC, "report.html", "pages/fine.html"))
    (row,) = run.rows("rewriting_audit.jsonl")
    assert row == {
        k: v for k, v in AUDIT.items() if v != SECRET and k not in ("example_id", "texts")
    }
    assert run.checkpoints() == [1, 2]
    assert not resumable(root)
    before = snapshot(root)
    assert purge(run).files == 0
    assert snapshot(root).keys() == before.keys()


def test_a_page_is_known_by_what_it_says_of_itself(run: RunDirectory) -> None:
    """Not by its name, and not by anything further down, where a record could have put it."""
    page = run.root / "a.html"
    for text, stays in (
        (NONE, True),
        (HELD, False),
        ("", False),
        (SECRET, False),
        (HELD + NONE, False),
        ("<!DOCTYPE html><title>" + "x" * 300 + NONE, False),
        (NONE.replace("none", "none held"), False),
    ):
        page.write_text(text)
        assert (page in [part.path for part in private(run)]) is not stays, text


@pytest.mark.parametrize("torn", ["", "not json\n", '{"texts": "' + SECRET, "[1]\n"])
def test_an_audit_that_is_damaged_does_not_keep_its_texts(run: RunDirectory, torn: str) -> None:
    audit = run.root / "rewriting_audit.jsonl"
    audit.write_text((json.dumps(AUDIT) + "\n") * (torn != "") + torn)
    purge(run)
    assert telling(run.root) == []
    audit.unlink(missing_ok=True)
    audit.write_text('{"texts": "' + SECRET)
    purge(run)
    assert telling(run.root) == []


def test_whatever_is_left_was_meant_to_be(run: RunDirectory) -> None:
    purge(run)
    left = [p for p in run.root.rglob("*") if p.is_file()]
    for path in left:
        name = path.relative_to(run.root)
        assert path.suffix == ".html" or any(name.match(p) for p in STAYS) or "wandb" in name.parts


def test_only_one_process_at_a_time(run: RunDirectory) -> None:
    for folder in (run.root, run.root / "evaluation"):
        with run_lock(folder), pytest.raises(RunLocked):
            purge(run)
        assert resumable(run.root)


# Killed, or on a disk that is full


class Killed(BaseException):
    """As a signal would end it."""


@contextmanager
def failing(name: str, at: int, error: BaseException) -> Generator[list[int]]:
    """The call number `at` (from 0) of `os.<name>` fails, if there are so many."""
    real, calls, failed = getattr(os, name), itertools.count(), list[int]()

    def call(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == at:
            failed.append(at)
            raise error
        return real(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, name, call)
        yield failed


@pytest.mark.parametrize("name", ["rename", "unlink", "rmdir", "replace", "open"])
@pytest.mark.parametrize("error", [Killed(), OSError(errno.EIO, "Input/output error")])
def test_stopped_anywhere_it_cannot_be_resumed_and_is_finished_by_another(
    run: RunDirectory, tmp_path: Path, name: str, error: BaseException
) -> None:
    whole = {n for n in telling(run.root) if n.partition("/")[0] in ("clients", "rewrites")}
    for at in range(0, 400, 7 if name in ("unlink", "open", "rmdir") else 1):
        root = tmp_path / f"{at}"
        shutil.copytree(run.root, root)
        with suppress(Killed, RunError), failing(name, at, error) as failed:
            purge(RunDirectory(root))
        assert whole <= set(telling(root)) or not resumable(root), at
        purge(RunDirectory(root))
        assert telling(root) == [], at
        assert not (root / ".purged").exists()
        assert not resumable(root)
        shutil.rmtree(root)
        if not failed:
            break
    assert at
    assert not failed


def test_no_write_is_needed(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **kwargs: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    real = os.open

    def opened(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if flags & os.O_CREAT and not os.path.lexists(path):
            full()
        return real(path, flags, *args, **kwargs)

    with run_lock(run.root):
        pass  # as any run's, its lock is there
    with monkeypatch.context() as patched:
        patched.setattr(os, "open", opened)
        for name in ("write", "pwrite", "link", "mkdir", "symlink"):
            patched.setattr(os, name, full)
        purge(run)
        assert telling(run.root) == []
        assert not resumable(run.root)
        assert run.facts()["purged"] == ["private state", "rewrites"]
        purge(run)
        assert not resumable(run.root)
    assert (run.root / ".purged").is_dir()
    purge(run)
    assert not (run.root / ".purged").exists()
    assert json.loads((run.root / "run.json").read_text())["purged"] == [
        "private state",
        "rewrites",
    ]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(disk)]
    try:
        done = subprocess.run(mount, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount")
    if done.returncode:
        pytest.skip("file systems cannot be mounted here")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_disk_that_is_full_in_earnest(small_disk: Path) -> None:
    run = lived_in(small_disk / "run")
    with (small_disk / "full").open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"\0" * 512)
    with pytest.raises(RunError, match=r"No space left on device; free some space"):
        run.amend({"more": "x" * 5000})
    purge(run)
    assert telling(run.root) == []
    assert not resumable(run.root)


def test_a_mounted_folder_is_left_alone(run: RunDirectory, small_disk: Path) -> None:
    (small_disk / "theirs.txt").write_text("x")
    inside = run.root / "rewrites" / "more"
    inside.mkdir()
    subprocess.run(["mount", "--bind", str(small_disk), str(inside)], check=True)
    try:
        with pytest.raises(RunError, match=r"rewrites/more is another file system"):
            purge(run)
        assert resumable(run.root)
    finally:
        subprocess.run(["umount", str(inside)], check=True)
    assert (small_disk / "theirs.txt").read_text() == "x"


def test_a_run_whose_facts_are_damaged_can_be_purged(run: RunDirectory) -> None:
    (run.root / "run.json").write_text("{}")
    purge(run)
    assert telling(run.root) == []
    assert (run.root / ".purged").exists()


def test_other_names_of_what_is_removed_are_counted(run: RunDirectory, tmp_path: Path) -> None:
    """A copy made with hard links (`cp -l`, a backup) keeps what it holds."""
    elsewhere = tmp_path / "backup.jsonl"
    os.link(run.root / "clients" / "a" / "answers.jsonl", elsewhere)
    assert purge(run).linked == 1
    assert elsewhere.read_text() == SECRET
