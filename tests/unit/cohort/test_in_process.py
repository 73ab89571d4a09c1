"""The in-process cohort: who is trained with whom, what goes out, and what stays."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fedsdr.algorithms.registry import make_algorithm
from fedsdr.errors import RecipeError
from fedsdr.model.base import BaseModel
from fedsdr.model.lora import StackedLora
from fedsdr.parts.views import Mixed, Rewritten
from fedsdr.site.branches import Branches
from fedsdr.site.prepare import _drawn, examples
from fedsdr.types import Order, Task, Tensors, Update
from toy import SPECS, Toy, clients, toy

pytestmark = pytest.mark.usefixtures("no_fsync")


def orders(
    one: Toy, round: int = 1, shared: Tensors | None = None, task: Task = "train"
) -> list[Order]:
    sent = shared if shared is not None else one.branches.first()
    names = sorted(one.cohort.site.clients)
    return [
        Order(
            run="toy",
            round=round,
            client_id=c,
            task=task,
            seed=5,
            shared=sent,
            settings={"lr": 0.01},
        )
        for c in names
    ]


def kept(one: Toy, client: str, round: int) -> Tensors:
    state = one.run.load_client_state(client, round + 1)
    assert state is not None
    return state.tensors.get("branches", {})


def test_groups_go_by_size_and_depend_on_who_was_asked_alone(
    base64: BaseModel, tmp_path: Path
) -> None:
    data = clients((2, 7, 4, 7, 1))
    with toy(base64, make_algorithm("fedavg"), tmp_path / "r", data, stack=2) as one:
        asked = orders(one)
        ids = [[o.client_id for o in g] for g in one.cohort.groups(asked)]
        assert ids == [["c1", "c3"], ["c2", "c0"], ["c4"]]
        assert one.cohort.groups(asked[::-1]) == one.cohort.groups(asked)


def test_a_group_that_has_answered_is_not_trained_again_and_a_torn_one_is_as_a_whole(
    base64: BaseModel, tmp_path: Path
) -> None:
    data = clients((2, 7, 4, 7))
    with toy(base64, make_algorithm("fedavg"), tmp_path / "r", data, stack=2) as one:
        answers = [u.client_id for u in one.cohort.ask(orders(one), {"c1", "c3", "c2"})]
        assert answers == ["c2", "c0"]


@pytest.mark.parametrize(
    ("name", "options", "branches"),
    [
        ("local", {}, set()),
        ("fedavg", {}, {"R"}),
        ("fedsd", {}, {"R"}),
        ("fedsdr", {}, {"R"}),
        ("fedsdr", {"ablation": "share_s"}, {"S"}),
        ("fedsdr", {"ablation": "share_both"}, {"R", "S"}),
    ],
)
def test_an_update_holds_what_is_shared_and_nothing_personal(
    name: str, options: Any, branches: set[str], base64: BaseModel, tmp_path: Path
) -> None:
    with toy(base64, make_algorithm(name, options), tmp_path / "r", clients((3, 2))) as one:
        for update in one.cohort.ask(orders(one)):
            assert {n.partition("/")[0] for n in update.shared} == branches
            assert update.shared.keys() == one.branches.first().keys()
            assert set(update.metrics) <= {
                "loss", "steps", "tokens", "examples", "loss_2", "steps_2", "tokens_2"
            }  # fmt: skip
            assert all(isinstance(v, (int, float)) for v in update.metrics.values())
            own = {n.partition("/")[0] for n in kept(one, update.client_id, 1)}
            assert own == set(one.algorithm.branches()) - branches


def test_only_half_a_branch_goes_up_where_only_half_is_shared(
    base64: BaseModel, tmp_path: Path
) -> None:
    algorithm = replace(make_algorithm("fedavg"), share="R.B")
    with toy(base64, algorithm, tmp_path / "r", clients((3,))) as one:
        (update,) = one.cohort.ask(orders(one))
        assert update.shared
        assert all(n.endswith(".B") for n in update.shared)
        assert all(n.endswith(".A") for n in kept(one, "c0", 1))


def test_an_update_is_the_change_from_what_was_sent(base64: BaseModel, tmp_path: Path) -> None:
    with toy(base64, make_algorithm("local"), tmp_path / "local", clients((3,))) as one:
        list(one.cohort.ask(orders(one)))
        alone = kept(one, "c0", 1)
    with toy(base64, make_algorithm("fedavg"), tmp_path / "fedavg", clients((3,))) as one:
        first = one.branches.first()
        (update,) = one.cohort.ask(orders(one))
        assert update.weight == 3.0
        assert update.base_digest == base64.digest
        for name, change in update.shared.items():
            assert torch.allclose(first[name] + change, alone[name], rtol=0, atol=1e-12)


def test_s_is_on_disk_before_the_update_is_handed_out(base64: BaseModel, tmp_path: Path) -> None:
    with toy(base64, make_algorithm("fedsdr"), tmp_path / "r", clients((3, 2))) as one:
        for update in one.cohort.ask(orders(one)):
            own = kept(one, update.client_id, 1)
            assert any(t.abs().max() > 0 for n, t in own.items() if n.endswith(".B"))


@pytest.mark.parametrize(
    ("s_state", "b_is_zero"), [("persist", False), ("reset", True), ("from_R", True)]
)
def test_how_s_enters_the_next_round(
    s_state: str, b_is_zero: bool, base64: BaseModel, tmp_path: Path
) -> None:
    """R is sent as it was in round 1 (B = 0): only a persisting S begins away from the start.
    Deployed, S is what the client kept, whatever happens to it when a round begins."""
    algorithm = make_algorithm("fedsdr", {"s_state": s_state})
    specs = {"R": SPECS["R"], "S": SPECS["R"]}
    with toy(base64, algorithm, tmp_path / "r", clients((3,)), specs=specs) as one:
        list(one.cohort.ask(orders(one)))
        first, state = one.branches.first(), kept(one, "c0", 1)
        begun, anchor = one.branches.begin(first, [state])
        columns = one.lora.layouts["S"].columns("B")
        assert bool((begun["S"][:, columns] == 0).all()) is b_is_zero
        assert torch.equal(begun["S"], anchor["S"])
        if s_state == "from_R":
            assert torch.equal(begun["S"], begun["R"])
        deployed, _ = one.branches.enter(first, [state])
        named = one.branches.names("S", deployed["S"][0])
        assert all(torch.equal(named[n], tensor) for n, tensor in state.items())


def test_copying_r_into_s_needs_equal_ranks(base64: BaseModel) -> None:
    algorithm = make_algorithm("fedsdr", {"s_state": "from_R"})
    lora = StackedLora(base64, "all-linear", SPECS)
    try:
        start = {b: lora.fresh(b, b) for b in SPECS}
        with pytest.raises(RecipeError, match=r"lora\.S\.rank has to be lora\.R\.rank"):
            Branches(lora, algorithm, start)
    finally:
        lora.remove()


def test_equal_weights(base64: BaseModel, tmp_path: Path) -> None:
    data = clients((3, 2))
    with toy(base64, make_algorithm("fedavg"), tmp_path / "r", data, equal_weights=True) as one:
        assert [u.weight for u in one.cohort.ask(orders(one))] == [1.0, 1.0]


def teachers(one: Toy, rounds: int) -> list[str]:
    """The digest of the teacher of each round, the global model being different in each."""
    found = []
    for number in range(1, rounds + 1):
        shared = {n: t + 0.01 * number for n, t in one.branches.first().items()}
        list(one.cohort.ask(orders(one, number, shared)))
        state = one.run.load_client_state("c0", number + 1)
        assert state is not None
        found.append(state.meta["teacher"])
    return found


@pytest.mark.parametrize(
    ("every", "same"), [(0, [0, 0, 0, 0, 0]), (1, [0, 1, 2, 3, 4]), (2, [0, 0, 2, 2, 4])]
)
def test_the_global_model_as_teacher_renewed_when_due(
    every: int, same: list[int], base64: BaseModel, tmp_path: Path
) -> None:
    options = {"teacher": "global", "redistill_every": every}
    with toy(base64, make_algorithm("fedsd", options), tmp_path / "r", clients((2,))) as one:
        found = teachers(one, 5)
        assert len(one.cohort.site.tokens) == 1, "rows of old teachers are dropped"
    assert [found.index(t) for t in found] == same
    assert "base" not in found


def test_the_base_as_teacher_is_asked_once(base64: BaseModel, tmp_path: Path) -> None:
    with toy(base64, make_algorithm("fedsd"), tmp_path / "r", clients((2,))) as one:
        told = list(one.cohort.ask(orders(one, 0, task="rewrite")))
        assert [report.values["audit"]["examples"] for report in told] == [2]
        drafts = (tmp_path / "r" / "rewrites" / "c0.jsonl").read_bytes()
        assert teachers(one, 3) == ["base"] * 3
        assert (tmp_path / "r" / "rewrites" / "c0.jsonl").read_bytes() == drafts
        audit = (tmp_path / "r" / "rewriting_audit.jsonl").read_text().splitlines()
        assert len(audit) == 2


def test_no_text_of_a_record_is_in_states_updates_or_rows(
    base64: BaseModel, tmp_path: Path
) -> None:
    with toy(base64, make_algorithm("fedsdr"), tmp_path / "r", clients((3, 2))) as one:
        one.play(rounds=1)
        for file in [*tmp_path.rglob("*.json"), *tmp_path.rglob("r/*.jsonl")]:
            assert b"Marudel" not in file.read_bytes(), file
        (row,) = one.run.rows("rounds.jsonl")
        assert json.dumps(row).count("c0") == 2  # its loss of S and of R


def test_updates_and_private_branches_are_copies(base64: BaseModel, tmp_path: Path) -> None:
    with toy(base64, make_algorithm("fedavg"), tmp_path / "r", clients((3, 2))) as one:
        one_update, other = one.cohort.ask(orders(one))
        assert isinstance(other, Update)
        name = next(iter(one_update.shared))
        before = other.shared[name].clone()
        for tensor in one_update.shared.values():
            tensor.fill_(9.0)
        assert torch.equal(other.shared[name], before)


@pytest.mark.usefixtures("no_fsync")
def test_which_answers_of_a_mixed_view_are_rewritten_hangs_on_the_runs_seed(
    base64: BaseModel, tmp_path: Path
) -> None:
    """Of 40 rows about half, others for another seed, and the same for the same."""
    view, data = Mixed(0.5, Rewritten()), clients((40,))
    rewritten = dict[int, list[bool]]()
    with toy(base64, make_algorithm("fedsd"), tmp_path / "run", data) as one:
        raw = data["c0"].train
        for seed in (5, 6, 5):
            one.cohort.site.seed = seed
            drawn = [_drawn(one.cohort.site, "c0", e) < 0.5 for e in raw]
            assert drawn == rewritten.setdefault(seed, drawn)
        one.cohort.site.seed = 5
        mixed = examples(one.cohort.site, "c0", view)
        whole = examples(one.cohort.site, "c0", view.rewritten)
    chosen = [b if yes else a for a, b, yes in zip(raw, whole, rewritten[5], strict=True)]
    assert list(mixed) == chosen
    assert rewritten[5] != rewritten[6]
    assert all(10 < sum(drawn) < 30 for drawn in rewritten.values())
