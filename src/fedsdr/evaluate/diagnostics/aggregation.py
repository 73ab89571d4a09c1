"""Aggregation error: how far what the server made of a round lies from the mean of the clients'
products.

    ‖B̄Ā − Σ p_k B_k A_k‖ / ‖Σ p_k B_k A_k‖

B̄Ā is what the server's rule left in the branch, together with what it folded into the base (the
change of P). Factors averaged one by one miss the mean product by how A and B vary together over
the clients; exact rules miss nothing. A rule that takes a step of its own (momentum, Adam) is
measured with that step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from fedsdr.evaluate.diagnostics.matrix import rounded
from fedsdr.evaluate.diagnostics.rounds import ClientRound, Place, portions
from fedsdr.parts import lowrank
from fedsdr.parts.lowrank import Pair

Term = Pair | Tensor  # a product, or a matrix that is dense already


def aggregation_error(
    clients: Iterable[ClientRound],
    count: int,
    branch: str,
    layers: Sequence[str],
    server: Callable[[Place], Sequence[Term]],
) -> float | None:
    """Over the layers of a branch together; None where the mean product is zero. `server`: what it
    has in one layer, as a sum, scaled as the clients' products are."""
    missed = whole = 0.0
    for places in portions(clients, count, {branch: layers}):
        held = [client.at(places) for client in clients]
        total = math.fsum(client.weight for client in held)
        for place in places:
            mean = [client.ended(place).scaled(client.weight / total) for client in held]
            whole += norm(mean) ** 2
            missed += norm([*server(place), *(pair.scaled(-1.0) for pair in mean)]) ** 2
    return rounded(math.sqrt(missed / whole)) if whole else None


def norm(terms: Sequence[Term]) -> float:
    """‖Σ terms‖_F; an [out, in] is formed only where one of them is dense."""
    pairs = [term for term in terms if isinstance(term, Pair)]
    dense = [term.double() for term in terms if not isinstance(term, Pair)]
    if not dense:
        return lowrank.frobenius(lowrank.stacked(pairs))
    whole = torch.stack(dense).sum(dim=0)
    if pairs:
        product = lowrank.stacked(pairs)
        whole = torch.addmm(whole, product.b, product.a)
    return float(torch.linalg.matrix_norm(whole))
