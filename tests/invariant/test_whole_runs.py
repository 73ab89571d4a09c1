"""What only a whole run shows: attackers, clients that never train, ranks that differ, and that the
adapters on disk are the models that were scored."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from fedsdr.algorithms.registry import make_algorithm
from fedsdr.coordinator.loop import Cohort
from fedsdr.jobs import train as experiment
from fedsdr.jobs.assembly import assemble, given
from fedsdr.model.base import BaseModel
from fedsdr.model.loading import keep_norms_wide
from fedsdr.parts.algorithm import mix_weights, split_mix
from fedsdr.runs.directory import RunDirectory
from fedsdr.runs.purge import purge
from fedsdr.types import FOLD, Lost, Order, Update
from toy import clients, recipe

CLIENTS = list(clients((2, 7, 4, 1, 3)).values())
pytestmark = pytest.mark.usefixtures("no_fsync")


def rows(root: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / "rounds.jsonl").read_text().splitlines()]


@dataclass(frozen=True, slots=True)
class Attacked:
    """One client sends something else than it trained."""

    cohort: Cohort
    attack: Callable[[Tensor], Tensor]

    def ask(self, orders: Sequence[Order], answered: set[str]) -> Iterable[Update | Lost]:
        for answer in self.cohort.ask(orders, answered):
            if isinstance(answer, Update) and answer.client_id == "c1":
                answer = replace(
                    answer, shared={n: self.attack(t) for n, t in answer.shared.items()}
                )
            yield answer


def attacked(folder: Path, base: BaseModel, out: Path, attack: Any, **server: Any) -> Path:
    chosen = recipe(folder, algorithm={"name": "fedavg"}, server=server)
    wrap = lambda cohort: Attacked(cohort, attack)  # noqa: E731
    experiment.train(chosen, out, base=base, clients=CLIENTS, wrap=wrap)
    return out


def size(root: Path) -> float:
    run = RunDirectory.open(root)
    number, checkpoint, _ = run.load_latest_checkpoint()
    assert number == rows(root)[-1]["round"]
    return max(float(t.abs().max()) for t in checkpoint.tensors["shared"].values())


def test_a_client_that_sends_nan_is_refused_and_named(
    tiny_folder: Path, base64: BaseModel, tmp_path: Path
) -> None:
    nan = lambda t: torch.full_like(t, torch.nan)  # noqa: E731
    root = attacked(tiny_folder, base64, tmp_path / "run", nan)
    for row in rows(root):
        assert "c1" not in row["losses"]
        assert any("c1" in told and "NaN" in told for told in row["refused"])


@pytest.mark.parametrize(
    "server",
    [
        {"combine": "median"},
        {"combine": "trimmed_mean(0.2)"},
        {"combine": "geometric_median"},
        {"filters": ["krum(1)"]},
        {"filters": ["multi_krum(1, 2)"]},
        {"filters": ["clip"]},
    ],
    ids=str,
)
def test_one_client_sends_a_thousand_times_too_much(
    server: dict[str, Any], tiny_folder: Path, base64: BaseModel, tmp_path: Path
) -> None:
    much = lambda t: -1e3 * t  # noqa: E731
    plain = size(attacked(tiny_folder, base64, tmp_path / "honest", lambda t: t))
    mean = size(attacked(tiny_folder, base64, tmp_path / "mean", much))
    robust = size(attacked(tiny_folder, base64, tmp_path / "robust", much, **server))
    assert mean > 10 * plain
    assert robust < 2 * plain


def test_clients_that_never_train_are_scored_at_the_end(
    tiny_folder: Path, base64: BaseModel, tmp_path: Path
) -> None:
    chosen = recipe(tiny_folder, algorithm={"name": "ditto"}, data={"atlas": {}, "unseen": 2})
    results = experiment.train(chosen, tmp_path / "run", base=base64, clients=CLIENTS)
    assert {c for row in rows(tmp_path / "run") for c in row["losses"]} == {"c0", "c1", "c2"}
    assert set(results["clients"]["global"]) == {"c0", "c1", "c2"}
    assert set(results["unseen"]) == {"global"}  # there is no personal model of theirs
    assert results["unseen"]["global"]["loss"] > 0
    assert not (tmp_path / "run" / "clients" / "c3").exists()


def test_a_client_of_a_smaller_rank_sends_and_gets_that_rank(
    tiny_folder: Path, base64: BaseModel, tmp_path: Path
) -> None:
    chosen = recipe(
        tiny_folder,
        algorithm={"name": "flexlora"},
        lora={"R": {"rank": 4, "ranks": {"c0": 1, "c1": 2, "c2": 4, "c3": 3, "c4": 1}}},
    )
    results = experiment.train(chosen, tmp_path / "run", base=base64, clients=CLIENTS)
    lines = (tmp_path / "run" / "ledger.jsonl").read_text().splitlines()
    sent = [json.loads(line) for line in lines]
    shapes = {(row["client"], min(t["shape"])) for row in sent for t in row["tensors"]}
    assert shapes == {("c0", 1), ("c1", 2), ("c2", 4), ("c3", 3), ("c4", 1)}
    assert results["bytes_up"] == results["bytes_down"] == sum(row["bytes"] for row in sent)


CASES: dict[str, dict[str, Any]] = {
    "flora": {},
    "fedex_lora": {},
    "flexlora": {},
    "fdlora": {"inner_epochs": 1.0},
    "fedsa_lora": {},
    "fedper": {"blocks": 1},
    "ditto": {},
    "ffa_lora": {},
}


@pytest.mark.parametrize("name", CASES)
def test_peft_loads_what_was_scored(
    name: str, tiny_folder: Path, base64: BaseModel, tmp_path: Path
) -> None:
    """P and a mix with numbers become one adapter; logits agree with those of the worn branches."""
    chosen = recipe(
        tiny_folder,
        algorithm={"name": name, "options": CASES[name]},
        evaluation={"select": "last"},
    )
    root = tmp_path / "run"
    experiment.train(chosen, root, base=base64, clients=CLIENTS)
    run = RunDirectory.open(root)
    number, checkpoint, _ = run.load_latest_checkpoint()
    shared, ids = checkpoint.tensors["shared"], torch.arange(5, 25).view(1, -1)
    one = assemble(chosen, base64, None, given(CLIENTS, chosen))
    try:
        bare = base64.logits(ids)
        for mix_name, mix in one.algorithm.deploys.items():
            own = one.algorithm.is_personal(mix)
            folder = root / "adapters" / mix_name / ("c1" if own else "")
            state = run.own_tensors("c1", number) if own else {}
            flats, _ = one.branches.enter(shared, [state])
            worn = {b: flats[b] for b in split_mix(mix) if b != FOLD}
            with torch.no_grad(), one.lora.folded(shared), one.lora.wear(worn, mix_weights(mix)):
                ours = base64.logits(ids)
            net = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float64)
            keep_norms_wide(net)
            theirs = PeftModel.from_pretrained(net, folder, autocast_adapter_dtype=False)
            with torch.no_grad():
                loaded = theirs(input_ids=ids).logits
            assert (loaded - ours).abs().max() <= 1e-9
            assert (ours - bare).abs().max() > 1e-3
    finally:
        one.close()


def test_a_purge_takes_every_mix_that_is_personal(
    tiny_folder: Path, base64: BaseModel, tmp_path: Path
) -> None:
    mine = replace(make_algorithm("fedsdr"), deploys={"all": "R", "mine": "R+S"})
    chosen = recipe(tiny_folder)
    experiment.train(chosen, tmp_path / "run", base=base64, clients=CLIENTS, algorithm=mine)
    assert (tmp_path / "run" / "adapters" / "mine" / "c1").is_dir()
    purge(RunDirectory.open(tmp_path / "run"))
    assert [f.name for f in (tmp_path / "run" / "adapters").iterdir()] == ["all"]


def test_a_rank_that_nobody_had_this_round_is_kept(
    tiny_folder: Path, base64: BaseModel, tmp_path: Path
) -> None:
    """One client a round; c0 alone has rank 4. Zeros in both factors would never train again."""
    chosen = recipe(
        tiny_folder,
        algorithm={"name": "hetlora"},
        lora={"R": {"rank": 4, "ranks": {"c0": 4, "c1": 1, "c2": 1, "c3": 1, "c4": 1}}},
        training={"participation": 0.2, "rounds": 4},
    )
    experiment.train(chosen, tmp_path / "run", base=base64, clients=CLIENTS)
    assert any("c0" not in row["losses"] for row in rows(tmp_path / "run"))
    checkpoint = RunDirectory.open(tmp_path / "run").load_checkpoint(4)
    tails = [t[1:] for n, t in checkpoint.tensors["shared"].items() if n.endswith(".A")]
    assert all(bool((tail.abs().sum(dim=1) > 0).all()) for tail in tails)
