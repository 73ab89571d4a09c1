"""The proof of a merge: the folder that was written, read again, must say what base + adapter say.

Both are asked held-out prompts, and compared where it counts: in the logits along each prompt's end
and the greedy answer of base + adapter. How far they may differ depends on the dtype; but always
less than half of what the adapter itself changes, or else the bare base would pass as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsdr.data.render import render_prompt
from fedsdr.distill.generate import Sampling, generate
from fedsdr.errors import ModelError
from fedsdr.model.base import BaseModel
from fedsdr.types import Example

PROMPTS, ANSWER, PROMPT_END = 16, 24, 32  # how many, and how many tokens of each are compared
# Of the largest logit. fp16 and bf16 keep 11 and 8 bits of every weight and activation.
TOLERANCE = {"float64": 1e-6, "float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}
EXACT = ("float64", "float32")  # here every greedy answer must be equal; in the others, half


@dataclass(frozen=True, slots=True)
class Proof:
    """Largest differences of logits: of merged and base + adapter, and of base + adapter and base;
    and how many greedy answers are equal."""

    dtype: str
    prompts: int
    equal_answers: int
    difference: float
    tolerance: float
    effect: float

    def failure(self) -> str:
        """What is wrong, or nothing."""
        if not self.difference <= self.tolerance:
            return (
                f"its logits differ by up to {self.difference:.3g} from those of base + adapter, "
                f"more than the {self.tolerance:.3g} that {self.dtype} allows"
            )
        if self.difference > self.effect / 2 and self.effect > 0:
            return (
                f"{self.dtype} changes its logits by up to {self.difference:.3g}, the adapter by "
                f"no more than {self.effect:.3g}: too little to be told apart; choose a wider "
                "--dtype"
            )
        needed = self.prompts if self.dtype in EXACT else (self.prompts + 1) // 2
        if self.equal_answers < needed:
            return (
                f"only {self.equal_answers} of {self.prompts} greedy answers are those of base + "
                f"adapter, {needed} have to be in {self.dtype}"
            )
        return ""


@dataclass(frozen=True, slots=True)
class Heard:
    """What base + adapter says: its answers, and its logits along `rows` (prompt and answer)."""

    examples: Sequence[Example]
    prompts: list[list[int]]
    rows: list[list[int]]
    answers: list[str]
    logits: list[Tensor]


def listen(base: BaseModel, examples: Sequence[Example]) -> Heard:
    """Ask base + adapter, whose answers the merged model will be held to."""
    fit = [e for e in examples if len(render_prompt(base, e)) + ANSWER <= base.max_length]
    if not fit:
        raise ModelError("no held-out prompt fits the model, so that a merge cannot be proved")
    asked = fit[:PROMPTS]
    prompts = [render_prompt(base, e) for e in asked]
    answers = _answers(base, prompts)
    rows = [(p + base.encode(a))[: base.max_length] for p, a in zip(prompts, answers, strict=True)]
    return Heard(asked, prompts, rows, answers, logits_along(base, prompts, rows))


@torch.inference_mode()
def logits_along(
    base: BaseModel, prompts: Sequence[Sequence[int]], rows: Sequence[Sequence[int]]
) -> list[Tensor]:
    logits: list[Tensor] = []
    for prompt, row in zip(prompts, rows, strict=True):
        keep = torch.arange(max(0, len(prompt) - PROMPT_END), len(row), device=base.net.device)
        ids = torch.tensor([row], device=base.net.device)
        logits.append(base.logits(ids, keep=keep)[0].double().cpu())
    return logits


def compare(merged: BaseModel, heard: Heard, plain: Sequence[Tensor], dtype: str) -> Proof:
    """Hold the merged model, as read from its folder, to what was heard; `plain`: the logits of the
    base alone."""
    if [render_prompt(merged, e) for e in heard.examples] != heard.prompts:
        raise ModelError("the merged folder's tokenizer renders the prompts differently")
    answers = _answers(merged, heard.prompts)
    equal = sum(a == b for a, b in zip(answers, heard.answers, strict=True))
    logits = logits_along(merged, heard.prompts, heard.rows)
    scale = max(1.0, *(float(t.abs().max()) for t in heard.logits))
    return Proof(
        dtype,
        len(answers),
        equal,
        _largest(logits, heard.logits),
        TOLERANCE[dtype] * scale,
        _largest(heard.logits, plain),
    )


def _answers(base: BaseModel, prompts: Sequence[Sequence[int]]) -> list[str]:
    sampling = Sampling(temperature=0.0, max_new_tokens=ANSWER)
    return [g.text for g in generate(base, prompts, sampling, batch=PROMPTS)]


def _largest(left: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    """NaN anywhere is NaN, which no tolerance allows."""
    gaps = [(a - b).abs().max() for a, b in zip(left, right, strict=True)]
    return float(torch.stack(gaps).max())
