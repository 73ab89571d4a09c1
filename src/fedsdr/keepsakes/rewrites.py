"""`clients/<id>/rewrites.jsonl`: each training answer beside its rewrite, and what was lost or
invented on the way. Private."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from fedsdr.assembly import Experiment
from fedsdr.atlas.judge import judge
from fedsdr.atlas.world import Question
from fedsdr.cohort.in_process import InProcessCohort, rewritten_views
from fedsdr.distill.audit import AuditRow
from fedsdr.distill.checks import prompt_text
from fedsdr.distill.engine import Teacher
from fedsdr.distill.facts import compare_facts
from fedsdr.distill.rewrite import Note
from fedsdr.keepsakes.again import differs
from fedsdr.runs.directory import RunDirectory
from fedsdr.runs.files import rows_text
from fedsdr.runs.purge import REWRITES
from fedsdr.types import ClientData, Example

FACTS = ("numbers_lost", "numbers_invented", "names_lost", "names_invented")


def keep_rewrites(
    experiment: Experiment, run: RunDirectory, cohort: InProcessCohort, note: Note
) -> None:
    """Each example beside its rewrite, and what was lost or invented, as far as the cohort has
    rewritten by now."""
    for client in experiment.trained:
        if audit := cohort.audit.get(client.client_id):
            rows = list(_rewrites(experiment, client, audit))
            if differs(run.private_file(client.client_id, REWRITES), rows_text(rows), note):
                run.save_private_rows(client.client_id, REWRITES, rows)


def keep_last_rewrites(
    experiment: Experiment, run: RunDirectory, cohort: InProcessCohort, round: int
) -> None:
    """The same at the end, of a method whose global model rewrites while it trains: each client's
    answers as last rewritten, from its drafts on disk."""
    views = [view for view in rewritten_views(experiment.algorithm) if view.teacher == "global"]
    for client in experiment.trained if views else ():
        state = run.load_client_state(client.client_id, round + 1)
        if state is None:
            continue  # never asked to train
        flats = experiment.branches.stack(state.tensors.get("teacher", {}))
        cohort.examples(client.client_id, views[0], Teacher(state.meta["teacher"], flats))
        audit = cohort.audit.pop(client.client_id)
        run.save_private_rows(client.client_id, REWRITES, _rewrites(experiment, client, audit))


def judged(experiment: Experiment, example: Example, text: str) -> str | None:
    atlas = experiment.federation.atlas
    return None if atlas is None else verdict(atlas.truths[example.id], text)


def verdict(question: Question, text: str) -> str:
    """The worst that the exact judge has to say, in two words."""
    found = judge(question, text)
    if found.wrong:
        return "wrong order" if question.kind == "order" else "wrong value"
    if found.invented_values:
        return "invented value"
    if found.invented_names:
        return "invented name"
    return "incomplete" if found.missing else "faithful"


def _rewrites(
    experiment: Experiment, client: ClientData, audit: Sequence[AuditRow]
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
            "judged": judged(experiment, example, written),
        }


def _facts(example: Example, row: AuditRow, written: str) -> dict[str, tuple[str, ...]]:
    """What the audit counts, by name; looked for again only where it counted something."""
    if not (row.numbers_lost or row.numbers_invented or row.names_lost or row.names_invented):
        return dict.fromkeys(FACTS, ())
    found = compare_facts(example.response, written, prompt_text(example))
    return {what: getattr(found, what) for what in FACTS}
