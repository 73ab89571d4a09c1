"""Which check an answer needs, by its form: a call, code, an option, a label, a result, prose.

Code in answers: does the rewrite still hold it, whole, with the same functions, passing the same
tests? Python is parsed; of other languages, names and brackets are compared.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from typing import Any, Literal, cast, get_args

from fedsdr.sandbox import run_python
from fedsdr.text.checkable import call, calls, final_answer, keeps_final_answer, looks_like_code
from fedsdr.text.facts import compare_facts
from fedsdr.text.labels import is_label, label_reasons, option_reasons, turned_round
from fedsdr.text.languages import language_of
from fedsdr.text.names import code_blocks
from fedsdr.types import Example

_MOST_CUTS = 60
_OPENS = re.compile(
    r"(?:(?:async )?def |class |import \w|from [\w.]+ import |@\w|for .*:|while .*:|if .*:|try:"
    r"|with .*:|#|\"\"\"|print\(|[A-Za-z_][\w.\[\], ]*\s*[-+*/]?=(?!=)\s*\S"
    r"|[A-Za-z_][\w.]*\(.*\)\s*$)"
)
_STILL_CODE = re.compile(
    r"^\s*(?:def \w+\(|class \w+\s*[(:]|return\b(?! the)|import \w+$|from [\w.]+ import )",
    re.MULTILINE,
)
_DEFINED = re.compile(
    r"\b(?:function|func|fn|def|class|struct|interface)\s+([A-Za-z_]\w*)"
    r"|\b(?:void|int|double|float|bool|boolean|char|String|string|long)(?:\[\])?\s+([A-Za-z_]\w*)\s*\("
)
_ASSERTIONS = re.compile(r"^[ \t]*(assert [^\n]+)", re.MULTILINE)
_DOCTEST = """
import doctest as _doctest
_found = _doctest.DocTestParser().get_doctest({text!r}, dict(globals()), "examples", None, 0)
assert _doctest.DocTestRunner(verbose=False).run(_found).failed == 0
"""


def code_reasons(original: str, rewrite: str) -> tuple[str, ...]:
    """What of the original's code is gone or broken."""
    if not looks_like_code(rewrite):
        return ("lost-code",)
    wanted = python_in(original)
    if wanted is None:
        gone = _defined(original) - _defined(rewrite)
        broken = _balanced(original) and not _balanced(rewrite)
        return (*(("broken-code",) if broken else ()), *(("lost-function",) if gone else ()))
    given = python_in(rewrite)
    if given is None:
        return ("broken-code",)
    before, after = signatures(wanted), signatures(given)
    changed = any(after[name] != before[name] for name in before.keys() & after.keys())
    return (
        *(("lost-function",) if before.keys() - after.keys() else ()),
        *(("changed-signature",) if changed else ()),
    )


def failed_tests(example: Example, rewrite: str) -> tuple[str, ...]:
    """Whether tests that the original's code passes (the prompt's assertions, doctests of either)
    fail with the rewrite's. They run in the sandbox."""
    code = python_in(example.response)
    tests = _tests(example)
    if code is None or not tests or not _pass(code, tests):
        return ()
    given = python_in(rewrite)
    return () if given is not None and _pass(given, tests) else ("failed-tests",)


def python_in(text: str) -> str | None:
    """The Python of a text: its code fences, or the lines from the first that looks like code to
    the last with which they parse. None where there is none, or it is broken."""
    if blocks := code_blocks(text):
        joined = "\n\n".join(blocks)
        return joined if _parsed(joined) is not None else None
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if _OPENS.match(line)), None)
    if start is None:
        return None
    end = len(lines)
    for _ in range(_MOST_CUTS):
        piece = "\n".join(lines[start:end])
        wrong = _wrong_line(piece)
        if wrong is None:
            rest = "\n".join(lines[end:])
            return piece if piece.strip() and not _STILL_CODE.search(rest) else None
        end = min(end - 1, start + wrong - 1)
        if end <= start:
            return None
    return None


def signatures(code: str) -> dict[str, str]:
    """Public functions and methods with their parameters, without annotations."""
    parameters: dict[str, str] = {}
    tree = _parsed(code)
    for node in tree.body if tree else ():
        if isinstance(node, ast.ClassDef):
            parameters[node.name] = ""
            parameters |= {
                f"{node.name}.{n.name}": _parameters(n.args) for n in _functions(node.body)
            }
    parameters |= {n.name: _parameters(n.args) for n in _functions(tree.body if tree else [])}
    return parameters


def _functions(body: list[ast.stmt]) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [
        node
        for node in body
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and (not node.name.startswith("_") or node.name == "__init__")
    ]


def _parameters(arguments: ast.arguments) -> str:
    for each in ast.walk(arguments):
        if isinstance(each, ast.arg):
            each.annotation = None
    return ast.unparse(arguments)


