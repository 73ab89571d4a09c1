"""The language of chat templates: Jinja in a sandbox, with what transformers gives to a template.

`python template_language.py` renders what it is sent, a line of JSON at a time. It is a program of
its own (it imports nothing of fedsdr), so that a template that never ends, or fills the memory, is
ended with it.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable, Mapping
from functools import lru_cache
from math import floor
from time import process_time
from typing import Any, cast

from jinja2 import Template, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

DATE = "26 Jul 2024"  # whatever the day, so that runs repeat
MEMORY = 1 << 29  # bytes
SECONDS = 2  # of computing at most, for one conversation; templates take microseconds


class Generation(Extension):
    """`{% generation %}` marks what a model says; here it is text like any other."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_said"), [], [], body).set_lineno(line)

    def _said(self, caller: Callable[[], str]) -> str:
        return caller()


class Dictionary:
    """`dict` without its type's attributes."""

    def __call__(self, *pairs: Any, **named: Any) -> dict[Any, Any]:
        return dict(*pairs, **named)

    def fromkeys(self, *given: Any) -> dict[Any, Any]:
        return dict.fromkeys(*given)


class Names(Namespace):
    """`namespace`, which holds no name of Python's own."""

    def __init__(*given: Any, **named: Any) -> None:
        instance, *pairs = given
        values: dict[Any, Any] = dict(*pairs, **named)
        for name in values:
            refuse_private(name)
        Namespace.__init__(instance, values)

    def __setitem__(self, name: str, value: Any) -> None:
        refuse_private(name)
        super().__setitem__(name, value)


def refuse_private(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace cannot hold {name!r}")


def raise_exception(message: str) -> None:
    raise TemplateError(message)


def strftime_now(format: str) -> str:
    return DATE


def tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike Jinja's own, without escapes for HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


@lru_cache(maxsize=16)
def compiled(text: str) -> Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    cast("dict[str, Any]", environment.filters)["tojson"] = tojson
    cast("dict[str, Any]", environment.globals).update(
        raise_exception=raise_exception,
        strftime_now=strftime_now,
        dict=Dictionary(),
        namespace=Names,
    )
    return environment.from_string(text)


def answer(line: bytes) -> Mapping[str, str]:
    """A template is a program of whoever made the model, and can fail as one."""
    asked = json.loads(line)
    try:
        text = compiled(asked["template"]).render(asked["variables"])
    except Exception as error:
        return {"failed": failure_text(error)}
    if len(text) > asked["most"]:
        return {"failed": f"it writes {len(text):,} characters, of a conversation that is short"}
    return {"text": text}


def failure_text(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:500]


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin.buffer:
        # Beyond this, the system ends the process.
        _, most = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (floor(process_time()) + SECONDS, most))
        sys.stdout.buffer.write(json.dumps(answer(line)).encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
