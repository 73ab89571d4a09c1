"""Recipes, sweeps and command lines by the hundred, all hostile: refused in words, or meant.

An accepted recipe is held against the text by another reader, which knows nothing of numbers: what
a key holds has to be what stands there.
"""

from __future__ import annotations

import os
import random
import re
import shutil
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import pytest
import typer
import yaml
from typer.testing import CliRunner

from attack import Outcome, Tally, attempt, how_many
from fedsdr.cli.app import app
from fedsdr.errors import FedsdrError
from fedsdr.jobs.assembly import chosen_algorithm
from fedsdr.jobs.sources import load_federation
from fedsdr.jobs.sweep.recipe import read_sweep
from fedsdr.recipe.settings import Recipe, build_recipe, dump_recipe, parse_recipe, read_recipe

ROOT = Path(__file__).parents[2]
TEMPLATE = ROOT / "src/fedsdr/cli/recipe.yaml"
EVERYTHING = re.sub(r"^(\s*)#(\w+:)", r"\1\2", TEMPLATE.read_text(), flags=re.MULTILINE)
SWEEPS = [p for p in sorted(ROOT.glob("recipes/*.yaml")) if "\nsweep:" in p.read_text()]
RECIPES = [p for p in sorted(ROOT.glob("recipes/*.yaml")) if p not in SWEEPS]
BASES = [*(p.read_text() for p in RECIPES), TEMPLATE.read_text(), EVERYTHING, "{}\n"]

# As they stand in the file.
WORDS_OF_YAML = """
0 -1 1 2 1e0 1e300 -1e300 1e-300 1e999 1e-999 .inf -.inf .nan 0x10 010 1:30 1_000 0.5 2.5
true false null ~ yes no {} [] [[]] [1,2] {a:1} '' '7' "\0" "\ud800" "\\e[2J" 2026-01-01 3e2
0e9e39f2 atlas nowhere cpu cuda:999 all-linear . .. / /dev/zero /dev/null ~nouser/x ../../x
!!int !!python/object:os.system &a *a << | > auto last [auto] (.|.)*(.|.)*z (a+)+$
((((((.*)*)*)*)*)*)z [ (?P<x>.)(?P=x) fedavg fedprox median krum(1) krum(99999999999999999999)
clip(1e400) clip(nan) trimmed_mean(.nan)
"""
VALUES = (*WORDS_OF_YAML.split(), "", " ", "' '", "{a: 1}", "{1: 2}", "{a: {b: [1e300]}}")
MONSTERS = (
    "9" * 30,
    "9" * 5000,
    "1" + "0" * 18,
    "x" * 300,
    "x" * 100_000,
    "'" + "ü" * 5000 + "'",
    "[" * 100 + "]" * 100,
    "[" + "0," * 20_000 + "]",
    "{" + ", ".join(f"k{i}: {i}" for i in range(20_000)) + "}",
    "[" * 5000,
    "\u202eabc",
    "a\x00b",
    "\x1b[31m",
    "9" * 400 + ".5",
    "1e" + "9" * 30,
)
BOMB = "\n".join(
    ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
)


def value(rng: random.Random) -> str:
    return rng.choice(VALUES if rng.random() < 0.85 else MONSTERS)


def mutated(text: str, rng: random.Random) -> bytes:
    """A recipe's text, changed line by line, key by key, or byte by byte."""
    lines = text.splitlines()
    for _ in range(rng.choice([1, 1, 1, 2, 3, 8])):
        at = rng.randrange(len(lines)) if lines else 0
        kind = rng.randrange(12)
        found = re.match(r"(\s*)([\w.]+):(.*)", lines[at]) if lines else None
        if kind < 5 and found:
            lines[at] = f"{found[1]}{found[2]}: {value(rng)}"
        elif kind == 5 and found:
            lines[at] = f"{found[1]}{value(rng)}:{found[3]}"
        elif kind == 6:
            lines.insert(at, lines[at] if lines else "seed: 1")
        elif kind == 7 and lines:
            del lines[at]
        elif kind == 8 and lines:
            lines[at] = rng.choice([" ", "  ", "\t", "- ", "? ", "# ", "&x ", "*"]) + lines[at]
        elif kind == 9:
            lines.append(f"{rng.choice(['seed', 'run', 'data', 'sweep', 'x.y', ''])}: {value(rng)}")
        elif kind == 10 and rng.random() < 0.3:
            lines.insert(at, rng.choice([BOMB, "---", "...", "%YAML 1.1", "<<: {seed: 3}", "- a"]))
        elif kind == 11:
            lines = [
                re.sub(r"\d+(\.\d+)?", lambda _: value(rng), line, count=1)
                if rng.random() < 0.1
                else line
                for line in lines
            ]
    data = bytearray("\n".join(lines).encode(errors="surrogatepass"))
    if rng.random() < 0.2 and data:
        for _ in range(rng.randrange(1, 6)):
            at = rng.randrange(len(data) + 1)
            data[at : at + rng.randrange(3)] = rng.randbytes(rng.randrange(3))
    if rng.random() < 0.05:
        data = data[: rng.randrange(len(data) + 1)]
    return bytes(data)


