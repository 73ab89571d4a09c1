"""Clients of a round compared: by hand, against dense matrices, and for every algorithm."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fedsdr.algorithms.fedsdr import fedsdr
from fedsdr.algorithms.registry import factories, make_algorithm
from fedsdr.algorithms.server import with_server_rule
from fedsdr.cohort import observer
from fedsdr.cohort.observer import RoundObserver
from fedsdr.coordinator.loop import LoopSettings, run_rounds
from fedsdr.evaluate.diagnostics import rounds
from fedsdr.evaluate.diagnostics.rounds import Beside, ClientRound, aggregation_error, compare, norm
from fedsdr.model.base import BaseModel
from fedsdr.model.lora import BranchSpec, Layout, Piece
from fedsdr.parts.lowrank import Pair
from fedsdr.types import ServerState, Update
from toy import SPECS, Toy, clients, toy

pytestmark = pytest.mark.usefixtures("no_fsync")
LAYERS = {"R": ["l"]}
START = {"R/l.A": torch.tensor([[1.0, 0.0]]), "R/l.B": torch.zeros(2, 1)}


def client(
    name: str, weight: float, da: list[float], db: list[float], scale: float = 1.0
) -> ClientRound:
    """Of rank 1, in and out of width 2; everybody begins with A = (1, 0), B = 0."""
    sent = {"R/l.A": torch.tensor([da]), "R/l.B": torch.tensor(db)[:, None]}
    return ClientRound(name, weight, START, sent, {}, {"R": scale})


def two(scale: float = 1.0) -> list[ClientRound]:
    """g_a = [[1, 0], [0, 0]],  g_b = (−1, 1)ᵀ (1, 1) = [[−1, −1], [1, 1]]."""
    return [
        client("a", 3.0, [0.0, 0.0], [1.0, 0.0], scale),
        client("b", 1.0, [0.0, 1.0], [-1.0, 1.0], scale),
    ]


def test_two_clients_by_hand() -> None:
    """⟨g_a, g_b⟩ = −1, ‖g_a‖ = 1, ‖g_b‖ = 2. With p = ¾, ¼: Σ p‖g‖² = 1.75 and
    ‖[[½, −¼], [¼, ¼]]‖² = .4375. Numbers (A, B): w̄ − w = (0, ¼, ½, ¼); a is as far from it as that
    is long, b three times as far: ¾·1 + ¼·3."""
    row = compare(two(), 2, LAYERS)
    assert row == {
        "clients": ["a", "b"],
        "branches": {
            "R": {
                "cosine": [[1.0, -0.5], [-0.5, 1.0]],
                "norms": {"a": 1.0, "b": 2.0},
                "conflict": 1.0,
                "diversity": 4.0,
                "drift": 1.5,
            }
        },
    }


def test_the_scale_is_in_the_norms_and_in_nothing_else() -> None:
    plain, scaled = compare(two(), 2, LAYERS), compare(two(2.5), 2, LAYERS)
    assert scaled["branches"]["R"].pop("norms") == {"a": 2.5, "b": 5.0}
    plain["branches"]["R"].pop("norms")
    assert scaled == plain


def test_the_aggregation_error_by_hand() -> None:
    """B̄ Ā = (½, ¼)ᵀ (1, ¼) against [[½, −¼], [¼, ¼]]: it misses (3/8)² + (3/16)² = 45/256 of a
    square of 112/256."""
    averaged = Pair(torch.tensor([[1.0, 0.25]]), torch.tensor([[0.5], [0.25]]))
    found = aggregation_error(two(), 2, "R", ["l"], lambda place: [averaged])
    assert found == pytest.approx(math.sqrt(45 / 112), abs=1e-6)


def test_what_is_folded_into_the_base_counts_dense_or_not() -> None:
    averaged = Pair(torch.tensor([[1.0, 0.25]]), torch.tensor([[0.5], [0.25]]))
    missing = torch.tensor([[0.0, -0.375], [0.0, 0.1875]])
    as_pair = Pair(torch.tensor([[0.0, 1.0]]), torch.tensor([[-0.375], [0.1875]]))
    for more in (missing, as_pair):
        terms = [averaged, more]
        assert aggregation_error(two(), 2, "R", ["l"], lambda place, t=terms: t) == 0.0
    assert norm([missing, as_pair]) == pytest.approx(2 * math.sqrt(45 / 256))


def test_with_one_a_for_all_the_means_are_exact() -> None:
    held = [client("a", 3.0, [0, 0], [1.0, 0.0]), client("b", 1.0, [0, 0], [-1.0, 1.0])]
    averaged = Pair(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5], [0.25]]))
    assert aggregation_error(held, 2, "R", ["l"], lambda place: [averaged]) == 0.0


def test_identical_clients() -> None:
    same = [client(name, w, [0.5, 1.0], [-1.0, 3.0]) for name, w in (("a", 1.0), ("b", 7.0))]
    found = compare(same, 2, LAYERS)["branches"]["R"]
    assert found["cosine"] == [[1.0, 1.0], [1.0, 1.0]]
    assert (found["conflict"], found["diversity"], found["drift"]) == (0.0, 1.0, 0.0)


def test_opposite_clients_have_no_common_direction() -> None:
    held = [client("a", 1.0, [0, 0], [1.0, 2.0]), client("b", 1.0, [0, 0], [-1.0, -2.0])]
    found = compare(held, 2, LAYERS)["branches"]["R"]
    assert (found["conflict"], found["diversity"], found["drift"]) == (1.0, None, None)


def test_right_angles_are_no_conflict() -> None:
    held = [client("a", 1.0, [0, 0], [1.0, 0.0]), client("b", 1.0, [0, 0], [0.0, 1.0])]
    found = compare(held, 2, LAYERS)["branches"]["R"]
    assert (found["cosine"][0][1], found["conflict"], found["diversity"]) == (0.0, 0.0, 2.0)


def test_one_that_did_not_move_has_no_direction() -> None:
    """A change of A alone while B = 0 changes no product; the mean moves by half of the other."""
    held = [client("a", 1.0, [0.0, 5.0], [0, 0]), client("b", 1.0, [0, 0], [3.0, 4.0])]
    found = compare(held, 2, LAYERS)["branches"]["R"]
    assert found["cosine"] == [[None, None], [None, 1.0]]
    assert (found["norms"], found["conflict"]) == ({"a": 0.0, "b": 5.0}, None)
    assert found["diversity"] == 2.0


def test_one_client_alone_and_nobody_who_moved() -> None:
    found = compare(two()[:1], 1, LAYERS)["branches"]["R"]
    assert found["cosine"] == [[1.0]]
    assert (found["conflict"], found["diversity"], found["drift"]) == (None, 1.0, 0.0)
    still = [client("a", 1.0, [0, 0], [0, 0])]
    assert compare(still, 1, LAYERS) == {"clients": ["a"], "branches": {}}
    assert aggregation_error(still, 1, "R", ["l"], lambda place: []) is None


def test_s_beside_r_by_hand() -> None:
    """R = [[2, 0], [0, 0]], S = 3·[[1, 1], [0, 0]]: 3·√2 / 2, at 45 degrees."""
    begun = {**START, "S/l.A": torch.tensor([[1.0, 1.0]]), "S/l.B": torch.zeros(2, 1)}
    kept = {"S/l.A": torch.tensor([[1.0, 1.0]]), "S/l.B": torch.tensor([[1.0], [0.0]])}
    held = [ClientRound("a", 1.0, begun, {}, kept, {"R": 1.0, "S": 3.0})]
    server = Pair(START["R/l.A"].double(), torch.tensor([[2.0], [0.0]]).double())
    beside = Beside("R", "S", lambda place: server if place[0] == "R" else None)
    row = compare(held, 1, {"R": ["l"], "S": ["l"]}, beside)
    assert row["personal"] == {"a": {"s_over_r": 2.12132, "cos_s_r": 0.707107}}
    assert row["branches"].keys() == {"S"}
    untrained = [ClientRound("a", 1.0, begun, {}, {}, {"R": 1.0, "S": 3.0})]
    row = compare(untrained, 1, {"R": ["l"], "S": ["l"]}, beside)
    assert row["personal"] == {"a": {"s_over_r": 0.0, "cos_s_r": None}}


def test_the_change_is_exact_where_it_is_tiny_against_the_branch() -> None:
    """B₁A₁ − B₀A₀ as a difference of two products would lose most of its digits here."""
    begun = {"R/l.A": torch.full((1, 2), 1e4), "R/l.B": torch.full((2, 1), 1e4)}
    sent = {"R/l.A": torch.tensor([[3e-7, 0.0]]), "R/l.B": torch.zeros(2, 1)}
    found = compare([ClientRound("a", 1.0, begun, sent, {}, {"R": 1.0})], 1, LAYERS)
    assert found["branches"]["R"]["norms"]["a"] == pytest.approx(3e-3 * math.sqrt(2), rel=1e-6)


def test_in_as_many_portions_as_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    random = torch.Generator().manual_seed(3)
    places = [(b, x) for b in "RS" for x in ("one", "two", "three")]
    shapes = {f"{b}/{x}.{h}": (3, 5) if h == "A" else (4, 3) for b, x in places for h in "AB"}

    def some() -> Mapping[str, Tensor]:
        return {n: torch.randn(shape, generator=random) for n, shape in shapes.items()}

    begun = some()
    held = [
        ClientRound(c, w, begun, {n: t for n, t in some().items() if n[0] == "R"},
                    {n: t for n, t in some().items() if n[0] == "S"}, {"R": 2.0, "S": 0.5})
        for c, w in (("a", 1.0), ("b", 2.0), ("c", 0.5))
    ]  # fmt: skip
    layers = {"R": ["one", "two", "three"], "S": ["one", "three"]}
    whole = compare(held, 3, layers)
    monkeypatch.setattr(rounds, "ROOM", 1)
    assert len(list(rounds.portions(held, 3, layers))) == 3
    parts = compare(held, 3, layers)
    assert parts["clients"] == whole["clients"]
    assert flat(parts["branches"]) == pytest.approx(flat(whole["branches"]), abs=2e-6)


def flat(tree: Any) -> list[float]:
    if isinstance(tree, Mapping):
        return [x for value in tree.values() for x in flat(value)]
    return [x for value in tree for x in flat(value)] if isinstance(tree, list) else [tree]


# Every algorithm, in the real cohort and loop

WHOLE = {"cosine", "norms", "conflict", "diversity", "drift", "aggregation_error"}
SENT_ONLY = WHOLE - {"aggregation_error"}
AT_HOME = {"cosine", "norms", "conflict", "diversity"}
EXPECTED: dict[str, dict[str, set[str]]] = {
    "local": {"R": AT_HOME},
    "fedsa_lora": {"R": SENT_ONLY},
    "fedsdr": {"R": WHOLE, "S": AT_HOME},
    "pfedlora": {"R": WHOLE, "L": AT_HOME},
    "ditto": {"R": WHOLE, "V": AT_HOME},
    "fedala": {"R": WHOLE, "L": AT_HOME},
    "feddpa": {"R": WHOLE, "L": AT_HOME},
    "fdlora": {"R": WHOLE, "L": AT_HOME},
}
EXACT = ("ffa_lora", "rolora", "flora", "fedex_lora")
BESIDE = {"fedsdr": "S", "pfedlora": "L", "feddpa": "L", "fdlora": "L"}


def observed(one: Toy, rounds: int = 3, **settings: Any) -> list[dict[str, Any]]:
    """The rows of a run, each compared with dense matrices while the clients' states are there."""
    looking = RoundObserver(one.branches, one.run, 5)

    def observe(before: ServerState, admitted: Any, counted: Any, after: ServerState) -> Any:
        row = looking(before, admitted, counted, after)
        for branch, found in row["branches"].items():
            chosen = [update for update in admitted if update.client_id in row["clients"]]
            expected = dense_cosines(one, branch, before, chosen)
            assert flat(found["cosine"]) == pytest.approx(flat(expected), abs=2e-6)
        json.dumps(row, allow_nan=False)
        return row

    names = sorted(one.cohort.site.clients)
    first = ServerState(0, one.branches.first(), seed=5, clients=len(names))
    chosen = LoopSettings(
        run="toy", seed=5, rounds=rounds, lr=1e-2, ranks=one.branches.ranks, **settings
    )
    digest = one.lora.base.digest
    run_rounds(
        one.algorithm,
        one.cohort,
        clients=names,
        first=first,
        run=one.run,
        settings=chosen,
        base_digest=digest,
        observe=observe,
    )
    return one.run.rows("diagnostics.jsonl")


