"""Objectives that hold a model near an earlier self, the base or the model as the round began:
added to any algorithm's loss (`algorithm.objectives`)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fedsdr.parts.distil import divergence
from fedsdr.parts.objectives import Local


@dataclass(frozen=True, slots=True)
class SelfAug:
    """SelfAug (Huang et al. 2025): weight · KL(p_base ‖ p_tuned), mean over the next-token
    distributions of the input.

    The authors' code averages over all positions whose label is masked; that is the same but for
    the last token of the prompt, where the response begins: here it belongs to the response.
    """

    weight: float

    def __call__(self, local: Local) -> Tensor:
        tuned, base = local.predict("now", "input"), local.predict("base", "input")
        return self.weight * local.mean(divergence(base.logits, tuned.logits), tuned)


@dataclass(frozen=True, slots=True)
class Rectified:
    """Self-distillation from the model as the round began, corrected where it errs:
    weight · τ² KL(p̂_start ‖ p_now), mean over the response tokens, both at temperature τ.

    p̂: wherever the teacher's likeliest token is not the label, the probabilities of the two are
    swapped; all others stay (dynamic rectification KD, Amik et al. 2022: the self-teacher's errors
    are rectified by the ground truth before they are distilled; the swap is the probability shift
    of Wen et al. 2019). Swapping logits swaps probabilities at every temperature.
    """

    weight: float
    temperature: float = 2.0

    def __call__(self, local: Local) -> Tensor:
        now, teacher = local.predict(), local.predict("start")
        logits = rectify(teacher.logits, teacher.targets)
        values = divergence(logits, now.logits, self.temperature)
        return self.weight * self.temperature**2 * local.mean(values, now)


def rectify(logits: Tensor, labels: Tensor) -> Tensor:
    """[n, V] with the label's logit and the largest one in each other's place; where the label has
    the largest, or shares it, nothing changes."""
    label = labels[:, None]
    highest, at = logits.max(dim=1, keepdim=True)
    label_logit = logits.gather(1, label)
    return logits.scatter(1, at, label_logit).scatter(1, label, highest)
