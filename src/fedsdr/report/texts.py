"""Whose texts a page may show."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from fedsdr.report.record import RunRecord

# All clients' or none, or those of these clients.
IncludeTexts = bool | Collection[str]


def readable(
    record: RunRecord, include_texts: IncludeTexts, clients: Iterable[str]
) -> tuple[str, ...]:
    """Of these clients, those whose texts are asked for; of a synthetic run all, unless some are
    named."""
    if isinstance(include_texts, bool):
        return tuple(clients) if include_texts or record.synthetic else ()
    return tuple(client for client in clients if client in include_texts)


def how_to_show(record: RunRecord) -> str:
    """The command of the client who sits where its data are."""
    return f"fedsdr report {record.path} --include-texts --client ID"
