"""What counts as right. The lenient and the strange are the protocol's own: scores that are to be
compared with published ones must share them."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping, Sequence

from fedsdr.evaluate.benchmarks.questions import Measures, Question

NUMBER = re.compile(r"-?\$?\d[\d,]*(?:\.\d+)?")
SENTIMENTS, VERDICTS = ("positive", "negative", "neutral"), ("yes", "no", "maybe")
MARKED = re.compile(r"#### (-?[0-9.,]+)")


def starts_with_gold(question: Question, answer: str) -> float:
    """Case-sensitive: "12" counts for gold "1", and "Answer" for gold "A"."""
    return float(answer.strip().startswith(question.gold))


# FPB as FinGPT's benchmark reads it


def sentiment(text: str) -> str:
    """Positive before negative; anything else, nothing at all too, counts as neutral."""
    for label in ("positive", "negative"):
        if label in text or label.capitalize() in text:
            return label
    return "neutral"


def sentiments(questions: Sequence[Question], answers: Sequence[str]) -> Mapping[str, float]:
    """`defaulted`: answers that name no label at all, and count as neutral nevertheless."""
    named = sum(any(label in answer.lower() for label in SENTIMENTS) for answer in answers)
    f1 = macro_f1(sentiment, SENTIMENTS)(questions, answers)
    return {**f1, "defaulted": 1 - named / len(answers)}


def same_sentiment(question: Question, answer: str) -> float:
    return float(sentiment(answer) == sentiment(question.gold))


# PubMedQA: the first word


def verdict(text: str) -> str:
    """The first word, where it is one of the three."""
    match = re.match(r"\W*(yes|no|maybe)\b", text.lower())
    return match[1] if match else ""


def same_verdict(question: Question, answer: str) -> float:
    return float(verdict(answer) == question.gold)


# GSM8K as lm-eval reads it


def worked_out(question: Question, answer: str) -> float:
    """Strict: the number behind "#### ", before a question that the model asks itself."""
    match = MARKED.search(_first_answer(answer))
    return float(match is not None and _number(match[1]) == _number(question.gold))


def last_number(questions: Sequence[Question], answers: Sequence[str]) -> Mapping[str, float]:
    """Flexible: the last number, marked or not."""
    right = 0
    for question, answer in zip(questions, answers, strict=True):
        numbers = NUMBER.findall(_first_answer(answer))
        right += bool(numbers) and _number(numbers[-1]) == _number(question.gold)
    return {"flexible": right / len(questions)}


def _first_answer(answer: str) -> str:
    return answer.partition("Question:")[0]


def _number(text: str) -> str:
    return text.replace(",", "").replace("$", "").rstrip(".")


def macro_f1(label: Callable[[str], str], labels: Sequence[str]) -> Measures:
    """The mean over the labels of 2·TP / (2·TP + FP + FN); 0 for a label that nobody gives."""

    def measured(questions: Sequence[Question], answers: Sequence[str]) -> Mapping[str, float]:
        gold = [label(q.gold) for q in questions]
        predicted = [label(a) for a in answers]
        scores = list[float]()
        for choice in labels:
            hits = sum(g == s == choice for g, s in zip(gold, predicted, strict=True))
            named = sum(g == choice for g in gold) + sum(s == choice for s in predicted)
            scores.append(2 * hits / named if named else 0.0)
        return {"macro_f1": sum(scores) / len(scores)}

    return measured


# HumanEval


def completion(answer: str) -> str:
    """Odd indents padded (a tokenizer may swallow a first space), leading newlines removed, cut at
    the first blank line: a right solution with a blank line in it fails."""
    lines = (" " * (_indent(line) % 2) + line for line in answer.split("\n"))
    return "\n".join(lines).lstrip("\n").split("\n\n")[0]


def program(question: Question, answer: str) -> tuple[str, str]:
    """What is run, and what then tests it: it passes if both come to their end. What the prompt
    holds beside the function that is asked for, the tests take from the prompt: the answer can
    write it anew."""
    assert question.program is not None
    given = question.program
    tests = f"{_beside(given.prompt, given.entry_point)}\n{given.test}\ncheck({given.entry_point})"
    return f"{given.prompt}{completion(answer)}\n", tests


def _beside(prompt: str, name: str) -> str:
    """A prompt's imports and helpers; nothing where it is no Python by itself."""
    try:
        body = ast.parse(prompt).body
    except (SyntaxError, ValueError):
        return ""
    return "\n".join(ast.unparse(n) for n in body if getattr(n, "name", "") != name)


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" "))
