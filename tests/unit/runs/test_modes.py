"""Whatever the umask, what a run holds is for its owner alone, and can be used."""

from __future__ import annotations

import os
import stat
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from attack import attempt
from fedsdr.cli.app import app
from fedsdr.distill.drafts import Drafts
from fedsdr.distill.selection import Draft
from fedsdr.runs.directory import RunDirectory
from fedsdr.runs.files import append_row, write_rows_atomic, write_text_atomic, write_text_once
from fedsdr.runs.lock import run_lock
from stopped_runs import TASK, make_workplace

pytestmark = pytest.mark.usefixtures("no_fsync")


@contextmanager
def umask(mask: int) -> Generator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def open_to_others(root: Path) -> list[str]:
    """All that is not a file of mode 0600 or a folder of mode 0700."""
    found = list[str]()
    for path in (root, *root.rglob("*")):
        there = path.lstat()
        wanted = 0o700 if stat.S_ISDIR(there.st_mode) else 0o600
        if stat.S_IMODE(there.st_mode) != wanted and not path.is_symlink():
            found.append(f"{path.relative_to(root)} {stat.S_IMODE(there.st_mode):o}")
    return found


@pytest.mark.parametrize("mask", [0, 0o777])
def test_every_verb_writes_for_its_user_alone(
    mask: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with umask(0o022):
        make_workplace(tmp_path)
    verbs = (
        ("train", "recipe.yaml", "--out", "deep/new", "--tracker", "tensorboard"),
        ("evaluate", "deep/new", *TASK),
        ("evaluate", "deep/new", "--merge", "deep/new/evaluation/results.json"),
        ("diagnose", "deep/new", "--only", "js", "--no-rewritten"),
        ("report", "deep/new", "--include-texts"),
        ("report", "deep/new", "--figures", "deep/new/figures"),
        ("resume", "half"),
        ("distill", "recipe.yaml", "--out", "distilled"),
        ("diagnose", "recipe.yaml", "--only", "js", "--no-rewritten", "--out", "diagnosed"),
        ("export", "deep/new", "--out", "out/exported"),
        ("merge", "deep/new", "--out", "out/merged", "--client", "client-0", "--mix", "personal"),
    )
    with umask(mask):
        for arguments in verbs:
            done = CliRunner().invoke(app, arguments)
            assert done.exit_code == 0, (arguments, done.output)
    for name in ("deep", "half", "distilled", "diagnosed", "out"):
        assert open_to_others(tmp_path / name) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize("mask", [0, 0o022, 0o077, 0o277, 0o777])
def test_a_user_who_is_not_root_can_use_what_was_written(mask: int) -> None:
    """Root may read a file of mode 000; whoever else made it could not."""
    place = Path("/tmp") / f"fedsdr-{os.getpid()}-{mask:o}"
    place.mkdir(mode=0o755)
    os.chown(place, 65534, 65534)

    def work() -> list[str]:
        os.setgid(65534)
        os.setuid(65534)
        os.umask(mask)
        run = RunDirectory.create(place / "deep" / "run", "algorithm: fedavg\n", {"run": "r"})
        tensors = {"shared": {"A": torch.zeros(3)}}
        with run_lock(run.root):
            for number in (1, 2):
                run.save_client_state("a", number, tensors, {})
                run.append_row("rounds.jsonl", {"round": number})
                run.save_checkpoint(number, tensors, {})
                run.save_private_rows("a", "answers.jsonl", [{"id": "1"}])
                append_row(run.root / "ledger.jsonl", {"round": number})
                write_rows_atomic(run.root / "rewriting_audit.jsonl", [{"id": "1"}])
                write_text_atomic(run.root / "results.json", "{}")
                write_text_once(run.root / "partition.json", "{}")
                drafts = Drafts(run.root / "rewrites", "a")
                drafts.add({f"{number}": Draft("x", False)})
        assert len(Drafts(run.root / "rewrites", "a").get(["1", "2"])) == 2
        assert RunDirectory.open(run.root).load_latest_checkpoint()[0] == 2
        return open_to_others(run.root)

    try:
        outcome = attempt(work)
        assert (outcome.kind, outcome.value) == ("returned", []), outcome.text
    finally:
        for path in sorted(place.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        place.rmdir()
