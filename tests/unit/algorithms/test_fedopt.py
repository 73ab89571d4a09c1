"""FedAvgM, FedAdagrad, FedYogi and FedAdam: FedAvg in all but the server's rule."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace

import pytest

from fedsdr.algorithms.fedadagrad import fedadagrad
from fedsdr.algorithms.fedadam import fedadam
from fedsdr.algorithms.fedavg import fedavg
from fedsdr.algorithms.fedavgm import fedavgm
from fedsdr.algorithms.fedsd import boosted
from fedsdr.algorithms.fedyogi import fedyogi
from fedsdr.errors import RecipeError
from fedsdr.parts.algorithm import Algorithm
from fedsdr.parts.combine import Combine
from fedsdr.parts.server_rules import Adagrad, Adam, Adaptive, Momentum, Yogi

Factory = Callable[..., Algorithm]
DEFAULTS: dict[Factory, Combine] = {
    fedavgm: Momentum(0.9, 1.0, "textbook"),
    fedadagrad: Adaptive(Adagrad(), 1e-3, 1e-3, 0.9, "textbook"),
    fedyogi: Adaptive(Yogi(0.99), 1e-3, 1e-3, 0.9, "textbook"),
    fedadam: Adaptive(Adam(0.99), 1e-3, 1e-3, 0.9, "textbook"),
}
every_factory = pytest.mark.parametrize("factory", DEFAULTS)
DECAYS = (-0.1, 1, 1.0, 1.5, math.nan, math.inf, -math.inf)
RATES = (0, 0.0, -1e-3, math.nan, math.inf, -math.inf)
SCALES = (*RATES, 1e-19, 1e19, 1e200)
TABLE = {
    fedavgm: {"momentum": DECAYS, "server_lr": RATES},
    fedadagrad: {"server_lr": RATES, "tau": SCALES, "beta1": DECAYS},
    fedyogi: {"server_lr": RATES, "tau": SCALES, "beta1": DECAYS, "beta2": DECAYS},
    fedadam: {"server_lr": RATES, "tau": SCALES, "beta1": DECAYS, "beta2": DECAYS},
}


@every_factory
def test_clients_do_what_they_do_in_fedavg(factory: Factory) -> None:
    algorithm = factory()
    assert algorithm.name == factory.__name__
    assert algorithm.combine == DEFAULTS[factory]
    assert replace(algorithm, name="fedavg", combine=fedavg().combine) == fedavg()


@every_factory
def test_boosting_leaves_the_server_alone(factory: Factory) -> None:
    assert boosted(factory()).combine == factory().combine


def test_every_option_reaches_the_rule() -> None:
    assert fedavgm(0.1, 0.2, "damped").combine == Momentum(0.1, 0.2, "damped")
    squared = "squared_momentum"
    adagrad = fedadagrad(server_lr=0.1, tau=0.2, variant=squared)
    assert adagrad.combine == Adaptive(Adagrad(), 0.1, 0.2, 0.0, squared)
    yogi = fedyogi(server_lr=0.1, tau=0.2, beta1=0.3, beta2=0.4, variant=squared)
    assert yogi.combine == Adaptive(Yogi(0.4), 0.1, 0.2, 0.3, squared)
    adam = fedadam(server_lr=0.1, tau=0.2, beta1=0.3, beta2=0.4, variant=squared)
    assert adam.combine == Adaptive(Adam(0.4), 0.1, 0.2, 0.3, squared)


@pytest.mark.parametrize(
    ("factory", "option", "value"),
    [(f, option, value) for f, has in TABLE.items() for option in has for value in has[option]],
)
def test_a_senseless_option_is_refused(factory: Factory, option: str, value: float) -> None:
    with pytest.raises(
        RecipeError, match=rf"^algorithm\.{option} must .* it is {re.escape(str(value))}$"
    ):
        factory(**{option: value})


def test_no_memory_is_a_choice() -> None:
    assert fedavgm(momentum=0.0).combine == Momentum(0.0, 1.0)
    assert fedadam(beta1=0.0, beta2=0.0).combine == Adaptive(Adam(0.0), 1e-3, 1e-3, 0.0)
