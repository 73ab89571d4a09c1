"""Norm clipping and Krum: numbers by hand, brute force as oracle, and a liar of eight."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch

from crowds import A, B, Spool, attack, crowd, flat, line, points, start, update, zeros
from fedsdr.errors import FedsdrError, RecipeError, RoundFailed
from fedsdr.parts.combine import Filter, Mean
from fedsdr.parts.robust import Krum, NormClip, norm
from fedsdr.tensors import digest
from fedsdr.types import ServerState, Update

FILTERS: dict[str, Filter] = {
    "clip": NormClip(1.0),
    "clip to the median": NormClip(),
    "krum": Krum(1),
    "multi-krum": Krum(1, 4),
}
every_filter = pytest.mark.parametrize("sift", FILTERS.values(), ids=FILTERS.keys())


def kept(sift: Filter, *updates: Update) -> list[str]:
    return [u.client_id for u in sift(start(), updates)]


def test_clipping_by_hand() -> None:
    """‖(3, 0; 0, 4)‖ = 5 over both tensors, so at limit 2.5 all of it is halved: no tensor is
    clipped by itself. (0, 0; 1.5, 2) has norm 2.5 and passes as it is."""
    long = update("a", 7, A=[3.0, 0.0], B=[0.0, 4.0])
    short = update("b", 1, A=[0.0, 0.0], B=[1.5, 2.0])
    first, second = NormClip(2.5)(start(), [long, short])
    assert first.shared[A].tolist() == [1.5, 0.0]
    assert first.shared[B].tolist() == [0.0, 2.0]
    assert (first.client_id, first.weight, first.round) == ("a", 7, 1)
    assert second is short
    assert long.shared[A].tolist() == [3.0, 0.0]


def test_without_a_limit_the_median_of_the_norms_is_it() -> None:
    """Norms 1, 2, 8: the limit is 2. Norms 1, 2, 4, 80: it is (2 + 4)/2 = 3."""
    three = NormClip()(start(), line(-8, 1, 2))
    assert [u.shared[B].item() for u in three] == [-2.0, 1.0, 2.0]
    four = NormClip()(start(), line(4, -80, 1, 2))
    assert [u.shared[B].item() for u in four] == [3.0, -3.0, 1.0, 2.0]


def test_where_most_send_nothing_nothing_is_left() -> None:
    assert [u.shared[B].item() for u in NormClip()(start(), line(0, 5, 0))] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("limit", [0.0, -1.0, math.nan, math.inf])
def test_a_limit_that_makes_no_sense_is_refused(limit: float) -> None:
    with pytest.raises(RecipeError, match=r"server\.filters.*clip.*above 0, it is"):
        NormClip(limit)


@pytest.mark.parametrize("seed", range(4))
def test_clipped_changes_point_where_they_pointed(seed: int) -> None:
    updates = crowd(8, seed)
    lengths = np.linalg.norm(points(updates), axis=1)
    clipped = points(list(NormClip()(zeros(), updates)))
    limit = np.median(lengths)
    assert np.linalg.norm(clipped, axis=1) == pytest.approx(np.minimum(lengths, limit), rel=1e-6)
    straight = points(updates) / lengths[:, None]
    assert clipped / np.linalg.norm(clipped, axis=1)[:, None] == pytest.approx(straight, abs=1e-6)


def test_a_norm_of_large_numbers_does_not_overflow() -> None:
    """4,000,000 numbers of 1e6 (2,000·1e6 = 2e9), and one whose square no fp32 holds."""
    assert norm({B: torch.full((2000, 2000), 1e6)}) == pytest.approx(2e9, rel=1e-12)
    assert norm({A: torch.tensor([3e30]), B: torch.tensor([-4e30])}) == pytest.approx(5e30)
    assert norm({}) == 0.0


def test_krum_by_hand() -> None:
    """n = 5, f = 1: the sums over the n − f − 2 = 2 nearest of 100, 0, 3.5, 1, 3 are

        about 2·96.75²,   1 + 9 = 10,   0.25 + 6.25 = 6.5,   1 + 4 = 5,   0.25 + 4 = 4.25

    so that Krum keeps the last, and multi-Krum then the one before it, then the third.
    """
    updates = line(100, 0, 3.5, 1, 3)
    assert kept(Krum(1), *updates) == ["c4"]
    assert kept(Krum(1, 2), *updates) == ["c3", "c4"]
    assert kept(Krum(1, 3), *updates) == ["c2", "c3", "c4"]
    assert kept(Krum(1, 4), *updates) == ["c1", "c2", "c3", "c4"]
    (best,) = Krum(1)(start(), updates)
    assert best is updates[4]


def test_f_decides_how_many_neighbours_count() -> None:
    """0, 0.1 close together, 5, 6, 7.5 a little less so. f = 0: three neighbours count, and the
    middle one, 5, is best; f = 1: two, and the best is

        5: 1 + 6.25 = 7.25,   6: 1 + 2.25 = 3.25,   7.5: 2.25 + 6.25,   0: 0.01 + 25.

    f = 0:   5: 7.25 + 4.9²,   6: 3.25 + 5.9²,   0: 25.01 + 36,   0.1: 24.02 + 34.81
    """
    updates = line(0, 0.1, 5, 6, 7.5)
    assert kept(Krum(1), *updates) == ["c3"]
    assert kept(Krum(0), *updates) == ["c2"]


def test_equal_scores_go_by_client_id() -> None:
    """0, 1, 3, 4 and a far one: 1 and 3 both have 1 + 4. The smaller name wins, wherever it is."""
    values = {"d": 1.0, "b": 3.0, "a": 0.0, "c": 4.0, "z": 100.0}
    for order in permutations(values):
        assert kept(Krum(1), *(update(c, 1, B=[values[c]]) for c in order)) == ["b"]
    same = [update(c, 1, B=[2.0]) for c in "edcba"]
    assert kept(Krum(1, 2), *same) == ["b", "a"]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("n", "f", "keep"), [(3, 0, 1), (5, 1, 2), (8, 2, 1), (11, 4, 3)])
def test_krum_agrees_with_brute_force(n: int, f: int, keep: int, seed: int) -> None:
    updates = crowd(n, seed)
    x = points(updates)
    scores = [
        sum(sorted(((x[i] - x[j]) ** 2).sum() for j in range(n) if j != i)[: n - f - 2])
        for i in range(n)
    ]
    best = {f"c{i}" for i in np.argsort(scores)[:keep]}
    assert {u.client_id for u in Krum(f, keep)(zeros(), updates)} == best


def test_close_changes_are_told_apart_however_far_they_went() -> None:
    """Distances of 0.125 and 0.25 at 1e6, which fp32 holds and a sum of squares in fp32 would
    not: 10¹² and 10¹² + 250000."""
    updates = line(1e6, 1e6 + 0.125, 1e6 + 0.375, 1e6 + 0.75, -1e6, weights=[1] * 5)
    narrow = [replace(u, shared={B: u.shared[B].float()}) for u in updates]
    assert kept(Krum(1), *narrow) == kept(Krum(1), *updates) == ["c1"]


def test_squared_distances_do_not_overflow() -> None:
    """In fp32 (1e30)² is infinite, and all scores would be equal."""
    updates = line(100e30, 0, 3.5e30, 1e30, 3e30)
    narrow = [replace(u, shared={B: u.shared[B].float()}) for u in updates]
    assert kept(Krum(1), *narrow) == ["c4"]


@pytest.mark.parametrize(
    ("n", "f", "said"),
    [
        (4, 1, r"round 5: Krum against f = 1 .*2f \+ 3 = 5 .*n = 4: set f to at most 0"),
        (8, 3, r"f = 3 .*= 9 .*n = 8: set f to at most 2 in server\.filters"),
        (2, 0, r"n = 2: have more clients take part \(training\.participation\)"),
    ],
)
def test_krum_refuses_too_few_clients(n: int, f: int, said: str) -> None:
    with pytest.raises(RoundFailed, match=said) as error:
        Krum(f)(start(), line(*range(n)))
    assert isinstance(error.value, FedsdrError)


@pytest.mark.parametrize(("n", "f"), [(3, 0), (5, 1), (9, 3)])
def test_krum_takes_exactly_enough_clients(n: int, f: int) -> None:
    assert len(kept(Krum(f), *line(*range(n)))) == 1


def test_multi_krum_refuses_to_keep_more_than_can_be_honest() -> None:
    assert len(kept(Krum(2, 6), *line(*range(8)))) == 6
    with pytest.raises(RoundFailed, match=r"keep 7 of n = 8 .* f = 2 .*at most n - f = 6"):
        Krum(2, 7)(start(), line(*range(8)))


@pytest.mark.parametrize(
    ("f", "keep", "said"),
    [(-1, 1, r"liars .* negative, it is -1"), (1, 0, "at least 1, it is 0"), (1, -2, "it is -2")],
)
def test_wrong_numbers_of_krum_are_refused(f: int, keep: int, said: str) -> None:
    with pytest.raises(RecipeError, match=rf"server\.filters.*{said}"):
        Krum(f, keep)


def test_krum_refuses_ranks_that_differ() -> None:
    updates = [update(f"c{r}", 1, B=torch.ones(4, r)) for r in (2, 2, 3)]
    with pytest.raises(RoundFailed, match=r"'c3' .*R/layer\.B.*ranks"):
        Krum(0)(start(), updates)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("keep", [1, 3, 7])
def test_a_liar_of_eight_is_not_kept(keep: int, seed: int) -> None:
    """The mean of those kept lies within the range of the honest."""
    honest, attacked = attack(crowd(8, seed), 3, -1e6)
    names = {u.client_id for u in Krum(1, keep)(zeros(), attacked)}
    assert len(names) == keep
    assert "c3" not in names
    after = flat(Mean()(zeros(), Krum(1, keep)(zeros(), attacked)).shared)
    assert (points(honest).min(axis=0) - 1e-6 <= after).all()
    assert (after <= points(honest).max(axis=0) + 1e-6).all()


@pytest.mark.parametrize("seed", range(4))
def test_a_clipped_liar_of_eight_is_one_among_equals(seed: int) -> None:
    """No mean of changes within the median of the norms can be longer than that, and the median of
    eight norms lies within those of the honest."""
    honest, attacked = attack(crowd(8, seed), 3, -1e6)
    after = flat(Mean()(zeros(), NormClip()(zeros(), attacked)).shared)
    assert np.linalg.norm(after) <= np.linalg.norm(points(honest), axis=1).max()


@every_filter
def test_what_comes_out_can_be_read_again_one_at_a_time(sift: Filter) -> None:
    """The next is read while the last is still at hand, and of those kept the reader has one."""
    spool = Spool(crowd(12, 3))
    found = sift(zeros(), spool)
    first = [(u.client_id, digest(u.shared)) for u in found]
    assert first == [(u.client_id, digest(u.shared)) for u in found]
    assert [c for c, _ in first] == [
        u.client_id for u in spool.updates if u.client_id in dict(first)
    ]
    assert spool.most <= 3


@every_filter
def test_the_order_of_clients_does_not_matter(sift: Filter) -> None:
    updates = crowd(5, 2)
    wanted = {u.client_id: digest(u.shared) for u in sift(zeros(), updates)}
    for order in permutations(updates):
        assert {u.client_id: digest(u.shared) for u in sift(zeros(), order)} == wanted


@every_filter
def test_updates_and_state_are_left_as_they_came(sift: Filter) -> None:
    updates, state = crowd(5, 1), zeros()
    before = [digest(u.shared) for u in updates]
    list(sift(state, updates))
    assert [digest(u.shared) for u in updates] == before
    assert digest(state.shared) == digest(zeros().shared)


@every_filter
def test_a_half_that_nobody_sent_is_not_missed(sift: Filter) -> None:
    half = [
        Update(
            run="run",
            round=1,
            client_id=f"c{k}",
            base_digest="b",
            weight=1,
            shared={B: torch.tensor([k / 8])},
        )
        for k in range(5)
    ]
    after = Mean()(ServerState(0, {A: torch.ones(2), B: torch.zeros(1)}), sift(start(), half))
    assert after.shared[A].tolist() == [1.0, 1.0]


def test_filters_follow_each_other() -> None:
    """Clipped to 4 the far one is 4, and Krum on 4, 0, 3.5, 1, 3 (two neighbours each: 1.25, 10,
    0.5, 5, 1.25) keeps 3.5, not 3 as on 100."""
    updates = line(100, 0, 3.5, 1, 3)
    assert kept(Krum(1), *NormClip(4.0)(start(), updates)) == ["c2"]
