"""A disk that is full at any write of a run: said in words, and nothing that was there is lost.
With room again, the run ends as if nothing had been."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from attack import how_many
from fedsdr.errors import RunError
from fedsdr.jobs import train as experiment
from fedsdr.runs.directory import RunDirectory
from stopped_runs import make_workplace

CLOCK = ("timings.jsonl", "lock")


@contextmanager
def full_from(write: int, code: int) -> Generator[list[int]]:
    """From that write on. Whatever is written is brought to the disk by fsync, and fails there."""
    calls, failed, real = itertools.count(), list[int](), os.fsync

    def fsync(handle: int) -> None:
        if (number := next(calls)) >= write:
            failed.append(number)
            raise OSError(code, os.strerror(code))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", fsync)
        yield failed
    assert os.fsync is real


def content(run: Path) -> dict[str, bytes]:
    files = (p for p in run.rglob("*") if p.is_file() and p.name not in CLOCK)
    return {str(p.relative_to(run)): p.read_bytes() for p in files}


def test_at_any_write_it_is_said_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    make_workplace(tmp_path)
    whole = tmp_path / "whole"
    shutil.copytree("half", whole)
    with full_from(10**9, errno.ENOSPC):
        experiment.resume(whole)
    writes = _writes(tmp_path / "half", tmp_path / "counted")
    assert writes > 20
    tries = how_many(4)
    for number in range(tries):
        code = (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO)[number % 4]
        run = tmp_path / f"{number}"
        shutil.copytree("half", run)
        before = RunDirectory.open(run).load_latest_checkpoint()[0]
        with (
            full_from(number * writes // tries, code) as failed,
            pytest.raises(RunError, match=os.strerror(code)),
        ):
            experiment.resume(run)
        assert failed
        after = RunDirectory.open(run).load_latest_checkpoint()
        assert after[0] >= before
        assert after[2] == []  # and none is damaged
        experiment.resume(run)
        assert content(run) == content(whole), number
        shutil.rmtree(run)


def _writes(half: Path, copy: Path) -> int:
    shutil.copytree(half, copy)
    calls = itertools.count()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", lambda handle: next(calls) and None)
        experiment.resume(copy)
    return next(calls)
