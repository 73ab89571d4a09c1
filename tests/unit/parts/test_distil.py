"""FDSP's terms on numbers worked out by hand, and on a real step: who gets a gradient."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from fedsdr.data.render import make_block, render
from fedsdr.model.base import BaseModel
from fedsdr.model.head import Outputs
from fedsdr.model.lora import StackedLora
from fedsdr.parts.injection import Disturbance
from fedsdr.parts.objectives import (
    Consistent,
    CrossEntropy,
    Distilled,
    Objective,
    Predicted,
    Represented,
    Sum,
    distances,
    divergence,
)
from fedsdr.tensors import generator
from fedsdr.training.step import LocalStep
from toy import SPECS, examples

LN3 = math.log(3.0)
# KL((3/4, 1/4) ‖ (1/2, 1/2)) = 3/4 ln 3/2 + 1/4 ln 1/2; and with the two exchanged.
THREE_ONE, EVEN = 0.75 * math.log(1.5) - 0.25 * math.log(2), 0.5 * math.log(4 / 3)


@dataclass
class Step:
    """Client 0 has two tokens, client 1 one (of weight 1/2), over two words.

    token  teacher      now          label
    0      (3/4, 1/4)   (1/2, 1/2)   0
    1      (1/2, 1/2)   (1/2, 1/2)   1
    2      (1/2, 1/2)   (3/4, 1/4)   0
    """

    tokens: tuple[int, ...] = (0, 1, 2)
    trained: dict[str, Tensor] = field(
        default_factory=lambda: {"R": torch.tensor([[3.0, 5.0], [3.0, 4.0]])}
    )
    start: dict[str, Tensor] = field(
        default_factory=lambda: {"R": torch.tensor([[3.0, 4.0], [3.0, 4.0]])}
    )
    states: Mapping[str, tuple[Tensor, ...]] = field(default_factory=dict)
    logits: Mapping[str, Tensor] = field(
        default_factory=lambda: {
            "start": torch.tensor([[LN3, 0.0], [0.0, 0.0], [1.0, 1.0]]),
            "now": torch.tensor([[0.0, 0.0], [2.0, 2.0], [LN3, 0.0]]),
        }
    )
    asked: list[tuple[str, bool]] = field(default_factory=list)

    def predict(
        self,
        through: str = "now",
        where: Any = "response",
        hidden: bool = False,
        injection: object = None,
    ) -> Predicted:
        through = "perturbed" if injection is not None else through
        self.asked.append((through, hidden))
        at = list(self.tokens)
        return Predicted(
            Outputs(None, None, self.logits[through][at]),
            torch.tensor([0, 1, 0])[at],
            torch.tensor([1.0, 1.0, 0.5])[at],
            torch.tensor([0, 0, 1])[at],
            where,
            tuple(h[at] for h in self.states[through]) if hidden else (),
        )

    def mean(self, values: Tensor, of: Predicted) -> Tensor:
        summed = torch.zeros(2).index_add(0, of.owner, values * of.weights)
        return summed / torch.tensor([2.0, 0.5])


def found(objective: Any, **step: Any) -> list[float]:
    return objective(Step(**step)).tolist()


def test_divergence_is_kl_from_the_teacher_to_the_student() -> None:
    teacher, now = Step().logits["start"], Step().logits["now"]
    assert divergence(teacher, now).tolist() == pytest.approx([THREE_ONE, 0.0, EVEN], abs=1e-7)


def test_uniform_weights_give_the_mean() -> None:
    """Client 0: (KL + 0)/2; client 1: its only token's."""
    wanted = [0.5 * THREE_ONE / 2, 0.5 * EVEN]
    assert found(Distilled(0.5, 1.0, "uniform")) == pytest.approx(wanted)


def test_gold_weights_are_what_the_teacher_gives_the_label() -> None:
    """w = 3/4 and 1/2: (3/4 · KL + 1/2 · 0)/(5/4) = 3/5 KL; one token alone has weight one."""
    assert found(Distilled(1.0, 1.0, "gold")) == pytest.approx([0.6 * THREE_ONE, EVEN])


def test_a_teacher_that_knows_nothing_has_no_confidence() -> None:
    """1 − H/ln 2 of an even split is 0: client 0's other token counts alone; client 1 has none that
    counts, and nothing to learn, rather than 0/0."""
    assert found(Distilled(1.0, 1.0, "confidence")) == pytest.approx([THREE_ONE, 0.0], abs=1e-6)


def test_temperature_softens_both_and_its_square_counts() -> None:
    """At τ = 2 the teacher's (3/4, 1/4) is p = √3/(1 + √3): τ² (p ln 2p + (1 − p) ln 2(1 − p))."""
    p = math.sqrt(3) / (1 + math.sqrt(3))
    softened = p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))
    assert found(Distilled(1.0, 2.0, "uniform"))[0] == pytest.approx(4 * softened / 2)