def _tests(example: Example) -> str:
    prompt = example.prompt
    asserted = "\n".join(_ASSERTIONS.findall("\n".join((prompt, *code_blocks(prompt)))))
    shown = [text for text in (prompt, example.response) if re.search(r"^\s*>>> ", text, re.M)]
    return "\n".join([asserted, *(_DOCTEST.format(text=text) for text in shown)]).strip()


@lru_cache(maxsize=1024)
def _pass(code: str, tests: str) -> bool:
    return run_python(code, tests=tests).passed


def _wrong_line(code: str) -> int | None:
    try:
        _parse(code)
    except SyntaxError as error:
        return error.lineno or 1
    except (ValueError, RecursionError, MemoryError):
        return 1
    return None


def _parsed(code: str) -> ast.Module | None:
    return _parse(code) if _wrong_line(code) is None else None


def _parse(code: str) -> ast.Module:
    with warnings.catch_warnings(action="ignore"):  # they would quote the code
        return ast.parse(code)


def _defined(text: str) -> set[str]:
    return {name for pair in _DEFINED.findall(text) for name in pair if name}


def _balanced(text: str) -> bool:
    code = "\n".join(code_blocks(text)) or text
    return all(code.count(a) == code.count(b) for a, b in ("{}", "[]"))


Form = Literal["call", "code", "option", "label", "result", "prose"]
_JSON_START = re.compile(r"[{\[]\s*[{\[\"]")
_MOST_VALUES = 200  # bounds the search in texts full of open brackets
FORMS: tuple[Form, ...] = get_args(Form)


def form_of(original: str, prompt: str) -> Form:
    if call(original) is not None or json_calls(original):
        return "call"
    if looks_like_code(original):
        return "code"
    if option_reasons(original, original, prompt) is not None:
        return "option"
    if final_answer(original) is not None:
        return "result"
    return "label" if is_label(original) else "prose"


def task_reasons(original: str, rewrite: str, prompt: str) -> tuple[str, ...]:
    """What the rewrite lost of that by which the original would be judged."""
    match form_of(original, prompt):
        case "call":
            reasons = _call_reasons(original, rewrite)
        case "code":
            return code_reasons(original, rewrite)
        case "option":
            return option_reasons(original, rewrite, prompt) or ()
        case "result":
            reasons = () if keeps_final_answer(original, rewrite) else ("lost-answer",)
        case "label":
            reasons = label_reasons(original, rewrite, prompt)
        case "prose":
            turned = ("lost-label",) if turned_round(original, rewrite) else ()
            reasons = (*compare_facts(original, rewrite, prompt).reasons, *turned)
            before, after = language_of(original), language_of(rewrite)
            if before and after and before != after:
                reasons = (*reasons, "changed-language")
    return reasons


def json_calls(text: str) -> tuple[str, ...]:
    """Function calls written as JSON, in one spelling: `{"name": f, "arguments": {…}}`, alone, in a
    list, in OpenAI's or in Hermes' form."""
    spellings = [spelled for value in _json_values(text) for spelled in _calls_in(value)]
    return tuple(sorted(spellings))


def _call_reasons(original: str, rewrite: str) -> tuple[str, ...]:
    if wanted := json_calls(original):
        given = json_calls(rewrite)
    else:
        asked = call(original) or ""
        head = asked.partition("(")[0] + "("
        wanted = (asked,)
        # Calls may stand inside others (print), and be said again in an explanation.
        given = tuple({c for whole in calls(rewrite) for c in _inside(whole, head)})
    if not set(wanted) <= set(given):
        return ("lost-call",)
    return ("other-call",) if set(given) - set(wanted) else ()


def _inside(whole: str, head: str) -> Iterator[str]:
    if whole.startswith(head):
        yield whole
        return
    inner = whole[whole.index("(") + 1 : -1]
    for nested in calls(inner):
        yield from _inside(nested, head)


def _json_values(text: str) -> Iterator[object]:
    decoder = json.JSONDecoder()
    at = 0
    for _ in range(_MOST_VALUES):
        start = _JSON_START.search(text, at)
        if start is None:
            return
        try:
            value, at = decoder.raw_decode(text, start.start())
        except (ValueError, RecursionError):
            at = start.end()
            continue
        yield value


def _calls_in(value: object) -> Iterator[str]:
    if isinstance(value, list):
        for each in cast("list[object]", value):
            yield from _calls_in(each)
    if not isinstance(value, dict):
        return
    held = cast("dict[str, Any]", value)
    if "tool_calls" in held or isinstance(held.get("function"), dict):
        yield from _calls_in(held.get("tool_calls", held.get("function")))
        return
    given = held.get("arguments", held.get("parameters"))
    if not isinstance(held.get("name"), str) or given is None:
        return
    if isinstance(given, str):  # OpenAI writes the arguments as JSON inside JSON
        with suppress(ValueError, RecursionError):
            given = json.loads(given)
    if isinstance(given, (dict, str)):
        yield json.dumps([held["name"], given], sort_keys=True)