def dense_cosines(
    one: Toy, branch: str, before: ServerState, updates: Iterable[Update]
) -> list[list[float]]:
    """As the cohort puts branches together, with every product written out."""
    changes = list[Tensor]()
    for update in updates:
        client = update.client_id
        own = [one.run.load_client_state(client, update.round + last) for last in (0, 1)]
        kept = [state.tensors["branches"] if state is not None else {} for state in own]
        sent = one.algorithm.downlink(before, one.branches.rank(client))
        begun, _ = one.branches.begin([sent], kept[:1])
        ended = one.branches.assemble(
            one.branches.names(branch, begun[branch][0]),
            kept[1],
            {n: sent[n] + change for n, change in update.shared.items()},
        )
        products = [
            dict(layer_products(one, branch, flat)) for flat in (begun[branch][0], ended[branch])
        ]
        shared = [x for x in products[0] if one.branches.is_shared(f"{branch}/{x}.B")]
        layers = shared or list(products[0])
        changes.append(torch.cat([(products[1][x] - products[0][x]).flatten() for x in layers]))
    stacked = torch.stack(changes)
    unit = stacked / stacked.norm(dim=1, keepdim=True)
    return (unit @ unit.T).tolist()


def layer_products(one: Toy, branch: str, flat: Tensor) -> Iterable[tuple[str, Tensor]]:
    named = one.branches.names(branch, flat)
    for name, a in named.items():
        if name.endswith(".A"):
            yield name.partition("/")[2][:-2], named[f"{name[:-2]}.B"] @ a


