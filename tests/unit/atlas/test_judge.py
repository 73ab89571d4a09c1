"""The judge is exact: what is wrong with a text is counted, item by item."""

import pytest

from fedsdr.atlas.judge import judge
from fedsdr.atlas.styles import STYLES, say
from fedsdr.atlas.world import (
    DOMAINS,
    Entity,
    ask_describe,
    ask_fact,
    ask_order,
    private_entities,
    rng,
)

DRUG = Entity(
    "Mirvelul",
    "medicine",
    {"target": "malaria", "form": "gel", "risk": "rash", "source": "clay"},
)
TARGET = ask_fact(DRUG, "target", "What is the {attribute} of {name}?")
ALL = ask_describe(DRUG, "Describe {name}.")
ORDER = ask_order((41, 17, 88), "Sort {numbers} from small to large.")


@pytest.mark.parametrize("style", STYLES)
def test_the_truth_is_faithful_in_every_style(style: str):
    random = rng("judge", style)
    for entity in private_entities(9, [d.name for d in DOMAINS] * 12):
        for question in (ask_fact(entity, next(iter(entity.facts)), "{attribute} {name}?"),
                         ask_describe(entity, "Describe {name}."),
                         ORDER):  # fmt: skip
            judged = judge(question, say(question, style, random))
            assert judged.faithful, (style, say(question, style, random), judged)
            assert judged.style == style


@pytest.mark.parametrize(
    ("text", "right", "wrong", "missing", "values", "names"),
    [
        ("The target of Mirvelul is malaria.", 1, 0, 0, 0, 0),
        ("The target of Mirvelul is gout.", 0, 1, 0, 0, 0),
        ("The target of Mirvelul is malaria and gout.", 0, 1, 0, 0, 0),
        ("The target of Mirvelul is unclear.", 0, 0, 1, 1, 0),  # "unclear" is no word of the world
        ("", 0, 0, 1, 0, 0),
        ("The target of Mirvelum is malaria.", 1, 0, 0, 0, 1),
        (
            "The target of Mirvelul is malaria, its form is gel.",
            1,
            0,
            0,
            0,
            0,
        ),  # true, if not asked
        ("The target of Mirvelul is malaria, its form is spray.", 1, 0, 0, 1, 0),
        ("MALARIA", 1, 0, 0, 0, 0),
    ],
)
def test_one_fact(text: str, right: int, wrong: int, missing: int, values: int, names: int):
    judged = judge(TARGET, text)
    found = (
        judged.right,
        judged.wrong,
        judged.missing,
        judged.invented_values,
        judged.invented_names,
    )
    assert found == (right, wrong, missing, values, names)
    assert judged.hallucinated == bool(wrong or values or names)


def test_several_facts_count_omissions_and_errors_apart():
    judged = judge(
        ALL, "Mirvelul is a drug. Its target is malaria, its form is spray and its risk is rash."
    )
    assert (judged.asked, judged.right, judged.wrong, judged.missing) == (4, 2, 1, 1)
    assert not judged.faithful


@pytest.mark.parametrize(
    ("text", "right", "wrong", "missing"),
    [("17, 41, 88", 1, 0, 0), ("41, 17, 88", 0, 1, 0), ("17, 41", 0, 1, 0), ("no idea", 0, 0, 1)],
)
def test_order(text: str, right: int, wrong: int, missing: int):
    judged = judge(ORDER, text)
    assert (judged.right, judged.wrong, judged.missing) == (right, wrong, missing)


def test_filler_and_repetition_are_redundant():
    """ "Great question!" and "I hope that helps!" are 2 + 4 filler words of 12."""
    chatty = judge(TARGET, "Great question! The target of Mirvelul is malaria. I hope that helps!")
    assert (chatty.filler_words, chatty.words) == (6, 12)
    assert chatty.redundancy == 0.5
    twice = "The target of Mirvelul is malaria. The target of Mirvelul is malaria."
    assert judge(TARGET, twice).repeated_words == 4  # the trigrams of six words, said again
    assert judge(TARGET, "The target of Mirvelul is malaria.").redundancy == 0
