"""Examples -> tokens, with a weight per token: 0 for what is only read, 1 for what is trained.

Masks come from rendering prefixes: the conversation up to each answer of the assistant, opened for
it, must be a prefix of the whole conversation. The pieces between these places are tokenised apart,
so that training sees exactly what generation will see. An answer is trained with the token that
ends it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, Protocol

from fedsdr.errors import DataError
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
