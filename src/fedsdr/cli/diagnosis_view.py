"""What `diagnose` shows: raw and rewritten side by side; matrices where clients are few."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

from rich.console import Console

from fedsdr.cli.printing import figure, say, show_table

MOST = 12  # clients that a matrix shows; of more, the most extreme pairs
EXTREMES = 3
PARTS = ("p10", "p50", "p90")
FACTS = ("numbers", "names", "dates", "negation")
SYMMETRIC = {
    "js_divergence": "Jensen-Shannon divergence of the answers' words (0 alike, 1 disjoint)",
    "js_divergence_prompts": "Jensen-Shannon divergence of the prompts' words",
    "tfidf_cosine": "TF-IDF cosine of the answers",
    "gradient_cosine": "cosine of the gradients at the base model",
    "cka": "linear CKA between the clients' trained models",
}
Audit = Mapping[str, Any]


def show_diagnosis(console: Console, figures: Mapping[str, Any]) -> None:
    views: Mapping[str, Mapping[str, Any]] = figures["views"]
    for note in figures["notes"]:
        say(console, f"note: {note}")
    if "sampled_of" in figures:
        say(console, f"note: {len(figures['clients'])} of {figures['sampled_of']} clients, drawn")
    ids: list[str] = figures["clients"]
    if len(ids) <= MOST:
        say(console, "clients: " + ", ".join(f"{n} {name}" for n, name in enumerate(ids, 1)))
    _show_means(console, views)
    if 1 < len(ids) <= MOST:
        _show_matrices(console, ids, views)
    elif len(ids) > MOST:
        _show_extremes(console, ids, views)
    if "response_tokens" in views["raw"]:
        _show_lengths(console, ids, views)
    if "audit" in figures:
        _show_audit(console, ids, figures["audit"])


def _show_means(console: Console, views: Mapping[str, Mapping[str, Any]]) -> None:
    shown: dict[str, Callable[[Mapping[str, Any]], float | None]] = {
        "JS divergence of answers": lambda v: v["js_divergence"]["mean"],
        "JS divergence of prompts": lambda v: v["js_divergence_prompts"]["mean"],
        "TF-IDF cosine": lambda v: v["tfidf_cosine"]["mean"],
        "gradient cosine": lambda v: v["gradient_cosine"]["mean"],
        "gradients in conflict, share": lambda v: v["gradient_cosine"]["conflict"],
        "loss on own rows, change": lambda v: v["loss_transfer"]["own"],
        "loss on others' rows, change": lambda v: v["loss_transfer"]["other"],
        "CKA between trained models": lambda v: v["cka"]["mean"],
        "PCA, axis 1, share of variance": lambda v: v["pca"]["explained"][0],
        "PCA, axis 2, share of variance": lambda v: v["pca"]["explained"][1],
        "variance between clients, share": lambda v: v["pca"]["between"],
    }
    rows = list[tuple[str, ...]]()
    for name, read in shown.items():
        cells = list[str]()
        for view in views.values():
            try:
                cells.append(figure(read(view)))
            except KeyError:
                cells.append(figure(None))
        if set(cells) != {figure(None)}:
            rows.append((name, *cells))
    if rows:
        show_table(console, "mean over pairs of clients", ("measure", *views), rows)


def _show_matrices(
    console: Console, ids: Sequence[str], views: Mapping[str, Mapping[str, Any]]
) -> None:
    header = ("client", *_numbers(ids))
    names, at = [f"{n} {name}" for n, name in enumerate(ids, 1)], range(len(ids))
    for measure, title in SYMMETRIC.items():
        matrices = [view[measure]["matrix"] for view in views.values() if measure in view]
        if not matrices:
            continue
        upper, lower = matrices[0], matrices[-1]
        both = "; raw above the diagonal, rewritten below" if len(matrices) > 1 else ""
        rows = [
            (name, *("" if i == j else _short(upper[i][j] if j > i else lower[i][j]) for j in at))
            for i, name in enumerate(names)
        ]
        show_table(console, title + both, header, rows)
    for view, measures in views.items():
        if "loss_transfer" in measures:
            matrix = measures["loss_transfer"]["matrix"]
            rows = [(name, *map(_percent, row)) for name, row in zip(names, matrix, strict=True)]
            title = f"{view}: change of the loss on the column's rows after training on the row's"
            show_table(console, title, header, rows)


def _show_extremes(
    console: Console, ids: Sequence[str], views: Mapping[str, Mapping[str, Any]]
) -> None:
    rows = list[tuple[str, ...]]()
    for measure, title in SYMMETRIC.items():
        for view, measures in views.items():
            if measure not in measures:
                continue
            matrix = measures[measure]["matrix"]
            pairs = sorted(
                (matrix[i][j], f"{ids[i]}, {ids[j]}")
                for i in range(len(ids))
                for j in range(i)
                if matrix[i][j] is not None
            )
            for end, some in (("lowest", pairs[:EXTREMES]), ("highest", pairs[-EXTREMES:])):
                rows += [(title.partition(" (")[0], view, end, p, _short(v)) for v, p in some]
    if rows:
        show_table(
            console, "the most extreme pairs", ("measure", "view", "end", "clients", "value"), rows
        )


def _show_lengths(
    console: Console, ids: Sequence[str], views: Mapping[str, Mapping[str, Any]]
) -> None:
    rows = [
        (i, *("/".join(_whole(v["response_tokens"][i][p]) for p in PARTS) for v in views.values()))
        for i in ids
    ]
    show_table(console, "tokens of the answers, p10/p50/p90", ("client", *views), rows)


def _show_audit(console: Console, ids: Sequence[str], audit: Mapping[str, Audit]) -> None:
    """Measures down, clients across; of many clients, how far they spread."""
    rows = list[tuple[str, ...]]()
    for name, (read, form) in AUDIT.items():
        values = [read(figures) for figures in audit.values()]
        known = [v for v in values if v is not None]
        if not known:
            continue
        if len(audit) > MOST:
            values = [min(known), median(known), max(known)]
        rows.append((name, *("–" if v is None else f"{v:{form}}" for v in values)))
    across: Sequence[str] = ("lowest", "median", "highest")
    if len(audit) <= MOST:  # by their numbers, where clients have some
        across = [str(ids.index(i) + 1) if len(ids) <= MOST else i for i in audit]
    title = "what rewriting did; from the length on, in the rows that it changed"
    show_table(console, title, ("client", *across), rows)


def _read(part: str, measure: str) -> Callable[[Audit], float | None]:
    def read(audit: Audit) -> float | None:
        return (audit.get(part) or {}).get(measure)

    return read


def _changed(
    names: Sequence[str], form: str
) -> dict[str, tuple[Callable[[Audit], float | None], str]]:
    return {n.replace("_", " "): (_read("changed_rows", n), form) for n in names}


SIDES = ("before", "after")
AUDIT: dict[str, tuple[Callable[[Audit], float | None], str]] = {
    "rows": (lambda audit: audit["rows"], "d"),
    "changed": (lambda audit: audit["changed"], ".0%"),
    "trained on": (lambda audit: audit["kept"], ".0%"),
    "length, median ratio": (_read("changed_rows", "length_ratio"), ".2f"),
    **_changed(["longer_than_twice"], ".0%"),
    **_changed([f"words_{s}" for s in SIDES], ".0f"),
    **_changed([f"repeated_4_{s}" for s in SIDES], ".3f"),
    **_changed([f"distinct_{n}_{s}" for n in (1, 2) for s in SIDES], ".2f"),
    **_changed([f"compression_{s}" for s in SIDES], ".2f"),
    **_changed([f"filler_per_1000_{s}" for s in SIDES], ".1f"),
    **_changed(["unsupported", "leaking"], ".0%"),
    **_changed([f"{what}_{how}" for what in FACTS for how in ("lost", "invented")], ".0%"),
    **_changed(["answer_lost"], ".0%"),
    "rewrite entailed (NLI)": (_read("entailment", "rewrite_follows"), ".0%"),
    "original entailed (NLI)": (_read("entailment", "original_follows"), ".0%"),
}


def _numbers(ids: Sequence[str]) -> tuple[str, ...]:
    return tuple(str(n) for n in range(1, len(ids) + 1))


def _short(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _whole(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"
