"""How the clients of one round moved, compared with each other.

Of a branch, g_k is the change that client k's round made to what the branch adds to the base, over
all measured layers:

    g_k = (α/r) (B₁A₁ − B₀A₀) = (α/r) (ΔB·A₁ + B₀·ΔA)

Cosines, norms, conflict and diversity are of these products; drift is of the numbers that were sent
(ΔA, ΔB). No product is ever formed: of any two,

    ⟨B_iA_i, B_jA_j⟩ = tr((B_jᵀB_i)(A_iA_jᵀ)),

and with the inner products of all pairs (a Gram matrix), the norm of any sum over clients is a
quadratic form. All sums are fp64; what has no value (the cosine of what did not move) is None.

Aggregation error: how far what the server made of a round lies from the mean of the clients'
products.

    ‖B̄Ā − Σ p_k B_k A_k‖ / ‖Σ p_k B_k A_k‖

B̄Ā is what the server's rule left in the branch, together with what it folded into the base (the
change of P). Factors averaged one by one miss the mean product by how A and B vary together over
the clients; exact rules miss nothing. A rule that takes a step of its own (momentum, Adam) is
measured with that step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fedsdr.evaluate.diagnostics.tables import Matrix, as_matrix, normalised, rounded
from fedsdr.parts import lowrank
from fedsdr.parts.lowrank import Pair
from fedsdr.tensors import nbytes
from fedsdr.types import Tensors

ROOM = 4 << 30  # bytes of the clients' factors that are in memory at once
NOISE = 1e-12  # a sum whose square is below this share of its terms' squares is rounding
Place = tuple[str, str]  # branch, layer
Layers = Mapping[str, Sequence[str]]  # by branch


@dataclass(frozen=True, slots=True)
class ClientRound:
    """One client's round, factor by factor ("R/<layer>.A"): what it began with, the changes that it
    sent, and what it kept to itself, as it ended. `scales` are α/r, by branch."""

    client_id: str
    weight: float
    begun: Tensors
    sent: Tensors
    kept: Tensors
    scales: Mapping[str, float]

    def at(self, places: Sequence[Place]) -> ClientRound:
        """These layers only: the memory of the others is free again."""
        names = {f"{branch}/{layer}.{half}" for branch, layer in places for half in "AB"}

        def cut(tensors: Tensors) -> Tensors:
            return {name: tensors[name] for name in names & tensors.keys()}

        return replace(self, begun=cut(self.begun), sent=cut(self.sent), kept=cut(self.kept))

    def size(self) -> int:
        return sum(nbytes(tensors) for tensors in (self.begun, self.sent, self.kept))

    def change(self, place: Place) -> Pair:
        """g_k in one layer, as a pair of twice the rank in which nothing has to cancel."""
        (a, b), (da, db) = self._pair(place, self._begun), self._pair(place, self._moved)
        both = Pair(torch.cat([a + da, da]), torch.cat([db, b], dim=1))
        return both.scaled(self.scales[place[0]])

    def ended(self, place: Place) -> Pair:
        """(α/r) B₁A₁."""
        pair = self._pair(place, lambda name: self._begun(name) + self._moved(name))
        return pair.scaled(self.scales[place[0]])

    def sent_at(self, place: Place) -> list[Tensor]:
        """ΔA and ΔB, or the one of them that was sent."""
        names = (f"{place[0]}/{place[1]}.{half}" for half in "AB")
        return [self.sent[name].double().flatten() for name in names if name in self.sent]

    def _begun(self, name: str) -> Tensor:
        return self.begun[name].double()

    def _moved(self, name: str) -> Tensor:
        if name in self.sent:
            return self.sent[name].double()
        before = self._begun(name)
        return self.kept[name].double() - before if name in self.kept else torch.zeros_like(before)

    def _pair(self, place: Place, read: Callable[[str], Tensor]) -> Pair:
        branch, layer = place
        return Pair(read(f"{branch}/{layer}.A"), read(f"{branch}/{layer}.B"))


@dataclass(frozen=True, slots=True)
class Beside:
    """Two branches that a deployed mix adds up: R, say, and S. Of each, what the server holds after
    the round; where that is nothing, the client's own."""

    first: str
    second: str
    server: Callable[[Place], Pair | None]

    def gram(self, client: ClientRound, layer: str) -> Tensor:
        places = ((self.first, layer), (self.second, layer))
        return gram([self.server(place) or client.ended(place) for place in places])


