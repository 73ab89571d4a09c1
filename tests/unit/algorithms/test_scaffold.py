"""SCAFFOLD in the real cohort and loop (its rule by hand: tests/unit/parts/test_control.py)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fedsdr.algorithms.fedavg import fedavg
from fedsdr.algorithms.fedsd import boosted
from fedsdr.algorithms.scaffold import scaffold
from fedsdr.data.render import render
from fedsdr.model.base import BaseModel
from fedsdr.parts.local import LocalSettings
from fedsdr.parts.views import Rewritten
from fedsdr.tensors import digest
from fedsdr.training.stage import StageJob, train_stage
from overheard import Died, Mortal, Overheard
from toy import clients, largest_difference, of, own, toy

pytestmark = pytest.mark.usefixtures("no_fsync")
SIZES = (2, 7, 4, 1)
PLAIN_SGD = LocalSettings(batch=3, optimizer="sgd", clip=None)
WAYS = {"sgd": PLAIN_SGD, "clipped": LocalSettings(batch=3, optimizer="sgd", clip=0.1)}
WAYS["adamw"] = LocalSettings(batch=3)
every_way = pytest.mark.parametrize("way", WAYS)


def test_what_it_shares_and_keeps() -> None:
    algorithm = scaffold()
    assert set(algorithm.branches()) == {"R", "C", "K"}
    assert algorithm.personal() == ("K",)
    assert algorithm.trained(1) == {"R", "C", "K"}
    assert dict(algorithm.deploys) == {"global": "R"}


@every_way
def test_with_controls_of_zero_the_first_round_is_fedavg_s(
    way: str, base64: BaseModel, tmp_path: Path
) -> None:
    ends = {}
    for algorithm in (fedavg(), scaffold()):
        for rounds in (1, 2):
            root = tmp_path / f"{algorithm.name}-{rounds}"
            with toy(base64, algorithm, root, clients(SIZES), training=WAYS[way]) as one:
                ends[algorithm.name, rounds] = of(one.play(rounds=rounds).state.shared, "R")
    assert digest(ends["scaffold", 1]) == digest(ends["fedavg", 1])
    assert largest_difference(ends["scaffold", 2], ends["fedavg", 2]) > 1e-5


def test_an_own_control_is_the_mean_of_the_client_s_sgd_steps(
    base64: BaseModel, tmp_path: Path
) -> None:
    """From zero controls: c_k = (w_g − w_k)/(K·lr) = −Δ_k/(K·lr), and Δc_k is the same. Clients
    have 1 to 3 steps, so a common K would show."""
    with toy(base64, scaffold(), tmp_path / "run", clients(SIZES), training=PLAIN_SGD) as one:
        heard = Overheard(one.cohort)
        one.play(rounds=1, lr=0.5, cohort=heard)
        steps = set()
        for client, update in heard.of_round(1).items():
            k = update.metrics["steps"]
            steps.add(k)
            expected = {n: -t / (k * 0.5) for n, t in of(update.shared, "R").items()}
            controls = of(own(one, client, 1), "K")
            assert largest_difference(expected, controls) < 1e-12
            assert largest_difference(of(update.shared, "C"), controls) < 1e-12
            assert max(float(t.abs().max()) for t in controls.values()) > 1e-3
    assert steps == {1.0, 2.0, 3.0}


def test_the_correction_has_the_right_sign(base64: BaseModel, tmp_path: Path) -> None:
    """With one SGD step a round, w_k = w − lr(g_k + c − c_k), so c_k⁺ = c_k − c + (w − w_k)/lr is
    g_k, the gradient at the broadcast, whatever the controls were; the first round's, at the start,
    is another."""
    how = LocalSettings(batch=9, optimizer="sgd", clip=None)
    (plain,) = fedavg().stages
    with toy(base64, scaffold(), tmp_path / "run", clients(SIZES), training=how) as one:
        before, first = one.play(rounds=1, lr=0.5).state.shared, of(own(one, "c1", 1), "K")
        one.play(rounds=2, lr=0.5)
        second = of(own(one, "c1", 2), "K")
        w = one.branches.stack(before)["R"]
        rows = [render(base64, e, 256) for e in one.cohort.site.clients["c1"].train]
        end = train_stage(one.lora, plain, {"R": w}, [StageJob("c1", (rows,), 1)], how, 1.0)
        gradient = one.lora.layouts["R"].named((w - end.flats["R"])[0])
    assert largest_difference(second, gradient) < 1e-6  # Llama's norms are in single precision
    assert largest_difference(first, second) > 1e-3


@every_way
def test_the_server_s_control_is_the_mean_of_the_own_ones(
    way: str, base64: BaseModel, tmp_path: Path
) -> None:
    """c = Σ (n_k/n) c_k in every round, while all take part."""
    with toy(base64, scaffold(), tmp_path / "run", clients(SIZES), training=WAYS[way]) as one:
        for rounds in (1, 2, 3):
            state = one.play(rounds=rounds, lr=0.1).state
            controls = [of(own(one, c, rounds), "K") for c in one.cohort.site.clients]
            shares = [size / sum(SIZES) for size in SIZES]
            mean = {
                n: sum(p * k[n] for p, k in zip(shares, controls, strict=True)) for n in controls[0]
            }
            assert largest_difference(of(state.shared, "C"), mean) < 1e-10


def test_who_was_not_asked_counts_in_the_mean_of_controls(
    base64: BaseModel, tmp_path: Path
) -> None:
    with toy(base64, scaffold(), tmp_path / "run", clients(SIZES), training=PLAIN_SGD) as one:
        heard = Overheard(one.cohort)
        state = one.play(rounds=1, cohort=heard, participation=2.0).state
        assert len(heard.updates) == 2
        whole = sum(u.weight for u in heard.updates)
        sums = {
            n: sum(u.weight / whole * of(u.shared, "C")[n] for u in heard.updates) * 2 / 4
            for n in of(state.shared, "C")
        }
        assert largest_difference(of(state.shared, "C"), sums) < 1e-14


def test_no_own_control_is_ever_sent(base64: BaseModel, tmp_path: Path) -> None:
    with toy(base64, scaffold(), tmp_path / "run", clients(SIZES)) as one:
        heard = Overheard(one.cohort)
        state = one.play(rounds=2, cohort=heard).state
    sent = {name.partition("/")[0] for update in heard.updates for name in update.shared}
    assert sent == {"R", "C"}
    assert {name.partition("/")[0] for name in (*state.shared, *state.slots)} == {"R", "C"}


def test_a_cosine_to_zero_loses_no_client(base64: BaseModel, tmp_path: Path) -> None:
    with toy(base64, scaffold(), tmp_path / "run", clients(SIZES)) as one:
        state = one.play(rounds=2, schedule="cosine", quorum=4).state
    assert all(bool(torch.isfinite(t).all()) for t in state.shared.values())


@every_way
def test_stacked_equals_one_by_one(way: str, base64: BaseModel, tmp_path: Path) -> None:
    ends = []
    for stack in (4, 1):
        root, data = tmp_path / str(stack), clients(SIZES)
        with toy(base64, scaffold(), root, data, stack=stack, training=WAYS[way]) as one:
            ends.append(one.tensors(one.play(rounds=3)))
    assert largest_difference(*ends) <= 1e-9


def test_resumed_equals_uninterrupted(base64: BaseModel, tmp_path: Path) -> None:
    """Killed in round 2 after one group's controls were stored and before another's."""
    ends = []
    for name in ("whole", "cut"):
        with toy(base64, scaffold(), tmp_path / name, clients(SIZES), stack=2) as one:
            if name == "cut":
                with pytest.raises(Died):
                    one.play(rounds=3, cohort=Mortal(one.cohort, round=2, answers=3))
            else:
                ends.append(one.tensors(one.play(rounds=3)))
    with toy(base64, scaffold(), tmp_path / "cut", clients(SIZES), stack=2, resume=True) as one:
        ends.append(one.tensors(one.play(rounds=3)))
    assert digest(ends[0]) == digest(ends[1])


def test_a_global_teacher_does_not_wear_the_control(base64: BaseModel, tmp_path: Path) -> None:
    algorithm = boosted(scaffold(), Rewritten(teacher="global", redistill_every=1))
    with toy(base64, algorithm, tmp_path / "run", clients((2,))) as one:
        assert list(one.branches.stack(one.branches.first())) == ["R"]
        one.play(rounds=2)
        state = one.run.load_client_state("c0", 3)
        assert state is not None
        assert {n.partition("/")[0] for n in state.tensors["teacher"]} == {"R"}
