"""The command line as a user runs it, on the embedded base and a federation of two clients."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from rich.console import Console
from typer.testing import CliRunner, Result

from fedsdr.cli import study
from fedsdr.cli.app import app
from fedsdr.cli.plan_view import show_plan
from fedsdr.errors import RunError
from fedsdr.jobs import demo
from fedsdr.jobs.assembly import ATLAS_BASE
from fedsdr.jobs.plan import make_plan
from fedsdr.recipe.settings import Recipe, build_recipe, read_recipe
from fedsdr.runs.identity import write_facts

TINY = """
data: {atlas: {clients: 2, examples: 10, public: 8}}
training: {rounds: 1, local_steps: 2}
rewriting: {max_new_tokens: 40}
run: {threads: 1}
"""
VERBS = [
    *("demo", "init", "plan", "algorithms", "train", "resume", "distill", "diagnose"),
    *("evaluate", "compare", "merge", "export", "chat", "sweep"),
    *("show", "report", "serve", "purge"),
]
SECRET = "The patient is Ada."


def fedsdr(*arguments: str, answer: str = "") -> Result:
    return CliRunner().invoke(app, arguments, input=answer)


def well(*arguments: str, answer: str = "") -> str:
    """What it printed on stdout, with exit code 0."""
    result = fedsdr(*arguments, answer=answer)
    assert result.exit_code == 0, result.output
    return result.stdout


def files(folder: Path) -> dict[str, bytes]:
    """What a resume must reproduce: all but wall times and the lock's holder."""
    own = (path for path in folder.rglob("*") if path.is_file())
    skipped = ("timings.jsonl", "lock")
    return {str(p.relative_to(folder)): p.read_bytes() for p in own if p.name not in skipped}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(TINY)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    (folder / "recipe.yaml").write_text(TINY)
    well("train", str(folder / "recipe.yaml"), "--out", str(folder / "run"))
    return folder / "run"


def test_help_comes_at_once_and_loads_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['fedsdr', '--help']; from fedsdr.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'torch', 'transformers', 'pydantic', 'scipy', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    began = os.times().children_user
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert os.times().children_user - began < 2  # about a third of a second


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_helps_with_an_example(verb: str) -> None:
    said = re.sub(r"\s+", " ", well(verb, "--help"))
    assert f"Example: fedsdr {verb}" in said
    assert verb in well("--help")


def test_the_verbs_are_all_there() -> None:
    group: Any = typer.main.get_command(app)
    assert list(group.commands) == VERBS


def test_version() -> None:
    assert re.fullmatch(r"fedsdr \d+\.\d+\.\d+\n", well("--version"))


def test_init_then_plan_is_where_a_newcomer_starts(tmp_path: Path) -> None:
    assert "fedsdr plan new.yaml" in well("init", "new.yaml")
    read_recipe(tmp_path / "new.yaml")
    (tmp_path / "new.yaml").write_text("seed: 7")
    assert fedsdr("init", "new.yaml").exit_code == 2
    assert (tmp_path / "new.yaml").read_text() == "seed: 7"
    well("init", "new.yaml", "--force")
    assert read_recipe(tmp_path / "new.yaml").seed == 1
    (tmp_path / "folder").mkdir()
    well("init", "folder")
    assert (tmp_path / "folder" / "recipe.yaml").is_file()


def test_plan_shows_what_will_happen_and_writes_nothing(tmp_path: Path) -> None:
    said = well("plan", "recipe.yaml", "--set", "training.rounds=3")
    for word in (
        "c0",
        "c1",
        "fedsdr",
        "stage 2",
        "W0+R+S",
        "bytes of a round",
        "3, 2 clients each",
    ):
        assert word in said
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


def write_rows(tmp_path: Path, count: int = 10) -> None:
    rows = [{"prompt": f"Who is patient {i}?", "response": SECRET} for i in range(count)]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "recipe.yaml").write_text(
        "data: {files: {ward: d.jsonl}}\nalgorithm: {name: fedavg}\n"
        "training: {rounds: 1, local_steps: 1}\nrun: {threads: 1}\n"
    )