def check_recipe(path: Path) -> str:
    """Reads it, and doubts it: the text, by another reader, and the recipe written and read."""
    recipe = read_recipe(path)
    loader: Any = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
    said = yaml.load(path.read_text(encoding="utf-8-sig"), Loader=loader) or {}
    doubt(said, recipe.model_dump(), "")
    survives(recipe)
    if recipe.data.atlas is not None and recipe.data.manifest is None:
        federation = load_federation(recipe)
        assert all(client.train for client in federation.clients)
    chosen_algorithm(recipe)
    return "meant"


def survives(recipe: Recipe) -> None:
    written = dump_recipe(recipe)
    assert parse_recipe(written) == recipe, "read back, it is another recipe"
    assert dump_recipe(parse_recipe(written)) == written, "written again, it is another text"


def doubt(said: Any, meant: Any, at: str) -> None:
    if isinstance(said, dict):
        assert isinstance(meant, Mapping) or (at.endswith(".engine") and meant is None), at
        for key, below in said.items():
            assert key in meant, f"{at}.{key} is gone"
            doubt(below, meant[key], f"{at}.{key}")
    elif isinstance(said, list):
        assert isinstance(meant, list), at
        assert len(meant) == len(said), at
        for number, below in enumerate(said):
            doubt(below, meant[number], f"{at}.{number}")
    elif isinstance(meant, bool):
        assert said.lower() == str(meant).lower(), f"{at}: {said!r} as {meant}"
    elif isinstance(meant, int):
        assert re.fullmatch(r"[-+]?(0|[1-9][0-9]*)", said), f"{at}: {said!r}"
        assert int(said) == meant, f"{at}: {said!r}"
        assert abs(meant) < 2**63, f"{at}: {meant}"
    elif isinstance(meant, float):
        assert "_" not in said, f"{at}: {said!r}"
        assert float(said) == meant, f"{at}: {said!r}"
        assert abs(meant) <= 1e15, f"{at}: {said!r}"
    elif meant is None:
        assert said.lower() in ("", "null", "~") or said == "builtin", f"{at}: {said!r} as None"
    else:
        assert said == meant, f"{at}: {said!r} as {meant!r}"


def test_recipes(tmp_path: Path) -> None:
    tally, rng = Tally("recipes"), random.Random(10)
    path = tmp_path / "recipe.yaml"
    for number in range(how_many(40)):
        path.write_bytes(mutated(rng.choice(BASES), rng))
        add(tally, f"recipe {number}", path, attempt(lambda: check_recipe(path)))
    end(tally)


def test_sweeps(tmp_path: Path) -> None:
    tally, rng = Tally("sweeps"), random.Random(11)
    path = tmp_path / "sweep.yaml"

    def check() -> str:
        sweep = read_sweep(path)
        for own in (*sweep.methods.values(), *sweep.settings.values()):
            assert all(isinstance(key, str) for key in own)
        survives(build_recipe(sweep.tree))
        return "meant"

    for number in range(how_many(15)):
        path.write_bytes(mutated(rng.choice(SWEEPS).read_text(), rng))
        add(tally, f"sweep {number}", path, attempt(check))
    end(tally)


