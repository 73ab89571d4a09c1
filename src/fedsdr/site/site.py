"""What stands at a site: the base with its LoRA layers, its clients' records, a private folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedsdr.data.render import Rendered
from fedsdr.distill.audit import AuditRow
from fedsdr.distill.rewrite import Rewriting
from fedsdr.evaluate.scoring import HeldOutLoss, Scorer
from fedsdr.model.lora import StackedLora
from fedsdr.parts.algorithm import Algorithm
from fedsdr.parts.local import LocalSettings
from fedsdr.runs.directory import RunDirectory
from fedsdr.site.branches import Branches
from fedsdr.types import Advance, ClientData, Example, Note, note_nothing, silent


@dataclass(frozen=True, slots=True)
class Truth:
    """Where the truth is known (Atlas): the verdict on a text about an example, in two words; and
    an example's kind, and whether its response is faithful."""

    verdict: Callable[[Example, str], str]
    faithful: Callable[[Example], tuple[str, bool]]


@dataclass(slots=True, kw_only=True)
class Site:
    """`clients` train; `scored`, those with held-out rows (where all data are pooled, and for
    clients that never train, these are others). `stack`: how many stand side by side."""

    lora: StackedLora
    algorithm: Algorithm
    branches: Branches
    clients: Mapping[str, ClientData]
    scored: Mapping[str, ClientData]
    run: RunDirectory
    cache: Path
    training: LocalSettings
    rewriting: Rewriting
    seed: int
    scorer: Scorer = field(default_factory=HeldOutLoss)
    truth: Truth | None = None
    stack: int = 8
    max_length: int = 1024
    rows_scored: int = 128  # at a time
    rows_answered: int = 5  # of each client
    equal_weights: bool = False
    texts_in_audit: bool = False
    advance: Advance = silent
    note: Note = note_nothing
    # By client: how its answers were rewritten last, with their texts.
    audit: dict[str, list[AuditRow]] = field(default_factory=lambda: dict[str, list[AuditRow]]())
    # By client and model: the answers that are being written down.
    answers: dict[str, dict[str, Sequence[str]]] = field(
        default_factory=lambda: dict[str, dict[str, Sequence[str]]]()
    )
    # By client and view, prepared once; and with which teacher.
    tokens: dict[tuple[str, str], list[Rendered]] = field(
        default_factory=lambda: dict[tuple[str, str], list[Rendered]]()
    )
    taught: dict[tuple[str, str], str] = field(default_factory=lambda: dict[tuple[str, str], str]())
