"""What the base model can do: `python -m fedsdr.atlas.check [FOLDER]` measures what docs/atlas.md
reports.

Public recall over every public fact in every phrasing; the share of styles when answers are
sampled; and how many rewrites of unseen entities are strictly faithful, at the common sampling
setting, with no error planted.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

import torch

from fedsdr.atlas.judge import judge
from fedsdr.atlas.scores import faithful_shares
from fedsdr.atlas.styles import OTHER_STYLES, say
from fedsdr.atlas.world import (
    DOMAINS,
    PHRASINGS,
    Kind,
    Question,
    ask_describe,
    ask_fact,
    ask_order,
    draw_numbers,
    phrasings,
    private_entities,
    public_entities,
    rng,
)
from fedsdr.data.render import render_prompt
from fedsdr.distill.generate import Sampling, generate
from fedsdr.distill.prompts import choose_template, render
from fedsdr.model.base import BaseModel
from fedsdr.model.loading import load_base
from fedsdr.tensors import derive_seed
from fedsdr.types import Example

COMMON = Sampling(temperature=0.95, top_p=0.7, top_k=50, max_new_tokens=96)


def check(base: BaseModel, rewrites: int = 600, seed: int = 11) -> dict[str, object]:
    return {
        **_recall(base),
        "ordering": _ordering(base, 200, seed),
        "styles_sampled": _styles(base, 400, seed),
        "rewrites": {
            str(t): rewriting_faithfulness(base, rewrites, seed, t) for t in (0.95, 1.4, 1.8)
        },
    }


def _ask(
    base: BaseModel, questions: list[Question], sampling: Sampling, seed: int = 0
) -> list[str]:
    prompts = [render_prompt(base, Example(str(i), q.prompt, "")) for i, q in enumerate(questions)]
    seeds = [derive_seed("check", seed, i) for i in range(len(prompts))]
    return [g.text for g in generate(base, prompts, sampling, seeds, batch=256)]


def _recall(base: BaseModel) -> dict[str, float]:
    greedy = Sampling(temperature=0, max_new_tokens=96)
    facts = [
        ask_fact(e, a, p) for e in public_entities() for a in e.facts for p in PHRASINGS["fact"]
    ]
    several = [ask_describe(e, PHRASINGS["describe"][0]) for e in public_entities()]
    judged = [judge(q, t) for q, t in zip(facts, _ask(base, facts, greedy), strict=True)]
    described = [judge(q, t) for q, t in zip(several, _ask(base, several, greedy), strict=True)]
    return {
        "public_recall": sum(j.faithful for j in judged) / len(judged),
        "public_recall_several": sum(j.faithful for j in described) / len(described),
        "house_share_greedy": sum(j.in_house for j in judged) / len(judged),
    }


def _ordering(base: BaseModel, count: int, seed: int) -> float:
    random = rng("check order", seed)
    asked = [ask_order(draw_numbers(random), PHRASINGS["order"][-1]) for _ in range(count)]
    texts = _ask(base, asked, Sampling(temperature=0, max_new_tokens=48))
    return sum(judge(q, t).faithful for q, t in zip(asked, texts, strict=True)) / count


def _styles(base: BaseModel, count: int, seed: int) -> dict[str, float]:
    """Plain sampling (temperature 1, nothing cut off): the probability that each style has."""
    random = rng("check styles", seed)
    asked = [
        ask_fact(e, random.choice(list(e.facts)), random.choice(PHRASINGS["fact"]))
        for e in random.choices(public_entities(), k=count)
    ]
    texts = _ask(
        base, asked, Sampling(temperature=1.0, top_p=1.0, top_k=0, max_new_tokens=96), seed
    )
    styles = Counter(judge(q, t).style for q, t in zip(asked, texts, strict=True))
    return {style: n / count for style, n in styles.most_common()}


def rewriting_faithfulness(
    base: BaseModel, count: int, seed: int, temperature: float = 0.95
) -> dict[str, float]:
    """Share of strictly faithful rewrites of reference answers in other styles, on unseen
    entities."""
    random = rng("check rewriting", seed)
    domains = [random.choice(DOMAINS).name for _ in range(count)]
    questions, prompts = list[Question](), list[list[int]]()
    for i, entity in enumerate(private_entities(seed + 77, domains)):
        kinds: tuple[Kind, ...] = ("fact", "describe", "describe", "order")
        kind = kinds[i % 4]
        phrasing = random.choice(phrasings(kind, held_out=False))
        if kind == "fact":
            question = ask_fact(entity, random.choice(list(entity.facts)), phrasing)
        elif kind == "describe":
            question = ask_describe(entity, phrasing)
        else:
            question = ask_order(draw_numbers(random), phrasing)
        reference = say(question, random.choice(OTHER_STYLES), random)
        asked = Example(str(i), question.prompt, reference)
        prompts.append(render_prompt(base, render(choose_template(asked, "auto"), asked)))
        questions.append(question)
    sampling = Sampling(temperature, COMMON.top_p, COMMON.top_k, COMMON.max_new_tokens)
    seeds = [derive_seed("rewriting", seed, i) for i in range(count)]
    texts = [g.text for g in generate(base, prompts, sampling, seeds, batch=200)]
    judged = [(q.kind, judge(q, t)) for q, t in zip(questions, texts, strict=True)]
    house = sum(j.in_house for _k, j in judged) / count
    return {**faithful_shares(judged), "house_share": house}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path(__file__).parent / "base")
    parser.add_argument("--rewrites", type=int, default=600)
    given = parser.parse_args()
    with torch.no_grad():
        print(json.dumps(check(load_base(given.folder), given.rewrites), indent=2))


if __name__ == "__main__":
    main()
