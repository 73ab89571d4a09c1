"""Options that would do nothing, or are of another type or out of range, are refused by name."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest

from fedsdr.algorithms.fdsp import fdsp
from fedsdr.algorithms.fedadagrad import fedadagrad
from fedsdr.algorithms.feddpa import feddpa
from fedsdr.algorithms.fedprox import fedprox
from fedsdr.algorithms.fedsdr import fedsdr
from fedsdr.algorithms.registry import factories, make_algorithm
from fedsdr.errors import RecipeError
from fedsdr.parts.algorithm import Algorithm

OTHER: dict[str, Any] = {
    "schedule": "joint",
    "s_state": "reset",
    "selection": "facts",
    "teacher": "global",
    "redistill_every": 2,
    "smooth_epochs": 1.5,
    "rectify_epochs": 1.5,
    "match_compute": True,
    "s_scale": 0.5,
    "s_dropout": 0.5,
    "warmup_rounds": 2,
}
IDLE: dict[str, tuple[str, ...]] = {
    "without_s": tuple(OTHER),
    "without_r": tuple(set(OTHER) - {"selection", "teacher", "redistill_every"}),
    "s_on_raw": ("selection", "teacher", "redistill_every", "warmup_rounds"),
    "share_s": ("s_state", "warmup_rounds"),
    "share_both": ("s_state", "warmup_rounds"),
    "r_on_rewritten": ("warmup_rounds",),
    "none": ("warmup_rounds",),
}


@pytest.mark.parametrize(
    ("ablation", "option"), [(a, o) for a in IDLE for o in OTHER], ids=lambda value: str(value)
)
def test_an_ablation_refuses_what_it_would_drop(ablation: Any, option: str) -> None:
    """And takes what it would not: there, the option changes what is made."""
    given = {option: OTHER[option]}
    if option in IDLE[ablation]:
        with pytest.raises(RecipeError, match=rf"algorithm.{option}: no effect with .*leave it"):
            fedsdr(ablation=ablation, **given)
    else:
        assert fedsdr(ablation=ablation, **given) != fedsdr(ablation=ablation)


@pytest.mark.parametrize(
    ("name", "given", "told"),
    [
        ("fedsdr", {"schedule": "joint", "smooth_epochs": 1.0}, "smooth_epochs: no effect"),
        (
            "fedsdr",
            {"schedule": "joint", "smooth_epochs": 1.0, "rectify_epochs": 1.0},
            "smooth_epochs, rectify_epochs: no effect .*leave them out",
        ),
        ("fedsdr", {"s_dropout": 1.0, "s_scale": 0.5}, "s_scale: no effect"),
        ("fedsdr", {"s_scale": 0.0, "s_dropout": 0.5}, "s_dropout: no effect"),
        ("feddpa", {"federated_rounds": 3}, "federated_rounds: no effect with variant: T"),
        ("feddpa", {"variant": "F", "local_weight": 0.3}, "local_weight: no effect with variant"),
        ("fdsp", {"lambda_d": 0.0, "tau": 3.0}, "tau: no effect with lambda_d: 0"),
        ("fdsp", {"lambda_d": 0.0, "growth": 1.0}, "growth: no effect with lambda_d: 0"),
        ("fdsp", {"lambda_r": 0.0, "layers": "depth"}, "layers: no effect with lambda_r: 0"),
        ("fdsp", {"lambda_c": 0.0, "beta": 2.0}, "beta: no effect with lambda_c: 0"),
        ("fdsp", {"injection": "rank_drop", "sigma": 2.0}, "sigma: no effect with injection"),
        ("fdsp", {"rate": 0.5}, "rate: no effect with injection: gaussian"),
        ("fdsp", {"rho_attention": 0.0, "rho_feed_forward": 0.0}, "lambda_c: no effect"),
        (
            "fedadagrad",
            {"variant": "squared_momentum", "beta1": 0.5},
            "beta1: no effect with variant: squared_momentum",
        ),
    ],
)
def test_what_other_options_switch_off_is_refused(
    name: str, given: dict[str, Any], told: str
) -> None:
    with pytest.raises(RecipeError, match=told):
        make_algorithm(name, given)


def test_what_is_given_as_it_is_anyway_is_no_mistake() -> None:
    assert fedsdr(ablation="without_s", s_scale=1.0, selection="none").name == "fedsdr-without_s"
    assert fdsp(lambda_d=0.0, tau=2.0) == fdsp(lambda_d=0.0)
    assert feddpa(federated_rounds=8) == feddpa()
    assert fedadagrad(variant="squared_momentum", beta1=0.9).name == "fedadagrad"


def test_a_weight_of_many_digits_stays_what_it_is() -> None:
    (term,) = feddpa(local_weight=0.123456789).stages[0].terms
    assert term.forward == "0.876543211*R+0.123456789*L"


JUNK: tuple[Any, ...] = (
    None, True, "x", "1", [], {}, (), b"1", 1j, math.nan, math.inf, -math.inf, 1e300, -1e300,
    10**400, 10**5000, -1, object(),
)  # fmt: skip
OPTIONS = [(n, o) for n, make in factories().items() for o in inspect.signature(make).parameters]


@pytest.mark.parametrize(("name", "option"), OPTIONS)
def test_every_option_of_every_algorithm_refuses_junk(name: str, option: str) -> None:
    """By name, in one line, from a recipe and from Python alike."""
    make = factories()[name]
    default = inspect.signature(make).parameters[option].default
    for junk in JUNK:
        if junk is default or type(junk) is type(default) is bool:
            continue
        if junk is None and option.endswith("_epochs"):
            continue
        for call in (lambda: make(**{option: junk}), lambda: make_algorithm(name, {option: junk})):  # noqa: B023
            if option == "s_scale" and junk == -1:
                assert isinstance(call(), Algorithm)
                continue
            with pytest.raises(RecipeError) as caught:
                call()
            assert option in str(caught.value)
            assert len(str(caught.value)) < 300


def test_there_are_options_to_try() -> None:
    assert len(OPTIONS) > 40


def test_positional_options_are_checked_too() -> None:
    with pytest.raises(RecipeError, match=r"algorithm\.mu must be at least 0, it is -1"):
        fedprox(-1)


def test_what_is_no_algorithm_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import fedsdr.algorithms.registry as registry

    monkeypatch.setattr(registry, "factories", lambda: {"odd": lambda: 3})
    with pytest.raises(RecipeError, match="'odd' made a int, no Algorithm"):
        make_algorithm("odd")
