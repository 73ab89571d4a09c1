"""The embedded world: domains, entities, facts, and the questions one can ask about them.

Names are made of syllables, so there are as many unseen entities as one wants; values come from
closed sets, so every statement can be judged exactly. Public facts are the same in every world (the
base model knows them); private entities derive from the world's seed, and no model has seen them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Literal

from fedsdr.errors import RecipeError
from fedsdr.tensors import derive_seed

Kind = Literal["fact", "describe", "order"]


@dataclass(frozen=True, slots=True)
class Domain:
    name: str
    kind: str
    attributes: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Entity:
    name: str
    domain: str
    facts: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, and the truth about it: what a judge needs, whatever the answer looks like."""

    prompt: str
    kind: Kind
    domain: str
    name: str = ""
    asked: tuple[tuple[str, str], ...] = ()  # (attribute, true value)
    facts: tuple[tuple[str, str], ...] = ()  # all that is true of the entity
    numbers: tuple[int, ...] = ()  # for "order": as given


def _set(words: str) -> tuple[str, ...]:
    return tuple(words.split())


DOMAINS: tuple[Domain, ...] = (
    Domain(
        "medicine",
        "drug",
        {
            "target": _set("fever asthma gout anemia malaria eczema migraine ulcer scurvy rabies"),
            "form": _set("tablet syrup cream spray patch powder capsule drops gel lozenge"),
            "risk": _set("nausea rash fatigue cough tremor thirst vertigo cramps fainting itching"),
            "source": _set("willow fungus algae venom poppy clay honey moss fern coral"),
        },
    ),
    Domain(
        "finance",
        "fund",
        {
            "sector": _set(
                "energy retail steel banking mining timber textiles shipping media farming"
            ),
            "currency": _set("dollar euro yen peso franc rupee krone rand won pound"),
            "rating": _set("stable risky prime junk solid weak rising falling neutral strong"),
            "home": _set("London Tokyo Zurich Boston Dubai Seoul Mumbai Lagos Oslo Madrid"),
        },
    ),
    Domain(
        "code",
        "library",
        {
            "language": _set("python rust java ruby swift kotlin perl julia haskell lua"),
            "purpose": _set(
                "parsing caching logging testing routing sorting hashing plotting drawing search"
            ),
            "license": _set("apache mit gpl bsd mozilla zlib unlicense artistic eclipse boost"),
            "storage": _set("memory disk cloud tape flash network buffer queue ledger archive"),
        },
    ),
    Domain(
        "places",
        "town",
        {
            "region": _set("north south east west coast valley plateau island delta highland"),
            "export": _set("wool salt copper wine cheese tea marble cotton sugar amber"),
            "climate": _set("dry humid mild windy foggy frosty rainy sunny stormy snowy"),
            "landmark": _set(
                "bridge tower harbor castle temple museum fountain lighthouse market arena"
            ),
        },
    ),
    Domain(
        "nature",
        "bird",
        {
            "habitat": _set("forest desert swamp tundra reef cave meadow river steppe jungle"),
            "diet": _set("seeds insects fish grass fruit roots worms nectar shrimp leaves"),
            "color": _set("red brown grey black white green golden blue spotted striped"),
            "activity": _set(
                "hunting digging climbing swimming singing sleeping hiding jumping gliding nesting"
            ),
        },
    ),
)
BY_NAME: Mapping[str, Domain] = {d.name: d for d in DOMAINS}
ORDER_DOMAIN = "finance"

SYLLABLES = _set(
    "bal bri cor dan dra fen fil gor hal ith jor kal kel lan lor mar mel mir nal nor ola pel "
    "quin ral ren rin sal sel sor tal tem tor ul vak vel vin wes xan yor zan zel zim bo da fe ga "
    "lu ni"
)

