"""Which check an answer needs, by its form: a call, code, an option, a label, a result, prose."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Literal, cast, get_args

from fedsdr.distill.code import code_reasons
from fedsdr.text.checkable import call, calls, final_answer, keeps_final_answer, looks_like_code
from fedsdr.text.facts import compare_facts
from fedsdr.text.labels import is_label, label_reasons, option_reasons, turned_round
from fedsdr.text.languages import language_of

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