def test_the_example_of_a_plan_goes_to_a_terminal_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows(tmp_path)
    for more in ((), ("--json",)):
        result = fedsdr("plan", "recipe.yaml", *more)
        assert result.exit_code == 0, result.output
        assert "Ada" not in result.output
    found = make_plan(read_recipe(tmp_path / "recipe.yaml"))
    show_plan(Console(force_terminal=True, width=200), found)
    seen = capsys.readouterr().out
    underlined = "".join(re.findall(r"\x1b\[4;32m(.*?)\x1b\[0m", seen))
    assert SECRET in underlined
    assert "Who" not in underlined


def test_plan_refuses_what_cannot_work(tmp_path: Path) -> None:
    write_rows(tmp_path)
    result = fedsdr("plan", "recipe.yaml", "--set", "model.max_length=2")
    assert result.exit_code == 2
    assert "cannot work: " in result.stderr
    assert "client 'ward'" in result.stderr
    told = fedsdr("plan", "recipe.yaml", "--set", "model.max_length=2", "--json")
    assert told.exit_code == 2
    assert "ward" in " ".join(json.loads(told.stdout)["problems"])


def test_train_tells_and_shows(tmp_path: Path) -> None:
    said = well("train", "recipe.yaml", "--set", "algorithm.name=fedavg")
    assert "round 1/1 | loss " in said
    assert "global: recall " in said
    assert re.search(r"recall +\d\.\d{3}", said)
    assert "run directory: runs/fedavg-seed1\n" in said
    well("train", "recipe.yaml", "--set", "algorithm.name=fedavg")
    runs = [tmp_path / "runs" / name for name in ("fedavg-seed1", "fedavg-seed1-2")]
    assert files(runs[0]) == files(runs[1])
    assert stat.S_IMODE(runs[0].stat().st_mode) == 0o700


def test_json_is_all_there_is_on_stdout(trained: Path) -> None:
    for arguments in (["resume", str(trained)], ["evaluate", str(trained)]):
        told = json.loads(well(*arguments, "--json"))
        assert set(told["scores"]) == {"global", "personal"}
        assert set(told["clients"]["personal"]) == {"c0", "c1"}


def test_evaluate_repeats_the_results_and_changes_nothing(trained: Path) -> None:
    before = files(trained)
    results = json.loads((trained / "results.json").read_text())
    told = json.loads(well("evaluate", str(trained), "--json"))
    assert told["clients"] == results["clients"]
    other = json.loads(well("evaluate", str(trained), "--split", "validation", "--json"))
    assert other["clients"] != results["clients"]
    start = json.loads(well("evaluate", str(trained), "--round", "0", "--json"))
    assert set(start["rounds"].values()) == {0}
    assert "after round 1" in well("evaluate", str(trained))
    assert fedsdr("evaluate", str(trained), "--round", "9").exit_code == 2
    assert files(trained) == before


def test_damaged_results_are_named(tmp_path: Path, trained: Path) -> None:
    shutil.copytree(trained, tmp_path / "copy")
    (tmp_path / "copy" / "results.json").write_text("{")
    for verb in ("evaluate", "compare"):
        result = fedsdr(verb, "copy")
        assert result.exit_code == 2, result.output
        assert "results.json is damaged" in result.stderr
    assert "scores after round 1" in well("resume", "copy")
    assert files(tmp_path / "copy") == files(trained)


def test_a_template_that_refuses_is_a_users_matter(tmp_path: Path, trained: Path) -> None:
    """Its own message, which may quote the record, is not shown."""
    model = tmp_path / "model"
    shutil.copytree(ATLAS_BASE, model)
    write_rows(tmp_path)
    for template in ("{% for", "{{ raise_exception(messages[0].content) }}"):
        (model / "chat_template.jinja").write_text(template)
        for verb in ("plan", "train"):
            result = fedsdr(verb, "recipe.yaml", "--set", "model.path=model")
            assert result.exit_code == 2, result.output
            assert "set model.chat_template: plain" in result.stderr
            assert "patient" not in result.output


