"""Answers that can be checked by their form: final answers, option letters, calls, code, sums."""

from __future__ import annotations

import ast
import json
import re
import warnings
from itertools import pairwise

from fedsdr.text.facts import last_number, numbers
from fedsdr.text.languages import language_of
from fedsdr.text.names import code_blocks, words

_MARKED = re.compile(
    r"(?:^[ \t]*\#{4}|\\boxed\{|\b(?:answer|correct (?:option|choice))(?:[ \t]+is\b[ \t]*:?|:)"
    r"|\bAntwort(?:[ \t]+(?:ist|lautet)\b[ \t]*:?|:)|\bréponse(?:[ \t]+est\b[ \t]*:?|[ \t]?:)"
    r"|\brespuesta(?:[ \t]+(?:final[ \t]+)?es\b[ \t]*:?|:)|(?:答案|答)[ \t]*(?:是|为|[:：]))"
    r"[ \t]*(?:(?:option|choice)[ \t]+)?(?=([^\n}]{1,200}))",
    re.IGNORECASE | re.MULTILINE,
)
_LONGEST_CALL = 1000  # characters: with the next, bounds the search in texts of open brackets
_MOST_UNCLOSED = 100
_LONGEST_ANSWER = 6  # words: what is longer is a statement, not an answer to compare
_CLAUSE_END = re.compile(r"(?<=\w)(?:[.;](?=\s|$)|[。；，])")
_OPTION = re.compile(r"\(?([A-J])(?:\)|[.:,](?=\s|$)|(?=\s*$))")
_CALL = re.compile(r"(?<![\w.])[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*\(")
_API_CALL = re.compile(r"[\w]+\.[\w.]+\(|[(,]\w+=(?!=)")
# Unfenced code, by one line that prose does not contain.
_CODE_LINE = re.compile(
    r"^\s*(?:(?:async )?def \w+\(|class \w+\s*[:({]|from [\w.]+ import |import [\w.]+;?$|#include\b"
    r"|(?:public|private|static) [\w<>\[\] ]+[({=;]|function\s*\w*\(|(?:var|let|const) \w+\s*[=:;]"
    r"|(?:for|while|if|switch)\s*\(.*\)\s*\{?$|for \w+(?:, ?\w+)* in .+:$"
    r"|(?:while|if) .*[=<>()].*:$|(?:return|break|continue|echo)\b.*;$"
    r"|[\w.\[\]'\"]+\s*[-+*/]?=\s*(?:[\[{]|[A-Za-z_][\w.]+[\[(])|[A-Za-z_][\w.]*\([^()\n]*\);?$"
    r"|SELECT\s.+\sFROM\s|INSERT INTO |UPDATE \w+ SET|CREATE TABLE |<\?php|<!DOCTYPE)"
    r"|</[a-z]\w*>|<[a-z]\w* [\w-]+=|[)}\]\"'];\s*$|\{\s*$"
)
_QUERY = re.compile(r"^[^\S\n]*SELECT\s[^;]{1,300}?\n\s*FROM\s", re.MULTILINE)
# An operation before `=`, or a variable of one letter.
_LEFT_OF_EQUALS = re.compile(
    r"(?:[-\u2013\u2212+*/\u00d7\u00f7^]|\dx|\sx)\s*[$€£(]*\d[\d.,]*%?"
    r"(?:[ /]*[A-Za-z]+){0,4}[\s)]*$"
    r"|(?:^|[\s(])[a-z]\s*$"
)
_RIGHT_OF_EQUALS = re.compile(r"\s*[$€£(]*[-\u2013\u2212]?(?:\d|[a-z]\b)")
_FORMULA = re.compile(r"\\(?:frac|sqrt|boxed|begin\{)|\d\s*[\u00d7\u00f7*+]\s*\d")


def has_checkable_form(response: str) -> bool:
    """Whether something in it must survive literally: code, a call, a final answer, a calculation.

    A bare record (JSON or `key: value`) is a style, not a form.
    """
    if _is_record(response):
        return False
    return (
        looks_like_code(response)
        or call(response) is not None
        or any(_API_CALL.search(called) for called in calls(response))
        or marked_answer(response) is not None
        or has_arithmetic(response)
    )


