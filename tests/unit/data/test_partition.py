"""From tables to clients: what each method promises, and what is refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from fedsdr.data.formats import Table
from fedsdr.data.partition import PartitionSpec, client_slug, is_client_id, partition
from fedsdr.errors import DataError, RecipeError
from fedsdr.types import ClientData, Example


def table(count: int, values: Iterable[str] = "abcd", name: str = "t") -> Table:
    values = tuple(values)
    rows = tuple({"topic": values[index % len(values)]} for index in range(count))
    examples = tuple(
        Example(f"{name}-{i}", f"q{i}", f"r{i}", domain=row["topic"]) for i, row in enumerate(rows)
    )
    return Table(
        path=Path(f"{name}.jsonl"),
        shape="columns",
        columns=("topic",),
        fields={},
        examples=examples,
        rows=rows,
    )


def owned(client: ClientData) -> list[str]:
    return [example.id for example in (*client.train, *client.validation, *client.test)]


def sizes(clients: tuple[ClientData, ...]) -> list[int]:
    return [len(owned(client)) for client in clients]


SPECS = [
    PartitionSpec(method="iid", clients=7),
    PartitionSpec(method="column", column="topic"),
    PartitionSpec(method="dirichlet", clients=5, column="topic", alpha=0.5),
    PartitionSpec(method="quantity", clients=12, alpha=0.05),
]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.method)
def test_every_row_has_one_owner_and_the_seed_decides(spec: PartitionSpec) -> None:
    data = table(403)
    clients = partition(data, spec, seed=3)
    assert Counter(row for client in clients for row in owned(client)) == Counter(
        example.id for example in data.examples
    )
    ids = [client.client_id for client in clients]
    assert ids == sorted(set(ids))
    assert all(is_client_id(name) for name in ids)
    assert min(len(client.train) for client in clients) >= 1
    assert partition(data, spec, seed=3) == clients
    assert partition(data, spec, seed=4) != clients


def test_iid_parts_are_equal() -> None:
    clients = partition(table(403), PartitionSpec(method="iid", clients=12), 0)
    assert set(sizes(clients)) == {33, 34}
    assert (clients[0].client_id, clients[-1].client_id) == ("client-00", "client-11")


def test_column_makes_one_client_per_value() -> None:
    data = table(40, ["law", "Café Zürich", "../law"][:2])
    clients = partition(data, PartitionSpec(method="column", column="topic", clients=2), 0)
    assert [client.client_id for client in clients] == ["Caf-Z-rich", "law"]
    assert {example.domain for example in clients[1].train} == {"law"}


def skew(alpha: float) -> float:
    """The mean share of the commonest value among a client's rows."""
    spec = PartitionSpec(method="dirichlet", clients=4, column="topic", alpha=alpha)
    shares = []
    for seed in range(20):
        clients = partition(table(800), spec, seed)
        for client in clients:
            domains = Counter(example.domain for example in client.train)
            shares.append(max(domains.values()) / domains.total())
    return sum(shares) / len(shares)


def test_a_smaller_alpha_skews_more() -> None:
    nearly_even, skewed = skew(1000.0), skew(0.3)
    assert nearly_even < 0.3  # four values: .25 is even
    assert skewed > 0.5


def test_quantity_skews_sizes_but_leaves_the_least_for_training() -> None:
    spec = PartitionSpec(method="quantity", clients=10, alpha=0.1, min_examples=5)
    clients = partition(table(500), spec, 0)
    assert max(sizes(clients)) > 150
    assert min(len(client.train) for client in clients) >= 5
    with pytest.raises(DataError, match=r"t\.jsonl: 50 rows are too few for 10 .* at least 6"):
        partition(table(50), spec, 0)
    even = partition(table(500), PartitionSpec(method="quantity", clients=10, alpha=1e6), 0)
    assert max(sizes(even)) - min(sizes(even)) <= 2


@pytest.mark.parametrize(("count", "parts"), [(1, (1, 0, 0)), (5, (4, 1, 0)), (100, (70, 20, 10))])
def test_fractions_round_down_and_leave_training_rows(
    count: int, parts: tuple[int, int, int]
) -> None:
    spec = PartitionSpec(method="iid", clients=1, validation=0.2, test=0.1)
    (client,) = partition(table(count), spec, 0)
    assert (len(client.train), len(client.validation), len(client.test)) == parts


def test_fractions_do_not_lose_a_row_to_floating_point() -> None:
    spec = PartitionSpec(method="iid", clients=1, validation=0.7, test=0.1)  # .7 + .1 is below .8
    (client,) = partition(table(10), spec, 0)
    assert (len(client.train), len(client.validation), len(client.test)) == (2, 7, 1)


FILES = PartitionSpec(method="files")


def test_a_client_is_split_alike_whatever_the_others_hold() -> None:
    ours, theirs = table(60, name="ours"), table(50, name="theirs")
    backwards = Table(
        path=theirs.path,
        shape=theirs.shape,
        columns=theirs.columns,
        fields={},
        examples=theirs.examples[::-1],
        rows=theirs.rows[::-1],
    )
    (one, two) = partition({"ours": ours, "theirs": theirs}, FILES, 1)
    (same, other) = partition({"theirs": backwards, "ours": ours}, FILES, 1)
    assert one == same
    assert other.client_id == two.client_id
    (alone,) = partition({"ours": ours}, FILES, 1)
    assert alone == one
    # Two clients of equal size are not split at the same places.
    (a, b) = partition({"a": ours, "b": ours}, FILES, 1)
    assert a.test != b.test
    assert [row.id for row in a.train] == sorted(
        (row.id for row in a.train), key=lambda name: int(name.split("-")[1])
    )


