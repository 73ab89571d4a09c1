"""The only round loop: order, ask, admit, combine, evaluate, record, commit.

Killed at any moment, it resumes to the same bytes. A round is committed by its checkpoint, written
last; whatever a dead process had recorded of an uncommitted round is dropped, except the updates of
whole groups of clients, which wait in the spool (the unit of work that can be lost is one group).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from fedsdr.coordinator.admit import Enrolled, Expected
from fedsdr.coordinator.combining import combined
from fedsdr.coordinator.gather import Cohort, gather
from fedsdr.errors import RoundFailed
from fedsdr.evaluate.means import ClientScores, means
from fedsdr.parts.algorithm import Algorithm
from fedsdr.parts.local import main_loss, term_losses
from fedsdr.parts.mix import is_part
from fedsdr.runs.digests import SpooledUpdates, Written, read_written, trusted
from fedsdr.runs.directory import RunDirectory
from fedsdr.runs.ledger import LEDGER, Ledger, keep_timings, timed
from fedsdr.tensors import nbytes, rng_sample
from fedsdr.types import Order, ServerState, Update

ROUNDS, VALIDATION, DIAGNOSTICS = "rounds.jsonl", "validation.jsonl", "diagnostics.jsonl"
RECORDS = (ROUNDS, VALIDATION, DIAGNOSTICS, LEDGER)  # of which a checkpoint knows every row
Scores = Mapping[str, Mapping[str, float]]  # mix -> measure -> mean over clients
Row = Mapping[str, Any]
# Whoever looks at a round once it is combined: the state before it, what was admitted, what of that
# filters let count, the state after it.
Observe = Callable[[ServerState, SpooledUpdates, Iterable[Update], ServerState], Row]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopSettings:
    run: str
    seed: int
    rounds: int
    lr: float
    schedule: Literal["constant", "cosine"] = "constant"
    min_lr: float = 0.0
    participation: float = 1.0  # a share of the clients up to 1, a count above
    quorum: int = 1
    evaluate_every: int = 1
    patience: int | None = None
    enrolled: Mapping[str, Enrolled] = field(default_factory=lambda: dict[str, Enrolled]())
    ranks: Mapping[str, int] = field(default_factory=lambda: dict[str, int]())  # where they differ


@dataclass(frozen=True, slots=True)
class Judge:
    """Every client's scores by every deployed mix on validation data; by the mean of `measure` each
    mix has its best round."""

    validate: Callable[[ServerState], ClientScores]
    measure: str
    higher_is_better: bool

    def better(self, new: float, old: float | None) -> bool:
        return old is None or (new > old if self.higher_is_better else new < old)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The last state, and for every deployed mix the round that validation likes best."""

    state: ServerState
    best: Mapping[str, int]

    def chosen(self, mix: str) -> int:
        """The best round; the last one where nothing was validated."""
        return self.best.get(mix, self.state.round)


def run_rounds(
    algorithm: Algorithm,
    cohort: Cohort,
    clients: Sequence[str],
    first: ServerState,
    run: RunDirectory,
    settings: LoopSettings,
    base_digest: str,
    judge: Judge | None = None,
    told: Callable[[Row], None] = lambda row: None,
    note: Callable[[str], None] = lambda text: None,
    observe: Observe | None = None,
) -> Outcome:
    """Run, or go on from the last good checkpoint, to the last round."""
    state, best, written = _recover(first, run, settings.rounds, note)
    for number in range(state.round + 1, settings.rounds + 1):
        if settings.patience is not None and best.waited >= settings.patience:
            break
        asked = sample_clients(clients, settings, number)
        orders = _orders(algorithm, asked, state, settings, number)
        expected = _expected(algorithm, orders, settings, base_digest, number)
        with timed(run, "training", number):
            refused = gather(cohort, orders, expected, run, note)
        answered = sorted(run.spooled(number) & set(asked))
        if len(answered) < settings.quorum:
            reasons = "; ".join(refused) or "no client answered"
            raise RoundFailed(
                f"round {number}: {len(answered)} of {len(asked)} clients answered, "
                f"{settings.quorum} are needed: {reasons}"
            )
        updates = SpooledUpdates(run, number, answered)
        down = sum(nbytes(order.shared) for order in orders)
        before = state
        with timed(run, "combining", number):
            kept, state = combined(algorithm, before, updates, expected.shared)
        scores: Scores = {}
        if judge and (number % settings.evaluate_every == 0 or number == settings.rounds):
            with timed(run, "validation", number):
                by_client = judge.validate(state)
            scores = means(by_client)
            _refuse_diverged(number, scores, by_client)
            best = best.after(number, scores, judge)
            run.append_row(VALIDATION, {"round": number, "scores": by_client})
        if observe:
            with timed(run, "diagnostics", number):
                seen = observe(before, updates, kept, state)
            run.append_row(DIAGNOSTICS, {"round": number, **seen})
        row, written = _commit(
            algorithm,
            run,
            state=state,
            best=best,
            updates=updates,
            refused=refused,
            scores=scores,
            down=down,
            settings=settings,
            written=written,
        )
        told(row)
    return Outcome(state, best.rounds)


