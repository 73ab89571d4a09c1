"""FLoRA and FedEx-LoRA: the mean product enters the model exactly, as a dense sum says."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from fedsdr.parts.combine import Combine, Mean
from fedsdr.parts.fold_rules import MeanAndResidual, Merged
from fedsdr.parts.lora_rules import Truncated
from fedsdr.tensors import generator
from fedsdr.types import ServerState, Update

F64 = torch.float64
LAYERS = {"wide": (24, 10), "tall": (8, 30)}  # [out, in]
DOWN = Truncated(rescale=True)
RANK = 2


def start(dtype: torch.dtype = F64, seed: int = 3) -> ServerState:
    random, shared = generator(seed, "start"), dict[str, Tensor]()
    for layer, (out, width) in LAYERS.items():
        drawn = torch.randn(RANK, width, generator=random, dtype=F64).to(dtype)
        shared |= {f"R/{layer}.A": drawn, f"R/{layer}.B": torch.zeros(out, RANK, dtype=dtype)}
    return ServerState(0, shared, seed=5)


def trained(state: ServerState, ranks: tuple[int, ...]) -> list[Update]:
    random, updates = generator(state.round, "trained"), list[Update]()
    for k, rank in enumerate(ranks):
        begun = {n: t for n, t in DOWN(state, rank).items() if n.startswith("R/")}
        changes = {
            n: torch.randn(t.shape, generator=random, dtype=F64).to(t.dtype)
            for n, t in begun.items()
        }
        updates.append(
            Update(
                run="run",
                round=state.round + 1,
                client_id=f"c{k}",
                base_digest="base",
                weight=1.0 + k,
                shared=changes,
            )
        )
    return updates


def model(shared: Mapping[str, Tensor], layer: str) -> Tensor:
    """What a layer has beside W0: P + B A."""
    out, width = LAYERS[layer]
    total = torch.zeros(out, width, dtype=F64)
    for branch in "RP":
        if f"{branch}/{layer}.A" in shared:
            total += shared[f"{branch}/{layer}.B"].double() @ shared[f"{branch}/{layer}.A"].double()
    return total + shared.get(f"P/{layer}.W", torch.zeros(())).double()


def oracle(state: ServerState, updates: list[Update], layer: str) -> Tensor:
    """P + Σ p_k (r/r_k) B_k A_k, dense."""
    a, b = f"R/{layer}.A", f"R/{layer}.B"
    only_p = {n: t for n, t in state.shared.items() if n.startswith("P/")}
    total, n = model(only_p, layer), sum(u.weight for u in updates)
    for u in updates:
        rank = u.shared[a].shape[0]
        begun = DOWN(state, rank)
        product = (begun[b] + u.shared[b]).double() @ (begun[a] + u.shared[a]).double()
        total = total + u.weight / n * RANK / rank * product
    return total


@pytest.mark.parametrize(
    ("rule", "ranks"),
    [(Merged(DOWN), (2, 2)), (Merged(DOWN), (1, 2, 1)), (MeanAndResidual(), (2, 2))],
    ids=["flora", "flora, ranks that differ", "fedex"],
)
def test_every_round_is_exact_and_stays_so_past_break_even(
    rule: Combine, ranks: tuple[int, ...]
) -> None:
    """Six rounds of up to 4 new ranks: [24, 10] breaks even at rank 8 (8·34 = 272 of 240 numbers),
    [8, 30] at 7 (7·38 = 266 of 240); before that P is a pair, afterwards it is dense."""
    state, forms = start(), list[bool]()
    for _ in range(6):
        updates = trained(state, ranks)
        new = rule(state, updates)
        for layer in LAYERS:
            want = oracle(state, updates, layer)
            torch.testing.assert_close(model(new.shared, layer), want, rtol=0, atol=1e-12)
            pair = {f"P/{layer}.A", f"P/{layer}.B"} & set(new.shared)
            assert len(pair) == (0 if f"P/{layer}.W" in new.shared else 2)
        state = new
        forms.append("P/wide.W" in state.shared)
    assert forms[0] is False
    assert forms[-1] is True
    assert forms == sorted(forms)


def test_by_hand() -> None:
    """(A_k, B_k) = (1, 2) and (3, 4) at equal weights: the mean product is (2 + 12)/2 = 7. FLoRA
    merges 7, and its new B is 0; FedEx-LoRA keeps Ā = 2 and B̄ = 3 and adds the residual 7 − 6."""
    one = torch.ones(1, 1, dtype=F64)
    state = ServerState(0, {"R/x.A": one, "R/x.B": one})
    updates = [
        Update(
            run="run",
            round=1,
            client_id="a",
            base_digest="base",
            weight=1,
            shared={"R/x.A": 0 * one, "R/x.B": one},
        ),
        Update(
            run="run",
            round=1,
            client_id="b",
            base_digest="base",
            weight=1,
            shared={"R/x.A": 2 * one, "R/x.B": 3 * one},
        ),
    ]
    flora, fedex = Merged(DOWN)(state, updates).shared, MeanAndResidual()(state, updates).shared
    assert flora["P/x.W"].item() == pytest.approx(7)
    assert flora["R/x.B"].item() == 0
    assert [fedex[n].item() for n in ("R/x.A", "R/x.B")] == [2, 3]
    assert fedex["P/x.W"].item() == pytest.approx(1)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_fedex_with_one_client_is_fedavg_and_has_no_p(dtype: torch.dtype) -> None:
    """Also in fp32, where the mean of one is that one up to rounding only, and over rounds."""
    ours = theirs = start(dtype)
    for _ in range(4):
        updates = [replace_weight(trained(ours, (2,))[0], 7.0)]
        ours, theirs = MeanAndResidual()(ours, updates), Mean()(theirs, updates)
        assert ours.shared.keys() == theirs.shared.keys()
        assert all(torch.equal(ours.shared[n], t) for n, t in theirs.shared.items())


def replace_weight(update: Update, weight: float) -> Update:
    return Update(
        run=update.run,
        round=update.round,
        client_id=update.client_id,
        base_digest=update.base_digest,
        weight=weight,
        shared=update.shared,
    )


def test_fedex_averages_r_as_fedavg_does() -> None:
    state = start()
    updates = trained(state, (2, 2, 2))
    ours, mean = MeanAndResidual()(state, updates).shared, Mean()(state, updates).shared
    assert all(torch.equal(ours[n], t) for n, t in mean.items())
    assert "P/wide.A" in ours


def test_flora_starts_anew_with_other_numbers_every_round_and_layer() -> None:
    """A uniform in ±1/√in, B zero: a function of the seed and the round."""
    state = start()
    updates = trained(state, (2, 2))
    once, again = (Merged(DOWN)(state, updates).shared for _ in range(2))
    later = Merged(DOWN)(ServerState(1, state.shared, seed=5), updates).shared
    other = Merged(DOWN)(ServerState(0, state.shared, seed=6), updates).shared
    for layer, (_, width) in LAYERS.items():
        name = f"R/{layer}.A"
        assert torch.equal(once[name], again[name])
        assert once[name].abs().max() <= width**-0.5
        assert once[name].abs().max() > 0.5 * width**-0.5
        assert once[name].min() < 0 < once[name].max()
        assert not torch.equal(once[name], later[name])
        assert not torch.equal(once[name], other[name])
        assert not once[f"R/{layer}.B"].any()
    wide, tall = (once[f"R/{x}.A"].reshape(-1)[:20] * LAYERS[x][1] ** 0.5 for x in LAYERS)
    assert not torch.allclose(wide, tall)


def test_a_layer_to_which_nothing_was_added_has_no_p() -> None:
    """B stays zero on one layer only."""
    state = start()
    updates = trained(state, (2, 2))
    for update in updates:
        update.shared["R/tall.B"].zero_()
    new = Merged(DOWN)(state, updates)
    assert {n for n in new.shared if n.startswith("P/")} == {"P/wide.A", "P/wide.B"}


def test_fp32_holds_the_product_up_to_rounding_over_rounds() -> None:
    for rule in (Merged(DOWN), MeanAndResidual()):
        single = start(torch.float32)
        for _ in range(6):
            updates = trained(single, (2, 2))
            want = {layer: oracle(single, updates, layer) for layer in LAYERS}
            single = rule(single, updates)
            assert {t.dtype for t in single.shared.values()} == {torch.float32}
            for layer, dense in want.items():
                off = (model(single.shared, layer) - dense).norm() / dense.norm()
                assert off < 1e-6
