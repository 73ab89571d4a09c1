"""Runs in which something stands that leads elsewhere: links, pipes, sockets, second names; at any
depth, met by any verb. Nothing outside the run may change, and what is refused is refused by name.
"""

from __future__ import annotations

import os
import random
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from attack import Tally, attempt, how_many, snapshot
from fedsdr.evaluate.finished import read_result
from fedsdr.jobs import diagnose as diagnosis
from fedsdr.jobs import evaluate as evaluation
from fedsdr.jobs import train as experiment
from fedsdr.jobs.export.chosen import Finished
from fedsdr.jobs.export.folder import export_adapter
from fedsdr.report.page import render_report
from fedsdr.report.read import read_record
from fedsdr.report.watch import Library
from fedsdr.runs.directory import RunDirectory
from fedsdr.runs.purge import purge
from stopped_runs import SECRET, make_workplace

Verb = Callable[[Path], object]


def served(run: Path) -> None:
    library = Library.open(run)
    for place in library.places().values():
        library.record(place)


VERBS: dict[str, Verb] = {
    "resume": lambda run: experiment.resume(run) and None,
    "evaluate": lambda run: evaluation.evaluate(run) and None,
    "tasks": lambda run: evaluation.evaluate_tasks(run, ["fpb"], "bench", limit=1) and None,
    "merge figures": lambda run: evaluation.merge_evaluations(run, ["figures.json"]) and None,
    "diagnose": lambda run: diagnosis.diagnose_run(run, diagnosis.Wanted(("js",), False)) and None,
    "report": lambda run: render_report([read_record(run)]) and None,
    "show": lambda run: read_record(run, brief=True) and None,
    "serve": lambda run: served(run),
    "compare": lambda run: read_result(run) and None,
    "export": lambda run: export_adapter(run, run.parent / "exported") and None,
    "chat": lambda run: Finished.open(run).chosen("global") and None,
    "purge": lambda run: purge(RunDirectory.open(run)) and None,
}
FOLDERS = ("checkpoints", "clients", "updates", "adapters", "rewrites", "evaluation", "diagnosis",
           "tensorboard", "adapters/global", "clients/client-0", "adapters/personal")  # fmt: skip
FILES = ("run.json", "recipe.yaml", "lock", "rounds.jsonl", "results.json", "report.html",
         "partition.json", "ledger.jsonl", "rewriting_audit.jsonl", "validation.jsonl",
         "timings.jsonl", "profile.json", "diagnosis.json", "rewriting.json", "notes",
         ".tmp-results.json.x", "rewriting_audit.jsonl.tmp", "partition.json.part",
         "adapters/global/adapter_model.safetensors", "evaluation/results.json",
         "evaluation/lock", ".purged")  # fmt: skip
LINKS = ("absolute", "relative", "dangling", "circle", "inwards", "to itself")
HARMLESS = ("second name", "folder for file", "file for folder")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    here = tmp_path_factory.mktemp("workplace")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        make_workplace(here)
        (here / "figures.json").write_text("{}")
    return here


def outside(run: Path, place: Path) -> None:
    """What a link leads to, and must stay as it is: of the same kind as what stood in the run."""
    made = run.parent / "precious"
    shutil.rmtree(made, ignore_errors=True)
    if place.is_dir():
        shutil.copytree(place, made)
        (made / "round-00099").mkdir()
        (made / "thesis.jsonl").write_text("{}\n")
    else:
        made.mkdir()
        shutil.copy(place, made / "file") if place.exists() else (made / "file").write_text("x")
        (made / "file").chmod(0o644)


def plant(run: Path, name: str, kind: str) -> None:
    place, precious = run / name, run.parent / "precious"
    outside(run, place)
    was_folder = place.is_dir()
    target = precious if was_folder else precious / "file"
    if place.exists():
        shutil.rmtree(place) if was_folder else place.unlink()
    place.parent.mkdir(parents=True, exist_ok=True)
    match kind:
        case "absolute":
            place.symlink_to(target)
        case "relative":
            place.symlink_to(os.path.relpath(target, place.parent))
        case "dangling":
            place.symlink_to(precious / "not there")
        case "circle":
            place.symlink_to(place.name)
        case "inwards":
            place.symlink_to(run / "checkpoints")
        case "to itself":
            place.symlink_to(run)
        case "pipe":
            os.mkfifo(place)
        case "socket":
            with socket.socket(socket.AF_UNIX) as made:
                os.chdir(place.parent)  # its path may not be long
                made.bind(place.name)
        case "device":
            os.mknod(place, 0o600 | 0o020000, os.makedev(1, 5))  # /dev/zero: without an end
        case "second name":
            os.link(precious / ("thesis.jsonl" if was_folder else "file"), place)
        case "folder for file":
            place.mkdir()
        case _:
            place.write_text("no folder")


@pytest.mark.timeout(0)  # as many as are asked for
def test_nothing_leads_out_of_a_run(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(1)
    draw, tally = random.Random(11), Tally("run folders with links")
    kinds = [*LINKS, "pipe", "socket", *HARMLESS]
    kinds += ["device"] if os.geteuid() == 0 else []
    for number in range(how_many(24)):
        here = tmp_path / f"{number}"
        shutil.copytree(workplace, here)
        monkeypatch.chdir(here)
        verb = draw.choice(list(VERBS))
        half = verb in ("resume", "purge", "report", "show") and draw.random() < 0.7
        run = here / ("half" if half else "run")
        kind, name = draw.choice(kinds), draw.choice(FOLDERS if draw.random() < 0.5 else FILES)
        if draw.random() < 0.2:  # anything else that is there
            name = str(draw.choice(sorted(run.rglob("*"))).relative_to(run))
        plant(run, name, kind)
        monkeypatch.chdir(here)
        given = f"{number}: {verb}, {name} is {kind}"
        elsewhere = snapshot(here / "precious")
        before = snapshot(run)
        outcome = attempt(lambda verb=verb, run=run: VERBS[verb](run))
        tops = "/" not in name  # of the folders, `show` reads nothing
        tally.add(given, outcome, may_return=kind in HARMLESS or (verb == "show" and not tops))
        if snapshot(here / "precious") != elsewhere:
            tally.note(given, "something outside the run was changed")
        if outcome.kind == "refused" and kind not in HARMLESS:
            if not any(part in outcome.text for part in (name, *name.split("/"))):
                tally.note(given, f"not named: {outcome.text}")
            if {n: c for n, c in snapshot(run).items() if n != "lock"} != {
                n: c for n, c in before.items() if n != "lock"
            }:
                tally.note(given, "a run that is refused was changed")
        if outcome.kind == "returned" and verb == "purge" and kind != "second name":
            left = [p for p in run.rglob("*") if p.is_file() and SECRET.encode() in p.read_bytes()]
            if left:
                tally.note(given, f"not purged: {left}")
        shutil.rmtree(here)
    print(tally)
    assert tally.bad == []
