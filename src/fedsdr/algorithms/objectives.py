"""Objectives by name, added to any algorithm's loss (the recipe's `algorithm.objectives`)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, cast

from fedsdr.errors import RecipeError, nearest, shown
from fedsdr.parts.algorithm import Algorithm
from fedsdr.parts.align import Rectified, SelfAug
from fedsdr.parts.objectives import Objective, Sum

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
