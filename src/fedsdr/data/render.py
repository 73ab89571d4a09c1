"""Examples -> tokens, with a weight per token: 0 for what is only read, 1 for what is trained.

Masks come from rendering prefixes: the conversation up to each answer of the assistant, opened for
it, must be a prefix of the whole conversation. The pieces between these places are tokenised apart,
so that training sees exactly what generation will see. An answer is trained with the token that
ends it.

Which examples a client sees in which step, and K clients' rows as one right-padded block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, Protocol

import torch
from torch import Tensor

from fedsdr.errors import DataError
from fedsdr.tensors import generator
from fedsdr.types import Example

Conversation = list[dict[str, str]]


class ChatTokenizer(Protocol):
    """What rendering needs of a model folder."""

    @property
    def eos(self) -> int: ...
    @property
    def stops(self) -> frozenset[int]: ...
    @property
    def train_on(self) -> Literal["last", "all"]: ...
    def chat(self, messages: Sequence[dict[str, str]], opened: bool) -> str: ...
    def encode(self, text: str, continued: bool = False) -> list[int]: ...


@dataclass(frozen=True, slots=True)
class Rendered:
    """One example as tokens; `weights[i]` weighs the prediction of `ids[i]`."""

    ids: tuple[int, ...]
    weights: tuple[float, ...]
    truncated: bool = False

    @property
    def trained(self) -> int:
        return sum(w > 0 for w in self.weights)

    @property
    def prompt(self) -> int:
        """How many tokens stand before the response."""
        return max((i for i, w in enumerate(self.weights, 1) if w == 0), default=0)


def messages_of(example: Example) -> Conversation:
    system = [{"role": "system", "content": example.system}] if example.system else []
    turns = [{"role": m.role, "content": m.content} for m in example.history]
    return [*system, *turns, {"role": "user", "content": example.prompt}]


def render_prompt(tokenizer: ChatTokenizer, example: Example) -> list[int]:
    """The conversation up to the response, opened for the assistant."""
    messages = messages_of(example)
    pieces = _pieces(tokenizer, messages, tokenizer.chat(messages, opened=True))
    return [token for piece in pieces for token in piece]


def render(tokenizer: ChatTokenizer, example: Example, max_length: int) -> Rendered:
    """Prompt and response; what exceeds `max_length` is cut from the response's end."""
    messages = [*messages_of(example), {"role": "assistant", "content": example.response}]
    stops, whole = tokenizer.stops, tokenizer.chat(messages, opened=False)
    start, *earlier, last = _pieces(tokenizer, messages, whole)
    ids, weights = list(start), [0.0] * len(start)
    for piece in earlier:
        answer = _answer(piece, stops) if tokenizer.train_on == "all" else []
        if answer is None:
            raise DataError(
                "the chat template does not mark where an answer ends, so earlier answers cannot "
                "be trained on; set model.train_on: last, or name another model.chat_template"
            )
        ids += piece
        weights += [1.0] * len(answer) + [0.0] * (len(piece) - len(answer))
    if len(ids) >= max_length:
        raise DataError(
            f"example {example.id!r}: its prompt alone fills model.max_length ({len(ids)} of "
            f"{max_length} "
            "tokens), so no token of the response would be trained; raise max_length or drop the "
            "row (data.overlong: drop does)"
        )
    answer = _answer(last, stops) or [*last, tokenizer.eos]
    ids, weights = ids + answer, weights + [1.0] * len(answer)
    return Rendered(tuple(ids[:max_length]), tuple(weights[:max_length]), len(ids) > max_length)


def _pieces(tokenizer: ChatTokenizer, messages: Conversation, whole: str) -> list[list[int]]:
    """The conversation as tokens, cut at the places where the assistant begins to speak."""
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    places = [0]
    for number, turn in enumerate(turns, 1):
        opened = tokenizer.chat(messages[:turn], opened=True)
        if not whole.startswith(opened):
            raise _changes(f"what stands before the assistant's turn {number}")
        places.append(len(opened))
    texts = [whole[start:end] for start, end in pairwise([*places, len(whole)])]
    for number, turn in enumerate(turns, 1):
        if turn + 1 == len(messages):
            break
        closed = tokenizer.chat(messages[: turn + 1], opened=False)[places[number] :]
        if not _same_answer(tokenizer, closed, texts[number]):
            raise _changes(f"the assistant's turn {number}")
    return [tokenizer.encode(text, continued=number > 0) for number, text in enumerate(texts)]


def _same_answer(tokenizer: ChatTokenizer, closed: str, followed: str) -> bool:
    """Whether an answer reads the same at the conversation's end and with more after it."""
    ended = _answer(tokenizer.encode(closed, continued=True), tokenizer.stops)
    if ended is None:
        return followed.startswith(closed.rstrip())
    return ended == _answer(tokenizer.encode(followed, continued=True), tokenizer.stops)


def _answer(piece: Sequence[int], stops: frozenset[int]) -> list[int] | None:
    """The piece up to the token that ends the turn; None where there is none."""
    end = next((i for i, token in enumerate(piece, 1) if token in stops), None)
    return None if end is None else list(piece[:end])


def _changes(what: str) -> DataError:
    return DataError(
        f"the chat template renders earlier turns differently as a conversation grows: {what} "
        "changes, so that training would not see what generation sees; "
        "set model.chat_template: plain, or name another one there"
    )


@dataclass(frozen=True, slots=True)
class Block:
    """Rows of K clients, client by client, equally many each; an empty row has no weight."""

    ids: Tensor  # [K * rows, T]
    weights: Tensor  # [K * rows, T], for the prediction of ids at the same place
    lengths: Tensor  # [K * rows]
    clients: int


def draw_steps(examples: int, batch: int, steps: int, *seed: str | int) -> list[list[int]]:
    """The example numbers of every step: epoch after epoch, each a new permutation."""
    if examples < 1 or batch < 1:  # a permutation of nothing adds no step, ever
        raise DataError(f"there are no steps of {batch} out of {examples} rows")
    random, drawn = generator(*seed), list[list[int]]()
    while len(drawn) < steps:
        order = torch.randperm(examples, generator=random).tolist()
        drawn += [order[i : i + batch] for i in range(0, examples, batch)]
    return drawn[:steps]


def make_block(rows: Sequence[Sequence[Rendered]], pad: int, device: torch.device) -> Block:
    """`rows[k]` are client k's; shorter lists are filled with empty rows."""
    per_client = max(map(len, rows))
    width = max((len(r.ids) for client_rows in rows for r in client_rows), default=2)
    ids = torch.full((len(rows) * per_client, width), pad, dtype=torch.long)
    weights = torch.zeros(ids.shape, dtype=torch.float64)
    lengths = torch.zeros(len(ids), dtype=torch.long)
    for k, client_rows in enumerate(rows):
        for j, row in enumerate(client_rows, start=k * per_client):
            ids[j, : len(row.ids)] = torch.tensor(row.ids)
            weights[j, : len(row.ids)] = torch.tensor(row.weights, dtype=torch.float64)
            lengths[j] = len(row.ids)
    return Block(ids.to(device), weights.to(device), lengths.to(device), len(rows))
