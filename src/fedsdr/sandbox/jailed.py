"""One walled-in process, seen from outside: started, heard, watched, and killed in any case."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedsdr.errors import SandboxError

JAIL = Path(__file__).with_name("jail.py")
KEPT = 64 * 1024  # bytes of what it reports
THREADS = 256


class Jailed:
    """A context: from its start to its end, however that comes."""

    def __init__(self, task: Mapping[str, Any], inward: int, outward: int, output: int) -> None:
        self._task, self._pipes, self._output = task, (inward, outward), output
        self.heard = b""
        self.report = -1
        self._silent = self._killed = False

    def __enter__(self) -> Jailed:
        # Cleaning up may meet a file that the dying process still held; the folder goes either way.
        self._folder = tempfile.TemporaryDirectory(prefix="fedsdr-", ignore_cleanup_errors=True)
        self.report, report_end = os.pipe()
        try:
            self._process = self._started(report_end)
        except BaseException:
            os.close(self.report)
            self._folder.cleanup()
            raise
        finally:
            os.close(report_end)
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        os.close(self.report)
        self._folder.cleanup()

    def hear(self, pipe: int, piece: bytes) -> None:
        """Nothing, where the pipe is at its end."""
        if pipe == self.report:
            self.heard = (self.heard + piece)[:KEPT]
            self._silent = not piece

    @property
    def word(self) -> str:
        """Its last one: how it ended."""
        return self.heard.decode("utf-8", "replace").partition("\n")[2].partition("\n")[0]

    def over(self) -> bool:
        """Whether it has ended by itself, and all that it said is heard."""
        return self._silent and self._process.poll() is not None

    @property
    def signal(self) -> int:
        """By which it ended, unless it was ended from here."""
        code = self._process.returncode
        return -code if not self._killed and code is not None and code < 0 else 0

    def overdrawn(self) -> bool:
        """Whether it holds more than it may, where its folder is no file system of its own."""
        files = size = 0
        try:
            for file in os.scandir(self._folder.name):
                files, size = files + 1, size + file.stat(follow_symlinks=False).st_size
                if files > self._task["files"] or size > self._task["disk"]:
                    return True
            status = Path(f"/proc/{self._process.pid}/status").read_bytes()
        except OSError:  # a file that is gone by now, or the process is
            return False
        return int(status.partition(b"Threads:")[2].split()[0]) > THREADS

    def end(self) -> None:
        # While it is not waited for, its id cannot belong to another process.
        if self._process.poll() is None:
            self._killed = True
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _started(self, report_end: int) -> subprocess.Popen[bytes]:
        pipes, folder = (report_end, *self._pipes), self._folder.name
        with tempfile.TemporaryFile() as task_file:
            task_file.write(json.dumps(self._task).encode("ascii"))
            task_file.seek(0)
            try:
                return subprocess.Popen(
                    [sys.executable, "-s", "-S", "-B", "-P", str(JAIL), *map(str, pipes)],
                    stdin=task_file,
                    stdout=self._output,
                    stderr=self._output,
                    pass_fds=pipes,
                    start_new_session=True,
                    cwd=folder,
                    env={
                        "HOME": folder,
                        "TMPDIR": folder,
                        "LANG": "C.UTF-8",
                        "PYTHONUTF8": "1",
                        "PYTHONHASHSEED": "0",  # the order of a set may decide an answer
                    },
                )
            except OSError as error:
                raise SandboxError(f"no Python can be started: {error.strerror}") from error
