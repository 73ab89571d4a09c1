"""What a recipe may hold: numbers between two bounds, texts and lists that have an end, paths that
can be one. No bound is near what anybody means; what is beyond is misspelt, or hostile.

What is wrong with a tree of keys, in words: pydantic's findings without Python's names.

Who may be sent records: this machine, and hosts that are allowed by name.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from typing import Annotated, Any, cast
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, Field, ValidationError

from fedsdr.errors import LINES, RecipeError, cut_line, nearest, shown
from fedsdr.runs.plain import user_path

LONGEST = 4096  # characters of a text
MOST = 10_000  # items of a list or a mapping; clients, too
DEEPEST = 8  # of lists and mappings in an algorithm's options
GREATEST, LEAST = 1e15, 1e-30  # sizes of a number that has no bound of its own
ASKED = 1_000_000  # answers of clients in a whole run
STEPS = 1_000_000  # of one client in one round
ATLAS_CLIENTS, ATLAS_EXAMPLES = 8, 50  # of each client, where nobody says otherwise
MOST_EXAMPLES = 50_000  # of all clients: the embedded world has names for so many and more


def _text(text: str) -> str:
    if "\0" in text:
        raise ValueError("must not hold a NUL character")
    if re.search("[\ud800-\udfff]", text):
        raise ValueError("must not hold half of a surrogate pair, which is no text")
    return text


def _path(text: str) -> str:
    try:
        user_path(text, RecipeError)
    except RecipeError as error:
        raise ValueError(str(error)) from None
    return text


def _free(value: Any) -> Any:
    if problem := _problem(value, "", 0):
        raise ValueError(problem)
    return value


def _problem(value: Any, at: str, depth: int) -> str | None:
    """What is wrong with a value that no type describes, or with one below it."""
    if depth > DEEPEST:
        return f"is nested more than {DEEPEST} deep"
    if isinstance(value, Mapping):
        return _problem_below(cast("Mapping[Any, Any]", value), at, depth)
    if isinstance(value, list | tuple):
        return _problem_below(dict(enumerate(cast("list[Any]", value))), at, depth)
    wrong = _wrong(value)
    return f"{at[1:]} {wrong}".strip() if wrong else None


def _problem_below(items: Mapping[Any, Any], at: str, depth: int) -> str | None:
    if len(items) > MOST:
        return f"{at[1:]} has {len(items):,} items; at most {MOST:,} are taken".strip()
    for key, value in items.items():
        if isinstance(key, str) and (wrong := _wrong(key)):
            return f"{at[1:]} has a key that {wrong}".strip()
        if problem := _problem(value, f"{at}.{key}", depth + 1):
            return problem
    return None


def _wrong(value: Any) -> str | None:
    if isinstance(value, str):
        if len(value) > LONGEST:
            return f"is text of {len(value):,} characters; at most {LONGEST:,} are taken"
        try:
            _text(value)
        except ValueError as error:
            return str(error)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        size = abs(value)
        if not math.isfinite(size) or size > GREATEST or 0 < size < LEAST:
            return f"must be a number of size 0 or {LEAST:g} to {GREATEST:g}"
    elif not isinstance(value, bool | None):
        return f"is a {type(value).__name__}, which no recipe can hold"
    return None


def _temperature(value: float) -> float:
    if value and not 1e-3 <= value <= 100:
        raise ValueError("must be 0, which takes the likeliest words, or from 0.001 to 100")
    return value


Text = Annotated[str, Field(max_length=LONGEST), AfterValidator(_text)]
Place = Annotated[str, Field(min_length=1), AfterValidator(_path)]
Places = Annotated[dict[Text, Place], Field(max_length=MOST)]  # by client
Words = Annotated[list[Text], Field(max_length=100)]
Free = Annotated[dict[str, Any], AfterValidator(_free)]  # what is in it, others check

Share = Annotated[float, Field(ge=0, le=1)]
Part = Annotated[float, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(gt=-(2**63), lt=2**63)]
Count = Annotated[int, Field(ge=0, le=MOST)]
Clients = Annotated[int, Field(ge=1, le=MOST)]
Rounds = Annotated[int, Field(ge=1, le=MOST)]
Steps = Annotated[int, Field(ge=1, le=100_000)]
Epochs = Annotated[float, Field(ge=1e-6, le=1000)]
Batch = Annotated[int, Field(ge=1, le=100_000)]  # rows at a time
Tokens = Annotated[int, Field(ge=1, le=10_000_000)]
Rank = Annotated[int, Field(ge=1, le=MOST)]
Size = Annotated[float, Field(ge=1e-9, le=1e9)]
Rate = Annotated[float, Field(ge=1e-12, le=1000)]
Decay = Annotated[float, Field(ge=0, le=1000)]
Seconds = Annotated[float, Field(ge=1e-3, le=86_400)]
Temperature = Annotated[float, AfterValidator(_temperature)]


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


def refusal(url: str, allow: Sequence[str]) -> str | None:
    """Why this URL may not be asked; None if it may."""
    if not re.fullmatch(r"[\x21-\x7e]+", url):
        return "must be plain ASCII without spaces: write its host as xn--…, its path with %20"
    try:
        parts = urlsplit(url)
        host, _port = parts.hostname, parts.port
    except ValueError:
        return "is not a URL, such as http://127.0.0.1:8000/v1"
    if parts.scheme not in ("http", "https") or not host:
        return "must be an http or https URL, such as http://127.0.0.1:8000/v1"
    if parts.username is not None or parts.query or parts.fragment:
        return "must hold no user, key or query; name the variable with the key in key_env"
    if not is_here(host) and host not in {name.lower() for name in allow}:
        return (
            f"{host!r} is not this machine, and rewriting sends it every record, prompt and "
            "response. If the data may go there, name it: "
            f"rewriting.engine.allow: [{json.dumps(host)}]"
        )
    return None


def is_here(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
