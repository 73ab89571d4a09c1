"""Run directories damaged at random: a resume refuses in words, or ends with the bytes of a run
that nobody touched. `FEDSDR_FUZZ=2000 pytest -s tests/fuzz/test_damaged_runs.py`"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from attack import COUNT, Outcome, Tally, attempt, how_many
from damaged import CLIENTS, Stopped, begin, remains
from fedsdr.algorithms.fedavg import fedavg
from fedsdr.coordinator.loop import Judge, LoopSettings, run_rounds
from fedsdr.jobs import train as experiment
from fedsdr.model.base import BaseModel
from fedsdr.runs.directory import RunDirectory
from fedsdr.tensors import derive_seed
from fedsdr.types import Order, ServerState, Update

pytestmark = pytest.mark.usefixtures("no_fsync")
Dice = random.Random
Damage = Callable[[Dice, Path, Path], str]  # the run, another run -> what was done
NAMES = ("a", "b", "c", "d")
ROUNDS = 5


@dataclass
class Numbers:
    """Clients of one number each: what they answer hangs on all that they kept."""

    run: RunDirectory
    seed: int
    dies_at: int = 10**6
    answered: int = 0

    def ask(self, orders: list[Order], answered: set[str]) -> Iterator[Update]:
        for order in orders:
            kept = self.run.load_client_state(order.client_id, order.round)
            own = kept.tensors["own"]["w"] if kept else torch.zeros(2, dtype=torch.float64)
            step = derive_seed(self.seed, order.client_id, order.round) % 1000 / 1000
            own = 0.5 * own + order.shared["R/w"] + step
            self.run.save_client_state(order.client_id, order.round, {"own": {"w": own}}, {})
            metrics = {"loss": step, "steps": 1.0, "tokens": 2.0}
            yield Update(
                run="run",
                round=order.round,
                client_id=order.client_id,
                base_digest="base",
                weight=1.0,
                shared={"R/w": own},
                metrics=metrics,
            )
            self.answered += 1
            if self.answered == self.dies_at:
                raise Stopped


def play(root: Path, seed: int, dies_at: int = 10**6) -> None:
    if not (root / "run.json").exists():
        RunDirectory.create(root, "seed: 1\n", {"run": f"run{seed}"})
    run = RunDirectory.open(root)
    run.recover()
    run.recipe()
    # The last round is always the best: what is kept of an earlier one is not looked at again.
    judge = Judge(lambda state: {"global": {"a": {"round": float(state.round)}}}, "round", True)
    run_rounds(
        fedavg(),
        Numbers(run, seed, dies_at),
        clients=NAMES,
        first=ServerState(0, {"R/w": torch.zeros(2, dtype=torch.float64)}),
        run=run,
        settings=LoopSettings(run="run", seed=1, rounds=ROUNDS, lr=0.1, participation=3),
        base_digest="base",
        judge=judge,
        observe=lambda before, admitted, counted, after: {"seen": len(admitted.clients)},
    )


# Damages. Each leaves the place as it was where it finds nothing to damage.


JUNK = (
    b"\n",
    b"{}\n",
    b"\0",
    b'{"round": 1}\n',
    b'{"round": "one"}\n',
    b'{"round": -1}\n',
    b'{"round": 1e400}\n',
    b"x" * 99,
    b"[" * 5000 + b"\n",
)
LIKE_ROUNDS = (".tmp-round-00002.old", ".tmp-round-00001.new", "round-\u0661\u0661\u0661")


def files_in(root: Path, *patterns: str) -> list[Path]:
    found = {p for pattern in patterns or ("**/*",) for p in root.glob(pattern)}
    return sorted(p for p in found if p.is_file() and p.name != "lock")


def folders_in(root: Path) -> list[Path]:
    return sorted(
        p
        for pattern in ("checkpoints/*", "clients/*", "clients/*/*", "updates/*/*")
        for p in root.glob(pattern)
        if p.is_dir()
    )


def flip(dice: Dice, root: Path, other: Path) -> str:
    path = dice.choice(files_in(root))
    data = bytearray(path.read_bytes() or b" ")
    for _ in range(dice.choice((1, 1, 1, 3))):
        data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    path.write_bytes(data)
    return f"bits of {path.relative_to(root)}"


def cut(dice: Dice, root: Path, other: Path) -> str:
    path = dice.choice(files_in(root))
    data = path.read_bytes()
    path.write_bytes(data[: dice.randrange(len(data) + 1)])
    return f"{path.relative_to(root)} cut"


def grow(dice: Dice, root: Path, other: Path) -> str:
    path = dice.choice(files_in(root))
    junk = dice.choice(JUNK)
    data = path.read_bytes()
    at = dice.choice((0, len(data), dice.randrange(len(data) + 1)))
    path.write_bytes(data[:at] + junk + data[at:])
    return f"{junk[:20]!r} in {path.relative_to(root)} at {at}"


def rows(dice: Dice, root: Path, other: Path) -> str:
    """Edited, missing, doubled, reordered; or spelt otherwise."""
    path = dice.choice(files_in(root, "*.jsonl", "*.jsonl", "**/*.jsonl"))
    lines = path.read_text(errors="surrogateescape").splitlines(keepends=True)
    if not lines:
        return "nothing"
    i, j = sorted(dice.choices(range(len(lines)), k=2))
    how = dice.choice(
        ("edit", "drop", "double", "swap", "shuffle", "respell", "key", "last", "tail")
    )
    if how in ("edit", "respell", "key"):
        try:
            row: dict[str, Any] = json.loads(lines[i])
            name = dice.choice(sorted(row))
        except (ValueError, TypeError, IndexError):
            return "nothing"
        if how == "edit":
            row[name] = dice.choice((None, 0, 1, -1, "one", 1.5, [], {}, True, 10**30, row[name]))
        elif how == "key":
            row["extra"] = row.pop(name)
        lines[i] = json.dumps(row, separators=dice.choice(((", ", ": "), (",", ":")))) + "\n"
    elif how == "drop":
        del lines[i : j + 1]
    elif how == "double":
        lines[j:j] = lines[i : j + 1]
    elif how == "swap":
        lines[i], lines[j] = lines[j], lines[i]
    elif how == "shuffle":
        dice.shuffle(lines)
    elif how == "last":
        lines = lines[:-1]
    else:
        lines += lines[-1:]
    path.write_text("".join(lines), errors="surrogateescape")
    return f"{how} rows {i}, {j} of {path.relative_to(root)}"


def lose(dice: Dice, root: Path, other: Path) -> str:
    path = dice.choice(files_in(root) + folders_in(root))
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    return f"{path.relative_to(root)} lost"


def swap(dice: Dice, root: Path, other: Path) -> str:
    """Between rounds, clients, kinds."""
    kind = dice.choice((files_in(root), folders_in(root)))
    one, two = dice.choice(kind), dice.choice(kind)
    if one == two or one in two.parents or two in one.parents:
        return "nothing"
    aside = root / ".aside"
    one.rename(aside)
    two.rename(one)
    aside.rename(two)
    return f"{one.relative_to(root)} and {two.relative_to(root)} swapped"


def copy(dice: Dice, root: Path, other: Path) -> str:
    """A round by another number, another client's, another run's."""
    source = dice.choice((root, other))
    kind = dice.choice((files_in, folders_in))
    one, two = dice.choice(kind(source)), dice.choice(kind(root))
    if dice.random() < 0.4:
        two = root / one.relative_to(source)
    elif two.is_dir() and dice.random() < 0.5:
        two = two.with_name(f"round-{dice.choice((0, 1, 3, 4, 99999)):05}")
    if one == two or one in two.parents or two in one.parents:
        return "nothing"
    if two.exists():
        shutil.rmtree(two) if two.is_dir() else two.unlink()
    two.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(one, two) if one.is_dir() else shutil.copyfile(one, two)
    return f"{one} at {two.relative_to(root)}"


def plant(dice: Dice, root: Path, other: Path) -> str:
    where = dice.choice(("checkpoints", "clients/a", "clients/c1", "updates", "clients"))
    number = dice.choice((0, 1, 2, 3, 4, 5, 6, 77, 99999, 10**20))
    names = (f"round-{number:05}", f"round-{number:05}", f"round-0{number:05}", *LIKE_ROUNDS)
    path = root / where / dice.choice(names)
    if path.exists():
        return "nothing"
    path.mkdir(parents=True)
    if dice.random() < 0.5:
        text = dice.choice(("", "{}", "null", "[" * 3000, '{"files": {}, "meta": {}}', "\0"))
        (path / "state.json").write_text(text)
    return f"{path.relative_to(root)} planted"


def strange(dice: Dice, root: Path, other: Path) -> str:
    """What is no file at all."""
    path = dice.choice(files_in(root, "*.jsonl", "*.json", "checkpoints/*/*", "clients/*/*/*"))
    path.unlink()
    kind = dice.choice(("pipe", "folder", "link to nothing", "link to a device"))
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/nowhere" if "nothing" in kind else "/dev/zero")
    return f"{path.relative_to(root)} is a {kind}"


DAMAGES: tuple[Damage, ...] = (
    *(flip, flip, cut, grow, rows, rows, rows),
    *(lose, swap, copy, plant, strange),
)


def damaged(dice: Dice, root: Path, other: Path) -> str:
    told: list[str] = []
    for _ in range(dice.choice((1, 1, 1, 2, 3))):
        try:
            told.append(dice.choice(DAMAGES)(dice, root, other))
        except (OSError, IndexError) as error:
            told.append(f"nothing ({error})")  # what an earlier damage left cannot be damaged so
    return "; ".join(told)


def decided(root: Path) -> dict[str, str]:
    """What a run comes to: all but what it keeps to go back a round."""
    found = remains(root)
    newest = {
        f"{path.relative_to(root)}/"
        for folder in (root / "checkpoints", *(root / "clients").glob("*"))
        for path in sorted(folder.glob("round-*"))[-1:]
    }
    return {
        name: sha
        for name, sha in found.items()
        if "/round-" not in name or any(name.startswith(path) for path in newest)
    }


def differing(root: Path, want: dict[str, str]) -> list[str]:
    found = remains(root)
    return sorted(name for name, sha in want.items() if found.get(name) != sha)


def add(tally: Tally, name: str, outcome: Outcome) -> None:
    """What came back is all right if no file differs."""
    tally.add(f"{name}; differing: {outcome.value}", outcome, may_return=outcome.value == [])


def test_of_numbers(tmp_path: Path) -> None:
    """The loop alone, thousands of times."""
    tally = Tally("damaged runs of numbers")
    play(tmp_path / "whole", 1)
    want = decided(tmp_path / "whole")
    starts = [tmp_path / "whole"]
    for dies_at in (1, 2, 7, 11, 13):
        starts.append(tmp_path / f"stopped{dies_at}")
        with pytest.raises(Stopped):
            play(starts[-1], 1, dies_at)
    play(tmp_path / "other", 2)
    for seed in range(how_many(30)):
        dice, root = random.Random(f"numbers {seed}"), tmp_path / "run"
        start = dice.choice(starts)
        shutil.copytree(start, root)
        done = damaged(dice, root, tmp_path / "other")

        def resumed(root: Path = root) -> list[str]:
            play(root, 1)
            return differing(root, want)

        add(tally, f"{seed} ({start.name}): {done}", attempt(resumed))
        shutil.rmtree(root)
    print(tally, *tally.bad, sep="\n")
    assert tally.bad == []


def test_of_fedsdr(base64: BaseModel, tmp_path: Path) -> None:
    """With rewriting, adapters and results."""
    tally = Tally("damaged runs of FedSDR")
    last = {"answers": 1, "select": "last"}
    runs = begin(tmp_path, base64, evaluation=last)
    (tmp_path / "theirs").mkdir()
    training = {"rounds": 2, "batch": 2, "lr": 0.02}
    other = begin(tmp_path / "theirs", base64, training=training, evaluation=last)
    want = decided(runs.whole)
    for seed in range(COUNT // 8 or 2):
        dice, root = random.Random(f"fedsdr {seed}"), tmp_path / "run"
        start = dice.choice((runs.whole, runs.stopped, runs.stopped))
        shutil.copytree(start, root)
        done = damaged(dice, root, other.whole)

        def resumed(root: Path = root) -> list[str]:
            experiment.resume(root, base=base64, clients=CLIENTS)
            return differing(root, want)

        add(tally, f"{seed} ({start.name}): {done}", attempt(resumed, seconds=60))
        shutil.rmtree(root)
    print(tally, *tally.bad, sep="\n")
    assert tally.bad == []
