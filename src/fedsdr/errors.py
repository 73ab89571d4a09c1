"""Everything that a user, a file or a client can do wrong, as typed errors.

Each message names the culprit (file, line, key, client, tensor) and, where there is one, the fix.
The command line prints the message and exits with 2; it never shows a traceback for one of these.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LINES, LINE, WORDS = 20, 2000, 6000  # of a message: nobody reads more, and a log should hold it


class FedsdrError(Exception):
    """The base of all errors that are not bugs in fedsdr. Whatever a stranger's file makes it say,
    it says it in a few lines."""

    def __init__(self, message: str = "") -> None:
        super().__init__(cut_message(message))


class RecipeError(FedsdrError):
    """A recipe key is unknown, missing, of the wrong type, or makes no sense with the others."""


class MachineError(FedsdrError):
    """What the environment says of the machine cannot be."""


class DataError(FedsdrError):
    """A data file is missing, malformed or empty; the message names file, line and field."""


class ModelError(FedsdrError):
    """A model or tokenizer folder cannot be used."""


class AdapterError(FedsdrError):
    """An adapter folder is malformed, or belongs to another base."""


class OutOfMemory(FedsdrError):
    """Training needs less memory than it asked for, and from now on asks for less: the round is
    begun again."""


class UpdateRefused(FedsdrError):
    """A client's update may not enter the model."""

    def __init__(self, client_id: str, reason: str, tensor: str | None = None) -> None:
        self.client_id, self.reason, self.tensor = client_id, reason, tensor
        where = f", tensor {tensor!r}" if tensor else ""
        super().__init__(f"update of client {client_id!r} refused{where}: {reason}")


class RoundFailed(FedsdrError):
    """A round cannot count: too few clients answered, the server's rule cannot do with what they
    sent, or training diverged."""


class CorruptArtifact(FedsdrError):
    """A stored file is not what was written: truncated, altered, or missing."""


class EndpointError(FedsdrError):
    """A server that rewrites does not answer, or refuses what it is asked."""


class RunLocked(FedsdrError):
    """Another process is working in this run directory."""


class RunError(FedsdrError):
    """A run directory is missing, already used, or cannot be written."""


class SandboxError(FedsdrError):
    """Model-written code cannot be walled in on this system, so it is not run."""


class MissingExtra(FedsdrError):
    """What was asked for needs a package that comes with one of fedsdr's extras."""


class TaskError(FedsdrError):
    """A benchmark task is unknown, cannot be loaded, or asks for what is not done here."""


def cut_message(message: str) -> str:
    """The message, without the middle of its longest lines and without its last lines."""
    lines = message.split("\n", LINES)
    if len(lines) > LINES:
        lines[LINES:] = [f"… and {lines[LINES].count(chr(10)) + 1:,} more"]
    short = "\n".join(cut_line(line, LINE) for line in lines)
    return cut_line(short, WORDS)


def cut_line(line: str, most: int) -> str:
    """Its beginning and its end, which says what to do."""
    if len(line) <= most:
        return line
    head, tail = most // 2, most // 2 - 3
    return f"{line[:head]} … {line[-tail:]}"


def shown(value: object, most: int = 80) -> str:
    """What a stranger gave, in short; Python refuses to print an integer of thousands of digits."""
    plain = value is None or isinstance(value, str | float | bool)
    if plain or (isinstance(value, int) and value.bit_length() < 100):
        return cut_line(repr(value), most)
    return f"of type {type(value).__name__}"


def nearest(word: str, known: Iterable[str]) -> str:
    """`'fedavgg'` -> `" Did you mean 'fedavg'?"`, or nothing when nothing is near."""
    hits = difflib.get_close_matches(word[:100], list(known), n=1, cutoff=0.5)
    return f" Did you mean {hits[0]!r}?" if hits else ""
