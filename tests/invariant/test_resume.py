"""Killed anywhere and resumed, a run ends with the same bytes as one that nobody disturbed."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fedsdr.coordinator import run as coordinator
from fedsdr.distill.drafts import Drafts
from fedsdr.errors import RunError
from fedsdr.evaluate.finished import read_result
from fedsdr.evaluate.scoring import HeldOutLoss
from fedsdr.jobs import train as experiment
from fedsdr.model import adapters
from fedsdr.model.base import BaseModel
from fedsdr.parts.combine import Mean
from fedsdr.recipe.settings import Recipe
from fedsdr.runs.directory import RunDirectory
from fedsdr.tensors import digest
from toy import clients, recipe

CLIENTS = list(clients((2, 7, 4, 1)).values())
ROUNDS = 3
# One row when rewriting is done; of each round four phases, validation, diagnostics, three
# messages, and the round itself.
ROWS = 10
ROUND_2 = range(1 + ROWS + 1, 1 + 2 * ROWS + 1)


class Killed(BaseException):
    """What no handler of errors may catch."""


@dataclass(frozen=True, slots=True)
class Kill:
    """Before (or after) the n-th call of a function."""

    owner: Any
    name: str
    nth: int
    after: bool = False

    @contextlib.contextmanager
    def armed(self) -> Iterator[None]:
        calls, plain = 0, getattr(self.owner, self.name)

        def wrapped(*args: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == self.nth and not self.after:
                raise Killed
            result = plain(*args, **named)
            if calls == self.nth:
                raise Killed
            return result

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self.owner, self.name, wrapped)
            yield


POINTS = {
    "rewriting, nothing stored": Kill(Drafts, "add", 1),
    "rewriting, the third client's drafts stored": Kill(Drafts, "add", 3, after=True),
    "rewrites of one client kept": Kill(RunDirectory, "save_private_rows", 1, after=True),
    "first checkpoint": Kill(RunDirectory, "save_checkpoint", 1),
    "a client's state stored, its update not handed out": Kill(
        RunDirectory, "save_client_state", 1, after=True
    ),
    "first update yielded": Kill(RunDirectory, "save_update", 1),
    "first update spooled": Kill(RunDirectory, "save_update", 1, after=True),
    "mid group": Kill(RunDirectory, "save_update", 2),
    "first group spooled": Kill(RunDirectory, "save_update", 2, after=True),
    "mid group of round 2": Kill(RunDirectory, "save_update", 5),
    "all spooled, in combine": Kill(Mean, "__call__", 2),
    "combined": Kill(Mean, "__call__", 2, after=True),
    "during validation": Kill(HeldOutLoss, "score", 4),
    "after the round's row": Kill(RunDirectory, "save_checkpoint", 3),
    "after the checkpoint": Kill(RunDirectory, "prune_checkpoints", 2),
    "after pruning": Kill(RunDirectory, "drop_spool", 3),
    "after the last round": Kill(RunDirectory, "drop_spool", 4, after=True),
    "in the final scoring": Kill(HeldOutLoss, "score", 11),
    "between adapters": Kill(adapters, "write_tensors", 3),
    "before the results": Kill(coordinator, "write_json_atomic", 2),
    "results there, run.json not told": Kill(RunDirectory, "amend", 1),
    "results there, answers of one client kept": Kill(RunDirectory, "save_private_rows", 6),
}


@pytest.fixture(scope="module")
def chosen(tiny_folder: Path) -> Recipe:
    """All that has state: S, noise, several drafts, partial participation, a cosine."""
    options = {"selection": "resample(2)", "s_dropout": 0.3}
    return recipe(
        tiny_folder,
        algorithm={"name": "fedsdr", "options": options},
        training={"rounds": ROUNDS, "participation": 0.75, "schedule": "cosine"},
    )


@pytest.fixture(scope="module")
def undisturbed(
    chosen: Recipe, base64: BaseModel, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, Any]:
    root = tmp_path_factory.mktemp("undisturbed") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        experiment.train(chosen, root, base=base64, clients=CLIENTS)
    return remains(root)


def remains(root: Path) -> Mapping[str, Any]:
    """All of a run directory that a result may be read from."""
    run = RunDirectory.open(root)
    states = {c.client_id: run.load_client_state(c.client_id, ROUNDS + 1) for c in CLIENTS}
    names = ("rounds", "validation", "diagnostics", "ledger")
    files = [root / f"{name}.jsonl" for name in names]
    files += [root / name for name in ("results.json", "profile.json")]
    files += sorted(p for p in (root / "adapters").rglob("*") if p.is_file())
    files += sorted(root.glob("clients/*/*.jsonl"))
    return {
        "checkpoints": run.checkpoints(),
        "shared": digest(run.load_checkpoint(ROUNDS).tensors["shared"]),
        "states": {c: s.digest for c, s in states.items() if s is not None},
        "spool": run.spooled(ROUNDS),
        "kept": sorted(str(p.relative_to(root)) for p in root.glob("clients/*/*")),
        "seal": run.facts()["results_sha256"],
        "audit": (root / "rewriting.json").read_bytes(),
        "phases": [(r["round"], r["phase"]) for r in run.rows("timings.jsonl") if r["round"]],
        **{str(p.relative_to(root)): p.read_bytes() for p in files},
    }


def begin_and_die(kill: Kill, chosen: Recipe, base: BaseModel, root: Path) -> None:
    with kill.armed(), pytest.raises(Killed):
        experiment.train(chosen, root, base=base, clients=CLIENTS)


@pytest.mark.usefixtures("no_fsync")
@pytest.mark.parametrize("point", POINTS)
def test_killed_there_and_resumed(
    point: str, chosen: Recipe, undisturbed: Mapping[str, Any], base64: BaseModel, tmp_path: Path
) -> None:
    root = tmp_path / "run"
    begin_and_die(POINTS[point], chosen, base64, root)
    experiment.resume(root, base=base64, clients=CLIENTS)
    assert remains(root) == undisturbed


@pytest.mark.usefixtures("no_fsync")
@pytest.mark.parametrize("nth", ROUND_2)
def test_killed_before_any_row_of_a_round(
    nth: int, chosen: Recipe, undisturbed: Mapping[str, Any], base64: BaseModel, tmp_path: Path
) -> None:
    """No row of any file is there twice, and none is missing."""
    root = tmp_path / "run"
    begin_and_die(Kill(RunDirectory, "append_row", nth), chosen, base64, root)
    assert RunDirectory.open(root).checkpoints() == [0, 1]
    experiment.resume(root, base=base64, clients=CLIENTS)
    assert remains(root) == undisturbed


def test_what_a_round_is_recorded_as(undisturbed: Mapping[str, Any]) -> None:
    phases = ("training", "combining", "validation", "diagnostics")
    assert undisturbed["phases"] == [(n, phase) for n in (1, 2, 3) for phase in phases]
    for file in ("rounds", "validation", "diagnostics"):
        assert undisturbed[f"{file}.jsonl"].count(b"\n") == ROUNDS


@pytest.mark.usefixtures("no_fsync")
@pytest.mark.parametrize("nth", [2, 9, 17, 26])
@pytest.mark.parametrize("call", ["rename", "replace"])
def test_killed_between_two_steps_of_the_file_system(
    call: str,
    nth: int,
    chosen: Recipe,
    undisturbed: Mapping[str, Any],
    base64: BaseModel,
    tmp_path: Path,
) -> None:
    root = tmp_path / "run"
    if call == "replace":
        nth = min(nth, 3)
    begin_and_die(Kill(os, call, nth), chosen, base64, root)
    experiment.resume(root, base=base64, clients=CLIENTS)
    assert remains(root) == undisturbed


@pytest.mark.usefixtures("no_fsync")
def test_results_that_are_not_the_runs_own_are_written_anew(
    chosen: Recipe, undisturbed: Mapping[str, Any], base64: BaseModel, tmp_path: Path
) -> None:
    """Also after a kill between the two files, where run.json knows other results."""
    root = tmp_path / "run"
    experiment.train(chosen, root, base=base64, clients=CLIENTS)
    RunDirectory.open(root).amend({"results_sha256": "of others"})
    with pytest.raises(RunError, match="fedsdr resume"):
        read_result(root)
    experiment.resume(root, base=base64, clients=CLIENTS)
    assert remains(root) == undisturbed
    assert read_result(root).scores


@pytest.mark.usefixtures("no_fsync")
def test_killed_again_and_again(
    chosen: Recipe, undisturbed: Mapping[str, Any], base64: BaseModel, tmp_path: Path
) -> None:
    root = tmp_path / "run"
    begin_and_die(Kill(RunDirectory, "save_update", 2), chosen, base64, root)
    for nth in (3, 2, 4, 3):
        with Kill(RunDirectory, "save_update", nth).armed(), contextlib.suppress(Killed):
            experiment.resume(root, base=base64, clients=CLIENTS)
    experiment.resume(root, base=base64, clients=CLIENTS)
    assert remains(root) == undisturbed


@pytest.mark.usefixtures("no_fsync")
@pytest.mark.parametrize("victim", ["checkpoints/round-00003", "checkpoints/round-00003,clients"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    victim: str,
    chosen: Recipe,
    undisturbed: Mapping[str, Any],
    base64: BaseModel,
    tmp_path: Path,
) -> None:
    root = tmp_path / "run"
    experiment.train(chosen, root, base=base64, clients=CLIENTS)
    damage(root / "checkpoints/round-00003/shared.safetensors")
    if "clients" in victim:
        damage(max(root.glob("clients/*/round-00003/branches.safetensors")))
    experiment.resume(root, base=base64, clients=CLIENTS)
    assert remains(root) == undisturbed


def damage(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)


@pytest.mark.usefixtures("no_fsync")
def test_a_finished_run_resumed_is_as_it_was(
    chosen: Recipe, undisturbed: Mapping[str, Any], base64: BaseModel, tmp_path: Path
) -> None:
    root = tmp_path / "run"
    experiment.train(chosen, root, base=base64, clients=CLIENTS)
    experiment.resume(root, base=base64, clients=CLIENTS)
    assert remains(root) == undisturbed


@pytest.mark.usefixtures("no_fsync")
def test_redistilling_resumes_too(tiny_folder: Path, base64: BaseModel, tmp_path: Path) -> None:
    options = {"teacher": "global", "redistill_every": 2}
    chosen = recipe(tiny_folder, algorithm={"name": "fedsdr", "options": options})
    ends = []
    for name, kill in (("whole", None), ("cut", Kill(RunDirectory, "save_update", 7))):
        root = tmp_path / name
        if kill is not None:
            begin_and_die(kill, chosen, base64, root)
            experiment.resume(root, base=base64, clients=CLIENTS)
        else:
            experiment.train(chosen, root, base=base64, clients=CLIENTS)
        checkpoint = RunDirectory.open(root).load_checkpoint(ROUNDS)
        kept = {c.client_id: root / "clients" / c.client_id / "rewrites.jsonl" for c in CLIENTS}
        texts = {client: file.read_bytes() for client, file in kept.items()}
        ends.append((checkpoint.digest, (root / "rounds.jsonl").read_bytes(), texts))
        for client, text in texts.items():  # of round 3: the drafts drawn last, and no more drawn
            drafts = (root / "rewrites" / f"{client}.jsonl").read_bytes().splitlines()
            written = [json.loads(line)["written"] for line in text.splitlines()]
            assert len(drafts) == 2 * len(written)
            last = [json.loads(line)["text"] for line in drafts[len(written) :]]
            assert sorted(written) == sorted(last)
    assert ends[0] == ends[1]


@pytest.mark.slow
def test_kill_9(
    chosen: Recipe, undisturbed: Mapping[str, Any], base64: BaseModel, tmp_path: Path
) -> None:
    """A forked process, killed by the kernel at random moments until it gets through."""
    root, context, dice = tmp_path / "run", multiprocessing.get_context("fork"), random.Random(3)
    deaths = 0
    for attempt in range(12):
        child = context.Process(target=go_on, args=(root, chosen, base64))
        child.start()
        child.join(dice.uniform(0.03, 0.2) if attempt < 11 else 120)
        if child.is_alive():
            child.kill()
            child.join()
            deaths += 1
        elif child.exitcode == 0:
            break
    assert child.exitcode == 0
    assert deaths >= 2
    assert remains(root) == undisturbed


def go_on(root: Path, chosen: Recipe, base: BaseModel) -> None:
    try:
        RunDirectory.open(root)
    except RunError:
        experiment.train(chosen, root, base=base, clients=CLIENTS)
    else:
        experiment.resume(root, base=base, clients=CLIENTS)
