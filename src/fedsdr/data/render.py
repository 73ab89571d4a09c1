"""Examples -> tokens, with a weight per token: 0 for what is only read, 1 for what is trained.

Masks come from rendering prefixes: the conversation up to the response, opened for the assistant,
must be a prefix of the whole conversation. Prompt and response are tokenised apart, so that
training sees exactly what generation will see.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from fedsdr.errors import DataError
from fedsdr.types import Example


class ChatTokenizer(Protocol):
    """What rendering needs of a model folder."""

    @property
    def eos(self) -> int: ...
    def chat(self, messages: Sequence[dict[str, str]], opened: bool) -> str: ...
    def encode(self, text: str) -> list[int]: ...


@dataclass(frozen=True, slots=True)
class Rendered:
    """One example as tokens; `weights[i]` weighs the prediction of `ids[i]`."""

    ids: tuple[int, ...]
    weights: tuple[float, ...]
    truncated: bool = False

    @property
    def trained(self) -> int:
        return sum(w > 0 for w in self.weights)


def messages_of(example: Example) -> list[dict[str, str]]:
    system = [{"role": "system", "content": example.system}] if example.system else []
    turns = [{"role": m.role, "content": m.content} for m in example.history]
    return [*system, *turns, {"role": "user", "content": example.prompt}]


def render_prompt(tokenizer: ChatTokenizer, example: Example) -> list[int]:
    """The conversation up to the response, opened for the assistant."""
    return tokenizer.encode(tokenizer.chat(messages_of(example), opened=True))


def render(tokenizer: ChatTokenizer, example: Example, max_length: int) -> Rendered:
    """Prompt and response; what exceeds `max_length` is cut from the response's end."""
    messages = messages_of(example)
    prompt = tokenizer.chat(messages, opened=True)
    whole = tokenizer.chat(
        [*messages, {"role": "assistant", "content": example.response}], opened=False
    )
    if not whole.startswith(prompt):
        raise DataError(
            "the chat template renders earlier turns differently once an answer follows, so the "
            "trained tokens "
            "cannot be told apart; set model.chat_template: plain"
        )
    start, answer = tokenizer.encode(prompt), tokenizer.encode(whole[len(prompt) :])
    if tokenizer.eos in answer:
        answer = answer[: answer.index(tokenizer.eos) + 1]
    else:
        answer.append(tokenizer.eos)
    if len(start) >= max_length:
        raise DataError(
            f"example {example.id!r}: its prompt alone fills model.max_length ({len(start)} of "
            f"{max_length} "
            "tokens), so no token of the response would be trained; raise max_length or drop the "
            "row"
        )
    ids = (start + answer)[:max_length]
    weights = [0.0] * len(start) + [1.0] * (len(ids) - len(start))
    return Rendered(tuple(ids), tuple(weights), len(start) + len(answer) > max_length)