def test_a_run_stopped_from_the_keyboard_says_how_to_go_on(tmp_path: Path) -> None:
    """In a process of its own: the signal falls into round 2 of 200."""
    rounds = ["--set", "training.rounds=200", "--set", "evaluation.every=200"]
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    command = [sys.executable, "-c", heard + "from fedsdr.cli import main; main()"]
    run = subprocess.Popen(
        [*command, "train", "recipe.yaml", "--out", "my run", *rounds],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert run.stdout is not None
    for line in run.stdout:
        if line.startswith("round"):
            break
    run.send_signal(signal.SIGINT)
    _, complaint = run.communicate(timeout=60)
    assert run.returncode == 130
    assert complaint == "stopped; `fedsdr resume 'my run'` goes on\n"


def test_resume_goes_on_to_the_same_bytes(tmp_path: Path, trained: Path) -> None:
    """Back to the start of round 1, as if killed there."""
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    shutil.rmtree(copy / "checkpoints" / "round-00001")
    (copy / "results.json").unlink()
    assert "round 1/1" in well("resume", str(copy))
    assert files(copy) == files(trained)


def test_distill_writes_rewrites_and_an_audit(tmp_path: Path) -> None:
    said = well("distill", "recipe.yaml", "--selection", "facts", "--out", "mine")
    assert re.search(r"c0 +1\d +\d+%", said)
    assert "rewrites: mine" in said
    rows = [json.loads(line) for line in (tmp_path / "mine" / "c0.jsonl").read_text().splitlines()]
    assert {"id", "prompt", "response", "kept"} <= set(rows[0])
    assert stat.S_IMODE((tmp_path / "mine").stat().st_mode) == 0o700
    told = json.loads(well("distill", "recipe.yaml", "--out", "mine", "--json"))
    assert told["overall"]["kept"] == 1.0  # with the recipe's own selection, none
    assert set(told["clients"]) == {"c0", "c1"}
    for row in rows:
        assert row["response"] not in (tmp_path / "mine" / "audit.jsonl").read_text()


def test_purge_asks_first_and_says_what_it_removed(tmp_path: Path, trained: Path) -> None:
    run = tmp_path / "copy"
    shutil.copytree(trained, run)
    before = files(run)
    assert fedsdr("purge", str(run), answer="n\n").exit_code == 1
    assert fedsdr("purge", str(run), answer="").exit_code == 2
    assert files(run) == before
    said = well("purge", str(run), answer="y\n")
    assert re.search(r"removed \d+ files \([\d.]+ .B\)", said)
    assert not (run / "clients").exists()
    assert not (run / "rewrites").exists()
    assert (run / "results.json").exists()
    assert json.loads(well("purge", str(run), "--yes", "--json"))["files"] == 0
    refusal = fedsdr("resume", str(run))
    assert refusal.exit_code == 2
    assert "purge" in refusal.stderr


def finished(at: Path, method: str, seed: int, recall: float, **changes: Any) -> str:
    at.mkdir(parents=True)
    results = {
        "method": method,
        "seed": seed,
        "world": str(seed),
        "lr": 0.003,
        "chosen_rounds": {"global": 1},
    }
    scores = {"global": {"recall": recall, "retention": 0.9}}
    write_facts(at, {})
    (at / "results.json").write_text(json.dumps({**results, "scores": scores, **changes}))
    return str(at)


def several(tmp_path: Path, seeds: int) -> list[str]:
    """FedSD ahead of FedAvg on every seed."""
    return [
        finished(tmp_path / f"{method}{seed}", method, seed, base + seed / 100 + seed**2 / 1000)
        for method, base in (("fedavg", 0.2), ("fedsd", 0.4))
        for seed in range(1, seeds + 1)
    ]


CONTRAST = ["--contrast", "fedsd:global > fedavg:global on recall"]


def test_compare_says_what_holds_up(tmp_path: Path) -> None:
    said = well("compare", *several(tmp_path, 8), *CONTRAST, "--measure", "recall")
    assert re.search(r"fedsd +global +8 +0\.\d{3} ± 0\.\d{3}", said)
    assert "FedSD beats FedAvg on recall by 0.200" in said
    assert "retention" not in said


def test_compare_of_few_seeds_says_that_nothing_can_be_significant(tmp_path: Path) -> None:
    runs = several(tmp_path, 3)
    assert "nothing can be significant" in well("compare", *runs, *CONTRAST)
    told = json.loads(well("compare", *runs, "--json"))
    assert told["measures"] == ["recall", "retention"]
    assert [c["holds_up"] for c in told["contrasts"]] == [False, False]


def test_compare_tests_the_measures_that_were_asked_for(tmp_path: Path) -> None:
    loss = {"global": {"loss": 1.0, "perplexity": 2.7}}
    runs = [finished(tmp_path / m, m, 1, 0, scores=loss) for m in ("fedavg", "fedsd")]
    said = well("compare", *runs)
    assert "on loss" in said
    assert "perplexity" not in said
    assert "Nothing to test" in well("compare", runs[0])


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--contrast", "fedsd > fedavg"], "write METHOD:MIX > METHOD:MIX on MEASURE"),
        (["--contrast", "fedsdd:global > fedavg:global on recall"], "Did you mean 'fedsd:global'?"),
        (["--measure", "recal"], "Did you mean 'recall'?"),
    ],
)
def test_compare_refuses_what_the_runs_do_not_have(
    tmp_path: Path, more: Sequence[str], named: str
) -> None:
    result = fedsdr("compare", *several(tmp_path, 1), *more)
    assert result.exit_code == 2
    assert named in result.stderr


