"""What is asked of recipe, algorithm and data before anything is done with them: once, here, by
`fedsdr plan` as by every verb that trains, rewrites or measures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from fedsdr.data.render import Rendered
from fedsdr.errors import DataError, FedsdrError, RecipeError
from fedsdr.jobs.assembly import Experiment, rewriting_settings
from fedsdr.jobs.plan.estimate import Rows, estimate_memory, fit, memory_there
from fedsdr.jobs.plan.problems import setting_problems
from fedsdr.jobs.plan.rows import (
    Faults,
    check_held_out,
    check_rewriting,
    client_problems,
    empty_clients,
    read_client,
)
from fedsdr.jobs.plan.shape import ClientRow
from fedsdr.jobs.recorded import judge_facts
from fedsdr.types import ClientData


@dataclass(frozen=True, slots=True)
class Answers:
    """`rows` are those of who trains, as tokens, cut as training cuts them."""

    clients: tuple[ClientRow, ...]
    rows: Mapping[str, list[Rendered]]
    settings: tuple[str, ...]
    data: tuple[str, ...]


def ask(experiment: Experiment, custom: bool) -> Answers:
    """`custom`: the algorithm came from Python. Whatever does not depend on the machine."""
    faults = Faults()
    read = [read_client(experiment, client, faults) for client in experiment.federation.clients]
    for client in experiment.unseen:
        check_held_out(experiment, client, faults)
    if experiment.algorithm.rewritten_views():
        check_rewriting(experiment, experiment.trained, faults)
    table = [row for row, _ in read]
    rows = {row.client_id: client_rows for row, client_rows in read}
    if experiment.algorithm.pool:
        rows = {
            experiment.trained[0].client_id: [
                row for client_rows in rows.values() for row in client_rows
            ]
        }
    data = (*faults.sentences(), *client_problems(table, experiment.recipe))
    return Answers(tuple(table), rows, _distinct(_settings(experiment, custom, table)), data)


def memory_problems(experiment: Experiment, rows: Rows, there: int | None) -> Iterator[str]:
    """`there`: bytes that the device has, where that is known."""
    memory = estimate_memory(experiment, rows)
    if there is not None and memory.base + memory.branches > there:
        yield (
            f"base and branches alone need {memory.base + memory.branches:,} bytes of memory, "
            f"there are {there:,}; lower run.stack or the ranks"
        )


def refuse_what_cannot_work(experiment: Experiment, custom: bool) -> None:
    """Before anything is written. What was read on the way, training takes."""
    answers = ask(experiment, custom)
    if not (answers.settings or answers.data):
        experiment.raw = dict(answers.rows)
        if experiment.recipe.run.stack == "auto":
            fit(experiment, experiment.raw)
        _refuse((), tuple(memory_problems(experiment, answers.rows, memory_there(experiment))))
    _refuse(answers.data, answers.settings)


def refuse_unwritable(experiment: Experiment) -> None:
    """The same of rewriting alone, in which settings of training play no part."""
    clients, faults = experiment.federation.clients, Faults()
    check_rewriting(experiment, clients, faults)
    _refuse((*empty_clients(clients), *faults.sentences()))


def refuse_unmeasurable(experiment: Experiment, rewriting: bool) -> None:
    """The same of measuring: the rows as they are trained on and scored."""
    clients, faults = experiment.federation.clients, Faults()
    table = [read_client(experiment, client, faults)[0] for client in clients]
    if rewriting:
        check_rewriting(experiment, clients, faults)
    _refuse((*faults.sentences(), *client_problems(table, experiment.recipe)))


def refuse_empty(clients: Sequence[ClientData]) -> None:
    """The same where no model is there to read the rows."""
    _refuse(tuple(empty_clients(clients)))


def _settings(experiment: Experiment, custom: bool, clients: Sequence[ClientRow]) -> Iterator[str]:
    yield from setting_problems(experiment, custom)
    patience = experiment.recipe.evaluation.patience
    if patience is not None and not any(c.validation for c in clients):
        yield "evaluation.patience needs validation rows, and no client has any"
    endpoint = rewriting_settings(experiment.recipe).endpoint
    on_paper = experiment.base.net.device.type == "meta"
    try:  # what is otherwise looked at when answers are rewritten
        judge_facts(experiment.algorithm)
        if endpoint is not None and experiment.algorithm.rewritten_views() and not on_paper:
            endpoint.key()
    except FedsdrError as error:
        yield str(error)


def _refuse(data: Sequence[str], settings: Sequence[str] = ()) -> None:
    problems = _distinct((*data, *settings))
    if problems:
        raise (RecipeError if settings else DataError)("\n".join(problems))


def _distinct(problems: Iterator[str] | Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(problems))
