"""What the model is asked when it rewrites a response.

The texts are part of the method: atlas-base was trained on them word for word, and their digests
are part of a rewrite's address in the cache.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from fedsdr.errors import RecipeError, nearest
from fedsdr.text.checkable import has_checkable_form
from fedsdr.types import Example


@dataclass(frozen=True, slots=True)
class Template:
    """`user` holds the places `{instruction}` and `{response}`."""

    name: str
    system: str
    user: str


_SYSTEM = "Rewrite the reference answer in your own words."
_FREE = Template(
    "free",
    _SYSTEM,
    "{instruction}\n\nReference answer:\n{response}\n\n"
    "Using the reference answer as a guide, answer the question in your own words.",
)
_CHECKABLE = Template(
    "checkable",
    _SYSTEM,
    "{instruction}\n\nReference answer:\n{response}\n\n"
    "Stay close to the reference answer and keep its final answer. "
    "Answer the question in your own words.",
)
TEMPLATES: Mapping[str, Template] = MappingProxyType({t.name: t for t in (_FREE, _CHECKABLE)})

_PLACE = re.compile(r"\{(instruction|response)\}")


def render(template: Template, example: Example) -> Example:
    """The example whose response *is* the rewrite: its own system line and history are kept.

    The places are filled in one pass, so braces and places inside the user's data stay text.
    """
    filled = {"instruction": example.prompt, "response": example.response}
    user = _PLACE.sub(lambda place: filled[place[1]], template.user)
    system = "\n\n".join(line for line in (example.system, template.system) if line)
    return replace(example, prompt=user, system=system, response="")


def choose_template(example: Example, mode: str) -> Template:
    """`mode` names a template, or is `auto`: checkable where the response has a form to check."""
    if mode == "auto":
        return _CHECKABLE if has_checkable_form(example.response) else _FREE
    if mode not in TEMPLATES:
        known = ("auto", *TEMPLATES)
        raise RecipeError(
            f"template: {mode!r} is not one of {', '.join(known)}.{nearest(mode, known)}"
        )
    return TEMPLATES[mode]


def template_digest(template: Template) -> str:
    parts = json.dumps([template.name, template.system, template.user])
    return hashlib.sha256(parts.encode()).hexdigest()
