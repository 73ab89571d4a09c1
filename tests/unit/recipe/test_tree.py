"""YAML that is written is the YAML that is read, and a plain word means one thing."""

from __future__ import annotations

import math
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsdr.errors import RecipeError
from fedsdr.recipe.settings import Recipe, build_recipe, dump_recipe, parse_recipe
from fedsdr.recipe.yaml import dump_yaml, load_yaml

# What a text may look like: anything, and above all what some reader takes for something else.
TRICKY = [
    "3e2",
    "0e9e39f2",
    "0e9",
    "1e-3",
    "1.e5",
    ".5",
    "5.",
    "+5",
    "-0",
    "0",
    "00",
    "010",
    "0o17",
    "0x1f",
    "0b11",
    "1_000",
    "1:30",
    "190:20:30",
    "1:30.5",
    "yes",
    "no",
    "on",
    "off",
    "y",
    "n",
    "true",
    "True",
    "null",
    "~",
    "Null",
    ".inf",
    "-.INF",
    ".nan",
    ".NaN",
    "inf",
    "nan",
    "Infinity",
    "=",
    "<<",
    "-",
    "--",
    "---",
    "...",
    "?",
    ":",
    "#",
    "&",
    "*",
    "!",
    "|",
    ">",
    "%",
    "@",
    "`",
    "2026-01-01",
    "2026-01-01T00:00:00Z",
    "9e999",
    "1e-400",
    "1E400",
    "a:",
    "b:",
    "{}",
    "[]",
    "{a",
    "[b",
    "'x",
    '"x',
    "x'",
    "!!int",
    "!!str",
    "&a",
    "*a",
]
texts = st.one_of(
    st.sampled_from(TRICKY),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40),
    st.text("0123456789eE+-._:xo ", max_size=8),
    st.text(" \t\n\r\x85\u2028\u2029\ufeff\x07\x7f\xa0:#-?'\"\\ab", max_size=12),
    st.text("ab ", min_size=70, max_size=200),
)
numbers = st.one_of(
    st.integers(-(10**15), 10**15),
    st.floats(allow_nan=False, allow_infinity=False).filter(
        lambda x: not x or 1e-30 <= abs(x) <= 1e15
    ),
)
leaves = st.one_of(texts, numbers, st.booleans(), st.none())
names = texts.filter(bool)
trees = st.recursive(
    leaves,
    lambda below: st.lists(below, max_size=4) | st.dictionaries(names, below, max_size=4),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(names, trees, max_size=5))
def test_what_is_written_is_read(tree: dict[str, Any]) -> None:
    written = dump_yaml(tree)
    read = load_yaml(written, "it")
    assert _typed(read) == _typed(tree)
    assert dump_yaml(read) == written
    assert written.encode()  # can be saved


recipes = st.builds(
    lambda **given: given,
    seed=st.integers(-(2**63) + 1, 2**63 - 1),
    model=st.fixed_dictionaries({"path": names, "revision": texts | st.none()}),
    data=st.fixed_dictionaries(
        {
            "files": st.dictionaries(names, names, min_size=1, max_size=4),
            "columns": st.dictionaries(names, texts, max_size=3),
        }
    ),
    lora=st.fixed_dictionaries({"targets": texts, "init": names | st.none()}),
    algorithm=st.fixed_dictionaries(
        {
            "name": texts,
            "selection": texts,
            "options": st.dictionaries(names, trees, max_size=3),
            "objectives": st.dictionaries(names, trees, max_size=3),
        }
    ),
    server=st.fixed_dictionaries({"filters": st.lists(texts, max_size=3), "combine": texts}),
    training=st.fixed_dictionaries(
        {"lr": st.floats(1e-12, 1000), "weight_decay": st.floats(0, 1000)}
    ),
)


@settings(max_examples=200, deadline=None)
@given(recipes)
def test_any_recipe_survives_being_written(given: dict[str, Any]) -> None:
    try:
        recipe = build_recipe(given)
    except RecipeError:
        return  # such as a path with a name of no user
    written = dump_recipe(recipe)
    assert parse_recipe(written) == recipe
    assert dump_recipe(parse_recipe(written)) == written
    assert _typed(parse_recipe(written).model_dump()) == _typed(recipe.model_dump())


def test_the_recipes_that_were_lost() -> None:
    recipe = build_recipe(
        {
            "model": {"path": "a/b", "revision": "0e9e39f249a16976918f6564b8830bc894c89659"},
            "data": {"files": {"3e2": "a.jsonl", "1:30": "1e3", "010": "0e9", "on": "no"}},
        }
    )
    assert parse_recipe(dump_recipe(recipe)) == recipe
    assert yaml.safe_load(dump_recipe(recipe)) == recipe.model_dump()  # by other readers, too
    plain = parse_recipe("model: {path: a/b, revision: 0e9e39f249a16976918f6564b8830bc894c89659}")
    assert plain.model.revision == "0e9e39f249a16976918f6564b8830bc894c89659"
    assert list(parse_recipe("data: {files: {3e2: a, 1: b, true: c}}").data.files or ()) == [
        "3e2",
        "1",
        "true",
    ]