def learning_rate(settings: LoopSettings, round: int) -> float:
    """Constant, or a half cosine over the rounds from `lr` to `min_lr`."""
    if settings.schedule == "constant":
        return settings.lr
    share = (round - 1) / max(1, settings.rounds - 1)
    return settings.min_lr + 0.5 * (settings.lr - settings.min_lr) * (1 + math.cos(math.pi * share))


def sample_clients(clients: Sequence[str], settings: LoopSettings, round: int) -> list[str]:
    """Who takes part: drawn anew every round from the run's seed, without replacement."""
    every, wish = sorted(clients), settings.participation
    # A share such as 0.28 of 25 is 7.000000000000001 in floating point, and means 7.
    count = math.ceil(wish * len(every) - 1e-9) if wish <= 1 else int(wish)
    count = min(max(1, count), len(every))
    return sorted(rng_sample(every, count, settings.seed, round, "sample"))


@dataclass(frozen=True, slots=True)
class _Best:
    """Best round and its score, by mix; and how many evaluations passed without a better one."""

    rounds: Mapping[str, int] = field(default_factory=lambda: dict[str, int]())
    scores: Mapping[str, float] = field(default_factory=lambda: dict[str, float]())
    waited: int = 0

    def after(self, round: int, by_mix: Scores, judge: Judge) -> _Best:
        better = {
            mix: scores[judge.measure]
            for mix, scores in by_mix.items()
            if judge.measure in scores and judge.better(scores[judge.measure], self.scores.get(mix))
        }
        rounds = {**self.rounds, **dict.fromkeys(better, round)}
        return _Best(rounds, {**self.scores, **better}, 0 if better else self.waited + 1)


def _refuse_diverged(number: int, by_mix: Scores, by_client: ClientScores) -> None:
    for mix, scores in by_mix.items():
        for measure, value in scores.items():
            if not math.isfinite(value):
                clients = by_client[mix]
                bad = [c for c, of in clients.items() if not math.isfinite(of.get(measure, 0.0))]
                where = f" at {', '.join(bad[:8])}" if 0 < len(bad) < len(clients) else ""
                raise RoundFailed(
                    f"round {number}: the {mix} model's {measure} on validation data is no finite "
                    f"number{where}: training diverged; lower training.lr"
                )


def _recover(
    first: ServerState, run: RunDirectory, rounds: int, note: Callable[[str], None]
) -> tuple[ServerState, _Best, Written]:
    """The last good checkpoint, or the start. Rows that it does not know are dropped, and those
    that it knows must be what they were."""
    if not any(number <= rounds for number in run.checkpoints()):
        tensors, nothing = {"shared": first.shared, "slots": first.slots}, Written(RECORDS)
        run.save_checkpoint(0, tensors, _meta(first, _Best(), nothing))
    number, stored, problems = run.load_latest_checkpoint(rounds)
    for problem in problems:
        note(f"{problem}; going on from round {number}")
    if "written" in stored.meta:
        written = read_written(RECORDS, stored.meta["written"])
        written.verify(run.root)
    else:
        note("a version that kept no digests of rows began this run: they are taken as they are")
        written = trusted(run.root, RECORDS, number)
    keep_timings(run, number)
    best = _Best(**stored.meta["best"])
    run.drop_checkpoints_after(number)
    run.check_spool(number + 1)
    _tidy(run, number, best, number + 1)  # a kill may have come between a checkpoint and this
    shared, slots = stored.tensors.get("shared", {}), stored.tensors.get("slots", {})
    return replace(first, round=number, shared=shared, slots=slots), best, written


