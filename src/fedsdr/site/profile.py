"""What a site tells of its records before round 1: how many rows, of what kind, and how long. No
record's text, and no label that marks only a few rows."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from fedsdr.data.render import Rendered
from fedsdr.parts.views import Raw
from fedsdr.site.prepare import RAW, token_rows
from fedsdr.site.site import Site
from fedsdr.types import ClientData, Example, Order, Report

EDGES = (0, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)  # the last bin is open
LABELS, LABEL_LENGTH, OTHER = 64, 80, "other"
FEWEST = 5  # rows that share a label: one that marks a row or two may name a person


def profile(site: Site, group: Sequence[Order]) -> Iterator[Report]:
    """Of the training rows, in tokens as they are trained on."""
    for order in group:
        client = site.scored[order.client_id]
        raw, rewritten = _token_rows(site, client)
        lengths = {"raw": _responses(raw)}
        if rewritten is not None:
            lengths["rewritten"] = _responses(rewritten)
        values = {
            "rows": {
                "train": len(client.train),
                "validation": len(client.validation),
                "test": len(client.test),
            },
            "domains": _labels(client, lambda e: e.domain),
            "origins": _labels(client, lambda e: e.origin),
            "prompt_tokens": histogram([row.prompt for row in raw]),
            "response_tokens": lengths,
        }
        yield Report(order.run, order.round, order.client_id, "profile", values)


def histogram(lengths: Sequence[int]) -> dict[str, Any]:
    """Counts between `EDGES`, percentiles by nearest rank, and the mean."""
    counts, ordered = [0] * len(EDGES), sorted(lengths)
    for length in ordered:
        counts[bisect_right(EDGES, length) - 1] += 1
    ranks = {f"p{p}": -(-p * len(ordered) // 100) - 1 for p in (10, 50, 90)}
    return {
        "edges": list(EDGES),
        "counts": counts,
        **{name: ordered[rank] if ordered else None for name, rank in ranks.items()},
        "mean": round(sum(ordered) / len(ordered), 2) if ordered else None,
    }


def _token_rows(
    site: Site, client: ClientData
) -> tuple[Sequence[Rendered], Sequence[Rendered] | None]:
    """As they are, and as rewritten by now; where all rows are pooled to train, the client's part
    of them: they stand client by client."""
    name = client.client_id
    if name in site.clients:
        raw = token_rows(site, name, Raw())
        first, pool = 0, name
    else:
        names = list(site.scored)
        first = sum(len(site.scored[n].train) for n in names[: names.index(name)])
        pool = next(iter(site.clients))
        raw = token_rows(site, pool, Raw())[first : first + len(client.train)]
    views = [view for owner, view in site.tokens if owner == pool and view != RAW]
    if not views:
        return raw, None
    return raw, site.tokens[pool, views[0]][first : first + len(client.train)]


def _responses(rows: Sequence[Rendered]) -> dict[str, Any]:
    return histogram([len(row.ids) - row.prompt for row in rows])


def _labels(client: ClientData, label: Callable[[Example], str]) -> dict[str, int]:
    """The most frequent first; those that are rare, and those beyond, are all one."""
    counted = Counter(label(e)[:LABEL_LENGTH] for e in client.train if label(e))
    common = (name for name in counted if counted[name] >= FEWEST)
    named = sorted(common, key=lambda name: (-counted[name], name))[:LABELS]
    labels = {name: counted[name] for name in named}
    if rest := counted.total() - sum(labels.values()):
        labels[OTHER] = labels.get(OTHER, 0) + rest
    return labels
