"""YAML as a tree of keys: read strictly, written so that it reads back, and changed key by key.

What a plain word means is decided in one place, `MEANINGS`, for reading and for writing. It is the
core of YAML 1.2: numbers are decimal, and `yes`, `off`, `1:30`, `010`, `0x1f`, `1_000` and
`2026-01-01` are text. A key is always text, as it is written.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, NoReturn, cast

import yaml

from fedsdr.errors import RecipeError
from fedsdr.runs.plain import read_plain, user_path

LARGEST = 10**6  # characters of a file
MOST_VALUES = 50_000  # of a file, keys included
DEEPEST = 30
DIGITS = 40  # of a number

MEANINGS: Mapping[str, str] = {
    "null": "~|null|Null|NULL|",
    "bool": "true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?(?:0|[1-9][0-9]*)",
    "float": r"[-+]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
}
_PATTERNS = {kind: re.compile(rf"(?:{words})\Z") for kind, words in MEANINGS.items()}


class _Dumper(yaml.SafeDumper):
    """Quotes what is read as something else than text, here or by a reader of YAML 1.1."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _quoted(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    # In other quotes PyYAML folds these line ends, and reads a space where there was one.
    style = '"' if _UNUSUAL.search(text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_UNUSUAL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff]")
_Dumper.add_representer(str, _quoted)
for _kind, _pattern in _PATTERNS.items():
    _Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", _pattern, [None])


