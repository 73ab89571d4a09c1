"""Drafts on disk: one client's rewrites, a JSON line each, in files of limited length.

Lines are only ever appended, and are on the disk when `add` returns. In memory is where each draft
stands, not what it says. A torn line, which a kill leaves behind, is as if it had never been; so is
one that was changed (each has a digest), and that is told.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path

from fedsdr.distill.selection import Draft
from fedsdr.errors import RunError
from fedsdr.runs.files import fsync_directory, make_private, open_to_append

ROWS = 1024  # per file


class Drafts:
    """`folder/name.jsonl`, then `folder/name+2.jsonl` and so on (no client is called that)."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self._places = dict[str, tuple[int, int]]()  # key -> file, byte
        self._last, self._rows = 1, 0  # the file that is written, and its lines
        self._changed = dict[str, str]()  # where -> key
        while self.file(self._last).is_file():
            self._read(self._last)
            self._last += 1
        if self._last > 1 and self._rows < ROWS:
            self._last -= 1
        else:
            self._rows = 0

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def changed(self) -> list[str]:
        """The lines that are not what was written, of drafts that are nowhere else."""
        return [where for where, key in self._changed.items() if key not in self._places]

    def file(self, number: int) -> Path:
        return self.folder / (
            f"{self.name}.jsonl" if number == 1 else f"{self.name}+{number}.jsonl"
        )

    def get(self, keys: Collection[str]) -> dict[str, Draft]:
        """What is known of these, read file by file."""
        wanted = sorted((*self._places[key], key) for key in set(keys) if key in self._places)
        known = dict[str, Draft]()
        for number in sorted({file for file, _, _ in wanted}):
            with self.file(number).open("rb") as lines:
                for _, at, key in (entry for entry in wanted if entry[0] == number):
                    lines.seek(at)
                    row = json.loads(lines.readline())
                    known[key] = Draft(row["text"], row["hit_limit"])
        return known

    def add(self, drafts: Mapping[str, Draft]) -> None:
        lines = [(key, _line(key, draft)) for key, draft in drafts.items()]
        while lines:
            now, lines = lines[: ROWS - self._rows], lines[ROWS - self._rows :]
            path = self.file(self._last)
            try:
                self._append(path, now)
            except OSError as error:
                raise RunError(f"{path}: rewrites cannot be stored: {error.strerror}") from error
            self._rows += len(now)
            if self._rows >= ROWS:
                self._last, self._rows = self._last + 1, 0

    def _append(self, path: Path, lines: list[tuple[str, bytes]]) -> None:
        make_private(self.folder)
        handle = open_to_append(path)
        with os.fdopen(handle, "ab") as file:
            fcntl.flock(handle, fcntl.LOCK_EX)  # runs may share a cache
            at = os.fstat(handle).st_size
            if at and os.pread(handle, 1, at - 1) != b"\n":
                at += file.write(b"\n")
            elif not at:
                fsync_directory(self.folder)
            for key, line in lines:
                self._places[key] = (self._last, at)
                at += file.write(line)
            file.flush()
            os.fsync(handle)

    def _read(self, number: int) -> None:
        at, self._rows = 0, 0
        try:
            with self.file(number).open("rb") as lines:  # bytes: a kill may tear a letter
                for line in lines:
                    self._rows += 1
                    key, whole = _key(line)
                    if key is not None and whole:
                        self._places[key] = (number, at)
                    elif key is not None:
                        self._changed[f"{self.file(number)}, line {self._rows}"] = key
                    at += len(line)
        except OSError as error:
            raise RunError(f"{self.file(number)}: cannot be read: {error.strerror}") from error


def _line(key: str, draft: Draft) -> bytes:
    # Escaped where it is not ASCII: half of a surrogate pair could not be encoded.
    row = {"key": key, "text": draft.text, "hit_limit": draft.hit_limit}
    return json.dumps({**row, "digest": _digest(row)}).encode() + b"\n"


def _key(line: bytes) -> tuple[str | None, bool]:
    """The key, and whether the draft is as it was written. No key where a kill tore the line."""
    try:
        row = json.loads(line)
        key, digest = str(row["key"]), row.pop("digest", None)  # earlier versions wrote none
        kinds = isinstance(row["text"], str) and isinstance(row["hit_limit"], bool)
        return key, kinds and digest in (None, _digest(row))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None, False


def _digest(row: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()[:16]