def test_compare_refuses_other_data_and_unfinished_runs(tmp_path: Path) -> None:
    a = finished(tmp_path / "a", "fedavg", 1, 0.1)
    b = finished(tmp_path / "b", "fedsd", 1, 0.1, world="elsewhere")
    other = fedsdr("compare", a, b)
    assert other.exit_code == 2
    assert "other data" in other.stderr
    os.unlink(Path(b) / "results.json")
    assert "not finished" in fedsdr("compare", a, b).stderr


def test_demo_ends_with_one_table_three_sentences_and_the_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The demo as it is, but on a federation that takes a second."""
    demo_recipe = demo.demo_recipe

    def tiny(method: str, seed: int, cache: Path) -> Recipe:
        values = demo_recipe(method, seed, cache).model_dump()
        for section in ("data", "training", "rewriting", "run"):
            values[section] |= yaml.safe_load(TINY)[section]
        return build_recipe(values)

    monkeypatch.setattr(demo, "demo_recipe", tiny)
    said = well("demo", "--seed", "3")
    assert re.search(r"FedSD: round 1/1 \| loss", said)
    table = re.search(r"^ *recall( +\d\.\d{3}){4} *$", said, re.MULTILINE)
    assert table, said
    told, where = said[table.end() :].split("run directory: ", 1)
    assert len(re.findall(r"^\w.*\.$", told, re.MULTILINE)) == 3
    assert where == (
        "runs/demo/fedavg\nrun directory: runs/demo/fedsd\nrun directory: runs/demo/fedsdr\n"
        "to look at them: fedsdr report runs/demo, or fedsdr serve runs/demo\n"
    )
    told = json.loads(well("demo", "--seed", "3", "--json"))
    assert told["directory"] == "runs/demo-2"
    assert list(told["runs"]) == ["fedavg", "fedsd", "fedsdr"]
    assert len(told["sentences"]) == 3


def test_a_bug_is_no_users_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only FedsdrErrors are dressed up; anything else keeps its traceback."""
    monkeypatch.setattr(study, "free_path", lambda wish: 1 / 0)
    assert isinstance(fedsdr("demo").exception, ZeroDivisionError)


def test_the_message_of_an_error_is_shown_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(wish: Path) -> Path:
        raise RunError("[red]r[/red] [/] \\[x] \x1b[2J")

    monkeypatch.setattr(study, "free_path", fail)
    result = fedsdr("demo")
    assert result.exit_code == 2
    assert result.stderr == "error: [red]r[/red] [/] \\[x] \\x1b[2J\n"
