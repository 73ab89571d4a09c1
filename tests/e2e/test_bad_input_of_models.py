"""What can be wrong with models, adapters, rows, endpoints and results: exit code 2, the culprit
named, no traceback, nothing left over. The cases stand in bad_inputs.py."""

from __future__ import annotations

import importlib.util
import json
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from bad_inputs import CASES, PLAN, TRAIN, Case, fine, make_workplace, no_numbers, settings
from test_bad_input import refused
from typer.testing import CliRunner

from fedsdr.cli.app import app

SECRET = "as told"  # of the rows


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("workplace")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made)
        make_workplace(made)
    return made


@pytest.fixture
def here(workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(workplace, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_it_is_refused(case: Case, here: Path) -> None:
    case.change()
    there = {path.name for path in here.iterdir()}
    with case.serving() as server:
        said = refused((*case.arguments, *(("--endpoint", server.url) if server else ())))
    assert case.named in said
    assert SECRET not in said
    assert len(said) < 1500
    # Only a rewriting, which the same command goes on with, may leave its folder.
    left = {path.name for path in here.iterdir()} - there
    assert left <= ({"out"} if case.arguments[0] == "distill" else set())


def test_a_plan_lists_what_has_no_finite_numbers(here: Path) -> None:
    no_numbers()
    planned = CliRunner().invoke(app, list(PLAN))
    assert planned.exit_code == 2
    assert "the loss of a trial step is no finite number in float32" in planned.stderr


@pytest.mark.parametrize("package", ["bitsandbytes", "accelerate"])
def test_a_quantised_base_without_its_packages(
    package: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == package else find(n))
    said = refused([*PLAN, "--set", "model.quantize=4bit"])
    assert f"model.quantize: 4bit needs {package}: pip install 'fedsdr[quantized]'" in said


def test_no_padding_token_and_no_template_are_no_mistake(here: Path) -> None:
    settings(pad_token=None)()
    Path("model/chat_template.jinja").unlink()
    done = CliRunner().invoke(app, list(TRAIN))
    assert done.exit_code == 0, done.output
    assert "the tokenizer has no chat template: fedsdr's plain one is used" in done.output


SAYINGS = (
    ("Wie geht's?", "Schön — „gut“, 3,5 m²."),
    ("中文怎么样？", "很好。价格是 42 元。"),
    ("ما هذا؟", "قطة عمرها ٧ سنوات \u202eabc\u202c"),
    ("emoji", "👩‍👩‍👧‍👦🏳️‍🌈 🇩🇪"),
    ("café", unicodedata.normalize("NFD", "Ålesund café, 12 €")),
    ("café", unicodedata.normalize("NFC", "Ålesund café, 12 €")),
    ("marks", "h" + "".join(chr(0x300 + i) for i in range(40))),
    ("controls", "a\x07\x1b[31mred\x1b[0m"),
    ("a mark of byte order", "\ufeffWord\ufeff"),
    ("no characters", "\ufffe\uffff\U0010ffff"),
    ("tokens", "He said <|end|> and <|pad|>."),
    ("lines", "a\r\nb\rc\u2028d\u0085e"),
)


def test_any_script_goes_from_file_to_scores(here: Path) -> None:
    """Nothing is changed on the way: not its normal form, nor what looks like the end of a line."""
    rows = [
        {"id": str(i), "prompt": f"{asked} {i}", "response": said}
        for i, (asked, said) in enumerate(SAYINGS * 2)
    ]
    text = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in rows)
    (here / "d.jsonl").write_text(text, encoding="utf-8", newline="")
    short = ("--set", "rewriting.max_new_tokens=6", "--set", "run.threads=1")
    fine("distill", "d.jsonl", "--model", "model", "--out", "kept", "--selection", "facts", *short)
    written = lines(here / "kept/rewritten.jsonl")
    assert [(one["id"], one["prompt"]) for one in written] == [
        (one["id"], one["prompt"]) for one in rows
    ]
    kept = {a["example_id"]: a["kept"] for a in lines(here / "kept/audit.jsonl")}
    assert not all(kept.values())  # so that some are the originals, to the last code point
    for one, original in zip(written, rows, strict=True):
        assert kept[one["id"]] or one["response"] == original["response"]
    fine(*TRAIN)
    fine("evaluate", "out", "--answers")
    fine("merge", "out", "--out", "merged")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line]
