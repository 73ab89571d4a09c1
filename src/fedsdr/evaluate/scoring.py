"""Scores of deployed models: what a scorer may ask of them, and the scorer for any data (held-out
loss).

How like its reference an answer is: ROUGE-L and exact match, on clients' own held-out rows.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from fedsdr.data.render import Rendered, make_block, render, render_prompt
from fedsdr.distill.generate import Progress, Sampling, generate_stacked, no_progress
from fedsdr.model.lora import StackedLora
from fedsdr.parts.algorithm import PerInput, mix_weights
from fedsdr.training.step import summed_nll
from fedsdr.types import ClientData, Example, Split

LARGEST_STACK = 1 << 27  # numbers in one branch of all models that answer side by side


class Scorer(Protocol):
    """How good models are on clients' data. The best round is chosen by `best_on` over the
    validation split."""

    @property
    def best_on(self) -> str: ...
    @property
    def higher_is_better(self) -> bool: ...
    def score(
        self, model: Worn, clients: Sequence[ClientData], split: Split
    ) -> list[dict[str, float]]:
        """One mapping of measures per client."""
        ...


@dataclass(frozen=True, slots=True)
class Worn:
    """One model for all clients (`flats[branch]` is [1, P]), or one per client side by side ([K,
    P]). For a mix that depends on the input, `anchors[k]` are the last states of client k's own
    prompts."""

    lora: StackedLora
    flats: Mapping[str, Tensor]
    mix: str | PerInput
    _: KW_ONLY
    max_length: int = 1024
    batch: int = 128
    progress: Progress = no_progress
    anchors: Sequence[Tensor] = ()

    @property
    def models(self) -> int:
        return next(iter(self.flats.values())).shape[0] if self.flats else 1

    def _on(self) -> AbstractContextManager[None]:
        return self.lora.wear(self.flats, mix_weights(self.mix))

    def answer(self, asked: Sequence[Sequence[Example]], max_new_tokens: int) -> list[list[str]]:
        """Greedy answers, list by list; each list by its client's model, or all by the one."""
        if isinstance(self.mix, PerInput):
            split = [worn.answer(inputs, max_new_tokens) for worn, inputs in self._by_input(asked)]
            texts = iter([text for part in split for (text,) in part])
            return [[next(texts) for _ in client_examples] for client_examples in asked]
        prompts = [[render_prompt(self.lora.base, e) for e in examples] for examples in asked]
        single = self.models == 1
        stacked = [[p for client_prompts in prompts for p in client_prompts]] if single else prompts
        if not any(stacked):
            return [[] for _ in asked]
        sampling = Sampling(temperature=0.0, max_new_tokens=max_new_tokens)
        with torch.no_grad(), self._on():
            generated = generate_stacked(
                self.lora.base, stacked, sampling, batch=self.batch, progress=self.progress
            )
        texts = iter([g.text for part in generated for g in part])
        return [[next(texts) for _ in client_prompts] for client_prompts in prompts]

    def loss(self, examples: Sequence[Sequence[Example]]) -> list[tuple[float, int]]:
        """Per list: mean −log p over the response tokens, and their number."""
        if isinstance(self.mix, PerInput):
            single = iter(
                [f for worn, inputs in self._by_input(examples) for f in worn.loss(inputs)]
            )
            return [
                _pooled([next(single) for _ in client_examples]) for client_examples in examples
            ]
        rows = [
            [render(self.lora.base, e, self.max_length) for e in client_examples]
            for client_examples in examples
        ]
        if self.models == 1:
            return [self._summed([client_rows])[0] for client_rows in rows]
        return self._summed(rows)

    def _by_input(
        self, asked: Sequence[Sequence[Example]]
    ) -> Iterator[tuple[Worn, list[list[Example]]]]:
        """As many inputs at a time as fit, each with a model of its own: the gated branch counts by
        the input's likeness to the client's prompts, the others for what is left (FedDPA)."""
        assert isinstance(self.mix, PerInput)
        every = [(k, e) for k, client_examples in enumerate(asked) for e in client_examples]
        size = max(flat.shape[1] for flat in self.flats.values())
        share = max(1, min(self.batch, LARGEST_STACK // size))
        for first in range(0, len(every), share):
            some = every[first : first + share]
            states = self.lora.base.last_states([render_prompt(self.lora.base, e) for _, e in some])
            likeness = [
                torch.cosine_similarity(state[None], self.anchors[k]).mean()
                for state, (k, _) in zip(states, some, strict=True)
            ]
            gate = self.mix.highest * torch.stack(likeness).clamp_min(0.0)[:, None]
            flats = {b: flat[[k for k, _ in some]] for b, flat in self.flats.items()}
            for branch, flat in flats.items():
                columns = self.lora.layouts[branch].columns("B")
                flat[:, columns] *= (gate if branch == self.mix.gated else 1 - gate).to(flat.dtype)
            yield replace(self, flats=flats, mix=self.mix.mix), [[e] for _, e in some]

    def _summed(self, rows: Sequence[Sequence[Rendered]]) -> list[tuple[float, int]]:
        sums = torch.zeros(len(rows), dtype=torch.float64)
        longest = max(map(len, rows), default=0)
        share = max(1, self.batch // 4 // len(rows))
        rows = [sorted(client_rows, key=lambda r: len(r.ids)) for client_rows in rows]
        for first in range(0, longest, share):
            block = make_block(
                [client_rows[first : first + share] for client_rows in rows],
                self.lora.base.pad,
                self.lora.base.net.device,
            )
            with torch.no_grad(), self._on():
                sums += summed_nll(self.lora.base, block).double().cpu()
        tokens = [sum(r.trained for r in client_rows) for client_rows in rows]
        return [(s / max(1, n), n) for s, n in zip(sums.tolist(), tokens, strict=True)]


def _pooled(losses: Sequence[tuple[float, int]]) -> tuple[float, int]:
    tokens = sum(n for _, n in losses)
    return sum(mean * n for mean, n in losses) / max(1, tokens), tokens


@dataclass(frozen=True, slots=True)
class HeldOutLoss:
    """For any data: mean loss per response token on the held-out rows, and its perplexity."""

    best_on: str = field(default="loss")
    higher_is_better: bool = field(default=False)

    def score(
        self, model: Worn, clients: Sequence[ClientData], split: Split
    ) -> list[dict[str, float]]:
        examples = [c.validation if split == "validation" else c.test for c in clients]
        return [
            {"loss": loss, "perplexity": math.exp(min(loss, 50.0))} if tokens else {}
            for loss, tokens in model.loss(examples)
        ]


# Scripts that write no spaces count character by character.
_UNSPACED = "\u0e00-\u0eff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")


def rouge_l(reference: str, answer: str) -> float:
    """F1 of the longest common subsequence of words: 2·LCS / (m + n) (Lin, 2004, with β = 1). Lower
    case, without punctuation; two texts without words are alike."""
    left, right = _words(reference), _words(answer)
    if not left and not right:
        return 1.0
    return 2 * _common(left, right) / (len(left) + len(right))


def exact_match(reference: str, answer: str) -> float:
    """The same but for white space."""
    return float(reference.split() == answer.split())


@dataclass(frozen=True, slots=True)
class WithAnswers:
    """Another scorer's measures, and beside them the held-out loss and what the models' answers
    are like. Nothing that is answered is kept: the rows are the clients' own."""

    inner: Scorer
    max_new_tokens: int

    @property
    def best_on(self) -> str:
        return self.inner.best_on

    @property
    def higher_is_better(self) -> bool:
        return self.inner.higher_is_better

    def score(
        self, model: Worn, clients: Sequence[ClientData], split: Split
    ) -> list[dict[str, float]]:
        examples = [c.validation if split == "validation" else c.test for c in clients]
        answers = model.answer(examples, self._new_tokens(model, examples))
        return [
            {**loss, **inner, **likeness([e.response for e in rows], texts)}
            for loss, inner, rows, texts in zip(
                HeldOutLoss().score(model, clients, split),
                self.inner.score(model, clients, split),
                examples,
                answers,
                strict=True,
            )
        ]

    def _new_tokens(self, model: Worn, examples: Sequence[Sequence[Example]]) -> int:
        base = model.lora.base
        longest = max((len(render_prompt(base, e)) for rows in examples for e in rows), default=0)
        return max(1, min(self.max_new_tokens, base.max_length - longest))


def likeness(references: Sequence[str], answers: Sequence[str]) -> dict[str, float]:
    """Means over one client's rows; nothing where there are none."""
    pairs = list(zip(references, answers, strict=True))
    if not pairs:
        return {}
    return {
        "rouge_l": sum(rouge_l(*pair) for pair in pairs) / len(pairs),
        "exact_match": sum(exact_match(*pair) for pair in pairs) / len(pairs),
    }


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _common(left: Sequence[str], right: Sequence[str]) -> int:
    """Length of the longest common subsequence, row by row."""
    above = [0] * (len(right) + 1)
    for word in left:
        row = [0]
        for place, other in enumerate(right):
            row.append(above[place] + 1 if word == other else max(row[-1], above[place + 1]))
        above = row
    return above[-1]
