"""FDSP's four measures: on numbers worked out by hand, and at the points where they are known."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from fdsp_measures import (
    Efficiency,
    count_trained,
    generalisation,
    linear_cka,
    parameter_efficiency,
    semantic_retention,
    structural_stability,
)
from torch.nn import functional as F

from fedsdr.algorithms.fdsp import fdsp
from fedsdr.algorithms.fedsdr import fedsdr
from fedsdr.algorithms.rolora import rolora
from fedsdr.data.render import make_block, render, render_prompt
from fedsdr.evaluate.scoring import Worn
from fedsdr.model.base import BaseModel
from fedsdr.model.lora import StackedLora
from fedsdr.parts.algorithm import PerInput
from fedsdr.parts.injection import Disturbance
from fedsdr.tensors import generator
from fedsdr.training.step import summed_nll
from toy import SPECS, examples

ROWS = examples("structure", 40)


@pytest.fixture
def lora(base64: BaseModel) -> Iterator[StackedLora]:
    made = StackedLora(base64, "all-linear", SPECS)
    yield made
    made.remove()


def model(lora: StackedLora, size: float) -> Worn:
    """R is worn; at size 0 its B is zero, and it does nothing."""
    flat = lora.fresh("R", "R")[None]
    noise = torch.randn(flat.shape, generator=generator("R"), dtype=torch.float64)
    columns = lora.layouts["R"].columns("B")
    flat[:, columns] = size * noise[:, columns]
    return Worn(lora, {"R": flat}, "R")


def test_an_adapter_that_does_nothing_keeps_all(lora: StackedLora) -> None:
    assert semantic_retention(model(lora, 0.0), ROWS) == pytest.approx(1.0, abs=1e-12)


def test_retention_is_the_cosine_at_the_prompts_last_token(lora: StackedLora) -> None:
    """Against transformers' own hidden states, prompt by prompt and without padding."""
    tuned, base, found = model(lora, 0.1), lora.base, list[float]()
    for example in ROWS:
        ids = torch.tensor([render_prompt(base, example)])
        with torch.no_grad():
            before = base.net(ids, output_hidden_states=True).hidden_states[-1][0, -1]
            with lora.wear(tuned.flats, ["R"]):
                after = base.net(ids, output_hidden_states=True).hidden_states[-1][0, -1]
        found.append(F.cosine_similarity(after, before, dim=0).item())
    retained = semantic_retention(tuned, ROWS)
    assert retained == pytest.approx(sum(found) / len(found), abs=1e-10)
    assert retained < 0.99
    assert semantic_retention(model(lora, 0.4), ROWS) < retained


def test_without_noise_all_is_stable(lora: StackedLora) -> None:
    (still,) = structural_stability(model(lora, 0.1), ROWS, sigmas=(0.0,))
    assert (still.loss, still.agreement) == (1.0, 1.0)
    assert still.cka == pytest.approx(1.0, abs=1e-12)


def test_an_adapter_that_puts_out_nothing_cannot_be_disturbed(lora: StackedLora) -> None:
    (still,) = structural_stability(model(lora, 0.0), ROWS, sigmas=(5.0,))
    assert (still.loss, still.agreement) == (1.0, 1.0)


def test_more_noise_is_less_stable_and_seeds_decide(lora: StackedLora) -> None:
    worn = model(lora, 0.1)
    small, large = structural_stability(worn, ROWS, sigmas=(0.05, 1.0), seed=3)
    assert 1 > small.agreement > large.agreement
    assert 1 > small.cka > large.cka
    assert 1 > small.loss > large.loss
    assert structural_stability(worn, ROWS, sigmas=(0.05, 1.0), seed=3) == (small, large)
    assert structural_stability(worn, ROWS, sigmas=(1.0,), seed=3) == (large,)
    assert structural_stability(worn, ROWS, sigmas=(1.0,), seed=4) != (large,)


