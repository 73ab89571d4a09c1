"""Wall seconds by phase, in a file of their own: they differ between runs, results may not."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager

from fedsdr.runs.directory import RunDirectory

TIMINGS = "timings.jsonl"


@contextmanager
def timed(run: RunDirectory, phase: str, number: int = 0) -> Generator[None]:
    """A row for what happens inside, of a round or (0) of the run as a whole. A phase that fails
    has no row."""
    began = time.monotonic()
    yield
    seconds = round(time.monotonic() - began, 3)
    run.append_row(TIMINGS, {"round": number, "phase": phase, "seconds": seconds})
