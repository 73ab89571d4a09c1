"""The Python API's page: every public name is on it, and every function says what it takes."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

import fedsdr

PAGE = (Path(__file__).parents[2] / "docs" / "reference.md").read_text(encoding="utf-8")
FUNCTIONS = [n for n in fedsdr.__all__ if inspect.isfunction(getattr(fedsdr, n))]
# Errors are a page of their own (docs/api.md); what functions take or return is linked there.
ELSEWHERE = {"FedsdrError", "PartitionSpec", "Recipe"}


@pytest.mark.parametrize("name", sorted({*fedsdr.__all__} - ELSEWHERE))
def test_every_public_name_is_on_the_page(name: str) -> None:
    public = getattr(fedsdr, name)
    assert re.search(rf"^::: {re.escape(public.__module__)}\.{public.__name__}$", PAGE, re.M)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_its_docstring_names_what_it_takes(name: str) -> None:
    function = getattr(fedsdr, name)
    told = re.findall(r"^    (\w+): ", inspect.getdoc(function) or "", re.M)
    assert told == list(inspect.signature(function).parameters)
