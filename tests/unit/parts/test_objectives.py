"""Objectives on numbers worked out by hand."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from fedsdr.parts.objectives import CrossEntropy, Proximal, Sum


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

    def cross_entropy(self) -> Tensor:
        return torch.tensor([10.0, 20.0])


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
    total = Sum((CrossEntropy(), Proximal(0.1), Proximal(0.0)))(Step())
    assert total.tolist() == pytest.approx([11.45, 20.0])
