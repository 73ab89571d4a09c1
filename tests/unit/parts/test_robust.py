"""The robust rules: numbers worked out by hand, brute force as oracle, and an attacker among eight.

Where a rule must not care for weights, the clients' weights differ widely.
"""

from __future__ import annotations

import math
import random
from itertools import permutations

import numpy as np
import pytest
import torch

from crowds import A, B, Spool, attack, crowd, flat, line, points, start, update, zeros
from fedsdr.errors import FedsdrError, RecipeError, RoundFailed
from fedsdr.parts.combine import Combine, Mean
from fedsdr.parts.robust import HELD, CoordinateMedian, GeometricMedian, TrimmedMean, stacks
from fedsdr.tensors import digest
from fedsdr.types import ServerState, Update

RULES: dict[str, Combine] = {
    "median": CoordinateMedian(),
    "trimmed": TrimmedMean(0.25),
    "geometric": GeometricMedian(),
}
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())


def test_the_median_of_three_whatever_they_weigh() -> None:
    """Of −5, 2 and 1000 it is 2; from w = 0 the next state is 2. The weights say 1000."""
    after = CoordinateMedian()(start(), line(-5, 1000, 2, weights=[1, 1e6, 1]))
    assert after.shared[B].tolist() == [2.0]


def test_the_median_of_an_even_count_is_the_mean_of_the_middle_two() -> None:
    """Of −7, 1, 4, 90: (1 + 4)/2 = 2.5. (torch.median would say 1.)"""
    assert CoordinateMedian()(start(), line(90, 1, -7, 4)).shared[B].tolist() == [2.5]


def test_the_median_goes_coordinate_by_coordinate() -> None:
    """(1, 30), (2, 10), (3, 20): the medians 2 and 20, which no client sent together."""
    updates = [update(c, 1, B=v) for c, v in (("a", [1, 30]), ("b", [2, 10]), ("c", [3, 20]))]
    assert CoordinateMedian()(start(2), updates).shared[B].tolist() == [2.0, 20.0]


def test_the_trimmed_mean_by_hand() -> None:
    """share 0.2 of 5 drops one at each end: of −100, 1, 2, 6, 50 there remain 1, 2, 6, mean 3. At
    0.39 of 5 it is ⌊1.95⌋ = 1 as well; at 0.4 two: 2."""
    updates = line(50, 1, 6, -100, 2)
    assert TrimmedMean(0.2)(start(), updates).shared[B].tolist() == [3.0]
    assert TrimmedMean(0.39)(start(), updates).shared[B].tolist() == [3.0]
    assert TrimmedMean(0.4)(start(), updates).shared[B].tolist() == [2.0]


def test_the_trimmed_mean_drops_what_is_meant_not_what_floating_point_makes_of_it() -> None:
    """0.29·100 is 28.999999999999996. Of 70 zeros and 30 ones, 29 off each end leave 41 zeros and
    a one: 1/42. (28 would leave 2/44.)"""
    updates = line(*([0.0] * 70 + [1.0] * 30), weights=[1] * 100)
    assert TrimmedMean(0.29)(start(), updates).shared[B].item() == pytest.approx(1 / 42)


def test_the_trimmed_mean_of_share_zero_is_the_mean() -> None:
    updates = line(1, 2, 6, weights=[1, 1, 1])
    assert TrimmedMean(0.0)(start(), updates).shared[B].tolist() == [3.0]


def test_a_trimmed_mean_of_nothing_is_refused() -> None:
    """⌊0.4999999999999·2 + 1e-9⌋ = 1 at each end of two."""
    with pytest.raises(RoundFailed, match=r"round 5: .* of 2 updates drops 1 at each end") as error:
        TrimmedMean(0.4999999999999)(start(), line(1, 2))
    assert isinstance(error.value, FedsdrError)
    assert "server.combine" in str(error.value)


@pytest.mark.parametrize("share", [-0.1, 0.5, 1.0, math.nan, math.inf, -math.inf])
def test_a_share_that_makes_no_sense_is_refused(share: float) -> None:
    with pytest.raises(RecipeError, match=r"server\.combine.*0 <= share < 0\.5, it is"):
        TrimmedMean(share)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("n", [1, 2, 5, 8, 9, 11])
