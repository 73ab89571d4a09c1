"""The LoRA-aware algorithms: what each trains, sends, deploys and refuses."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable

import pytest
import torch

from fedsdr.algorithms.fedavg import fedavg
from fedsdr.algorithms.fedex_lora import fedex_lora
from fedsdr.algorithms.fedrot_lora import fedrot_lora
from fedsdr.algorithms.fedsa_lora import fedsa_lora
from fedsdr.algorithms.fedsd import boosted
from fedsdr.algorithms.ffa_lora import ffa_lora
from fedsdr.algorithms.flexlora import flexlora
from fedsdr.algorithms.flora import flora
from fedsdr.algorithms.hetlora import hetlora
from fedsdr.algorithms.lora_fair import lora_fair
from fedsdr.algorithms.rolora import rolora
from fedsdr.errors import RecipeError
from fedsdr.parts.algorithm import Algorithm
from fedsdr.parts.combine import Mean, Same, weighted_mean
from fedsdr.parts.fold_rules import MeanAndResidual, Merged
from fedsdr.parts.lora_rules import Aligned, PaddedMean, Refactored, Refined, Truncated
from fedsdr.parts.views import Rewritten
from fedsdr.types import ServerState, Update

Factory = Callable[..., Algorithm]
ALL: tuple[Factory, ...] = (
    ffa_lora,
    fedsa_lora,
    rolora,
    flora,
    fedex_lora,
    flexlora,
    hetlora,
    lora_fair,
    fedrot_lora,
)
every_one = pytest.mark.parametrize("factory", ALL)


@every_one
def test_the_name_is_the_factory_s(factory: Factory) -> None:
    assert factory().name == factory.__name__
    assert len(inspect.getsource(inspect.getmodule(factory)).splitlines()) <= 60


@every_one
def test_fedsd_boosts_it(factory: Factory) -> None:
    """Every term sees the rewritten answers, and nothing else of the algorithm changes."""
    plain, with_fedsd = factory(), boosted(factory())
    views = [term.view for stage in with_fedsd.stages for term in stage.terms]
    assert views
    assert all(isinstance(view, Rewritten) for view in views)
    assert with_fedsd.combine == plain.combine
    assert (with_fedsd.share, with_fedsd.deploys) == (plain.share, plain.deploys)


@pytest.mark.parametrize(
    ("factory", "odd", "even", "share", "deploys", "personal"),
    [
        (ffa_lora, {"R.B"}, {"R.B"}, "R.B", {"global": "R"}, ()),
        (fedsa_lora, {"R"}, {"R"}, "R.A", {"personal": "R"}, ("R",)),
        (rolora, {"R.B"}, {"R.A"}, "R", {"global": "R"}, ()),
        (flora, {"R"}, {"R"}, "R", {"global": "P+R"}, ()),
        (fedex_lora, {"R"}, {"R"}, "R", {"global": "P+R"}, ()),
        (flexlora, {"R"}, {"R"}, "R", {"global": "R"}, ()),
        (hetlora, {"R"}, {"R"}, "R", {"global": "R"}, ()),
        (lora_fair, {"R"}, {"R"}, "R", {"global": "R"}, ()),
        (fedrot_lora, {"R"}, {"R"}, "R", {"global": "R"}, ()),
    ],
)
def test_what_is_trained_sent_deployed_and_kept(
    factory: Factory,
    odd: set[str],
    even: set[str],
    share: str,
    deploys: dict[str, str],
    personal: tuple[str, ...],
) -> None:
    algorithm = factory()
    assert [algorithm.trained(round) for round in (1, 2, 3, 4)] == [odd, even, odd, even]
    assert (algorithm.share, algorithm.deploys) == (share, deploys)
    assert algorithm.personal() == personal


@pytest.mark.parametrize("factory", [flora, fedex_lora])
def test_what_changes_the_base_is_trained_on_top_of_it(factory: Factory) -> None:
    assert factory().folds()
    assert [t.forward for stage in factory().stages for t in stage.terms] == ["P+R"]


@pytest.mark.parametrize(
    ("factory", "combine", "downlink", "any_rank", "rank_scale"),
    [
        (ffa_lora, Mean(), Same(), False, False),
        (fedsa_lora, Mean(), Same(), False, False),
        (rolora, Mean(), Same(), False, False),
        (flora, Merged(Truncated(True)), Truncated(True), True, True),
        (fedex_lora, MeanAndResidual(), Same(), False, False),
        (flexlora, Refactored(Truncated(True)), Truncated(True), True, True),
        (hetlora, PaddedMean(Truncated(), "norm"), Truncated(), True, False),
        (lora_fair, Refined(0.01), Same(), False, False),
        (fedrot_lora, Aligned(0.5), Same(), False, False),
    ],
)
def test_the_server_s_side(
    factory: Factory, combine: object, downlink: object, any_rank: bool, rank_scale: bool
) -> None:
    """A rule asks the very downlink that its clients began with."""
    found = factory()
    assert (found.combine, found.downlink) == (combine, downlink)
    assert (found.any_rank, found.rank_scale) == (any_rank, rank_scale)


def test_options_reach_their_rules() -> None:
    assert lora_fair(lam=2.0).combine == Refined(2.0)
    assert fedrot_lora(lam=0.0).combine == Aligned(0.0)
    assert fedrot_lora(lam=1.0).combine == Aligned(1.0)
    assert hetlora("examples").combine == PaddedMean(Truncated(), "examples")


@pytest.mark.parametrize("lam", [0.0, -1.0, math.nan, math.inf])
def test_lora_fair_refuses_a_lambda_without_a_meaning(lam: float) -> None:
    with pytest.raises(RecipeError, match=f"algorithm.lam must be .* it is {lam}"):
        lora_fair(lam)


@pytest.mark.parametrize("lam", [-0.1, 1.1, math.nan, math.inf])
def test_fedrot_refuses_a_lambda_without_a_meaning(lam: float) -> None:
    with pytest.raises(RecipeError, match=f"algorithm.lam must be .* it is {lam}"):
        fedrot_lora(lam)


def test_one_factor_at_a_time_is_exact_where_fedavg_is_not() -> None:
    """FFA-LoRA, and RoLoRA in odd rounds: A = 2 for all, B_k = 2 and 4 at equal weights, so that
    B̄ A = 3·2 is the mean of the products, (4 + 8)/2. With A_k = 1 and 3 beside them FedAvg has
    3·2 = 6 for (2 + 12)/2 = 7."""
    one = torch.ones(1, 1, dtype=torch.float64)
    fixed = [
        Update(
            run="run", round=1, client_id=c, base_digest="base", weight=1, shared={"R/x.B": b * one}
        )
        for c, b in (("a", 2), ("b", 4))
    ]
    state = ServerState(0, {"R/x.B": 0 * one})
    assert ffa_lora().combine(state, fixed).shared["R/x.B"].item() * 2 == (2 * 2 + 4 * 2) / 2
    both = [
        Update(
            run="run",
            round=1,
            client_id=c,
            base_digest="base",
            weight=1,
            shared={"R/x.A": a * one, "R/x.B": b * one},
        )
        for c, a, b in (("a", 1, 2), ("b", 3, 4))
    ]
    start = ServerState(0, {"R/x.A": 0 * one, "R/x.B": 0 * one})
    mean = fedavg().combine(start, both).shared
    assert (mean["R/x.A"] * mean["R/x.B"]).item() == 6
    assert weighted_mean(both)["R/x.A"].item() == 2
    assert fedex_lora().combine(start, both).shared["P/x.W"].item() == pytest.approx(7 - 6)


def test_rolora_moves_one_half_and_leaves_the_other() -> None:
    one = torch.ones(1, 1, dtype=torch.float64)
    start = ServerState(1, {"R/x.A": one, "R/x.B": 5 * one})
    update = Update(
        run="run", round=2, client_id="a", base_digest="base", weight=1, shared={"R/x.A": 2 * one}
    )
    after = rolora().combine(start, [update])
    assert [after.shared[n].item() for n in ("R/x.A", "R/x.B")] == [3, 5]
