"""The ledger: what passed between server and clients, tensor by tensor, without the values.

Wall seconds by phase, in a file of their own: they differ between runs, results may not.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections import defaultdict
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

from fedsdr.errors import CorruptArtifact
from fedsdr.runs.digests import LARGEST
from fedsdr.runs.directory import RunDirectory
from fedsdr.runs.files import JSON, write_text_atomic
from fedsdr.runs.plain import open_plain
from fedsdr.tensors import tensor_bytes
from fedsdr.types import Tensors

LEDGER = "ledger.jsonl"
Direction = Literal["up", "down"]


@dataclass(frozen=True, slots=True)
class Ledger:
    run: RunDirectory

    def record(
        self, round: int, client_id: str, direction: Direction, tensors: Tensors, what: str
    ) -> None:
        """One row for one message. `what` says in a word or two what the tensors are."""
        entries: list[dict[str, JSON]] = []
        total = 0
        for name in sorted(tensors):
            data = tensor_bytes(tensors[name])
            total += len(data)
            entries.append(
                {
                    "name": name,
                    "shape": list(tensors[name].shape),
                    "dtype": str(tensors[name].dtype).removeprefix("torch."),
                    "bytes": len(data),
                    "sha256": hashlib.sha256(data).hexdigest(),
                }
            )
        message: dict[str, JSON] = {
            "round": round,
            "client": client_id,
            "direction": direction,
            "what": what,
            "bytes": total,
            "tensors": entries,
        }
        self.run.append_row(LEDGER, message)

    def bytes_by_round(self) -> dict[int, dict[Direction, int]]:
        """Tensor bytes per round and direction, over all clients."""
        totals: defaultdict[int, dict[Direction, int]] = defaultdict(lambda: {"up": 0, "down": 0})
        for row in self.run.rows(LEDGER):
            totals[row["round"]][row["direction"]] += row["bytes"]
        return dict(totals)


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
