"""States, maps and CKA: against the model's own states, and by hand."""

from __future__ import annotations

import pytest
import torch
from fdsp_measures import linear_cka

from fedsdr.data.render import render
from fedsdr.evaluate.diagnostics.representations import cka, maps, mean_states
from fedsdr.model.base import BaseModel
from fedsdr.model.lora import BranchSpec, StackedLora
from fedsdr.tensors import generator
from toy import examples


def test_states_are_the_models_own(base64: BaseModel) -> None:
    rows = [render(base64, e, 256) for e in examples("s", 7)]
    lora = StackedLora(base64, "all-linear", {"R": BranchSpec(2)})
    try:
        found = mean_states(lora, "R", None, rows, batch=3)
        expected = [
            base64.net(torch.tensor([r.ids[:-1]]), output_hidden_states=True)
            .hidden_states[-1][0]
            .mean(dim=0)
            for r in rows
        ]
        assert found.shape == (1, 7, 16)
        assert torch.allclose(found[0], torch.stack(expected), rtol=0, atol=1e-10)
        size = lora.layouts["R"].size
        flats = 0.3 * torch.randn(3, size, generator=generator(1), dtype=torch.float64)
        flats[2] = lora.fresh("R", 1)  # B = 0: the base
        stacked = mean_states(lora, "R", flats, rows, batch=6)
        (alone,) = mean_states(lora, "R", flats[1:2], rows, batch=100)
        assert torch.allclose(stacked[1], alone, rtol=0, atol=1e-10)
        assert torch.allclose(stacked[2], found[0], rtol=0, atol=1e-10)
        assert not torch.allclose(stacked[0], found[0], atol=1e-2)
    finally:
        lora.remove()


def test_cka_is_the_one_of_the_literature() -> None:
    """The form of n x n Gram matrices is that of d x d products; turning and scaling change
    nothing, a constant has none."""
    random = generator(2)
    x = torch.randn(40, 6, generator=random, dtype=torch.float64)
    y = x + torch.randn(40, 6, generator=random, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=random, dtype=torch.float64)).Q
    found = cka([x, y, 3 * x @ turn + 5, torch.ones(40, 6, dtype=torch.float64)])
    assert float(found[0, 1]) == pytest.approx(linear_cka(x, y), abs=1e-10)
    assert 0.2 < float(found[0, 1]) < 0.95
    assert float(found[0, 2]) == pytest.approx(1.0)
    assert found[3].isnan().all()


def test_a_map_by_hand() -> None:
    """Four points (±2, ±1): variance 4 along x, 1 along y, so 4/5 and 1/5; two clients left and
    right have all of x between them."""
    raw = torch.tensor([[-2.0, 1], [-2, -1], [2, 1], [2, -1]], dtype=torch.float64)
    moved = raw * torch.tensor([0.0, 1.0]) + 7
    found = maps({"raw": raw, "rewritten": moved}, [0, 0, 1, 1])
    assert found["raw"].explained == pytest.approx((0.8, 0.2))
    assert found["raw"].between == pytest.approx(0.8)
    assert torch.allclose(found["raw"].points, raw)  # the strongest direction counts as positive
    # on the same axes, all that was between the clients is gone
    assert found["rewritten"].explained == pytest.approx((0.0, 1.0))
    assert found["rewritten"].between == pytest.approx(0.0)
    assert torch.allclose(found["rewritten"].points, moved)


def test_one_point_has_no_spread() -> None:
    found = maps({"raw": torch.ones(1, 3, dtype=torch.float64)}, [0])["raw"]
    assert found.points.tolist() == [[0.0, 0.0]]
    assert found.explained[0] != found.explained[0]  # NaN