def test_the_loss_kept_is_that_of_the_scorer(lora: StackedLora) -> None:
    """1 − |Δloss|/loss: the clean loss as `Worn.loss` has it, the perturbed one drawn again."""
    worn, noise = model(lora, 0.1), Disturbance("gaussian", 1.0, 1.0, sigma=0.3, warmup=0.0)
    rows = [render(lora.base, e, 256) for e in ROWS[:20]]
    block = make_block([rows], lora.base.pad, torch.device("cpu"))
    ((clean, tokens),) = worn.loss([ROWS[:20]])
    drawn = noise.draw([generator(1, "structural stability", 0)], block.lengths, [1.0])
    with torch.no_grad(), lora.wear(worn.flats, ["R"], injected=drawn):
        perturbed = summed_nll(lora.base, block).item() / tokens
    (found,) = structural_stability(worn, ROWS[:20], sigmas=(0.3,), seed=1)
    assert found.loss == pytest.approx(1 - abs(perturbed - clean) / clean, abs=1e-12)
    assert abs(perturbed - clean) > 1e-3


def test_only_one_fixed_model_is_measured(lora: StackedLora) -> None:
    one = model(lora, 0.1)
    two = replace(one, flats={"R": one.flats["R"].expand(2, -1)})
    for wrong in (two, replace(one, mix=PerInput("R", "R"))):
        with pytest.raises(ValueError, match="one model at a time"):
            semantic_retention(wrong, ROWS)
        with pytest.raises(ValueError, match="one model at a time"):
            structural_stability(wrong, ROWS)


def test_linear_cka_by_hand() -> None:
    """Centred x = (1, −1), y = (2, −2): 1, whatever scale, sign and shift. Columns x₁ = (1, 1, −1,
    −1), x₂ = (1, −1, 1, −1): x = [x₁], y = [x₂]: 0; y = [x₁, x₂]: yᵀx = (4, 0), xᵀx = 4, yᵀy = 4·1,
    so 16/(4 · 4√2) = 1/√2."""
    one, two = torch.tensor([1.0, 1.0, -1.0, -1.0]), torch.tensor([1.0, -1.0, 1.0, -1.0])
    assert linear_cka(one[:, None], 7 - 2 * one[:, None]) == pytest.approx(1.0)
    assert linear_cka(one[:, None], two[:, None]) == pytest.approx(0.0)
    both = torch.stack([one, two], dim=1)
    assert linear_cka(one[:, None], both + 5) == pytest.approx(0.5**0.5)


def test_cka_does_not_see_rotations() -> None:
    x = torch.randn((50, 4), generator=generator("x"), dtype=torch.float64)
    turned, _ = torch.linalg.qr(torch.randn((4, 4), generator=generator("q"), dtype=torch.float64))
    assert linear_cka(x, 3 * x @ turned) == pytest.approx(1.0, abs=1e-12)


def test_the_gap_is_seen_less_unseen() -> None:
    seen, unseen = {"recall": 0.75, "words": 4.0}, {"recall": 0.25, "loss": 1.0}
    assert generalisation(seen, unseen) == {"recall": (0.75, 0.25, 0.5)}


def test_efficiency_counts_what_a_client_trains(lora: StackedLora) -> None:
    """R has rank 2, S rank 3; RoLoRA trains both halves of R in turn."""
    wide = sum(a + b for a, b in lora.shapes.values())
    assert count_trained(lora, fdsp()) == 2 * wide
    assert count_trained(lora, rolora()) == 2 * wide
    assert count_trained(lora, fedsdr()) == 5 * wide
    base = sum(p.numel() for p in lora.base.net.parameters())
    results = {"bytes_up": 600, "bytes_down": 900, "rounds": 3}
    found = parameter_efficiency(lora, fdsp(), results, gain=0.5)
    gain = 0.5 / (2 * wide / 1e6)
    assert found == Efficiency(2 * wide, base + 2 * wide, 200.0, 300.0, gain)
    assert found.share == pytest.approx(2 * wide / (base + 2 * wide))
