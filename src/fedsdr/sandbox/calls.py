"""Calls from the process that runs the tests into the one that runs the program.

Only plain data crosses: numbers, texts, and lists, tuples, dicts and sets of them, each built anew
on the other side. Any other object stays where it is and is known by a number, so that none with
an `__eq__` of the program's own ever meets an assertion. Both processes run this file, walled in
(`jail.py`) and on the standard library alone.
"""

from __future__ import annotations

import builtins
import contextlib
import io
import json
import operator
import os
import re
import struct
import sys
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any

LARGEST = 16 << 20  # bytes of a message
SHOWN = 1 << 20  # characters that one call may print
SMALL = 1 << 53  # below it, an int is one in JSON; Python reads no decimal of 5,000 digits
NAME = re.compile(r"\b(?!__)[^\W\d]\w*")
COLLECTIONS: dict[str, type] = {
    kind.__name__: kind for kind in (tuple, set, frozenset, complex, range)
}


class Gone(BaseException):
    """The other side has ended, or says what makes no sense. No test can catch it for good."""


class Side:
    """One end of the line: the program's, of which anything may be asked, or the tests'."""

    def __init__(self, inward: int, outward: int, program: bool) -> None:
        self._in, self._out, self._program = inward, outward, program
        self._verbs = PROGRAM_VERBS if program else TESTS_VERBS
        self._objects = list[Any]()
        self._numbers = dict[int, int]()  # id -> number, of objects that are kept in `_objects`
        self._far = dict[int, Far]()
        self.gone = self.offered = False

    def offer(self, module: Any) -> None:
        """The program has come to its end, and has made this."""
        self.send(
            {"names": [n for n in vars(module) if NAME.fullmatch(n)], "of": self.encode(module)}
        )
        self.offered = True

    def offers(self, wanted: str) -> dict[str, Any]:
        """What the program has of the names in this text."""
        message = self.receive()
        with self._sensibly():
            module = self.decode(message["of"])
            names = set(map(str, message["names"])) & set(NAME.findall(wanted))
        held: dict[str, Any] = {}
        for name in sorted(names):
            with contextlib.suppress(Exception):  # too large or too deep to cross
                held[name] = getattr(module, name)
        return held

    def ask(self, verb: str, *on: Any, **named: Any) -> Any:
        """What the other side's object gives; or raised here, what it raises."""
        keywords = {name: self.encode(value) for name, value in named.items()}
        self.send({"ask": verb, "on": [self.encode(o) for o in on], "named": keywords})
        while "ask" in (reply := self.receive()):
            self.answer(reply)
        with self._sensibly():
            sys.stdout.write(str(reply.get("said", ""))[:SHOWN])
            for place, value in reply.get("left", ()):
                _become(on[place], self.decode(value))
            if "raised" in reply:
                name, arguments = reply["raised"]
                error = _error(str(name), [self.decode(a) for a in arguments])
            else:
                return self.decode(reply["gave"])
        raise error

    def serve(self) -> None:
        """Answer until the other side ends."""
        while True:
            self.answer(self.receive())

    def answer(self, asked: Mapping[str, Any]) -> None:
        with self._sensibly():
            do = self._verbs.get(asked["ask"], _refuse)
            on = [self.decode(o) for o in asked["on"]]
            named = {str(name): self.decode(value) for name, value in asked["named"].items()}
        shown = io.StringIO()
        try:
            with contextlib.redirect_stdout(shown) if self._program else contextlib.nullcontext():
                given = {"gave": self.encode(do(*on, **named))}
        except Gone:
            raise
        except BaseException as error:
            given = {"raised": [type(error).__name__, self._plain_arguments(error)]}
        left = [
            (place, after)
            for place, value in enumerate(on)
            if isinstance(value, list | dict | set | bytearray)
            and (after := self.encode(value)) != asked["on"][place]
        ]
        self.send({**given, "said": shown.getvalue()[:SHOWN], "left": left})

    def send(self, message: Mapping[str, Any]) -> None:
        data = json.dumps(message).encode()
        rest = memoryview(struct.pack(">I", min(len(data), 2**32 - 1)) + data)
        with self._sensibly():
            while rest:
                rest = rest[os.write(self._out, rest) :]

    def receive(self) -> dict[str, Any]:
        with self._sensibly():
            (size,) = struct.unpack(">I", self._read(4))
            if size > LARGEST:
                raise ValueError
            message = json.loads(self._read(size))
            if not isinstance(message, dict):
                raise ValueError
            return message

    def _read(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            piece = os.read(self._in, min(1 << 16, size - len(data)))
            if not piece:
                raise EOFError
            data += piece
        return bytes(data)

    @contextlib.contextmanager
    def _sensibly(self) -> Generator[None]:
        if self.gone:
            raise Gone
        try:
            yield
        except (ValueError, LookupError, TypeError, AttributeError, EOFError, OSError) as error:
            self.gone = True
            raise Gone from error

    def encode(self, value: Any) -> Any:
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, int):
            return int(value) if abs(value) < SMALL else {"int": hex(value)}
        if isinstance(value, float):
            return float(value)
        if isinstance(value, str):
            return str.__str__(value)
        if isinstance(value, list):
            return [self.encode(v) for v in value]
        if isinstance(value, dict):
            return {"dict": [[self.encode(k), self.encode(v)] for k, v in value.items()]}
        if isinstance(value, bytes | bytearray):
            return {"bytes" if isinstance(value, bytes) else "bytearray": value.hex()}
        if isinstance(value, tuple | set | frozenset):
            kind = next(name for name, kind in COLLECTIONS.items() if isinstance(value, kind))
            return {kind: [self.encode(v) for v in value]}
        if isinstance(value, complex):
            return {"complex": [value.real, value.imag]}
        if isinstance(value, range):
            return {"range": [self.encode(n) for n in (value.start, value.stop, value.step)]}
        if type(value) is Far:
            return {"yours": value.far_number}
        if not self._program:  # what the program calls `int` or `sorted` is its own affair
            name = getattr(value, "__name__", None)
            if isinstance(name, str) and getattr(builtins, name, None) is value:
                return {"builtin": name}
        number = self._numbers.setdefault(id(value), len(self._objects))
        if number == len(self._objects):
            self._objects.append(value)
        return {"mine": number}

    def decode(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self.decode(v) for v in value]
        if not isinstance(value, dict):
            return value
        ((kind, held),) = value.items()
        if kind == "int":
            return int(held, 16)
        if kind in ("bytes", "bytearray"):
            data = bytes.fromhex(held)
            return data if kind == "bytes" else bytearray(data)
        if kind == "dict":
            return {self.decode(k): self.decode(v) for k, v in held}
        if kind in ("complex", "range"):
            return COLLECTIONS[kind](*(self.decode(v) for v in held))
        if kind in COLLECTIONS:
            return COLLECTIONS[kind]([self.decode(v) for v in held])
        if kind == "yours":
            return self._objects[held]
        if kind == "builtin" and self._program:
            return getattr(builtins, held)
        if kind == "mine" and type(held) is int:
            return self._far.setdefault(held, Far(self, held))
        raise ValueError

    def _plain_arguments(self, error: BaseException) -> list[Any]:
        try:
            return [self.encode(a) for a in error.args]
        except Exception:  # of the program's own making
            return []


