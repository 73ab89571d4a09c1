"""Each answer is checked by what it would be judged by; all expected by hand."""

from __future__ import annotations

import json

import pytest

from fedsdr.distill.task import (
    Form,
    code_reasons,
    failed_tests,
    form_of,
    json_calls,
    python_in,
    signatures,
    task_reasons,
)
from fedsdr.sandbox import available
from fedsdr.types import Example

SENTIMENT = "What is the sentiment? Please choose an answer from {negative/neutral/positive}."
MEAL = "Classify this recipe into breakfast, lunch, dinner, snack or dessert."
QUIZ = "Where is it?\nA) Oslo\nB) Oslo and Bergen\nC) Rome"
INLINE = "How much?\nAnswer Choices: (A) Rs.30 (B) Rs.24 (C) Rs.36"
CALL = 'aws.find(name="my stream", limit=3)'
TOOL = '{"name": "find", "arguments": {"name": "x", "limit": 3}}'
CODE = "def add(a, b=1):\n    return a + b\n\nclass Box:\n    def size(self):\n        return 1\n"


@pytest.mark.parametrize(
    ("original", "prompt", "form"),
    [
        (CALL, "", "call"),
        (TOOL, "", "call"),
        (f"<tool_call>\n{TOOL}\n</tool_call>", "", "call"),
        ('{"name": "Ada", "age": 3}', "", "prose"),
        (CODE, "", "code"),
        ("SELECT a FROM b;\nSELECT c\nFROM d", "", "code"),
        ("B", "", "option"),
        ("(C) Rome", QUIZ, "option"),
        ("Oslo and Bergen", QUIZ, "option"),
        ("The answer is C.", INLINE, "option"),
        ("6 + 12 = 18\n#### 18", "", "result"),
        ("18", "", "result"),
        ("neutral", SENTIMENT, "label"),
        ("Carly Rae Jepsen", "Who sings?", "label"),
        ("正面", "情感是什么？正面或负面", "label"),
        ("D.G. Yuengling and Son is the oldest brewery.", "Which?", "prose"),
        ("- Encoding\n- Storage", "", "prose"),
        ("Ada built it in 1832.", "", "prose"),
        ("Ada built it.", "", "prose"),
        ("Ada built", "", "label"),
    ],
)
def test_forms(original: str, prompt: str, form: Form) -> None:
    assert form_of(original, prompt) == form
    assert task_reasons(original, original, prompt) == ()


@pytest.mark.parametrize(
    ("original", "rewrite", "reasons"),
    [
        (CALL, "You call aws.find(limit=3, name='my stream').", []),
        (CALL, "print(aws.find( limit = 3, name = 'my stream' ))", []),
        (CALL, 'aws.find(name="my stream", limit=4)', ["lost-call"]),
        (CALL, 'aws.find(name="my stream", limit="3")', ["lost-call"]),
        (CALL, 'aws.list(name="my stream", limit=3)', ["lost-call"]),
        (CALL, f"{CALL}\nOr with more: aws.find(name='my stream', limit=9)", ["other-call"]),
        (CALL, f"{CALL} does it. Another is len(x).", []),
        ("f(1, 2)", "f(2, 1)", ["lost-call"]),
        ("f(id=us-west-2:1)", "f( id=us-west-2:1 )", []),
        (TOOL, '```json\n{"arguments": {"limit": 3, "name": "x"}, "name": "find"}\n```', []),
        (TOOL, '{"name": "find", "parameters": {"limit": 3, "name": "x"}} is the call', []),
        (TOOL, TOOL.replace("3", "4"), ["lost-call"]),
        (TOOL, "I would search for x.", ["lost-call"]),
        (TOOL, TOOL + TOOL.replace("3", "4"), ["other-call"]),
    ],
)
def test_calls(original: str, rewrite: str, reasons: list[str]) -> None:
    assert list(task_reasons(original, rewrite, "")) == reasons


