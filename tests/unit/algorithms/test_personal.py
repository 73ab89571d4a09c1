"""The personal algorithms: what each trains, keeps, sends and deploys, and what it reduces to.

A stage draws its batches by its number, so references are FedAvg whose stage stands at the same
place, behind stages that never run; what must be equal is then equal to the last bit.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fedsdr.algorithms.ditto import ditto
from fedsdr.algorithms.fdlora import fdlora
from fedsdr.algorithms.fedala import fedala
from fedsdr.algorithms.fedavg import fedavg
from fedsdr.algorithms.feddpa import feddpa
from fedsdr.algorithms.fedper import fedper
from fedsdr.algorithms.fedsdr import fedsdr
from fedsdr.algorithms.local import local
from fedsdr.algorithms.pfedlora import pfedlora
from fedsdr.algorithms.scaffold import scaffold
from fedsdr.data.render import Rendered, render
from fedsdr.errors import RecipeError
from fedsdr.evaluate.scoring import Worn
from fedsdr.model.base import BaseModel
from fedsdr.model.lora import BranchSpec, StackedLora
from fedsdr.parts.algorithm import Algorithm, PerInput, Stage, mix_weights
from fedsdr.parts.combine import Nesterov
from fedsdr.parts.local import LocalSettings
from fedsdr.parts.moves import When
from fedsdr.site.branches import block_of
from fedsdr.tensors import digest
from fedsdr.training.stage import StageJob, train_stage
from fedsdr.types import Tensors
from overheard import Died, Mortal, Overheard
from toy import clients, examples, largest_difference, moved, of, own, toy

pytestmark = pytest.mark.usefixtures("no_fsync")
SIZES = (2, 7, 4, 1)
NEVER = Stage((), when=When(first=10**6))
VARIANTS: dict[str, Callable[[], Algorithm]] = {
    "ditto": ditto,
    "fedper": fedper,
    "fedala": fedala,
    "feddpa-T": feddpa,
    "feddpa-F": lambda: feddpa("F", federated_rounds=2),
    "pfedlora": pfedlora,
    "fdlora": lambda: fdlora(inner_epochs=2.0, sync_every=2),
}
every_one = pytest.mark.parametrize("name", VARIANTS)


def behind(algorithm: Algorithm, stages: int) -> Algorithm:
    """The same, whose stages have higher numbers."""
    return replace(algorithm, stages=(*[NEVER] * stages, *algorithm.stages))


def end(
    base: BaseModel, algorithm: Algorithm, root: Path, rounds: int, branch: str = "R", **more: Any
) -> Tensors:
    with toy(base, algorithm, root, clients(SIZES)) as one:
        shared = one.play(rounds=rounds, **more).state.shared
        assert moved(shared, one.branches.first()) > 1e-3
        return of(shared, branch)


# What each is


@pytest.mark.parametrize(
    ("name", "branches", "personal", "global_mix", "personal_mix"),
    [
        ("ditto", {"R", "V"}, {"V"}, "R", "V"),
        ("fedper", {"R"}, {"R"}, None, "R"),
        ("fedala", {"R", "L", "W"}, {"L", "W"}, "R", "L"),
        ("feddpa-T", {"R", "L"}, {"L"}, "R", PerInput("R+L", "L", 0.5, 5)),
        ("feddpa-F", {"R", "L"}, {"L"}, "R", PerInput("R+L", "L", 0.5, 5)),
        ("pfedlora", {"R", "L"}, {"L"}, None, "R+L"),
        ("fdlora", {"R", "L"}, {"L"}, "R", "0.5*R+0.5*L"),
    ],
)
def test_branches_and_what_is_deployed(
    name: str,
    branches: set[str],
    personal: set[str],
    global_mix: str | None,
    personal_mix: str | PerInput,
) -> None:
    algorithm = VARIANTS[name]()
    assert set(algorithm.branches()) == branches
    assert set(algorithm.personal()) == personal
    assert algorithm.share == "R"
    assert algorithm.deploys.get("global") == global_mix
    assert algorithm.deploys["personal"] == personal_mix


@pytest.mark.parametrize(
    "factory", [ditto, fedper, fedala, feddpa, pfedlora, fdlora, scaffold], ids=lambda f: f.__name__
)
def test_name_and_length(factory: Callable[[], Algorithm]) -> None:
    assert factory().name == factory.__name__
    module = inspect.getmodule(factory)
    assert module is not None
    assert len(inspect.getsource(module).splitlines()) <= 60


@pytest.mark.parametrize(
    ("name", "by_round"),
    [
        ("ditto", [{"R", "V"}] * 4),
        ("fedala", [{"R", "L"}, *[{"R", "L", "W"}] * 3]),
        ("feddpa-T", [{"R"}, *[{"R", "L"}] * 3]),
        ("feddpa-F", [{"R"}, {"R"}, {"L"}, {"L"}]),
        ("pfedlora", [{"R", "L"}] * 4),
        ("fdlora", [{"R", "L"}, {"R", "L"}, {"R"}, {"R", "L"}]),
    ],
)
def test_what_is_trained_or_moved_when(name: str, by_round: list[set[str]]) -> None:
    assert [VARIANTS[name]().trained(n) for n in (1, 2, 3, 4)] == by_round


NOT_NUMBERS = (math.nan, math.inf, -math.inf)
SENSELESS: list[tuple[Callable[..., Algorithm], str, tuple[float, ...]]] = [
    (ditto, "lam", (*NOT_NUMBERS, -0.1)),
    (fedper, "blocks", (-1,)),
    (fedala, "eta", (*NOT_NUMBERS, -1.0)),
    (fedala, "first_passes", (0, -1)),
    (feddpa, "local_weight", (*NOT_NUMBERS, 0.0, 1.1, -0.5)),
    (feddpa, "highest", (*NOT_NUMBERS, 1.1, -0.1)),
    (feddpa, "prompts", (0, -3)),
    (feddpa, "federated_rounds", (0, -1)),
    (fdlora, "inner_epochs", (*NOT_NUMBERS, 0.0, -1.0)),
    (fdlora, "sync_every", (0, -1)),
    (fdlora, "outer_lr", (*NOT_NUMBERS, 0.0, -1.0)),
    (fdlora, "outer_momentum", (*NOT_NUMBERS, 1.0, -0.1)),
]


@pytest.mark.parametrize(
    ("factory", "option", "value"), [(f, o, v) for f, o, values in SENSELESS for v in values]
)
def test_a_senseless_option_is_refused(
    factory: Callable[..., Algorithm], option: str, value: float
) -> None:
    with pytest.raises(RecipeError, match=rf"^algorithm\.{option} must .*it is {value}$"):
        factory(**{option: value})


# What all hold


@every_one
def test_nothing_personal_is_sent_or_lies_on_the_server(
    name: str, base64: BaseModel, tmp_path: Path
) -> None:
    with toy(base64, VARIANTS[name](), tmp_path / "run", clients(SIZES)) as one:
        heard = Overheard(one.cohort)
        state = one.play(rounds=3, cohort=heard).state
        kept = set(own(one, "c1", 3))
        stored = one.run.load_checkpoint(3).tensors
    sent = {n for update in heard.updates for n in update.shared}
    assert sent
    assert {n.partition("/")[0] for n in sent} == {"R"}
    assert not sent & kept
    assert sent == set(state.shared) == set(stored["shared"])
    assert not {n.removeprefix("v/") for n in stored.get("slots", {})} - sent


@every_one
def test_stacked_equals_one_by_one(name: str, base64: BaseModel, tmp_path: Path) -> None:
    ends = []
    for stack in (4, 1):
        with toy(
            base64, VARIANTS[name](), tmp_path / str(stack), clients(SIZES), stack=stack
        ) as one:
            ends.append(one.tensors(one.play(rounds=3)))
            assert moved(ends[0], one.branches.first()) > 1e-3
    assert largest_difference(*ends) <= 1e-9


@pytest.mark.parametrize("name", ["fedala", "fdlora", "feddpa-F"])
def test_resumed_equals_uninterrupted(name: str, base64: BaseModel, tmp_path: Path) -> None:
    """Killed in round 3 with one group's own branches stored, another's in part."""
    ends = []
    for run in ("whole", "cut"):
        with toy(base64, VARIANTS[name](), tmp_path / run, clients(SIZES), stack=2) as one:
            if run == "cut":
                with pytest.raises(Died):
                    one.play(rounds=4, cohort=Mortal(one.cohort, round=3, answers=3))
            else:
                ends.append(one.tensors(one.play(rounds=4)))
    root = tmp_path / "cut"
    with toy(base64, VARIANTS[name](), root, clients(SIZES), stack=2, resume=True) as one:
        ends.append(one.tensors(one.play(rounds=4)))
    assert digest(ends[0]) == digest(ends[1])


# Ditto


def test_ditto_s_global_model_is_fedavg_s(base64: BaseModel, tmp_path: Path) -> None:
    ours = end(base64, ditto(lam=0.7), tmp_path / "ditto", rounds=3)
    assert digest(ours) == digest(end(base64, fedavg(), tmp_path / "fedavg", rounds=3))


def test_ditto_without_its_pull_is_training_alone(base64: BaseModel, tmp_path: Path) -> None:
    with toy(base64, ditto(lam=0.0), tmp_path / "ditto", clients(SIZES)) as one:
        one.play(rounds=3)
        ours = {c: of(own(one, c, 3), "V") for c in one.cohort.site.clients}
    with toy(base64, behind(local(), 1), tmp_path / "local", clients(SIZES)) as one:
        one.play(rounds=3)
        theirs = {c: of(own(one, c, 3), "R") for c in one.cohort.site.clients}
    assert all(digest(ours[c]) == digest(theirs[c]) for c in ours)


def test_ditto_pulls_to_the_broadcast(base64: BaseModel) -> None:
    """One SGD step at rate 1: v − (∇L(v) + λ(v − w)), w being R as the round began: neither what R
    has become since, nor what v was."""
    lora = StackedLora(base64, "all-linear", {b: BranchSpec(2, 4.0) for b in "RV"})
    try:
        random = torch.Generator().manual_seed(3)
        noise = torch.randn((3, lora.layouts["R"].size), generator=random, dtype=torch.float64)
        w, r, v = (0.3 * row[None] for row in noise)
        rows = [render(base64, e, 256) for e in examples("a", 3)]
        job, how = StageJob("a", (rows,), 1), LocalSettings(batch=3, clip=None, optimizer="sgd")
        (_, own), (alone,) = ditto(lam=0.2).stages, fedavg().stages
        flats, start = {"R": r, "V": v}, {"R": w, "V": v}
        ours = train_stage(
            lora, own, flats=flats, jobs=[job], settings=how, lr=1.0, start=start
        ).flats
        slope = v - train_stage(lora, alone, {"R": v}, [job], how, 1.0).flats["R"]
    finally:
        lora.remove()
    assert torch.allclose(ours["V"], v - (slope + 0.2 * (v - w)), rtol=0, atol=1e-12)
    assert float(slope.norm()) > 1e-2
    assert torch.equal(ours["R"], r)


# FedPer


def test_fedper_without_own_blocks_is_fedavg(base64: BaseModel, tmp_path: Path) -> None:
    assert replace(fedper(0), name="fedavg") == fedavg()
    ours = end(base64, fedper(0), tmp_path / "fedper", rounds=2)
    assert digest(ours) == digest(end(base64, fedavg(), tmp_path / "fedavg", rounds=2))


def test_fedper_keeps_the_last_block_and_averages_the_rest(
    base64: BaseModel, tmp_path: Path
) -> None:
    """Of two blocks the upper one stays: it goes on from where the client left it."""
    with toy(base64, fedper(1), tmp_path / "run", clients(SIZES)) as one:
        before = one.branches.first()
        assert {block_of(n) for n in before} == {0}
        heard = Overheard(one.cohort)
        state = one.play(rounds=1, cohort=heard).state
        total = sum(SIZES)
        for name, tensor in state.shared.items():
            mean = sum(u.weight / total * u.shared[name] for u in heard.of_round(1).values())
            assert torch.allclose(tensor, before[name] + mean, rtol=0, atol=1e-14)
        kept = {c: own(one, c, 1) for c in one.cohort.site.clients}
        assert {block_of(n) for tensors in kept.values() for n in tensors} == {1}
        assert largest_difference(kept["c0"], kept["c1"]) > 1e-3
        flats, _ = one.branches.enter(state.shared, list(kept.values()))
        entered = one.branches.names("R", flats["R"][1])
        assert all(torch.equal(entered[n], t) for n, t in {**state.shared, **kept["c1"]}.items())


def test_fedper_that_keeps_all_blocks_is_training_alone(base64: BaseModel, tmp_path: Path) -> None:
    ends = {}
    for algorithm in (fedper(2), local()):
        with toy(base64, algorithm, tmp_path / algorithm.name, clients(SIZES)) as one:
            ends[algorithm.name] = one.tensors(one.play(rounds=2))
    assert digest(ends["fedper"]) == digest(ends["local"])


# FedALA


def test_fedala_with_w_at_one_is_fedavg(base64: BaseModel, tmp_path: Path) -> None:
    ours = end(base64, fedala(eta=0.0), tmp_path / "fedala", rounds=4)
    theirs = end(base64, behind(fedavg(), 2), tmp_path / "fedavg", rounds=4)
    assert digest(ours) == digest(theirs)


def test_fedala_learns_w_within_its_bounds_and_keeps_its_last_model(
    base64: BaseModel, tmp_path: Path
) -> None:
    with toy(base64, fedala(eta=5000.0), tmp_path / "run", clients(SIZES)) as one:
        heard = Overheard(one.cohort)
        before, seen = one.branches.first(), []
        for rounds in (1, 2, 3):
            after = one.play(rounds=rounds, cohort=heard).state.shared
            for client in one.cohort.site.clients:
                change = heard.of_round(rounds)[client].shared
                last = {n: before[n] + change[n] for n in change}
                assert largest_difference(of(own(one, client, rounds), "L"), of(last, "R")) < 1e-12
            seen.append(torch.cat([t.flatten() for t in of(own(one, "c1", rounds), "W").values()]))
            before = after
    assert bool((seen[0] == 1).all())
    for w in seen[1:]:
        assert float(w.min()) >= 0
        assert float(w.max()) <= 1
        assert int((w < 1).sum()) > 100
        assert bool((w == 0).any())
    assert not torch.equal(seen[1], seen[2])


def test_fedala_s_step_on_w(base64: BaseModel) -> None:
    """∇_W = ∇_θ̂ L ⊙ (R − L): W's step against the step that R itself would take from θ̂."""
    learn = fedala(eta=0.5).stages[1]
    lora = StackedLora(base64, "all-linear", {b: BranchSpec(2, 4.0) for b in "RLW"})
    try:
        random = torch.Generator().manual_seed(3)
        noise = torch.randn((2, lora.layouts["R"].size), generator=random, dtype=torch.float64)
        r, old = (lora.fresh("R", k)[None] + 0.1 * noise[k] for k in (0, 1))
        w = torch.full_like(r, 0.5)
        rows = [render(base64, e, 256) for e in examples("a", 3)]
        job, how = StageJob("a", (rows,), 1), LocalSettings(batch=3, clip=None, optimizer="sgd")
        flats = {"R": r, "L": old, "W": w}
        result = train_stage(lora, learn, flats, [job], how, 1e-2, round=3)
        theta = old + (r - old) * 0.5
        (plain,) = fedavg().stages
        stage = replace(plain, epochs=1.0)
        ended = train_stage(lora, stage, {"R": theta}, [job], how, 1.0).flats["R"]
    finally:
        lora.remove()
    expected = (w - 0.5 * (theta - ended) * (r - old)).clamp(0, 1)
    assert torch.allclose(result.flats["W"], expected, rtol=0, atol=1e-12)
    assert float((result.flats["W"] - w).abs().max()) > 1e-4
    assert torch.allclose(result.flats["R"], old + (r - old) * expected, rtol=0, atol=1e-12)
    assert torch.equal(result.flats["L"], old)


