"""What a value is, in words: the same words for the same value, in any process.

    described(fedprox(mu=5), "algorithm")
    {"algorithm": "fedsdr.Algorithm",
     "algorithm.name": "'fedprox'",
     "algorithm.stages[0].terms[0].objective.terms[1].mu": "5.0", ...}

Fields at their default are left out, so that one which a later version adds changes nothing. Code
that is not fedsdr's own (a class, a function, a lambda) counts by its name and a digest of what it
was compiled to; what it calls in its turn does not. In which of fedsdr's rooms something lives does
not count: it may move.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import inspect
import re
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from fedsdr.tensors import digest

MOST, LONGEST, DEEPEST = 300, 200, 40  # lines, characters of one, levels
CODE = "(code)"
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
OURS = {"fedsdr", "torch", *sys.stdlib_module_names}
HOME = re.compile(r"\bfedsdr\.(?:[a-z_0-9]+\.)+")  # older runs hold it
Described = dict[str, str]


def described(value: object, name: str) -> Described:
    """Path -> what stands there."""
    lines = dict(_lines(name, value, ()))
    if len(lines) <= MOST:
        return lines
    kept = dict(list(lines.items())[:MOST])
    return {**kept, f"{name} (all {len(lines)} lines)": _sha("\n".join(map(str, lines.items())))}


def difference(before: Mapping[str, str], now: Mapping[str, str]) -> str | None:
    """The first place where two descriptions differ, in words. Code that another Python compiled
    cannot be compared."""
    for path in sorted({*before, *now}):
        old, new = before.get(path), now.get(path)
        other = path.endswith(CODE) and old and new and old.split()[0] != new.split()[0]
        if HOME.sub("fedsdr.", old or "") != (new or "") and not other:
            return f"{path} is {new or 'the default'} and was {old or 'the default'}"
    return None


def _lines(path: str, value: object, above: tuple[int, ...]) -> Iterator[tuple[str, str]]:
    if id(value) in above or len(above) > DEEPEST:
        yield path, "(itself)" if id(value) in above else "(too deep to describe)"
        return
    inside = (*above, id(value))
    if (plain := _plain(value)) is not None:
        yield path, plain
    elif isinstance(value, Mapping):
        items: list[tuple[Any, Any]] = list(value.items())  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
        yield path, _short(f"{_kind(value)} of {', '.join(_named(key) for key, _ in items)}")
        for key, item in items:
            yield from _lines(f"{path}[{_named(key)}]", item, inside)
    elif isinstance(value, AbstractSet):
        parts = sorted(str(list(_lines("", member, inside))) for member in _listed(value))
        yield path, f"{_kind(value)} of {len(parts)}: {_sha(str(parts))}"
    elif isinstance(value, Sequence):
        yield path, f"{_kind(value)} of {len(value)}"
        for place, item in enumerate(_listed(value)):
            yield from _lines(f"{path}[{place}]", item, inside)
    elif isinstance(value, FunctionType | MethodType | functools.partial):
        yield from _callable(path, value, inside)
    else:
        yield from _object(path, value, inside)


def _plain(value: object) -> str | None:
    """Of what has no parts."""
    if isinstance(value, enum.Enum):
        return f"{_name(type(value))}.{value.name}"
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | Path):
        kind = type(value)
        known = isinstance(value, Path) or kind.__module__ == "builtins"
        return _short(repr(value) if known else f"{_name(kind)} {value!r}")
    if isinstance(value, type):
        return f"class {_name(value)}"
    if isinstance(value, BuiltinFunctionType):
        return f"function {_name(value)}"
    if isinstance(value, Tensor):
        return f"tensor {digest({'': value})}"
    if isinstance(value, torch.Generator):
        return f"generator {digest({'': value.get_state()})}"
    if isinstance(value, torch.dtype | torch.device):
        return str(value)
    return None


def _callable(
    path: str, value: FunctionType | MethodType | functools.partial[Any], inside: tuple[int, ...]
) -> Iterator[tuple[str, str]]:
    if isinstance(value, functools.partial):
        yield path, "functools.partial"
        for name in ("func", "args", "keywords"):
            yield from _lines(f"{path}.{name}", getattr(value, name), inside)
    elif isinstance(value, MethodType):
        yield path, f"method {value.__func__.__qualname__}"
        yield from _lines(f"{path}.__func__", value.__func__, inside)
        yield from _lines(f"{path}.__self__", value.__self__, inside)
    else:
        yield path, f"function {_name(value)}"
        if _foreign(value.__module__):
            yield f"{path} {CODE}", f"{PYTHON} {_sha(_code(value.__code__))}"
        for place, default in enumerate(value.__defaults__ or ()):
            yield from _lines(f"{path} (default {place})", default, inside)
        for name, default in (value.__kwdefaults__ or {}).items():
            yield from _lines(f"{path} (default {name})", default, inside)
        cells = zip(value.__code__.co_freevars, value.__closure__ or (), strict=False)
        for name, cell in cells:
            yield from _lines(f"{path} ({name})", _content(cell), inside)


def _object(path: str, value: object, inside: tuple[int, ...]) -> Iterator[tuple[str, str]]:
    """Class and attributes; said so where its content stands nowhere to be read."""
    kind = type(value)
    attributes = _attributes(value)
    hidden = attributes is None and not _is_python(kind)
    yield path, f"{_name(kind)}{' (its content cannot be described)' if hidden else ''}"
    if compiled := _methods(kind):
        yield f"{path} {CODE}", f"{PYTHON} {_sha(compiled)}"
    for name, attribute in (attributes or {}).items():
        yield from _lines(f"{path}.{name}", attribute, inside)


def _attributes(value: object) -> dict[str, Any] | None:
    if isinstance(value, nn.Module):
        state: dict[str, Any] = value.state_dict()
        return {"weights": digest({n: t for n, t in state.items() if isinstance(t, Tensor)})}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        values = {f.name: getattr(value, f.name, None) for f in fields}
        usual = {f.name: _default(f) for f in fields}
        values = {n: v for n, v in values.items() if not _alike(v, usual[n])}
        return {**values, **_extra(value, {f.name for f in fields})}
    extra = _extra(value, ())
    return extra if extra or hasattr(value, "__dict__") else None


def _extra(value: object, but: Collection[str]) -> dict[str, Any]:
    """What stands in its dictionary and its slots, cached properties among them."""
    names = dict.fromkeys(getattr(value, "__dict__", {}))
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        names |= dict.fromkeys([slots] if isinstance(slots, str) else slots)
    kept = (n for n in names if n not in but and n not in ("__dict__", "__weakref__"))
    return {name: getattr(value, name) for name in kept if hasattr(value, name)}


def _default(field: dataclasses.Field[Any]) -> object:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _alike(value: object, usual: object) -> bool:
    if usual is dataclasses.MISSING:
        return False
    return value is usual or list(_lines("", value, ())) == list(_lines("", usual, ()))


def _methods(kind: type) -> str:
    """What the code of a class and of those it inherits from was compiled to, but for ours."""
    compiled = list[str]()
    for base in kind.__mro__:
        if not _foreign(base.__module__):
            continue
        for name, member in sorted(vars(base).items()):
            for function in _functions(member):
                if function.__code__.co_filename != "<string>":  # dataclasses write their own
                    compiled.append(f"{base.__qualname__}.{name} {_code(function.__code__)}")
    return "\n".join(compiled)


def _functions(member: object) -> Iterator[FunctionType]:
    for candidate in (
        (member.fget, member.fset)
        if isinstance(member, property)
        else (inspect.unwrap(getattr(member, "__func__", getattr(member, "func", member))),)  # pyright: ignore[reportArgumentType]
    ):
        if isinstance(candidate, FunctionType):
            yield candidate


def _code(code: CodeType) -> str:
    consts = [_code(c) if isinstance(c, CodeType) else _constant(c) for c in code.co_consts]
    return f"{code.co_code.hex()} {code.co_names} {code.co_freevars} {consts}"


def _constant(value: object) -> str:
    # The order of a set hangs on the process.
    return str(sorted(map(repr, value))) if isinstance(value, frozenset) else repr(value)  # pyright: ignore[reportUnknownArgumentType]


def _content(cell: Any) -> object:
    try:
        return cell.cell_contents
    except ValueError:
        return "(empty)"


def _foreign(module: str) -> bool:
    return module.partition(".")[0] not in OURS


def _is_python(kind: type) -> bool:
    return any(isinstance(member, FunctionType) for member in vars(kind).values())


def _listed(values: Collection[Any]) -> list[Any]:
    return list(values)


def _kind(value: object) -> str:
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else _name(kind)


def _name(of: type | FunctionType | BuiltinFunctionType) -> str:
    home = of.__module__ or ""
    return f"{'fedsdr' if home.startswith('fedsdr.') else home}.{of.__qualname__}"


def _named(key: object) -> str:
    return _plain(key) or _sha(str(list(_lines("", key, ()))))


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:60]}… {_sha(text)}"


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
