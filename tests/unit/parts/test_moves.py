"""Moves on numbers worked out by hand."""

from __future__ import annotations

import torch

from fedsdr.parts.moves import Copy, Interpolate, Trained, When

FLATS = {
    "R": torch.tensor([[5.0, 2.0, -1.0], [1.0, 1.0, 1.0]]),
    "L": torch.tensor([[1.0, 2.0, 3.0], [0.0, -1.0, 4.0]]),
    "W": torch.tensor([[0.25, 0.5, 0.75], [1.0, 0.0, 0.5]]),
}
STAGE = Trained(FLATS, torch.tensor([1, 1]), 0.1)


def test_a_copy_is_one_s_own() -> None:
    copied = Copy("L", "R")(FLATS, STAGE)
    assert torch.equal(copied, FLATS["R"])
    copied += 1.0
    assert FLATS["R"][0, 0] == 5.0


def test_a_copy_happens_in_its_rounds() -> None:
    every_third = Copy("L", "R", When(first=3, every=3))
    assert [n for n in range(1, 10) if every_third.when(n)] == [3, 6, 9]
    assert all(Copy("L", "R").when(n) for n in range(1, 10))


def test_the_interpolation_is_element_by_element() -> None:
    """L + (R − L) ⊙ W: 1 + 4·¼ = 2, 2 + 0·½ = 2, 3 − 4·¾ = 0; and 0 + 1·1, −1 + 2·0, 4 − 3·½."""
    mixed = Interpolate("R", old="L", weights="W")(FLATS, STAGE)
    assert mixed.tolist() == [[2.0, 2.0, 0.0], [1.0, -1.0, 2.5]]


def test_weights_of_one_and_of_nothing_are_exact() -> None:
    """FedALA begins with W = 1, which has to be the broadcast to the last bit."""
    random = torch.Generator().manual_seed(2)
    new, old = (torch.randn((2, 999), generator=random, dtype=torch.float64) for _ in "ab")
    for dtype in (torch.float64, torch.float32):
        flats = {"R": new.to(dtype), "L": old.to(dtype), "W": torch.ones(2, 999, dtype=dtype)}
        move = Interpolate("R", old="L", weights="W")
        assert torch.equal(move(flats, STAGE), flats["R"])
        assert torch.equal(move({**flats, "W": flats["W"] * 0}, STAGE), flats["L"])