def add(tally: Tally, name: str, path: Path, outcome: Outcome) -> None:
    tally.add(f"{name}: {path.read_bytes()[:300]!r}", outcome, may_return=True)
    if outcome.kind == "refused" and (len(outcome.text) > 6200 or not outcome.text.strip()):
        tally.note(name, f"a message of {len(outcome.text)} characters")


def end(tally: Tally) -> None:
    print(tally)
    assert tally.bad == []


NAMED = {
    "alias bomb": BOMB,
    "deep": "a: " + "[" * 100_000,
    "deep block": "".join(" " * i + "a:\n" for i in range(1000)),
    "rounds": "training: {rounds: " + "9" * 30 + "}",
    "skew": "data: {atlas: {quantity_skew: 1.0e+300}}",
    "alpha": "data: {file: d.jsonl, partition: {method: quantity, alpha: 1.0e-300}}",
    "examples": "data: {atlas: {examples: 1000000000}}",
    "clients": "data: {atlas: {clients: 1000000000}}",
    "both": "data: {atlas: {clients: 9999, examples: 9999}}",
    "public": "data: {atlas: {public: 1000000000000}}",
    "partition": "data: {file: d.jsonl, partition: {clients: 1000000000}}",
    "rank": "lora: {R: {rank: 1000000000000}}",
    "lr": "training: {lr: 1.0e+300}",
    "small lr": "training: {lr: 1.0e-300}",
    "decay": "training: {weight_decay: 1.0e+300}",
    "epochs": "training: {local_epochs: 1.0e+300}",
    "timeout": "rewriting: {engine: {url: 'http://127.0.0.1/v1', model: m, timeout: 1.0e+300}}",
    "temperature": "rewriting: {temperature: 1.0e-300}",
    "option": "algorithm: {name: fedprox, options: {mu: 1.0e+300}}",
    "seed": "seed: " + "9" * 30,
    "digits": "seed: " + "9" * 5000,
    "unknown keys": "\n".join(f"k{i}: 1" for i in range(100_000)),
    "some unknown keys": "\n".join(f"k{i}: 1" for i in range(20_000)),
    "name": "model: {path: " + "x" * 300 + "}",
    "nobody's": "model: {path: ~nouser/model}",
    "nobody's data": "data: {files: {a: ~nouser/d.jsonl}}",
    "nobody's adapter": "lora: {init: ~nouser/a}",
    "nobody's cache": "rewriting: {cache: ~nouser/a}",
    "one line": "a: " + "x" * 10**6,
    "comment": "#" * 10**7,
    "merge": "training: {<<: {rounds: 3}}",
    "binary": "seed: !!binary aGVsbG8=",
}


@pytest.mark.parametrize("text", NAMED.values(), ids=NAMED)
def test_what_hung_or_broke_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)

    def train() -> None:
        recipe = read_recipe(path)
        chosen_algorithm(recipe)

    outcome = attempt(train)
    assert outcome.kind == "refused", outcome
    assert len(outcome.text) < 6200
    assert str(path) in outcome.text or "algorithm." in outcome.text


def strange_files(here: Path) -> Iterator[Path]:
    os.mkfifo(here / "pipe")
    (here / "loop").symlink_to("loop")
    (here / "gone").symlink_to("nowhere")
    (here / "zero").symlink_to("/dev/zero")
    (here / "folder").mkdir()
    (here / "big").touch()
    os.truncate(here / "big", 10**12)
    names = ("pipe", "loop", "gone", "zero", "folder", "big", "no/such", "x" * 300, "~nouser/x")
    yield from (here / name if "~" not in name else Path(name) for name in names)
    yield Path("/dev/null")
    yield Path("/proc/self/mem")


def test_files_that_are_none(tmp_path: Path) -> None:
    tally = Tally("files that are none")
    for path in strange_files(tmp_path):
        tally.add(f"recipe {path}", attempt(lambda path=path: read_recipe(path)))
        tally.add(f"sweep {path}", attempt(lambda path=path: read_sweep(path)))
        for tree in (
            {"data": {"file": str(path)}},
            {"data": {"files": {"a": str(path)}}},
            {"data": {"files": {"a": "d.jsonl"}, "test_files": {"a": str(path)}}},
            {"data": {"atlas": {"clients": 2, "examples": 5}, "manifest": str(path)}},
        ):
            tally.add(f"{tree}", attempt(lambda tree=tree: load(tree)))
    end(tally)


