"""The same checks for every registered algorithm; and what each check is there to catch, caught."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fedsdr.algorithms.fedavg import fedavg
from fedsdr.algorithms.fedprox import fedprox
from fedsdr.algorithms.fedsdr import fedsdr
from fedsdr.algorithms.hetlora import hetlora
from fedsdr.algorithms.registry import factories
from fedsdr.algorithms.rolora import rolora
from fedsdr.errors import RecipeError
from fedsdr.parts.algorithm import Algorithm, Stage
from fedsdr.parts.combine import Mean, Same, moved
from fedsdr.parts.moves import Flats, Trained
from fedsdr.parts.objectives import CrossEntropy, Local
from fedsdr.runs.digests import SpooledUpdates
from fedsdr.site.branches import Branches
from fedsdr.testing import CheckFailed, Report, check_algorithm, checks
from fedsdr.testing.case import PRIVACY
from fedsdr.testing.checks import TRAFFIC
from fedsdr.testing.report import REDUCTIONS
from fedsdr.types import ServerState, Tensors, Update

pytestmark = pytest.mark.usefixtures("no_fsync")
EVERY = {
    *(checks.STACKED, checks.ORDER, checks.RESUME, PRIVACY, TRAFFIC),
    *(checks.ALONE, checks.REDUCES, checks.BOOSTED, checks.RANKS),
}


@pytest.mark.parametrize("name", sorted(factories()))
def test_every_registered_algorithm(name: str) -> None:
    report = check_algorithm(name)
    assert {finding.check for finding in report.findings} == EVERY
    assert bool(report[checks.REDUCES].figures) == (name in REDUCTIONS)
    if not factories()[name]().pool:
        assert all(report[c].figures for c in (checks.STACKED, checks.ORDER, checks.RESUME))


def test_every_reduction_is_of_an_algorithm_that_there_is() -> None:
    assert set(REDUCTIONS) <= set(factories())


@pytest.fixture(scope="module")
def report() -> Report:
    return check_algorithm(fedavg, reduces_to_fedavg={})


def test_what_a_report_holds(report: Report) -> None:
    """R of rank 2 on two blocks of width 16: 8 layers of (16, 16) and 6 between 16 and 40. That is
    2·(8·32 + 6·56) = 1184 numbers of 8 bytes, for each of 4 clients."""
    found = report[TRAFFIC].figures["each round"]
    assert found == f"{4 * 8 * 1184:,} up and {4 * 8 * 1184:,} down"
    for check in (checks.STACKED, checks.ALONE):
        difference = report[check].figures["largest difference"]
        assert isinstance(difference, float)
        assert 0 <= difference <= 1e-9
    assert report[checks.RESUME].figures["killed"] == "3 times"
    assert report[checks.RANKS].not_applicable == "all its clients need the same rank"


def test_a_report_reads_well(report: Report) -> None:
    head, *lines = str(report).splitlines()
    assert head == "fedavg: 8 checks passed, 1 not applicable"
    assert max(map(len, lines)) <= 100
    assert "  ranks may differ                 not applicable: all its clients" in str(report)


def test_the_runs_are_kept_where_a_folder_is_given(tmp_path: Path) -> None:
    check_algorithm(fedavg(), folder=tmp_path)
    assert (tmp_path / "stacked" / "rounds.jsonl").is_file()


def test_options_need_a_factory() -> None:
    with pytest.raises(RecipeError, match="an Algorithm already: give check_algorithm its factory"):
        check_algorithm(fedprox(), {"mu": 0.0})
    with pytest.raises(RecipeError, match="Did you mean 'fedprox'"):
        check_algorithm("fedproxx")


def over(algorithm: Algorithm, stage: Callable[[Stage], Stage]) -> Algorithm:
    return replace(algorithm, name="broken", stages=tuple(map(stage, algorithm.stages)))


def caught(algorithm: Algorithm | Callable[..., Algorithm], check: str, **more: Any) -> CheckFailed:
    with pytest.raises(CheckFailed) as error:
        check_algorithm(algorithm, **more)
    assert error.value.check == check, str(error.value)
    return error.value


@dataclass(frozen=True, slots=True)
class MixedUp:
    """Weighs a client's loss by the mean loss of the whole stack."""

    def __call__(self, local: Local) -> Tensor:
        loss = CrossEntropy()(local)
        return loss * loss.detach().mean()


