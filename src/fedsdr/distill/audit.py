"""What rewriting did to each example, and what that comes to per client.

The rows hold counts and reasons, never the record's text, unless the texts are asked for.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import accumulate
from pathlib import Path
from statistics import fmean, median

from fedsdr.distill.checks import (
    Redundancy,
    leaks,
    length_ratio,
    prompt_text,
    redundancy,
    unsupported_share,
)
from fedsdr.distill.prompts import Template
from fedsdr.distill.selection import Choice, Draft
from fedsdr.distill.task import FORMS, Form, form_of
from fedsdr.runs.files import write_rows_atomic
from fedsdr.text.facts import compare_facts
from fedsdr.types import Example


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRow:
    """One example. The counts describe the rewrite: the draft kept, or the first one drawn."""

    example_id: str
    client_id: str
    template: str
    kept: bool
    draw: int | None
    draws: int
    reasons: tuple[str, ...]
    changed: bool
    length_ratio: float
    before: Redundancy
    after: Redundancy
    unsupported: float
    leaks: int
    numbers_lost: int
    numbers_invented: int
    names_lost: int
    names_invented: int
    dates_lost: int
    dates_invented: int
    negation_lost: bool
    negation_invented: bool
    form: Form
    texts: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Shares and means over examples, of all rewrites or of what is trained on. `length_ratio` is
    the median, of several clients as their `deciles` have it."""

    words: int
    length_ratio: float
    deciles: tuple[float, ...]  # of the length ratios, from the least to the largest
    longer_than_twice: float
    filler_per_1000: float
    repeated_4: float
    distinct_2: float
    compression: float
    unsupported: float
    leaking: float
    numbers_lost: float
    numbers_invented: float
    names_lost: float
    names_invented: float
    dates_changed: float
    negation_changed: float


@dataclass(frozen=True, slots=True)
class FormAudit:
    """Of the answers of one form (code, labels, prose …)."""

    examples: int
    kept: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientAudit:
    """`written`: the rewrites as they came. `trained`: what selection made of them."""

    examples: int
    kept: float
    fell_back: float
    changed: float
    drafts: float
    words_before: int
    filler_per_1000_before: float
    repeated_4_before: float
    written: Measured
    trained: Measured
    reasons: Mapping[str, int] = field(default_factory=lambda: dict[str, int]())
    forms: Mapping[str, FormAudit] = field(default_factory=lambda: dict[str, FormAudit]())


@dataclass(frozen=True, slots=True)
class AuditSummary:
    overall: ClientAudit
    clients: Mapping[str, ClientAudit]


def audit_row(
    example: Example,
    client_id: str,
    template: Template,
    choice: Choice,
    drafts: Sequence[Draft],
    *,
    include_texts: bool = False,
) -> AuditRow:
    original, rewrite = example.response, drafts[choice.draw or 0].text
    prompt = prompt_text(example)
    facts = compare_facts(original, rewrite, prompt)
    return AuditRow(
        example_id=example.id,
        client_id=client_id,
        template=template.name,
        kept=choice.kept,
        draw=choice.draw,
        draws=len(drafts),
        reasons=choice.reasons,
        changed=rewrite != original,
        length_ratio=length_ratio(original, rewrite),
        before=redundancy(original),
        after=redundancy(rewrite),
        unsupported=unsupported_share(original, rewrite, prompt),
        leaks=len(set(leaks(rewrite)) - set(leaks(original))),
        numbers_lost=len(facts.numbers_lost),
        numbers_invented=len(facts.numbers_invented),
        names_lost=len(facts.names_lost),
        names_invented=len(facts.names_invented),
        dates_lost=len(facts.dates_lost),
        dates_invented=len(facts.dates_invented),
        negation_lost=facts.negation_lost,
        negation_invented=facts.negation_invented,
        form=form_of(original, prompt),
        texts=(original, rewrite) if include_texts else None,
    )


def write_audit(path: Path, rows: Iterable[AuditRow]) -> None:
    """One JSON object a line, written beside and renamed, readable by its owner only."""
    records = map(asdict, rows)
    write_rows_atomic(
        path,
        ({k: v for k, v in row.items() if k != "texts" or v is not None} for row in records),
    )


def summarise(rows: Iterable[AuditRow]) -> AuditSummary:
    by_client: dict[str, list[AuditRow]] = {}
    for row in rows:
        by_client.setdefault(row.client_id, []).append(row)
    if not by_client:
        raise ValueError("there are no audit rows to summarise")
    clients = {client: client_audit(by_client[client]) for client in sorted(by_client)}
    return AuditSummary(pooled(list(clients.values())), clients)