@pytest.mark.parametrize("name", sorted(factories()))
def test_every_algorithm(name: str, base64: BaseModel, tmp_path: Path) -> None:
    with toy(base64, make_algorithm(name), tmp_path / "run", clients((2, 5, 3))) as one:
        rows = observed(one)
    assert [row["round"] for row in rows] == [1, 2, 3]
    found: dict[str, set[str]] = {}
    for row in rows:
        for branch, measured in row["branches"].items():
            found.setdefault(branch, set()).update(measured)
            assert len(measured["cosine"]) == len(row["clients"])
            assert measured["norms"].keys() == set(row["clients"])
            assert min(measured["norms"].values()) > 0
            if measured["diversity"] is not None:
                assert measured["diversity"] >= 1.0
        assert ("personal" in row) == (name in BESIDE)
    assert found == EXPECTED.get(name, {"R": WHOLE})
    errors = [row["branches"]["R"].get("aggregation_error") for row in rows]
    if name in EXACT:
        assert errors == [0.0] * 3
    elif name in ("fedavg", "fedsdr", "fedper", "hetlora"):
        assert min(errors) > 1e-4


@pytest.mark.parametrize(
    ("options", "branches", "personal"),
    [
        ({"s_state": "reset"}, {"R", "S"}, True),
        ({"s_state": "from_R"}, {"R", "S"}, True),
        ({"schedule": "warmup"}, {"R", "S"}, True),
        ({"ablation": "share_both"}, {"R", "S"}, False),
        ({"ablation": "share_s"}, {"R", "S"}, True),
        ({"ablation": "without_s"}, {"R"}, False),
    ],
)
def test_fedsdr_in_its_variants(
    options: dict[str, Any], branches: set[str], personal: bool, base64: BaseModel, tmp_path: Path
) -> None:
    specs = dict.fromkeys("RS", SPECS["R"])
    with toy(base64, fedsdr(**options), tmp_path / "r", clients((2, 5, 3)), specs=specs) as one:
        rows = observed(one, 2, participation=2.0)
    assert {branch for row in rows for branch in row["branches"]} == branches
    for row in rows:
        assert ("personal" in row) == personal
        if personal:
            assert row["personal"].keys() == set(row["clients"])