def test_an_objective_that_mixes_clients() -> None:
    """On one by one it would be right, so only the stack shows it."""

    def mixed(stage: Stage) -> Stage:
        return replace(stage, terms=(replace(stage.terms[0], objective=MixedUp()),))

    error = caught(over(fedavg(), mixed), checks.STACKED)
    assert error.tensor is not None
    assert error.difference is not None
    assert error.difference > 1e-6


@dataclass(frozen=True, slots=True)
class Seat:
    """Scales what a client ends with by its place in the stack."""

    into: str = "S"

    def when(self, round: int) -> bool:
        return True

    def __call__(self, flats: Flats, stage: Trained) -> Tensor:
        places = torch.arange(len(flats[self.into])).to(flats[self.into])
        return flats[self.into] * (1 + 1e-6 * places)[:, None]


def test_personal_state_that_depends_on_the_place_in_the_stack() -> None:
    """Only S is touched, after its last use in round 3: what is shared agrees less and less, what
    is kept shows it at once."""
    first, last = fedsdr().stages
    broken = replace(fedsdr(), name="broken", stages=(first, replace(last, after=(Seat(),))))
    assert caught(broken, checks.STACKED).difference is not None


def test_nothing_that_moves() -> None:
    error = caught(replace(fedavg(), combine=Idle()), checks.STACKED)
    assert "nothing moved" in str(error)


@dataclass(frozen=True, slots=True)
class Idle:
    def __call__(self, state: ServerState, updates: Iterable[Update]) -> ServerState:
        return moved(state, {})


@dataclass(frozen=True, slots=True)
class LastCountsDouble:
    """By when an update was written to disk."""

    def __call__(self, state: ServerState, updates: Iterable[Update]) -> ServerState:
        assert isinstance(updates, SpooledUpdates)
        spool = updates.run.root / "updates" / f"round-{updates.round:05d}"
        last = max(updates.clients, key=lambda c: (spool / c).stat().st_mtime_ns)
        weighed = [replace(u, weight=u.weight * (2 if u.client_id == last else 1)) for u in updates]
        return Mean()(state, weighed)


def test_a_rule_that_depends_on_who_answers_last() -> None:
    error = caught(replace(fedavg(), combine=LastCountsDouble()), checks.ORDER)
    assert error.tensor is not None
    assert error.tensor.startswith("R/")


@dataclass(slots=True)
class Hidden:
    """A momentum that lives in the rule, not in the server's state."""

    memory: dict[str, Tensor] = field(default_factory=lambda: dict[str, Tensor]())

    def __call__(self, state: ServerState, updates: Iterable[Update]) -> ServerState:
        end = Mean()(state, updates)
        for name, w in end.shared.items():
            self.memory[name] = 0.9 * self.memory.get(name, torch.zeros_like(w)) + w
        return replace(end, shared=dict(self.memory))


def test_memory_that_no_checkpoint_has() -> None:
    error = caught(replace(fedavg(), combine=Hidden()), checks.RESUME)
    assert error.tensor is not None
    assert error.difference is not None
    assert error.difference > 1e-6


class Generous(Algorithm):
    """Says that it shares R, and sends S as well."""

    def shares(self, name: str) -> bool:
        return name.startswith(("R/", "S/"))


def test_a_branch_that_is_sent_and_not_declared() -> None:
    plain = fedsdr()
    fields = {f: getattr(plain, f) for f in plain.__dataclass_fields__}
    error = caught(Generous(**fields), PRIVACY)
    assert error.tensor is not None
    assert error.tensor.startswith("S/")


@dataclass(frozen=True, slots=True)
class Smuggled:
    """Puts what was trained as S into R."""

    into: str = "R"

    def when(self, round: int) -> bool:
        return True

    def __call__(self, flats: Flats, stage: Trained) -> Tensor:
        return flats["V"].clone()