@pytest.mark.parametrize(("examples", "batch", "first", "later"), [(100, 10, 24, 8), (1, 8, 2, 1)])
def test_fedala_learns_w_on_four_fifths_of_the_data(
    examples: int, batch: int, first: int, later: int
) -> None:
    """10 batches: 3 · 0.8 · 10 = 24 steps in round 2, then 8."""
    job, how = StageJob("a", ([Rendered((), ())] * examples,), 1), LocalSettings(batch=batch)
    assert [job.steps(s, how) for s in fedala().stages[:2]] == [first, later]


# FedDPA


def test_feddpa_t_s_global_adapter_is_fedavg_s(base64: BaseModel, tmp_path: Path) -> None:
    theirs = behind(fedavg(), 1)
    for rounds in (1, 3):
        ours = end(base64, feddpa(), tmp_path / f"feddpa-{rounds}", rounds)
        assert digest(ours) == digest(end(base64, theirs, tmp_path / f"fedavg-{rounds}", rounds))


def test_feddpa_t_trains_l_from_round_2_on(base64: BaseModel, tmp_path: Path) -> None:
    with toy(base64, feddpa(), tmp_path / "run", clients(SIZES)) as one:
        first = one.branches.names("L", one.branches.start["L"])
        seen = []
        for rounds in (1, 2, 3):
            one.play(rounds=rounds)
            seen.append(of(own(one, "c1", rounds), "L"))
    assert largest_difference(seen[0], of(first, "L")) == 0
    assert largest_difference(seen[1], seen[0]) > 1e-3
    assert largest_difference(seen[2], seen[1]) > 1e-3


