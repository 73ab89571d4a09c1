"""What is wrong with a tree of keys, in words: pydantic's findings without Python's names."""

from __future__ import annotations

import re
from typing import Any

from pydantic import BaseModel, ValidationError

from fedsdr.errors import LINES, cut_line, nearest, shown


def told(error: ValidationError, root: type[BaseModel], name: str, above: str = "") -> str:
    """A line for each mistake, as far as anybody reads. `above`: the key that holds `root`."""
    every = error.errors(include_url=False)
    lines = [f"{name}: {_explain(mistake, root, above)}" for mistake in every[:LINES]]
    if len(every) > LINES:
        lines[LINES - 1 :] = [f"… and {len(every) - LINES + 1:,} more mistakes"]
    return "\n".join(lines)


def _explain(error: Any, root: type[BaseModel], above: str) -> str:
    # Of a key that may hold one or the other, pydantic adds which of them it tried.
    tried = re.compile(r"(list|dict|constrained-\w+|function-\w+)\[.*\]?|constrained-\w+")
    parts = [str(part) for part in error["loc"] if not tried.fullmatch(str(part))]
    is_key = "[key]" in parts
    where = ".".join([*filter(None, [above]), *(cut_line(p, 100) for p in parts if p != "[key]")])
    if where == "sweep" and not above:
        return "the key `sweep` makes this a sweep, which `fedsdr sweep` runs"
    if error["type"] == "extra_forbidden":
        section: Any = root
        for part in error["loc"][:-1]:
            section = _section(section, part)
        known = list(section.model_fields) if section is not None else []
        guess = nearest(str(error["loc"][-1]), known)
        return f"unknown key {where!r}.{guess} Known here: {', '.join(known)}"
    message = ("as a key, " if is_key else "") + _message(error)
    given = error.get("input")
    plain = isinstance(given, (str, int, float, bool, type(None)))
    ending = f" (given: {shown(given, 200)})" if plain else ""
    return f"{where}: {message}{ending}" if where else message


def _message(error: Any) -> str:
    kind = error["type"]
    if kind in ("dict_type", "model_type"):
        return "must be a mapping, such as {key: value}, or {}"
    if kind == "list_type":
        return "must be a list, such as [a, b]"
    if kind == "bool_type":
        return "must be true or false"
    return str(error["msg"]).removeprefix("Value error, ")


def _section(section: Any, key: Any) -> Any:
    """The model class of a key, through `X | None`."""
    field = section.model_fields.get(key) if section is not None else None
    if field is None:
        return None
    choices = getattr(field.annotation, "__args__", (field.annotation,))
    return next((c for c in choices if isinstance(c, type) and issubclass(c, BaseModel)), None)
