"""Server rules that know that R is a product: weights w_k, not changes, enter the products.

Each acts on the pairs of R, layer by layer, in units of α/r. Whatever else is shared is averaged
where it was sent, and stays as it is where it was not. Sums are fp64.

Objectives that hold a model near an earlier self, the base or the model as the round began:
added to any algorithm's loss (`algorithm.objectives`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from fedsdr.errors import RecipeError
from fedsdr.parts import lowrank
from fedsdr.parts.combine import Downlink, Mean, Same, moved, weighted_mean
from fedsdr.parts.lowrank import Pair
from fedsdr.parts.objectives import Local, divergence
from fedsdr.types import ServerState, Update


@dataclass(frozen=True, slots=True)
class Truncated:
    """Downlink: a client of rank r_k gets the first r_k rows of A and columns of B.

    `rescale` is for clients whose scale is α over their own rank: with B·(r_k/r) their
    (α/r_k) B A is the server's (α/r) B A.
    """

    rescale: bool = False

    def __call__(self, state: ServerState, rank: int | None) -> Mapping[str, Tensor]:
        if rank is None:
            return state.shared
        return {name: self._cut(name, w, rank) for name, w in state.shared.items()}

    def _cut(self, name: str, w: Tensor, rank: int) -> Tensor:
        if not name.startswith("R/"):
            return w
        full = _rank(name, w)
        if not 1 <= rank <= full:
            raise RecipeError(
                f"lora.R.ranks: a client's rank must lie between 1 and {full} (lora.R.rank), "
                f"it is {rank}"
            )
        if name.endswith(".A"):
            return w[:rank].clone()
        cut = w[:, :rank].clone(memory_format=torch.contiguous_format)
        return cut * (rank / full) if self.rescale else cut


@dataclass(frozen=True, slots=True)
class Refactored:
    """FlexLoRA (Bai et al. 2024): the mean of the products, cut back to rank r.

    M = Σ p_k (r/r_k) B_k A_k = U S Vᵀ,   A ← V_rᵀ,   B ← U_r S_r
    """

    downlink: Downlink

    def __call__(self, state: ServerState, updates: Iterable[Update]) -> ServerState:
        rest, terms = without_r(state, updates), mean_product(state, updates, self.downlink)
        shared = dict(rest.shared)
        for layer, begun in pairs(state.shared).items():
            # The broadcast A, times zero, lends its directions where the clients' ranks together
            # are below r: rows of zeros could never learn.
            new = lowrank.nearest([*terms[layer], begun.scaled(0.0)], begun.rank)
            shared |= named("R", layer, new.to(begun.a.dtype))
        return replace(rest, shared=shared)


@dataclass(frozen=True, slots=True)
class PaddedMean:
    """HetLoRA (Cho et al. 2024): factors padded with zeros to rank r and averaged, layer by layer,
    with weights ‖B_k A_k‖_F / Σ_j ‖B_j A_j‖_F.

    Without its rank pruning and without the tail penalty that goes with it. `examples` weighs by
    n_k/n instead, as does a layer in which all products are zero.
    """

    downlink: Downlink
    weights: Literal["norm", "examples"] = "norm"

    def __call__(self, state: ServerState, updates: Iterable[Update]) -> ServerState:
        rest, weights = without_r(state, updates), self._weights(state, updates)
        begun = pairs(state.shared)
        sums = {layer: lowrank.zeros_like(pair) for layer, pair in begun.items()}
        highest = 0
        for k, update in enumerate(updates):
            for layer, pair in returned(state, update, self.downlink).items():
                highest = max(highest, pair.rank)
                wide = lowrank.padded(pair, begun[layer].rank)
                sums[layer].a.add_(wide.a, alpha=weights[layer][k])
                sums[layer].b.add_(wide.b, alpha=weights[layer][k])
        shared = dict(rest.shared)
        for layer, pair in sums.items():
            # Nobody who answered has the ranks beyond: zeros in both factors would never train.
            pair.a[highest:], pair.b[:, highest:] = (
                begun[layer].a[highest:],
                begun[layer].b[:, highest:],
            )
            shared |= named("R", layer, pair.to(begun[layer].a.dtype))
        return replace(rest, shared=shared)

    def _weights(self, state: ServerState, updates: Iterable[Update]) -> dict[str, list[float]]:
        """Of every client, by layer."""
        counts, norms = list[float](), {layer: list[float]() for layer in pairs(state.shared)}
        for update in updates:
            counts.append(update.weight)
            for layer, pair in returned(state, update, self.downlink).items():
                norms[layer].append(lowrank.frobenius(pair))
        chosen = {
            layer: of if self.weights == "norm" and sum(of) > 0 else counts
            for layer, of in norms.items()
        }
        return {layer: [weight / sum(of) for weight in of] for layer, of in chosen.items()}


@dataclass(frozen=True, slots=True)
class Refined:
    """LoRA-FAIR (Bian et al. 2025): the means B̄ and Ā, of which B̄ is corrected towards the mean
    product ΔW = Σ p_k B_k A_k. With the Frobenius norm for the distance the minimiser is

    ΔB = (ΔW − B̄ Ā) Āᵀ (Ā Āᵀ + λ I)⁻¹,   where ΔW Āᵀ = Σ p_k B_k (A_k Āᵀ)
    """

    lam: float

    def __call__(self, state: ServerState, updates: Iterable[Update]) -> ServerState:
        averaged = Mean()(state, updates)
        shared = dict(averaged.shared)
        mean = {layer: pair.to(torch.float64) for layer, pair in pairs(shared).items()}
        total, sums = 0.0, {layer: torch.zeros_like(pair.b) for layer, pair in mean.items()}
        for update in updates:
            total += update.weight
            for layer, (a, b) in returned(state, update, Same()).items():
                sums[layer].add_(b @ (a @ mean[layer].a.T), alpha=update.weight)
        for layer, (a, b) in mean.items():
            gram, name = a @ a.T, f"R/{layer}.B"
            ridge = gram + self.lam * torch.eye(len(a), dtype=a.dtype, device=a.device)
            change = torch.linalg.solve(ridge, sums[layer] / total - b @ gram, left=False)
            shared[name] = (b + change).to(shared[name].dtype)
        return replace(averaged, shared=shared)


@dataclass(frozen=True, slots=True)
class Aligned:
    """FedRot-LoRA (Zhang et al. 2026): every client's factors are rotated into the frame of the
    broadcast before they are averaged: A ← Qᵀ A, B ← B Q, which leaves B A as it is.

    Q aligns A_k to A in odd rounds and B_k to B in even ones (in round 1 B is zero). The paper lets
    the clients rotate before they send; the server knows all that it takes, so here it rotates,
    with the same numbers. λ = 0 is FedAvg.
    """

    lam: float

    def __call__(self, state: ServerState, updates: Iterable[Update]) -> ServerState:
        turned = updates if self.lam == 0 else (self._turned(state, u) for u in updates)
        return moved(state, weighted_mean(turned))

    def _turned(self, state: ServerState, update: Update) -> Update:
        changes, sent = dict(update.shared), returned(state, update, Same())
        for layer, begun in pairs(state.shared).items():
            a, b = sent[layer]
            to = begun.to(torch.float64)
            by_a = (state.round + 1) % 2 == 1
            q = lowrank.rotation(a @ to.a.T if by_a else b.T @ to.b, self.lam)
            changes |= named("R", layer, Pair(q.T @ a - to.a, b @ q - to.b))
        return replace(update, shared=changes)


def pairs(shared: Mapping[str, Tensor], branch: str = "R") -> dict[str, Pair]:
    """The pairs of a branch, by layer, where both halves are there."""
    stems = [n[:-2] for n in shared if n.startswith(f"{branch}/") and n.endswith(".A")]
    return {
        stem.partition("/")[2]: Pair(shared[f"{stem}.A"], shared[f"{stem}.B"])
        for stem in stems
        if f"{stem}.B" in shared
    }


def named(branch: str, layer: str, pair: Pair) -> dict[str, Tensor]:
    return {f"{branch}/{layer}.A": pair.a, f"{branch}/{layer}.B": pair.b}


def returned(state: ServerState, update: Update, downlink: Downlink) -> dict[str, Pair]:
    """A client's factors w_k = w + Δ_k by layer, at its own rank, in fp64; w is what the downlink
    had sent it."""
    rank = next((_rank(n, t) for n, t in update.shared.items() if n.startswith("R/")), None)
    return {
        layer: Pair(
            _moved(begun.a, update.shared.get(f"R/{layer}.A")),
            _moved(begun.b, update.shared.get(f"R/{layer}.B")),
        )
        for layer, begun in pairs(downlink(state, rank)).items()
    }


def mean_product(
    state: ServerState, updates: Iterable[Update], downlink: Downlink
) -> dict[str, list[Pair]]:
    """By layer the clients' terms p_k (r/r_k) B_k A_k, in units of the server's α/r. They are in
    memory all at once: a sum of products has no shorter form than its factors side by side."""
    full = pairs(state.shared)
    total, terms = 0.0, {layer: list[Pair]() for layer in full}
    for update in updates:
        total += update.weight
        for layer, pair in returned(state, update, downlink).items():
            terms[layer].append(pair.scaled(update.weight * full[layer].rank / pair.rank))
    return {layer: [term.scaled(1 / total) for term in of] for layer, of in terms.items()}


def without_r(state: ServerState, updates: Iterable[Update]) -> ServerState:
    """The next state, R still as it was (its ranks may differ, so that it has no mean)."""
    others = (
        replace(u, shared={n: t for n, t in u.shared.items() if not n.startswith("R/")})
        for u in updates
    )
    return moved(state, weighted_mean(others))


def _rank(name: str, tensor: Tensor) -> int:
    return tensor.shape[0 if name.endswith(".A") else 1]


def _moved(begun: Tensor, change: Tensor | None) -> Tensor:
    return begun.double() if change is None else begun.double() + change.double()


@dataclass(frozen=True, slots=True)
class SelfAug:
    """SelfAug (Huang et al. 2025): weight · KL(p_base ‖ p_tuned), mean over the next-token
    distributions of the input.

    The authors' code averages over all positions whose label is masked; that is the same but for
    the last token of the prompt, where the response begins: here it belongs to the response.
    """

    weight: float

    def __call__(self, local: Local) -> Tensor:
        tuned, base = local.predict("now", "input"), local.predict("base", "input")
        return self.weight * local.mean(divergence(base.logits, tuned.logits), tuned)


@dataclass(frozen=True, slots=True)
class Rectified:
    """Self-distillation from the model as the round began, corrected where it errs:
    weight · τ² KL(p̂_start ‖ p_now), mean over the response tokens, both at temperature τ.

    p̂: wherever the teacher's likeliest token is not the label, the probabilities of the two are
    swapped; all others stay (dynamic rectification KD, Amik et al. 2022: the self-teacher's errors
    are rectified by the ground truth before they are distilled; the swap is the probability shift
    of Wen et al. 2019). Swapping logits swaps probabilities at every temperature.
    """

    weight: float
    temperature: float = 2.0

    def __call__(self, local: Local) -> Tensor:
        now, teacher = local.predict(), local.predict("start")
        logits = rectify(teacher.logits, teacher.targets)
        values = divergence(logits, now.logits, self.temperature)
        return self.weight * self.temperature**2 * local.mean(values, now)


def rectify(logits: Tensor, labels: Tensor) -> Tensor:
    """[n, V] with the label's logit and the largest one in each other's place; where the label has
    the largest, or shares it, nothing changes."""
    label = labels[:, None]
    highest, at = logits.max(dim=1, keepdim=True)
    label_logit = logits.gather(1, label)
    return logits.scatter(1, at, label_logit).scatter(1, label, highest)
