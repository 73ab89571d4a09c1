"""What the base and the deployed models answer to the same test questions, side by side.

Whose texts a page may show.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from fedsdr.report.damage import Piece, same_words, shared_words
from fedsdr.report.record import RunRecord, natural
from fedsdr.report.safe_text import short, visible
from fedsdr.report.section import Absent, Section
from fedsdr.report.viewer_rows import rows_of

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


ID, TITLE = "answers", "Answers side by side"
FILE = "answers.jsonl"
MOST = 96  # questions in a page
EACH = 8  # of a client
MOST_CHARACTERS = 1_500  # of one text
SEED = 0


@dataclass(frozen=True, slots=True)
class Answer:
    mix: str
    pieces: tuple[Piece, ...]
    remark: str
    verdict: str  # the exact one, where there is one
    cut: int  # characters of the whole, where it is cut


@dataclass(frozen=True, slots=True)
class Question:
    id: str
    prompt: str
    reference: str
    answers: tuple[Answer, ...]


@dataclass(frozen=True, slots=True)
class ClientAnswers:
    client: str
    sampled: int  # in the run directory
    questions: tuple[Question, ...]


def answers_section(record: RunRecord, include_texts: IncludeTexts = False) -> Section | Absent:
    files = {path.parent.name: path for path in record.path.glob(f"clients/*/{FILE}")}
    clients = readable(record, include_texts, sorted(files, key=natural))
    if files and not clients:
        why = f"Answers repeat what clients' records say. `{how_to_show(record)}` shows a client's."
        return Absent(ID, TITLE, why)
    held = {client: rows for client in clients if (rows := _rows(files[client]))}
    if not held:
        why = "There are none yet." if record.state == "running" else "The run kept no answers."
        return Absent(ID, TITLE, why)
    each = max(1, min(EACH, MOST // len(held)))
    shown = [_client(client, rows, each) for client, rows in list(held.items())[:MOST]]
    count = sum(len(client.questions) for client in shown)
    return Section(
        id=ID,
        title=TITLE,
        template="answers.html.j2",
        data={
            "clients": shown,
            "count": count,
            "total": sum(map(len, held.values())),
            "left_out": len(held) - len(shown),
            "seed": SEED,
        },
        style="rewrites.css",
    )


def _rows(path: Path) -> list[Mapping[str, Any]]:
    return [row for _start, _size, row in rows_of(path) if row is not None]


def _client(client: str, rows: Sequence[Mapping[str, Any]], each: int) -> ClientAnswers:
    chosen = sorted(Random(SEED).sample(range(len(rows)), min(each, len(rows))))
    return ClientAnswers(client, len(rows), tuple(_question(rows[at]) for at in chosen))


def _question(row: Mapping[str, Any]) -> Question:
    given = row.get("answers")
    reference = str(row.get("reference") or "")
    given = given if isinstance(given, dict) else {}
    judged = row.get("judged")
    verdicts = (
        {short(mix): short(v or "") for mix, v in judged.items()}
        if isinstance(judged, dict)
        else {}
    )
    texts = {short(mix): str(text or "") for mix, text in given.items()}
    return Question(
        id=visible(short(row.get("id", ""))),
        prompt=_cut(str(row.get("prompt") or "")),
        reference=_cut(reference),
        answers=tuple(
            Answer(
                visible(mix),
                shared_words(_cut(reference), _cut(text)),
                _remark(mix, texts, reference),
                visible(verdicts.get(mix, "")),
                len(text) if len(text) > MOST_CHARACTERS else 0,
            )
            for mix, text in texts.items()
        ),
    )


def _remark(mix: str, texts: Mapping[str, str], reference: str) -> str:
    if not texts[mix].strip():
        return "says nothing"
    if same_words(texts[mix], reference):
        return "the reference, word for word"
    for other in texts:
        if other == mix:
            break
        if same_words(texts[mix], texts[other]):
            return f"as {visible(other)}"
    return ""


def _cut(text: str) -> str:
    return visible(text[:MOST_CHARACTERS])
