"""A base and whatever it wears, as lm-eval asks models.

Tokens, truncation and rolling windows are as in lm-eval's own model for Hugging Face (`HFLM`), so
that figures can be set beside published ones; a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor

from fedsdr.errors import TaskError
from fedsdr.model.base import BaseModel

UNSTATED_LENGTH = 2048  # HFLM's, for models whose configuration names none
NEW_TOKENS = 256  # HFLM's, for tasks that name no limit
LARGEST_LOGITS = 1 << 28  # numbers of one forward pass: 1 GiB in fp32


class WornLM(TemplateLM):
    def __init__(self, base: BaseModel, batch: int, chat: bool = False) -> None:
        super().__init__()
        self.base, self.batch, self.chat = base, batch, chat
        positions = base.max_length
        self.max_length = positions if positions < 1 << 30 else UNSTATED_LENGTH

    @property
    def eot_token_id(self) -> int:
        return self.base.eos

    @property
    def prefix_token_id(self) -> int:
        begin = self.base.tokenizer.bos_token_id
        return self.base.eos if begin is None else cast(int, begin)

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """With the tokenizer's own special tokens, unless the text begins with them already; a
        conversation as in training, with those that its template writes."""
        if self.chat:
            return self.base.encode(string)
        if add_special_tokens is None:
            add_special_tokens = not string.startswith(
                cast(str, self.base.tokenizer.decode([self.prefix_token_id]))
            )
        return self.base.tokenizer.encode(string, add_special_tokens=add_special_tokens)

    @property
    def tokenizer_name(self) -> str:
        return self.base.path.name

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        return self.base.template if chat_template else None

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        if add_generation_prompt:
            return self.base.chat(chat_history, opened=True)
        *before, begun = chat_history  # the answer is begun for the model, not ended
        return self.base.chat(before, opened=True) + begun["content"]

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[tuple[float, bool]]:
        return super().loglikelihood(requests, disable_tqdm)

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[float]:
        pieces = list[tuple[Any, list[int], list[int]]]()
        owners = list[int]()
        for number, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0])
            windows = get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, 1)
            for window in windows:
                pieces.append((None, *make_disjoint_window(window)))
                owners.append(number)
        sums = [0.0] * len(requests)
        for owner, (score, _) in zip(owners, self._loglikelihood_tokens(pieces), strict=True):
            sums[owner] += score
        return sums

    @torch.no_grad()
    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Requests that differ in their last token only, the letters of a choice, share a row."""
        rows = dict[tuple[int, ...], list[int]]()
        scores = [(0.0, True)] * len(requests)  # of an empty continuation
        for number, (_, context, continuation) in enumerate(requests):
            if len(continuation) > self.max_length:
                raise TaskError(
                    f"a text to score has {len(continuation)} tokens, more than the model's "
                    f"{self.max_length} positions"
                )
            if continuation:
                whole = (context + continuation)[-(self.max_length + 1) :]
                rows.setdefault(tuple(whole[:-1]), []).append(number)
        scored = {row: max(len(requests[i][2]) for i in numbers) for row, numbers in rows.items()}
        for some in self._batches(scored):
            logs = self._log_probabilities(some, [scored[row] for row in some])
            for row, log in zip(some, logs, strict=True):
                for number in rows[row]:
                    wanted = torch.tensor(requests[number][2], device=log.device)
                    tail = log[-len(wanted) :]
                    score = float(tail.gather(1, wanted[:, None]).double().sum())
                    scores[number] = (score, bool((tail.argmax(-1) == wanted).all()))
        return scores

    def _batches(self, scored: Mapping[tuple[int, ...], int]) -> Iterator[list[tuple[int, ...]]]:
        """Rows of like length together, as many as `batch` and the size of their logits allow."""
        vocabulary = self.base.net.get_input_embeddings().get_parameter("weight").shape[0]
        batch, logits = list[tuple[int, ...]](), 0
        for row in sorted(scored, key=len, reverse=True):
            more = scored[row] * vocabulary
            if batch and (len(batch) == self.batch or logits + more > LARGEST_LOGITS):
                yield batch
                batch, logits = [], 0
            batch.append(row)
            logits += more
        if batch:
            yield batch

    def _log_probabilities(
        self, rows: Sequence[tuple[int, ...]], counts: Sequence[int]
    ) -> Sequence[Tensor]:
        """[count, V] each: the log-probabilities after a row's last `count` tokens."""
        width, device = max(map(len, rows)), self.base.net.device
        ids = torch.full((len(rows), width + 1), self.base.pad)
        chosen = torch.zeros(len(rows), width, dtype=torch.bool)
        for i, (row, count) in enumerate(zip(rows, counts, strict=True)):
            ids[i, : len(row)] = torch.tensor(row)
            chosen[i, len(row) - count : len(row)] = True
        lengths = torch.tensor([len(row) + 1 for row in rows])
        out, _ = self.base.predictions(ids.to(device), lengths.to(device), chosen.to(device))
        logits = out.logits()
        wide = torch.promote_types(logits.dtype, torch.float32)
        return logits.to(wide).log_softmax(-1).split(list(counts))

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        groups = dict[tuple[tuple[str, ...], int], list[int]]()
        for number, request in enumerate(requests):
            groups.setdefault(_greedy(request), []).append(number)
        texts = dict[int, str]()
        for (until, most), group in groups.items():
            room = self.max_length - most
            if room < 1:
                raise TaskError(
                    f"{requests[group[0]].task_name}: asks for {most} new tokens, and the model "
                    f"has {self.max_length} positions; set generation_kwargs.max_gen_toks in its "
                    "YAML"
                )
            prompts = {i: self.tok_encode(requests[i].args[0])[-room:] for i in group}
            order = sorted(group, key=lambda i: len(prompts[i]), reverse=True)
            for first in range(0, len(order), self.batch):
                some = order[first : first + self.batch]
                answers = self._answer([prompts[i] for i in some], until, most)
                texts.update(zip(some, answers, strict=True))
        return [texts[i] for i in range(len(requests))]

    @torch.no_grad()
    def _answer(
        self, prompts: Sequence[Sequence[int]], until: Sequence[str], most: int
    ) -> list[str]:
        """Greedy answers as they stand (white space decides where a stop text cuts), each until its
        first stop text or token."""
        base, device = self.base, self.base.net.device
        width = max(map(len, prompts))
        ids = torch.full((len(prompts), width), base.pad)
        mask = torch.zeros_like(ids)
        for i, prompt in enumerate(prompts):
            ids[i, width - len(prompt) :] = torch.tensor(prompt)
            mask[i, width - len(prompt) :] = 1
        ids, mask, cache = ids.to(device), mask.to(device), None
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        answers: list[list[int]] = [[] for _ in prompts]
        stops = base.stops
        open_rows = set(range(len(prompts)))
        tail = (
            max((len(stop.encode()) for stop in until), default=0) + 1
        )  # a token: a byte at least
        for _ in range(most):
            logits, cache = base.generation(ids, mask, positions, cache)
            drawn = logits.argmax(-1)
            for i, token in enumerate(drawn.tolist()):
                if i not in open_rows:
                    continue
                if token in stops:
                    open_rows.discard(i)
                    continue
                answers[i].append(token)
                if until and _stopped(self._text(answers[i][-tail:]), until):
                    open_rows.discard(i)
            if not open_rows:
                break
            ids, positions = drawn[:, None], positions[:, -1:] + 1
            mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
        return [_cut(self._text(answer), until) for answer in answers]

    def _text(self, tokens: list[int]) -> str:
        return cast(str, self.base.tokenizer.decode(tokens, skip_special_tokens=True))


def _greedy(request: Instance) -> tuple[tuple[str, ...], int]:
    """Stop texts and the most new tokens; sampling and beams would be other answers."""
    _, given = cast("tuple[str, dict[str, Any]]", request.args)
    asked = cast("dict[str, Any]", normalize_gen_kwargs(given, NEW_TOKENS))
    if asked.get("do_sample") or asked.get("num_beams", 1) != 1:
        raise TaskError(
            f"{request.task_name}: asks for sampling or beams, and answers are greedy here; set "
            "generation_kwargs.do_sample: false in its YAML"
        )
    return tuple(filter(None, asked["until"])), asked["max_gen_toks"]


def _stopped(text: str, until: Sequence[str]) -> bool:
    return any(stop in text for stop in until)


def _cut(text: str, until: Sequence[str]) -> str:
    for stop in until:
        text = text.partition(stop)[0]
    return text
