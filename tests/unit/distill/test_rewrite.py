"""Rewriting a client's answers: the cache, the draws, and what a rewrite depends on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fedsdr.distill import engine as module
from fedsdr.distill.engine import Teacher
from fedsdr.distill.generate import Sampling
from fedsdr.distill.prompts import TEMPLATES, template_digest
from fedsdr.distill.rewrite import Rewriting, rewrite
from fedsdr.errors import RunError
from fedsdr.model.base import BaseModel, with_template
from fedsdr.model.lora import StackedLora
from fedsdr.parts.views import parse_selection
from fedsdr.tensors import digest
from fedsdr.types import Example
from toy import SPECS, examples

HOW = Rewriting(Sampling(max_new_tokens=6), seed=5)
ROWS = examples("c0", 6)


@pytest.fixture
def lora(base64: BaseModel) -> Iterator[StackedLora]:
    made = StackedLora(base64, "all-linear", SPECS)
    yield made
    made.remove()


def texts(
    lora: StackedLora,
    cache: Path,
    rows: tuple[Example, ...] = ROWS,
    how: Rewriting = HOW,
    **more: Any,
) -> list[str]:
    selection = parse_selection(more.pop("selection", "none"))
    made, audit = rewrite(lora, more.pop("client", "c0"), rows, selection, how, cache, **more)
    assert [a.example_id for a in audit] == [e.id for e in rows]
    assert [(e.id, e.prompt) for e in made] == [(e.id, e.prompt) for e in rows]
    return [e.response for e in made]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many prompts went through the model, call by call."""
    calls: list[int] = []
    plain = module.generate

    def generate(base: Any, prompts: Any, *rest: Any) -> Any:
        calls.append(len(prompts))
        return plain(base, prompts, *rest)

    monkeypatch.setattr(module, "generate", generate)
    return calls


def test_drawn_once_then_read(lora: StackedLora, tmp_path: Path, counted: list[int]) -> None:
    first = texts(lora, tmp_path)
    assert counted == [6]
    assert first != [e.response for e in ROWS]
    assert texts(lora, tmp_path) == first
    assert counted == [6]
    (file,) = tmp_path.iterdir()
    assert file.stat().st_mode & 0o077 == 0
    assert len(file.read_text().splitlines()) == 6


def test_the_same_rewrite_whatever_its_batch_its_order_or_its_client(
    lora: StackedLora, tmp_path: Path
) -> None:
    expected = texts(lora, tmp_path / "0")
    for batch in (1, 4):
        how = Rewriting(HOW.sampling, seed=5, batch=batch)
        assert texts(lora, tmp_path / str(batch), how=how) == expected
    assert texts(lora, tmp_path / "turned", ROWS[::-1]) == expected[::-1]
    assert texts(lora, tmp_path / "some", ROWS[2:4]) == expected[2:4]
    assert texts(lora, tmp_path / "other", client="c9") == expected


def test_twins_are_rewritten_alike(lora: StackedLora, tmp_path: Path) -> None:
    made = texts(lora, tmp_path, (*ROWS, ROWS[0]))
    assert made[0] == made[-1]


def test_what_decides_a_rewrite_is_in_its_address(
    lora: StackedLora, tmp_path: Path, counted: list[int]
) -> None:
    texts(lora, tmp_path)
    sharper = Rewriting(Sampling(temperature=0.5, max_new_tokens=6), seed=5)
    for how in (
        sharper,
        Rewriting(HOW.sampling, seed=6),
        Rewriting(HOW.sampling, "checkable", seed=5),
    ):
        counted.clear()
        texts(lora, tmp_path, how=how)
        assert counted == [6], how
    counted.clear()
    changed = (Example("c0-0", ROWS[0].prompt, ROWS[0].response + "!"), *ROWS[1:])
    texts(lora, tmp_path, changed)
    assert counted == [6]  # the whole window: what is drawn does not hang on what is known
    counted.clear()
    texts(lora, tmp_path, changed)
    assert counted == []


def teacher(lora: StackedLora, shift: float) -> Teacher:
    random = torch.Generator().manual_seed(1)
    size = lora.layouts["R"].size
    flat = 0.3 * torch.randn((1, size), generator=random, dtype=torch.float64) + shift
    return Teacher(digest({"R": flat}), {"R": flat})


def test_a_global_teacher_rewrites_otherwise_but_not_for_a_rounding_error(
    lora: StackedLora, tmp_path: Path, counted: list[int]
) -> None:
    """R differs in the last bits with K, and the rewrites may not."""
    by_base = texts(lora, tmp_path)
    by_global = texts(lora, tmp_path, teacher=teacher(lora, 0.0))
    assert by_global != by_base
    assert texts(lora, tmp_path, teacher=teacher(lora, 1e-15)) == by_global
    assert counted == [6, 6, 6]


@pytest.mark.parametrize(
    "tear",
    [
        lambda data: data[:-9],
        lambda data: data[: data.rindex(b"\n", 0, -1) + 1] + b'{"key": "\xc3',  # half a letter
        lambda data: data[:-1],
        lambda data: data + b'{"key":',
        lambda data: data + b"[1, 2]\n",
        lambda data: b"\xff\xfe\n" + data,
        lambda data: b"",
    ],
)
def test_a_torn_cache_is_mended_with_the_same_words(
    tear: Any, lora: StackedLora, tmp_path: Path
) -> None:
    how = Rewriting(HOW.sampling, seed=5, batch=2)
    expected = texts(lora, tmp_path, how=how)
    file = tmp_path / "c0.jsonl"
    file.write_bytes(tear(file.read_bytes()))
    assert texts(lora, tmp_path, how=how) == expected
    assert texts(lora, tmp_path, how=how) == expected
    keys = set()
    for line in file.read_bytes().split(b"\n"):
        try:
            keys.add(json.loads(line)["key"])
        except (ValueError, TypeError, KeyError):
            continue
    assert len(keys) >= 6


