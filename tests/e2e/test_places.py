"""Where the output of every verb may go: never onto a run's own, onto a device, or into a run."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from attack import snapshot
from fedsdr.cli.app import app
from fedsdr.errors import RunError
from fedsdr.runs.directory import RunDirectory
from fedsdr.runs.places import figures_at, page_at, refuse_inside_a_run, work_folder
from fedsdr.runs.purge import private
from stopped_runs import SECRET, make_workplace

SWEEP = """
data: {atlas: {clients: 2, examples: 10, public: 8}}
sweep: {methods: {fedavg: {}}, settings: {b: {}}, seeds: [1]}
"""
# Every verb that writes where it is told to, and how that is said.
FOLDERS: dict[str, tuple[str, ...]] = {
    "train": ("train", "recipe.yaml", "--out"),
    "demo": ("demo", "--out"),
    "distill": ("distill", "recipe.yaml", "--out"),
    "distill a file": ("distill", "d.jsonl", "--model", "model", "--out"),
    "diagnose": ("diagnose", "recipe.yaml", "--only", "js", "--no-rewritten", "--out"),
    "merge": ("merge", "run", "--out"),
    "export": ("export", "run", "--out"),
    "sweep": ("sweep", "sweep.yaml", "--out"),
}
FILES: dict[str, tuple[str, ...]] = {
    "report": ("report", "run", "--out"),
    "sweep's page": ("sweep", "sweep.yaml", "--out", "new", "--markdown"),
    "init": ("init", "--force"),
}
OWN = ("run.json", "recipe.yaml", "rounds.jsonl", "results.json", "lock", "Run.JSON", ".purged")
INSIDE = ("checkpoints", "checkpoints/round-00001", "clients/c0", "adapters/global", "evaluation",
          "rewrites", "updates", "tensorboard")  # fmt: skip


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    here = tmp_path_factory.mktemp("workplace")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        make_workplace(here)
        (here / "sweep.yaml").write_text(SWEEP)
        (here / "linked").symlink_to("run")
        (here / "deep").symlink_to("run/checkpoints")
        (here / "page.html").symlink_to("run/run.json")
        os.mkfifo(here / "pipe.html")
        with socket.socket(socket.AF_UNIX) as made:
            made.bind("socket.html")
        (here / "null.html").symlink_to("/dev/null")
        if os.geteuid() == 0:
            os.mknod(here / "device.html", 0o666 | 0o020000, os.makedev(1, 3))
    return here


@pytest.fixture(autouse=True)
def _here(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)


def fedsdr(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def refused(here: Path, *arguments: str) -> str:
    before = snapshot(here)
    result = fedsdr(*arguments)
    assert result.exit_code == 2, (arguments, result.output, result.exception)
    assert snapshot(here) == before, arguments
    return result.stderr


@pytest.mark.parametrize("verb", FOLDERS)
def test_no_folder_in_a_run_or_in_place_of_one(verb: str, workplace: Path) -> None:
    words = FOLDERS[verb]
    for place in (*INSIDE, "new", "new/deeper", "checkpoints/../new"):
        said = refused(workplace, *words, f"run/{place}")
        assert "in the run" in said or "the run " in said, said
    for place in ("linked/new", "deep", "deep/new"):
        assert "run" in refused(workplace, *words, place)
    for place in ("run", "linked"):
        said = refused(workplace, *words, place)
        assert "run" in said
    for place in ("pipe.html", "socket.html", "null.html", "d.jsonl", "d.jsonl/new"):
        refused(workplace, *words, place)


@pytest.mark.parametrize("verb", [v for v in FOLDERS if v not in ("sweep",)])
def test_no_folder_that_holds_something_else(verb: str, workplace: Path) -> None:
    """A folder of runs, or the one in which everything lies."""
    assert "is not empty" in (said := refused(workplace, *FOLDERS[verb], ".")) or "is there" in said


@pytest.mark.parametrize("verb", FILES)
def test_no_file_in_place_of_a_runs_own_or_of_a_device(verb: str, workplace: Path) -> None:
    words = FILES[verb]
    places = [f"run/{name}" for name in (*OWN, *(f"{folder}/x.html" for folder in INSIDE))]
    places += ["linked/run.json", "deep/x.html", "page.html", "run/adapters/../run.json"]
    for place in places:
        assert "run" in refused(workplace, *words, place)
    for place, kind in (
        ("pipe.html", "a named pipe"),
        ("socket.html", "a socket"),
        ("null.html", "a device"),
        ("/dev/null", "a device"),
        ("/dev/full", "a device"),
        *([("device.html", "a device")] if os.geteuid() == 0 else []),
    ):
        assert f"{place} is {kind}" in refused(workplace, *words, place)


def test_a_page_is_a_page(workplace: Path) -> None:
    for place in ("d.jsonl", "recipe.yaml", "new.txt", "run/notes"):
        assert "ends in .html" in refused(workplace, "report", "run", "--out", place)
    said = refused(workplace, "sweep", "sweep.yaml", "--out", "new", "--markdown", "sweep.yaml")
    assert "ends in .md" in said


def test_figures_stand_beside_a_runs_own(workplace: Path) -> None:
    for place in ("run", *(f"run/{name}" for name in INSIDE), "run/run.json", "deep"):
        refused(workplace, "report", "run", "--out", "p.html", "--figures", place)


@pytest.mark.parametrize(
    "place", ["run/whatever.html", "run/pages/of c0.html", "linked/again.html", "elsewhere/p.html"]
)
def test_pages_may_lie_in_a_run_and_a_purge_finds_them(place: str, workplace: Path) -> None:
    result = fedsdr("report", "run", "--include-texts", "--out", place)
    assert result.exit_code == 0, result.output
    page = workplace / place
    assert SECRET in page.read_text()
    found = [part.path for part in private(RunDirectory(workplace / "run"))]
    inside = (workplace / "run") in page.resolve().parents
    assert (page.resolve() in found or page.resolve().parent in found) is inside
    page.unlink()


@pytest.mark.parametrize(
    "place", ["a\0b", "x" * 300, "~nobody-here/x", "a/" * 3000, "circle", "run/\ud800"]
)
@pytest.mark.parametrize(
    "asked", [lambda p: page_at(p, ".html"), figures_at, work_folder, refuse_inside_a_run]
)
def test_what_is_no_place_is_said(
    asked: Callable[[Path], object], place: str, workplace: Path
) -> None:
    if place == "circle" and not os.path.islink("circle"):
        os.symlink("circle", "circle")
    with pytest.raises(RunError):
        asked(Path(place))


def test_another_programs_run_json_is_no_run(workplace: Path) -> None:
    (workplace / "theirs").mkdir()
    (workplace / "theirs" / "run.json").write_text("{}")
    assert page_at(Path("theirs/p.html"), ".html").name == "p.html"