def test_feddpa_f_federates_then_stops(base64: BaseModel, tmp_path: Path) -> None:
    algorithm = feddpa("F", federated_rounds=2)
    theirs = end(base64, fedavg(), tmp_path / "fedavg", rounds=2)
    with toy(base64, algorithm, tmp_path / "run", clients(SIZES)) as one:
        heard = Overheard(one.cohort)
        ours = of(one.play(rounds=4, cohort=heard).state.shared, "R")
    assert digest(ours) == digest(theirs)
    sent = {u.round: set(u.shared) for u in heard.updates}
    assert [bool(sent[n]) for n in (1, 2, 3, 4)] == [True, True, False, False]


def test_feddpa_f_s_local_adapter_begins_at_the_broadcast(
    base64: BaseModel, tmp_path: Path
) -> None:
    """A cosine's last rate is 0, so L is seen as it began; a round later it has moved on from its
    own, not from R again."""
    algorithm = feddpa("F", federated_rounds=2)
    with toy(base64, algorithm, tmp_path / "run", clients(SIZES)) as one:
        state = one.play(rounds=3, schedule="cosine").state
        begun = of(own(one, "c1", 3), "L")
        assert largest_difference(begun, of(state.shared, "R")) == 0
    with toy(base64, algorithm, tmp_path / "on", clients(SIZES)) as one:
        one.play(rounds=3)
        tuned = of(own(one, "c1", 3), "L")
        one.play(rounds=4, schedule="cosine")
        assert largest_difference(of(own(one, "c1", 4), "L"), tuned) == 0
        assert largest_difference(tuned, begun) > 1e-3


