"""Clients of the embedded world: domain × style × entities, with the skew set by a few numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random

from fedsdr.atlas.styles import OTHER_STYLES, say
from fedsdr.atlas.world import (
    DOMAINS,
    ORDER_DOMAIN,
    Entity,
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
from fedsdr.errors import RecipeError, nearest
from fedsdr.recipe.limits import ATLAS_CLIENTS, ATLAS_EXAMPLES, MOST_EXAMPLES
from fedsdr.types import ClientData, Example

FACTS_PER_ENTITY = 5  # four single facts and one description


@dataclass(frozen=True, slots=True, kw_only=True)
class AtlasSpec:
    """`style_skew` 1: a client speaks in one style only, 0: in all; `domain_skew` likewise for its
    domain. `quantity_skew` s gives client k a share ∝ k^-s of the examples. `overlap` is the share
    of a client's entities that other clients have too (the same facts, said in another style)."""

    clients: int = ATLAS_CLIENTS
    examples: int = ATLAS_EXAMPLES
    style_skew: float = 1.0
    domain_skew: float = 1.0
    quantity_skew: float = 0.0
    overlap: float = 0.0
    order_share: float = 0.15


PRESETS: Mapping[str, AtlasSpec] = {
    "iid": AtlasSpec(style_skew=0.0, domain_skew=0.0),
    "mild": AtlasSpec(style_skew=0.5, domain_skew=0.5),
    "medium": AtlasSpec(style_skew=1.0, domain_skew=0.8),
    "severe": AtlasSpec(style_skew=1.0, domain_skew=1.0, quantity_skew=0.7),
}


@dataclass(frozen=True, slots=True)
class AtlasFederation:
    """The clients, and the truth about every one of their examples by id."""

    clients: tuple[ClientData, ...]
    truths: Mapping[str, Question]


def preset(name: str) -> AtlasSpec:
    if name not in PRESETS:
        raise RecipeError(
            f"atlas preset {name!r} is unknown; use one of "
            f"{', '.join(PRESETS)}.{nearest(name, PRESETS)}"
        )
    return PRESETS[name]


def build_federation(spec: AtlasSpec, seed: int) -> AtlasFederation:
    """The same spec and seed always give the same clients, whatever runs on them."""
    for field in ("style_skew", "domain_skew", "overlap", "order_share"):
        if not 0 <= getattr(spec, field) <= 1:
            raise RecipeError(
                f"data.atlas.{field} must lie between 0 and 1, not {getattr(spec, field)}"
            )
    if spec.clients < 1 or spec.examples < FACTS_PER_ENTITY or not spec.quantity_skew >= 0:
        raise RecipeError(
            f"data.atlas needs clients >= 1, examples >= {FACTS_PER_ENTITY} and quantity_skew >= 0"
        )
    if spec.clients * spec.examples > MOST_EXAMPLES:
        raise RecipeError(
            f"data.atlas: {spec.clients:,} clients of {spec.examples:,} examples are more than the "
            f"{MOST_EXAMPLES:,} examples that the embedded world has; lower one of them"
        )
    random, domains = rng("federation", seed), [d.name for d in DOMAINS]
    shares = [(k + 1) ** -spec.quantity_skew for k in range(spec.clients)]
    truths, whole = dict[str, Question](), sum(shares)
    sizes = [
        max(FACTS_PER_ENTITY, round(spec.examples * spec.clients * share / whole))
        for share in shares
    ]
    shared = list(private_entities(seed + 1_000_003, [d for d in domains for _ in range(8)]))
    homes = [domains[k % len(domains)] for k in range(spec.clients)]
    wanted = [
        [
            home if random.random() < spec.domain_skew else random.choice(domains)
            for _ in range(max(1, size // FACTS_PER_ENTITY))
        ]
        for home, size in zip(homes, sizes, strict=True)
    ]
    entities = private_entities(seed, [d for client_domains in wanted for d in client_domains])
    clients = list[ClientData]()
    for k, client_domains in enumerate(wanted):
        held = [next(entities) for _ in client_domains]
        for i in range(len(held)):
            if random.random() < spec.overlap:
                held[i] = random.choice([e for e in shared if e.domain == held[i].domain])
        maker = _Maker(
            f"c{k}", OTHER_STYLES[k % len(OTHER_STYLES)], spec, rng("client", seed, k), truths
        )
        clients.append(
            maker.client(list(dict.fromkeys(e.name for e in held)), {e.name: e for e in held})
        )
    return AtlasFederation(tuple(clients), truths)


def public_questions(count: int, seed: int = 0) -> tuple[tuple[Example, Question], ...]:
    """A fixed sample of the public facts, in held-out phrasings."""
    random = rng("public questions", seed)
    every = [(e, a) for e in public_entities() for a in e.facts]
    picked = random.sample(every, min(count, len(every)))
    asked = [ask_fact(e, a, random.choice(phrasings("fact", held_out=True))) for e, a in picked]
    return tuple(
        (
            Example(
                f"public-{i}", q.prompt, say(q, "house", random), domain=q.domain, origin="public"
            ),
            q,
        )
        for i, q in enumerate(asked)
    )


@dataclass(slots=True)
class _Maker:
    """Writes one client's examples."""

    client_id: str
    style: str
    spec: AtlasSpec
    random: Random
    truths: dict[str, Question]

    def client(self, names: list[str], entities: Mapping[str, Entity]) -> ClientData:
        train, validation, test = list[Question](), list[Question](), list[Question]()
        for name in names:
            entity = entities[name]
            for attribute in entity.facts:
                trained, other = self.random.sample(phrasings("fact", held_out=False), 2)
                unseen = self.random.choice(phrasings("fact", held_out=True))
                train.append(ask_fact(entity, attribute, trained))
                validation.append(ask_fact(entity, attribute, other))
                test.append(ask_fact(entity, attribute, unseen))
            train.append(ask_describe(entity, self._phrasing("describe", False)))
            test.append(ask_describe(entity, self._phrasing("describe", True)))
        if any(entities[n].domain == ORDER_DOMAIN for n in names):
            count = round(self.spec.order_share * len(train))
            train += [self._order(False) for _ in range(count)]
            test += [self._order(True) for _ in range(count // 2)]
        self.random.shuffle(train)
        sample = self.random.sample(validation, min(len(validation), 16))
        return ClientData(
            self.client_id,
            self._examples("train", train),
            self._examples("validation", sample),
            self._examples("test", test),
        )

    def _phrasing(self, kind: Kind, held_out: bool) -> str:
        return self.random.choice(phrasings(kind, held_out))

    def _order(self, held_out: bool) -> Question:
        return ask_order(draw_numbers(self.random), self._phrasing("order", held_out))

    def _examples(self, split: str, questions: list[Question]) -> tuple[Example, ...]:
        made = list[Example]()
        for number, question in enumerate(questions):
            mixed = self.random.random() >= self.spec.style_skew
            style = self.random.choice(OTHER_STYLES) if mixed else self.style
            name = f"{self.client_id}-{split}-{number:04d}"
            self.truths[name] = question
            response = say(question, style, self.random)
            made.append(
                Example(name, question.prompt, response, domain=question.domain, origin=style)
            )
        return tuple(made)
