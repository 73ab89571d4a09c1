"""Algorithms by name, from entry points (group `fedsdr.algorithms`): the built-in ones take the
same door as anybody's."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from fedsdr.algorithms.fedsd import boosted
from fedsdr.algorithms.options import checked
from fedsdr.errors import RecipeError, nearest
from fedsdr.parts.algorithm import Algorithm
from fedsdr.parts.views import Rewritten

Factory = Callable[..., Algorithm]


@cache
def factories() -> Mapping[str, Factory]:
    return {point.name: point.load() for point in entry_points(group="fedsdr.algorithms")}


def options(name: str) -> Mapping[str, Any]:
    """An algorithm's options and their defaults, read off its signature."""
    parameters = inspect.signature(_factory(name)).parameters
    return {key: parameter.default for key, parameter in parameters.items()}


def make_algorithm(
    name: str, given: Mapping[str, Any] | None = None, boost: Rewritten | None = None
) -> Algorithm:
    """The algorithm by that name with these options, boosted by FedSD where `boost` is given.

    Args:
        name: Built in, or an installed package's.
        given: Its options.
        boost: FedSD over it: the view in place of raw answers.
    """
    given, known = given or {}, options(name)
    for key in given:
        if key not in known:
            has = f"its options are {', '.join(known)}" if known else "it has none"
            raise RecipeError(
                f"algorithm {name!r} has no option {key!r}; {has}.{nearest(key, known)}"
            )
    algorithm: Any = checked(_factory(name))(**given)
    if not isinstance(algorithm, Algorithm):  # from a package that is not ours
        raise RecipeError(f"algorithm {name!r} made a {type(algorithm).__name__}, no Algorithm")
    return boosted(algorithm, boost) if boost is not None else algorithm


def _factory(name: str) -> Factory:
    if name not in factories():
        known = sorted(factories())
        raise RecipeError(
            f"algorithm {name!r} is unknown; there are {', '.join(known)}.{nearest(name, known)}"
        )
    return factories()[name]