@pytest.mark.parametrize(
    ("weight", "mix"),
    [(0.5, {"R": 0.5, "L": 0.5}), (0.3, {"R": 0.7, "L": 0.3}), (1e-5, {"R": 0.99999, "L": 1e-5})],
)
def test_feddpa_weighs_the_local_adapter_by_local_weight(
    weight: float, mix: dict[str, float]
) -> None:
    """The published code swaps the two."""
    (term,) = feddpa(local_weight=weight).stages[0].terms
    assert mix_weights(term.forward) == mix
    assert term.train == "L"


def test_feddpa_s_gradient_passes_through_both_adapters(base64: BaseModel) -> None:
    """The published code detaches the frozen adapter's output. Here: the slope of the loss along a
    direction in L's *first* layer, by finite differences of ¾R + ¼L, is the gradient's; and the
    upper layers' R, through which that gradient has to pass, is no small part of it."""
    lora = StackedLora(base64, "all-linear", {b: BranchSpec(2, 4.0) for b in "RL"})
    try:
        random = torch.Generator().manual_seed(3)
        size = lora.layouts["R"].size
        flats = {
            b: (lora.fresh(b, b) + 0.3 * torch.randn(size, generator=random).double())[None]
            for b in "RL"
        }
        stage = replace(feddpa(local_weight=0.25).stages[0], epochs=1.0)
        data = examples("a", 3)
        job = StageJob("a", ([render(base64, e, 256) for e in data],), 1)
        how = LocalSettings(batch=3, clip=None, optimizer="sgd")

        def gradient(branches: dict[str, torch.Tensor]) -> torch.Tensor:
            after = train_stage(lora, stage, branches, [job], how, 1.0, round=2).flats
            assert torch.equal(after["R"], branches["R"])
            return (branches["L"] - after["L"])[0]

        def loss(branches: dict[str, torch.Tensor]) -> float:
            return Worn(lora, branches, "0.75*R+0.25*L", max_length=256).loss([data])[0][0]

        layer = next(p for p in lora.layouts["L"].pieces if p.name.endswith(".B"))
        assert ".0." in layer.name
        place = slice(layer.start, layer.stop)
        ours = gradient(flats)[place]
        direction = torch.zeros_like(flats["L"])
        direction[0, place] = ours / ours.norm()
        step = 1e-4
        slope = (
            loss({**flats, "L": flats["L"] + step * direction})
            - loss({**flats, "L": flats["L"] - step * direction})
        ) / (2 * step)
        assert slope == pytest.approx(float(ours.norm()), rel=1e-3)
        upper = torch.ones_like(flats["R"])
        for piece in lora.layouts["R"].pieces:
            if ".1." in piece.name:
                upper[:, piece.start : piece.stop] = 0
        without = gradient({**flats, "R": flats["R"] * upper})[place]
        assert float((without - ours).norm()) > 0.1 * float(ours.norm())
    finally:
        lora.remove()