def test_the_weight_grows_with_the_clients_drift() -> None:
    """Client 0 moved from (3, 4) to (3, 5): 1/5 of its norm, so λ_d (1 + 10/5); client 1 did not
    move."""
    plain, grown = (found(Distilled(1.0, 1.0, "uniform", g)) for g in (0.0, 10.0))
    assert grown == pytest.approx([3 * plain[0], plain[1]])


def test_micro_batches_add_up_where_weights_are_equal() -> None:
    """They do not for others, which the docstring says: (KL + 0)/2 for the 3/5 KL of the whole."""
    for kind, wanted in (("uniform", THREE_ONE / 2), ("gold", THREE_ONE / 2)):
        parts = [found(Distilled(1.0, 1.0, kind), tokens=t)[0] for t in ((0,), (1, 2))]
        assert sum(parts) == pytest.approx(wanted)


def test_a_micro_batch_without_a_clients_tokens_adds_nothing_to_it() -> None:
    for kind in ("uniform", "confidence", "gold"):
        assert found(Distilled(1.0, 1.0, kind), tokens=(0, 1))[1] == 0.0


# 1 − cos: layer 1: 1, 1 − 1/√2, 0; layer 2: 0, 2, 1.
STATES = {
    "start": (
        torch.tensor([[0.0, 2.0], [1.0, 0.0], [1.0, 1.0]]),
        torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 5.0]]),
    ),
    "now": (
        torch.tensor([[1.0, 0.0], [1.0, 1.0], [2.0, 2.0]]),
        torch.tensor([[6.0, 8.0], [-1.0, 0.0], [1.0, 0.0]]),
    ),
}
BENT = 1 - math.sqrt(0.5)


def test_distances_are_one_less_the_cosine() -> None:
    one, two = (Step(states=STATES).predict(through, hidden=True) for through in ("now", "start"))
    wanted = [[1.0, BENT, 0.0], [0.0, 2.0, 1.0]]
    assert torch.allclose(distances(one, two), torch.tensor(wanted), atol=1e-6)


@pytest.mark.parametrize(
    ("layers", "wanted"),
    [
        ("uniform", [(1 / 2 + (BENT + 2) / 2) / 2, 1 / 2]),
        ("depth", [(1 / 3 + (BENT + 4) / 3) / 2, 2 / 3]),  # ω = 1/3, 2/3
        # ω_l = d_l/Σd: token 0 all on layer 1; token 1 (BENT² + 2²)/(BENT + 2); token 2 layer 2.
        ("drift", [(1 + (BENT**2 + 4) / (BENT + 2)) / 2, 1.0]),
    ],
)
def test_layers_count_as_they_are_told_to(layers: Any, wanted: list[float]) -> None:
    whole = found(Represented(0.1, layers), states=STATES)
    assert whole == pytest.approx([0.1 * w for w in wanted], abs=1e-6)
    parts = [found(Represented(0.1, layers), states=STATES, tokens=t) for t in ((0,), (1, 2))]
    assert [sum(pair) for pair in zip(*parts, strict=True)] == pytest.approx(whole, abs=1e-6)


def test_drift_weights_themselves_are_not_trained() -> None:
    """With ω held, d Σ ω_l d_l / d d_l = ω_l; were ω trained too, client 1's quotient of 1 token
    (d₁ = 0) would differ."""
    now = tuple(h.clone().requires_grad_() for h in STATES["now"])
    Represented(1.0, "drift")(Step(states={**STATES, "now": now}))[0].backward()
    held = tuple(h.clone().requires_grad_() for h in STATES["now"])
    step = Step(states={**STATES, "now": held})
    apart = distances(step.predict(hidden=True), step.predict("start", hidden=True))
    omega = torch.tensor([[1.0, BENT / (BENT + 2)], [0.0, 2 / (BENT + 2)]])
    ((omega * apart[:, :2]).sum() / 2).backward()
    for ours, wanted in zip(now, held, strict=True):
        assert torch.allclose(ours.grad[:2], wanted.grad[:2], atol=1e-5)  # type: ignore[index]


def perturbed(**more: Any) -> dict[str, Any]:
    """The perturbed pass says what the teacher says above."""
    logits, states = Step().logits, STATES
    return {
        "logits": {"now": logits["start"], "perturbed": logits["now"]},
        "states": {"now": states["start"], "perturbed": states["now"]},
    } | more


def test_consistency_is_kl_and_the_states_mean_distance() -> None:
    """Client 0: KL of token 0 over two tokens; mean over layers (1 + 0)/2 and (BENT + 2)/2."""
    injection = Disturbance()
    plain = found(Consistent(0.5, injection, beta=0.0), **perturbed())
    assert plain == pytest.approx([0.5 * THREE_ONE / 2, 0.5 * EVEN])
    whole = found(Consistent(0.5, injection, beta=3.0), **perturbed())
    apart = [(1 / 2 + (BENT + 2) / 2) / 2, 1 / 2]
    wanted = [p + 0.5 * 3.0 * a for p, a in zip(plain, apart, strict=True)]
    assert whole == pytest.approx(wanted, abs=1e-6)