def test_a_personal_branch_under_another_name() -> None:
    ditto = factories()["ditto"]()
    first, last = ditto.stages
    broken = replace(ditto, stages=(first, replace(last, after=(Smuggled(),))))
    error = caught(broken, PRIVACY)
    assert error.tensor is not None
    assert error.tensor.startswith("R/")
    assert "it holds V/" in str(error)


def test_a_cohort_that_sends_what_is_private(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Branches.up

    def leaky(self: Branches, flats: Mapping[str, Tensor], client_id: str, round: int) -> Tensors:
        return {**plain(self, flats, client_id, round), **self.private(flats)}

    monkeypatch.setattr(Branches, "up", leaky)
    error = caught(fedsdr(), PRIVACY)
    assert error.tensor is not None
    assert error.tensor.startswith("S/")


@dataclass(frozen=True, slots=True)
class Chatty:
    """A downlink that sends more than is shared."""

    def __call__(self, state: ServerState, rank: int | None) -> Tensors:
        return {**state.shared, "notes": torch.zeros(3)}


def test_a_downlink_that_nobody_declared() -> None:
    error = caught(replace(fedavg(), downlink=Chatty()), TRAFFIC)
    assert error.tensor == "notes"
    assert "goes down, which nobody declared" in str(error)


@dataclass(frozen=True, slots=True)
class Swollen:
    """The mean, and a P that is larger than dense; it is all zeros, and nothing runs through it."""

    def __call__(self, state: ServerState, updates: Iterable[Update]) -> ServerState:
        end = Mean()(state, updates)
        wide = dict[str, Tensor]()
        for name, tensor in end.shared.items():
            shape = (99, tensor.shape[1]) if name.endswith(".A") else (tensor.shape[0], 99)
            wide[f"P/{name[2:]}"] = torch.zeros(shape)
        return replace(end, shared={**end.shared, **wide})


def test_a_branch_p_that_is_larger_than_what_went_into_it() -> None:
    broken = replace(fedavg(), combine=Swollen(), deploys={"global": "P+R"})
    assert "what was merged so far needs" in str(caught(broken, TRAFFIC))


def test_bytes_that_rounds_jsonl_counts_wrongly(monkeypatch: pytest.MonkeyPatch) -> None:
    from fedsdr.coordinator import loop

    count = loop.nbytes
    monkeypatch.setattr(loop, "nbytes", lambda tensors: count(tensors) + 1)
    assert "declared are" in str(caught(rolora(), TRAFFIC))


def test_training_that_is_not_plain_fine_tuning(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss squared. Under a type of its own it would not be taken for cross-entropy at all."""
    plain = CrossEntropy.__call__

    def squared(self: CrossEntropy, local: Local) -> Tensor:
        return plain(self, local).square()

    monkeypatch.setattr(CrossEntropy, "__call__", squared)
    error = caught(fedavg(), checks.ALONE)
    assert error.difference is not None
    assert error.difference > 1e-6


def test_a_limit_that_is_none() -> None:
    error = caught(fedprox, checks.REDUCES, reduces_to_fedavg={"mu": 0.5})
    assert error.tensor is not None
    assert error.tensor.startswith("R/")
    assert error.difference is not None
    assert error.difference > 1e-6


def test_a_booster_that_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def renamed(algorithm: Algorithm) -> Algorithm:
        return over(algorithm, lambda stage: replace(stage, part=0.5))

    monkeypatch.setattr(checks, "boosted", renamed)
    assert "still trains on the raw answers" in str(caught(fedavg(), checks.BOOSTED))


def test_a_downlink_that_forgets_ranks() -> None:
    error = caught(replace(hetlora(), downlink=Same()), checks.RANKS)
    assert "shape (2, 16), not (3, 16)" in str(error)


@dataclass(frozen=True, slots=True)
class Exploding:
    def __call__(self, local: Local) -> Tensor:
        return CrossEntropy()(local) * math.inf


def test_training_that_diverges() -> None:
    def broken(stage: Stage) -> Stage:
        return replace(stage, terms=(replace(stage.terms[0], objective=Exploding()),))

    assert "its training diverged" in str(caught(over(fedavg(), broken), checks.STACKED))
