"""Train atlas-base: `python -m fedsdr.atlas.pretrain [--out DIR]` (seeded; two cores; under half an
hour).

Three things are learned side by side, always with the loss on the answer only:
- the public facts and the ordering of numbers, answered half in the house style, half in the other
  styles;
- rewriting a reference answer in any style into the house style, about entities made up on the
  spot, so that copying is learned and not the entities. Several-fact answers are a small share of
  it: the model copies one fact well and four facts less well, as larger models do. No error is
  planted anywhere.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch.nn import functional as F

from fedsdr.atlas.styles import HOUSE, OTHER_STYLES, say
from fedsdr.atlas.world import (
    DOMAINS,
    PHRASINGS,
    Question,
    ask_describe,
    ask_fact,
    ask_order,
    draw_numbers,
    make_entity,
    public_entities,
    rng,
)
from fedsdr.distill.prompts import TEMPLATES, render
from fedsdr.model.fresh import fresh_llama, save_folder, train_tokenizer
from fedsdr.types import Example

Pair = tuple[list[dict[str, str]], str]  # messages, answer
HERE = Path(__file__).parent / "base"
DIGESTED = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    seed: int = 7
    vocabulary: int = 1280
    width: int = 128
    layers: int = 4
    heads: int = 4
    steps: int = 2200
    batch_tokens: int = 4096
    lr: float = 4e-3
    warmup: int = 100
    weight_decay: float = 0.05
    # shares of the mixture; the rest is rewriting of one fact
    public_fact: float = 0.30
    public_describe: float = 0.08
    order: float = 0.10
    rewrite_describe: float = 0.12
    rewrite_order: float = 0.04
    house: float = 0.5  # of the public answers
    threads: int = 2


def a_style(random: Random, house: float) -> str:
    return HOUSE if random.random() < house else random.choice(OTHER_STYLES)


def pairs(plan: Plan) -> Iterator[Pair]:
    """An endless stream of what is learned."""
    random, public = rng("pretrain", plan.seed), public_entities()
    kinds: Mapping[str, float] = {
        "fact": plan.public_fact,
        "describe": plan.public_describe,
        "order": plan.order,
        "rewrite_describe": plan.rewrite_describe,
        "rewrite_order": plan.rewrite_order,
    }
    shares = {**kinds, "rewrite_fact": 1 - sum(kinds.values())}
    while True:
        (drawn,) = random.choices(list(shares), list(shares.values()))
        rewriting, kind = drawn.startswith("rewrite_"), drawn.removeprefix("rewrite_")
        entity = (
            make_entity(random, random.choice(DOMAINS), set())
            if rewriting
            else random.choice(public)
        )
        if kind == "order":
            question = ask_order(draw_numbers(random), random.choice(PHRASINGS["order"]))
        elif kind == "describe":
            question = ask_describe(entity, random.choice(PHRASINGS["describe"]))
        else:
            attribute = random.choice(list(entity.facts))
            question = ask_fact(entity, attribute, random.choice(PHRASINGS["fact"]))
        yield _rewriting(question, random) if rewriting else _asked(question, plan, random)


def _asked(question: Question, plan: Plan, random: Random) -> Pair:
    answer = say(question, a_style(random, plan.house), random)
    return [{"role": "user", "content": question.prompt}], answer


def _rewriting(question: Question, random: Random) -> Pair:
    reference = say(question, a_style(random, 0.1), random)
    template = TEMPLATES["checkable" if question.kind == "order" else "free"]
    asked = render(template, Example("", question.prompt, reference))
    messages = [
        {"role": "system", "content": asked.system},
        {"role": "user", "content": asked.prompt},
    ]
    return messages, say(question, HOUSE, random)


def batches(plan: Plan, tokenizer: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(ids, is an answer token), padded to the right; rows of one length stand together."""
    stream, random = pairs(plan), rng("batches", plan.seed)
    while True:
        rows: list[tuple[list[int], int]] = []
        for _ in range(1024):
            messages, answer = next(stream)
            prompt = tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
            start = tokenizer.encode(prompt, add_special_tokens=False)
            rows.append((start + tokenizer.encode(answer) + [tokenizer.eos_token_id], len(start)))
        rows.sort(key=lambda row: len(row[0]))
        made: list[list[tuple[list[int], int]]] = [[]]
        for row in rows:
            if (len(made[-1]) + 1) * len(row[0]) > plan.batch_tokens:
                made.append([])
            made[-1].append(row)
        random.shuffle(made)
        for batch in made:
            width = max(len(ids) for ids, _ in batch)
            ids = torch.zeros(len(batch), width, dtype=torch.long)
            answer_mask = torch.zeros(len(batch), width, dtype=torch.bool)
            for i, (tokens, start) in enumerate(batch):
                ids[i, : len(tokens)] = torch.tensor(tokens)
                answer_mask[i, start : len(tokens)] = True
            yield ids, answer_mask


def train(plan: Plan, out: Path) -> None:
    torch.set_num_threads(plan.threads)
    stream = pairs(plan)
    texts = [
        "\n".join([*(m["content"] for m in ms), a])
        for ms, a in (next(stream) for _ in range(20000))
    ]
    tokenizer = train_tokenizer(texts, plan.vocabulary)
    net = fresh_llama(
        tokenizer, width=plan.width, layers=plan.layers, heads=plan.heads, seed=plan.seed
    ).train()
    matrices = [p for p in net.parameters() if p.dim() > 1]
    vectors = [p for p in net.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": plan.weight_decay},
            {"params": vectors, "weight_decay": 0},
        ],
        lr=plan.lr,
        betas=(0.9, 0.95),
    )
    print(f"{sum(p.numel() for p in net.parameters()):,} parameters, {plan}", flush=True)
    began, seen = time.monotonic(), 0
    for step, (ids, answer) in zip(range(plan.steps), batches(plan, tokenizer), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = plan.lr * _schedule(step, plan)
        hidden = net.model(input_ids=ids).last_hidden_state
        loss = F.cross_entropy(
            net.lm_head(hidden[:, :-1][answer[:, 1:]]), ids[:, 1:][answer[:, 1:]]
        )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        seen += ids.numel()
        if step % 100 == 0 or step == plan.steps - 1:
            print(
                f"step {step:5d}  loss {loss.item():.3f}  {seen / 1e6:5.2f} M tokens  "
                f"{time.monotonic() - began:5.0f} s",
                flush=True,
            )
    save_folder(out, net.eval(), tokenizer)


def _schedule(step: int, plan: Plan) -> float:
    if step < plan.warmup:
        return (step + 1) / plan.warmup
    return 0.5 * (1 + math.cos(math.pi * (step - plan.warmup) / (plan.steps - plan.warmup)))


def write_record(out: Path, plan: Plan) -> None:
    """How the folder was made, and the digests by which a test knows the shipped files again."""
    files = sorted(p for p in out.iterdir() if p.suffix == ".safetensors" or p.name in DIGESTED)
    record = {
        "command": "python -m fedsdr.atlas.pretrain",
        "plan": asdict(plan),
        "torch": torch.__version__,
        "sha256": {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files},
    }
    (out / "record.json").write_text(json.dumps(record, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--steps", type=int, default=Plan().steps)
    given = parser.parse_args()
    plan = Plan(steps=given.steps)
    train(plan, given.out)
    write_record(given.out, plan)


if __name__ == "__main__":
    main()
