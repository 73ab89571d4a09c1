"""Text files and JSON as strangers write them: in pieces of bounded size, with one meaning."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from itertools import count, islice
from pathlib import Path
from typing import BinaryIO, cast

from fedsdr.data.row import quoted
from fedsdr.errors import DataError, nearest
from fedsdr.runs.plain import NamedTwice, once, open_plain

LARGEST_FILE = 2 * 10**9  # bytes, read record by record
LARGEST_WHOLE = 10**9  # bytes of what is read at once: .json and manifests
LONGEST_RECORD = 10**7  # bytes
MOST_ROWS = 2_000_000
MOST_VALUES = 40_000_000  # of a file: a value in memory takes many times its room on the disk
DEEPEST = 64  # objects and lists within each other
HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")  # the only way to half a surrogate pair in UTF-8


@contextmanager
def opened(path: Path, most: int = LARGEST_FILE) -> Generator[BinaryIO]:
    """A regular file of at most `most` bytes."""
    with ExitStack() as stack:
        try:
            file = stack.enter_context(open_plain(path, most, DataError))
        except FileNotFoundError:
            near = nearest(path.name, _beside(path))
            raise DataError(f"{path}: there is no such file.{near}") from None
        yield file


def read_text(path: Path) -> str:
    """A whole UTF-8 file, with or without a byte order mark."""
    with opened(path, LARGEST_WHOLE) as file:
        data = _read(path, lambda: file.read(LARGEST_WHOLE + 1))
    if len(data) > LARGEST_WHOLE:
        raise DataError(f"{path}: grew while it was read")
    text = _decoded(data, path, 1, 0)
    if not text.strip():
        raise DataError(f"{path}: is empty")
    return text


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number, line with its line feed), none longer than a record may be."""
    empty, at = True, 0
    with opened(path) as file:
        for number in count(1):
            line = _read(path, lambda: file.readline(LONGEST_RECORD + 1))
            if not line:
                break
            if len(line) > LONGEST_RECORD:
                raise too_long(path, number)
            text = _decoded(line, path, number, at)
            at += len(line)
            if at > LARGEST_FILE:
                raise DataError(f"{path}: grew while it was read")
            empty = empty and not text.strip()
            yield number, text
    if empty:
        raise DataError(f"{path}: is empty")


def too_long(path: Path, line: int) -> DataError:
    return DataError(
        f"{path}, line {line}: is longer than the {LONGEST_RECORD // 10**6} MB that a record may "
        "have; each record needs a line of its own, ended by a line feed"
    )


def too_many(path: Path, what: str, most: int) -> DataError:
    return DataError(f"{path}: has more than {most:,} {what}; divide it into several files")


def count_values(text: str) -> int:
    """At least so many values as stand in a JSON text; cheap, and before anything is made."""
    return sum(map(text.count, '{["'))


def parse_json(text: str, path: Path, line: int | None = None) -> object:
    """A JSON text that means one thing: no key twice, no NaN, no endless nesting."""
    try:
        value = DECODER.decode(text)
        if text.count("[") + text.count("{") <= DEEPEST or not _deeper(value):
            return value
        where, why = f"line {line or 1}", f"nested more than {DEEPEST} deep"
    except json.JSONDecodeError as error:
        where, why = f"line {line or error.lineno}, column {error.colno}", error.msg
    except _Ambiguous as error:
        where, why = f"line {line}" if line else "an object in it", str(error)
    except NamedTwice as error:
        where = f"line {line}" if line else "an object in it"
        why = f"key {quoted([error.name])} is given twice"
    except ValueError:
        where, why = f"line {line or 1}", "a number has too many digits"
    except RecursionError:
        where, why = f"line {line or 1}", f"nested more than {DEEPEST} deep"
    hint = ""
    if why == "Extra data" and line is None:
        hint = " (one record per line? then name the file .jsonl)"
    elif why == "Extra data":
        hint = " (each record needs a line of its own, ended by a line feed)"
    raise DataError(f"{path}, {where}: not valid JSON: {why}{hint}") from None


class _Ambiguous(ValueError):
    """What Python's reader takes, but other readers take for something else, or not at all."""


def _number(text: str) -> float:
    if math.isinf(value := float(text)):
        raise _Ambiguous("a number is too large")
    return value


def _no_value(name: str) -> object:
    raise _Ambiguous(f"{name} is no value; write null, or leave the key out")


DECODER = json.JSONDecoder(object_pairs_hook=once, parse_float=_number, parse_constant=_no_value)


def _deeper(value: object) -> bool:
    level = [value]
    for _ in range(DEEPEST):
        inner = list[object]()
        for outer in level:
            if isinstance(outer, dict):
                inner += cast("dict[str, object]", outer).values()
            elif isinstance(outer, list):
                inner += cast("list[object]", outer)
        if not (level := [item for item in inner if isinstance(item, dict | list)]):
            return False
    return True


def _read(path: Path, read: Callable[[], bytes]) -> bytes:
    try:
        return read()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def _decoded(data: bytes, path: Path, line: int, at: int) -> str:
    """`line` and byte `at` are where the data begin."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line += data.count(b"\n", 0, error.start)
        raise DataError(
            f"{path}, line {line}: byte {at + error.start} is not valid UTF-8; "
            "save the file as UTF-8"
        ) from None
    if (nul := data.find(b"\0")) >= 0:
        line += data.count(b"\n", 0, nul)
        raise DataError(
            f"{path}, line {line}: byte {at + nul} is NUL; is this a text file, in UTF-8?"
        )
    return text.removeprefix("\ufeff") if at == 0 else text


def _beside(path: Path) -> list[str]:
    """Some of the names that a misspelt one may mean."""
    try:
        with os.scandir(path.parent) as listing:
            return [item.name for item in islice(listing, 1000)]
    except (OSError, ValueError):
        return []
