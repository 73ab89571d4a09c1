"""Trackers: the rounds of a run as curves in TensorBoard or Weights & Biases.

    out = "runs/first"
    follow(["tensorboard"], out, Watch(), lambda watch: fedsdr.run(recipe, out, watch))

A tracker is a view of rounds.jsonl and holds nothing of its own: with its first round it writes the
curves anew from the run's first committed round on. So a resumed run continues them whatever a kill
left behind: no step is missing and none is there twice. Only numbers go in.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from fedsdr.coordinator.job import Watch
from fedsdr.coordinator.loop import ROUNDS, Row
from fedsdr.errors import MissingExtra, RunError, nearest
from fedsdr.runs.directory import RunDirectory
from fedsdr.runs.files import private_umask

if TYPE_CHECKING:
    import wandb
    from torch.utils.tensorboard import SummaryWriter

Results = Mapping[str, Any]
Mode = Literal["online", "offline", "disabled"]
ResultsT = TypeVar("ResultsT", bound=Results)


class Tracker(Protocol):
    """Whoever wants to see a run's numbers as they come."""

    def row(self, row: Row) -> None:
        """One committed round."""
        ...

    def finish(self, results: Results) -> None:
        """The run is at its end: its test scores."""
        ...

    def close(self) -> None:
        """Nothing more will come, at the run's end or before."""
        ...


def follow(
    names: Sequence[str], directory: str | Path, watch: Watch, work: Callable[[Watch], ResultsT]
) -> ResultsT:
    """Do the work (a run, or a resume) with every committed round told to the trackers too."""
    trackers = open_trackers(names, Path(directory))

    def track(row: Row) -> None:
        watch.told(row)
        with private_umask():
            for tracker in trackers:
                tracker.row(row)

    try:
        results = work(replace(watch, told=track))
        with private_umask():
            for tracker in trackers:
                tracker.finish(results)
    finally:
        with private_umask():
            for tracker in trackers:
                tracker.close()
    return results


def open_trackers(names: Sequence[str], directory: Path) -> list[Tracker]:
    """The trackers of a run; a missing package is an error now, not after the first round."""
    for name in names:
        if name not in TRACKERS:
            raise RunError(
                f"no tracker {name!r}; there are {', '.join(TRACKERS)}.{nearest(name, TRACKERS)}"
            )
        if find_spec(name) is None:
            raise MissingExtra(f"{name} is not installed: pip install 'fedsdr[{name}]'")
    return [TRACKERS[name](directory) for name in dict.fromkeys(names)]


class TensorBoard:
    """Event files in RUN/tensorboard."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.writer: SummaryWriter | None = None

    def row(self, row: Row) -> None:
        writer = self._begun(row["round"])
        _add(writer, numbers(row), row["round"])
        writer.flush()

    def finish(self, results: Results) -> None:
        writer = self._begun(results["rounds"] + 1)
        _add(writer, final_scores(results), results["rounds"])

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()

    def _begun(self, round: int) -> SummaryWriter:
        if self.writer is None:
            from torch.utils.tensorboard import SummaryWriter

            folder = self.directory / "tensorboard"
            shutil.rmtree(folder, ignore_errors=True)
            self.writer = SummaryWriter(str(folder))
            for row in _rows_before(self.directory, round):
                _add(self.writer, numbers(row), row["round"])
        return self.writer


class WandB:
    """A run in RUN/wandb, offline unless the user's own WANDB_MODE says otherwise. Neither the
    console, nor code, nor the command line, nor the machine is recorded."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.mode: Mode = _wandb_mode()
        self.run: wandb.Run | None = None

    def row(self, row: Row) -> None:
        self._log(self._begun(row["round"]), row)

    def finish(self, results: Results) -> None:
        self._begun(results["rounds"] + 1).summary.update(final_scores(results))

    def close(self) -> None:
        if self.run is not None:
            self.run.finish()

    def _begun(self, round: int) -> wandb.Run:
        if self.run is None:
            # Read when wandb is imported: its reports on itself are nobody's wish here.
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
            import wandb

            identity = RunDirectory.open(self.directory).facts()["run"]
            for old in self.directory.glob(f"wandb/offline-run-*-{identity}"):
                shutil.rmtree(old, ignore_errors=True)
            settings = wandb.Settings(
                console="off",
                disable_code=True,
                disable_git=True,
                host="",
                silent=True,
                x_disable_machine_info=True,
                x_disable_meta=True,
                x_disable_stats=True,
                x_save_requirements=False,
            )
            try:
                self.run = wandb.init(
                    mode=self.mode,
                    dir=str(self.directory),
                    project=os.environ.get("WANDB_PROJECT", "fedsdr"),
                    id=identity,
                    name=self.directory.resolve().name,
                    resume="allow" if self.mode == "online" else None,
                    settings=settings,
                )
            except wandb.Error as error:
                raise RunError(
                    f"wandb ({self.mode}): {error}; `fedsdr resume {self.directory}` goes on, with "
                    "or without --tracker wandb"
                ) from error
            for row in _rows_before(self.directory, round):
                self._log(self.run, row)
        return self.run

    def _log(self, run: wandb.Run, row: Row) -> None:
        if row["round"] >= run.starting_step:  # the server has those before, of a run resumed
            run.log(numbers(row), step=row["round"])


TRACKERS: Mapping[str, Callable[[Path], Tracker]] = {"tensorboard": TensorBoard, "wandb": WandB}


def numbers(row: Row) -> dict[str, float]:
    """The numbers of one line of rounds.jsonl by curve; of why clients were refused, how many."""
    plain = ("loss", "lr", "clients", "steps", "tokens", "bytes_up", "bytes_down")
    return {
        **{name: float(row[name]) for name in plain},
        "refused": float(len(row["refused"])),
        **{f"losses/{client}": float(loss) for client, loss in row["losses"].items()},
        **_other_losses(row.get("other_losses") or {}),
        **_by_mix("validation", row["validation"]),
    }


def _other_losses(others: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Of what else was trained: `other_losses/S on rewritten`, and by client below it."""
    losses = dict[str, float]()
    for name, other in others.items():
        losses[f"other_losses/{name}"] = float(other["mean"])
        for client, loss in other["clients"].items():
            losses[f"other_losses/{name}/{client}"] = float(loss)
    return losses


def final_scores(results: Results) -> dict[str, float]:
    """Every mix's mean over clients, at its chosen round."""
    return _by_mix("test", results["scores"])


def _by_mix(split: str, scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    return {
        f"{split}/{mix}/{measure}": float(value)
        for mix, measures in scores.items()
        for measure, value in measures.items()
    }


def _wandb_mode() -> Mode:
    match os.environ.get("WANDB_MODE", "offline"):
        case "online" | "offline" | "disabled" as mode:
            return mode
        case other:
            raise RunError(f"WANDB_MODE={other}: use offline (the default), online or disabled")


def _add(writer: SummaryWriter, values: Mapping[str, float], step: int) -> None:
    for name, value in values.items():
        writer.add_scalar(name, value, step)


def _rows_before(directory: Path, round: int) -> Iterator[Row]:
    rows = RunDirectory.open(directory).rows(ROUNDS)
    return (row for row in rows if row["round"] < round)
