"""The recipe that `fedsdr init` writes: its values are the defaults, and no key is left out."""

from __future__ import annotations

import inspect
import re
from importlib.metadata import entry_points
from importlib.resources import files
from typing import Any

import pytest
import yaml

from fedsdr.recipe.settings import Recipe, Section, build_recipe, parse_recipe

TEMPLATE = files("fedsdr.cli").joinpath("recipe.yaml").read_text(encoding="utf-8")
EVERYTHING_ON = re.sub(r"(?m)^(\s*)#(\w+:)", r"\1\2", TEMPLATE)


def keys(section: type[Section]) -> dict[str, Any]:
    """The config's keys as a tree; a leaf is None."""
    return {name: inner(field.annotation) for name, field in section.model_fields.items()}


def inner(annotation: Any) -> dict[str, Any] | None:
    for choice in getattr(annotation, "__args__", (annotation,)):
        if isinstance(choice, type) and issubclass(choice, Section):
            return keys(choice)
    return None


def shown(values: Any, like: dict[str, Any]) -> dict[str, Any]:
    """The tree of keys in a recipe, as deep as the config has sections."""
    assert isinstance(values, dict)
    return {k: shown(v, like[k]) if like.get(k) is not None else None for k, v in values.items()}


def test_the_template_is_the_defaults() -> None:
    assert parse_recipe(TEMPLATE, "recipe.yaml") == Recipe()


def test_every_key_of_the_config_is_there_in_its_section_on_or_off() -> None:
    assert shown(yaml.safe_load(EVERYTHING_ON), keys(Recipe)) == keys(Recipe)


@pytest.mark.parametrize("source", ["atlas", "files", "file"])
def test_what_is_off_would_be_accepted(source: str) -> None:
    tree = yaml.safe_load(EVERYTHING_ON)
    belongs = {"files": ["test_files"], "file": ["partition"]}
    for other in {"atlas", "files", "file"} - {source}:
        for key in (other, *belongs.get(other, [])):
            del tree["data"][key]
    recipe = build_recipe(tree)
    assert getattr(recipe.data, source) is not None
    assert recipe.training.local_steps is not None


@pytest.mark.parametrize("name", ["fedprox", "fedsd", "fedsdr"])
def test_every_option_of_the_algorithms_is_named(name: str) -> None:
    (point,) = entry_points(group="fedsdr.algorithms", name=name)
    for option in inspect.signature(point.load()).parameters:
        assert re.search(rf"\b{option}\b", TEMPLATE), option


def test_the_template_fits_a_terminal() -> None:
    assert max(map(len, TEMPLATE.splitlines())) <= 100