# pFedLoRA


def test_pfedlora_is_fedsdr_s_schedule_on_raw_answers(base64: BaseModel, tmp_path: Path) -> None:
    """Freeze R, train the own branch; freeze that, train R: FedSDR without its rewrites."""
    ours = end(base64, pfedlora(), tmp_path / "ours", rounds=2)
    theirs = fedsdr(ablation="s_on_raw")
    renamed = tuple(
        replace(
            stage,
            terms=tuple(
                replace(t, forward=t.forward.replace("S", "L"), train=t.train.replace("S", "L"))
                for t in stage.terms
            ),
        )
        for stage in theirs.stages
    )
    assert renamed == pfedlora().stages
    plain = end(base64, fedavg(), tmp_path / "fedavg", rounds=2)
    assert largest_difference(ours, plain) > 1e-4


# FDLoRA


def test_fdlora_with_plain_outer_steps_is_fedavg(base64: BaseModel, tmp_path: Path) -> None:
    plain = fdlora(inner_epochs=1.0, outer_lr=1.0, outer_momentum=0.0)
    (stage,) = fedavg().stages
    in_two = (replace(stage, when=When(last=1)), replace(stage, when=When(first=2)))
    ours = end(base64, plain, tmp_path / "fdlora", rounds=3)
    theirs = end(base64, replace(fedavg(), stages=in_two), tmp_path / "fedavg", rounds=3)
    assert largest_difference(ours, theirs) < 1e-12


