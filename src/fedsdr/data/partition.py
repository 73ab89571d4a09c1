"""From tables to clients: who owns which rows, and which of them are kept for validation and test.

Every choice derives from the seed. How a client's rows are split depends on its own name and rows
alone, never on the other clients.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Literal, TypeVar

import numpy as np
import torch

from fedsdr.data.formats import Table
from fedsdr.errors import DataError, RecipeError
from fedsdr.tensors import derive_seed, generator
from fedsdr.types import ClientData, Example

Item = TypeVar("Item")
MOST_CLIENTS = 10_000
MOST_DEALT = 2_000_000  # values × clients of a Dirichlet partition, each a share of its own
LEAST_ALPHA, LARGEST_ALPHA = 1e-6, 1e6
Method = Literal["files", "iid", "column", "dirichlet", "quantity"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionSpec:
    """How rows become clients.

    `files`: one file per client. `column`: one client per value. `iid`: equal random parts.
    `dirichlet`: each value of `column` is dealt to the clients in Dirichlet(alpha) proportions.
    `quantity`: random parts whose sizes are skewed by Dirichlet(alpha).
    `validation` and `test` are fractions of each client's rows.
    """

    method: Method = "iid"
    clients: int | None = None
    column: str = ""
    alpha: float = 0.5
    validation: float = 0.1
    test: float = 0.1
    min_examples: int = 1

    def __post_init__(self) -> None:
        if self.method in ("iid", "dirichlet", "quantity") and self.clients is None:
            raise RecipeError(
                f"partition.clients: method {self.method!r} needs a number of clients"
            )
        if self.clients is not None and not 1 <= self.clients <= MOST_CLIENTS:
            raise RecipeError(
                f"partition.clients: must be at least 1, at most {MOST_CLIENTS:,}, not "
                f"{self.clients}"
            )
        if self.method in ("column", "dirichlet") and not self.column:
            raise RecipeError(f"partition.column: method {self.method!r} needs a column")
        if not LEAST_ALPHA <= self.alpha <= LARGEST_ALPHA:
            raise RecipeError(
                f"partition.alpha: must be at least {LEAST_ALPHA:g}, at most {LARGEST_ALPHA:g}, "
                f"not {self.alpha}"
            )
        for name, share in (("validation", self.validation), ("test", self.test)):
            if not 0 <= share < 1:
                raise RecipeError(f"partition.{name}: must be at least 0 and below 1, not {share}")
        if self.validation + self.test >= 1:
            raise RecipeError("partition: validation and test together leave nothing to train on")
        if self.min_examples < 1:
            raise RecipeError(
                f"partition.min_examples: must be at least 1, not {self.min_examples}"
            )


def partition(
    tables: Table | Mapping[str, Table],
    spec: PartitionSpec,
    seed: int,
    tests: Mapping[str, Table] | None = None,
) -> tuple[ClientData, ...]:
    """The clients, sorted by id.

    With method `files`, `tables` maps client names to files, and `tests` may give some of those
    clients a test file; no test rows are then taken from their own file.

    Args:
        tables: One table, or with method `files` client names to tables.
        spec: The method, how many clients, and how much is held out.
        seed: Decides whatever is drawn.
        tests: With method `files`, a test table for some clients; none of their own
            rows is held out then.
    """
    tests = tests or {}
    if isinstance(tables, Mapping) != (spec.method == "files"):
        given = "a mapping of files" if isinstance(tables, Mapping) else "one file"
        raise RecipeError(
            f"partition.method: {spec.method!r} does not fit {given}; "
            "'files' takes one file per client, every other method one file"
        )
    if isinstance(tables, Table):
        if tests:
            raise RecipeError("test files: only method 'files' takes them; leave them out")
        owned = _named(_owned(tables, spec, seed))
    else:
        if strangers := sorted(tests.keys() - tables.keys()):
            raise RecipeError(f"test files: no client is called {strangers[0]!r}")
        owned = _named({name: table.examples for name, table in tables.items()})
    if spec.clients not in (None, len(owned)):
        raise DataError(
            f"partition.clients: is {spec.clients}, but {spec.method!r} makes {len(owned)}; "
            "correct it or leave it out"
        )
    if len(owned) > MOST_CLIENTS:
        raise DataError(
            f"{spec.method!r} makes {len(owned):,} clients, more than {MOST_CLIENTS:,}; partition "
            "by a column with fewer values, or leave clients out"
        )
    given_tests = {client_slug(name): table.examples for name, table in tests.items()}
    clients = (
        _split(name, rows, spec, seed, given_tests.get(name)) for name, rows in owned.items()
    )
    return tuple(sorted(clients, key=lambda client: client.client_id))


def client_slug(name: str) -> str:
    """A client id that is safe as a file name; a safe name is left as it is, `../x` becomes `x`."""
    if is_client_id(name):
        return name
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-")[:64]
    return slug or f"client-{hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()[:12]}"


def is_client_id(name: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}", name) is not None


def check_distinct(names: Iterable[str]) -> None:
    """Refuses ids that would share a folder, also where the file system ignores case."""
    seen: dict[str, str] = {}
    for name in names:
        slug = client_slug(name)
        if seen.setdefault(slug.casefold(), name) != name:
            raise DataError(
                f"two clients would be called {slug!r} (case aside); rename one of them"
            )


def _named(owned: Mapping[str, Sequence[Example]]) -> dict[str, Sequence[Example]]:
    check_distinct(owned)
    return {client_slug(name): rows for name, rows in owned.items()}


def _owned(table: Table, spec: PartitionSpec, seed: int) -> dict[str, Sequence[Example]]:
    if spec.method == "column":
        return _by_value(table, spec.column)
    count = spec.clients or 1
    if spec.method == "dirichlet":
        groups = _by_value(table, spec.column)
        if len(groups) * count > MOST_DEALT:
            raise DataError(
                f"{table.path}: column {spec.column!r} has {len(groups):,} values, too many to "
                f"deal each to {count:,} clients; partition by one with fewer"
            )
        parts = _dirichlet(groups, count, spec.alpha, seed)
    else:
        order = _shuffled(table.examples, seed, "partition", spec.method)
        total, equal = len(order), [1 / count] * count
        if spec.method == "iid":
            parts = _cut(order, equal)
        else:
            floor = _smallest(spec, total + 1)
            if floor * count > total:
                raise DataError(
                    f"{table.path}: {total} rows are too few for {count} clients of at least "
                    f"{floor} rows each; {_remedy(spec)}"
                )
            # The floor first, so that the skew never leaves a client with nothing to train on.
            firsts, rest = order[: floor * count], order[floor * count :]
            skewed = _cut(rest, _proportions(count, spec.alpha, seed, "quantity"))
            parts = [[*f, *s] for f, s in zip(_cut(firsts, equal), skewed, strict=True)]
    width = len(str(count - 1))
    return {f"client-{index:0{width}d}": part for index, part in enumerate(parts)}


def _dirichlet(
    groups: Mapping[str, Sequence[Example]], count: int, alpha: float, seed: int
) -> list[list[Example]]:
    """Label skew as in Hsu et al. 2019 (arXiv:1909.06335), value by value."""
    parts: list[list[Example]] = [[] for _ in range(count)]
    for value in sorted(groups):
        order = _shuffled(groups[value], seed, "partition", "dirichlet", value)
        shares = _proportions(count, alpha, seed, "dirichlet", value)
        for part, more in zip(parts, _cut(order, shares), strict=True):
            part.extend(more)
    return parts


def _by_value(table: Table, column: str) -> dict[str, Sequence[Example]]:
    groups: dict[str, list[Example]] = {}
    if column not in table.columns:
        raise DataError(f"{table.path}: there is no column {column!r}, named by partition.column")
    if column in table.mixed:
        raise DataError(
            f"{table.path}, field {column!r}: {table.mixed[column]}; write all values alike to "
            "partition by them"
        )
    for number, (row, example) in enumerate(zip(table.rows, table.examples, strict=True), 1):
        value = row.get(column, "")
        if not value.strip():
            raise DataError(
                f"{table.path}, row {number}, field {column!r}: has no value (text, number or "
                "true/false) to partition by"
            )
        groups.setdefault(value, []).append(example)
    return dict(groups)


def _split(
    name: str,
    rows: Sequence[Example],
    spec: PartitionSpec,
    seed: int,
    test: Sequence[Example] | None,
) -> ClientData:
    order = _shuffled(range(len(rows)), seed, "split", name)
    share = spec.test if test is None else 0.0
    tested, kept = _part(len(rows), share), _part(len(rows), share + spec.validation)
    if len(rows) - kept < spec.min_examples:
        raise DataError(
            f"client {name!r}: {len(rows)} rows leave {len(rows) - kept} to train on, fewer than "
            f"partition.min_examples ({spec.min_examples}); {_remedy(spec)}"
        )
    return ClientData(
        client_id=name,
        train=_pick(rows, order[kept:]),
        validation=_pick(rows, order[tested:kept]),
        test=_pick(rows, order[:tested]) if test is None else tuple(test),
    )


def _pick(rows: Sequence[Example], chosen: Iterable[int]) -> tuple[Example, ...]:
    """In the rows' own order again: what is drawn is the split, not a sequence."""
    return tuple(rows[index] for index in sorted(chosen))