def test_median_and_trimmed_mean_agree_with_numpy(n: int, seed: int) -> None:
    updates = crowd(n, seed)
    values = points(updates)
    found = flat(CoordinateMedian()(zeros(), updates).shared)
    assert found == pytest.approx(np.median(values, axis=0), abs=1e-6)
    drop = int(0.25 * n)
    by_hand = np.sort(values, axis=0)[drop : n - drop].mean(axis=0)
    assert flat(TrimmedMean(0.25)(zeros(), updates).shared) == pytest.approx(by_hand, abs=1e-6)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", ["median", "trimmed"])
def test_one_liar_of_eight_cannot_leave_the_range_of_the_honest(name: str, seed: int) -> None:
    """The mean is thrown by 1e6/8; these rules stay where the other seven are."""
    honest, attacked = attack(crowd(8, seed), 3, -1e6)
    after = flat(RULES[name](zeros(), attacked).shared)
    low, high = points(honest).min(axis=0), points(honest).max(axis=0)
    assert (low <= after).all()
    assert (after <= high).all()
    assert np.abs(flat(Mean()(zeros(), attacked).shared)).max() > 1e4


@every_rule
def test_the_largest_numbers_that_are_admitted_overflow_nothing(rule: Combine) -> None:
    big = {A: torch.full((3, 4), 1e6), B: torch.full((6,), -1e6)}
    updates = [
        Update(run="run", round=1, client_id=f"c{k}", base_digest="base", weight=1e9, shared=big)
        for k in range(5)
    ]
    after = rule(zeros(), updates).shared
    assert after[A].equal(big[A])
    assert after[B].equal(big[B])


@every_rule
@pytest.mark.parametrize("n", [1, 2, 3, 7, 8])
def test_equal_updates_give_what_the_mean_gives(rule: Combine, n: int) -> None:
    """In fp64, up to the last digit of the mean's own sums; in fp32 the change itself, to the
    bit."""
    (one,) = crowd(1, 5, torch.float64)
    same = [
        Update(
            run="run",
            round=1,
            client_id=f"c{k}",
            base_digest="base",
            weight=1.0 + k,
            shared=one.shared,
        )
        for k in range(n)
    ]
    state = zeros(torch.float64)
    assert flat(rule(state, same).shared) == pytest.approx(
        flat(Mean()(state, same).shared), rel=1e-14
    )
    (single,) = crowd(1, 5)
    same = [
        Update(
            run="run",
            round=1,
            client_id=f"c{k}",
            base_digest="base",
            weight=1.0 + k,
            shared=single.shared,
        )
        for k in range(n)
    ]
    assert digest(rule(zeros(), same).shared) == digest(single.shared)


@every_rule
def test_the_order_of_clients_does_not_matter(rule: Combine) -> None:
    updates = crowd(4, 2)
    states = [flat(rule(zeros(), list(order)).shared) for order in permutations(updates)]
    if isinstance(rule, GeometricMedian):
        assert all(found == pytest.approx(states[0], abs=1e-7) for found in states)
    else:
        assert all((found == states[0]).all() for found in states)


@every_rule
def test_what_nobody_sent_stays_as_it_is_with_all_else_in_the_state(rule: Combine) -> None:
    before = ServerState(
        4, {A: torch.full((3, 4), 2.0), B: torch.ones(6)}, {"m": torch.ones(1)}, seed=11, clients=9
    )
    half = [
        Update(
            run="run",
            round=5,
            client_id=u.client_id,
            base_digest="base",
            weight=u.weight,
            shared={B: u.shared[B]},
        )
        for u in crowd(5, 1)
    ]
    after = rule(before, half)
    assert after.shared[A].equal(before.shared[A])
    assert not after.shared[B].equal(before.shared[B])
    assert after.slots == before.slots
    assert (after.round, after.seed, after.clients) == (5, 11, 9)
    assert before.shared[B].equal(torch.ones(6))