def compare(
    clients: Iterable[ClientRound], count: int, layers: Layers, beside: Beside | None = None
) -> dict[str, Any]:
    """What `diagnostics.jsonl` holds of `count` clients, who can be read as often as it takes. A
    branch that nobody moved is left out."""
    held = list[ClientRound]()
    products = {branch: torch.zeros(count, count, dtype=torch.float64) for branch in layers}
    sent, together = dict[str, Tensor](), [torch.zeros(2, 2, dtype=torch.float64)] * count
    for places in portions(clients, count, layers):
        held = [client.at(places) for client in clients]
        for place in places:
            branch, layer = place
            products[branch] += gram([client.change(place) for client in held])
            for same in zip(*(client.sent_at(place) for client in held), strict=True):
                numbers = torch.stack(same)
                sent[branch] = sent.get(branch, torch.zeros(())) + numbers @ numbers.T
            if beside is not None and branch == beside.first:
                together = [
                    sums + beside.gram(client, layer)
                    for sums, client in zip(together, held, strict=True)
                ]
    ids, weights = [c.client_id for c in held], [c.weight for c in held]
    branches = dict[str, Any]()
    for branch, inner in products.items():
        inner.diagonal().clamp_(min=0.0)  # what cancels may round to just below
        if bool((inner.diagonal() > 0).any()):
            branches[branch] = _compared(ids, inner, weights)
            if branch in sent:
                branches[branch]["drift"] = drift(sent[branch], weights)
    row: dict[str, Any] = {"clients": ids, "branches": branches}
    if beside is not None:
        row["personal"] = {c: _beside(inner) for c, inner in zip(ids, together, strict=True)}
    return row


def gram(pairs: Sequence[Pair]) -> Tensor:
    """[K, K]: ⟨B_iA_i, B_jA_j⟩ of all pairs, from two products over all ranks side by side."""
    a, b = torch.cat([p.a for p in pairs]), torch.cat([p.b for p in pairs], dim=1)
    ranks = torch.tensor([p.rank for p in pairs])
    owner = torch.eye(len(pairs), dtype=a.dtype).repeat_interleave(ranks, dim=0)
    return owner.T @ ((b.T @ b) * (a @ a.T)) @ owner


def conflict(cosine: Matrix) -> float | None:
    """The share of pairs of clients whose cosine is below zero, of those that have one."""
    upper = [c for i, row in enumerate(cosine) for c in row[i + 1 :] if c is not None]
    return rounded(sum(c < 0 for c in upper) / len(upper)) if upper else None


def diversity(inner: Tensor, weights: Sequence[float]) -> float | None:
    """Gradient diversity: Σ p_k‖g_k‖² / ‖Σ p_k g_k‖². 1 where all clients move alike."""
    p = _shares(weights)
    apart, joint = float(p @ inner.diagonal()), float(p @ inner @ p)
    return rounded(apart / joint) if joint > NOISE * apart else None


def drift(inner: Tensor, weights: Sequence[float]) -> float | None:
    """Client drift: Σ p_k‖w_k − w̄‖ / ‖w̄ − w_prev‖, w̄ = Σ p_k w_k: the mean of the clients, not
    what a server's rule may have made of it."""
    p = _shares(weights)
    squares, joint = inner.diagonal(), p @ inner @ p
    if float(joint) <= NOISE * float(p @ squares):
        return None
    distances = (squares - 2 * inner @ p + joint).clamp(min=0).sqrt()
    return rounded(float(p @ distances / joint.sqrt()))


def _compared(ids: Sequence[str], inner: Tensor, weights: Sequence[float]) -> dict[str, Any]:
    cosine, norms = as_matrix(normalised(inner)), inner.diagonal().sqrt().tolist()
    return {
        "cosine": cosine,
        "norms": {c: float(f"{norm:.6g}") for c, norm in zip(ids, norms, strict=True)},
        "conflict": conflict(cosine),
        "diversity": diversity(inner, weights),
    }


def _beside(inner: Tensor) -> dict[str, float | None]:
    """‖ΔW_S‖/‖ΔW_R‖ and cos(ΔW_S, ΔW_R), R standing first."""
    first, second = inner.diagonal().sqrt().tolist()
    return {
        "s_over_r": rounded(second / first) if first else None,
        "cos_s_r": rounded(float(normalised(inner)[0, 1])),
    }


def _shares(weights: Sequence[float]) -> Tensor:
    return torch.tensor(weights, dtype=torch.float64) / math.fsum(weights)


def portions(clients: Iterable[ClientRound], count: int, layers: Layers) -> Iterator[list[Place]]:
    """All places, in as many parts as it takes to hold every client's factors within ROOM; the
    branches of one layer stay together."""
    by_layer = dict[str, list[Place]]()
    for branch, of in layers.items():
        for layer in of:
            by_layer.setdefault(layer, []).append((branch, layer))
    client, part, size = next(iter(clients)), list[Place](), 0
    for places in by_layer.values():
        more = client.at(places).size() * count
        if part and size + more > ROOM:
            yield part
            part, size = [], 0
        part, size = [*part, *places], size + more
    if part:
        yield part


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
