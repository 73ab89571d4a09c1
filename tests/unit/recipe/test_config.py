"""Recipes: what is read is what was meant, and every mistake is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedsdr.errors import RecipeError
from fedsdr.recipe.settings import Recipe, build_recipe, dump_recipe, parse_recipe, read_recipe


def test_an_empty_recipe_is_the_default_one() -> None:
    assert parse_recipe("") == parse_recipe("# nothing\n") == Recipe()
    assert parse_recipe("").data.atlas is not None


def test_round_trip() -> None:
    recipe = parse_recipe(
        "seed: 3\ntraining: {lr: 1e-5, clip: null, rounds: 7}\nalgorithm: {name: fedprox, "
        "options: {mu: 1e-3}}\ndata: {files: {größe: a.jsonl}}\n"
    )
    assert recipe.training.lr == 1e-5
    assert recipe.algorithm.options == {"mu": 1e-3}
    assert recipe.training.clip is None
    assert parse_recipe(dump_recipe(recipe)) == recipe
    assert parse_recipe(dump_recipe(Recipe())) == Recipe()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("trainig: {}", r"unknown key 'trainig'\. Did you mean 'training'\?"),
        ("training: {learning: 1}", "unknown key 'training.learning'"),
        ("training: {roundz: 1}", r"Did you mean 'rounds'\?"),
        ("data: {atlas: {clents: 3}}", r"unknown key 'data.atlas.clents'\. Did you mean 'clients'"),
        ("lora: {R: {rnk: 3}}", r"unknown key 'lora.R.rnk'\. Did you mean 'rank'"),
        ("training: {rounds: many}", r"training.rounds: .*integer.*\(given: 'many'\)"),
        ("training: {rounds: 2.5}", "training.rounds"),
        ("training: {rounds: true}", "training.rounds"),
        ("training: {rounds: 0}", r"training.rounds: .*greater than or equal to 1"),
        ("training: {lr: '0.1'}", r"training.lr: .*number.*\(given: '0.1'\)"),
        ("training: {lr: -1.0}", "training.lr"),
        ("training: {lr: .nan}", "training.lr"),
        ("training: {lr: .inf}", "training.lr"),
        ("training: {schedule: linear}", r"training.schedule: .*'constant' or 'cosine'"),
        ("training: 3", "training"),
        ("training:", "training"),
        ("seed: 1.5", "seed"),
        ("seed: yes", "seed"),
        ("rewriting: {top_p: 0}", "rewriting.top_p"),
        ("rewriting: {top_p: 1.5}", "rewriting.top_p"),
        ("data: {}", r"exactly one of data.atlas, data.files and data.file \(none given\)"),
        ("data: {atlas: {}, file: a.csv}", r"\(atlas, file given\)"),
        ("data: {atlas: {}, partition: {}}", "data.partition needs data.file"),
        ("data: {files: [a.csv]}", "data.files"),
        ("[1, 2]", "a recipe is a mapping of keys, not a list"),
        ("just text", "a recipe is a mapping of keys, not a str"),
        ("seed: [1", "not valid YAML"),
        ("seed: 1\nseed: 2", "line 2: .*key 'seed' is given twice"),
        ("training: {lr: 1.0, lr: 2.0}", "key 'lr' is given twice"),
        ("seed: !!python/object/apply:os.system ['true']", "not valid YAML"),
        ("\tseed: 1", "line 1: not valid YAML"),
    ],
)
def test_a_mistake_is_named(text: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said) as caught:
        parse_recipe(text, "my.yaml")
    assert str(caught.value).startswith("my.yaml")


def test_all_mistakes_at_once() -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe("seed: x\ntraining: {rounds: 0, lrr: 1}")
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ("seed=9", lambda r: r.seed == 9),
        ("training.lr=1e-3", lambda r: r.training.lr == 1e-3),
        ("training.clip=null", lambda r: r.training.clip is None),
        ("algorithm.options.mu=0.5", lambda r: r.algorithm.options == {"mu": 0.5}),
        ("algorithm.name = fedavg", lambda r: r.algorithm.name == "fedavg"),
        ("data.atlas.clients=3", lambda r: r.data.atlas.clients == 3),
        ("model.path=a=b", lambda r: r.model.path == "a=b"),
    ],
)
def test_set(change: str, found: object) -> None:
    assert callable(found)
    assert found(parse_recipe("", changes=[change]))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("training.lr", "write it as key=value"),
        ("=3", "write it as key=value"),
        ("seed.x=3", "'seed' holds a value"),
        ("training.lrr=3", r"unknown key 'training.lrr'\. Did you mean 'lr'"),
        ("training.rounds=[", "not valid YAML"),
    ],
)
def test_set_wrongly(change: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        parse_recipe("seed: 1", changes=[change])


def test_the_later_change_wins() -> None:
    assert parse_recipe("seed: 1", changes=["seed=2", "seed=3"]).seed == 3


def test_reading_a_file(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_bytes(b"\xef\xbb\xbfseed: 4\n")  # with a byte-order mark
    assert read_recipe(file).seed == 4
    assert read_recipe(str(file), ["seed=5"]).seed == 5
    with pytest.raises(RecipeError, match="does not exist; `fedsdr init` writes one"):
        read_recipe(tmp_path / "none.yaml")
    with pytest.raises(RecipeError, match="is a folder"):
        read_recipe(tmp_path)
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="cannot be read"):
        read_recipe(file)


def test_a_recipe_cannot_be_changed_behind_ones_back() -> None:
    recipe = build_recipe({})
    with pytest.raises(Exception, match="frozen"):
        setattr(recipe, "seed", 3)  # noqa: B010
