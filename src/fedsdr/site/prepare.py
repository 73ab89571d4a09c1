"""A client's rows as they are trained on: rewritten once, by whom the algorithm says, and
tokenised once.

What the rewrites were when they were first used is kept as digests beside the client's private
state: drafts lie in files that may be shared between runs, and an endpoint asked again answers
otherwise, but a run that goes on must go on with the same texts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from fedsdr.data.render import Rendered, render
from fedsdr.distill.audit import AuditRow
from fedsdr.distill.rewrite import Teacher, rewrite
from fedsdr.errors import CorruptArtifact, RunError
from fedsdr.parts.views import Mixed, Raw, View, parse_selection
from fedsdr.runs.artifact import Artifact
from fedsdr.runs.directory import RunDirectory
from fedsdr.site.site import Site
from fedsdr.tensors import derive_seed, digest
from fedsdr.types import Example, Order

RAW = "raw"
REWRITTEN = "rewritten"
MOST = 8  # sets of rewrites that are remembered: a resume goes back a round or two
DIGITS = 12


def token_rows(
    site: Site, client_id: str, view: View, teacher: Teacher | None = None
) -> list[Rendered]:
    """A view's token rows; where the teacher is another one, anew."""
    key = client_id, RAW if isinstance(view, Raw) else str(view)
    by = teacher.digest if teacher is not None and not isinstance(view, Raw) else ""
    if key not in site.tokens or site.taught.get(key, by) != by:
        site.tokens[key] = [
            render(site.lora.base, example, site.max_length)
            for example in examples(site, client_id, view, teacher)
        ]
    site.taught[key] = by
    return site.tokens[key]


def examples(
    site: Site, client_id: str, view: View, teacher: Teacher | None = None
) -> Sequence[Example]:
    """What a term trains on, of one client."""
    raw = site.clients[client_id].train
    if isinstance(view, Raw):
        return raw
    if isinstance(view, Mixed):
        rewritten = examples(site, client_id, view.rewritten, teacher)
        return [
            b if _drawn(site, client_id, a) < view.share else a
            for a, b in zip(raw, rewritten, strict=True)
        ]

    def less(batch: int) -> None:
        """Kept, so that a resume draws the same rows together."""
        site.rewriting = replace(site.rewriting, batch=batch)
        site.run.amend({"rewriting_batch": batch})
        site.note(f"memory ran out; from now on {batch} rows are rewritten at a time")

    texts, audit = rewrite(
        site.lora,
        client_id,
        examples=raw,
        selection=parse_selection(view.selection),
        how=site.rewriting,
        cache=site.cache,
        teacher=teacher,
        include_texts=True,  # for the client's own eyes
        note=site.note,
        less=less,
    )
    who = (teacher or Teacher()).digest
    check_used(
        site.run, client_id, view=str(view), teacher=who, texts=texts, audit=audit, note=site.note
    )
    site.audit[client_id] = audit
    return texts


def teacher_of(site: Site, order: Order, state: Artifact | None) -> Teacher:
    """The base; or the global model that this client last rewrote with, renewed when it is due."""
    views = [view for view in site.algorithm.rewritten_views() if view.teacher == "global"]
    if not views:
        return Teacher()
    every = views[0].redistill_every
    known = state.tensors.get("teacher", {}) if state is not None else {}
    renewed = order.round == 1 or (every and (order.round - 1) % every == 0)
    named = order.shared if renewed or not known else known
    flats = site.branches.stack(named)
    worn = {n: t for n, t in named.items() if n.partition("/")[0] in flats}
    return Teacher(digest(worn), flats)


def teacher_tensors(site: Site, teacher: Teacher) -> Mapping[str, Tensor]:
    return site.branches.shared({b: flat[0] for b, flat in teacher.flats.items()})


def _drawn(site: Site, client_id: str, example: Example) -> float:
    """From 0 to below 1 by the run's seed, the same in every round."""
    return derive_seed(site.seed, client_id, "mixed", example.id) % 10**6 / 10**6


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
