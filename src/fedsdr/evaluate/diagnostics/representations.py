"""Where clients' rows lie in a model's eyes: a map of their mean last states by PCA, and linear CKA
between models.

How different clients' texts are, without any model: Jensen-Shannon divergence of their
words, and the cosine of their TF-IDF centroids.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import special
from torch import Tensor

from fedsdr.data.render import Rendered, make_block
from fedsdr.evaluate.diagnostics.gradients import chunks
from fedsdr.evaluate.diagnostics.tables import cosines
from fedsdr.model.lora import StackedLora
from fedsdr.text.names import words


@torch.no_grad()
def mean_states(
    lora: StackedLora, branch: str, flats: Tensor | None, rows: Sequence[Rendered], batch: int
) -> Tensor:
    """[models, rows, d]: each row's last-layer states, mean over its tokens, prompt and response
    but the closing one; by the base (None), or by K models side by side."""
    base, device = lora.base, lora.base.net.device
    worn = {} if flats is None else {branch: flats.to(device)}
    models = 1 if flats is None else len(flats)
    parts, order = list[Tensor](), list[int]()
    for chunk in chunks(rows, max(1, batch // models)):
        block = make_block([[rows[i] for i in chunk]] * models, base.pad, device)
        places = torch.arange(1, block.ids.shape[1], device=device) < block.lengths[:, None]
        with lora.wear(worn, tuple(worn)):
            states = base.predictions(block.ids, block.lengths, places, hidden=True)[1][-1].double()
        owner = torch.nonzero(places)[:, 0]
        sums = states.new_zeros(len(block.lengths), states.shape[1]).index_add(0, owner, states)
        means = sums / (block.lengths - 1)[:, None]
        parts.append(means.view(models, len(chunk), -1).cpu())
        order += chunk
    return torch.cat(parts, dim=1)[:, torch.tensor(order).argsort()]


@dataclass(frozen=True, slots=True)
class Map:
    """Points on two axes, what share of these points' variance each axis holds, and what share lies
    between the clients' centres (in all dimensions)."""

    points: Tensor  # [n, 2]
    explained: tuple[float, float]
    between: float


def maps(views: Mapping[str, Tensor], owners: Sequence[int]) -> dict[str, Map]:
    """One map per view, all on the axes of the first: its two principal components. `owners[n]` is
    the client of row n of every view."""
    first = next(iter(views.values()))
    centre = first.mean(dim=0)
    axes = torch.linalg.svd(first - centre, full_matrices=False).Vh[:2]
    strongest = axes.abs().argmax(dim=1, keepdim=True)
    axes = axes * axes.gather(1, strongest).sign()  # or the sign would be the library's choice
    return {
        name: _map(states, centre, axes, torch.tensor(owners)) for name, states in views.items()
    }


def cka(states: Sequence[Tensor]) -> Tensor:
    """[M, M]: linear CKA (Kornblith et al. 2019) between models' states [n, d] of the same n rows:
    the cosine of their centred Gram matrices. NaN where all states of a model are the same."""
    grams = list[Tensor]()
    for model_states in states:
        centred = (model_states - model_states.mean(dim=0)).double()
        grams.append((centred @ centred.T).flatten())
    return cosines(torch.stack(grams))


def _map(states: Tensor, centre: Tensor, axes: Tensor, owners: Tensor) -> Map:
    points = (states - centre) @ axes.T
    total = float((states - states.mean(dim=0)).square().sum())
    spread = (points - points.mean(dim=0)).square().sum(dim=0)
    groups = [states[owners == owner] for owner in owners.unique()]
    between = sum(
        len(group) * float((group.mean(dim=0) - states.mean(dim=0)).square().sum())
        for group in groups
    )
    shares = [float(s) / total if total else float("nan") for s in (*spread, 0.0)]
    if points.shape[1] < 2:  # fewer than two directions to look along
        points = torch.nn.functional.pad(points, (0, 2 - points.shape[1]))
    return Map(points, (shares[0], shares[1]), between / total if total else float("nan"))


TERMS = (
    "words, case folded (a character each in scripts without spaces), and every mark of "
    "punctuation or symbol"
)


def terms(text: str) -> list[str]:
    """What word distributions are over. Marks count, because they are what code and calls
    consist of; their order is not kept."""
    return [*words(text), *(c for c in text if unicodedata.category(c)[0] in "PS")]


def js_divergence(texts: Sequence[Iterable[str]]) -> Tensor:
    """[K, K]: JS(p, q) = H((p + q)/2) − (H(p) + H(q))/2, base 2, so from 0 to 1, of the clients'
    relative frequencies of terms. No smoothing: the mixture has mass wherever p or q has. NaN for
    a client without any term."""
    shares = _shares(
        [Counter(t for text in client_texts for t in terms(text)) for client_texts in texts]
    )
    entropy = [_entropy(p) for p in shares]
    divergences = torch.zeros(len(texts), len(texts), dtype=torch.float64)
    for i, p in enumerate(shares):
        for j, q in enumerate(shares[:i]):
            value = _entropy((p + q) / 2) - (entropy[i] + entropy[j]) / 2
            divergences[i, j] = divergences[j, i] = value
        divergences[i, i] = 0.0 * entropy[i]
    return divergences.clamp(0.0, 1.0)


def tfidf_cosine(texts: Sequence[Iterable[str]]) -> Tensor:
    """[K, K]: cosine between the clients' mean TF-IDF vectors. A text is tf · idf over its words,
    at length 1; idf = 1 + ln((1 + n)/(1 + df)) over all n texts of all clients together."""
    counts = [[Counter(words(text)) for text in client_texts] for client_texts in texts]
    df = Counter(word for client_counts in counts for count in client_counts for word in count)
    total = sum(map(len, counts))
    at = {word: i for i, word in enumerate(df)}
    idf = 1 + np.log((1 + total) / (1 + np.array(list(df.values()), dtype=np.float64)))
    centroids = np.zeros((len(texts), max(1, len(at))))
    for k, client_counts in enumerate(counts):
        for count in filter(None, client_counts):
            places = [at[word] for word in count]
            weights = np.array(list(count.values())) * idf[places]
            centroids[k, places] += weights / np.linalg.norm(weights)
    return cosines(torch.from_numpy(centroids))


def _shares(counts: Sequence[Counter[str]]) -> list[NDArray[np.float64]]:
    at = {term: i for i, term in enumerate(dict.fromkeys(t for counter in counts for t in counter))}
    shares = list[NDArray[np.float64]]()
    for counter in counts:
        p = np.zeros(len(at))
        p[[at[term] for term in counter]] = list(counter.values())
        shares.append(p / counter.total() if counter else p * np.nan)
    return shares


def _entropy(p: NDArray[np.float64]) -> float:
    return float(special.entr(p).sum() / np.log(2)) if p.size else float("nan")