def _remedy(spec: PartitionSpec) -> str:
    fixes: Mapping[Method, str] = {
        "files": "add rows to its file or leave the client out",
        "column": "drop the rows of this value or partition by another column",
        "iid": "lower partition.clients",
        "dirichlet": "lower partition.clients, raise partition.alpha or take another seed",
        "quantity": "lower partition.clients",
    }
    return f"{fixes[spec.method]}, or lower partition.validation and partition.test"


def _part(count: int, share: float) -> int:
    """Rounded down, so that a client with any row keeps one; 1e-9 forgives .1 + .2 in floats."""
    return int(count * share + 1e-9)


def _smallest(spec: PartitionSpec, most: int) -> int:
    """The fewest rows that leave `min_examples` to train on; `most` if it takes more."""
    least, share = spec.min_examples, spec.validation + spec.test
    return next((n for n in range(least, most) if n - _part(n, share) >= least), max(least, most))


def _proportions(count: int, alpha: float, seed: int, *purpose: str) -> Sequence[float]:
    rng = np.random.default_rng(derive_seed(seed, "proportions", *purpose))
    return [float(share) for share in rng.dirichlet([alpha] * count)]


def _cut(items: Sequence[Item], shares: Sequence[float]) -> list[list[Item]]:
    """Consecutive parts in the given proportions; together they are all items."""
    ends = [round(share * len(items)) for share in accumulate(shares)]
    return [list(items[start:end]) for start, end in pairwise([0, *ends[:-1], len(items)])]


def _shuffled(items: Sequence[Item], *seed: str | int) -> list[Item]:
    order = torch.randperm(len(items), generator=generator(*seed))
    return [items[int(index)] for index in order.numpy()]
