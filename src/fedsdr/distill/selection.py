"""Which rewrites are trained on, and which examples fall back to their original response."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedsdr.distill.checks import (
    behaviour_reasons,
    fact_reasons,
    lost_answer,
    prompt_text,
    surface_reasons,
)
from fedsdr.distill.task import failed_tests, form_of, task_reasons
from fedsdr.errors import SandboxError
from fedsdr.model.classifier import entailment_class, load_classifier
from fedsdr.parts.views import Rule, Selection
from fedsdr.sandbox import available
from fedsdr.types import Example

Reasons = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Draft:
    """One sampled rewrite; `hit_limit` when generation stopped at its token limit."""

    text: str
    hit_limit: bool


@dataclass(frozen=True, slots=True)
class Choice:
    """The response to train on. `draw` is the draft kept; None, and the `reasons`, if none was."""

    text: str
    kept: bool
    draw: int | None
    reasons: Reasons


def refuse_unready(selection: Selection) -> None:
    """What a rule asks of this machine is looked for before anything runs, not after hours."""
    if selection.tests and (refusal := available()) is not None:
        raise SandboxError(f"selection {selection.name!r} runs model-written code: {refusal}")
    if selection.classifier is not None:
        entailment_class(selection.classifier)


def judge(selection: Selection, drafts: Sequence[tuple[Example, Draft]]) -> list[Reasons]:
    """Why each draft may not be trained on; nothing when it may.

    An empty rewrite passes nowhere, not even `none`: there would be no token to train on. What
    takes time, a sandbox or a classifier, is only asked about drafts that pass all else; the
    classifier about all of these at once.
    """
    verdicts = [_own_reasons(selection, example, draft) for example, draft in drafts]
    if selection.classifier is not None:
        rest = [
            i for i, reasons in enumerate(verdicts) if not reasons and _says(selection, drafts[i])
        ]
        classified = _lost_or_invented(selection, [drafts[i] for i in rest])
        for i, reasons in zip(rest, classified, strict=True):
            verdicts[i] = reasons
    return verdicts


def passes(selection: Selection, example: Example, draft: Draft) -> Reasons:
    """The same of one draft."""
    return judge(selection, [(example, draft)])[0]


def select(selection: Selection, example: Example, drafts: Sequence[Draft]) -> Choice:
    """The first of the drafts that passes, else the original with the reasons of all drafts."""
    if not drafts:
        raise ValueError(f"example {example.id!r}: there is no draft to select from")
    judged = judge(selection, [(example, draft) for draft in drafts[: selection.draws]])
    return choose(example, drafts, judged)


def choose(example: Example, drafts: Sequence[Draft], judged: Sequence[Reasons]) -> Choice:
    """The same, of drafts that were judged."""
    reasons: dict[str, None] = {}
    for draw, refused in enumerate(judged):
        if not refused:
            return Choice(drafts[draw].text, kept=True, draw=draw, reasons=())
        reasons |= dict.fromkeys(refused)
    return Choice(example.response, kept=False, draw=None, reasons=tuple(reasons))


def _own_reasons(selection: Selection, example: Example, draft: Draft) -> Reasons:
    refused = _cheap_reasons(selection.rule, example, draft)
    if selection.tests and not refused:
        return failed_tests(example, draft.text)
    return refused


def _cheap_reasons(rule: Rule, example: Example, draft: Draft) -> Reasons:
    original, rewrite = example.response, draft.text
    if rule == "none":
        return () if rewrite.strip() else ("empty",)
    reasons = surface_reasons(original, rewrite, draft.hit_limit)
    if reasons == ("empty",):
        return reasons
    if rule == "task":
        behaviour = behaviour_reasons(original, rewrite)
        answer = task_reasons(original, rewrite, prompt_text(example))
        return tuple(dict.fromkeys((*reasons, *behaviour, *answer)))
    reasons = (*reasons, *lost_answer(original, rewrite))
    return reasons if rule == "sdft" else (*reasons, *fact_reasons(example, rewrite))


def _says(selection: Selection, draft: tuple[Example, Draft]) -> bool:
    """Whether there is something to entail: a call or a label entails nothing."""
    example, (original, rewrite) = draft[0], (draft[0].response, draft[1].text)
    if rewrite == original:
        return False
    return selection.rule != "task" or form_of(original, prompt_text(example)) == "prose"


def _lost_or_invented(
    selection: Selection, drafts: Sequence[tuple[Example, Draft]]
) -> list[Reasons]:
    assert selection.classifier is not None
    pairs = list[tuple[str, str]]()
    for example, draft in drafts:
        # The question belongs to both sides: a short answer says little without it.
        prompt, original = prompt_text(example), example.response
        pairs += [(f"{prompt}\n{draft.text}", original), (f"{prompt}\n{original}", draft.text)]
    odds = load_classifier(selection.classifier).entailments(pairs) if pairs else []
    return [
        (
            *(("lost-meaning",) if back < selection.entailed else ()),
            *(("invented-meaning",) if forth < selection.entailed else ()),
        )
        for back, forth in zip(odds[::2], odds[1::2], strict=True)
    ]
