"""Whatever numbers a partition or the embedded world is given, it is made or refused, and soon."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from attack import attempt
from fedsdr.atlas.federation import AtlasSpec, build_federation
from fedsdr.atlas.world import DOMAINS, SYLLABLES, make_entity, rng
from fedsdr.data.formats import Table, read_table
from fedsdr.data.partition import PartitionSpec, partition
from fedsdr.errors import DataError, RecipeError
from fedsdr.types import Example


def table(count: int, values: int = 2) -> Table:
    examples = tuple(Example(f"t-{i}", f"What is {i}?", "That.") for i in range(count))
    rows = tuple({"topic": str(i % values)} for i in range(count))
    return Table(
        path=Path("t.jsonl"),
        shape="columns",
        columns=("topic",),
        fields={},
        examples=examples,
        rows=rows,
    )


TABLES = [table(count) for count in (1, 3, 300)]
NUMBERS: dict[str, tuple[Any, ...]] = {
    "method": ("iid", "dirichlet", "quantity", "column"),
    "clients": (1, 7, 500),
    "alpha": (1e-6, 1e6),
    "validation": (0.0, 0.5, 1 - 1e-12),
    "min_examples": (1, 10**9),
}


@pytest.mark.parametrize("method", NUMBERS["method"])
def test_every_allowed_number_ends_in_clients_or_words(method: str) -> None:
    def all_of_them() -> int:
        made = 0
        for rows in TABLES:
            for clients in NUMBERS["clients"]:
                for alpha in NUMBERS["alpha"]:
                    for share in NUMBERS["validation"]:
                        for least in NUMBERS["min_examples"]:
                            made += once(rows, clients, alpha, share, least)
        return made

    def once(rows: Table, clients: int, alpha: float, share: float, least: int) -> int:
        spec = PartitionSpec(
            method=method,  # pyright: ignore[reportArgumentType]
            clients=clients if method != "column" else None,
            column="topic",
            alpha=alpha,
            validation=share,
            test=0.0,
            min_examples=least,
        )
        try:
            found = partition(rows, spec, 0)
        except DataError:
            return 0
        parts = [c.train + c.validation + c.test for c in found]
        assert sum(map(len, parts)) == len(rows.examples)
        assert all(len(c.train) >= least for c in found)
        return 1

    outcome = attempt(all_of_them, 100)
    assert outcome.kind == "returned", outcome
    assert outcome.value > 5


@pytest.mark.parametrize(
    "given",
    [
        {"clients": 10**9},
        {"clients": 10**400},
        {"clients": 0},
        {"alpha": 1e-300},
        {"alpha": 5e-324},
        {"alpha": 1e300},
        {"alpha": math.nan},
        {"validation": math.nan},
        {"validation": 1 - 1e-17},
    ],
)
def test_numbers_beyond_the_bounds_are_refused(given: dict[str, Any]) -> None:
    spec = {"method": "quantity", "clients": 2} | given
    outcome = attempt(lambda: partition(table(50), PartitionSpec(**spec), 0))
    assert (outcome.kind, "partition" in outcome.text) == ("refused", True), outcome


def test_shares_that_leave_next_to_nothing_do_not_count_to_infinity() -> None:
    spec = PartitionSpec(method="quantity", clients=2, validation=0.5, test=0.5 - 1e-12)
    outcome = attempt(lambda: partition(table(50), spec, 0))
    assert (outcome.kind, "too few for 2 clients" in outcome.text) == ("refused", True), outcome


@pytest.mark.parametrize(("method", "words"), [("column", "makes"), ("dirichlet", "too many to")])
def test_a_column_of_as_many_values_as_rows_makes_no_partition(method: Any, words: str) -> None:
    many = table(21_000, values=21_000)
    clients = 100 if method == "dirichlet" else None
    spec = PartitionSpec(method=method, clients=clients, column="topic")
    outcome = attempt(lambda: partition(many, spec, 0))
    assert (outcome.kind, words in outcome.text) == ("refused", True), outcome


@pytest.mark.parametrize(
    "values", [("1", '"1"'), ("true", '"true"'), ("1", "1.0"), ("1", "true"), ("0", "false")]
)
def test_values_of_unlike_types_are_not_taken_for_one(
    values: tuple[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "d.jsonl"
    row = '{{"prompt": "a", "response": "b", "topic": {}}}\n'
    path.write_text("".join(row.format(v) for v in values))
    read = read_table(path)  # no fault of the file, as long as nobody divides by it
    spec = PartitionSpec(method="column", column="topic", validation=0.0, test=0.0)
    with pytest.raises(DataError, match=r"field 'topic': holds .* in line 1 and .* in line 2"):
        partition(read, spec, 0)
    path.write_text(row.format(values[0]) * 2)
    assert len(partition(read_table(path), spec, 0)) == 1


@pytest.mark.parametrize(
    "given",
    [
        {"examples": 10**9},
        {"clients": 10**9},
        {"clients": 10**5, "examples": 5},
        {"examples": 10**5},
        {"quantity_skew": math.nan},
    ],
)
def test_a_world_beyond_its_names_is_refused(given: dict[str, Any]) -> None:
    outcome = attempt(lambda: build_federation(replace(AtlasSpec(), **given), 1))
    assert (outcome.kind, "data.atlas" in outcome.text) == ("refused", True), outcome


@pytest.mark.parametrize("skew", [1e-300, 1e300, math.inf])
def test_any_skew_makes_clients(skew: float) -> None:
    outcome = attempt(
        lambda: [len(c.train) for c in build_federation(AtlasSpec(quantity_skew=skew), 1).clients]
    )
    assert outcome.kind == "returned", outcome
    assert min(outcome.value) >= 5


def test_names_end() -> None:
    pairs = {a + b for a in SYLLABLES for b in SYLLABLES}
    taken = {(p + c).capitalize() for p in pairs for c in ("", *SYLLABLES)}
    outcome = attempt(lambda: make_entity(rng("x"), DOMAINS[0], taken))
    assert (outcome.kind, "no names left" in outcome.text) == ("refused", True), outcome
    with pytest.raises(RecipeError):
        make_entity(rng("x"), DOMAINS[0], taken)