def test_s_over_r_from_the_states_on_disk(base64: BaseModel, tmp_path: Path) -> None:
    with toy(base64, fedsdr(), tmp_path / "run", clients((2, 5))) as one:
        row = observed(one, 2)[-1]
        shared = one.run.load_checkpoint(2).tensors["shared"]
        for client in row["clients"]:
            state = one.run.load_client_state(client, 3)
            assert state is not None
            flats, _ = one.branches.enter(shared, [state.tensors["branches"]])
            r, s = (
                torch.cat([w.flatten() for _, w in layer_products(one, b, flats[b][0])])
                * SPECS[b].scale
                for b in "RS"
            )
            assert row["personal"][client] == {
                "s_over_r": pytest.approx(float(s.norm() / r.norm()), abs=1e-6),
                "cos_s_r": pytest.approx(float(s @ r / s.norm() / r.norm()), abs=1e-6),
            }


@pytest.mark.parametrize("name", ["flora", "flexlora", "hetlora"])
def test_at_different_ranks(name: str, base64: BaseModel, tmp_path: Path) -> None:
    """A mean of numbers of different ranks means nothing; products compare all the same."""
    ranks = {"c0": 1, "c1": 2, "c2": 1}
    with toy(base64, make_algorithm(name), tmp_path / "r", clients((2, 5, 3)), ranks=ranks) as one:
        rows = observed(one, 2)
    for row in rows:
        assert row["branches"]["R"].keys() == WHOLE - {"drift"}
    if name == "flora":
        assert [row["branches"]["R"]["aggregation_error"] for row in rows] == [0.0, 0.0]


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("ffa_lora", "clip(0.001)"),  # all are clipped, and the mean of B·A with one A is exact
        ("fedavg", "krum(0)"),  # one is left, and is its own mean
    ],
)
def test_what_filters_leave_is_what_the_server_is_held_to(
    name: str, rule: str, base64: BaseModel, tmp_path: Path
) -> None:
    algorithm = with_server_rule(make_algorithm(name), filters=[rule])
    with toy(base64, algorithm, tmp_path / "run", clients((2, 5, 3))) as one:
        row = observed(one, 2)[-1]
    assert row["clients"] == ["c0", "c1", "c2"]
    assert row["branches"]["R"]["aggregation_error"] == 0.0
    assert min(row["branches"]["R"]["norms"].values()) > 0.01


