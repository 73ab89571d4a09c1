"""Which rows come in which step, and K clients' rows as one block."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from fedsdr.data.render import Rendered, draw_steps, make_block

CPU = torch.device("cpu")


@pytest.mark.parametrize(("examples", "batch"), [(7, 3), (6, 3), (1, 4), (5, 1), (4, 8)])
def test_every_epoch_sees_every_row_once(examples: int, batch: int) -> None:
    per_epoch = -(-examples // batch)
    steps = draw_steps(examples, batch, 3 * per_epoch, "seed")
    assert all(1 <= len(step) <= batch for step in steps)
    for epoch in range(3):
        own = steps[epoch * per_epoch : (epoch + 1) * per_epoch]
        assert Counter(i for step in own for i in step) == Counter(range(examples))


def test_epochs_differ_seeds_differ_and_the_same_seed_does_not() -> None:
    steps = draw_steps(20, 5, 8, 1, "a")
    assert steps[:4] != steps[4:]
    assert steps == draw_steps(20, 5, 8, 1, "a")
    assert steps[:3] == draw_steps(20, 5, 3, 1, "a")
    assert steps != draw_steps(20, 5, 8, 1, "b")


def test_drawing_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    draw_steps(20, 5, 8, 1)
    assert torch.equal(torch.get_rng_state(), before)


def row(*ids: int, prompt: int = 1) -> Rendered:
    return Rendered(ids, (0.0,) * prompt + (1.0,) * (len(ids) - prompt))


def test_a_block_is_padded_on_the_right_and_by_empty_rows() -> None:
    block = make_block([[row(5, 6, 7), row(8, 9)], [row(4, 3, 2, 1, prompt=2)]], 0, CPU)
    assert block.clients == 2
    assert block.ids.tolist() == [[5, 6, 7, 0], [8, 9, 0, 0], [4, 3, 2, 1], [0, 0, 0, 0]]
    assert block.weights.tolist() == [[0, 1, 1, 0], [0, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0]]


def test_a_padding_that_is_also_a_token_is_never_weighed() -> None:
    block = make_block([[row(5, 0, 0), row(5, 0)]], 0, CPU)
    assert block.weights.tolist() == [[0, 1, 1], [0, 1, 0]]


def test_a_client_without_rows_in_a_micro_batch() -> None:
    block = make_block([[row(5, 6)], []], 0, CPU)
    assert block.ids.tolist() == [[5, 6], [0, 0]]
    assert block.weights[1].sum() == 0
