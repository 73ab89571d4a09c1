"""The mean of FedAvg, on numbers worked out by hand."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from fedsdr.parts.combine import Mean, weighted_mean
from fedsdr.types import ServerState, Update


def update(
    client: str, weight: float, *values: float, dtype: torch.dtype = torch.float32
) -> Update:
    return Update(
        run="run",
        round=1,
        client_id=client,
        base_digest="base",
        weight=weight,
        shared={"w": torch.tensor(values, dtype=dtype)},
    )


def test_the_weighted_mean_of_three_changes() -> None:
    """n = 2 + 6 + 8 = 16, so the weights n_k/n are 1/8, 3/8 and 4/8, and

        Δ = (1/8)(8, 0) + (3/8)(0, 8) + (4/8)(4, -2) = (1 + 0 + 2, 0 + 3 - 1) = (3, 2)

    From w = (1, 1) the next state is (4, 3).
    """
    updates = [update("a", 2, 8, 0), update("b", 6, 0, 8), update("c", 8, 4, -2)]
    state = Mean()(ServerState(4, {"w": torch.ones(2)}), updates)
    assert state.round == 5
    assert state.shared["w"].tolist() == [4.0, 3.0]


def test_only_the_ratio_of_weights_matters() -> None:
    """Exactly, since 1/4 and 3/4 are sums of powers of two."""
    light = weighted_mean([update("a", 1, 8), update("b", 3, 4)])
    heavy = weighted_mean([update("a", 256, 8), update("b", 768, 4)])
    assert light["w"].tolist() == heavy["w"].tolist() == [5.0]


def test_one_client_moves_the_server_to_where_it_ended() -> None:
    state = Mean()(ServerState(0, {"w": torch.tensor([0.5])}), [update("a", 7, 0.25)])
    assert state.shared["w"].item() == 0.75


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_single(dtype: torch.dtype) -> None:
    """2048 + 1 is 2048 in fp16: 4,096 ones summed in half would stick there."""
    updates = [update(f"c{i:04}", 1, 1.0, dtype=dtype) for i in range(4096)]
    found = weighted_mean(updates)["w"]
    assert found.dtype == torch.float32
    assert found.item() == 1.0


def test_double_precision_stays_double() -> None:
    third = weighted_mean([update("a", 3, 1 / 3, dtype=torch.float64)])["w"]
    assert third.dtype == torch.float64
    assert third.item() == pytest.approx(1 / 3, abs=1e-16)


def test_updates_are_read_one_at_a_time_and_not_changed() -> None:
    held: list[Update] = []

    def stream() -> Iterator[Update]:
        for k in range(3):
            held.append(update(f"c{k}", 2, 3.0))
            yield held[-1]

    assert weighted_mean(stream())["w"].item() == 3.0
    assert [u.shared["w"].item() for u in held] == [3.0] * 3


def test_state_and_slots_are_kept() -> None:
    first = ServerState(0, {"w": torch.zeros(1)}, {"m": torch.ones(1)})
    after = Mean()(first, [update("a", 1, 1.0)])
    assert after.slots == first.slots
    assert first.shared["w"].item() == 0.0


def test_an_algorithm_that_shares_nothing_has_nothing_to_combine() -> None:
    nothing = Update(run="run", round=1, client_id="a", base_digest="base", weight=1.0, shared={})
    assert Mean()(ServerState(0, {}), [nothing]).shared == {}
