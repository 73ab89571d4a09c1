"""The server's rules of a recipe: from names to parts, and what is refused."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from fedsdr.algorithms.central import central
from fedsdr.algorithms.fedadam import fedadam
from fedsdr.algorithms.fedavg import fedavg
from fedsdr.algorithms.fedsd import boosted
from fedsdr.algorithms.fedsdr import fedsdr
from fedsdr.algorithms.flora import flora
from fedsdr.algorithms.local import local
from fedsdr.algorithms.server import with_server_rule
from fedsdr.errors import RecipeError
from fedsdr.parts.combine import Combine, Filter
from fedsdr.parts.robust import CoordinateMedian, GeometricMedian, Krum, NormClip, TrimmedMean


@pytest.mark.parametrize(
    ("text", "rule", "name"),
    [
        ("median", CoordinateMedian(), "fedavg~median"),
        ("median()", CoordinateMedian(), "fedavg~median"),
        ("trimmed_mean(0.2)", TrimmedMean(0.2), "fedavg~trimmed_mean(0.2)"),
        (" trimmed_mean ( 2e-1 ) ", TrimmedMean(0.2), "fedavg~trimmed_mean(0.2)"),
        ("trimmed_mean(0)", TrimmedMean(0.0), "fedavg~trimmed_mean(0.0)"),
        ("geometric_median", GeometricMedian(), "fedavg~geometric_median"),
    ],
)
def test_a_rule_in_place_of_the_mean(text: str, rule: Combine, name: str) -> None:
    assert with_server_rule(fedavg(), text) == replace(fedavg(), combine=rule, name=name)


@pytest.mark.parametrize(
    ("text", "sift", "name"),
    [
        ("krum(1)", Krum(1), "fedavg~krum(1)"),
        ("multi_krum(1, 3)", Krum(1, 3), "fedavg~multi_krum(1,3)"),
        ("multi_krum( 2,4 )", Krum(2, 4), "fedavg~multi_krum(2,4)"),
        ("clip(1)", NormClip(1.0), "fedavg~clip(1.0)"),
        ("clip", NormClip(), "fedavg~clip"),
        ("clip()", NormClip(), "fedavg~clip"),
    ],
)
def test_a_filter_before_the_mean(text: str, sift: Filter, name: str) -> None:
    assert with_server_rule(fedavg(), filters=[text]) == replace(
        fedavg(), filters=(sift,), name=name
    )


def test_filters_are_appended_in_the_order_given() -> None:
    first = with_server_rule(fedavg(), filters=["clip"])
    both = with_server_rule(first, "median", ["krum(1)", "clip(2)"])
    assert both.filters == (NormClip(), Krum(1), NormClip(2.0))
    assert both.combine == CoordinateMedian()
    assert both.name == "fedavg~clip~median~krum(1)~clip(2.0)"
    assert not re.search(r"[:>\s]", both.name)


def test_nothing_asked_changes_nothing() -> None:
    for algorithm in (fedavg(), local(), central(), flora()):
        assert with_server_rule(algorithm) == algorithm


def test_rules_go_over_boosted_and_two_branched_algorithms() -> None:
    assert with_server_rule(boosted(fedavg()), "median").name == "fedsd+fedavg~median"
    ours = with_server_rule(fedsdr(), "median", ["clip"])
    assert (ours.stages, ours.share, ours.deploys) == (
        fedsdr().stages,
        fedsdr().share,
        fedsdr().deploys,
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "medain",
            r"'medain' is unknown; there are median, trimmed_mean\(0\.2\), geom",
        ),
        ("medain", r"Did you mean 'median'\?"),
        ("trimed_mean(0.2)", r"Did you mean 'trimmed_mean'\?"),
        ("krum(1)", "is unknown"),
        ("Median", r"Did you mean 'median'\?"),
        ("median(", "is unknown"),
        ("median)(", "is unknown"),
        ("median(1)(2)", "is unknown"),
        ("", "is unknown"),
        ("trimmed_mean", r"arguments, 0; it is written trimmed_mean\(0\.2\)"),
        ("trimmed_mean()", "arguments, 0"),
        ("trimmed_mean(0.1, 0.2)", "arguments, 2"),
        ("median(3)", "arguments, 1; it is written median"),
        ("geometric_median(3)", "arguments, 1"),
        ("trimmed_mean(much)", r"'much' in .* is no number; it is written trimmed_mean\(0\.2\)"),
        ("trimmed_mean(0.1,)", "arguments, 2"),
        ("trimmed_mean(0.5)", r"0 <= share < 0\.5, it is 0\.5"),
        ("trimmed_mean(-0.1)", "it is -0.1"),
        ("trimmed_mean(nan)", "is no number"),
        ("trimmed_mean(1e999)", "it is inf"),
        ("means", "is unknown"),
    ],
)
def test_a_wrong_rule_is_named(text: str, said: str) -> None:
    with pytest.raises(RecipeError, match=rf"^server\.combine: .*{said}"):
        with_server_rule(fedavg(), text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("kurm(1)", r"there are krum\(1\), multi_krum\(1, 3\), clip or clip.* mean 'krum'\?"),
        ("median", "is unknown"),
        ("krum", r"arguments, 0; it is written krum\(1\)"),
        ("krum(1, 2)", "arguments, 2"),
        ("multi_krum(1)", r"arguments, 1; it is written multi_krum\(1, 3\)"),
        ("krum(1.0)", "'1.0' in .* is no whole number"),
        ("krum(one)", "'one' in .* is no whole number"),
        ("krum(" + "9" * 5000 + ")", "is no whole number"),
        ("krum(-1)", "must not be negative, it is -1"),
        ("multi_krum(1, 0)", "at least 1, it is 0"),
        ("multi_krum(, 3)", "'' in .* is no whole number"),
        ("clip(0)", "above 0, it is 0.0"),
        ("clip(-2)", "it is -2.0"),
        ("clip(nan)", "is no number"),
        ("clip(inf)", "is no number"),
        ("clip(1, 2)", "arguments, 2"),
    ],
)
def test_a_wrong_filter_is_named(text: str, said: str) -> None:
    with pytest.raises(RecipeError, match=rf"^server\.filters: .*{said}"):
        with_server_rule(fedavg(), filters=["clip", text])


def test_a_rule_of_its_own_is_not_replaced() -> None:
    for algorithm in (flora(), fedadam()):
        rule = type(algorithm.combine).__name__
        with pytest.raises(
            RecipeError,
            match=rf"^server\.combine: 'median' would replace {rule}.*'{algorithm.name}'.*mean",
        ):
            with_server_rule(algorithm, "median")
    with pytest.raises(RecipeError, match="would replace CoordinateMedian"):
        with_server_rule(with_server_rule(fedavg(), "median"), "median")


def test_any_rule_takes_filters() -> None:
    ours = with_server_rule(fedadam(), filters=["krum(1)"])
    assert ours.combine == fedadam().combine
    assert ours.filters == (Krum(1),)


@pytest.mark.parametrize(("combine", "filters"), [("median", ()), (None, ("clip",))])
def test_where_there_is_nothing_to_combine_rules_are_refused(
    combine: str | None, filters: tuple[str, ...]
) -> None:
    key = r"server\.combine" if combine else r"server\.filters"
    with pytest.raises(RecipeError, match=rf"^{key}: algorithm 'local' shares nothing"):
        with_server_rule(local(), combine, filters)
    with pytest.raises(RecipeError, match=rf"^{key}: algorithm 'central' pools all data"):
        with_server_rule(central(), combine, filters)