class Far:
    """An object of the other side. It equals nothing but itself, and nothing is computed with it:
    what it is like, only plain data can tell."""

    __slots__ = ("far_number", "far_side")
    far_number: int
    far_side: Side

    def __init__(self, side: Side, number: int) -> None:
        object.__setattr__(self, "far_side", side)
        object.__setattr__(self, "far_number", number)

    def __call__(self, *on: Any, **named: Any) -> Any:
        return self.far_side.ask("call", self, *on, **named)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__name__":
            raise AttributeError(name)
        return self.far_side.ask("get", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self.far_side.ask("set", self, name, value)

    def __getitem__(self, key: Any) -> Any:
        return self.far_side.ask("item", self, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.far_side.ask("put", self, key, value)

    def __iter__(self) -> Iterator[Any]:
        return self.far_side.ask("iter", self)

    def __next__(self) -> Any:
        return self.far_side.ask("next", self)

    def __len__(self) -> int:
        return self.far_side.ask("len", self)

    def __bool__(self) -> bool:
        return self.far_side.ask("bool", self) is True

    def __repr__(self) -> str:
        return str(self.far_side.ask("repr", self))

    def __str__(self) -> str:
        return str(self.far_side.ask("str", self))

    def __instancecheck__(self, other: Any) -> bool:
        return isinstance(other, Far) and self.far_side.ask("is_a", other, self) is True


def _call(function: Any, *on: Any, **named: Any) -> Any:
    return function(*on, **named)


def _true(function: Any) -> bool:
    return True


PROGRAM_VERBS: dict[str, Callable[..., Any]] = {
    "call": _call,
    "get": getattr,
    "set": setattr,
    "item": operator.getitem,
    "put": operator.setitem,
    "iter": iter,
    "next": next,
    "len": len,
    "bool": bool,
    "repr": repr,
    "str": str,
    "is_a": isinstance,
}
# A function that a test passes may be called back, and nothing else be done with it.
TESTS_VERBS: dict[str, Callable[..., Any]] = {"call": _call, "bool": _true}


def _become(here: Any, after: Any) -> None:
    """What was done to an argument in place is done to the one that was passed, too."""
    if type(here) is not type(after):
        raise TypeError
    if isinstance(here, list | bytearray):
        here[:] = after
    elif isinstance(here, dict | set):
        here.clear()
        here.update(after)
    else:
        raise TypeError


def _error(name: str, arguments: list[Any]) -> Exception:
    kind = getattr(builtins, name, None)
    if not (isinstance(kind, type) and issubclass(kind, Exception)):
        kind = type(name, (Exception,), {"__module__": "program"})
    try:
        return kind(*arguments)
    except (TypeError, ValueError):  # one that wants others, such as UnicodeDecodeError
        return RuntimeError(name)


def _refuse(*on: Any, **named: Any) -> None:
    raise AttributeError("only calls cross to the tests")