def test_json_calls_in_all_dialects() -> None:
    held = {"name": "find", "arguments": json.dumps({"limit": 3, "name": "x"})}
    for spelled in (
        TOOL,
        f"[{TOOL}]",
        f"<tool_call>{TOOL}</tool_call>",
        json.dumps(held),
        json.dumps({"tool_calls": [{"type": "function", "function": held}]}),
    ):
        assert json_calls(spelled) == json_calls(TOOL) != ()
    assert json_calls("{" * 5000) == ()


@pytest.mark.parametrize(
    ("original", "rewrite", "prompt", "reasons"),
    [
        ("neutral", "It is neutral.", SENTIMENT, []),
        ("neutral", "I would say it is Neutral, since nothing is positive here.", "", []),
        ("neutral", "It is positive.", SENTIMENT, ["lost-label"]),
        ("positive", "It is neutral or positive.", SENTIMENT, ["lost-label"]),
        ("positive", "It is not positive.", SENTIMENT, ["lost-label"]),
        ("positive", "It isn't very positive.", SENTIMENT, ["lost-label"]),
        ("positive", "Positively great.", SENTIMENT, ["lost-label"]),
        ("positive", "It could be neutral or positive. Answer: positive", SENTIMENT, []),
        ("positive", "It seems positive. Answer: neutral", SENTIMENT, ["lost-label"]),
        ("dessert", "This is dessert. It could be a snack as well.", MEAL, []),
        ("dessert", "This is a snack, or dessert.", MEAL, ["lost-label"]),
        ("False", "True", 'Answer "True" or "False".', ["lost-label"]),
        ("Rhetorical Question.", "It is a rhetorical question, clearly.", "", []),
        ("negativ", "Die Meldung ist nicht negativ.", "positiv oder negativ?", ["lost-label"]),
        ("正面", "这条新闻是正面的。", "请选择：正面、负面", []),
        ("正面", "这条新闻不是正面的。", "请选择：正面、负面", ["lost-label"]),
        ("正面", "这条新闻是负面的。", "请选择：正面、负面", ["lost-label"]),
        ("B", "The answer is B.", "", []),
        ("B", "It must be (B).", "", []),
        ("B", "It is (A).", "", ["lost-option"]),
        ("B", "Neither (A) nor (B) fits.", "", ["lost-option"]),
        ("(C) Rome", "It is in Rome.", QUIZ, []),
        ("(C) Rome", "It is in Oslo.", QUIZ, ["lost-option"]),
        ("Oslo and Bergen", "In Oslo and Bergen, I think.", QUIZ, []),
        ("Oslo and Bergen", "In Oslo.", QUIZ, ["lost-option"]),
        ("B", "In Oslo and Bergen.", QUIZ, []),
        ("12 * 3 = 36\nThe answer is C.", "It costs Rs.36, so the answer is C.", INLINE, []),
        ("12 * 3 = 36\nThe answer is C.", "So the answer is B.", INLINE, ["lost-option"]),
    ],
)
def test_labels_and_options(original: str, rewrite: str, prompt: str, reasons: list[str]) -> None:
    assert list(task_reasons(original, rewrite, prompt)) == reasons


@pytest.mark.parametrize(
    ("original", "rewrite", "reasons"),
    [
        ("6 + 12 = 18\n#### 18", "She has 6 and gets 12 more. The answer is 18.", []),
        ("6 + 12 = 18\n#### 18", "6 + 12 = 18 apples", []),
        ("6 + 12 = 18\n#### 18", "So 18 - 1 = 17.\n#### 17", ["lost-answer"]),
        ("6 + 12 = 18\n#### 18", "18 is not enough. The answer is 20.", ["lost-answer"]),
        ("#### 1.234,5", "Die Antwort ist 1234,5.", []),
        ("#### 18", "所以答案是18。", []),
    ],
)
def test_results(original: str, rewrite: str, reasons: list[str]) -> None:
    assert list(task_reasons(original, rewrite, "")) == reasons