def test_of_many_clients_a_sample(
    base64: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observer, "MOST", 2)
    with toy(base64, make_algorithm("fedavg"), tmp_path / "a", clients((2, 5, 3, 4))) as one:
        rows = observed(one, 4)
    with toy(base64, make_algorithm("fedavg"), tmp_path / "b", clients((2, 5, 3, 4))) as one:
        assert observed(one, 4) == rows
    assert {row["sampled_of"] for row in rows} == {4}
    assert {len(row["clients"]) for row in rows} == {2}
    assert len({tuple(row["clients"]) for row in rows}) > 1
    for row in rows:
        assert row["clients"] == sorted(row["clients"])
        assert row["branches"]["R"].keys() == SENT_ONLY


def test_the_larger_the_model_the_fewer_are_compared() -> None:
    """In 7B models of 224 layers, 4096 wide."""

    def layout(rank: int) -> Layout:
        size = 224 * rank * 2 * 4096
        return Layout(BranchSpec(rank), (Piece("x.A", 0, (rank, size // rank)),))

    assert [observer.most_compared([layout(rank)]) for rank in (4, 8, 16, 64)] == [64, 32, 16, 8]
    assert observer.most_compared([layout(16)] * 2) == 11
    assert observer.most_compared([]) == 64


def test_nothing_but_figures_is_written(base64: BaseModel, tmp_path: Path) -> None:
    with toy(base64, fedsdr(), tmp_path / "run", clients((2, 5))) as one:
        rows = observed(one, 1)
    words = {x for x in keys_and_texts(rows) if isinstance(x, str)}
    assert words == {
        "round", "clients", "branches", "personal", "R", "S", "c0", "c1", "s_over_r", "cos_s_r"
    } | WHOLE  # fmt: skip


def keys_and_texts(tree: Any) -> Iterable[Any]:
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield key
            yield from keys_and_texts(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from keys_and_texts(value)
    else:
        yield tree
