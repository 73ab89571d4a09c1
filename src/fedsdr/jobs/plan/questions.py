"""What is asked of recipe, algorithm and data before anything is done with them: once, here, by
`fedsdr plan` as by every verb that trains, rewrites or measures.

The clients' rows as tokens, and the rows that cannot be used. Ids are named, never any text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from fedsdr.atlas.scores import AtlasScorer
from fedsdr.data.render import Rendered, render, render_prompt
from fedsdr.errors import DataError, FedsdrError, RecipeError
from fedsdr.jobs.assembly import Experiment, rewriting_settings
from fedsdr.jobs.plan.estimate import Rows, estimate_memory, fit, memory_there
from fedsdr.jobs.plan.problems import setting_problems
from fedsdr.jobs.plan.shape import ClientRow, Lengths
from fedsdr.jobs.recorded import judge_facts
from fedsdr.jobs.sources import NAMED, UNCUT, room_to_rewrite
from fedsdr.model.base import BaseModel
from fedsdr.recipe.settings import Recipe
from fedsdr.types import ClientData, Example

DROP = "data.overlong: drop does"


class Faults:
    """Rows that cannot be used, gathered by what is wrong with them."""

    def __init__(self) -> None:
        self.rows = dict[str, dict[str, list[str]]]()

    def add(self, wrong: str, client: str, example: Example) -> None:
        self.rows.setdefault(wrong, {}).setdefault(client, []).append(example.id)

    def sentences(self) -> Iterator[str]:
        for wrong, clients in self.rows.items():
            places = [
                f"client {client!r}, example {ids[0]!r}"
                + (f" and {len(ids) - 1} more" if len(ids) > 1 else "")
                for client, ids in clients.items()
            ]
            rest = f"; and {len(places) - NAMED} more clients" if len(places) > NAMED else ""
            yield f"{'; '.join(places[:NAMED])}{rest}: {wrong}"


def read_client(
    experiment: Experiment, client: ClientData, faults: Faults
) -> tuple[ClientRow, list[Rendered]]:
    """One client's counts, and its training rows, cut as training will cut them."""
    limit = experiment.max_length
    whole = _rendered(experiment.base, client.client_id, client.train, limit, faults)
    check_held_out(experiment, client, faults)
    domains = Counter(e.domain for e in client.train if e.domain)
    cut = [Rendered(r.ids[:limit], r.weights[:limit], len(r.ids) > limit) for r in whole]
    row = ClientRow(
        client_id=client.client_id,
        train=len(client.train),
        validation=len(client.validation),
        test=len(client.test),
        domains=dict(sorted(domains.items())),
        prompt=_lengths([r.prompt for r in whole]),
        response=_lengths([len(r.ids) - r.prompt for r in whole]),
        truncated=sum(r.truncated for r in cut),
        trained_tokens=sum(r.trained for r in cut),
        left_out=sum(experiment.left_out.rows.get(client.client_id, {}).values()),
    )
    return row, cut


def check_rewriting(experiment: Experiment, clients: Iterable[ClientData], faults: Faults) -> None:
    """A rewriting prompt holds instruction and response both, and needs room for the rewrite."""
    base, choice = experiment.base, experiment.recipe.rewriting
    for client in clients:
        for example in client.train:
            try:
                wrong = room_to_rewrite(base, choice, example)
            except DataError as error:
                wrong = str(error)
            else:
                wrong = f"{wrong} ({DROP})" if wrong else ""
            if wrong:
                faults.add(wrong, client.client_id, example)


def empty_clients(clients: Iterable[ClientData]) -> Iterator[str]:
    yield from (_empty(client.client_id) for client in clients if not client.train)


def client_problems(clients: Iterable[ClientRow], recipe: Recipe) -> Iterator[str]:
    for client in clients:
        name, usable = f"client {client.client_id!r}", client.trained_tokens > 0
        if client.train == 0:
            yield _empty(client.client_id)
        elif not usable:
            yield f"{name} has 0 tokens to train on: none of its {client.train} rows can be used"
        elif client.truncated == client.train:
            yield (
                f"{name}: every response is cut by model.max_length ({recipe.model.max_length}), "
                f"so it would never see an answer's end; its prompts have up to "
                f"{client.prompt.longest} tokens, its responses up to {client.response.longest}"
            )


def _empty(client: str) -> str:
    return f"client {client!r} has no training rows; leave it out"


def shown(base: BaseModel, rows: Mapping[str, Sequence[Rendered]]) -> tuple[tuple[str, bool], ...]:
    """The row with the most answers to train on, the first of these, as tokens; the bytes of one
    letter are shown where it is complete."""
    row = max(
        (row for client_rows in rows.values() for row in client_rows),
        key=_answers,
        default=Rendered((), ()),
    )
    pieces, before = list[tuple[str, bool]](), ""
    for end, weight in enumerate(row.weights, 1):
        decoded = base.tokenizer.decode(  # pyright: ignore[reportUnknownMemberType]
            list(row.ids[:end]), clean_up_tokenization_spaces=False
        )
        text = str(decoded)
        if text.endswith("\ufffd") and end < len(row.ids):
            text = before
        pieces.append((text[len(before) :], weight > 0))
        before = text
    return tuple(pieces)


def check_held_out(experiment: Experiment, client: ClientData, faults: Faults) -> None:
    """What could not be scored would be found out after the training only."""
    base, scorer, limit = experiment.base, experiment.federation.scorer, experiment.max_length
    for held_out in (client.validation, client.test):
        if not isinstance(scorer, AtlasScorer):
            _rendered(base, client.client_id, held_out, limit, faults)
            continue
        for example in held_out:
            length = _prompt_length(base, client.client_id, example, faults)
            if length is not None and length + scorer.max_new_tokens > base.max_length:
                wrong = (
                    f"the prompt and an answer of {scorer.max_new_tokens} tokens exceed the "
                    f"model's {base.max_length} positions, so it could not be scored"
                )
                faults.add(wrong, client.client_id, example)


def _rendered(
    base: BaseModel, client: str, examples: Sequence[Example], limit: int, faults: Faults
) -> list[Rendered]:
    """The rows that can be trained or scored, uncut."""
    rows = list[Rendered]()
    for example in examples:
        try:
            row = render(base, example, UNCUT)
        except DataError as error:
            faults.add(str(error), client, example)
        else:
            if row.prompt < limit:
                rows.append(row)
                continue
            wrong = (
                f"the prompt alone fills model.max_length ({limit} tokens), so no token of the "
                f"response would be trained or scored; raise it or drop the row ({DROP})"
            )
            faults.add(wrong, client, example)
    return rows


def _prompt_length(base: BaseModel, client: str, example: Example, faults: Faults) -> int | None:
    try:
        return len(render_prompt(base, example))
    except DataError as error:
        faults.add(str(error), client, example)
        return None


def _answers(row: Rendered) -> int:
    return sum(now > before for before, now in pairwise((0.0, *row.weights)))


def _lengths(counts: Sequence[int]) -> Lengths:
    return Lengths(float(median(counts)), max(counts)) if counts else Lengths(0.0, 0)


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
