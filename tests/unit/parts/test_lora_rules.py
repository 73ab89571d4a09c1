"""FlexLoRA, HetLoRA, LoRA-FAIR and FedRot-LoRA, on numbers worked out by hand; and what holds for
every rule that knows that R is a product."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import permutations

import pytest
import torch
from torch import Tensor

from fedsdr.errors import RecipeError
from fedsdr.parts.combine import Combine, Mean
from fedsdr.parts.fold_rules import MeanAndResidual, Merged
from fedsdr.parts.lora_rules import Aligned, PaddedMean, Refactored, Refined, Truncated
from fedsdr.tensors import generator
from fedsdr.types import ServerState, Update

F64 = torch.float64
A, B = "R/layer.A", "R/layer.B"
UNSCALED, RESCALED = Truncated(), Truncated(rescale=True)
RULES: dict[str, Combine] = {
    "flora": Merged(RESCALED),
    "fedex": MeanAndResidual(),
    "flexlora": Refactored(RESCALED),
    "hetlora": PaddedMean(UNSCALED),
    "hetlora, examples": PaddedMean(UNSCALED, "examples"),
    "fair": Refined(0.01),
    "fedrot": Aligned(0.5),
}
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
of_any_rank = pytest.mark.parametrize(
    "rule", [RULES[n] for n in ("flora", "flexlora", "hetlora", "hetlora, examples")]
)


def matrix(*rows: tuple[float, ...]) -> Tensor:
    return torch.tensor(rows, dtype=F64)


def close(found: Tensor, want: Tensor, atol: float = 1e-13) -> None:
    torch.testing.assert_close(found, want, rtol=0, atol=atol)


def state_of(a: Tensor, b: Tensor, round: int = 0, **more: Tensor) -> ServerState:
    shared = {A: a, B: b, **{name.replace("_", "/", 1): t for name, t in more.items()}}
    return ServerState(round, shared, {"m/x": torch.ones(1)}, seed=7, clients=9)


def sent(client: str, weight: float, **halves: Tensor) -> Update:
    shared = {f"R/layer.{half}": change for half, change in halves.items()}
    return Update(
        run="run", round=1, client_id=client, base_digest="base", weight=weight, shared=shared
    )


def random_round(
    out: int = 6, width: int = 5, ranks: Sequence[int] = (3, 3, 3), full: int = 3, round: int = 4
) -> tuple[ServerState, list[Update]]:
    random = generator(out, width, full, *ranks, "lora rules test")

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=F64)

    state = state_of(draw(full, width), draw(out, full), round)
    updates = [
        sent(f"c{k}", float(k + 1), A=0.3 * draw(r, width), B=0.3 * draw(out, r))
        for k, r in enumerate(ranks)
    ]
    return state, updates


def product(shared: Mapping[str, Tensor]) -> Tensor:
    """B A of R, and of P where there is one."""
    total = shared[B] @ shared[A]
    if "P/layer.W" in shared:
        return total + shared["P/layer.W"]
    return total + shared["P/layer.B"] @ shared["P/layer.A"] if "P/layer.A" in shared else total


def mean_product(state: ServerState, updates: Sequence[Update]) -> Tensor:
    """Σ p_k B_k A_k at equal ranks, written down anew."""
    total = sum(u.weight for u in updates)
    each = [(state.shared[B] + u.shared[B]) @ (state.shared[A] + u.shared[A]) for u in updates]
    return sum((u.weight / total * m for u, m in zip(updates, each, strict=True)), each[0] * 0)


# Truncated


def test_a_client_gets_the_first_rows_of_a_and_columns_of_b() -> None:
    """Rank 1 of 2: A = [[1, 2], [3, 4]] -> [[1, 2]], B = [[5, 6], [7, 8]] -> (5, 7)ᵀ; at the scale
    α/1 instead of α/2 the same product takes half of B, (2.5, 3.5)ᵀ."""
    fold = torch.ones(2, 2, dtype=F64)
    state = state_of(matrix((1, 2), (3, 4)), matrix((5, 6), (7, 8)), **{"P_layer.W": fold})
    plain, halved = UNSCALED(state, 1), RESCALED(state, 1)
    assert plain[A].tolist() == halved[A].tolist() == [[1, 2]]
    assert (plain[B].tolist(), halved[B].tolist()) == ([[5], [7]], [[2.5], [3.5]])
    assert plain["P/layer.W"] is fold
    assert all(t.is_contiguous() for t in plain.values())
    plain[A].zero_()
    plain[B].zero_()
    assert (state.shared[A][0, 0], state.shared[B][0, 0]) == (1, 5)


@pytest.mark.parametrize("downlink", [UNSCALED, RESCALED])
def test_the_full_rank_is_all_of_it(downlink: Truncated) -> None:
    state, _ = random_round()
    for rank in (None, 3):
        got = downlink(state, rank)
        assert all(torch.equal(got[name], w) for name, w in state.shared.items())


@pytest.mark.parametrize("rank", [0, -1, 4])
def test_a_rank_that_the_server_does_not_have_is_refused(rank: int) -> None:
    with pytest.raises(RecipeError, match=rf"lora\.R\.ranks: .* 1 and 3 .*, it is {rank}"):
        UNSCALED(random_round()[0], rank)


# FlexLoRA


def test_flexlora_by_hand() -> None:
    """r = 2, A = I, B = 0, two clients of equal weight. Client a has rank 1, so its product counts
    r/r_k = 2 fold: from A_a = (1, 0), B_a = (3, 0)ᵀ it is 2·3 e1 e1ᵀ. Client b: 2 e2 e2ᵀ. So

        M = (6 e1 e1ᵀ + 2 e2 e2ᵀ)/2 = diag(3, 1)

    with orthonormal rows of A and columns of B of lengths 3 and 1. Client a then gets 3·(1/2) at
    scale α/1, which is 3 at α/2.
    """
    state = state_of(torch.eye(2, dtype=F64), torch.zeros(2, 2, dtype=F64))
    a = sent("a", 1, A=matrix((0, 0)), B=matrix((3,), (0,)))
    b = sent("b", 1, A=torch.zeros(2, 2, dtype=F64), B=matrix((0, 0), (0, 2)))
    new = Refactored(RESCALED)(state, [a, b])
    close(product(new.shared), torch.diag(torch.tensor([3.0, 1.0], dtype=F64)))
    close(new.shared[A].abs(), torch.eye(2, dtype=F64))
    close(new.shared[B].abs(), matrix((3, 0), (0, 1)))
    down = RESCALED(new, 1)
    close(down[B] @ down[A], matrix((1.5, 0), (0, 0)))


def test_flexlora_keeps_what_the_dense_svd_keeps() -> None:
    ranks, full = (1, 2, 4), 4
    state, updates = random_round(8, 7, ranks, full)
    mean = torch.zeros(8, 7, dtype=F64)
    for r, u in zip(ranks, updates, strict=True):
        begun_a, begun_b = state.shared[A][:r], state.shared[B][:, :r] * r / full
        mean += u.weight / 6 * (full / r) * (begun_b + u.shared[B]) @ (begun_a + u.shared[A])
    u, s, vt = torch.linalg.svd(mean)
    new = Refactored(RESCALED)(state, updates)
    close(product(new.shared), (u[:, :full] * s[:full]) @ vt[:full])


def test_flexlora_leaves_no_dead_rows_when_small_clients_take_part_alone() -> None:
    """One client of rank 1 leaves M of rank 1; the other rows of A still are orthonormal, so that
    their columns of B, which are zero, have a gradient."""
    state, updates = random_round(6, 5, (1,), 3)
    new = Refactored(RESCALED)(state, updates)
    close(new.shared[A] @ new.shared[A].T, torch.eye(3, dtype=F64))
    close(new.shared[B][:, 1:], torch.zeros(6, 2, dtype=F64))
    assert new.shared[B][:, 0].any()


# HetLoRA


def test_hetlora_by_hand() -> None:
    """r = 2, A = I, B = 0. Client a, rank 1: (3, 4)ᵀ(1, 0), of norm 5. Client b: B = [[0, 15],
    [0, 0]] and A = I, of norm 15. The weights are 5/20 and 15/20:

        A = ¼ [[1, 0], [0, 0]] + ¾ I = diag(1, ¾)
        B = ¼ [[3, 0], [4, 0]] + ¾ [[0, 15], [0, 0]] = [[0.75, 11.25], [1, 0]]

    By examples (3 and 1, so ¾ and ¼): A = diag(1, ¼), B = [[2.25, 3.75], [3, 0]].
    """
    state = state_of(torch.eye(2, dtype=F64), torch.zeros(2, 2, dtype=F64))
    a = sent("a", 3, A=matrix((0, 0)), B=matrix((3,), (4,)))
    b = sent("b", 1, A=torch.zeros(2, 2, dtype=F64), B=matrix((0, 15), (0, 0)))
    by_norm = PaddedMean(UNSCALED)(state, [a, b]).shared
    close(by_norm[A], matrix((1, 0), (0, 0.75)))
    close(by_norm[B], matrix((0.75, 11.25), (1, 0)))
    by_examples = PaddedMean(UNSCALED, "examples")(state, [a, b]).shared
    close(by_examples[A], matrix((1, 0), (0, 0.25)))
    close(by_examples[B], matrix((2.25, 3.75), (3, 0)))


def test_hetlora_by_examples_is_fedavg_at_equal_ranks() -> None:
    state, updates = random_round()
    ours, mean = PaddedMean(UNSCALED, "examples")(state, updates), Mean()(state, updates)
    for name in (A, B):
        close(ours.shared[name], mean.shared[name])
    by_norm = PaddedMean(UNSCALED)(state, updates)
    assert not torch.allclose(by_norm.shared[A], mean.shared[A], atol=1e-3)


def test_hetlora_weighs_by_examples_where_all_products_are_zero() -> None:
    """B = 0 for all; A moves by 4 and 0 with weights ¼ and ¾: 1 + 1."""
    state = state_of(matrix((1,)), matrix((0,)))
    updates = [
        sent("a", 1, A=matrix((4,)), B=matrix((0,))),
        sent("b", 3, A=matrix((0,)), B=matrix((0,))),
    ]
    assert PaddedMean(UNSCALED)(state, updates).shared[A].tolist() == [[2.0]]


# LoRA-FAIR


def scalars() -> tuple[ServerState, list[Update]]:
    """(A_k, B_k) = (1, 2) and (3, 4) at equal weights: Ā = 2, B̄ = 3, ΔW = (2 + 12)/2 = 7."""
    state = state_of(matrix((1,)), matrix((1,)))
    a = sent("a", 1, A=matrix((0,)), B=matrix((1,)))
    return state, [a, sent("b", 1, A=matrix((2,)), B=matrix((3,)))]


@pytest.mark.parametrize(("lam", "b"), [(4.0, 3.25), (1.0, 3.4), (1e-14, 3.5), (1e30, 3.0)])
def test_lora_fair_by_hand(lam: float, b: float) -> None:
    """ΔB = (7 − 3·2)·2/(2² + λ): ¼ at λ = 4, 0.4 at 1, ½ (the whole residual, 3.5·2 = 7) at 0."""
    new = Refined(lam)(*scalars())
    assert new.shared[A].item() == 2
    assert new.shared[B].item() == pytest.approx(b, rel=1e-12)


def test_lora_fair_is_where_the_objective_is_least() -> None:
    """The gradient of ‖ΔW − (B̄ + ΔB) Ā‖² + λ‖ΔB‖² vanishes at ΔB."""
    state, updates = random_round()
    mean, new = Mean()(state, updates).shared, Refined(0.3)(state, updates).shared
    change = new[B] - mean[B]
    gradient = (product(new) - mean_product(state, updates)) @ mean[A].T + 0.3 * change
    close(gradient, torch.zeros_like(gradient), atol=1e-12)
    assert change.abs().max() > 1e-3


def test_lora_fair_with_a_huge_lambda_is_fedavg() -> None:
    state, updates = random_round()
    new, mean = Refined(1e30)(state, updates), Mean()(state, updates)
    assert all(torch.equal(new.shared[name], mean.shared[name]) for name in (A, B))


# FedRot-LoRA


def test_fedrot_by_hand() -> None:
    """A = I; the client's A is I turned by 90° (A_k Aᵀ = Rot(90°) = Q), its B is (1, 0). The whole
    rotation gives A ← Qᵀ A_k = I and B ← B Q = (0, −1); half of it turns back by 45°: A = Rot(45°),
    B = (1, −1)/√2. In both B A = (0, −1), as it was."""
    half = 0.5**0.5
    state = state_of(torch.eye(2, dtype=F64), matrix((0, 0)))
    client = sent("a", 1, A=matrix((-1, -1), (1, -1)), B=matrix((1, 0)))
    whole, soft = (Aligned(lam)(state, [client]).shared for lam in (1.0, 0.5))
    close(whole[A], torch.eye(2, dtype=F64))
    close(whole[B], matrix((0, -1)))
    close(soft[A], matrix((half, -half), (half, half)))
    close(soft[B], matrix((half, -half)))
    close(product(soft), matrix((0, -1)))


@pytest.mark.parametrize("round", [0, 1])
def test_rotated_copies_are_averaged_without_loss(round: int) -> None:
    """All clients mean the same B' A', each in a frame of its own: the mean of the factors loses
    much of it, the mean of the aligned factors nothing; in odd rounds by A, in even ones by B."""
    state, (first, *_) = random_round(round=round)
    a, b = state.shared[A] + first.shared[A], state.shared[B] + first.shared[B]
    updates = list[Update]()
    for k in range(4):
        q, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator(k, "turn"), dtype=F64))
        q = q * torch.linalg.det(q).sign()  # of odd size, so this makes it a rotation
        changes = {"A": q.T @ a - state.shared[A], "B": b @ q - state.shared[B]}
        updates.append(sent(f"c{k}", k + 1.0, **changes))
    lost = product(Mean()(state, updates).shared) - b @ a
    assert lost.norm() > 0.3 * (b @ a).norm()
    close(product(Aligned(1.0)(state, updates).shared), b @ a, atol=1e-12)


def test_odd_rounds_align_a_and_even_ones_b() -> None:
    """In round 1 B is zero, and gives no frame: by A the result is another than by B, which is
    FedAvg."""
    state, updates = random_round(round=0)
    begun = state_of(state.shared[A], state.shared[B] * 0)
    later = state_of(state.shared[A], state.shared[B] * 0, round=1)
    mean = Mean()(begun, updates).shared
    assert not torch.allclose(Aligned(1.0)(begun, updates).shared[A], mean[A], atol=1e-3)
    close(Aligned(1.0)(later, updates).shared[A], mean[A])


def test_fedrot_with_lambda_zero_is_fedavg_bit_by_bit() -> None:
    state, updates = random_round()
    new, mean = Aligned(0.0)(state, updates), Mean()(state, updates)
    assert all(torch.equal(new.shared[name], mean.shared[name]) for name in (A, B))


# Every rule


@every_rule
def test_what_is_no_pair_of_r_stays_or_is_averaged(rule: Combine) -> None:
    """Weights ¼ and ¾: 1 + (8 + 0)/4 = 3 for the branch that is sent; what is not sent stays."""
    state, (first, second, _) = random_round()
    more = {"C/layer.A": torch.ones(1, 2), "D/layer.A": torch.full((1, 2), 5.0)}
    state = state_of(
        state.shared[A], state.shared[B], **{k.replace("/", "_"): t for k, t in more.items()}
    )
    changes = (torch.full((1, 2), 8.0), torch.zeros(1, 2))
    updates = [
        Update(
            run="run",
            round=1,
            client_id=c,
            base_digest="base",
            weight=n,
            shared={**u.shared, "C/layer.A": change},
        )
        for c, n, u, change in zip("ab", (1.0, 3.0), (first, second), changes, strict=True)
    ]
    new = rule(state, updates)
    assert new.shared["C/layer.A"].tolist() == [[3.0, 3.0]]
    assert torch.equal(new.shared["D/layer.A"], more["D/layer.A"])
    assert (new.round, new.seed, new.clients, list(new.slots)) == (state.round + 1, 7, 9, ["m/x"])


@every_rule
def test_p_is_never_dropped(rule: Combine) -> None:
    state, updates = random_round()
    fold = torch.full((6, 5), 100.0, dtype=F64)
    with_p = state_of(state.shared[A], state.shared[B], 4, **{"P_layer.W": fold})
    close(product(rule(with_p, updates).shared), product(rule(state, updates).shared) + fold, 1e-11)


@every_rule
def test_the_order_of_clients_is_irrelevant(rule: Combine) -> None:
    state, updates = random_round()
    want = product(rule(state, updates).shared)
    for order in permutations(updates):
        close(product(rule(state, order).shared), want, atol=1e-12)


@of_any_rank
def test_so_it_is_with_ranks_that_differ(rule: Combine) -> None:
    state, updates = random_round(6, 5, (1, 3, 2), 3)
    want = product(rule(state, updates).shared)
    for order in permutations(updates):
        close(product(rule(state, order).shared), want, atol=1e-12)


@every_rule
def test_nothing_learned_is_nothing_changed(rule: Combine) -> None:
    state, updates = random_round()
    idle = [sent(u.client_id, u.weight, A=u.shared[A] * 0, B=u.shared[B] * 0) for u in updates]
    close(product(rule(state, idle).shared), product(state.shared), atol=1e-12)


@every_rule
@pytest.mark.parametrize("half", ["A", "B"])
def test_a_half_that_was_not_sent_counts_as_it_was(rule: Combine, half: str) -> None:
    state, (client, *_) = random_round(ranks=(3,))
    name = f"R/layer.{half}"
    want = {**state.shared, name: state.shared[name] + client.shared[name]}
    new = rule(state, [sent("c0", 1, **{half: client.shared[name]})])
    close(product(new.shared), product(want), atol=1e-12)


@every_rule
@pytest.mark.parametrize(("out", "width", "full"), [(6, 5, 1), (1, 5, 3), (5, 1, 3), (4, 4, 9)])
def test_one_client_is_met_exactly_whatever_the_shape(
    rule: Combine, out: int, width: int, full: int
) -> None:
    """Rank 1, and ranks above a side of the layer."""
    state, updates = random_round(out, width, (full,), full)
    new = rule(state, updates)
    close(product(new.shared), mean_product(state, updates), atol=1e-11)
    assert (new.shared[A].shape, new.shared[B].shape) == ((full, width), (out, full))
    assert all(t.is_contiguous() and t.dtype == F64 for t in new.shared.values())


@every_rule
def test_fp32_is_fp64_up_to_rounding(rule: Combine) -> None:
    state, updates = random_round()

    def narrow(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: t.float() for name, t in named.items()}

    begun = narrow(state.shared)
    single = rule(
        state_of(begun[A], begun[B], 4),
        [
            Update(
                run="run",
                round=1,
                client_id=u.client_id,
                base_digest="base",
                weight=u.weight,
                shared=narrow(u.shared),
            )
            for u in updates
        ],
    )
    assert {t.dtype for t in single.shared.values()} == {torch.float32}
    want = product(rule(state, updates).shared)
    torch.testing.assert_close(product(single.shared).double(), want, rtol=1e-5, atol=1e-5)


@every_rule
def test_the_state_before_is_left_alone(rule: Combine) -> None:
    state, updates = random_round()
    before = {name: t.clone() for name, t in state.shared.items()}
    rule(state, updates)
    assert all(torch.equal(state.shared[name], t) for name, t in before.items())
