import pytest

from fedsdr.atlas.federation import (
    PRESETS,
    AtlasSpec,
    build_federation,
    preset,
    public_questions,
)
from fedsdr.atlas.judge import judge
from fedsdr.atlas.world import phrasings
from fedsdr.errors import RecipeError


def test_the_same_seed_gives_the_same_clients():
    one, again, other = (build_federation(preset("medium"), s).clients for s in (3, 3, 4))
    assert one == again
    assert one != other


@pytest.mark.parametrize("name", PRESETS)
def test_every_reference_answer_is_true(name: str):
    built = build_federation(PRESETS[name], 5)
    for client in built.clients:
        for example in (*client.train, *client.validation, *client.test):
            assert judge(built.truths[example.id], example.response).faithful


def test_test_questions_use_phrasings_that_were_never_trained_on():
    built = build_federation(preset("medium"), 5)
    for client in built.clients:
        trained = {built.truths[e.id].prompt for e in (*client.train, *client.validation)}
        assert not trained & {e.prompt for e in client.test}
        facts = {e.id for e in client.test if built.truths[e.id].kind == "fact"}
        assert facts
        for example in client.test:
            question = built.truths[example.id]
            if question.kind == "fact":
                forms = [p.format(attribute=question.asked[0][0], name=question.name)
                         for p in phrasings("fact", held_out=True)]  # fmt: skip
                assert example.prompt in forms


def test_skews_do_what_they_say():
    styles = [{e.origin for e in c.train} for c in build_federation(AtlasSpec(), 1).clients]
    assert all(len(own) == 1 for own in styles)
    assert len(set.union(*styles)) == 8
    mixed = [{e.origin for e in c.train} for c in build_federation(preset("iid"), 1).clients]
    assert all(len(own) > 5 for own in mixed)
    domains = [{e.domain for e in c.train} for c in build_federation(AtlasSpec(), 1).clients]
    assert all(len(own) == 1 for own in domains)
    sizes = [len(c.train) for c in build_federation(AtlasSpec(quantity_skew=1.0), 1).clients]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 3 * sizes[-1]


def test_overlap_shares_entities_between_clients():
    def names(overlap: float) -> list[set[str]]:
        built = build_federation(AtlasSpec(overlap=overlap, clients=10), 2)
        return [{built.truths[e.id].name for e in c.train} - {""} for c in built.clients]

    def shared(found: list[set[str]]) -> int:
        return sum(len(a & b) for i, a in enumerate(found) for b in found[:i])

    assert shared(names(0.0)) == 0
    assert shared(names(0.9)) > 10


def test_public_questions_are_fixed():
    assert public_questions(30) == public_questions(30)
    assert len(public_questions(30)) == 30


@pytest.mark.parametrize(
    "spec",
    [AtlasSpec(clients=0), AtlasSpec(examples=2), AtlasSpec(style_skew=2), AtlasSpec(overlap=-1)],
)
def test_nonsense_is_refused(spec: AtlasSpec):
    with pytest.raises(RecipeError, match=r"data\.atlas"):
        build_federation(spec, 1)
    with pytest.raises(RecipeError, match="Did you mean 'medium'"):
        preset("medum")
