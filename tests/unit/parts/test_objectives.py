"""Objectives on numbers worked out by hand."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from fedsdr.model.head import Outputs
from fedsdr.parts.objectives import ControlVariate, CrossEntropy, Predicted, Proximal, Sum


@dataclass
class Step:
    """Two clients; client 0 has drifted by (3, 4) in R and 2 in S, client 1 not at all."""

    trained: dict[str, Tensor] = field(
        default_factory=lambda: {
            "R": torch.tensor([[4.0, 5.0], [1.0, 1.0]], requires_grad=True),
            "S": torch.tensor([[2.0], [0.0]], requires_grad=True),
        }
    )
    start: dict[str, Tensor] = field(
        default_factory=lambda: {"R": torch.ones(2, 2), "S": torch.zeros(2, 1)}
    )
    share_of_step: float = 1.0
    progress: float = 0.0
    others: dict[str, Tensor] = field(default_factory=dict)

    @property
    def branches(self) -> dict[str, Tensor]:
        return self.others | self.trained

    def predict(self, *asked: object) -> Predicted:
        """Four tokens over two words: p(right) = 1/2, 1/2, 1/4, and 1/2 with weight 1/2."""
        logits = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, math.log(3.0)], [0.0, 0.0]])
        owner = torch.tensor([0, 0, 1, 1])
        weights = torch.tensor([1.0, 1.0, 1.0, 0.5])
        return Predicted(Outputs(None, None, logits), torch.tensor([0, 1, 0, 1]), weights, owner)

    def mean(self, values: Tensor, of: Predicted) -> Tensor:
        summed = torch.zeros(2).index_add(0, of.owner, values * of.weights)
        return summed / torch.tensor([2.0, 1.5])


def test_the_proximal_term_is_squared_and_halved() -> None:
    """(μ/2) ‖w − w_g‖² = (0.1/2)(3² + 4² + 2²) = 0.05 · 29 = 1.45 for client 0, 0 for client 1."""
    assert Proximal(0.1)(Step()).tolist() == pytest.approx([1.45, 0.0])


def test_its_gradient_is_mu_times_the_drift() -> None:
    """d/dw (μ/2)‖w − w_g‖² = μ (w − w_g) = 0.1 · (3, 4)."""
    step = Step()
    Proximal(0.1)(step).sum().backward()
    assert step.trained["R"].grad is not None
    assert torch.allclose(step.trained["R"].grad, torch.tensor([[0.3, 0.4], [0.0, 0.0]]))
    assert step.trained["S"].grad is not None
    assert torch.allclose(step.trained["S"].grad, torch.tensor([[0.2], [0.0]]))


def test_micro_batches_share_one_proximal_term() -> None:
    parts = [Proximal(0.1)(Step(share_of_step=s))[0].item() for s in (0.25, 0.75)]
    assert sum(parts) == pytest.approx(1.45)


def test_a_sum_adds_client_by_client() -> None:
    """CE of client 0: (log 2 + log 2)/2; of client 1: (log 4 + log 2 / 2)/1.5."""
    total = Sum((CrossEntropy(), Proximal(0.1), Proximal(0.0)))(Step())
    log2 = math.log(2)
    assert total.tolist() == pytest.approx([log2 + 1.45, 2.5 * log2 / 1.5])


def test_the_proximal_term_can_pull_to_another_branch() -> None:
    """Ditto: (λ/2)‖v − w‖² with v = (4, 5) and w = (1, 1) as the round began: 0.05 · 25."""
    step = Step()
    step.trained = {"V": step.trained["R"]}
    assert Proximal(0.1, to="R")(step).tolist() == pytest.approx([1.25, 0.0])


def test_the_control_variate_is_linear_with_the_correction_as_its_gradient() -> None:
    """⟨c − c_k, w⟩ for w = (2, 3), c = (1, 0), c_k = (0, 2): 1·2 + (−2)·3 = −4."""
    step, w = Step(share_of_step=0.5), torch.tensor([[2.0, 3.0]], requires_grad=True)
    step.trained = {
        "R": w,
        "C": torch.tensor([[1.0, 0.0]]),
        "K": torch.tensor([[0.0, 2.0]]),
    }
    step.trained, step.others = {"R": w}, dict(step.trained)
    value = ControlVariate("C", "K")(step)
    assert value.tolist() == pytest.approx([-2.0])
    value.sum().backward()
    assert w.grad is not None
    assert w.grad.tolist() == [[0.5, -1.0]]
