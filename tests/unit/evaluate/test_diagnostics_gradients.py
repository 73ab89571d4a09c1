"""The gradient that an adapter feels is the full one, projected; K clients at once or one by
one."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from fedsdr.data.render import Rendered, make_block, render
from fedsdr.evaluate.diagnostics.gradients import base_gradients
from fedsdr.evaluate.diagnostics.tables import cosines
from fedsdr.model.base import BaseModel
from fedsdr.model.lora import BranchSpec, StackedLora
from fedsdr.parts.local import LocalSettings
from fedsdr.training.step import summed_nll
from toy import examples

LOCAL = LocalSettings(batch=3, weight_decay=0.1)


def rows_of(base: BaseModel, sizes: Sequence[int]) -> list[list[Rendered]]:
    return [[render(base, e, 256) for e in examples(f"g{k}", size)] for k, size in enumerate(sizes)]


def full_gradients(
    lora: StackedLora, rows: Sequence[Sequence[Rendered]]
) -> list[dict[str, Tensor]]:
    """Per client, by layer: the gradient of its mean loss by the frozen weights themselves."""
    weights = {n: layer.base.get_parameter("weight") for n, layer in lora.layers.items()}
    found = list[dict[str, Tensor]]()
    for weight in weights.values():
        weight.requires_grad_(True)
    try:
        for own in rows:
            block = make_block([own], lora.base.pad, torch.device("cpu"))
            loss = summed_nll(lora.base, block).sum() / block.weights.sum()
            grads = torch.autograd.grad(loss, list(weights.values()))
            found.append(dict(zip(weights, grads, strict=True)))
    finally:
        for weight in weights.values():
            weight.requires_grad_(False)
    return found


def test_it_is_the_full_gradient_times_a(base64: BaseModel) -> None:
    lora = StackedLora(base64, "all-linear", {"R": BranchSpec(4, 12.0)})
    try:
        rows = rows_of(base64, (7, 2, 5))
        start = lora.fresh("R", 1)
        found = base_gradients(lora, "R", start, rows, LOCAL, stack=2)
        a = lora.layouts["R"].named(start)
        expected = [
            torch.cat([(3.0 * full[n] @ a[f"{n}.A"].T).flatten() for n in lora.layers])
            for full in full_gradients(lora, rows)
        ]
        assert float(found.abs().max()) > 1e-3
        assert torch.allclose(found, torch.stack(expected), rtol=0, atol=1e-12)
        alone = base_gradients(lora, "R", start, rows, LOCAL, stack=1)
        assert torch.allclose(found, alone, rtol=0, atol=1e-12)
    finally:
        lora.remove()


@pytest.mark.parametrize(("rank", "near"), [(4, 0.2), (256, 0.05)])
def test_its_cosines_estimate_those_of_the_full_weights(
    base64: BaseModel, rank: int, near: float
) -> None:
    """The wider the projection, the nearer; even r = 4 on layers of width 16 tells who is alike."""
    lora = StackedLora(base64, "all-linear", {"R": BranchSpec(rank)})
    try:
        rows = rows_of(base64, (9, 9, 9, 9))
        rows.append([*rows[0][:5], *rows[1][:5]])  # half of each of two others
        found = cosines(base_gradients(lora, "R", lora.fresh("R", 3), rows, LOCAL, stack=8))
        full = cosines(
            torch.stack(
                [torch.cat([g.flatten() for g in f.values()]) for f in full_gradients(lora, rows)]
            )
        )
        assert float((found - full).abs().max()) < near
        at = torch.triu_indices(5, 5, 1)
        assert float(full[at[0], at[1]].std()) > 0.05  # or nearness would say nothing
    finally:
        lora.remove()


def test_loss_by_example_is_the_recipes_choice(base64: BaseModel) -> None:
    lora = StackedLora(base64, "all-linear", {"R": BranchSpec(2)})
    try:
        rows, start = rows_of(base64, (6,)), lora.fresh("R", 1)
        by_token = base_gradients(lora, "R", start, rows, LOCAL, 1)
        by_example = base_gradients(lora, "R", start, rows, LocalSettings(loss="examples"), 1)
        assert not torch.allclose(by_token, by_example)
        mean = sum(base_gradients(lora, "R", start, [[r]], LOCAL, 1) for r in rows[0]) / 6
        assert torch.allclose(by_example, torch.as_tensor(mean), rtol=0, atol=1e-12)
    finally:
        lora.remove()