@pytest.mark.parametrize("text", ["1:30", "010", "1_000", "0x1f", "0o17", "yes", "2026-01-01"])
def test_what_looks_like_a_number_elsewhere_is_text(text: str) -> None:
    assert load_yaml(text, "it") == text
    with pytest.raises(RecipeError, match=rf"seed: .*integer.*given: '{text}'"):
        parse_recipe(f"seed: {text}")
    with pytest.raises(RecipeError, match="seed"):
        parse_recipe("", changes=[f"seed={text}"])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", 7),
        ("-3", -3),
        ("+5", 5),
        ("1e-3", 0.001),
        ("1.5E+2", 150.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("-.inf", -math.inf),
        ("'7'", "7"),
        ("", None),
        ("~", None),
        ("TRUE", True),
        ("tRUE", "tRUE"),
        ("[1, a, null]", [1, "a", None]),
        ("a\n b", "a b"),
        ("[&x [1, 2], *x]", [[1, 2], [1, 2]]),
        ("|\n  a\n  b\n", "a\nb\n"),
    ],
)
def test_what_a_word_means(text: str, value: Any) -> None:
    assert _typed(load_yaml(text, "it")) == _typed(value)


NINE = ", ".join(["*a{0}"] * 9)
BOMB = "\n".join(
    [f"a0: &a0 [{'x, ' * 9}]"] + [f"a{n + 1}: &a{n + 1} [{NINE.format(n)}]" for n in range(11)]
)
LADDER = "\n".join(["a0: &a0 [x]"] + [f"a{n + 1}: &a{n + 1} [*a{n}]" for n in range(40)])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: *a", "it, line 2: .*no anchor &a"),
        ("a: &a [*a]", "it, line 1: .*no anchor &a"),
        ("a: &a x\n*a : b", "it, line 2: .*a key must be text"),
        (BOMB, "it, line 5: .*more than 50,000 keys and values"),
        (LADDER, "nested more than 30 deep"),
        ("a: !!int 010", "it, line 1: .*tags"),
        ("a: ! b", "it, line 1: .*tags"),
        ("? [a]\n: 1", "it, line 1: .*a key must be text"),
        ("'': 1", "it, line 1: .*a key is missing"),
        ("1: a\n'1': b", "it, line 2: .*key '1' is given twice"),
        ("a: 1\n---\nb: 1", "it, line 2: .*second document"),
        ("a: 1e999", "it, line 1: .*1e999 is beyond"),
        ("a: 1e-999", "it, line 1: .*1e-999 is beyond"),
        ("a: " + "9" * 5000, "it, line 1: .*a number of 5000 characters"),
        ("a: " + "[" * 40, "it, line 1: .*nested more than 30 deep"),
        ("[" + "1," * 60_000 + "]", "more than 50,000 keys and values"),
        ("#" * 1_000_001, "at most 1,000,000 are read"),
        ("a: \x07", "it: not valid YAML"),
        ("a: \ud800", "it: not valid YAML"),
    ],
)
def test_what_is_not_read(text: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        load_yaml(text, "it")


@pytest.mark.parametrize("bad", ["a\0b", "a\ud800b", "x" * 5000])
def test_no_text_of_a_recipe_is_hostile(bad: str) -> None:
    for tree in (
        {"model": {"path": bad}},
        {"model": {"revision": bad}},
        {"data": {"files": {bad: "a"}}},
        {"data": {"files": {"a": bad}}},
        {"algorithm": {"options": {"x": [{"y": bad}]}}},
        {"algorithm": {"options": {bad: 1}}},
        {"server": {"filters": [bad]}},
    ):
        with pytest.raises(RecipeError) as caught:
            build_recipe(tree)
        section = next(iter(tree))
        assert str(caught.value).startswith(f"recipe: {section}.")
        assert len(str(caught.value)) < 3000


def test_a_recipe_of_defaults_is_written_as_ever() -> None:
    plain = yaml.safe_dump(Recipe().model_dump(), sort_keys=False, allow_unicode=True)
    assert dump_recipe(Recipe()) == plain


def _typed(value: Any) -> Any:
    """True is not 1, nor 1 the same as 1.0."""
    if isinstance(value, dict):
        return {key: _typed(below) for key, below in value.items()}
    if isinstance(value, list):
        return [_typed(below) for below in value]
    return type(value).__name__, value
