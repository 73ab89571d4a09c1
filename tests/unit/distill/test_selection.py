"""Which rewrites are kept. The shared pairs at the end are real ones of a 7B chat model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedsdr.distill import selection
from fedsdr.distill.selection import Choice, Draft, judge, passes, refuse_unready, select
from fedsdr.errors import ModelError, RecipeError, SandboxError
from fedsdr.parts.views import parse_selection
from fedsdr.sandbox import Refusal, available
from fedsdr.types import Example, Message

REWRITES = Path(__file__).parents[3] / "../shared/data/rewrites"

QUESTION = Example("e1", "Who built it, Ada or Bob?", "Ada built it in 1832.", system="Oslo")
GOOD = Draft("In 1832 it was Ada who built it.", False)
WRONG_YEAR = Draft("In 1833 it was Ada who built it.", False)
SWAPPED = Draft("In 1832 it was Bob who built it.", False)
LEAKING = Draft("Here is my response: in 1832 it was Ada.", False)
EMPTY = Draft(" \n", False)
CUT = Draft("In 1832 it was Ada.", True)
REFUSED = ("refusal", "invented-negation")


@pytest.mark.parametrize(
    ("text", "name", "rule", "draws"),
    [
        ("none", "none", "none", 1),
        (" sdft ", "sdft", "sdft", 1),
        ("facts", "facts", "facts", 1),
        ("resample( 8 )", "resample(8)", "facts", 8),
        ("resample(64)", "resample(64)", "facts", 64),
        ("task", "task", "task", 1),
        ("resample( 4 ,  task )", "resample(4, task)", "task", 4),
        ("resample(2, sdft)", "resample(2, sdft)", "sdft", 2),
    ],
)
def test_parse(text: str, name: str, rule: str, draws: int) -> None:
    parsed = parse_selection(text)
    assert (parsed.name, parsed.rule, parsed.draws) == (name, rule, draws)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fact", "Did you mean 'facts'?"),
        ("SDFT!", "not one of none, sdft, facts, task, resample"),
        ("resample", "Did you mean 'resample(4)'?"),
        ("resample(x)", "resample"),
        ("resample(0)", "between 1 and 64"),
        ("resample(-3)", "between 1 and 64"),
        ("resample(65)", "between 1 and 64"),
        (f"resample({'9' * 6000})", "between 1 and 64"),
        ("", "not one of"),
        ("taks", "Did you mean 'task'?"),
        ("facts+tests", "+tests belongs to task"),
        ("task+nli", "not one of"),
        ("task+nli(0.5)", "not one of"),
        ("task+nli(1.5, x)", "between 0 and 1"),
        ("task+nli(., x)", "between 0 and 1"),
        ("resample(4, resample(2))", "not one of"),
        ("resample(4, taks)", "Did you mean 'task'?"),
    ],
)
def test_nonsense_is_refused(text: str, message: str) -> None:
    with pytest.raises(RecipeError) as error:
        parse_selection(text)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("draft", "none", "sdft", "facts"),
    [
        (GOOD, [], [], []),
        (WRONG_YEAR, [], [], ["lost-number", "invented-number"]),
        (SWAPPED, [], [], ["lost-name"]),
        (LEAKING, [], ["leak:my response"], ["leak:my response"]),
        (EMPTY, ["empty"], ["empty"], ["empty"]),
        (CUT, [], ["truncated"], ["truncated"]),
    ],
)
def test_what_each_rule_refuses(
    draft: Draft, none: list[str], sdft: list[str], facts: list[str]
) -> None:
    for name, reasons in (("none", none), ("sdft", sdft), ("facts", facts), ("resample(3)", facts)):
        assert list(passes(parse_selection(name), QUESTION, draft)) == reasons


def test_the_whole_conversation_is_a_source() -> None:
    facts = parse_selection("facts")
    draft = Draft("Ada built it in 1832, in Oslo, for Eve.", False)
    assert passes(facts, QUESTION, draft) == ("invented-name",)
    told = Example(
        "e1",
        QUESTION.prompt,
        QUESTION.response,
        system="Oslo",
        history=(Message("user", "It was for Eve."),),
    )
    assert passes(facts, told, draft) == ()


def test_a_phrase_of_the_original_is_no_leak() -> None:
    letter = Example("e1", "Write to him.", "I look forward to your response.")
    assert passes(parse_selection("sdft"), letter, Draft("I await your response.", False)) == ()
    assert passes(parse_selection("sdft"), QUESTION, Draft("Your response: Ada", False)) != ()


def test_a_label_must_survive() -> None:
    label = Example("e1", "Sentiment? {negative/positive}", "negative")
    facts = parse_selection("facts")
    assert passes(facts, label, Draft("It is negative.", False)) == ()
    assert passes(facts, label, Draft("It is positive.", False)) == ("lost-label",)


@pytest.mark.parametrize("name", ["none", "sdft", "facts", "task", "resample(5)"])
def test_the_original_itself_passes_everywhere(name: str) -> None:
    assert passes(parse_selection(name), QUESTION, Draft(QUESTION.response, False)) == ()


TASK = parse_selection("task")


@pytest.mark.parametrize(
    ("original", "draft", "reasons"),
    [
        ("#### 18", Draft("So it costs 18. The answer is 18.", False), ()),
        ("#### 18", Draft("The answer is 19.", False), ("lost-answer",)),
        ("Ada built it.", Draft("I'm sorry, but I can't answer that.", False), REFUSED),
        ("I cannot help with that.", Draft("I'm sorry, but I cannot help.", False), ()),
        ("f(a=1)", Draft("f(a=1)\nI hope this is correct!", False), ("about-the-task",)),
        ("Ada built it.", Draft("It was built by Ada and by all of", False), ("truncated",)),
        ("Ada built it.", Draft("It was Ada. She built it with great", False), ("truncated",)),
        ("Ada built it.", Draft("Ada", True), ("truncated",)),
        ("Ada built it.", EMPTY, ("empty",)),
        ("positive", Draft("My response: positive", False), ("leak:my response",)),
    ],
)
def test_task(original: str, draft: Draft, reasons: tuple[str, ...]) -> None:
    assert passes(TASK, Example("e1", "What is it?", original), draft) == reasons


@pytest.mark.skipif(available() is not None, reason=f"no sandbox here: {available()}")
def test_tests_are_run_when_asked_for() -> None:
    code = Example("e1", "Write inc.\nassert inc(1) == 2", "def inc(x):\n    return x + 1")
    wrong = Draft("def inc(x):\n    return x - 1", False)
    assert passes(TASK, code, wrong) == ()
    assert passes(parse_selection("task+tests"), code, wrong) == ("failed-tests",)
    right = Draft("def inc(x):\n    return 1 + x", False)
    assert select(parse_selection("resample(2, task+tests)"), code, [wrong, right]).draw == 1


def test_without_a_sandbox_tests_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "available", lambda: Refusal("no walls", "get some"))
    with pytest.raises(SandboxError, match=r"runs model-written code: .* no walls; get some"):
        refuse_unready(parse_selection("task+tests"))
    refuse_unready(parse_selection("task"))
    assert parse_selection("task").rule == "task"


def test_entailment_both_ways(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[tuple[str, str]] = []

    class Scripted:
        def entailments(self, pairs: list[tuple[str, str]]) -> list[float]:
            asked.extend(pairs)
            return [0.2 if "LESS" in p or "MORE" in h else 0.9 for p, h in pairs]

    monkeypatch.setattr(selection, "entailment_class", lambda folder: 0)
    monkeypatch.setattr(selection, "load_classifier", lambda folder: Scripted())
    rule = parse_selection(f"task+nli(0.5, {tmp_path})")
    assert (rule.name, rule.entailed) == (f"task+nli(0.5, {tmp_path})", 0.5)
    prose = Example("e1", "Who?", "Ada built it.")
    assert passes(rule, prose, Draft("It was built by Ada.", False)) == ()
    assert asked == [
        ("\nWho?\nIt was built by Ada.", "Ada built it."),
        ("\nWho?\nAda built it.", "It was built by Ada."),
    ]
    less, more = Draft("Ada built LESS.", False), Draft("Ada built it, MORE.", False)
    either = parse_selection(f"none+nli(0.5, {tmp_path})")
    assert passes(either, prose, less) == ("lost-meaning",)
    assert passes(either, prose, more) == ("invented-meaning",)
    asked.clear()
    # Not for what is checked exactly, nor for what is refused already.
    assert passes(rule, Example("e1", "?", "f(a=1)"), Draft("f(a=1) MORE", False)) == ()
    assert passes(rule, prose, Draft("Ada built 7.", False)) == ("invented-number",)
    assert asked == []
    # Many drafts, one call: the same reasons, and only of those that are left to judge.
    empty, same = Draft(" ", False), Draft(prose.response, False)
    judged = judge(either, [(prose, d) for d in (empty, less, same, more)])
    assert judged == [("empty",), ("lost-meaning",), (), ("invented-meaning",)]
    assert len(asked) == 4


def test_the_classifier_is_looked_for_at_once(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        refuse_unready(parse_selection(f"task+nli(0.5, {tmp_path / 'nowhere'})"))


def test_select_keeps_the_first_that_passes() -> None:
    drafts = [WRONG_YEAR, GOOD, GOOD]
    chosen = select(parse_selection("resample(3)"), QUESTION, drafts)
    assert chosen == Choice(GOOD.text, kept=True, draw=1, reasons=())
    # two draws only look at the first two drafts; one draw only at the first
    assert select(parse_selection("resample(2)"), QUESTION, drafts).draw == 1
    assert not select(parse_selection("facts"), QUESTION, drafts).kept
    assert select(parse_selection("none"), QUESTION, drafts).text == WRONG_YEAR.text


def test_select_falls_back_with_the_reasons_of_all_drafts() -> None:
    chosen = select(parse_selection("resample(3)"), QUESTION, [SWAPPED, WRONG_YEAR, CUT])
    assert chosen == Choice(
        QUESTION.response,
        kept=False,
        draw=None,
        reasons=("lost-name", "lost-number", "invented-number", "truncated"),
    )
    assert select(parse_selection("none"), QUESTION, [EMPTY]).text == QUESTION.response


def test_selecting_from_nothing_is_a_bug() -> None:
    with pytest.raises(ValueError, match="no draft"):
        select(parse_selection("none"), QUESTION, [])


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.skipif(not REWRITES.is_dir(), reason="the shared data are not here")
def test_real_rewrites() -> None:
    """Rewrites that came through the SDFT filter pass `sdft`; about half of the general ones change
    facts; unchanged ones pass."""
    kept: dict[tuple[str, str, bool], list[bool]] = {}
    for file in sorted(REWRITES.glob("*.sdft_distilled.jsonl")):
        client = file.name.split(".")[0]
        prompts = {
            row["id"]: f"{row['instruction']}\n{row['input']}"
            for row in lines(REWRITES.parent / f"clients/{client}/train.jsonl")
        }
        for row in lines(file):
            pair = Example(row["id"], prompts[row["id"]], row["output_original"])
            draft = Draft(row["output_distilled"], False)
            for rule in ("sdft", "facts", "task"):
                passed = not passes(parse_selection(rule), pair, draft)
                kept.setdefault((client, rule, row["changed"]), []).append(passed)
    shares = {key: sum(passed) / len(passed) for key, passed in kept.items()}
    for (_client, rule, changed), share in shares.items():
        if not changed:
            assert share > 0.99
        elif rule == "sdft":
            assert share > 0.95
    assert 0.4 < shares["c0_general_alpaca", "facts", True] < 0.6
    assert 0.6 < shares["c6_tools", "facts", True] < 0.9
    # Half of the calls come with talk about the exercise, or with a second, different call.
    assert 0.4 < shares["c6_tools", "task", True] < 0.7