def test_the_clean_prediction_is_held() -> None:
    """d KL(p ‖ q)/d logits of q is q − p, half of it since client 0 has two tokens; p gets none."""
    leaves = {n: t.clone().requires_grad_() for n, t in perturbed()["logits"].items()}
    Consistent(1.0, Disturbance(), beta=0.0)(Step(**perturbed(logits=leaves)))[0].backward()
    assert leaves["now"].grad is None
    wanted = torch.tensor([[0.5 - 0.75, 0.5 - 0.25], [0.0, 0.0], [0.0, 0.0]]) / 2
    assert torch.allclose(leaves["perturbed"].grad, wanted, atol=1e-6)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("objective", "asked"),
    [
        (Distilled(1.0), [("now", False), ("start", False)]),
        (Represented(1.0), [("now", True), ("start", True)]),
        (Consistent(1.0, Disturbance(), 1.0), [("now", True), ("perturbed", True)]),
        (Consistent(1.0, Disturbance(), 0.0), [("now", False), ("perturbed", False)]),
    ],
)
def test_only_the_passes_that_are_needed_are_asked_for(objective: Any, asked: Any) -> None:
    step = Step(**perturbed(logits={**Step().logits, "perturbed": Step().logits["now"]}))
    step.states = {**STATES, "perturbed": STATES["now"]}
    objective(step)
    assert step.asked == asked


@pytest.fixture
def lora(base64: BaseModel) -> Iterator[StackedLora]:
    made = StackedLora(base64, "all-linear", SPECS)
    yield made
    made.remove()


def real_step(lora: StackedLora, away: float) -> LocalStep:
    """Two clients wearing R and S, of which R is trained; it is `away` from where it began."""
    random = generator("away")

    def noise(branch: str) -> Tensor:
        flat = torch.stack([lora.fresh(branch, branch, k) for k in range(2)])
        return flat + 0.05 * torch.randn(flat.shape, generator=random, dtype=torch.float64)

    start = {b: noise(b).requires_grad_() for b in SPECS}
    now = {b: start[b].detach().clone() for b in SPECS}
    now["R"] += away * torch.randn(now["R"].shape, generator=random, dtype=torch.float64)
    now["R"].requires_grad_()
    rows = [[render(lora.base, e, 256) for e in examples(c, n)] for c, n in (("a", 3), ("b", 2))]
    trained = torch.tensor([float(sum(r.trained for r in own)) for own in rows]).double()
    return LocalStep(
        lora=lora,
        block=make_block(rows, lora.base.pad, torch.device("cpu")),
        mix={"R": 1.0, "S": 1.0},
        branches=now,
        trained={"R": now["R"]},
        start=start,
        factors={},
        denominators={"response": trained, "input": trained},
        share_of_step=1.0,
        progress=[1.0, 1.0],
        noise=[generator("noise", k) for k in range(2)],
    )


OBJECTIVES: dict[str, Objective] = {
    **{f"distilled by {t}": Distilled(1.0, 2.0, t, 1.0) for t in ("uniform", "confidence", "gold")},
    **{f"represented by {o}": Represented(1.0, o) for o in ("uniform", "depth", "drift")},
    "consistent": Consistent(1.0, Disturbance(rho_attention=1.0, rho_feed_forward=1.0)),
}


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_gradients_reach_what_is_trained_and_nothing_else(
    objective: Objective, lora: StackedLora
) -> None:
    step = real_step(lora, away=0.2)
    values = objective(step)
    assert bool((values > 0).all())
    values.sum().backward()
    assert step.trained["R"].grad is not None
    assert bool((step.trained["R"].grad.norm(dim=1) > 0).all())
    assert step.branches["S"].grad is None
    assert all(flat.grad is None for flat in step.start.values())
    assert all(p.grad is None for p in lora.base.net.parameters())


def test_one_clients_loss_has_no_gradient_in_anothers_branch(lora: StackedLora) -> None:
    step = real_step(lora, away=0.2)
    Sum((*OBJECTIVES.values(), CrossEntropy()))(step)[0].backward()
    grad = step.trained["R"].grad
    assert grad is not None
    assert bool(grad[0].abs().max() > 0)
    assert bool(grad[1].abs().max() == 0)


def test_where_the_round_begins_there_is_nothing_to_distil(lora: StackedLora) -> None:
    step = real_step(lora, away=0.0)
    for name, objective in OBJECTIVES.items():
        if name != "consistent":
            assert objective(step).abs().max() < 1e-12, name
