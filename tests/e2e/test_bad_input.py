"""What a user can get wrong: exit code 2, no traceback, the culprit named, nothing left over."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from fedsdr.cli.app import app

ONE_THREAD = "run: {threads: 1}\n"
SMALL = (
    "data: {atlas: {clients: 2, examples: 10, public: 0}}\ntraining: {rounds: 1, local_steps: 1}\n"
)
GOOD_ROW = '{"prompt": "What is it?", "response": "A cat."}\n'


def refused(arguments: Sequence[str]) -> str:
    """Runs the command line; what it printed, with the line breaks of narrow boxes taken out."""
    result: Result = CliRunner().invoke(app, list(arguments))
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    assert result.stdout == ""
    return re.sub(r"[\s│]+", " ", result.stderr)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


RECIPES = {
    # what is no recipe at all
    "no mapping": ("[1, 2]", "recipe.yaml: a recipe is a mapping"),
    "only a word": ("fedsdr", "not a str"),
    "bad yaml": ("seed: 1\ntraining: {lr: 1", "recipe.yaml, line 2"),
    "tab": ("training:\n\tlr: 1", "recipe.yaml, line 2"),
    "given twice": ("seed: 1\nseed: 2", "line 2: not valid YAML: key 'seed' is given twice"),
    "list as a key": ("? [a]\n: 1", "recipe.yaml, line 1"),
    "python object": ("seed: !!python/object:os.system x", "recipe.yaml, line 1"),
    "control character": ("seed: \x07", "recipe.yaml"),
    "not UTF-8": (b"seed: \xff", "recipe.yaml cannot be read"),
    "nested without end": ("{" * 5000, "recipe.yaml"),
    "too many digits": ("seed: " + "9" * 5000, "recipe.yaml"),
    # unknown keys
    "unknown section": ("trainnig: {}", "'trainnig'. Did you mean 'training'?"),
    "unknown key": ("training: {round: 3}", "'training.round'. Did you mean 'rounds'?"),
    "unknown key below": ("lora: {R: {rnk: 3}}", "'lora.R.rnk'. Did you mean 'rank'?"),
    "markup as a key": ("'[red]x[/red]': 1", "unknown key '[red]x[/red]'"),
    # wrong types and values
    "text for a number": ("seed: one", "seed: Input should be a valid integer (given: 'one')"),
    "fraction of a round": ("training: {rounds: 1.5}", "training.rounds"),
    "yes for a number": ("training: {rounds: true}", "training.rounds"),
    "no rounds": ("training: {rounds: 0}", "training.rounds"),
    "not a number": ("training: {lr: .nan}", "training.lr"),
    "infinite": ("rewriting: {temperature: .inf}", "rewriting.temperature"),
    "participation of none": ("training: {participation: 0}", "training.participation"),
    "top_p above 1": ("rewriting: {top_p: 1.5}", "rewriting.top_p"),
    "not one of the choices": ("training: {schedule: linear}", "'constant' or 'cosine'"),
    "section is a number": ("training: 3", "training"),
    "threads without end": ("run: {threads: 100000000000000}", "run.threads"),
    # which data
    "no data": ("data: {atlas: null}", "data.atlas, data.files and data.file (none given)"),
    "two sources": ("data: {atlas: {}, file: x.csv}", "(atlas, file given)"),
    "no clients": ("data: {files: {}}", "data.files names no client"),
    "partition of files": ("data: {files: {a: x}, partition: {}}", "partition needs data.file"),
    "preset": ("data: {atlas: {preset: hard}}", "data.atlas.preset"),
    # algorithm
    "unknown algorithm": ("algorithm: {name: fedavgg}", "Did you mean 'fedavg'?"),
    "unknown option": ("algorithm: {options: {schedul: joint}}", "Did you mean 'schedule'?"),
    "option of another": ("algorithm: {name: fedavg, options: {mu: 1.0}}", "no option 'mu'"),
    "bad option": ("algorithm: {options: {s_state: keep}}", "algorithm.s_state"),
    "option out of range": ("algorithm: {options: {s_dropout: 2.0}}", "algorithm.s_dropout"),
    "negative mu": ("algorithm: {name: fedprox, options: {mu: -1.0}}", "algorithm.mu"),
    "selection": ("algorithm: {options: {selection: fact}}", "Did you mean 'facts'?"),
    "booster's selection": ("algorithm: {boosted: true, selection: x}", "selection 'x'"),
    # model and branches
    "no such model": ("model: {path: nowhere}", "nowhere"),
    "NUL in a path": ('model: {path: "a\\0b"}', "model.path"),
    "no such device": ("model: {device: gpu9}", "model.device"),
    "no layer matches": ("lora: {targets: no_such_layer}", "no_such_layer"),
    "bad pattern": ("lora: {targets: '['}", "lora.targets"),
    "no such adapter": ("lora: {init: nowhere}", "nowhere"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "named"), RECIPES.values(), ids=RECIPES)
def test_bad_recipe(tmp_path: Path, text: str | bytes, named: str) -> None:
    (tmp_path / "recipe.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert named in refused(["train", "recipe.yaml"])
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


CHANGES = {
    "no equals sign": ("training.lr", "--set 'training.lr': write it as key=value"),
    "no key": ("=3", "--set '=3'"),
    "no value": ("training.lr=", "training.lr"),
    "bad yaml": ("training.lr=[", "--set training.lr, line 1"),
    "below a value": ("seed.x=3", "'seed' holds a value"),
    "unknown": ("training.learning_rate=1", "unknown key 'training.learning_rate'"),
    "empty part": ("training..lr=1", "unknown key 'training.'"),
    "markup": ("[bold]=1", "unknown key '[bold]'"),
}


@pytest.mark.parametrize(("change", "named"), CHANGES.values(), ids=CHANGES)
def test_bad_change(tmp_path: Path, change: str, named: str) -> None:
    (tmp_path / "recipe.yaml").write_text("seed: 1\n")
    assert named in refused(["train", "recipe.yaml", "--set", change])


ROWS = GOOD_ROW * 3
DATA: dict[str, tuple[str, str | bytes, str, str]] = {
    # file name, what is in it, the rest of the recipe's data section, what is named
    "bad JSON line": ("d.jsonl", ROWS + "{oops}\n", "", "d.jsonl, line 4, column 2"),
    "half a line": ("d.jsonl", ROWS + '{"prompt": "x', "", "d.jsonl, line 4"),
    "no object": ("d.jsonl", ROWS + "3\n", "", "d.jsonl, line 4: must be an object"),
    "no response": ("d.jsonl", ROWS + '{"prompt": "x"}', "", "d.jsonl, line 4, field 'response'"),
    "null response": ("d.jsonl", '{"prompt": "x", "response": null}', "", "field 'response'"),
    "blank response": (
        "d.jsonl",
        '{"prompt": "x", "response": " "}',
        "",
        "field 'response': is empty",
    ),
    "number": ("d.jsonl", '{"prompt": "x", "response": 3}', "", "must be text, not a number"),
    "same id": (
        "d.jsonl",
        '{"id": 1, "prompt": "x", "response": "y"}\n' * 2,
        "",
        "line 2, field 'id'",
    ),
    "empty file": ("d.jsonl", "", "", "d.jsonl: is empty"),
    "header only": ("d.csv", "prompt,response\n", "", "d.csv: has no rows"),
    "short row": ("d.csv", "prompt,response\nx\n", "", "d.csv, line 2: 1 cells"),
    "open quote": ("d.csv", 'prompt,response\nx,"y\n', "", "d.csv, line"),
    "not UTF-8": ("d.csv", b"prompt,response\nx,\xff\n", "", "d.csv, line 2"),
    "columns unknown": (
        "d.csv",
        "a,b\n1,2\n",
        "",
        "d.csv: shape not known; columns seen: 'a', 'b'",
    ),
    "no such column": ("d.csv", "a,b\n1,2\n", "columns: {prompt: q, response: b}", "no column 'q'"),
    "no such field": ("d.csv", "a,b\n1,2\n", "columns: {promt: a}", "Did you mean 'prompt'?"),
    "wrong shape": ("d.jsonl", ROWS, "shape: sharegpt", "d.jsonl: shape not known"),
    "unknown shape": ("d.jsonl", ROWS, "shape: gpt", "data.shape"),
    "turns out of turn": (
        "d.jsonl",
        '{"messages": [{"role": "assistant", "content": "x"}]}',
        "",
        "field 'messages[0].role'",
    ),
    "not a list": ("d.json", '{"a": 1}', "", "d.json: must be a list"),
    "not parquet": ("d.parquet", "PAR1", "", "d.parquet"),
    "unknown extension": ("d.xlsx", "x", "", "extension '.xlsx'"),
    "missing file": (
        "d.jsonl",
        ROWS,
        "file: e.jsonl",
        "e.jsonl: there is no such file. Did you mean",
    ),
    "more clients than rows": (
        "d.jsonl",
        ROWS,
        "partition: {clients: 9}",
        "lower partition.clients",
    ),
    "column not named": ("d.jsonl", ROWS, "partition: {method: column}", "partition.column"),
    "column not there": ("d.jsonl", ROWS, "partition: {method: column, column: dom}", "'dom'"),
    "nothing to train on": ("d.jsonl", ROWS, "validation: 0.5, test: 0.5", "nothing to train on"),
    "missing manifest": ("d.jsonl", ROWS, "partition: {clients: 1}, manifest: m.json", "m.json"),
    "manifest of nothing": (
        "d.jsonl",
        ROWS,
        "partition: {clients: 1}, manifest: d.jsonl",
        "d.jsonl",
    ),
    "no such test client": (
        "d.jsonl",
        ROWS,
        "files: {a: d.jsonl}, test_files: {b: d.jsonl}",
        "'b'",
    ),
    "empty client": ("d.jsonl", "\n\n", "files: {a: d.jsonl}", "d.jsonl: is empty"),
    "same client twice": ("d.jsonl", ROWS, "files: {a/b: d.jsonl, a-b: d.jsonl}", "a-b"),
    "NUL in a path": ("d.jsonl", ROWS, 'file: "a\\0b"', "holds a NUL character"),
    "a folder": ("d.jsonl", ROWS, "file: .", "is a directory"),
}


@pytest.mark.parametrize(("file", "content", "data", "named"), DATA.values(), ids=DATA)
def test_bad_data(tmp_path: Path, file: str, content: str | bytes, data: str, named: str) -> None:
    (tmp_path / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    if not re.match("files?:", data):
        data = f"file: {file}, {data}"
    (tmp_path / "recipe.yaml").write_text(f"data: {{{data}}}\n{ONE_THREAD}")
    said = refused(["train", "recipe.yaml"])
    assert named in said
    assert "A cat" not in said
    assert not (tmp_path / "runs").exists()


COMMANDS = {
    "unknown verb": (["trian"], "trian"),
    "unknown option": (["train", "recipe.yaml", "--ouut", "x"], "--ouut"),
    "no recipe": (["train"], "RECIPE"),
    "recipe is missing": (["train", "nowhere.yaml"], "nowhere.yaml does not exist; `fedsdr init`"),
    "recipe is a folder": (["plan", "."], "is a folder"),
    "surrogate": (["plan", "a\udc80.yaml"], "a\\udc80.yaml does not exist"),
    "run is missing": (["resume", "nowhere"], "nowhere holds no run"),
    "no run to evaluate": (["evaluate", "nowhere"], "nowhere holds no run"),
    "no run to purge": (["purge", "--yes", "nowhere"], "nowhere holds no run"),
    "no run to compare": (["compare", "nowhere"], "nowhere holds no run"),
    "nothing to compare": (["compare"], "DIR"),
    "unknown split": (["evaluate", "nowhere", "--split", "train"], "train"),
    "round below 0": (["evaluate", "nowhere", "--round", "-1"], "-1"),
    "round is no number": (["evaluate", "nowhere", "--round", "last"], "last"),
    "seed is no number": (["demo", "--seed", "x"], "--seed"),
    "recipe is there": (["init"], "recipe.yaml is there already; choose another PATH"),
    "no folder to write to": (["init", "nowhere/recipe.yaml"], "recipe.yaml cannot be written"),
    "out is a file": (["train", "recipe.yaml", "--out", "recipe.yaml"], "cannot be written"),
    "out is taken": (["train", "recipe.yaml", "--out", "full"], "full is not empty"),
    "demo's out is taken": (["demo", "--out", "full"], "full is not empty"),
    "unknown selection": (["distill", "recipe.yaml", "--selection", "fact"], "mean 'facts'?"),
    "too many draws": (["distill", "recipe.yaml", "--selection", "resample(99)"], "1 and 64"),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "named"), COMMANDS.values(), ids=COMMANDS)
def test_bad_command_line(tmp_path: Path, arguments: list[str], named: str) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(SMALL + ONE_THREAD)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("years of work")
    assert named in refused(arguments)
    assert recipe.read_text() == SMALL + ONE_THREAD
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        "full",
        "recipe.yaml",
        "thesis.tex",
    ]


MODELS = {
    "no config": ({}, "no config.json"),
    "no weights": ({"config.json": "{}"}, "no *.safetensors weights"),
    "pickled weights": ({"config.json": "{}", "pytorch_model.bin": "x"}, "pickled weights"),
    "bad config": ({"config.json": "{", "model.safetensors": "x"}, "model"),
    "no language model": (
        {"config.json": '{"model_type": "x"}', "model.safetensors": "x"},
        "model",
    ),
    "bad weights": (
        {"config.json": '{"model_type": "llama"}', "model.safetensors": "not tensors"},
        "model",
    ),
}


@pytest.mark.parametrize(("files", "named"), MODELS.values(), ids=MODELS)
def test_bad_model(tmp_path: Path, files: dict[str, str], named: str) -> None:
    (tmp_path / "model").mkdir()
    for name, text in files.items():
        (tmp_path / "model" / name).write_text(text)
    (tmp_path / "recipe.yaml").write_text("model: {path: model}\n" + SMALL + ONE_THREAD)
    assert named in refused(["train", "recipe.yaml"])
    assert not (tmp_path / "runs").exists()
