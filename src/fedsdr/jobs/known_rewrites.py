"""A recipe's rewrites, made where they are missing; a run's, only looked up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedsdr.coordinator.job import Watch
from fedsdr.distill.drafts import Drafts
from fedsdr.distill.engine import Asked, BuiltIn, Engine, Teacher
from fedsdr.distill.generate import Progress
from fedsdr.distill.rewrite import Tell, once, remote_engine, rewrite_by, tell_nobody
from fedsdr.errors import RunError
from fedsdr.evaluate.diagnostics.faithfulness import Rewrite
from fedsdr.jobs.assembly import Experiment, rewriting_settings
from fedsdr.jobs.distill import tally
from fedsdr.parts.views import Selection, parse_selection
from fedsdr.runs.directory import RunDirectory
from fedsdr.runs.plain import user_path
from fedsdr.types import ClientData, Note, note_nothing

Rewrites = Mapping[str, Sequence[Rewrite]]


def make_rewrites(experiment: Experiment, rule: Selection, cache: Path, watch: Watch) -> Rewrites:
    """Every client's, by the base; drafts are kept in `cache`."""
    clients = experiment.federation.clients
    tell = tally(watch.advance, sum(len(client.train) for client in clients))
    engine = _engine(experiment, Teacher().digest, once(watch.note))
    return {
        client.client_id: _rewrites(experiment, engine, client, rule, cache, tell)
        for client in clients
    }


def run_rewrites(experiment: Experiment, run: RunDirectory) -> Rewrites:
    """What this run trained on, from its cached drafts; nothing if its algorithm rewrites
    nothing."""
    views = experiment.algorithm.rewritten_views()
    if not views:
        return {}
    kept = experiment.recipe.rewriting.cache
    cache = user_path(kept, RunError) if kept else run.root / "rewrites"
    rule, made = parse_selection(views[0].selection), list[Rewrite]()
    for client in experiment.trained:
        teacher = Teacher().digest
        if views[0].teacher == "global":
            teacher = _last_teacher(run, client.client_id)
        engine = _Known(_engine(experiment, teacher), run, client.client_id)
        made += _rewrites(experiment, engine, client, rule, cache, tell_nobody)
    # Those who train are the clients, or all of them pooled into one.
    each = iter(made)
    return {c.client_id: [next(each) for _ in c.train] for c in experiment.federation.clients}


def _rewrites(
    experiment: Experiment,
    engine: Engine,
    client: ClientData,
    rule: Selection,
    cache: Path,
    tell: Tell,
) -> list[Rewrite]:
    # The texts come back in the audit's rows, and go no further than the measures.
    how, drafts = rewriting_settings(experiment.recipe), Drafts(cache, client.client_id)
    _, rows = rewrite_by(
        engine,
        client.client_id,
        examples=client.train,
        selection=rule,
        how=how,
        drafts=drafts,
        tell=tell,
        include_texts=True,
    )
    return [
        Rewrite(example, row.texts[1] if row.texts else "", row.kept)
        for example, row in zip(client.train, rows, strict=True)
    ]


def _engine(experiment: Experiment, teacher: str, note: Note = note_nothing) -> Engine:
    how = rewriting_settings(experiment.recipe)
    if how.endpoint is not None:
        return remote_engine(how, experiment.base, note)
    return BuiltIn(experiment.base, how.sampling, how.batch, teacher)


def _last_teacher(run: RunDirectory, client_id: str) -> str:
    """The digest of the global model that a client last rewrote with."""
    last = max(run.checkpoints(), default=0)
    state = run.load_client_state(client_id, last + 1)
    if state is None:
        raise _missing(run, client_id, "the model that it rewrote with is not recorded")
    return state.meta["teacher"]


@dataclass(frozen=True, slots=True)
class _Known:
    """An engine's address without the engine: what it has not written yet is missing."""

    engine: Engine
    run: RunDirectory
    client_id: str

    @property
    def address(self) -> Sequence[str]:
        return self.engine.address

    @property
    def seeding(self) -> Sequence[str]:
        return self.engine.seeding

    def write(self, asked: Sequence[Asked], drafts: Drafts, progress: Progress) -> None:
        absent = sum(row.key not in drafts for row in asked)
        if absent:
            raise _missing(
                self.run, self.client_id, f"{absent} of {len(asked)} rows have no rewrite there"
            )


def _missing(run: RunDirectory, client_id: str, what: str) -> RunError:
    purged: Sequence[str] = run.facts().get("purged", ())
    why = (
        f"its {' and '.join(purged)} were removed by `fedsdr purge`"
        if purged
        else f"perhaps its rewriting was not finished (then `fedsdr resume {run.root}` goes on)"
    )
    return RunError(
        f"{run.root}: client {client_id!r}: {what}: {why}; with --no-rewritten the raw data alone "
        "are measured"
    )
