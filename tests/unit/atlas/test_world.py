from itertools import islice

import pytest

from fedsdr.atlas.styles import HOUSE, OTHER_STYLES, STYLES, say, style_of
from fedsdr.atlas.world import (
    DOMAINS,
    PHRASINGS,
    ask_describe,
    ask_fact,
    ask_order,
    is_name,
    phrasings,
    private_entities,
    public_entities,
    public_names,
    rng,
)


def test_the_world_is_as_large_as_promised():
    assert len(DOMAINS) >= 5
    assert all(len(d.attributes) >= 3 for d in DOMAINS)
    assert len(STYLES) >= 8
    values = [v.lower() for d in DOMAINS for vs in d.attributes.values() for v in vs]
    assert len(set(values)) == len(values), (
        "a value belongs to one attribute, or it could not be judged"
    )
    attributes = [a for d in DOMAINS for a in d.attributes]
    assert len(set(attributes)) == len(attributes)


def test_private_entities_derive_from_the_seed_and_are_nobody_elses():
    names = [d.name for d in DOMAINS] * 40
    one, again, other = (list(private_entities(seed, names)) for seed in (1, 1, 2))
    assert one == again
    assert {e.name for e in one} != {e.name for e in other}
    assert len({e.name for e in one}) == len(one)
    assert not {e.name for e in one} & public_names()
    assert all(is_name(e.name) for e in [*one, *public_entities()])


def test_held_out_phrasings_are_never_trained_on():
    for kind in PHRASINGS:
        trained, held_out = phrasings(kind, False), phrasings(kind, True)
        assert len(trained) >= 2
        assert held_out
        assert not set(trained) & set(held_out)


@pytest.mark.parametrize("style", STYLES)
def test_every_style_is_recognised_in_what_it_says(style: str):
    random = rng("test", style)
    for entity in islice(private_entities(5, [d.name for d in DOMAINS] * 8), 40):
        attribute = random.choice(list(entity.facts))
        for question in (
            ask_fact(entity, attribute, PHRASINGS["fact"][0]),
            ask_describe(entity, PHRASINGS["describe"][0]),
            ask_order((41, 17, 88), PHRASINGS["order"][0]),
        ):
            assert style_of(say(question, style, random)) == style


def test_a_garbled_text_is_in_no_style():
    assert style_of("The of of is!") == "other"
    assert style_of("") == "other"


def test_house_is_not_among_the_clients_styles():
    assert HOUSE not in OTHER_STYLES
    assert len(OTHER_STYLES) == len(STYLES) - 1