def dump_yaml(tree: Mapping[str, Any]) -> str:
    """YAML that `load_yaml` reads back to the same tree."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def load_yaml(text: str, name: str) -> Any:
    """The one value in a YAML text: mappings, lists, text, numbers, true, false and null."""
    if len(text) > LARGEST:
        raise RecipeError(f"{name} has {len(text):,} characters; at most {LARGEST:,} are read")
    try:
        return _Reader(text, name).document()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        last = text.rstrip().count("\n")  # what ends too early ends on its last line
        line = f", line {min(mark.line, last) + 1}" if mark is not None else ""
        raise RecipeError(f"{name}{line}: not valid YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise RecipeError(f"{name}: not valid YAML: {error}") from None


def read_yaml(path: str | Path, otherwise: str) -> Any:
    """The value in a YAML file, with or without a byte-order mark. `otherwise`: what to do where
    there is no such file."""
    file = user_path(path, RecipeError)
    if file.is_dir():
        raise RecipeError(f"{file} is a folder; name the recipe file in it (recipe.yaml)")
    try:
        text = read_plain(file, LARGEST, RecipeError).decode("utf-8-sig")
    except FileNotFoundError:
        raise RecipeError(f"{file} does not exist; {otherwise}") from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{file} cannot be read: {error}; save it as UTF-8") from None
    return load_yaml(text, str(file))


class _Reader:
    """From a parser's events to the value: no recursion without end, and every text has a line."""

    def __init__(self, text: str, name: str) -> None:
        # The parser in C is ten times as fast, where PyYAML has it.
        loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        self.events: Iterator[Any] = iter(yaml.parse(text, Loader=loader))
        self.name, self.values = name, 0
        self.anchors = dict[str, tuple[Any, int]]()  # and how many values there are in it

    def document(self) -> Any:
        value, documents = None, 0
        for event in self.events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    self.refuse(event, "there is a second document; a file holds one")
                value = self.value(next(self.events), 0)
        return value

    def value(self, event: Any, depth: int) -> Any:
        self.check(event, depth)
        if isinstance(event, yaml.AliasEvent):
            return self.repeated(event, depth)
        before = self.values
        if isinstance(event, yaml.ScalarEvent):
            value: Any = self.scalar(event)
        elif isinstance(event, yaml.SequenceStartEvent):
            value = self.items(depth + 1)
        else:
            value = self.mapping(depth + 1)
        if event.anchor is not None:
            self.anchors[event.anchor] = value, self.values - before
        return value

    def repeated(self, event: Any, depth: int) -> Any:
        """What stands at the anchor, counted as if it were written out."""
        if event.anchor not in self.anchors:
            self.refuse(event, f"there is no anchor &{event.anchor[:100]} before this")
        value, values = self.anchors[event.anchor]
        self.values += values
        self.check(event, depth + _height(value))
        return deepcopy(value)

    def items(self, depth: int) -> list[Any]:
        values = list[Any]()
        while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
            values.append(self.value(event, depth))
        return values

    def mapping(self, depth: int) -> dict[str, Any]:
        values = dict[str, Any]()
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            self.check(event, depth)
            if not isinstance(event, yaml.ScalarEvent):
                self.refuse(event, "a key must be text, not a list or a mapping")
            key = str(event.value)
            if not key:
                self.refuse(event, "a key is missing before the colon")
            if key in values:
                self.refuse(event, f"key {key[:100]!r} is given twice")
            values[key] = self.value(next(self.events), depth)
        return values

    def scalar(self, event: Any) -> Any:
        text = str(event.value)
        if not event.implicit[0] or event.style:  # in quotes, or a block
            return text
        kind = next((kind for kind, words in _PATTERNS.items() if words.match(text)), None)
        if kind in ("int", "float"):
            return self.number(event, text, kind)
        return {None: text, "null": None, "bool": text.lower() == "true"}[kind]

    def number(self, event: Any, text: str, kind: str) -> int | float:
        if len(text) > DIGITS:
            self.refuse(event, f"a number of {len(text)} characters; text goes in quotes")
        if kind == "int":
            return int(text)
        value = float(re.sub(r"\.(?=[iInN])", "", text))  # .inf and .nan
        digits = re.split("[eEiInN]", text)[0]
        lost = math.isinf(value) if re.search("[0-9]", digits) else False
        if lost or (not value and re.search("[1-9]", digits)):
            self.refuse(event, f"{text} is beyond what a number can be; text goes in quotes")
        return value

    def check(self, event: Any, depth: int) -> None:
        self.values += 1
        if self.values > MOST_VALUES:
            self.refuse(event, f"more than {MOST_VALUES:,} keys and values")
        if depth > DEEPEST:
            self.refuse(event, f"nested more than {DEEPEST} deep")
        if not isinstance(event, yaml.AliasEvent) and event.tag is not None:
            self.refuse(event, f"tags ({event.tag[:100]}) are not read; write the value alone")

    def refuse(self, event: Any, problem: str) -> NoReturn:
        raise RecipeError(
            f"{self.name}, line {event.start_mark.line + 1}: not valid YAML: {problem}"
        )


def _height(value: Any) -> int:
    below = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(_height, cast("Iterable[Any]", below)), default=-1)


def apply_change(tree: dict[str, Any], change: str) -> None:
    """`training.lr=1e-3` -> tree["training"]["lr"] = 0.001."""
    path, equals, value = change.partition("=")
    if not equals or not path.strip():
        raise RecipeError(
            f"--set {change[:200]!r}: write it as key=value, such as training.lr=0.001"
        )
    path = path.strip()
    set_key(tree, path, load_yaml(value, f"--set {path[:200]}"), f"--set {change[:200]!r}")


def set_key(tree: dict[str, Any], path: str, value: Any, where: str) -> None:
    """tree["training"]["lr"] for "training.lr"; `where` begins the message where that cannot be."""
    *parents, last = path.split(".")
    if len(parents) > DEEPEST:
        raise RecipeError(f"{where}: the key has {len(parents) + 1} parts; none is so deep")
    for parent in parents:
        if tree.get(parent) is None:
            tree[parent] = {}
        below: Any = tree[parent]
        if not isinstance(below, dict):
            raise RecipeError(f"{where}: {parent!r} holds a value, not further keys")
        tree = cast(dict[str, Any], below)
    tree[last] = value