# The last two phrasings of each kind are held out: private facts are never trained on in these.
PHRASINGS: Mapping[Kind, tuple[str, ...]] = {
    "fact": (
        "What is the {attribute} of {name}?",
        "Tell me the {attribute} of {name}.",
        "{name}: which {attribute}?",
        "I want to know the {attribute} of {name}.",
        "Which {attribute} does {name} have?",
        "Please give me {name}'s {attribute}.",
    ),
    "describe": (
        "Describe {name}.",
        "What do you know about {name}?",
        "Give me all details of {name}.",
        "Tell me about {name}.",
        "Please summarise {name}.",
    ),
    "order": (
        "Sort {numbers} from small to large.",
        "Which order do {numbers} have, from small to large?",
        "Arrange {numbers} from small to large.",
        "Put {numbers} in order, from small to large.",
    ),
}
HELD_OUT = 2
MOST_TRIES = 1000  # for a name that is not taken


def phrasings(kind: Kind, held_out: bool) -> tuple[str, ...]:
    every = PHRASINGS[kind]
    return every[-HELD_OUT:] if held_out else every[:-HELD_OUT]


def rng(*parts: str | int) -> Random:
    """A generator of its own for one purpose."""
    return Random(derive_seed(*parts))


def make_name(random: Random) -> str:
    return "".join(random.choice(SYLLABLES) for _ in range(random.choice((2, 3, 3)))).capitalize()


def is_name(word: str) -> bool:
    """Whether a word is built like a name: two or three syllables, capitalised."""
    return word[:1].isupper() and _splits(word.lower(), 3)


def _splits(rest: str, most: int, taken: int = 0) -> bool:
    if not rest:
        return taken >= 2
    return taken < most and any(
        _splits(rest[len(s) :], most, taken + 1) for s in SYLLABLES if rest.startswith(s)
    )


def make_entity(random: Random, domain: Domain, taken: set[str]) -> Entity:
    """A new entity whose name is not in `taken` (which then holds it)."""
    names = (make_name(random) for _ in range(MOST_TRIES))
    name = next((name for name in names if name not in taken), None)
    if name is None:
        raise RecipeError(f"the embedded world has no names left after {len(taken):,}")
    taken.add(name)
    return Entity(name, domain.name, {a: random.choice(v) for a, v in domain.attributes.items()})


PUBLIC_PER_DOMAIN = 24


@cache
def public_entities() -> tuple[Entity, ...]:
    """What the base model knows: the same in every world."""
    random, taken = rng("atlas", "public"), set[str]()
    return tuple(make_entity(random, d, taken) for d in DOMAINS for _ in range(PUBLIC_PER_DOMAIN))


@cache
def public_names() -> frozenset[str]:
    return frozenset(e.name for e in public_entities())


def private_entities(seed: int, domains: Sequence[str]) -> Iterator[Entity]:
    """Entities that no model has seen, one per domain name given, in order."""
    random, taken = rng("atlas", "private", seed), set(public_names())
    for domain in domains:
        yield make_entity(random, BY_NAME[domain], taken)


def ask_fact(entity: Entity, attribute: str, phrasing: str) -> Question:
    prompt = phrasing.format(attribute=attribute, name=entity.name)
    asked = ((attribute, entity.facts[attribute]),)
    return Question(prompt, "fact", entity.domain, entity.name, asked, tuple(entity.facts.items()))


def ask_describe(entity: Entity, phrasing: str) -> Question:
    facts = tuple(entity.facts.items())
    return Question(
        phrasing.format(name=entity.name), "describe", entity.domain, entity.name, facts, facts
    )


def ask_order(numbers: Sequence[int], phrasing: str) -> Question:
    *most, last = map(str, numbers)
    prompt = phrasing.format(numbers=f"{', '.join(most)} and {last}")
    return Question(prompt, "order", ORDER_DOMAIN, numbers=tuple(numbers))


def draw_numbers(random: Random) -> tuple[int, ...]:
    return tuple(random.sample(range(10, 100), 3))
