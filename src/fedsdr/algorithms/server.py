"""The server's rule of a recipe, over any algorithm: robust means and filters, by name.

Objectives by name, added to any algorithm's loss (the recipe's `algorithm.objectives`).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar, cast

from fedsdr.errors import RecipeError, nearest, shown
from fedsdr.parts.algorithm import Algorithm
from fedsdr.parts.combine import Combine, Filter, Mean
from fedsdr.parts.control import Controlled
from fedsdr.parts.lora_rules import Rectified, SelfAug
from fedsdr.parts.objectives import Objective, Sum
from fedsdr.parts.robust import CoordinateMedian, GeometricMedian, Krum, NormClip, TrimmedMean

Rule = TypeVar("Rule", Combine, Filter)


def with_server_rule(
    algorithm: Algorithm, combine: str | None = None, filters: Sequence[str] = ()
) -> Algorithm:
    """The same algorithm with another rule in place of the mean, and with filters before its rule.

    `combine`: mean (the algorithm's own) | median | trimmed_mean(share) | geometric_median.
    `filters`, in the order given: krum(f) | multi_krum(f, keep) | clip(limit) | clip (to the median
    of the round's norms).
    """
    named = [algorithm.name]
    if combine not in (None, "mean"):
        _require_updates(algorithm, "server.combine")
        if not isinstance(algorithm.combine, Mean):
            raise RecipeError(
                f"server.combine: {combine!r} would replace {type(algorithm.combine).__name__}, "
                f"the server's rule that makes algorithm {algorithm.name!r} what it is; only the "
                "plain mean can be replaced. Leave it out, or take another algorithm"
            )
        name, rule = _parse("server.combine", combine, _COMBINES)
        algorithm = replace(algorithm, combine=rule)
        named.append(name)
    if filters and isinstance(algorithm.combine, Controlled):
        raise RecipeError(
            f"server.filters: clients of {algorithm.name} keep the control variates they send, so "
            "what is changed or left out on the way in would never agree again; leave it out"
        )
    for text in filters:
        _require_updates(algorithm, "server.filters")
        name, sift = _parse("server.filters", text, _FILTERS)
        algorithm = replace(algorithm, filters=(*algorithm.filters, sift))
        named.append(name)
    return replace(algorithm, name="~".join(named))


@dataclass(frozen=True, slots=True)
class _Known(Generic[Rule]):
    """How a rule is made from its arguments; the last `optional` of these may be left out."""

    example: str
    make: Callable[..., Rule]
    takes: tuple[type[int] | type[float], ...] = ()
    optional: int = 0


_COMBINES: Mapping[str, _Known[Combine]] = {
    "median": _Known("median", CoordinateMedian),
    "trimmed_mean": _Known("trimmed_mean(0.2)", TrimmedMean, (float,)),
    "geometric_median": _Known("geometric_median", GeometricMedian),
}
_FILTERS: Mapping[str, _Known[Filter]] = {
    "krum": _Known("krum(1)", Krum, (int,)),
    "multi_krum": _Known("multi_krum(1, 3)", Krum, (int, int)),
    "clip": _Known("clip or clip(1.0)", NormClip, (float,), optional=1),
}
_CALL = re.compile(r"([^()\s]+)\s*(?:\(([^()]*)\))?")
_WHOLE = re.compile(r"[+-]?[0-9]{1,9}")
_DECIMAL = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")


def _parse(key: str, text: str, known: Mapping[str, _Known[Rule]]) -> tuple[str, Rule]:
    """The rule, and its name in one spelling: "multi_krum(1,3)"."""
    call = _CALL.fullmatch(text.strip())
    name = call[1] if call else text
    if call is None or name not in known:
        there = ", ".join(entry.example for entry in known.values())
        split = text.count("(") > text.count(")")  # at the comma, by YAML
        quotes = ' What has a comma is written in quotes: "multi_krum(1, 3)".' if split else ""
        raise RecipeError(
            f"{key}: {text!r} is unknown; there are {there}.{quotes or nearest(name, known)}"
        )
    entry, given = known[name], [word.strip() for word in (call[2] or "").split(",")]
    words = [] if given == [""] else given
    least = len(entry.takes) - entry.optional
    if not least <= len(words) <= len(entry.takes):
        raise RecipeError(
            f"{key}: {text!r} has the wrong number of arguments, {len(words)}; it is written "
            f"{entry.example}"
        )
    values = [
        _number(key, text, entry.example, word, kind)
        for word, kind in zip(words, entry.takes, strict=False)
    ]
    written = f"({','.join(map(str, values))})" if values else ""
    return name + written, entry.make(*values)


def _number(
    key: str, text: str, example: str, word: str, kind: type[int] | type[float]
) -> int | float:
    if kind is float and _DECIMAL.fullmatch(word):
        return float(word)
    if kind is int and _WHOLE.fullmatch(word):  # Python refuses to read thousands of digits
        return int(word)
    what = "number" if kind is float else "whole number"
    raise RecipeError(f"{key}: {word!r} in {text!r} is no {what}; it is written {example}")


def _require_updates(algorithm: Algorithm, key: str) -> None:
    if algorithm.pool:
        raise RecipeError(
            f"{key}: algorithm {algorithm.name!r} pools all data in one place, so that there is "
            "one update only; leave it out"
        )
    if not algorithm.share:
        raise RecipeError(
            f"{key}: algorithm {algorithm.name!r} shares nothing, so that there is nothing to "
            "combine; leave it out"
        )


KEY = "algorithm.objectives"
KNOWN: Mapping[str, Callable[..., Objective]] = {"selfaug": SelfAug, "rectified": Rectified}

RANGES = {"weight": (0.0, 1e12), "temperature": (0.01, 1000.0)}


def with_objectives(algorithm: Algorithm, chosen: Mapping[str, Any]) -> Algorithm:
    """The same algorithm, all of whose terms minimise these objectives too. `chosen`: name and
    weight, or name and options; what weighs nothing is left out.

        {"selfaug": 0.5, "rectified": {"weight": 0.5, "temperature": 2.0}}
    """
    given = {name: _options(name, value) for name, value in chosen.items()}
    added = {n: KNOWN[n](**options) for n, options in given.items() if options["weight"]}
    if not added:
        return algorithm
    stages = tuple(
        replace(
            stage,
            terms=tuple(
                replace(term, objective=Sum((term.objective, *added.values())))
                for term in stage.terms
            ),
        )
        for stage in algorithm.stages
    )
    return replace(algorithm, name="~".join([algorithm.name, *added]), stages=stages)


def _options(name: str, value: Any) -> Mapping[str, float]:
    """An objective's options, checked."""
    if name not in KNOWN:
        raise RecipeError(
            f"{KEY}: {name!r} is unknown; there are {', '.join(KNOWN)}.{nearest(name, KNOWN)}"
        )
    takes = list(inspect.signature(KNOWN[name]).parameters)
    options = cast(dict[str, Any], value) if isinstance(value, dict) else {"weight": value}
    for option in options:
        if option not in takes:
            raise RecipeError(
                f"{KEY}.{name} has no option {option!r}; its options are {', '.join(takes)}."
                f"{nearest(str(option), takes)}"
            )
    if "weight" not in options:
        raise RecipeError(f"{KEY}.{name} needs a weight, such as {name}: 0.5")
    for option, number in options.items():
        plain = isinstance(number, int | float) and not isinstance(number, bool)
        least, most = RANGES[option]
        if not plain or not least <= number <= most:
            raise RecipeError(
                f"{KEY}.{name}.{option} must be a number from {least:g} to {most:g}, "
                f"it is {shown(number)}"
            )
    return options
