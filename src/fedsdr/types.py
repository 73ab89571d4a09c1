"""The nouns: what flows between the rooms. Frozen, slotted, without I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from torch import Tensor

Tensors = Mapping[str, Tensor]
NOTHING: Mapping[str, float] = MappingProxyType({})
Task = Literal["train", "rewrite", "profile", "score", "answer", "save"]
Split = Literal["validation", "test"]
Advance = Callable[[str, int, int], None]  # what, done, of how many
Note = Callable[[str], None]
FOLD = "P"  # the frozen, clientless branch of server rules that change the base


@dataclass(frozen=True, slots=True)
class Message:
    role: Literal["user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class Example:
    """One record: what is asked, and the response that is trained on.

    `history` holds the earlier turns of a conversation, between the system line and the prompt.
    """

    id: str
    prompt: str
    response: str
    _: KW_ONLY
    system: str = ""
    domain: str = ""
    origin: str = ""
    history: tuple[Message, ...] = ()


@dataclass(frozen=True, slots=True)
class ClientData:
    """All that one client owns. `validation` picks the best round; `test` is only ever reported."""

    client_id: str
    train: tuple[Example, ...]
    validation: tuple[Example, ...] = ()
    test: tuple[Example, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """Down: what the server asks one client to do.

    `train` is answered with an `Update`, all else with a `Report`: `rewrite` its answers, before
    round 1 or as the last round's teacher would; tell its `profile`; `score` the deployed mix `mix`
    on its held-out rows; `answer` a few of them by that mix ("": the base), and keep what it says;
    `save` that mix as its own adapter.
    """

    run: str
    round: int  # after which the model asked for was made; of `train`, the round itself
    client_id: str
    task: Task
    seed: int
    shared: Tensors
    settings: Mapping[str, float] = field(default_factory=lambda: dict(NOTHING))
    mix: str = ""
    split: Split = "test"


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """Up: what a client answers. `shared` holds only what the algorithm shares."""

    run: str
    round: int
    client_id: str
    base_digest: str
    weight: float
    shared: Tensors
    metrics: Mapping[str, float] = field(default_factory=lambda: dict(NOTHING))


@dataclass(frozen=True, slots=True)
class Report:
    """Up: a client's answer to any order but `train`: numbers, and the names of what they count.
    The coordinator holds it to the list of its task (`coordinator/reports.py`)."""

    run: str
    round: int
    client_id: str
    task: Task
    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Lost:
    """A client that did not answer, or whose answer was refused, and why."""

    client_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class ServerState:
    """What a resume needs of the server: the shared tensors, and the slots of its rule (momentum
    …). Of the run, a rule may know its seed and how many clients there are."""

    round: int
    shared: Tensors
    slots: Tensors = field(default_factory=lambda: dict[str, Tensor]())
    seed: int = 0
    clients: int = 0


def silent(what: str, done: int, total: int) -> None:
    """Nobody watches."""


def note_nothing(text: str) -> None:
    """Nobody listens."""
