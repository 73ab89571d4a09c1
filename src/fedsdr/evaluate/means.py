"""From every client's scores to one number a measure."""

from __future__ import annotations

from collections.abc import Mapping

ClientScores = Mapping[str, Mapping[str, Mapping[str, float]]]  # mix -> client -> measure -> value


def means(scores: ClientScores) -> dict[str, dict[str, float]]:
    """Mix -> measure -> mean over the clients that have it."""
    out: dict[str, dict[str, float]] = {}
    for mix, clients in scores.items():
        measures = dict.fromkeys(m for c in clients.values() for m in c)
        out[mix] = {
            m: sum(c[m] for c in clients.values() if m in c) / sum(m in c for c in clients.values())
            for m in measures
        }
    return out
