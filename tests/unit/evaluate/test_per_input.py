"""FedDPA's gate: how much a client's own adapter counts depends on the input."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fedsdr.data.render import render_prompt
from fedsdr.evaluate import scoring
from fedsdr.evaluate.scoring import Worn
from fedsdr.model.base import BaseModel
from fedsdr.model.lora import BranchSpec, StackedLora
from fedsdr.parts.algorithm import PerInput
from fedsdr.types import Example
from toy import examples

ASKED = [list(examples("a", 3)), list(examples("b", 2)), []]


@pytest.fixture
def lora(base64: BaseModel) -> Iterator[StackedLora]:
    made = StackedLora(base64, "all-linear", {b: BranchSpec(2, 4.0) for b in "RL"})
    yield made
    made.remove()


def branches(lora: StackedLora, clients: int = 3) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(3)
    shape = (clients, lora.layouts["R"].size)
    return {b: 0.3 * torch.randn(shape, generator=random, dtype=torch.float64) for b in "RL"}


def states(lora: StackedLora, *rows: Example) -> Tensor:
    return lora.base.last_states([render_prompt(lora.base, e) for e in rows])


def gated(lora: StackedLora, anchors: list[Tensor], highest: float = 0.5) -> Worn:
    mix = PerInput("R+L", gated="L", highest=highest)
    return Worn(lora, branches(lora), mix, max_length=256, anchors=anchors)


def one_by_one(lora: StackedLora, gates: list[list[float]]) -> list[tuple[float, int]]:
    """Per client Σ loss / Σ tokens, each example through its own fixed mix of its client's."""
    found = []
    for k, (own, weights) in enumerate(zip(ASKED, gates, strict=True)):
        flats = {b: flat[k : k + 1] for b, flat in branches(lora).items()}
        parts = [
            Worn(lora, flats, f"{1 - g!r}*R+{g!r}*L", max_length=256).loss([[e]])[0]
            for e, g in zip(own, weights, strict=True)
        ]
        tokens = sum(n for _, n in parts)
        found.append((sum(mean * n for mean, n in parts) / max(1, tokens), tokens))
    return found


def check(ours: list[tuple[float, int]], theirs: list[tuple[float, int]]) -> None:
    for (mean, tokens), (expected, count) in zip(ours, theirs, strict=True):
        assert tokens == count
        assert mean == pytest.approx(expected, rel=1e-9)


def test_the_gate_is_the_mean_cosine_times_the_highest(lora: StackedLora) -> None:
    """Against cosines worked out here, for two clients with 2 and 1 anchors of their own."""
    anchors = [states(lora, *examples("a", 5)[3:]), states(lora, *examples("b", 3)[2:])]
    anchors.append(anchors[0])
    gates = []
    for own, near in zip(ASKED, anchors, strict=True):
        row = []
        for example in own:
            x = states(lora, example)[0]
            cosines = [float(x @ a / (x.norm() * a.norm())) for a in near]
            row.append(0.5 * max(0.0, sum(cosines) / len(cosines)))
        gates.append(row)
    flat = [g for row in gates for g in row]
    assert len({round(g, 6) for g in flat}) == len(flat) == 5
    check(gated(lora, anchors).loss(ASKED), one_by_one(lora, gates))


def test_the_client_s_own_prompt_has_the_highest_weight(lora: StackedLora) -> None:
    """Cosine 1 with itself: 0.3·L + 0.7·R; cosine −1 counts as none: R alone."""
    data = [[ASKED[0][0]], [ASKED[1][0]], []]
    own = [states(lora, ASKED[0][0]), -states(lora, ASKED[1][0]), states(lora, ASKED[0][0])]
    first, second, third = gated(lora, own, highest=0.3).loss(data)
    flats = branches(lora)
    mine = {b: f[:1] for b, f in flats.items()}, {b: f[1:2] for b, f in flats.items()}
    like = Worn(lora, mine[0], "0.7*R+0.3*L", max_length=256).loss([data[0]])[0]
    unlike = Worn(lora, mine[1], "R", max_length=256).loss([data[1]])[0]
    check([first, second], [like, unlike])
    assert third == (0.0, 0)


def test_with_no_weight_it_is_the_global_adapter(lora: StackedLora) -> None:
    anchors = [states(lora, *examples("a", 2))] * 3
    plain = Worn(lora, {"R": branches(lora)["R"]}, "R", max_length=256).loss(ASKED)
    check(gated(lora, anchors, highest=0.0).loss(ASKED), plain)
    other = gated(lora, anchors, highest=0.5).loss(ASKED)
    assert abs(other[0][0] - plain[0][0]) > 1e-3


def test_few_at_a_time_is_the_same(lora: StackedLora, monkeypatch: pytest.MonkeyPatch) -> None:
    anchors = [states(lora, *examples(o, 4)) for o in "abc"]
    worn = gated(lora, anchors)
    whole, texts = worn.loss(ASKED), worn.answer(ASKED, 5)
    check(replace(worn, batch=2).loss(ASKED), whole)
    monkeypatch.setattr(scoring, "LARGEST_STACK", 1)
    check(worn.loss(ASKED), whole)
    assert worn.answer(ASKED, 5) == texts
    assert [len(own) for own in texts] == [3, 2, 0]


def test_answers_are_those_of_the_mixed_adapters(lora: StackedLora) -> None:
    """Every example is its own anchor, so that each gate is ½ and one fixed mix answers alike."""
    data = [[ASKED[0][0]], [ASKED[1][0]], []]
    anchors = [states(lora, ASKED[0][0]), states(lora, ASKED[1][0]), states(lora, ASKED[0][0])]
    fixed = Worn(lora, branches(lora), "0.5*R+0.5*L", max_length=256)
    assert gated(lora, anchors).answer(data, 8) == fixed.answer(data, 8)
    assert Worn(lora, branches(lora), "R", max_length=256).answer(data, 8) != fixed.answer(data, 8)


def test_the_branches_handed_over_stay_as_they_were(lora: StackedLora) -> None:
    worn = gated(lora, [states(lora, *examples("a", 2))] * 3)
    worn.loss(ASKED)
    assert all(torch.equal(worn.flats[b], flat) for b, flat in branches(lora).items())