def _orders(
    algorithm: Algorithm,
    asked: Sequence[str],
    state: ServerState,
    settings: LoopSettings,
    number: int,
) -> list[Order]:
    """Down: every client its own order, with what the algorithm sends to one of its rank."""
    lr = learning_rate(settings, number)
    sent = {rank: algorithm.downlink(state, rank) for rank in map(settings.ranks.get, asked)}
    return [
        Order(
            run=settings.run,
            round=number,
            client_id=client_id,
            task="train",
            seed=settings.seed,
            shared=sent[settings.ranks.get(client_id)],
            settings={"lr": lr},
        )
        for client_id in asked
    ]


def _expected(
    algorithm: Algorithm,
    orders: Sequence[Order],
    settings: LoopSettings,
    base_digest: str,
    number: int,
) -> Expected:
    """What an answer may hold: of each client, what is shared of what this round trains."""
    trained = algorithm.trained(number)
    wanted = {
        order.client_id: {
            n: t for n, t in order.shared.items() if algorithm.shares(n) and is_part(n, trained)
        }
        for order in orders
    }
    claims = {c: e.claims(algorithm, number) for c, e in settings.enrolled.items() if c in wanted}
    return Expected(settings.run, number, base_digest, wanted, claims)


def _commit(
    algorithm: Algorithm,
    run: RunDirectory,
    state: ServerState,
    best: _Best,
    updates: SpooledUpdates,
    refused: Sequence[str],
    scores: Scores,
    down: int,
    settings: LoopSettings,
    written: Written,
) -> tuple[Row, Written]:
    """Record the round, then commit it by its checkpoint, which knows every row until then; the
    round's row, and what the next checkpoint goes on from."""
    number, ledger, up, steps, tokens = state.round, Ledger(run), 0, 0.0, 0.0
    names, main = term_losses(algorithm, number), main_loss(algorithm, number)
    by_term = {term.name: dict[str, float]() for term in names}
    for update in updates:
        ledger.record(number, update.client_id, "up", update.shared, "change of the shared branch")
        up += nbytes(update.shared)
        for term in names:
            if term.metric in update.metrics:
                by_term[term.name][update.client_id] = update.metrics[term.metric]
        steps += sum(v for name, v in update.metrics.items() if name.startswith("steps"))
        tokens += sum(v for name, v in update.metrics.items() if name.startswith("tokens"))
    losses = by_term.pop(main.name) if main is not None else {}
    row = {
        "round": number,
        "lr": learning_rate(settings, number),
        "clients": len(updates.clients),
        "refused": list(refused),
        "loss": _mean(losses),
        "loss_of": main.name if main is not None else "",
        "losses": losses,
        "other_losses": {n: {"mean": _mean(of), "clients": of} for n, of in by_term.items()},
        "steps": steps,
        "tokens": tokens,
        "bytes_up": up,
        "bytes_down": down,
        "validation": {mix: dict(values) for mix, values in scores.items()},
        "best_rounds": dict(best.rounds),
    }
    run.append_row(ROUNDS, row)
    written = written.after(run.root, number)
    tensors = {"shared": state.shared, "slots": state.slots}
    run.save_checkpoint(number, tensors, _meta(state, best, written))
    _tidy(run, number, best)
    return row, written


def _mean(losses: Mapping[str, float]) -> float:
    return sum(losses.values()) / len(losses) if losses else 0.0


def _tidy(run: RunDirectory, number: int, best: _Best, under_way: int | None = None) -> None:
    """Keep what a resume, or one that has to go back a round, may need, and the best rounds."""
    run.prune_checkpoints(2, set(best.rounds.values()))
    run.prune_client_states(under_way)
    run.drop_spool(number, under_way)


def _meta(state: ServerState, best: _Best, written: Written) -> dict[str, Any]:
    return {"round": state.round, "best": asdict(best), "written": written.facts()}
