"""The ledger says what went over the wire, and nothing of what was in it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from fedsdr.runs.digests import trusted
from fedsdr.runs.directory import RunDirectory
from fedsdr.runs.ledger import LEDGER, Ledger


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(RunDirectory.create(tmp_path / "run", "", {"run": "r"}))


def test_one_row_per_message(ledger: Ledger) -> None:
    tensors = {"B": torch.zeros(2, 3), "A": torch.ones(4, dtype=torch.bfloat16).view(2, 2).T}
    ledger.record(1, "client 1", "up", tensors, "shared branch")
    (row,) = ledger.run.rows(LEDGER)
    a, b = row.pop("tensors")
    assert row == {
        "round": 1,
        "client": "client 1",
        "direction": "up",
        "what": "shared branch",
        "bytes": 32,
    }
    ones = bytes.fromhex("803f") * 4  # 1.0 in bfloat16, little-endian
    assert a == {
        "name": "A",
        "shape": [2, 2],
        "dtype": "bfloat16",
        "bytes": 8,
        "sha256": hashlib.sha256(ones).hexdigest(),
    }
    assert b["sha256"] == hashlib.sha256(bytes(24)).hexdigest()
    assert b["shape"] == [2, 3]


def test_scalars_empty_tensors_and_empty_messages(ledger: Ledger) -> None:
    ledger.record(1, "a", "down", {"step": torch.tensor(1), "none": torch.zeros(0, 3)}, "slots")
    ledger.record(1, "b", "down", {}, "nothing")
    first, second = ledger.run.rows(LEDGER)
    assert [t["bytes"] for t in first["tensors"]] == [0, 8]
    assert (second["bytes"], second["tensors"]) == (0, [])


def test_totals_follow_a_resume(ledger: Ledger) -> None:
    def play(number: int) -> None:
        for client_id in ("a", "b"):
            ledger.record(number, client_id, "down", {"A": torch.zeros(number)}, "R")
            ledger.record(number, client_id, "up", {"A": torch.zeros(2)}, "change of R")

    for number in (1, 2, 3):
        play(number)
    totals = {n: {"up": 16, "down": 8 * n} for n in (1, 2, 3)}
    assert ledger.bytes_by_round() == totals
    whole = (ledger.run.root / LEDGER).read_bytes()
    (ledger.run.root / LEDGER).write_bytes(whole[:-5])
    trusted(ledger.run.root, (LEDGER,), 2)
    assert ledger.bytes_by_round() == {n: totals[n] for n in (1, 2)}
    play(3)
    assert (ledger.run.root / LEDGER).read_bytes() == whole
