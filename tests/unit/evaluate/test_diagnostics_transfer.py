"""Training on one client, the loss of another."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from fedsdr.data.render import Rendered, render
from fedsdr.evaluate.diagnostics.gradients import loss_transfer, mean_loss, train_apart
from fedsdr.evaluate.scoring import Worn
from fedsdr.model.base import BaseModel
from fedsdr.model.lora import BranchSpec, StackedLora
from fedsdr.parts.local import LocalSettings
from toy import examples

LOCAL = LocalSettings(batch=3)


@pytest.fixture
def lora(base64: BaseModel) -> Iterator[StackedLora]:
    worn = StackedLora(base64, "all-linear", {"R": BranchSpec(2, 4.0)})
    yield worn
    worn.remove()


def rows(lora: StackedLora, owner: str, count: int) -> list[Rendered]:
    return [render(lora.base, e, 256) for e in examples(owner, count)]


def test_each_trains_alone_from_the_same_start(lora: StackedLora) -> None:
    own = [rows(lora, "a", 5), rows(lora, "b", 9), rows(lora, "c", 1)]
    start = lora.fresh("R", 1)
    told = list[int]()
    together = train_apart(
        lora,
        "R",
        start=start,
        rows=own,
        settings=LOCAL,
        lr=0.01,
        steps=4,
        stack=3,
        seed=7,
        told=told.append,
    )
    in_pairs = train_apart(
        lora, "R", start=start, rows=own, settings=LOCAL, lr=0.01, steps=4, stack=2, seed=7
    )
    assert torch.allclose(together, in_pairs, rtol=0, atol=1e-9)
    assert told == [3]
    assert [bool((end == start).all()) for end in together] == [False] * 3
    longer = train_apart(
        lora, "R", start=start, rows=own, settings=LOCAL, lr=0.01, steps=5, stack=3, seed=7
    )
    assert not torch.allclose(together, longer)
    assert not torch.allclose(
        together,
        train_apart(
            lora, "R", start=start, rows=own, settings=LOCAL, lr=0.01, steps=4, stack=3, seed=8
        ),
    )


def test_losses_are_those_of_the_scorer(lora: StackedLora) -> None:
    held_out, start = examples("h", 6), lora.fresh("R", 1)
    flats = train_apart(
        lora,
        "R",
        start=start,
        rows=[rows(lora, "a", 5), rows(lora, "b", 5)],
        settings=LOCAL,
        lr=0.01,
        steps=6,
        stack=2,
        seed=7,
    )
    same = [render(lora.base, e, 256) for e in held_out]
    expected = [
        Worn(lora, {"R": flat[None]}, "R", max_length=256).loss([held_out])[0][0] for flat in flats
    ]
    found = mean_loss(lora, "R", flats, same, batch=4)
    assert found.tolist() == pytest.approx(expected, abs=1e-9)
    base = Worn(lora, {}, "", max_length=256).loss([held_out])[0][0]
    assert mean_loss(lora, "R", None, same, 2).tolist() == pytest.approx([base], abs=1e-9)
    # B = 0 is the base
    assert float(mean_loss(lora, "R", start[None], same, 2)) == pytest.approx(base, abs=1e-9)


def test_transfer_is_relative_and_helps_at_home(lora: StackedLora) -> None:
    own = [rows(lora, "a", 4), rows(lora, "b", 4)]
    flats = train_apart(
        lora,
        "R",
        start=lora.fresh("R", 1),
        rows=own,
        settings=LOCAL,
        lr=0.02,
        steps=20,
        stack=2,
        seed=7,
    )
    found = loss_transfer(lora, "R", flats, [*own, []], stack=1, batch=8)
    assert found.shape == (2, 3)
    before = mean_loss(lora, "R", None, own[1], 8)
    after = mean_loss(lora, "R", flats[:1], own[1], 8)
    assert float(found[0, 1]) == pytest.approx(float(after / before - 1), abs=1e-9)
    assert float(found.diagonal().max()) < -0.1  # its own rows, learnt by heart
    assert found[:, 2].isnan().all()