def pooled(clients: Sequence[ClientAudit]) -> ClientAudit:
    """Of all clients, from what each tells of itself."""
    rows = [client.examples for client in clients]
    reasons, forms = Counter[str](), dict[str, list[FormAudit]]()
    for client in clients:
        reasons.update(client.reasons)
        for form, audit in client.forms.items():
            forms.setdefault(form, []).append(audit)
    shares = ("kept", "fell_back", "changed", "drafts", "repeated_4_before")
    words = [client.words_before for client in clients]
    return ClientAudit(
        examples=sum(rows),
        **{name: _mean([getattr(c, name) for c in clients], rows) for name in shares},
        words_before=sum(words),
        filler_per_1000_before=_mean([c.filler_per_1000_before for c in clients], words),
        written=_measured_of([c.written for c in clients], rows),
        trained=_measured_of([c.trained for c in clients], rows),
        reasons=_by_count(reasons),
        forms={
            form: FormAudit(
                sum(a.examples for a in forms[form]),
                _mean([a.kept for a in forms[form]], [a.examples for a in forms[form]]),
            )
            for form in FORMS
            if form in forms
        },
    )


def _measured_of(clients: Sequence[Measured], rows: Sequence[int]) -> Measured:
    apart = {"words", "length_ratio", "deciles", "filler_per_1000"}
    shares = [f.name for f in fields(Measured) if f.name not in apart]
    words = [client.words for client in clients]
    pairs = zip(clients, rows, strict=True)
    deciles = _deciles([(ratio, many) for c, many in pairs for ratio in c.deciles])
    return Measured(
        words=sum(words),
        length_ratio=deciles[5],
        deciles=deciles,
        filler_per_1000=_mean([c.filler_per_1000 for c in clients], words),
        **{name: _mean([getattr(c, name) for c in clients], rows) for name in shares},
    )


def _deciles(values: Sequence[tuple[float, int]]) -> tuple[float, ...]:
    """Of values and how often each is there, by nearest rank."""
    ordered = sorted(values)
    upto = list(accumulate(many for _, many in ordered))
    ranks = (round(p * (upto[-1] - 1) / 10) for p in range(11))
    return tuple(ordered[bisect_right(upto, rank)][0] for rank in ranks)


def _mean(values: Sequence[float], counts: Sequence[int]) -> float:
    total = sum(counts)
    return sum(v * n for v, n in zip(values, counts, strict=True)) / total if total else 0.0


def in_a_line(audit: ClientAudit) -> str:
    """How many rewrites were kept, and why most of the others were not."""
    kept = round(audit.kept * audit.examples)
    few, back = 2 * kept < audit.examples, audit.examples - kept
    line = (
        f"{'warning: only' if few else 'rewriting:'} {kept:,} of {audit.examples:,} rewrites kept"
    )
    if not back:
        return line
    most = next(iter(audit.reasons), "")
    why = f" (most: {most}, {audit.reasons[most]:,})" if most else ""
    return f"{line}; {back:,} fell back to the original answer{why}"


def client_audit(rows: Sequence[AuditRow]) -> ClientAudit:
    """One client's."""
    kept = [row.kept for row in rows]
    reasons = Counter(reason for row in rows for reason in row.reasons)
    return ClientAudit(
        examples=len(rows),
        kept=fmean(kept),
        fell_back=1.0 - fmean(kept),
        changed=fmean(row.changed for row in rows),
        drafts=fmean(row.draws for row in rows),
        words_before=sum(row.before.words for row in rows),
        filler_per_1000_before=_filler([row.before for row in rows]),
        repeated_4_before=fmean(row.before.repeated_4 for row in rows),
        written=_measured(rows, [True] * len(rows)),
        trained=_measured(rows, kept),
        reasons=_by_count(reasons),
        forms={
            form: FormAudit(len(held), fmean(row.kept for row in held))
            for form in FORMS
            if (held := [row for row in rows if row.form == form])
        },
    )


def _measured(rows: Sequence[AuditRow], rewritten: Sequence[bool]) -> Measured:
    """An example that is not rewritten stands for its original: nothing lost, nothing longer."""
    pairs = list(zip(rows, rewritten, strict=True))
    texts = [row.after if new else row.before for row, new in pairs]
    ratios = [row.length_ratio if new else 1.0 for row, new in pairs]

    def share(count: str) -> float:
        return fmean(new and bool(getattr(row, count)) for row, new in pairs)

    return Measured(
        words=sum(text.words for text in texts),
        length_ratio=median(ratios),
        deciles=_deciles([(ratio, 1) for ratio in ratios]),
        longer_than_twice=fmean(ratio > 2 for ratio in ratios),
        filler_per_1000=_filler(texts),
        repeated_4=fmean(text.repeated_4 for text in texts),
        distinct_2=fmean(text.distinct_2 for text in texts),
        compression=fmean(text.compression for text in texts),
        unsupported=fmean(row.unsupported if new else 0.0 for row, new in pairs),
        leaking=share("leaks"),
        numbers_lost=share("numbers_lost"),
        numbers_invented=share("numbers_invented"),
        names_lost=share("names_lost"),
        names_invented=share("names_invented"),
        dates_changed=fmean(new and r.dates_lost + r.dates_invented > 0 for r, new in pairs),
        negation_changed=fmean(
            new and (r.negation_lost or r.negation_invented) for r, new in pairs
        ),
    )


def _by_count(reasons: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0])))


def _filler(texts: Sequence[Redundancy]) -> float:
    return 1000 * sum(text.filler for text in texts) / max(1, sum(text.words for text in texts))