def final_answer(text: str) -> str | None:
    """The answer a text commits to: the last marked one (`#### 18`, `The answer is B.`), an option
    letter or a number alone, or the last number of a calculation. Numbers are normalised."""
    marked = marked_answer(text)
    if marked is not None:
        return marked
    bare = text.strip()
    alone = numbers(bare)
    if len(alone) == 1 and len(words(bare)) <= 3 and bare.strip("$€£%. \t,0123456789-") == "":
        return next(iter(alone))
    return last_number(text) if has_arithmetic(text) else None


def marked_answer(text: str) -> str | None:
    """The final answer where the text says that it is one, or is nothing but an option."""
    marked = _MARKED.findall(text)
    answer = _CLAUSE_END.split(marked[-1].strip())[0] if marked else text.strip()
    option = _OPTION.match(marked[-1].strip(" \t*`$") if marked else answer)
    if option and (marked or len(words(text)) == 1):
        return option[1]
    if not marked or not 0 < len(words(answer)) <= _LONGEST_ANSWER:
        return None
    return last_number(answer, language_of(text)) or " ".join(words(answer))


def keeps_final_answer(original: str, rewrite: str) -> bool:
    answer = final_answer(original)
    if answer is None:
        return True
    given = final_answer(rewrite)
    if given == answer:
        return True
    if len(answer) == 1 and answer.isupper():
        return given is None and re.search(rf"(?<!\w){answer}(?=[).:,]|\s*$)", rewrite) is not None
    if answer in numbers(answer):
        return given is None and last_number(rewrite) == answer
    return set(words(answer)) <= set(words(given if given is not None else rewrite))


def call(text: str) -> str | None:
    """The call that the whole text consists of, normalised."""
    bare = text.strip().strip("`").strip()
    outermost = calls(bare)
    return (
        outermost[0]
        if outermost and bare.endswith(")") and outermost[0] == normal_call(bare)
        else None
    )


def calls(text: str) -> tuple[str, ...]:
    """All outermost calls in a text, normalised."""
    outermost: list[str] = []
    at = unclosed = 0
    while unclosed < _MOST_UNCLOSED and (head := _CALL.search(text, at)) is not None:
        end = _closing(text, head.end())
        if end is None:
            at = head.end()
            unclosed += 1
            continue
        outermost.append(normal_call(text[head.start() : end]))
        at = end
    return tuple(outermost)


def normal_call(text: str) -> str:
    """One spelling for `f( b=1, a = 'x' )` and `f(a="x",b=1)`: keywords by name, no blanks outside
    strings, double quotes. What is not Python keeps its order."""
    try:
        with warnings.catch_warnings(action="ignore"):  # "invalid escape sequence" quotes the text
            text = ast.unparse(_Sorted().visit(ast.parse(text.strip(), mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        pass  # such as f(id=us-west-2:1)
    out: list[str] = []
    quote = ""
    for char in text:
        if quote:
            out.append('"' if char == quote else char)
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
            out.append('"')
        elif not char.isspace():
            out.append(char)
    return "".join(out)


class _Sorted(ast.NodeTransformer):
    def visit_Call(self, node: ast.Call) -> ast.Call:
        self.generic_visit(node)
        node.keywords.sort(key=lambda keyword: keyword.arg or "")
        return node


def looks_like_code(text: str) -> bool:
    if code_blocks(text):
        return True
    if _is_record(text):
        return False
    if _QUERY.search(text):
        return True
    return any(_CODE_LINE.search(line) for line in text.splitlines())


def has_arithmetic(text: str) -> bool:
    """An equation with an operation or a lone variable on its left, or a formula."""
    if _FORMULA.search(text):
        return True
    for line in text.splitlines():
        sides = line.split("=")
        for left, right in pairwise(sides):
            # 60 characters hold any left operand, and keep long lines linear.
            if _LEFT_OF_EQUALS.search(left[-60:]) and _RIGHT_OF_EQUALS.match(right):
                return True
    return False


def _is_record(text: str) -> bool:
    bare = text.strip()
    if bare[:1] not in ("{", "["):
        return False
    try:
        json.loads(bare)
    except (ValueError, RecursionError):
        return False
    return True


def _closing(text: str, start: int) -> int | None:
    """Just behind the bracket that closes the one before `start`, within a sane distance."""
    depth, quote = 1, ""
    for at in range(start, min(len(text), start + _LONGEST_CALL)):
        char = text[at]
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char in "()":
            depth += 1 if char == "(" else -1
            if depth == 0:
                return at + 1
    return None