def test_a_given_test_file_replaces_the_fraction_for_its_client_only() -> None:
    files, tests = {"a x": table(50), "b": table(50)}, {"a x": table(7, name="test")}
    first, second = partition(files, FILES, 0, tests=tests)
    assert first.test == tests["a x"].examples
    assert (len(first.train), len(first.validation)) == (45, 5)
    assert (len(second.train), len(second.validation), len(second.test)) == (40, 5, 5)
    with pytest.raises(RecipeError, match="no client is called 'c'"):
        partition(files, FILES, 0, tests={"c": table(3)})
    with pytest.raises(RecipeError, match="only method 'files'"):
        partition(table(50), SPECS[0], 0, tests={"client-0": table(3)})


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("ok_Name-1.2", "ok_Name-1.2"),
        ("../x", "x"),
        ("../../etc/passwd", "etc-passwd"),
        ("/abs", "abs"),
        ("..\\win", "win"),
        (".hidden", "hidden"),
        ("a\n", "a"),
        ("a\0b", "a-b"),
        ("x" * 65, "x" * 64),
    ],
)
def test_names_become_safe_ids(name: str, slug: str) -> None:
    assert client_slug(name) == slug
    assert client_slug(slug) == slug


@pytest.mark.parametrize("name", ["", ".", "..", "/", "日本", "\ud800", "-./"])
def test_names_without_a_safe_character_still_get_an_id(name: str, tmp_path: Path) -> None:
    slug = client_slug(name)
    assert is_client_id(slug)
    assert (tmp_path / slug).resolve().parent == tmp_path.resolve()
    assert slug != client_slug(name + "本")


@pytest.mark.parametrize("names", [("a/b", "a b"), ("Law", "law"), ("x" * 64, "x" * 65)])
def test_names_that_would_share_a_folder_are_refused(names: tuple[str, str]) -> None:
    with pytest.raises(DataError, match="two clients would be called"):
        partition({name: table(10) for name in names}, FILES, 0)
    with pytest.raises(DataError, match="two clients would be called"):
        partition(table(10, names), PartitionSpec(method="column", column="topic"), 0)


def test_a_client_with_too_few_rows_is_named_with_the_fix() -> None:
    spec = PartitionSpec(method="dirichlet", clients=30, column="topic", alpha=0.01)
    with pytest.raises(DataError, match=r"client 'client-\d\d': 0 rows .*raise partition\.alpha"):
        partition(table(100), spec, 0)
    with pytest.raises(DataError, match=r"client 'client-\d'.*lower partition\.clients"):
        partition(table(3), PartitionSpec(method="iid", clients=5), 0)
    spec = PartitionSpec(method="files", min_examples=9)
    with pytest.raises(DataError, match=r"client 'b': 10 rows leave 8 .*min_examples \(9\); add"):
        partition({"a": table(20), "b": table(10)}, spec, 0)


def test_a_column_must_be_there_and_filled() -> None:
    data = table(10)
    with pytest.raises(DataError, match=r"t\.jsonl: there is no column 'kind'"):
        partition(data, PartitionSpec(method="column", column="kind"), 0)
    holes: list[Mapping[str, str]] = [*data.rows[:3], {}, *data.rows[4:]]
    patchy = Table(
        path=data.path,
        shape=data.shape,
        columns=data.columns,
        fields={},
        examples=data.examples,
        rows=tuple(holes),
    )
    with pytest.raises(DataError, match="row 4, field 'topic'"):
        partition(patchy, PartitionSpec(method="column", column="topic"), 0)


def test_a_number_of_clients_that_contradicts_the_data_is_refused() -> None:
    with pytest.raises(DataError, match=r"is 5, but 'column' makes 4"):
        partition(table(40), PartitionSpec(method="column", column="topic", clients=5), 0)


@pytest.mark.parametrize("method", ["iid", "files"])
def test_the_method_must_fit_what_is_given(method: Any) -> None:
    data: Any = table(20) if method == "files" else {"a": table(20)}
    with pytest.raises(RecipeError, match="does not fit"):
        partition(data, PartitionSpec(method=method, clients=1), 0)


@pytest.mark.parametrize(
    ("wrong", "key"),
    [
        ({"method": "iid"}, "partition.clients"),
        ({"method": "iid", "clients": 0}, "partition.clients"),
        ({"method": "column"}, "partition.column"),
        ({"method": "dirichlet", "clients": 2}, "partition.column"),
        ({"method": "quantity", "clients": 2, "alpha": 0.0}, "partition.alpha"),
        ({"method": "quantity", "clients": 2, "alpha": float("nan")}, "partition.alpha"),
        ({"method": "quantity", "clients": 2, "alpha": float("inf")}, "partition.alpha"),
        ({"method": "files", "validation": -0.1}, "partition.validation"),
        ({"method": "files", "test": 1.0}, "partition.test"),
        ({"method": "files", "validation": 0.5, "test": 0.5}, "nothing to train on"),
        ({"method": "files", "min_examples": 0}, "partition.min_examples"),
    ],
)
def test_a_spec_that_makes_no_sense_is_refused(wrong: dict[str, Any], key: str) -> None:
    with pytest.raises(RecipeError, match=key):
        PartitionSpec(**wrong)
