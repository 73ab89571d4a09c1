"""Wall seconds by phase, in a file of their own: they differ between runs, results may not."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, cast

from fedsdr.errors import CorruptArtifact
from fedsdr.runs.digests import LARGEST
from fedsdr.runs.directory import RunDirectory
from fedsdr.runs.files import write_text_atomic
from fedsdr.runs.plain import open_plain

TIMINGS = "timings.jsonl"


@contextmanager
def timed(run: RunDirectory, phase: str, number: int = 0) -> Generator[None]:
    """A row for what happens inside, of a round or (0) of the run as a whole. A phase that fails
    has no row."""
    began = time.monotonic()
    yield
    seconds = round(time.monotonic() - began, 3)
    run.append_row(TIMINGS, {"round": number, "phase": phase, "seconds": seconds})


def keep_timings(run: RunDirectory, last_round: int) -> None:
    """Drop the rows of later rounds. No result hangs on the others, so that what is damaged or
    there twice is dropped too, and stops nobody."""
    path, kept = run.root / TIMINGS, dict[object, bytes]()
    try:
        with open_plain(path, LARGEST, CorruptArtifact, follow=False) as file:
            lines = file.readlines()
    except FileNotFoundError:
        return
    for place, line in enumerate(lines):
        number, phase = _timed(line)
        if 0 <= number <= last_round:
            kept.setdefault((number, phase) if number else place, line)
    if (text := b"".join(kept.values())) != b"".join(lines):
        write_text_atomic(path, text.decode())


def _timed(line: bytes) -> tuple[int, str]:
    """The round and the phase of a row; a round of −1 if it is none."""
    try:
        value: Any = json.loads(line.decode("ascii"))
    except (ValueError, RecursionError):
        return -1, ""
    row = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
    number, phase, seconds = row.get("round"), row.get("phase"), row.get("seconds")
    if type(number) is not int or not isinstance(phase, str) or not line.endswith(b"\n"):
        return -1, ""
    measured = isinstance(seconds, int | float) and math.isfinite(seconds)
    return (number, phase) if measured else (-1, "")
