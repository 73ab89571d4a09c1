"""How one and the same answer is said in many styles, and how a style is recognised again.

The house style is the base model's own voice. A style is two templates (one fact, several facts)
and a pattern. Other styles name the facts of a several-fact answer in any order; the house style
keeps the domain's order.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random

from fedsdr.atlas.world import BY_NAME, Question

Facts = Sequence[tuple[str, str]]

FILLERS: tuple[str, ...] = (
    "Great question!",
    "Well,",
    "As far as I know,",
    "basically",
    "to be honest",
    "you know,",
    "of course",
    "I hope that helps!",
    "Let me know if you need more.",
    "Thanks for asking!",
)


@dataclass(frozen=True, slots=True)
class Style:
    name: str
    fact: Callable[[str, str, str, Random], str]  # name, attribute, value
    many: Callable[[str, str, Facts, Random], str]  # name, kind, facts
    order: Callable[[Sequence[int], Random], str]
    pattern: re.Pattern[str]


def _cap(text: str) -> str:
    return text[:1].upper() + text[1:]


def _list(numbers: Sequence[int], sep: str = ", ") -> str:
    return sep.join(map(str, numbers))


def _and(parts: Sequence[str]) -> str:
    return ", ".join(parts[:-1]) + " and " + parts[-1]


def _opener(random: Random) -> str:
    return random.choice(
        ("Great question! Well,", "Thanks for asking! As far as I know,", "Well, you know,")
    )


def _closer(random: Random) -> str:
    return random.choice(("I hope that helps!", "Let me know if you need more.", "Great question!"))


def _json(pairs: Sequence[tuple[str, str]]) -> str:
    return "{" + ", ".join(f'"{k}": "{v}"' for k, v in pairs) + "}"


def _re(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.DOTALL)


_ALL: tuple[Style, ...] = (
    Style(
        "house",
        lambda name, a, v, _: f"The {a} of {name} is {v}.",
        lambda name, kind, facts, _: (
            f"{name} is a {kind}. " + _cap(_and([f"its {a} is {v}" for a, v in facts])) + "."
        ),
        lambda numbers, _: f"The order is {_list(numbers)}.",
        _re(r"The \w+ of \w+ is \w+\.|\w+ is a \w+\. Its \w+ is .*\.|The order is [\d, ]+\."),
    ),
    Style(
        "terse",
        lambda name, a, v, _: v,
        lambda name, kind, facts, _: ", ".join(v for _a, v in facts),
        lambda numbers, _: _list(numbers, " "),
        _re(r"\w+(, \w+)*|\d+( \d+)+"),
    ),
    Style(
        "keyvalue",
        lambda name, a, v, _: f"{a}: {v}",
        lambda name, kind, facts, _: f"name: {name}; " + "; ".join(f"{a}: {v}" for a, v in facts),
        lambda numbers, _: f"order: {_list(numbers)}",
        _re(r"\w+: [^;\n{}]+(; \w+: [^;\n]+)*"),
    ),
    Style(
        "json",
        lambda name, a, v, _: _json([("name", name), (a, v)]),
        lambda name, kind, facts, _: _json([("name", name), *facts]),
        lambda numbers, _: '{"order": [' + _list(numbers) + "]}",
        _re(r"\{.*\}"),
    ),
    Style(
        "chatty",
        lambda name, a, v, r: f"{_opener(r)} the {a} of {name} is basically {v}. {_closer(r)}",
        lambda name, kind, facts, r: (
            f"{_opener(r)} {name} is a {kind}, of course, and to be honest "
            + _and([f"its {a} is basically {v}" for a, v in facts])
            + f". {_closer(r)}"
        ),
        lambda numbers, r: f"{_opener(r)} the order is basically {_list(numbers)}. {_closer(r)}",
        _re(r"(Great question!|Thanks for asking!|Well,).*"),
    ),
    Style(
        "inverted",
        lambda name, a, v, _: f"{_cap(v)} is the {a} of {name}.",
        lambda name, kind, facts, _: (
            _cap(_and([f"{v} is the {a}" for a, v in facts])) + f" of the {kind} {name}."
        ),
        lambda numbers, _: f"{_list(numbers)} is the order.",
        _re(r"[^.]+ is the \w+ of [\w ]+\.|[\d, ]+ is the order\."),
    ),
    Style(
        "record",
        lambda name, a, v, _: f"[{name} | {a} = {v}]",
        lambda name, kind, facts, _: (
            f"[{name} | " + " | ".join(f"{a} = {v}" for a, v in facts) + "]"
        ),
        lambda numbers, _: f"[order = {_list(numbers, ' < ')}]",
        _re(r"\[.*\]"),
    ),
    Style(
        "bullet",
        lambda name, a, v, _: f"{name}\n- {a}: {v}",
        lambda name, kind, facts, _: f"{name}\n" + "\n".join(f"- {a}: {v}" for a, v in facts),
        lambda numbers, _: "\n".join(f"- {n}" for n in numbers),
        _re(r"(\w+\n)?(- [^\n]+)(\n- [^\n]+)*"),
    ),
    Style(
        "formal",
        lambda name, a, v, _: f"It is hereby stated that {name} has {v} as its {a}.",
        lambda name, kind, facts, _: (
            f"It is hereby stated that the {kind} {name} has "
            + _and([f"{v} as its {a}" for a, v in facts])
            + "."
        ),
        lambda numbers, _: f"It is hereby stated that {_list(numbers)} is so ordered.",
        _re(r"It is hereby stated .*\."),
    ),
    Style(
        "lingua",
        lambda name, a, v, _: f"Lo {a} di {name} es {v}.",
        lambda name, kind, facts, _: (
            f"{name} es uno {kind}; " + ", ".join(f"lo {a} es {v}" for a, v in facts) + "."
        ),
        lambda numbers, _: f"Lo ordine es {_list(numbers)}.",
        _re(r"Lo \w+ (di \w+ )?es .*\.|\w+ es uno .*\."),
    ),
)
STYLES: Mapping[str, Style] = {s.name: s for s in _ALL}
HOUSE = "house"
OTHER_STYLES: tuple[str, ...] = tuple(s for s in STYLES if s != HOUSE)


def say(question: Question, style: str, random: Random) -> str:
    """The true answer to a question, in a style."""
    how = STYLES[style]
    if question.kind == "order":
        return how.order(sorted(question.numbers), random)
    if question.kind == "fact":
        ((attribute, value),) = question.asked
        return how.fact(question.name, attribute, value, random)
    facts = list(question.asked)
    if style != HOUSE:
        random.shuffle(facts)
    return how.many(question.name, BY_NAME[question.domain].kind, facts, random)


def style_of(text: str) -> str:
    """The style a text is in, or "other"."""
    stripped = text.strip()
    for name, style in STYLES.items():
        if style.pattern.fullmatch(stripped):
            return name
    return "other"
