"""What rewriting did. `clients/<id>/rewrites.jsonl` has each training answer beside its rewrite,
and what was lost or invented on the way. It is private: the means of the counts are told."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from fedsdr.distill.audit import AuditRow, client_audit
from fedsdr.distill.checks import prompt_text
from fedsdr.distill.engine import Teacher
from fedsdr.runs.again import differs
from fedsdr.runs.files import rows_text
from fedsdr.runs.purge import REWRITES
from fedsdr.site.prepare import examples, token_rows
from fedsdr.site.site import Site
from fedsdr.text.facts import compare_facts
from fedsdr.types import ClientData, Example, Order, Report

FACTS = ("numbers_lost", "numbers_invented", "names_lost", "names_invented")


def rewrite(site: Site, group: Sequence[Order]) -> Iterator[Report]:
    """Before round 1, by the base; afterwards as the global model that each client last rewrote
    with, from its drafts on disk. A client that nothing is rewritten for tells nothing."""
    for order in group:
        views = site.algorithm.rewritten_views()
        late = any(view.teacher == "global" for view in views)
        values: dict[str, Any] = {}
        if views and late == bool(order.round):
            values = _by_global(site, order) if late else _by_base(site, order)
        yield Report(order.run, order.round, order.client_id, "rewrite", values)


def _by_base(site: Site, order: Order) -> dict[str, Any]:
    for view in site.algorithm.rewritten_views():
        token_rows(site, order.client_id, view)
    values = _told(site, order.client_id)
    client, audit = site.clients[order.client_id], site.audit[order.client_id]
    rows = list(_rewrites(site, client, audit))
    if differs(site.run.private_file(order.client_id, REWRITES), rows_text(rows), site.note):
        site.run.save_private_rows(order.client_id, REWRITES, rows)
    return values


def _by_global(site: Site, order: Order) -> dict[str, Any]:
    state = site.run.load_client_state(order.client_id, order.round + 1)
    if state is None:
        return {}  # never asked to train
    view = next(v for v in site.algorithm.rewritten_views() if v.teacher == "global")
    flats = site.branches.stack(state.tensors.get("teacher", {}))
    examples(site, order.client_id, view, Teacher(state.meta["teacher"], flats))
    values = _told(site, order.client_id)
    client, audit = site.clients[order.client_id], site.audit.pop(order.client_id)
    site.run.save_private_rows(order.client_id, REWRITES, _rewrites(site, client, audit))
    return values


def _told(site: Site, client_id: str) -> dict[str, Any]:
    """The means; and where the truth is known, how many of what it trains on are faithful."""
    values: dict[str, Any] = {"audit": asdict(client_audit(site.audit[client_id]))}
    if site.truth is not None:
        view, *_others = site.algorithm.rewritten_views()
        kinds = dict[str, list[int]]()
        for example in examples(site, client_id, view):
            kind, faithful = site.truth.faithful(example)
            of = kinds.setdefault(kind, [0, 0])
            of[0], of[1] = of[0] + faithful, of[1] + 1
        values["faithful"] = kinds
    return values


def _rewrites(
    site: Site, client: ClientData, audit: Sequence[AuditRow]
) -> Iterator[dict[str, Any]]:
    for example, row in zip(client.train, audit, strict=True):
        assert row.texts is not None, "a rewrite can only be kept with its texts"
        raw, written = row.texts
        yield {
            "id": example.id,
            "domain": example.domain,
            "prompt": example.prompt,
            "raw": raw,
            "written": written,
            "trained": written if row.kept else raw,
            "kept": row.kept,
            "reasons": row.reasons,
            **_facts(example, row, written),
            "length_ratio": row.length_ratio,
            "judged": site.truth.verdict(example, written) if site.truth else None,
        }


def _facts(example: Example, row: AuditRow, written: str) -> dict[str, tuple[str, ...]]:
    """What the audit counts, by name; looked for again only where it counted something."""
    if not (row.numbers_lost or row.numbers_invented or row.names_lost or row.names_invented):
        return dict.fromkeys(FACTS, ())
    facts = compare_facts(example.response, written, prompt_text(example))
    return {what: getattr(facts, what) for what in FACTS}
