"""`fedsdr distill FILE`: a rewritten file and an audit, through kills and dead endpoints."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from fedsdr.cli.app import app
from fedsdr.runs.lock import run_lock
from rewriting_server import Reply, serving

SHARED = Path(__file__).parents[3] / "shared" / "data"
SECRET = "Ada Lovelace takes 40 mg"
MAIN = [sys.executable, "-c", "from fedsdr.cli import main; main()"]


def fedsdr(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def well(*arguments: object) -> str:
    result = fedsdr(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def rows(count: int) -> list[dict[str, Any]]:
    return [
        {"instruction": f"Bed {i}?", "input": "", "output": f"{SECRET}, bed {i}.", "ward": i % 3}
        for i in range(count)
    ]


def write(path: Path, made: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().split("\n") if line]


def remote(url: str, *more: object) -> list[object]:
    return ["--endpoint", url, "--endpoint-model", "seven-b", *more]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_file_by_a_model_that_is_here(tmp_path: Path, tiny_folder: Path) -> None:
    file = write(tmp_path / "beds.jsonl", rows(7))
    told = [file, "--model", tiny_folder, "--set", "rewriting.max_new_tokens=5"]
    told += ["--set", "run.threads=1"]
    said = well("distill", *told, "--out", "mine")
    assert "rewriting rows: 7 of 7" in said
    assert "beds" in said
    assert "Ada" not in said
    made = read(tmp_path / "mine" / "rewritten.jsonl")
    assert [{**row, "output": ""} for row in made] == [{**row, "output": ""} for row in rows(7)]
    assert [row["output"] for row in made] != [row["output"] for row in rows(7)]
    audit = read(tmp_path / "mine" / "audit.jsonl")
    assert [row["example_id"] for row in audit] == [f"beds-{i}" for i in range(1, 8)]
    assert all("texts" not in row for row in audit)
    assert stat.S_IMODE((tmp_path / "mine").stat().st_mode) == 0o700
    strict = well("distill", *told, "--out", "mine", "--selection", "facts", "--json")
    summary = json.loads(strict)
    assert summary["overall"]["examples"] == 7
    assert summary["overall"]["fell_back"] == 1.0  # a random model keeps no fact
    assert read(tmp_path / "mine" / "rewritten.jsonl") == rows(7)
    texts = fedsdr("distill", *told, "--out", "mine", "--include-texts")
    assert "will hold the records' texts" in texts.stdout
    assert read(tmp_path / "mine" / "audit.jsonl")[0]["texts"][0] == rows(1)[0]["output"]


def test_a_file_by_an_endpoint_and_again(tmp_path: Path) -> None:
    file = write(tmp_path / "beds.jsonl", rows(9))
    with serving() as server:
        said = well("distill", file, *remote(server.url), "--selection", "facts", "--out", "mine")
        assert "Ada" not in said
        made = read(tmp_path / "mine" / "rewritten.jsonl")
        assert [row["output"] for row in made] == [f"In short: {r['output']}" for r in rows(9)]
        assert "all of them known" in well("distill", file, *remote(server.url), "--out", "mine")
        assert len(server.bodies) == 9


def test_killed_in_the_middle_and_started_again(tmp_path: Path) -> None:
    """No record is asked for twice but those under way, and none is lost."""
    count, at_once = 80, 4
    file = write(tmp_path / "beds.jsonl", rows(count))
    killed = threading.Event()

    def script(number: int, reference: str) -> Reply:
        if number > 40:  # so that the kill comes in time, however busy the machine
            killed.wait(300)
        return Reply()

    with serving(script) as server:
        told = ["distill", file, *remote(server.url), "--out", "mine"]
        told += ["--set", f"rewriting.engine.concurrency={at_once}"]
        command = [*MAIN, *map(str, told)]
        running = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
        began = time.monotonic()
        while sum(server.answered.values()) < 30:
            assert running.poll() is None
            assert time.monotonic() - began < 300
            time.sleep(0.01)
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
        killed.set()
        time.sleep(0.2)  # what was under way is answered to nobody
        before = len(server.bodies)
        assert 30 <= before < count
        assert not (tmp_path / "mine" / "rewritten.jsonl").exists()
        assert json.loads(well(*told, "--json"))["overall"]["examples"] == count
        twice = [reference for reference, times in server.asked.items() if times > 1]
        assert len(server.asked) == count
        assert max(server.asked.values()) <= 2
        assert len(twice) <= 2 * at_once  # under way, or answered and not yet on the disk
    made = read(tmp_path / "mine" / "rewritten.jsonl")
    assert [row["output"] for row in made] == [f"In short: {r['output']}" for r in rows(count)]
    assert len(read(tmp_path / "mine" / "drafts" / "rows.jsonl")) in (count, count + 1)


@pytest.mark.parametrize("at_once", [1, 8])
def test_dead_in_the_middle_and_alive_again(at_once: int, tmp_path: Path) -> None:
    """All that it answered is there, whoever came first. Of many at once, the last good answer may
    come after bad ones: then every row was asked for before it was given up."""
    file = write(tmp_path / "beds.jsonl", rows(30))
    told = ["--out", "mine", "--set", "rewriting.engine.retries=0"]
    told += ["--set", f"rewriting.engine.concurrency={at_once}"]
    with serving(lambda n, _: Reply(status=200 if n <= 20 else 502)) as server:
        stopped = fedsdr("distill", file, *remote(server.url), *told)
        assert stopped.exit_code == 2
        assert "HTTP 502" in stopped.stderr
        goes_on = "the same command goes on" in stopped.stderr
        assert goes_on or (at_once > 1 and "asks for these again" in stopped.stderr)
        assert "Ada" not in stopped.output
    with serving() as server:
        well("distill", file, *remote(server.url), *told)
        assert len(server.bodies) == 10


@pytest.mark.parametrize("client", ["c0_general_alpaca", "c6_tools"])
def test_real_rewrites_are_replayed(client: str, tmp_path: Path) -> None:
    """Those of a 7B model; what comes out is what it wrote, where selection keeps it."""
    pairs_file = SHARED / "rewrites" / f"{client}.sdft_distilled.jsonl"
    data = SHARED / "clients" / client / "train.jsonl"
    if not pairs_file.is_file() or not data.is_file():
        pytest.skip("the shared data are not at hand")
    pairs = {row["id"]: row for row in read(pairs_file)}
    some = [row for row in read(data) if row["id"] in pairs][:50]
    file = write(tmp_path / "d.jsonl", some)
    replay = {row["output"]: pairs[row["id"]]["output_distilled"] for row in some}
    with serving(replay=replay) as server:
        for rule in ("none", "facts"):
            out = ["--selection", rule, "--out", rule, "--json"]
            told = json.loads(well("distill", file, *remote(server.url), *out))
            made = read(tmp_path / rule / "rewritten.jsonl")
            audit = read(tmp_path / rule / "audit.jsonl")
            assert told["overall"]["examples"] == len(made) == len(some)
            for row, new, seen in zip(some, made, audit, strict=True):
                wanted = replay[row["output"]].strip() if seen["kept"] else row["output"]
                assert new == {**row, "output": wanted}
        assert 0 < told["overall"]["kept"] < 1


BAD: dict[str, tuple[list[object], str]] = {
    "no such file": (["nowhere.jsonl", "--model", "atlas"], "there is no such file"),
    "a folder": (["folder.jsonl", "--model", "atlas"], "is a directory"),
    "empty": (["empty.jsonl", "--model", "atlas"], "is empty"),
    "no records": (["none.json", "--model", "atlas"], "has no rows"),
    "not JSON": (["broken.jsonl", "--model", "atlas"], "broken.jsonl, line 2"),
    "another shape": (["odd.jsonl", "--model", "atlas"], "shape not known"),
    "nobody to rewrite": (["beds.jsonl"], "--model PATH, or --endpoint URL"),
    "no such model": (["beds.jsonl", "--model", "nowhere/at/all"], "nowhere/at/all"),
    "an unknown rule": (["beds.jsonl", "--model", "atlas", "--selection", "fact"], "'facts'?"),
    "an endpoint without a model": (
        ["beds.jsonl", "--endpoint", "http://127.0.0.1:9/v1"],
        "rewriting.engine.model",
    ),
    "another machine": (
        ["beds.jsonl", *remote("http://gpu.example:8000/v1")],
        "rewriting.engine.allow",
    ),
    "no URL": (["beds.jsonl", *remote("gpu:8000")], "http or https"),
    "nobody listens": (["beds.jsonl", *remote("http://127.0.0.1:9/v1")], "does not answer"),
    "no key": (
        ["beds.jsonl", *remote("http://127.0.0.1:9/v1"), "--set", "rewriting.engine.key_env=NONE"],
        "variable NONE is not set",
    ),
    "an unknown key": (
        ["beds.jsonl", *remote("http://127.0.0.1:9/v1"), "--set", "rewriting.engine.retry=1"],
        "Did you mean 'retries'?",
    ),
    "out is a file": (["beds.jsonl", "--model", "atlas", "--out", "beds.jsonl"], "beds.jsonl"),
    "no such engine": (
        ["beds.jsonl", "--model", "atlas", "--set", "rewriting.engine=vllm"],
        "must be builtin, or an endpoint",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_told_with_exit_code_2(name: str, tmp_path: Path) -> None:
    write(tmp_path / "beds.jsonl", rows(3))
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "none.json").write_text("[]")
    (tmp_path / "broken.jsonl").write_text(json.dumps(rows(1)[0]) + f'\n{{"{SECRET}\n')
    (tmp_path / "odd.jsonl").write_text(json.dumps({"a": SECRET}) + "\n")
    arguments, word = BAD[name]
    result = fedsdr("distill", *arguments)
    assert result.exit_code == 2, result.output
    assert word in result.stderr.replace("\n", " ")
    assert "Ada" not in result.output
    assert "Traceback" not in result.output


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_no_permission(tmp_path: Path) -> None:
    write(tmp_path / "beds.jsonl", rows(3)).chmod(0)
    result = fedsdr("distill", "beds.jsonl", "--model", "atlas")
    assert (result.exit_code, "Permission denied" in result.stderr) == (2, True)
    (tmp_path / "beds.jsonl").chmod(0o600)
    (tmp_path / "closed").mkdir(mode=0o500)
    result = fedsdr("distill", "beds.jsonl", "--model", "atlas", "--out", "closed/mine")
    assert (result.exit_code, "Permission denied" in result.stderr) == (2, True)


def test_two_at_once_would_ask_twice(tmp_path: Path) -> None:
    write(tmp_path / "beds.jsonl", rows(3))
    (tmp_path / "mine").mkdir()
    with serving() as server, run_lock(tmp_path / "mine"):
        result = fedsdr("distill", "beds.jsonl", *remote(server.url), "--out", "mine")
        assert result.exit_code == 2
        assert "is in use by process" in result.stderr
        assert server.bodies == []


def test_a_recipes_clients_by_an_endpoint(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(
        "data: {atlas: {clients: 2, examples: 10, public: 8}}\nrun: {threads: 1}\n"
    )
    with serving() as server:
        said = well("distill", "recipe.yaml", *remote(server.url), "--out", "mine")
        made = [*read(tmp_path / "mine" / "c0.jsonl"), *read(tmp_path / "mine" / "c1.jsonl")]
        assert {row["response"][:10] for row in made} == {"In short: "}
        assert f"rewriting rows: {len(made)} of {len(made)}" in said
        assert len(server.bodies) == len(made)
