"""Memory that runs out: fewer clients side by side, then fewer rows; the result stays the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import fedsdr
from fedsdr.assembly import Watch
from fedsdr.cohort import in_process
from fedsdr.errors import RoundFailed
from fedsdr.runs.directory import RunDirectory
from toy import clients, largest_difference, moved, recipe

pytestmark = pytest.mark.usefixtures("no_fsync")
DATA = tuple(clients((6, 5, 7, 4, 6)).values())
plain = in_process.train_stage


def allow(monkeypatch: pytest.MonkeyPatch, rows: int, error: BaseException) -> list[int]:
    """Training holds at most so many rows at a time; what was tried is told."""
    tried = list[int]()

    def train(lora: Any, stage: Any, flats: Any, jobs: Any, settings: Any, *more: Any):
        tried.append(len(jobs) * (settings.micro_batch or settings.batch))
        if tried[-1] > rows:
            raise error
        return plain(lora, stage, flats, jobs, settings, *more)

    monkeypatch.setattr(in_process, "train_stage", train)
    return tried


def shared(run: Path) -> Any:
    return RunDirectory.open(run).load_latest_checkpoint()[1].tensors["shared"]


@pytest.mark.parametrize(
    ("rows", "stack", "micro", "error"),
    [
        (6, 2, 3, torch.OutOfMemoryError("CUDA out of memory")),
        (3, 1, 3, RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to")),
        (1, 1, 1, MemoryError()),
    ],
    ids=["fewer clients", "one client", "one row"],
)
@pytest.mark.parametrize("method", ["fedsdr", "fedprox"])
def test_the_round_is_begun_again_with_less(
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    rows: int,
    stack: int,
    micro: int,
    error: BaseException,
) -> None:
    wanted = recipe(tiny_folder, algorithm={"name": method}, run={"stack": 4, "threads": 1})
    fedsdr.run(wanted, tmp_path / "plenty", clients=DATA)
    said = list[str]()
    tried = allow(monkeypatch, rows, error)
    fedsdr.run(wanted, tmp_path / "scarce", Watch(note=said.append), clients=DATA)
    assert max(tried) == 12, "it began with all four clients"
    assert max(tried[tried.index(rows) :]) == rows, "what fits is kept for all later rounds"
    told = [line for line in said if "memory ran out" in line]
    assert told[0].startswith("round 1: memory ran out; from now on 2 clients side by side")
    facts = RunDirectory.open(tmp_path / "scarce").facts()
    assert (facts["stack"], facts["micro_batch"]) == (stack, micro)
    one, other = shared(tmp_path / "plenty"), shared(tmp_path / "scarce")
    assert moved(one, dict.fromkeys(one, torch.zeros(()))) > 1e-3
    assert largest_difference(one, other) < 1e-9
    assert all(
        not row["refused"] for row in RunDirectory.open(tmp_path / "scarce").rows("rounds.jsonl")
    )


def test_a_run_that_shrank_is_resumed_as_it_went_on(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = recipe(tiny_folder, algorithm={"name": "fedavg"}, run={"stack": 4, "threads": 1})
    allow(monkeypatch, 6, torch.OutOfMemoryError("CUDA out of memory"))
    fedsdr.run(wanted, tmp_path / "whole", clients=DATA)

    class Killed(Exception):
        """As a kill would, in round 2."""

    def stop(row: Any) -> None:
        if row["round"] == 1:
            raise Killed

    with pytest.raises(Killed):
        fedsdr.run(wanted, tmp_path / "torn", Watch(told=stop), clients=DATA)
    tried = allow(monkeypatch, 6, torch.OutOfMemoryError("CUDA out of memory"))
    fedsdr.resume(tmp_path / "torn", clients=DATA)
    assert max(tried) == 6, "a resume does not try again what did not fit"
    one, other = shared(tmp_path / "whole"), shared(tmp_path / "torn")
    assert largest_difference(one, other) == 0.0


def test_where_nothing_is_left_to_halve_the_error_says_what_helps(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allow(monkeypatch, 0, MemoryError())
    with pytest.raises(RoundFailed, match=r"one row at a time.*max_length.*checkpointing"):
        fedsdr.run(recipe(tiny_folder), tmp_path / "run", clients=DATA)


def test_another_error_is_not_taken_for_it(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allow(monkeypatch, 0, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1"):
        fedsdr.run(recipe(tiny_folder), tmp_path / "run", clients=DATA)
