"""The gate of reports: numbers of an order's client, by the list of its task. What is not on it is
no answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, cast

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from fedsdr.coordinator.gather import Cohort, passed
from fedsdr.distill.audit import ClientAudit
from fedsdr.errors import UpdateRefused, shown
from fedsdr.types import Note, Order, Report, Split, Task, Tensors

Count = Annotated[int, Field(ge=0, le=10**12)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.@+-]{1,60}$")]
Number = Annotated[float, Field(strict=True)]  # of a model that diverged, no finite one
Label = Annotated[str, Field(max_length=80)]
Labels = Annotated[dict[Label, Count], Field(max_length=65)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Lengths(_Strict):
    edges: Annotated[list[Count], Field(max_length=32)]
    counts: Annotated[list[Count], Field(max_length=32)]
    p10: Count | None
    p50: Count | None
    p90: Count | None
    mean: float | None


class Rows(_Strict):
    train: Count
    validation: Count
    test: Count


class Profile(_Strict):
    rows: Rows
    domains: Labels
    origins: Labels
    prompt_tokens: Lengths
    response_tokens: Annotated[dict[Name, Lengths], Field(max_length=2)]


class Rewritten(_Strict):
    model_config = ConfigDict(strict=False)

    audit: ClientAudit
    faithful: Annotated[
        dict[Name, Annotated[list[Count], Field(min_length=2, max_length=2)]],
        Field(max_length=16),
    ] = {}


class Answered(_Strict):
    answers: Count


class Saved(_Strict):
    adapters: Count


LISTS: Mapping[Task, TypeAdapter[Any]] = {
    "rewrite": TypeAdapter(Rewritten),
    "profile": TypeAdapter(Profile),
    "score": TypeAdapter(Annotated[dict[Name, Number], Field(max_length=64)]),
    "answer": TypeAdapter(Answered),
    "save": TypeAdapter(Saved),
}


@dataclass(frozen=True, slots=True)
class Inquiry:
    """Asks clients for numbers, and lets through what is on the list."""

    cohort: Cohort
    run: str
    seed: int
    note: Note

    def __call__(
        self,
        task: Task,
        clients: Sequence[str],
        round: int = 0,
        *,
        shared: Tensors | None = None,
        mix: str = "",
        split: Split = "test",
    ) -> dict[str, Any]:
        """Client -> what it told, in the clients' order; who told nothing is left out."""
        orders = {
            client: Order(
                run=self.run,
                round=round,
                client_id=client,
                task=task,
                seed=self.seed,
                shared=shared or {},
                mix=mix,
                split=split,
            )
            for client in clients
        }
        values = dict[str, Any]()
        answers = self.cohort.ask(list(orders.values()), set())
        for report in passed(answers, lambda a: admit_report(a, orders, values), self.note):
            values[report.client_id] = report.values
        return {client: values[client] for client in clients if values.get(client) is not None}


def admit_report(answer: object, orders: Mapping[str, Order], answers: Mapping[str, Any]) -> Report:
    """The report with its values as its task's list has them (None: it tells nothing); or
    `UpdateRefused`."""
    claimed = cast(Any, answer)  # its types are what a stranger says they are
    who = claimed.client_id if isinstance(answer, Report) else None
    if not isinstance(who, str) or who not in orders:
        name = who[:80] if isinstance(who, str) else shown(who)
        raise UpdateRefused(name, "this client was not asked")
    order = orders[who]
    if who in answers:
        raise UpdateRefused(who, f"a second answer to {order.task}")
    if (claimed.run, claimed.round, claimed.task) != (order.run, order.round, order.task):
        raise UpdateRefused(who, f"it answers another order than {order.task}")
    if order.task == "rewrite" and claimed.values == {}:
        return replace(claimed, values=None)
    try:
        return replace(claimed, values=LISTS[order.task].validate_python(claimed.values))
    except ValidationError as error:
        # Not where: a name that a client made up may hold what must not be read here.
        why = error.errors(include_input=False, include_url=False)[0]["msg"]
        raise UpdateRefused(who, f"its {order.task} is not what may be sent: {why}") from None
