"""How different clients' texts are, without any model: Jensen-Shannon divergence of their
words, and the cosine of their TF-IDF centroids."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import special  # pyright: ignore[reportMissingTypeStubs]
from torch import Tensor

from fedsdr.evaluate.diagnostics.matrix import cosines
from fedsdr.text.words import words

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
