"""The rule by hand, and what fedsdr asks of every algorithm."""

import pytest
import torch
from fedsdr_fednova.fednova import Normalised, fednova

from fedsdr.errors import RecipeError
from fedsdr.testing import check_algorithm
from fedsdr.types import ServerState, Update


def update(client: str, weight: float, steps: int, change: float) -> Update:
    shared = {"R/layer.B": torch.tensor([[change]], dtype=torch.float64)}
    return Update(
        run="run",
        round=1,
        client_id=client,
        base_digest="base",
        weight=weight,
        shared=shared,
        metrics={"steps": float(steps)},
    )


@pytest.mark.parametrize(("power", "moved"), [(1.0, 10.5), (0.0, 5.5), (0.5, 6.25)])
def test_by_hand(power: float, moved: float) -> None:
    """p = (1/4, 3/4), τ = (1, 9) and Δ = (4, 6):
    power 1:   Σ p τ = 7,   Σ p Δ/τ = 1 + 1/2,   7 · 3/2 = 10.5
    power 0:   Σ p Δ = 1 + 4.5 = 5.5
    power ½:   Σ p √τ = 5/2,   Σ p Δ/√τ = 1 + 3/2,   5/2 · 5/2 = 6.25
    """
    state = ServerState(0, {"R/layer.B": torch.zeros(1, 1, dtype=torch.float64)})
    after = Normalised(power)(state, [update("a", 1.0, 1, 4.0), update("b", 3.0, 9, 6.0)])
    assert after.shared["R/layer.B"].item() == pytest.approx(moved)
    assert after.round == 1


def test_what_every_algorithm_has_to_hold() -> None:
    print(check_algorithm(fednova, reduces_to_fedavg={"power": 0.0}))


@pytest.mark.parametrize("power", [-1.0, float("nan"), float("inf")])
def test_a_senseless_power_is_refused(power: float) -> None:
    with pytest.raises(RecipeError, match=r"algorithm\.power must be"):
        fednova(power)
