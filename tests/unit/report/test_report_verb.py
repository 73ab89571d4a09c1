"""`fedsdr report`: where the page goes, and what is refused."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from fedsdr.cli.app import app
from fedsdr.runs.directory import RunDirectory
from fedsdr.runs.purge import purge
from made_runs import write_run

pytestmark = pytest.mark.usefixtures("no_fsync")


def verb(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["report", *map(str, arguments)])
    return done.exit_code, done.output


def test_a_page_beside_its_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    code, said = verb(run)
    assert code == 0
    assert "FedSDR on 4 clients, seed 1" in said
    page = run / "report.html"
    assert str(page) in said
    assert stat.S_IMODE(page.stat().st_mode) == 0o600
    assert page.read_text().startswith("<!DOCTYPE html>")


def test_figures_for_a_paper_stand_alone(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    code, said = verb(run, "-o", tmp_path / "a.html", "--figures", tmp_path / "figures", "--json")
    assert code == 0
    told = json.loads(said)
    assert len(told["verdict"]) == 3
    assert told["bytes"] == (tmp_path / "a.html").stat().st_size
    assert len(told["figures"]) == len(set(told["figures"])) > 20
    for name in told["figures"]:
        text = Path(name).read_text()
        drawing = ElementTree.fromstring(text)
        assert drawing.tag == "{http://www.w3.org/2000/svg}svg"
        assert "class=" not in text  # colours are attributes: no style sheet is needed
        assert "data-tip" not in text


def test_private_texts_go_where_a_purge_finds_them(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", synthetic=False)
    assert verb(run, "--include-texts")[0] == 0
    pages = [run / "report-with-texts.html", run / "report-with-texts-c1.html"]
    assert pages[0].is_file()
    assert verb(run, "--include-texts", "--client", "c1")[0] == 0
    assert pages[1].is_file()
    purge(RunDirectory(run))
    assert not any(page.exists() for page in pages)
    assert (run / "results.json").is_file()


def test_several_runs_go_where_one_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [write_run(tmp_path / method, method) for method in ("fedavg", "fedsd")]
    monkeypatch.chdir(tmp_path)
    code, said = verb(*runs, "--contrast", "fedsd:global > fedavg:global on recall")
    assert code == 0
    assert "1 contrast " in said
    assert (tmp_path / "report.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "holds no run"),
        (["run", "--client", "c1"], "--include-texts"),
        (["run", "--include-texts", "--client", "c9"], "no such client"),
        (["run", "--contrast", "what"], "cannot read the contrast"),
        (["run", "--figures", "run/run.json"], "is no folder but a file"),
        (["run", "-o", "run/run.json/x.html"], "lies in the own run.json of the run"),
    ],
)
def test_mistakes_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    write_run(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    code, said = verb(*arguments)
    assert code == 2
    assert message in " ".join(said.split())
    assert "Traceback" not in said
