"""The outer Nesterov step: by hand, and against torch's."""

from __future__ import annotations

import torch

from fedsdr.parts.combine import Mean, Nesterov
from fedsdr.types import ServerState, Tensors, Update

NAME = "R/l.A"


def state(value: float = 0.0, round: int = 0) -> ServerState:
    return ServerState(round, {NAME: torch.tensor([value], dtype=torch.float64)})


def sent(*changes: float) -> list[Update]:
    return [
        Update(
            run="run",
            round=1,
            client_id=str(k),
            base_digest="base",
            weight=1.0,
            shared={NAME: torch.tensor([x], dtype=torch.float64)},
        )
        for k, x in enumerate(changes)
    ]


def test_two_steps_by_hand() -> None:
    """η = ½, β = ½. Mean Δ = 4: v = 4, w = 0 + ½(4 + 2) = 3. Mean Δ = 2: v = ½·4 + 2 = 4,
    w = 3 + ½(2 + 2) = 5."""
    rule = Nesterov(0.5, 0.5)
    one = rule(state(), sent(3.0, 5.0))
    assert (one.shared[NAME].item(), one.slots[f"v/{NAME}"].item()) == (3.0, 4.0)
    two = rule(one, sent(2.0, 2.0))
    assert (two.shared[NAME].item(), two.slots[f"v/{NAME}"].item()) == (5.0, 4.0)
    assert (one.round, two.round) == (1, 2)


def test_it_is_torchs() -> None:
    random = torch.Generator().manual_seed(4)
    rule, now = Nesterov(0.7, 0.9), state(1.0)
    theirs = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)
    outer = torch.optim.SGD([theirs], lr=0.7, momentum=0.9, nesterov=True)
    for _ in range(6):
        change = torch.randn(1, generator=random, dtype=torch.float64)
        now = rule(now, sent(change.item()))
        theirs.grad = -change
        outer.step()
        assert torch.allclose(now.shared[NAME], theirs, rtol=0, atol=1e-14)


def test_the_first_rounds_can_be_plain_means_without_a_memory() -> None:
    """θ_s⁰ = mean θ_p: Δ = 4 as it is; then, as at a first step, v = 2 and w = 4 + ½(2 + ½·2)."""
    rule = Nesterov(0.5, 0.5, plain=1)
    one = rule(state(), sent(3.0, 5.0))
    assert one.shared[NAME].item() == 4.0
    assert one.slots == {}
    two = rule(one, sent(2.0))
    assert (two.shared[NAME].item(), two.slots[f"v/{NAME}"].item()) == (5.5, 2.0)


def test_without_momentum_and_at_rate_one_it_is_the_mean() -> None:
    ours, mean = Nesterov(1.0, 0.0)(state(3.0), sent(1.0, 2.0)), Mean()(state(3.0), sent(1.0, 2.0))
    assert torch.equal(ours.shared[NAME], mean.shared[NAME])


def test_what_nobody_sent_rests_with_its_memory() -> None:
    rule, quiet = Nesterov(0.5, 0.5), torch.tensor([7.0])
    begin = ServerState(4, {**state().shared, "R/m.A": quiet}, {"v/R/m.A": quiet})
    after = rule(begin, sent(4.0))
    kept: Tensors = {"w": after.shared["R/m.A"], "v": after.slots["v/R/m.A"]}
    assert all(torch.equal(t, quiet) for t in kept.values())