@every_rule
def test_it_starts_from_the_broadcast_and_keeps_its_dtype(rule: Combine) -> None:
    (one,) = crowd(1, 5)
    state = ServerState(0, {A: torch.ones(3, 4), B: torch.ones(6)})
    after = rule(state, [one])
    assert after.shared[B].dtype == torch.float32
    assert after.shared[B].equal(1 + one.shared[B])


@every_rule
def test_clients_updates_are_left_as_they_came(rule: Combine) -> None:
    updates = crowd(5, 1)
    before = [digest(u.shared) for u in updates]
    rule(zeros(), updates)
    assert [digest(u.shared) for u in updates] == before


@every_rule
def test_updates_are_read_one_at_a_time(rule: Combine) -> None:
    """Two: the next is read while the last is still at hand."""
    spool = Spool(crowd(12, 3))
    rule(zeros(), spool)
    assert spool.most <= 2
    assert spool.passes > 1


def test_stacks_hold_a_few_updates_worth_at_a_time() -> None:
    """16 clients of 32 equal tensors: 4/16 of the names at a time, so one pass to count and 4."""
    names = [f"R/{i:02}.A" for i in range(32)]
    updates = [
        Update(
            run="run",
            round=1,
            client_id=f"c{k:02}",
            base_digest="base",
            weight=1,
            shared={n: torch.full((5,), float(k)) for n in names},
        )
        for k in range(16)
    ]
    spool = Spool(updates)
    found = dict(stacks(spool))
    assert list(found) == names
    assert all(t.shape == (16, 5) for t in found.values())
    assert found[names[7]][:, 0].tolist() == list(range(16))
    assert spool.passes == 1 + 16 // HELD
    assert spool.most <= 2


def test_a_tensor_larger_than_all_others_goes_by_itself() -> None:
    sizes = {"a": 1, "b": 100, "c": 1, "d": 1}
    updates = [
        Update(
            run="run",
            round=1,
            client_id=f"c{k}",
            base_digest="base",
            weight=1,
            shared={n: torch.ones(s) for n, s in sizes.items()},
        )
        for k in range(20)
    ]
    spool = Spool(updates)
    assert [n for n, _ in stacks(spool)] == list(sizes)
    assert spool.passes == 1 + 3


def test_half_precision_is_averaged_in_more() -> None:
    updates = [
        Update(
            run="run",
            round=1,
            client_id=f"c{k}",
            base_digest="base",
            weight=1,
            shared={B: torch.tensor([x], dtype=torch.bfloat16)},
        )
        for k, x in enumerate((256.0, 258.0))
    ]
    after = CoordinateMedian()(start(dtype=torch.float32), updates)
    assert after.shared[B].item() == 257.0  # no number of bf16


@pytest.mark.parametrize("name", ["median", "trimmed"])
def test_ranks_that_differ_are_refused(name: str) -> None:
    updates = [update("a", 1, B=torch.ones(4, 2)), update("b", 1, B=torch.ones(4, 3))]
    with pytest.raises(RoundFailed, match=r"client 'b' .*R/layer\.B.*\(4, 3\).*\(4, 2\).*ranks"):
        RULES[name](ServerState(0, {B: torch.ones(4, 3)}), updates)


@every_rule
def test_a_round_in_which_nothing_is_sent_changes_only_its_number(rule: Combine) -> None:
    nothing = [
        Update(run="run", round=1, client_id=c, base_digest="base", weight=1.0, shared={})
        for c in "abc"
    ]
    after = rule(zeros(), nothing)
    assert after.round == 1
    assert digest(after.shared) == digest(zeros().shared)


def test_half_less_one_of_the_clients_cannot_break_the_median() -> None:
    """Four of nine lie, all in one direction, in random places."""
    values = [1.0, 2.0, 3.0, 4.0, 5.0, 1e6, 1e6, 1e6, 1e6]
    random.Random(3).shuffle(values)
    assert CoordinateMedian()(start(), line(*values)).shared[B].tolist() == [5.0]
    assert TrimmedMean(0.45)(start(), line(*values)).shared[B].tolist() == [5.0]
    found = GeometricMedian(iterations=300)(start(), line(*values, weights=[1] * 9)).shared[B]
    assert 1 <= found.item() <= 5.01