@pytest.mark.parametrize(
    ("original", "rewrite", "reasons"),
    [
        ("Yes, Ada built it.", "Indeed, Ada built it.", []),
        ("Yes, Ada built it.", "No, Ada built it.", ["invented-negation", "lost-label"]),
        ("Ja, die Stadt ist groß und das Land auch.", "Nein, die Stadt ist groß und das Land.",
         ["invented-negation", "lost-label"]),
        ("Die Stadt ist groß und das Land auch.", "The city is big and the land is too.",
         ["changed-language"]),
        ("Ada built it in 1832.", "Ada built it in 1833.", ["lost-number", "invented-number"]),
    ],
)  # fmt: skip
def test_prose(original: str, rewrite: str, reasons: list[str]) -> None:
    assert list(task_reasons(original, rewrite, "")) == reasons


@pytest.mark.parametrize(
    ("rewrite", "reasons"),
    [
        (f"Here you go:\n```python\n{CODE}```\nIt adds.", []),
        (f"{CODE}\nThis code adds two numbers, as you wished.\n- It is short.", []),
        (f"Sure, this is it:\n\n{CODE}\n### Explanation:\nIt adds.", []),
        (CODE.replace("a, b=1", "a: int, b: int = 1"), []),
        (CODE.replace("a, b=1", "a, b"), ["changed-signature"]),
        (CODE.replace("a, b=1", "b, a=1"), ["changed-signature"]),
        (CODE.replace("def add", "def plus"), ["lost-function"]),
        (CODE.replace("size(self)", "length(self)"), ["lost-function"]),
        (CODE.partition("class")[0], ["lost-function"]),
        ("```python\ndef add(a, b=1):\n  return (a + b\n```", ["broken-code"]),
        (CODE.replace("return a + b", "return a +"), ["broken-code"]),
        ("It adds two numbers.", ["lost-code"]),
    ],
)
def test_code(rewrite: str, reasons: list[str]) -> None:
    assert list(code_reasons(CODE, rewrite)) == reasons


def test_code_of_other_languages() -> None:
    java = "static int sum(int[] a) {\n  return a[0];\n}"
    assert code_reasons(java, f"```java\npublic {java}\n```") == ()
    assert code_reasons(java, java.replace("sum", "total")) == ("lost-function",)
    assert code_reasons(java, java[:-1]) == ("broken-code",)


def test_python_is_found() -> None:
    assert python_in("Paris is nice.") is None
    assert python_in("x = 1\ny = x") == "x = 1\ny = x"
    assert python_in("x = 1\n" + "(" * 3000) == "x = 1"
    assert signatures("async def f(*a, k, **b): pass\ndef _g(): pass") == {"f": "*a, k, **b"}


@pytest.mark.skipif(available() is not None, reason=f"no sandbox here: {available()}")
@pytest.mark.parametrize(
    ("rewrite", "reasons"),
    [
        ("```python\ndef add(a, b=1):\n    return b + a\n```", []),
        ("def add(a, b=1):\n    return a - b", ["failed-tests"]),
        ("def add(a, b=1):\n    while True: pass", ["failed-tests"]),
        ("def add(a, b=1):\n    import sys; sys.exit(0)", ["failed-tests"]),
        ("It adds.", ["failed-tests"]),
    ],
)
def test_tests_of_the_record(rewrite: str, reasons: list[str]) -> None:
    asserted = Example("e", "Write add.\nassert add(1) == 2\nassert add(1, 3) == 4", CODE)
    shown = Example("e", "Write add.\n>>> add(2)\n3\n>>> add(2, 2)\n4\n", CODE)
    assert list(failed_tests(asserted, rewrite)) == reasons
    assert list(failed_tests(shown, rewrite)) == reasons
    # Tests that the original does not pass, or none, say nothing.
    wrong = Example("e", "Write add.\nassert add(1) == 7", CODE)
    assert failed_tests(wrong, rewrite) == failed_tests(Example("e", "Add.", CODE), rewrite) == ()
