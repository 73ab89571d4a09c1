"""Algorithms by name, through the same door for built-in ones and anybody's."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from fedsdr.algorithms.fedsd import boosted
from fedsdr.algorithms.registry import factories, make_algorithm, options
from fedsdr.errors import RecipeError
from fedsdr.parts.algorithm import Algorithm, split_mix
from fedsdr.parts.views import Raw, Rewritten

BUILT_IN = ("local", "central", "fedavg", "fedprox", "fedsd", "fedsdr")


def test_the_entry_points_are_those_of_pyproject() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())
    listed = project["project"]["entry-points"]["fedsdr.algorithms"]
    assert set(BUILT_IN) <= set(listed) <= set(factories())


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_algorithm_with_its_defaults_is_whole(name: str) -> None:
    algorithm = make_algorithm(name)
    assert algorithm.name == name
    assert make_algorithm(name, options(name)) == algorithm
    for stage in algorithm.stages:
        for term in stage.terms:
            trained = {p.partition(".")[0] for p in split_mix(term.train)}
            assert trained
            assert trained <= set(split_mix(term.forward))
    for mix in algorithm.deploys.values():
        assert set(split_mix(mix)) <= set(algorithm.branches())


def test_options_are_read_off_the_signature() -> None:
    assert options("fedprox") == {"mu": 0.01}
    assert options("fedavg") == {}
    assert options("fedsdr")["schedule"] == "alternate"


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("fedavgg", {}, r"'fedavgg' is unknown; there are central, .*Did you mean 'fedavg'"),
        ("", {}, "is unknown"),
        ("fedprox", {"nu": 1.0}, r"no option 'nu'; its options are mu.*Did you mean 'mu'"),
        ("fedavg", {"mu": 1.0}, "no option 'mu'; it has none"),
        ("fedprox", {"mu": "big"}, r"algorithm.mu: .*number.*\(given: 'big'\)"),
        ("fedprox", {"mu": True}, "algorithm.mu"),
        ("fedprox", {"mu": -0.1}, "algorithm.mu must be at least 0, it is -0.1"),
        ("fedprox", {"mu": float("nan")}, "algorithm.mu"),
        ("fedsd", {"teacher": "server"}, "algorithm.teacher: .*'base' or 'global'"),
        ("fedsd", {"selection": "fact"}, "selection 'fact'"),
        ("fedsdr", {"schedule": "jiont"}, "algorithm.schedule"),
        ("fedsdr", {"s_state": "keep"}, "algorithm.s_state"),
        ("fedsdr", {"ablation": "without_t"}, "algorithm.ablation"),
        ("fedsdr", {"s_dropout": 1.5}, "s_dropout must be at most 1, it is 1.5"),
        ("fedsdr", {"s_dropout": float("nan")}, "s_dropout must be .*, it is nan"),
        ("fedsdr", {"s_scale": float("inf")}, "s_scale"),
        ("fedsdr", {"match_compute": 1}, "algorithm.match_compute"),
        ("fedsdr", {"selection": "resample(0)"}, "n must lie between 1 and"),
        (
            "fedsdr",
            {"schedule": "joint", "smooth_epochs": 1.0},
            "smooth_epochs: no effect with",
        ),
    ],
)
def test_a_wrong_choice_is_named(name: str, given: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        make_algorithm(name, given)


@pytest.mark.parametrize("name", BUILT_IN)
def test_any_algorithm_is_boosted_by_replacing_its_raw_views(name: str) -> None:
    plain, view = make_algorithm(name), Rewritten("facts")
    better = make_algorithm(name, boost=view)
    assert better == boosted(plain, view)
    assert better.name == f"fedsd+{name}"
    for old, new in zip(plain.stages, better.stages, strict=True):
        for a, b in zip(old.terms, new.terms, strict=True):
            assert b.view == (view if isinstance(a.view, Raw) else a.view)
            assert (a.forward, a.train, a.objective) == (b.forward, b.train, b.objective)
    same = {f: getattr(plain, f) for f in ("share", "deploys", "keep", "pool", "combine")}
    assert same == {f: getattr(better, f) for f in same}


def test_fedsd_is_boosted_fedavg() -> None:
    fedsd, own = make_algorithm("fedsd"), boosted(make_algorithm("fedavg"))
    assert isinstance(fedsd, Algorithm)
    assert fedsd.stages == own.stages
