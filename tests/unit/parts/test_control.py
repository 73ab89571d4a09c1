"""SCAFFOLD's controls on numbers worked out by hand."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from fedsdr.parts.control import Controlled, OwnControl, SentControl
from fedsdr.parts.moves import Trained
from fedsdr.types import ServerState, Update

OWN, SENT = OwnControl("K", server="C", model="R"), SentControl("C", model="R")


def f64(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def update(client: str, weight: float, **changes: float) -> Update:
    shared = {f"{branch}/l.A": f64([x]) for branch, x in changes.items()}
    return Update(
        run="run", round=1, client_id=client, base_digest="base", weight=weight, shared=shared
    )


def test_the_moves_count_each_client_s_own_steps() -> None:
    """lr ¼; client 0 took 2 steps from 1 to 0: (w_g − w_k)/(K·lr) = 1/(2·¼) = 2; client 1 took 8
    from 1 to 3: −2/(8·¼) = −1. With c = ½ and c_k = 4, −3:
    c_k⁺ = 4 − ½ + 2 = 5.5 and −3 − ½ − 1 = −4.5; what is sent, Δc = 2 − ½ and −1 − ½, is
    c_k⁺ − c_k.
    """
    began = {"R": f64([1.0], [1.0]), "C": f64([0.5], [0.5]), "K": f64([4.0], [-3.0])}
    ended = {**began, "R": f64([0.0], [3.0])}
    stage = Trained(began, torch.tensor([2, 8]), 0.25)
    own, sent = OWN(ended, stage), SENT(ended, stage)
    assert own.tolist() == [[5.5], [-4.5]]
    assert sent.tolist() == [[2.0], [-1.0]]
    assert torch.equal(sent - began["C"], own - began["K"])


def test_a_rate_of_zero_tells_nothing_and_changes_nothing() -> None:
    """The end of a cosine: 0/0 is not a gradient."""
    flats = {"R": f64([1.0]), "C": f64([0.5]), "K": f64([4.0])}
    stage = Trained(flats, torch.tensor([2]), 0.0)
    assert OWN(flats, stage).tolist() == [[4.0]]
    assert SENT(flats, stage).tolist() == [[0.5]]


def test_the_server_weighs_models_and_counts_controls_among_all() -> None:
    """Weights 1 and 3, two of N = 4 clients: w = 10 + (1·4 + 3·8)/4 = 17; c = 1 + (2/4)·(1·2 +
    3·6)/4 = 3.5."""
    state = ServerState(3, {"R/l.A": f64([10.0]), "C/l.A": f64([1.0])}, clients=4)
    after = Controlled("C")(state, [update("a", 1.0, R=4.0, C=2.0), update("b", 3.0, R=8.0, C=6.0)])
    assert {n: t.item() for n, t in after.shared.items()} == {"R/l.A": 17.0, "C/l.A": 3.5}
    assert (after.round, after.clients) == (4, 4)


def test_two_rounds_on_two_parabolas() -> None:
    """L_k = (w − a_k)²/2 with a = 1, 3; one step of lr ½ a round; N = 2, equal weights; w = c = 0.

    Round 1: gradients −1, −3; w_k = ½, 3/2; c_k = −1, −3; c = −2; w = 1.
    Round 2: gradients 0, −2; with + c − c_k they are 0 − 2 + 1 = −1 and −2 − 2 + 3 = −1, so both
    clients go to 3/2; c_k = −1 + 2 + (1 − 3/2)/½ = 0 and −3 + 2 − 1 = −2, which are the gradients
    at w = 1; c = −2 + (1 + 1)/2 = −1; w = 3/2.
    """
    targets, lr = f64([1.0], [3.0]), 0.5
    state = ServerState(0, {"R/l.A": f64([0.0]), "C/l.A": f64([0.0])}, clients=2)
    own = f64([0.0], [0.0])
    seen: list[Mapping[str, list[float]]] = []
    for _ in range(2):
        w, c = (state.shared[f"{b}/l.A"].expand(2, 1) for b in "RC")
        began = {"R": w, "C": c, "K": own}
        ended = {**began, "R": w - lr * ((w - targets) + c - own)}
        stage = Trained(began, torch.tensor([1, 1]), lr)
        own, sent = OWN(ended, stage), SENT(ended, stage)
        change = {"R": ended["R"] - w, "C": sent - c}
        updates = [
            update(str(k), 1.0, **{b: d[k].item() for b, d in change.items()}) for k in (0, 1)
        ]
        state = Controlled("C")(state, updates)
        server = [state.shared[f"{b}/l.A"].item() for b in "RC"]
        seen.append(
            {"client": ended["R"][:, 0].tolist(), "c_k": own[:, 0].tolist(), "w, c": server}
        )
    assert seen == [
        {"client": [0.5, 1.5], "c_k": [-1.0, -3.0], "w, c": [1.0, -2.0]},
        {"client": [1.5, 1.5], "c_k": [0.0, -2.0], "w, c": [1.5, -1.0]},
    ]


def test_clients_of_unequal_size_meet_where_fedavg_s_objective_has_its_minimum() -> None:
    """L_k = (w − a_k)²/2 with a = 0, 1 and n = 9, 1: Σ p_k L_k is least at w = .1, and there c_k =
    ∇L_k(.1) = .1 and −.9. Were c an unweighted mean, w would settle at .5."""
    targets, weights, lr = f64([0.0], [1.0]), (9.0, 1.0), 0.1
    state = ServerState(0, {"R/l.A": f64([5.0]), "C/l.A": f64([0.0])}, clients=2)
    own = f64([0.0], [0.0])
    for _ in range(400):
        w, c = (state.shared[f"{b}/l.A"].expand(2, 1) for b in "RC")
        began, here = {"R": w, "C": c, "K": own}, w
        for _ in range(3):
            here = here - lr * ((here - targets) + c - own)
        stage = Trained(began, torch.tensor([3, 3]), lr)
        own, sent = OWN({**began, "R": here}, stage), SENT({**began, "R": here}, stage)
        updates = [
            update(str(k), weights[k], R=(here - w)[k].item(), C=(sent - c)[k].item())
            for k in (0, 1)
        ]
        state = Controlled("C")(state, updates)
    assert state.shared["R/l.A"].item() == pytest.approx(0.1, abs=1e-6)
    assert own[:, 0].tolist() == pytest.approx([0.1, -0.9], abs=1e-6)


def test_half_precision_is_added_up_in_single() -> None:
    """2048 + 1 is 2048 in fp16."""
    half = {"C/l.A": torch.tensor([0.0], dtype=torch.float16)}
    sent = [
        Update(
            run="run",
            round=1,
            client_id=str(k),
            base_digest="base",
            weight=1.0,
            shared={"C/l.A": torch.tensor([x], dtype=torch.float16)},
        )
        for k, x in enumerate([2048.0, 1.0, 1.0, 1.0, 1.0])
    ]
    after = Controlled("C")(ServerState(0, half, clients=4), sent)
    assert after.shared["C/l.A"].item() == pytest.approx(2052 / 4)
