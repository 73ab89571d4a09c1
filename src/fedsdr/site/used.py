"""What a client's rewrites were when they were first used, as digests beside its private state.

Drafts lie in files that may be shared between runs, and an endpoint asked again answers otherwise:
a run that goes on must go on with the same texts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

from fedsdr.distill.audit import AuditRow
from fedsdr.errors import CorruptArtifact, RunError
from fedsdr.runs.directory import RunDirectory
from fedsdr.types import Example

REWRITTEN = "rewritten"
MOST = 8  # sets of rewrites that are remembered: a resume goes back a round or two
DIGITS = 12


def check_used(
    run: RunDirectory,
    client_id: str,
    view: str,
    teacher: str,
    texts: Sequence[Example],
    audit: Sequence[AuditRow],
    note: Callable[[str], None],
) -> None:
    """Remember them, if they are new; refuse others than those remembered."""
    now = "".join(map(_digest, texts, audit))
    known: list[dict[str, Any]] = []
    try:
        facts = run.load_private_facts(client_id, REWRITTEN)
        known = [] if facts is None else list(facts["used"])
    except CorruptArtifact as error:
        note(f"{error}; the rewrites of client {client_id!r} are taken as they are")
    for used in known:
        if (used["view"], used["teacher"]) != (view, teacher):
            continue
        if used["rows"] == now:
            return
        changed = [e.id for i, e in enumerate(texts) if not _same(used["rows"], now, i)]
        raise RunError(
            f"{run.root}: the rewrites of client {client_id!r} are not those that this run trained "
            f"on (row {changed[0] if changed else '?'!r}, {len(changed)} in all); put its drafts "
            "back as they were (rewrites/ in the run, or rewriting.cache), or start a new run"
        )
    used = {"view": view, "teacher": teacher, "rows": now}
    run.save_private_facts(client_id, REWRITTEN, {"used": [*known, used][-MOST:]})


def _digest(example: Example, row: AuditRow) -> str:
    """Of what is trained on, and of what was written."""
    text = json.dumps([example.id, example.response, row.kept, row.texts])
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]


def _same(before: str, now: str, row: int) -> bool:
    part = slice(row * DIGITS, (row + 1) * DIGITS)
    return before[part] == now[part]
