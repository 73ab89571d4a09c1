"""SelfAug and rectified self-distillation on numbers worked out by hand."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from fedsdr.model.head import Outputs
from fedsdr.parts.lora_rules import Rectified, SelfAug, rectify
from fedsdr.parts.objectives import Predicted

LN2, LN3 = math.log(2.0), math.log(3.0)
EVEN = torch.zeros(2)


@dataclass
class Step:
    """Two clients of two tokens each over two words; what each pass says where, and the labels."""

    logits: dict[tuple[str, str], Tensor]
    labels: tuple[int, ...] = (0, 1, 0, 1)
    asked: list[tuple[str, str]] = field(default_factory=list)

    def predict(self, through: str = "now", where: str = "response") -> Predicted:
        self.asked.append((through, where))
        found, owner = self.logits[through, where], torch.tensor([0, 0, 1, 1])
        return Predicted(
            Outputs(None, None, found), torch.tensor(self.labels), torch.ones(4), owner, where
        )  # type: ignore[arg-type]

    def mean(self, values: Tensor, of: Predicted) -> Tensor:
        return torch.zeros(2).index_add(0, of.owner, values * of.weights) / 2


def rows(*first: float) -> Tensor:
    """Tokens whose first word is `first` times as likely as the second."""
    return torch.tensor([[math.log(f), 0.0] for f in first])


def test_selfaug_is_kl_from_the_base_on_the_input() -> None:
    """KL((3/4, 1/4) ‖ (1/2, 1/2)) = 3/4 ln 3/2 − 1/4 ln 2, on the first of client 0's two tokens;
    KL((1/2, 1/2) ‖ (3/4, 1/4)) = 1/2 ln 4/3 on both of client 1's."""
    step = Step({("base", "input"): rows(3, 1, 1, 1), ("now", "input"): rows(1, 1, 3, 3)})
    wanted = [(0.75 * math.log(1.5) - 0.25 * LN2) / 2, 0.5 * math.log(4 / 3)]
    assert SelfAug(1.0)(step).tolist() == pytest.approx(wanted)
    assert SelfAug(0.25)(step).tolist() == pytest.approx([0.25 * w for w in wanted])
    assert set(step.asked) == {("now", "input"), ("base", "input")}


def test_where_the_teacher_errs_two_probabilities_change_places() -> None:
    """(1/6, 2/6, 3/6) with label 0 becomes (3/6, 2/6, 1/6); with label 2 it is right already."""
    logits = torch.tensor([[1.0, 2.0, 3.0]]).log().expand(3, 3)
    swapped = rectify(logits, torch.tensor([0, 1, 2])).softmax(dim=1) * 6
    wanted = torch.tensor([[3.0, 2.0, 1.0], [1.0, 3.0, 2.0], [1.0, 2.0, 3.0]])
    assert torch.allclose(swapped, wanted, atol=1e-6)


def test_a_tie_is_no_error() -> None:
    logits = torch.tensor([[1.0, 1.0, 0.0]])
    for label in (0, 1):
        assert torch.equal(rectify(logits, torch.tensor([label])), logits)


def test_it_is_still_a_distribution_at_every_temperature() -> None:
    logits = torch.tensor([[0.3, -1.0, 2.0, 0.1]])
    for temperature in (0.5, 1.0, 4.0):
        one = (logits / temperature).softmax(dim=1)
        two = (rectify(logits, torch.tensor([1])) / temperature).softmax(dim=1)
        assert torch.allclose(one.sort().values, two.sort().values)
        assert two.argmax() == 1


def test_rectified_distils_the_corrected_teacher() -> None:
    """Client 0: teacher (3/4, 1/4) with labels 0 and 1, so (3/4, 1/4) and, swapped, (1/4, 3/4); the
    model is at (3/4, 1/4) for both: 0, and KL((1/4, 3/4) ‖ (3/4, 1/4)) = 1/2 ln 3 over two tokens.
    Client 1's teacher is even, and so is its model: nothing to correct, nothing to learn."""
    step = Step({("start", "response"): rows(3, 3, 1, 1), ("now", "response"): rows(3, 3, 1, 1)})
    assert Rectified(0.5, 1.0)(step).tolist() == pytest.approx([0.5 * 0.5 * LN3 / 2, 0.0])
    assert set(step.asked) == {("now", "response"), ("start", "response")}


def test_its_temperature_softens_both_and_counts_squared() -> None:
    """At τ = 2 logits (ln 9, 0) are (ln 3, 0): τ² times the case above."""
    step = Step({("start", "response"): rows(9, 9, 1, 1), ("now", "response"): rows(9, 9, 1, 1)})
    assert Rectified(1.0, 2.0)(step).tolist() == pytest.approx([4 * 0.5 * LN3 / 2, 0.0])


def test_the_gradient_pulls_to_the_corrected_teacher() -> None:
    """q − p̂ = (3/4, 1/4) − (1/4, 3/4), over two tokens."""
    now = rows(3, 3, 1, 1).requires_grad_()
    step = Step({("start", "response"): rows(3, 3, 1, 1), ("now", "response"): now})
    Rectified(1.0, 1.0)(step).sum().backward()
    assert now.grad is not None
    assert torch.allclose(now.grad[1], torch.tensor([0.25, -0.25]), atol=1e-6)
    assert now.grad[[0, 2, 3]].abs().max() < 1e-6
