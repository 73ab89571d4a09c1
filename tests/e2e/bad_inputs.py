"""What can be wrong with models, adapters, rows, endpoints and results, and what is said.

Each case changes a workplace that was fine: models, rows, a recipe, finished runs. The tests run
them all; bad_input_table.py writes down what is printed.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from benchmark_files import FILES
from families import add_tokens, family_folder
from fedsdr.cli.app import app
from rewriting_server import Reply, Server, serving

Change = Callable[[], object]  # in the workplace, which is the working directory
RECIPE = """
model: {path: model, max_length: 128}
data: {file: d.jsonl, partition: {clients: 2}}
lora: {targets: attention, R: {rank: 2}, S: {rank: 2}}
training: {rounds: 1, local_steps: 1, batch: 2}
rewriting: {max_new_tokens: 6}
evaluation: {answers: 0}
run: {threads: 1}
"""
ROWS = "".join(
    json.dumps({"prompt": f"What is number {i}?", "response": f"It is {i}, as told."}) + "\n"
    for i in range(20)
)
TASK = ("--tasks", "fpb", "--data", "bench")
TRAIN, PLAN = ("train", "recipe.yaml", "--out", "out"), ("plan", "recipe.yaml")
FILE = ("distill", "d.jsonl", "--out", "out", "--set", "run.threads=1")
BY_MODEL = (*FILE, "--model", "model", "--set", "rewriting.max_new_tokens=6")
WARM = (*TRAIN, "--set", "lora.init=others/adapters/global")
SERVED = ("--endpoint-model", "m", "--set", "rewriting.engine.retries=0")


@dataclass(frozen=True, slots=True)
class Case:
    """`given` says what is wrong; `named` stands in the message. With a reply, an endpoint that
    gives it is asked."""

    given: str
    arguments: tuple[str, ...]
    named: str
    change: Change = lambda: None
    reply: Reply | None = None

    def serving(self) -> AbstractContextManager[Server | None]:
        reply = self.reply
        return nullcontext() if reply is None else serving(lambda number, ref: reply)


def make_workplace(here: Path) -> None:
    """A model and one of the same shape, another; rows; and a finished run over each."""
    family_folder(here / "model", "llama")
    family_folder(here / "other", "qwen3")
    (here / "d.jsonl").write_text(ROWS)
    (here / "recipe.yaml").write_text(RECIPE)
    (here / "bench").mkdir()
    for name, rows in FILES.items():
        (here / "bench" / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    for run, model in (("run", "model"), ("others", "other")):
        fine("train", "recipe.yaml", "--out", run, "--set", f"model.path={model}")
        fine("evaluate", run, *TASK)


def fine(*arguments: str) -> None:
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == 0, done.output


def settings(**changes: Any) -> Change:
    """Keys of the tokenizer's settings; None removes one."""

    def change() -> None:
        path = Path("model/tokenizer_config.json")
        values = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({k: v for k, v in values.items() if v is not None}))

    return change


def template(text: str) -> Change:
    return lambda: Path("model/chat_template.jinja").write_text(text)