def test_fdlora_s_own_adapter_follows_now_and_then(base64: BaseModel, tmp_path: Path) -> None:
    """sync_every 3: L is the client's R of round 1 in rounds 1 and 2, and that of round 3 after."""
    with toy(base64, fdlora(sync_every=3), tmp_path / "run", clients(SIZES)) as one:
        heard = Overheard(one.cohort)
        before, ends, kept = one.branches.first(), {}, {}
        for rounds in (1, 2, 3):
            after = one.play(rounds=rounds, cohort=heard).state
            change = heard.of_round(rounds)["c1"].shared
            ends[rounds] = of({n: before[n] + change[n] for n in change}, "R")
            kept[rounds] = of(own(one, "c1", rounds), "L")
            before = after.shared
            if rounds == 1:
                assert after.slots == {}
    assert largest_difference(kept[1], ends[1]) < 1e-12
    assert largest_difference(kept[2], kept[1]) == 0
    assert largest_difference(kept[2], ends[2]) > 1e-3
    assert largest_difference(kept[3], ends[3]) < 1e-12


def test_fdlora_takes_diloco_s_outer_values() -> None:
    assert fdlora().combine == Nesterov(0.7, 0.9, plain=1)
    assert fdlora(outer_lr=0.2, outer_momentum=0.1).combine == Nesterov(0.2, 0.1, plain=1)
    assert fdlora(inner_epochs=2.5).stages[1].epochs == 2.5
