"""Rows in blocks of about one length: which stand together, and that no token is lost."""

import pytest
import torch
from torch import Tensor

from fedsdr.model import flat as blocks
from fedsdr.model.flat import Block, Blocks, make_blocks


def made(*lengths: int) -> Blocks:
    width = max(lengths)
    slots = torch.cat([torch.arange(n) + i * width for i, n in enumerate(lengths)])
    return make_blocks(lengths, width, slots)


def shapes(found: Blocks) -> list[tuple[int, int]]:
    return [(block.rows, block.width) for block in found.parts]


def test_one_long_row_stands_alone() -> None:
    # 63 rows of 100 tokens, each saving 1000² - 100² scores.
    assert shapes(made(*[100] * 40, 1000, *[100] * 23)) == [(1, 1000), (63, 100)]


def test_rows_of_about_one_length_stay_together() -> None:
    assert shapes(made(1000, 801, 900)) == [(3, 1000)]
    assert shapes(made(1000, 800, 900)) == [(2, 1000), (1, 800)]


def test_what_saves_little_is_one_block() -> None:
    # 8 · (60² - 10²) = 28,000 scores, below 1 << 17.
    found = made(60, *[10] * 8)
    assert shapes(found) == [(9, 60)]
    assert found.order is None


def test_every_token_comes_back_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "WORTH", 0)
    found = made(5, 1, 9, 0, 6, 1)
    assert shapes(found) == [(1, 9), (2, 6), (2, 1)]
    tokens = torch.arange(22.0).view(22, 1, 1).expand(22, 3, 2)
    widths = list[tuple[int, ...]]()

    def second(block: Block, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        widths.append(tuple(q.shape))
        return q + k - v

    assert torch.equal(found.attend(second, tokens, tokens, tokens), tokens)
    assert widths == [(1, 3, 9, 2), (2, 3, 6, 2), (2, 3, 1, 2)]


def test_padding_is_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "WORTH", 0)
    (first,) = made(3, 0, 3).parts
    assert first.pad(torch.ones(6, 1, 1))[:, 0, :, 0].tolist() == [[1.0] * 3, [0.0] * 3, [1.0] * 3]
    _, second = made(9, 6, 5, 6).parts
    assert second.pad(torch.ones(26, 1, 1))[:, 0, 4:, 0].tolist() == [[1, 1], [1, 0], [1, 1]]