def test_a_mended_window_is_made_of_the_same_rows(
    lora: StackedLora, tmp_path: Path, counted: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits differ by rounding with a batch's shape, so half a window is not drawn alone."""
    monkeypatch.setattr(module, "WINDOW", 2)
    how = Rewriting(HOW.sampling, seed=5, batch=2)
    expected = texts(lora, tmp_path, how=how)
    assert counted == [4, 2]
    file = tmp_path / "c0.jsonl"
    kept = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(kept[:3]))
    counted.clear()
    told: list[tuple[int, int]] = []
    assert texts(lora, tmp_path, how=how, tell=lambda *n: told.append(n)) == expected
    assert counted == [4, 2]
    assert [sum(n) for n in zip(*told, strict=True)] == [6, 0]


def test_what_was_drawn_by_an_earlier_version_is_still_found(
    lora: StackedLora, tmp_path: Path, counted: list[int]
) -> None:
    """The addresses, and the file of the first drafts, are those of version 0.1."""
    row = ROWS[0]
    decides = [
        lora.base.digest,
        "base",
        "torch.float64",
        template_digest(TEMPLATES["free"]),
        {"temperature": 0.95, "top_p": 0.7, "top_k": 50, "max_new_tokens": 6},
        5,
        ["", [], row.prompt, row.response],
        0,
    ]
    text = json.dumps(decides, ensure_ascii=False, sort_keys=True)
    key = hashlib.sha256(text.encode()).hexdigest()
    line = json.dumps({"key": key, "text": "Käse\u2028!", "hit_limit": False}, ensure_ascii=False)
    (tmp_path / "c0.jsonl").write_text(line + "\n", encoding="utf-8")
    assert texts(lora, tmp_path, (row,)) == ["Käse\u2028!"]
    assert counted == []


def test_another_chat_template_is_another_address(
    lora: StackedLora, tmp_path: Path, counted: list[int]
) -> None:
    texts(lora, tmp_path)
    lora.base = with_template(lora.base, "plain")
    texts(lora, tmp_path)
    assert counted == [6, 6]


def test_a_cache_that_cannot_be_written_is_named(lora: StackedLora, tmp_path: Path) -> None:
    (tmp_path / "c0.jsonl").mkdir()
    with pytest.raises(RunError, match=r"c0\.jsonl: rewrites cannot be stored"):
        texts(lora, tmp_path)


class Script:
    """A model that says, draw by draw, what it is told to."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)

    def __call__(self, base: Any, prompts: Any, *rest: Any) -> Any:
        from fedsdr.distill.generate import Generated

        said = self.answers.pop(0)
        assert len(said) == len(prompts)
        return [Generated(text, 3, False) for text in said]


PAIR = (
    Example("a", "What is the dose?", "The dose is 40 mg."),
    Example("b", "Say what the price of it is.", "It costs 12 crowns."),
)


@pytest.mark.parametrize(
    ("selection", "answers", "expected"),
    [
        ("none", [["40", "99 crowns"]], ["40", "99 crowns"]),
        ("none", [["", "x"]], ["The dose is 40 mg.", "x"]),
        ("facts", [["It is 40 mg.", "99 crowns"]], ["It is 40 mg.", "It costs 12 crowns."]),
        (
            "resample(2)",
            [["It is 40 mg.", "99 crowns"], ["12 crowns it costs."]],
            ["It is 40 mg.", "12 crowns it costs."],
        ),
        (
            "resample(3)",
            [["41 mg", "99"], ["42 mg", "98"], ["43 mg", "97"]],
            ["The dose is 40 mg.", "It costs 12 crowns."],
        ),
        ("resample(3)", [["40 mg.", "12 crowns."]], ["40 mg.", "12 crowns."]),
    ],
)
def test_selection_draws_again_only_what_it_refused(
    selection: str,
    answers: list[list[str]],
    expected: list[str],
    lora: StackedLora,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    script = Script(*answers)
    monkeypatch.setattr(module, "generate", script)
    assert texts(lora, tmp_path, PAIR, selection=selection) == expected
    assert script.answers == []
    assert texts(lora, tmp_path, PAIR, selection=selection) == expected  # now from the cache


def test_draws_differ(lora: StackedLora, tmp_path: Path) -> None:
    """The second draft is another one, not the first once more."""
    hot = Rewriting(Sampling(1.5, 1.0, 0, 6), seed=5)
    selection = parse_selection("resample(3)")
    _made, audit = rewrite(lora, "c0", ROWS, selection, hot, tmp_path)
    assert any(a.draws == 3 for a in audit)
    rows = [json.loads(line) for line in (tmp_path / "c0.jsonl").read_bytes().split(b"\n") if line]
    assert len({r["key"] for r in rows}) == len(rows) == sum(a.draws for a in audit)
    assert len({r["text"] for r in rows}) > len(ROWS)


def test_texts_are_in_the_audit_only_when_asked_for(lora: StackedLora, tmp_path: Path) -> None:
    selection = parse_selection("none")
    silent = rewrite(lora, "c0", ROWS, selection, HOW, tmp_path)[1]
    told = rewrite(lora, "c0", ROWS, selection, HOW, tmp_path, include_texts=True)[1]
    assert all(a.texts is None for a in silent)
    assert [a.texts[0] for a in told if a.texts] == [e.response for e in ROWS]
