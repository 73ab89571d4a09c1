"""Memory that runs out, in training, scoring or rewriting: fewer clients side by side, fewer rows;
the result stays the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import fedsdr
from fedsdr.coordinator.job import Watch
from fedsdr.distill import engine
from fedsdr.errors import ModelError, RoundFailed
from fedsdr.evaluate import scoring
from fedsdr.jobs.evaluate import evaluate
from fedsdr.runs.directory import RunDirectory
from fedsdr.site import train as training
from toy import clients, largest_difference, moved, recipe

pytestmark = pytest.mark.usefixtures("no_fsync")
DATA = tuple(clients((6, 5, 7, 4, 6)).values())
plain, plain_nll, plain_generate = training.train_stage, scoring.summed_nll, engine.generate
FULL = torch.OutOfMemoryError("CUDA out of memory")


def allow(monkeypatch: pytest.MonkeyPatch, rows: int, error: BaseException) -> list[int]:
    """Training holds at most so many rows at a time; what was tried is told."""
    tried = list[int]()

    def train(lora: Any, stage: Any, *, jobs: Any, settings: Any, **more: Any):
        tried.append(len(jobs) * (settings.micro_batch or settings.batch))
        if tried[-1] > rows:
            raise error
        return plain(lora, stage, jobs=jobs, settings=settings, **more)

    monkeypatch.setattr(training, "train_stage", train)
    return tried


def allow_scoring(monkeypatch: pytest.MonkeyPatch, rows: int) -> list[int]:
    tried = list[int]()

    def nll(base: Any, block: Any) -> Any:
        tried.append(block.ids.shape[0])
        if tried[-1] > rows:
            raise FULL
        return plain_nll(base, block)

    monkeypatch.setattr(scoring, "summed_nll", nll)
    return tried


def allow_rewriting(monkeypatch: pytest.MonkeyPatch, rows: int) -> list[int]:
    tried = list[int]()

    def generate(base: Any, prompts: Any, sampling: Any, seeds: Any, batch: int, told: Any) -> Any:
        tried.append(min(batch, len(prompts)))
        if tried[-1] > rows:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to")
        return plain_generate(base, prompts, sampling, seeds, batch, told)

    monkeypatch.setattr(engine, "generate", generate)
    return tried


def validated(run: Path) -> list[float]:
    rows = [json.loads(line) for line in (run / "validation.jsonl").read_text().splitlines()]
    return [
        scores["loss"]
        for row in rows
        for clients in row["scores"].values()
        for scores in clients.values()
    ]


class Killed(Exception):
    """As a kill would, in round 2."""


def stop(row: Any) -> None:
    if row["round"] == 1:
        raise Killed


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


def test_scoring_shrinks_too_and_a_resume_scores_as_it_did(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = recipe(tiny_folder, algorithm={"name": "fedsdr"}, run={"stack": 4, "threads": 1})
    fedsdr.run(wanted, tmp_path / "plenty", clients=DATA)
    tried, said = allow_scoring(monkeypatch, 2), list[str]()
    fedsdr.run(wanted, tmp_path / "scarce", Watch(note=said.append), clients=DATA)
    assert 0 < sum(rows > 2 for rows in tried) < 10, (
        "128 rows halved, then K; and what fits is kept"
    )
    facts = RunDirectory.open(tmp_path / "scarce").facts()
    assert (facts["evaluation_batch"], facts["stack"]) == (1, 2)
    assert "1 rows are scored at a time, of 2 clients side by side" in " ".join(said)
    pairs = zip(validated(tmp_path / "plenty"), validated(tmp_path / "scarce"), strict=True)
    assert all(one == pytest.approx(other, abs=1e-9) for one, other in pairs)
    with pytest.raises(Killed):
        fedsdr.run(wanted, tmp_path / "torn", Watch(told=stop), clients=DATA)
    tried = allow_scoring(monkeypatch, 2)
    fedsdr.resume(tmp_path / "torn", clients=DATA)
    assert max(tried) <= 2, "a resume does not try again what did not fit"
    for name in ("validation.jsonl", "rounds.jsonl", "results.json"):
        assert (tmp_path / "torn" / name).read_bytes() == (tmp_path / "scarce" / name).read_bytes()


def test_scores_after_the_run_shrink_as_well(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = recipe(tiny_folder, algorithm={"name": "fedsdr"}, run={"stack": 4, "threads": 1})
    fedsdr.run(wanted, tmp_path / "run", clients=DATA)
    plenty = evaluate(tmp_path / "run", clients=DATA)["scores"]
    allow_scoring(monkeypatch, 1)
    scarce = evaluate(tmp_path / "run", clients=DATA)["scores"]
    for mix, scores in plenty.items():
        assert scarce[mix]["loss"] == pytest.approx(scores["loss"], abs=1e-9)
    allow_scoring(monkeypatch, 0)
    with pytest.raises(RoundFailed, match="one row of one client"):
        evaluate(tmp_path / "run", clients=DATA)


def test_rewriting_shrinks_too_and_draws_the_same(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = recipe(
        tiny_folder,
        algorithm={"name": "fedsdr"},
        rewriting={"max_new_tokens": 6, "batch": 5},
        training={"rounds": 1},
    )
    fedsdr.run(wanted, tmp_path / "plenty", clients=DATA)
    tried, said = allow_rewriting(monkeypatch, 2), list[str]()
    fedsdr.run(wanted, tmp_path / "scarce", Watch(note=said.append), clients=DATA)
    assert tried[0] == 5
    assert max(tried[1:]) == 2, "for all clients"
    assert "memory ran out; from now on 2 rows are rewritten at a time" in said
    assert RunDirectory.open(tmp_path / "scarce").facts()["rewriting_batch"] == 2
    assert largest_difference(shared(tmp_path / "plenty"), shared(tmp_path / "scarce")) < 1e-9
    allow_rewriting(monkeypatch, 0)
    with pytest.raises(ModelError, match="one row to rewrite"):
        fedsdr.run(wanted, tmp_path / "none", clients=DATA)
