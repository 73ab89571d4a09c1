"""What the options of an algorithm may be: types and ranges, and none that would do nothing.

@checked
def fedprox(mu: Weight = 0.01) -> Algorithm: ...
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from typing import Annotated, Any, ParamSpec

from pydantic import ConfigDict, Field, ValidationError, validate_call

from fedsdr.errors import RecipeError, shown
from fedsdr.parts.algorithm import Algorithm

P = ParamSpec("P")

Share = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Weight = Annotated[float, Field(ge=0, le=1e12)]  # of a term in a loss
Rate = Annotated[float, Field(gt=0, le=1e6)]
Temperature = Annotated[float, Field(ge=0.01, le=1000)]
Epochs = Annotated[float, Field(gt=0, le=10_000)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Every = Annotated[int, Field(ge=0, le=1_000_000)]  # rounds; 0: never
BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


def checked(factory: Callable[P, Algorithm]) -> Callable[P, Algorithm]:
    """The same factory, which refuses options of another type or out of range by name."""
    strict: Callable[..., Algorithm] = validate_call(config=ConfigDict(strict=True))(factory)
    takes = inspect.signature(factory)

    @wraps(factory)
    def careful(*args: P.args, **given: P.kwargs) -> Algorithm:
        try:
            return strict(**takes.bind(*args, **given).arguments)
        except ValidationError as error:
            raise RecipeError(_in_words(error)) from None

    return careful


def refuse_idle(
    factory: Callable[..., Algorithm], given: Mapping[str, Any], idle: Iterable[str], why: str
) -> None:
    """Options that would have no effect; `given` holds all of them, by name."""
    defaults = inspect.signature(factory).parameters
    if named := [option for option in idle if given[option] != defaults[option].default]:
        options, them = ", ".join(named), "it" if len(named) == 1 else "them"
        raise RecipeError(f"algorithm.{options}: no effect with {why}; leave {them} out")


def _in_words(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    option, given = "algorithm." + ".".join(map(str, first["loc"])), shown(first["input"])
    limits = first.get("ctx", {})
    for bound, words in BOUNDS.items():
        if bound in limits:
            return f"{option} must be {words} {limits[bound]:g}, it is {given}"
    return f"{option}: {first['msg']} (given: {given})"
