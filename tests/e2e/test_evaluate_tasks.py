"""`fedsdr evaluate --tasks` as a user runs it, on the embedded base and a run of two clients."""

from __future__ import annotations

import json
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import fedsdr
from benchmark_files import FILES, write
from fedsdr import sandbox
from fedsdr.cli.app import app
from fedsdr.errors import RunError
from fedsdr.evaluate.finished import load_results
from fedsdr.jobs import evaluate as evaluation
from fedsdr.jobs import train as experiment

TINY = """
data: {atlas: {clients: 2, examples: 10, public: 8}}
training: {rounds: 1, local_steps: 2}
rewriting: {max_new_tokens: 40}
run: {threads: 1}
"""
QUICK = "mmlu,drop,crass,fpb,pubmedqa"


def evaluate(run: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["evaluate", str(run), *arguments])


def well(run: Path, *arguments: str) -> str:
    result = evaluate(run, *arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    (folder / "recipe.yaml").write_text(TINY)
    experiment.train(fedsdr.read_recipe(folder / "recipe.yaml"), folder / "run")
    return folder / "run"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write(tmp_path / "eval")


def test_base_and_global_side_by_side(run: Path, data: Path) -> None:
    said = well(run, "--tasks", QUICK, "--data", str(data))
    assert "base" in said
    assert "global" in said
    assert "macro_f1" in said
    assert "fpb: base " in said
    kept = run / "evaluation"
    assert {p.name for p in (kept / "global").iterdir()} == {f"{t}.jsonl" for t in QUICK.split(",")}
    modes = {stat.S_IMODE(p.stat().st_mode) for p in kept.rglob("*") if p.is_file()}
    assert modes == {0o600}
    values = json.loads((kept / "results.json").read_text())
    assert values["format"] == 1
    assert len(values["entries"]) == 10
    adapters = {e["mix"]: e["adapter"] for e in values["entries"]}
    assert adapters["base"] == ""
    assert len(adapters["global"]) == 64
    rounds = {e["mix"]: e["round"] for e in values["entries"]}
    assert rounds == {
        "base": None,
        "global": load_results(run)["chosen_rounds"]["global"],
    }


def test_again_and_rescored_without_a_model(
    run: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = json.loads(well(run, "--tasks", "fpb,mmlu", "--data", str(data), "--json"))
    before = (run / "evaluation" / "global" / "fpb.jsonl").read_bytes()

    def no_model(*arguments: Any, **named: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(evaluation, "reopened", no_model)
    again = json.loads(well(run, "--tasks", "fpb,mmlu", "--data", str(data), "--json", "--rescore"))
    assert again == first
    assert (run / "evaluation" / "global" / "fpb.jsonl").read_bytes() == before
    more = evaluate(run, "--tasks", "drop", "--data", str(data), "--rescore")
    assert more.exit_code == 2
    assert "2 of 2 answers to drop are not kept" in more.stderr


def test_every_client_s_own_model(run: Path, data: Path) -> None:
    found = json.loads(
        well(
            run,
            "--tasks",
            "fpb",
            "--data",
            str(data),
            "--mix",
            "personal",
            "--limit",
            "2",
            "--json",
        )
    )
    mixes = [e["mix"] for e in found["entries"]]
    clients = sorted(path.name for path in (run / "clients").iterdir())
    assert mixes == ["base", *(f"personal/{c}" for c in clients)]
    assert len({e["adapter"] for e in found["entries"]}) == 3
    assert {e["n"] for e in found["entries"]} == {2}
    assert (run / "evaluation" / "personal" / clients[0] / "fpb.jsonl").is_file()


def test_humaneval_is_not_run_unless_allowed(run: Path, data: Path) -> None:
    arguments = ("--tasks", "humaneval", "--data", str(data), "--mix", "base")
    said = well(run, *arguments)
    assert "not scored" in said
    assert "--run-code" in said
    if (refusal := sandbox.available()) is not None:
        pytest.skip(str(refusal))
    # The answer that was kept, put right: only what is kept is run.
    file = run / "evaluation" / "base" / "humaneval.jsonl"
    answer = json.loads(file.read_text())
    file.write_text(json.dumps({**answer, "answer": "    return 2 * x\n"}) + "\n")
    (entry,) = json.loads(well(run, *arguments, "--rescore", "--run-code", "--json"))["entries"]
    assert entry["score"] == 1.0
    file.write_text(json.dumps({**answer, "answer": "    while True: pass\n"}) + "\n")
    (entry,) = json.loads(well(run, *arguments, "--rescore", "--run-code", "--json"))["entries"]
    assert entry["score"] == 0.0


def test_held_out_rows_answered(run: Path) -> None:
    found = json.loads(well(run, "--answers", "--json"))
    for mix in ("global", "personal"):
        scores = found["scores"][mix]
        assert {"loss", "perplexity", "recall", "rouge_l", "exact_match"} <= scores.keys()
        assert 0 <= scores["exact_match"] <= scores["rouge_l"] <= 1
    assert found["clients"]["global"].keys() == found["clients"]["personal"].keys()
    assert not (run / "evaluation").exists()


def test_merging_another_machine_s_figures(run: Path, data: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "elsewhere")
    well(run, "--tasks", "fpb", "--data", str(data))
    well(tmp_path / "elsewhere", "--tasks", "crass", "--data", str(data))
    file = tmp_path / "elsewhere" / "evaluation" / "results.json"
    merged = json.loads(well(run, "--merge", str(file), "--json"))
    assert {e["task"] for e in merged["entries"]} == {"fpb", "crass"}
    file.write_text(file.read_text().replace(merged["base"], "f" * 64))
    refused = evaluate(run, "--merge", str(file))
    assert refused.exit_code == 2
    assert "figures of another base model" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--tasks", "mmul"), "there is no task 'mmul'. Did you mean 'mmlu'?"),
        (("--tasks", "fpb", "--limit", "0"), "--limit must be at least 1"),
        (("--tasks", "fpb", "--mix", "globl"), "has no mix 'globl'. Did you mean 'global'?"),
        (("--tasks", "fpb", "--round", "7"), "keeps no checkpoint of round 7"),
        (("--tasks", "fpb", "--merge", "x.json"), "ask for one"),
        (("--tasks", "fpb", "--answers"), "ask for one"),
        (("--tasks", ""), "there is no task ''"),
    ],
)
def test_what_makes_no_sense(
    trained: Path, data: Path, arguments: tuple[str, ...], said: str
) -> None:
    result = evaluate(trained, *arguments, "--data", str(data))
    assert result.exit_code == 2
    assert said in result.stderr
    assert not (trained / "evaluation").exists()


def test_what_belongs_to_tasks_needs_tasks(trained: Path, data: Path) -> None:
    for arguments in (("--rescore",), ("--run-code",), ("--limit", "3"), ("--data", str(data))):
        result = evaluate(trained, *arguments)
        assert result.exit_code == 2
        assert "name them with --tasks" in result.stderr
    result = evaluate(trained, "--tasks", "fpb")
    assert result.exit_code == 2
    assert "--tasks needs --data DIR" in result.stderr


def test_bad_files_and_no_checkpoints(trained: Path, run: Path, tmp_path: Path) -> None:
    empty = write(tmp_path / "empty", {"fpb.jsonl": []})
    for folder, said in (
        (tmp_path / "none", "there is no such folder"),
        (empty, "fpb.jsonl: is empty"),
        (
            write(tmp_path / "wrong", {"fpb.jsonl": [{**FILES["fpb.jsonl"][0], "output": "up"}]}),
            "fpb.jsonl, line 1, field 'output': must be one of",
        ),
    ):
        result = evaluate(trained, "--tasks", "fpb", "--data", str(folder))
        assert result.exit_code == 2
        assert said in result.stderr
    shutil.rmtree(run / "checkpoints")
    result = evaluate(run, "--tasks", "fpb", "--data", str(write(tmp_path / "good")))
    assert result.exit_code == 2
    assert "checkpoint" in result.stderr
    with pytest.raises(RunError, match="holds no run"):
        evaluation.evaluate_tasks(tmp_path, ["fpb"], tmp_path)


def test_lm_evals_tasks(trained: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    rows = [{"q": f"{a} + 1 =", "a": f" {a + 1}"} for a in range(3)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (tmp_path / "sums.yaml").write_text(
        "task: sums_local\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {tmp_path / 'sums.jsonl'}}}}}\n"
        "output_type: loglikelihood\ntest_split: test\n"
        'doc_to_text: "{{q}}"\ndoc_to_target: "{{a}}"\n'
        "metric_list: [{metric: perplexity}, {metric: acc}]\n"
    )
    asked = ("--lm-eval", "sums_local", "--include", str(tmp_path), "--limit", "2")
    result = evaluate(trained, *asked, "--json")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("{"), result.stdout[:300]
    found = json.loads(result.stdout)["models"]
    assert set(found) == {"base", "global"}
    assert found["global"]["largest_logit_change"] > 0
    assert found["global"]["tasks"]["sums_local"]["n"] == 2
    shown = evaluate(trained, *asked)
    assert shown.exit_code == 0
    assert "sums_local" in shown.stdout
    assert "perplexity" in shown.stdout
    both = evaluate(trained, *asked, "--tasks", "fpb")
    assert both.exit_code == 2
    assert "ask for one" in both.stderr
