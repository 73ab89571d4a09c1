"""One stage of local training, number by number, against torch's own optimisers and clipping."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from fedsdr.data.render import Rendered, render
from fedsdr.model.base import BaseModel
from fedsdr.model.lora import StackedLora
from fedsdr.parts.algorithm import Fade, Stage, Term
from fedsdr.parts.local import LocalSettings, count_steps
from fedsdr.parts.views import Raw
from fedsdr.training.optimizer import Optimizer, clip
from fedsdr.training.stage import StageJob, StageResult, train_stage
from toy import SPECS, examples

RAW = Raw()


@pytest.fixture
def lora(base64: BaseModel) -> Iterator[StackedLora]:
    made = StackedLora(base64, "all-linear", SPECS)
    yield made
    made.remove()


def rows(lora: StackedLora, owner: str, count: int) -> list[Rendered]:
    return [render(lora.base, e, 256) for e in examples(owner, count)]


def flats(lora: StackedLora, clients: int) -> dict[str, torch.Tensor]:
    """Branches whose A and B are both away from zero, so that every gradient is."""
    shape = torch.Generator().manual_seed(3)
    made = {}
    for branch in ("R", "S"):
        one = lora.fresh(branch, branch)
        noise = torch.randn((clients, one.shape[0]), generator=shape, dtype=torch.float64)
        made[branch] = one + 0.05 * noise
    return made


def trained(
    lora: StackedLora, stage: Stage, sizes: tuple[int, ...], lr: float = 1e-2, **settings: Any
) -> tuple[dict[str, torch.Tensor], StageResult]:
    begin = flats(lora, len(sizes))
    jobs = [
        StageJob(f"c{k}", tuple(rows(lora, f"c{k}", n) for _ in stage.terms), 11 + k)
        for k, n in enumerate(sizes)
    ]
    return begin, train_stage(lora, stage, begin, jobs, LocalSettings(batch=2, **settings), lr)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adamw_is_torchs(decay: float) -> None:
    random = torch.Generator().manual_seed(1)
    begin = torch.randn((3, 10), generator=random, dtype=torch.float64)
    ours, theirs = begin.clone(), begin.clone().requires_grad_()
    rule = Optimizer(ours, None, LocalSettings(weight_decay=decay))
    theirs_rule = torch.optim.AdamW([theirs], lr=0.03, weight_decay=decay)
    for _ in range(7):
        grad = torch.randn((3, 10), generator=random, dtype=torch.float64)
        rule.step(ours, grad, 0.03)
        theirs.grad = grad
        theirs_rule.step()
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-14)


def test_sgd_is_torchs() -> None:
    begin, grad = torch.tensor([[1.0, -2.0]]), torch.tensor([[0.5, 0.25]])
    ours, theirs = begin.clone(), begin.clone().requires_grad_()
    rule = Optimizer(ours, None, LocalSettings(optimizer="sgd"))
    theirs_rule = torch.optim.SGD([theirs], lr=0.1)
    theirs.grad = grad
    for _ in range(3):
        rule.step(ours, grad, 0.1)
        theirs_rule.step()
    assert torch.equal(ours, theirs)


def test_clipping_is_torchs_for_each_client_over_all_branches_it_trains() -> None:
    random = torch.Generator().manual_seed(2)
    scale = torch.tensor([[0.01], [1.0], [100.0]], dtype=torch.float64)  # one stays below the limit
    grads = {
        b: torch.randn((3, n), generator=random, dtype=torch.float64) * scale
        for b, n in (("R", 8), ("S", 5))
    }
    theirs = [[g[k].clone().requires_grad_() for g in grads.values()] for k in range(3)]
    for own in theirs:
        for one in own:
            one.grad = one.detach().clone()
        torch.nn.utils.clip_grad_norm_(own, 1.5)
    before = grads["R"][0].clone()
    clip(grads, 1.5)
    assert torch.equal(grads["R"][0], before)
    for k, own in enumerate(theirs):
        for one, ours in zip(own, grads.values(), strict=True):
            assert torch.allclose(ours[k], one.grad, rtol=1e-12, atol=0)


def test_one_clients_gradient_does_not_clip_anothers() -> None:
    grads = {"R": torch.tensor([[3.0, 4.0], [0.3, 0.4]])}
    clip(grads, 1.0)
    assert torch.allclose(grads["R"], torch.tensor([[0.6, 0.8], [0.3, 0.4]]), atol=1e-6)


@pytest.mark.parametrize("half", ["A", "B"])
def test_half_a_branch_is_trained_and_the_other_half_is_untouched(
    lora: StackedLora, half: str
) -> None:
    """Weight decay included: a frozen half does not shrink."""
    stage = Stage((Term(RAW, forward="R+S", train=f"R.{half}"),))
    begin, result = trained(lora, stage, (3, 5), weight_decay=0.1)
    columns = lora.layouts["R"].columns(half)
    frozen = torch.ones(begin["R"].shape[1], dtype=torch.bool)
    frozen[columns] = False
    assert torch.equal(result.flats["R"][:, frozen], begin["R"][:, frozen])
    assert (result.flats["R"][:, columns] != begin["R"][:, columns]).double().mean() > 0.99
    assert torch.equal(result.flats["S"], begin["S"])


def test_half_a_branch_moves_as_it_does_when_all_is_trained(lora: StackedLora) -> None:
    """With SGD, unclipped, one step: the gradient of B does not depend on whether A is trained."""
    options: dict[str, Any] = {"steps": 1, "optimizer": "sgd", "clip": None}
    _, half = trained(lora, Stage((Term(RAW, forward="R", train="R.B"),)), (3,), **options)
    _, whole = trained(lora, Stage((Term(RAW, forward="R", train="R"),)), (3,), **options)
    columns = lora.layouts["R"].columns("B")
    assert torch.equal(half.flats["R"][:, columns], whole.flats["R"][:, columns])


def test_in_a_joint_stage_each_term_reaches_only_its_own_branch(lora: StackedLora) -> None:
    """One SGD step on both terms equals the step of either term alone, branch by branch."""
    smooth, rectify = (
        Term(RAW, forward="R+S", train="S"),
        Term(RAW, forward="R+S", train="R", weight=0.5),
    )
    options: dict[str, Any] = {"steps": 1, "optimizer": "sgd", "clip": None}
    begin, joint = trained(lora, Stage((smooth, rectify)), (3, 4), **options)
    _, alone = trained(lora, Stage((smooth,)), (3, 4), **options)
    assert torch.equal(joint.flats["S"], alone.flats["S"])
    assert torch.equal(alone.flats["R"], begin["R"])
    # The second term draws batches of its own; in a stage of two R terms it draws the same ones.
    _, doubled = trained(
        lora,
        Stage(
            (Term(RAW, forward="R+S", train="S", weight=0.0), Term(RAW, forward="R+S", train="R"))
        ),
        (3, 4),
        **options,
    )
    half = (doubled.flats["R"] - begin["R"]) / 2
    assert torch.allclose(joint.flats["R"] - begin["R"], half, rtol=0, atol=1e-9)
    assert torch.equal(doubled.flats["S"], begin["S"])


def test_one_term_may_train_two_branches(lora: StackedLora) -> None:
    begin, result = trained(lora, Stage((Term(RAW, forward="R+S", train="R+S"),)), (3,))
    assert not torch.equal(result.flats["R"], begin["R"])
    assert not torch.equal(result.flats["S"], begin["S"])


def test_a_finished_client_is_untouched_after_its_last_step(lora: StackedLora) -> None:
    """2, 9 and 4 rows at batch 2 are 1, 5 and 2 steps: each ends where it would alone."""
    stage = Stage((Term(RAW, forward="R+S", train="R"),))
    begin, together = trained(lora, stage, (2, 9, 4), weight_decay=0.1)
    assert together.steps == (1, 5, 2)
    for k, size in enumerate((2, 9, 4)):
        own = {b: flat[k : k + 1] for b, flat in begin.items()}
        job = StageJob(f"c{k}", (rows(lora, f"c{k}", size),), 11 + k)
        settings = LocalSettings(batch=2, weight_decay=0.1)
        alone = train_stage(lora, stage, own, [job], settings, 1e-2)
        assert torch.allclose(together.flats["R"][k], alone.flats["R"][0], rtol=0, atol=1e-9)
        assert alone.tokens[0] == together.tokens[k]
        assert alone.losses[0] == pytest.approx(together.losses[k], abs=1e-9)


def test_what_it_was_given_is_not_changed(lora: StackedLora) -> None:
    begin = flats(lora, 2)
    kept = {b: flat.clone() for b, flat in begin.items()}
    jobs = [StageJob(c, (rows(lora, c, 3),), 1) for c in "ab"]
    train_stage(
        lora, Stage((Term(RAW, forward="R", train="R"),)), begin, jobs, LocalSettings(batch=2), 0.1
    )
    assert all(torch.equal(begin[b], kept[b]) for b in begin)


def test_a_branch_faded_to_nothing_is_as_good_as_absent(lora: StackedLora) -> None:
    absent = trained(lora, Stage((Term(RAW, forward="R", train="R"),)), (3, 5))[1]
    for fade in (Fade("S", scale=0.0), Fade("S", dropout=1.0)):
        faded = trained(lora, Stage((Term(RAW, forward="R+S", train="R", fade=fade),)), (3, 5))[1]
        assert torch.allclose(faded.flats["R"], absent.flats["R"], rtol=0, atol=1e-9)
    full = trained(lora, Stage((Term(RAW, forward="R+S", train="R", fade=Fade("S")),)), (3, 5))[1]
    plain = trained(lora, Stage((Term(RAW, forward="R+S", train="R"),)), (3, 5))[1]
    assert torch.allclose(full.flats["R"], plain.flats["R"], rtol=0, atol=1e-12)
    assert not torch.allclose(plain.flats["R"], absent.flats["R"], rtol=0, atol=1e-4)


def test_dropout_switches_a_branch_off_at_its_rate_client_by_client(lora: StackedLora) -> None:
    from fedsdr.training.stage import _factors

    noise = [torch.Generator().manual_seed(k) for k in range(4)]
    worn, jobs = flats(lora, 4), [StageJob("a", (), 1)] * 4
    drawn = [_factors(Fade("S", scale=0.5, dropout=0.3), noise, worn, jobs) for _ in range(400)]
    factors = torch.stack([d["S"] for d in drawn])
    assert set(factors.unique().tolist()) == {0.0, 0.5}
    off = (factors == 0).double().mean(dim=0)
    assert ((off > 0.2) & (off < 0.4)).all()
    assert len({tuple(column) for column in factors.T.tolist()}) == 4


@pytest.mark.parametrize(
    ("examples", "batch", "epochs", "steps"),
    [(8, 4, 1, 2), (9, 4, 1, 3), (9, 4, 0.5, 2), (1, 8, 0.1, 1), (8, 4, 2.5, 5)],
)
def test_steps_of_a_stage(examples: int, batch: int, epochs: float, steps: int) -> None:
    assert count_steps(examples, batch, epochs) == steps


def test_a_stages_own_epochs_and_part() -> None:
    job = StageJob("a", ([Rendered((1,), (1.0,))] * 8,), 1)
    settings = LocalSettings(epochs=4, batch=4)
    term = Term(RAW, forward="R", train="R")
    assert job.steps(Stage((term,)), settings) == 8
    assert job.steps(Stage((term,), part=0.5), settings) == 4
    assert job.steps(Stage((term,), epochs=1), settings) == 2
    assert job.steps(Stage((term,), part=0.5), LocalSettings(steps=6, batch=4)) == 3