def vocabulary(size: int) -> None:
    path = Path("model/config.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "vocab_size": size}))


def no_tokenizer() -> None:
    for path in Path("model").glob("tokenizer*"):
        path.unlink()


def no_numbers() -> None:
    path = Path("model/model.safetensors")
    weights = load_file(path)
    weights["model.norm.weight"] = torch.full_like(weights["model.norm.weight"], torch.nan)
    save_file(weights, path, {"format": "pt"})


def row(content: bytes | Mapping[str, Any]) -> Change:
    """Behind the good ones: line 21."""
    line = content if isinstance(content, bytes) else json.dumps(content).encode()
    return lambda: Path("d.jsonl").write_bytes(ROWS.encode() + line + b"\n")


def swapped(what: str, source: str) -> Change:
    """A file or folder of the run, in its place that of another one."""

    def change() -> None:
        target = Path(what)
        shutil.rmtree(target) if target.is_dir() else target.unlink()
        copy = shutil.copytree if Path(source).is_dir() else shutil.copy
        copy(source, target)

    return change


def adapter_with_tokens() -> None:
    """As PEFT saves one whose base got more tokens; without our digest."""
    path = Path("run/adapters/global/adapter_model.safetensors")
    more = {"base_model.model.model.embed_tokens.weight": torch.zeros(400, 32)}
    save_file({**load_file(path), **more}, path, {"format": "pt"})


def twins() -> None:
    path = Path("run/evaluation/results.json")
    values = json.loads(path.read_text())
    values["entries"].append({**values["entries"][0], "score": 0.1})
    Path("twins.json").write_text(json.dumps(values))


def answer(**values: Any) -> Reply:
    return Reply(body=json.dumps(values).encode())


TOKENIZERS = {
    "no tokenizer": Case(
        "no tokenizer.json", PLAN, "there is no tokenizer in it (tokenizer.json)", no_tokenizer
    ),
    "damaged tokenizer": Case(
        "half a tokenizer.json",
        PLAN,
        "its tokenizer cannot be loaded (JSONDecodeError: ",
        lambda: Path("model/tokenizer.json").write_text('{"model'),
    ),
    "no end of text": Case(
        "a tokenizer without eos_token",
        PLAN,
        "no end-of-text token; name it in tokenizer_config.json",
        settings(eos_token=None),
    ),
    "more tokens than rows": Case(
        "20 tokens more than the embedding has rows",
        PLAN,
        "the tokenizer has tokens up to 319, the model's embedding 308 rows",
        lambda: add_tokens(Path("model"), [f"<x{i}>" for i in range(20)]),
    ),
    "other shapes": Case(
        "config.json says vocab_size: 100",
        PLAN,
        "'lm_head.weight' is [308, 32] instead of [100, 32]",
        lambda: vocabulary(100),
    ),
    "template does not parse": Case(
        "{% for m in messages %}{{ m.content }",
        PLAN,
        "model: its chat template cannot be used: unexpected '}'",
        template("{% for m in messages %}{{ m.content }"),
    ),
    "template fails": Case(
        "{{ 1 / 0 }}", PLAN, "cannot be used: division by zero", template("{{ 1 / 0 }}")
    ),
    "template drops the answer": Case(
        "{% for m in messages if m.role == 'user' %}…",
        TRAIN,
        "does not write an answer as it was given; set model.chat_template: plain",
        template("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"),
    ),
}
ADAPTERS = {
    "warm start over another base": Case(
        "lora.init: an adapter of another base", WARM, "an adapter of another base, tokenizer or"
    ),
    "warm start over another template": Case(
        "lora.init: an adapter of another chat template",
        (*TRAIN, "--set", "lora.init=run/adapters/global", "--set", "model.chat_template=alpaca"),
        "an adapter of another base, tokenizer or chat template",
    ),
    "adapter of another vocabulary": Case(
        "lora.init: an adapter with an embedding of its own",
        (*TRAIN, "--set", "lora.init=run/adapters/global"),
        "an adapter that changes tokens or other layers cannot be taken",
        adapter_with_tokens,
    ),
    "merge over another base": Case(
        "the model folder was replaced",
        ("merge", "run", "--out", "out"),
        "model is not the base that run was trained on",
        swapped("model", "other"),
    ),
    "chat over another base": Case(
        "the model folder was replaced",
        ("chat", "run", "--once", "Who?"),
        "model is not the base that run was trained on",
        swapped("model", "other"),
    ),
    "evaluate over another base": Case(
        "the model folder was replaced",
        ("evaluate", "run"),
        "the base model, its tokenizer or its chat template is not the one this run began with",
        swapped("model", "other"),
    ),
    "merge of another's adapter": Case(
        "the run's adapter was replaced",
        ("merge", "run", "--out", "out"),
        "an adapter of another base",
        swapped("run/adapters/global", "others/adapters/global"),
    ),
    "export of another's adapter": Case(
        "the run's adapter was replaced",
        ("export", "run", "--out", "out"),
        "an adapter of another base",
        swapped("run/adapters/global", "others/adapters/global"),
    ),
    "base is gone": Case(
        "the model folder was moved",
        ("evaluate", "run"),
        "that of a run has to be where it was",
        lambda: shutil.move("model", "elsewhere"),
    ),
}
LONG = "word " * 200_000
LINES = {
    "half a surrogate pair": Case(
        r'"a\ud83d"', PLAN, "d.jsonl, line 21, field 'prompt': holds half of a surrogate pair",
        row(rb'{"prompt": "a\ud83d", "response": "b"}'),
    ),
    "a byte that is no UTF-8": Case(
        "0xFF", PLAN, "d.jsonl, line 21: byte 1333 is not valid UTF-8; save the file as UTF-8",
        row(b'{"prompt": "a\xff", "response": "b"}'),
    ),
    "UTF-16": Case(
        "a whole file of it", PLAN, "d.jsonl, line 1: byte 0 is not valid UTF-8",
        lambda: Path("d.jsonl").write_bytes(ROWS.encode("utf-16")),
    ),
    "NUL": Case(
        r'"a\u0000"', PLAN, "line 21, field 'prompt': holds a NUL character",
        row(rb'{"prompt": "a\u0000", "response": "b"}'),
    ),
    "carriage returns only": Case(
        "no line feed", PLAN, "each record needs a line of its own, ended by a line feed",
        lambda: Path("d.jsonl").write_text(ROWS.replace("\n", "\r"), newline=""),
    ),
    "white space for an answer": Case(
        r'"\u00a0\u3000\n"', PLAN, "line 21, field 'response': is empty",
        row({"prompt": "a", "response": "\u00a0\u3000\n"}),
    ),
    "nothing visible": Case(
        r'"\ufeff\u200b"', PLAN, "line 21, field 'response': holds no visible character",
        row({"prompt": "a", "response": "\ufeff\u200b"}),
    ),
    "an id of 1 MB": Case(
        "", PLAN, "line 21, field 'id': is longer than the 1000 characters of a label",
        row({"id": LONG, "prompt": "a", "response": "b"}),
    ),
    "a prompt of 1 MB": Case(
        "", TRAIN, "example 'd-21': the prompt alone fills model.max_length",
        row({"prompt": LONG, "response": "b"}),
    ),
    "an answer of 1 MB, to be rewritten": Case(
        "", TRAIN, "example 'd-21': the rewriting prompt fills the model's 512 positions",
        row({"prompt": "a", "response": LONG}),
    ),
    "the same, a file": Case(
        "", BY_MODEL,
        "example 'd-21': the rewriting prompt fills the model's 512 positions",
        row({"prompt": "a", "response": LONG}),
    ),
    "a line of 1 MB for chat": Case(
        "", ("chat", "run", "--once", LONG), "this line alone, with the system line, is"
    ),
    "bytes for chat": Case(
        "0xFF", ("chat", "run", "--once", "a\udcff"), "holds half of a surrogate pair"
    ),
    "nothing for chat": Case('""', ("chat", "run", "--once", " "), "--once is empty"),
}  # fmt: skip
DEVICES = {
    "no GPU": Case(
        "model.device: cuda", (*PLAN, "--set", "model.device=cuda"), "no GPU is visible"
    ),
    "unknown device": Case(
        "model.device: mps",
        (*PLAN, "--set", "model.device=mps"),
        "model.device: must be cpu, cuda, or cuda:N",
    ),
    "unknown dtype": Case(
        "model.dtype: int8", (*PLAN, "--set", "model.dtype=int8"), "'bfloat16' or 'float16'"
    ),
    "no finite numbers": Case(
        "weights with NaN",
        BY_MODEL,
        "its answers are no finite numbers in float32",
        no_numbers,
    ),
}
ENDPOINTS = {
    "a web page": Case(
        "<html>", (*FILE, *SERVED), "its answer is text/html, not application/json",
        reply=Reply(body=b"<html>", headers={"Content-Type": "text/html"}),
    ),
    "no JSON": Case(
        "{oops", (*FILE, *SERVED), "its answer is not valid JSON", reply=Reply(body=b"{oops")
    ),
    "no choices": Case(
        '{"choices": []}', (*FILE, *SERVED), "holds no choices", reply=answer(choices=[])
    ),
    "an error as 200": Case(
        '{"error": "loading"}', (*FILE, *SERVED), "(it seems that the model is loading)",
        reply=answer(error="loading"),
    ),
    "breaks off": Case(
        "half a body", (*FILE, *SERVED), "its answer broke off",
        reply=Reply(body=b'{"cho', promised=99),
    ),
    "far too long": Case(
        "4 MB of text", (*FILE, *SERVED), "more characters than 512 tokens can have",
        reply=Reply(text="w " * 2_000_000),
    ),
    "above 8 MiB": Case(
        "9 MiB", (*FILE, *SERVED), "its answer is larger than 8 MiB",
        reply=Reply(body=b" " * (9 << 20)),
    ),
    "no such model": Case(
        "HTTP 404", (*FILE, *SERVED), "HTTP 404: are url (up to /v1) and model 'm' right",
        reply=Reply(status=404, body=b'{"error": {"message": "no model m"}}'),
    ),
    "a redirect": Case(
        "HTTP 302", (*FILE, *SERVED), "HTTP 302, a redirect, which is not followed",
        reply=Reply(status=302, headers={"Location": "http://[::1"}),
    ),
    "a key is wanted": Case(
        "HTTP 401", (*FILE, *SERVED), "name the key's variable in key_env", reply=Reply(status=401)
    ),
    "busy for ever": Case(
        "HTTP 429", (*FILE, *SERVED), "no answer to use: HTTP 429", reply=Reply(status=429)
    ),
    "broken": Case(
        "HTTP 500", (*FILE, *SERVED), "no answer to use: HTTP 500", reply=Reply(status=500)
    ),
    "too slow": Case(
        "no answer for 0.5 s", (*FILE, *SERVED, "--set", "rewriting.engine.timeout=0.2"),
        "no answer within 0.2 s", reply=Reply(delay=0.5),
    ),
}  # fmt: skip
KEPT = "others/evaluation/results.json"
RESULTS = {
    "figures of another base": Case(
        KEPT, ("evaluate", "run", "--merge", KEPT), "holds figures of another base model"
    ),
    "a run's own results": Case(
        "others/results.json", ("evaluate", "run", "--merge", "others/results.json"),
        "of a run, name evaluation/results.json",
    ),
    "two figures for one": Case(
        "a results file that contradicts itself", ("evaluate", "run", "--merge", "twins.json"),
        "twins.json: fpb of 'base' is there with other figures", twins,
    ),
    "own file replaced": Case(
        "run/evaluation/results.json of another base", ("evaluate", "run", *TASK),
        "run/evaluation/results.json holds figures of another base model",
        swapped("run/evaluation/results.json", KEPT),
    ),
    "answers of another model": Case(
        "run/evaluation/global/fpb.jsonl of another run", ("evaluate", "run", *TASK, "--rescore"),
        "the answers there are another model's",
        swapped("run/evaluation/global/fpb.jsonl", "others/evaluation/global/fpb.jsonl"),
    ),
    "results of another run": Case(
        "run/results.json of another run", ("export", "run", "--out", "out"),
        "run/results.json is not what this run wrote",
        swapped("run/results.json", "others/results.json"),
    ),
    "checkpoints of another run": Case(
        "run/checkpoints of another run", ("evaluate", "run"), "was written as",
        swapped("run/checkpoints", "others/checkpoints"),
    ),
    "runs over different bases": Case(
        "FedAvg over one base, FedSDR over another", ("compare", "run", "averaged"),
        "were trained on different bases",
        lambda: fine("train", "recipe.yaml", "--out", "averaged", "--set", "model.path=other",
                     "--set", "algorithm.name=fedavg"),
    ),
}  # fmt: skip


def pipe(name: str) -> Change:
    def change() -> None:
        Path(name).unlink(missing_ok=True)
        os.mkfifo(name)

    return change


def edited(name: str, old: str, new: str) -> Change:
    """The first place of a file where it says that says something else."""

    def change() -> None:
        text = Path(name).read_text()
        assert old in text
        Path(name).write_text(text.replace(old, new, 1))

    return change


def linked(name: str) -> Change:
    """A folder of the run lies elsewhere, and a link in its place."""

    def change() -> None:
        shutil.move(name, "elsewhere")
        Path(name).symlink_to(Path("elsewhere").absolute())

    return change


def config(**changes: Any) -> Change:
    def change() -> None:
        path = Path("model/config.json")
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def indexed() -> None:
    """The weights' index names a file that only a pickle reader could open."""
    Path("model/good.bin").write_bytes(b"\x80\x04.")
    names = dict.fromkeys(load_file("model/model.safetensors"), "good.bin")
    shutil.move("model/model.safetensors", "model/part.safetensors")
    index = {"metadata": {}, "weight_map": names}
    Path("model/model.safetensors.index.json").write_text(json.dumps(index))


def dropout() -> None:
    path = Path("model/tokenizer.json")
    values = json.loads(path.read_text())
    values["model"]["dropout"] = 0.1
    path.write_text(json.dumps(values))


def text(content: str) -> Change:
    return lambda: Path("recipe.yaml").write_text(content)


BOMB = "\n".join(
    [f"a0: &a0 [{', '.join(['x'] * 9)}]"]
    + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
)
HOSTILE = {
    "a named pipe for rows": Case(
        "d.jsonl is a FIFO", PLAN, "d.jsonl: is a named pipe, not a file", pipe("d.jsonl")
    ),
    "a named pipe for a recipe": Case(
        "recipe.yaml is a FIFO", PLAN, "recipe.yaml: is a named pipe, not a file",
        pipe("recipe.yaml"),
    ),
    "a device for a recipe": Case("/dev/zero", ("plan", "/dev/zero"), "is a device, not a file"),
    "nobody's home": Case("~nobody-here", ("plan", "~nobody-here/r.yaml"), "no user of that name"),
    "aliases of aliases": Case(
        "9^9 values by YAML aliases", PLAN, "more than 50,000 keys and values", text(BOMB)
    ),
    "an octal of old": Case(
        "seed: 010", PLAN, "seed: Input should be a valid integer (given: '010')",
        text(RECIPE + "seed: 010"),
    ),
    "a rate beyond all": Case(
        "", (*PLAN, "--set", "training.lr=1e300"), "training.lr: Input should be less than"
    ),
    "a pattern that backtracks": Case(
        "", (*PLAN, "--set", "lora.targets=(.|.)*(.|.)*z"), "takes too long to match"
    ),
    "a key twice": Case(
        '"response" twice', PLAN, "d.jsonl, line 21: not valid JSON: key 'response' is given twice",
        row(b'{"prompt": "a", "response": "b", "response": "c"}'),
    ),
    "a line of 11 MB": Case(
        "", PLAN, "d.jsonl, line 21: is longer than the 10 MB that a record may have",
        row(b'{"prompt": "' + b"a" * 11_000_000 + b'", "response": "b"}'),
    ),
    "an index that names a pickle": Case("good.bin", PLAN, "weight_map names 'good.bin'", indexed),
    "an adapter inside a model": Case(
        "model/adapter_config.json", PLAN, "beside the model, which would be worn unasked",
        lambda: shutil.copy("run/adapters/global/adapter_config.json", "model"),
    ),
    "ten million layers": Case(
        "config.json", PLAN, "'num_hidden_layers' is 10000000", config(num_hidden_layers=10**7)
    ),
    "a tokenizer that draws": Case(
        "BPE dropout", PLAN, "model.dropout is 0.1: the same text would be cut another way", dropout
    ),
    "a template without end": Case(
        "three nested loops", PLAN, "takes longer than",
        template(3 * "{% for i in range(99999) %}" + 3 * "{% endfor %}"),
    ),
}  # fmt: skip
CHANGED = {
    "a row edited": Case(
        'rounds.jsonl says "lr": 0.004', ("resume", "run", "--json"), "run/rounds.jsonl: line 1",
        edited("run/rounds.jsonl", '"lr": 0.003', '"lr": 0.004'),
    ),
    "a round that is no number": Case(
        '"round": "one"', ("resume", "run", "--json"), "run/rounds.jsonl: it ends after line 0",
        edited("run/rounds.jsonl", '"round": 1', '"round": "one"'),
    ),
    "purge through a link": Case(
        "run/adapters leads elsewhere", ("purge", "run", "--yes"),
        "run/adapters is a symbolic link", linked("run/adapters"),
    ),
    "resume through a link": Case(
        "run/checkpoints leads elsewhere", ("resume", "run"),
        "run/checkpoints is a symbolic link", linked("run/checkpoints"),
    ),
    "a report over a run's file": Case(
        "", ("report", "run", "--out", "run/run.json"), "run/run.json is run.json of the run"
    ),
    "a rewriting into a run": Case(
        "", ("distill", "recipe.yaml", "--out", "run"), "run holds a run; choose another place"
    ),
    "a run in a run": Case(
        "", ("train", "recipe.yaml", "--out", "run/x"), "lies in the run"
    ),
}  # fmt: skip
GROUPS = {
    "Models and tokenizers": TOKENIZERS,
    "Adapters": ADAPTERS,
    "Rows": LINES,
    "Devices and numbers": DEVICES,
    "Endpoints": ENDPOINTS,
    "Results": RESULTS,
    "Hostile files": HOSTILE,
    "Runs": CHANGED,
}
CASES = {kind: case for group in GROUPS.values() for kind, case in group.items()}