def load(tree: Mapping[str, Any]) -> None:
    load_federation(build_recipe(tree))


WORDS = (
    *("0", "1", "-1", "1e99", "9" * 30, "9" * 5000, "nan", "inf", "-inf", "1e400", "0x10", "1_0"),
    *("", " ", "--", "-", "--help=", "\udcff", "a\udcffb", "\x1b[2J", "ü" * 200, "x" * 300),
    *(
        "x" * 100_000,
        "~nouser/x",
        "/dev/zero",
        "/dev/null",
        "pipe",
        "loop",
        "folder",
        "zero",
        "big",
    ),
    *(
        "big",
        "gone",
        "recipe.yaml",
        "nowhere",
        "a=b",
        "seed=1e999",
        "training.lr=[",
        "=1",
        "a.b.c.d=1",
    ),
    *("seed=&a", "." * 5000 + "=1", "a > b on c", "all", "mmlu", "js,js", "../..", "a\0b"),
    "training.rounds=" + "9" * 30,
    "data.atlas.examples=1000000000",
)


def command_line(rng: random.Random, verbs: Mapping[str, click.Command]) -> list[str]:
    name = rng.choice([*verbs, *verbs, "frobnicate", "", "\x1b[31m", "x" * 5000])
    words = [name]
    if command := verbs.get(name):
        for param in command.params:
            many = rng.choice([1, 1, 1, 0, 2]) if isinstance(param, click.Argument) else 0
            words += [rng.choice(WORDS) for _ in range(many)]
        options = [p for p in command.params if isinstance(p, click.Option) and "-h" not in p.opts]
        for option in rng.sample(options, rng.randrange(min(4, len(options) + 1))):
            words.append(rng.choice(option.opts))
            if not option.is_flag:
                words.append(rng.choice(WORDS))
    if rng.random() < 0.2:
        words.insert(rng.randrange(len(words) + 1), rng.choice([*WORDS, "--frob", "-zzz"]))
    if name == "demo":  # which would train, were all in order
        words.append("--frob")
    return words


NOWHERE = "model: {path: nowhere}\nlora: {init: nowhere}\n"


def test_command_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here can work: the recipe's model is nowhere, and there is no run."""
    monkeypatch.chdir(tmp_path)
    list(strange_files(tmp_path))
    Path("recipe.yaml").write_text(NOWHERE)
    for verb in (
        "jobs.train",
        "jobs.diagnose",
        "jobs.evaluate",
        "jobs.distill",
        "report.page",
        "jobs.demo",
    ):
        import_module(f"fedsdr.{verb}")  # once, and not in every child
    import_module("fedsdr.report.page")
    group = typer.main.get_command(app)
    assert isinstance(group, click.Group)
    tally, rng, there = Tally("command lines"), random.Random(12), set(tmp_path.iterdir())
    for number in range(how_many(25)):
        words = command_line(rng, group.commands)
        outcome = attempt(lambda words=words: invoke(words))
        for made in set(tmp_path.iterdir()) - there:  # `init nowhere` writes a good recipe
            shutil.rmtree(made) if made.is_dir() else made.unlink()
        if "init" in words:  # with --force, over what was there
            Path("recipe.yaml").write_text(NOWHERE)
            for name in ("big", "folder"):
                there_now = tmp_path / name
                shutil.rmtree(there_now) if there_now.is_dir() else there_now.unlink()
            (tmp_path / "folder").mkdir()
            (tmp_path / "big").touch()
            os.truncate(tmp_path / "big", 10**12)
        can = bool({"init", "algorithms", "--help=", "-h", "--help", "--version"} & set(words))
        tally.add(f"line {number}: {[w[:60] for w in words]}", outcome, can)
    end(tally)


def invoke(words: list[str]) -> int:
    result = CliRunner().invoke(app, words, input="")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    told = result.output
    assert "Traceback" not in told, told[-2000:]
    assert "\x1b" not in told, "the terminal is written to"
    assert len(told) < 60_000, f"{len(told)} characters are printed"
    if result.exit_code == 2:
        raise FedsdrError("refused")
    assert result.exit_code in (0, 1), result.exit_code
    return result.exit_code
