"""The rewrite viewer: what rewriting did to the answers, in counts for all, in texts for those who
may read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedsdr.report.damage import (
    KINDS,
    TOLD_BY_CHECKS,
    ClientDamage,
    Damage,
    by_client,
    damage_of,
    totals,
)
from fedsdr.report.numbers import counted, share
from fedsdr.report.packing import SEED, Packed, pack
from fedsdr.report.record import RunRecord
from fedsdr.report.rewrite_rows import Rewrites, clients_with_rewrites, read_rewrites
from fedsdr.report.safe_text import short
from fedsdr.report.section import Absent, Section
from fedsdr.report.texts import IncludeTexts, how_to_show, readable

ID, TITLE = "rewrites", "What rewriting did to the answers"


def rewrites_section(record: RunRecord, include_texts: IncludeTexts = False) -> Section | Absent:
    """Without texts, nothing under `clients/` is opened."""
    private = clients_with_rewrites(record.path)
    clients = readable(record, include_texts, private)
    read = read_rewrites(record.path, clients, record.audit)
    measured = [entry.damage for entry in read.entries]
    measured += [
        damage_of(short(row.get("client_id")), row)
        for row in record.audit
        if row.get("client_id") not in clients
    ]
    if not measured:
        return Absent(ID, TITLE, _why_absent(record, bool(private)))
    packed = pack(read.entries) if read.entries else None
    total, rows = totals("all clients", measured), by_client(measured)
    checked, missing = _checked(record), [kind for kind in KINDS if not total.written.get(kind)]
    sought = [kind for kind in missing if checked or kind not in TOLD_BY_CHECKS]
    return Section(
        id=ID,
        title=TITLE,
        template="rewrites.html.j2",
        data={
            "total": total,
            "clients": rows,
            "kinds": [(kind, words) for kind, words in KINDS.items() if total.written.get(kind)],
            "unseen": [KINDS[kind] for kind in sought],
            "unsought": [KINDS[kind] for kind in missing if kind not in sought],
            "sentences": _sentences(total, measured, checked),
            "payload": packed.payload if packed else None,
            "sample": _sample_in_words(packed, read, len(rows) - len(clients)) if packed else "",
            "share": share,
            "command": how_to_show(record),
        },
        scripts=("diff.js", "rewrites.js"),
        style="rewrites.css",
    )


def _why_absent(record: RunRecord, private: bool) -> str:
    if private:
        return (
            f"The rewrites are private, and not counted. `{how_to_show(record)}` shows a client's."
        )
    if record.state == "purged":
        return "The run was purged, and no audit of its rewriting is left."
    if record.state == "running":
        return "Nothing has been rewritten yet, or nothing is to be."
    return "Nothing was rewritten in this run: it trains on the answers as they are."


def _checked(record: RunRecord) -> bool:
    """Whether the recipe lets a rewrite fall back for what it says."""
    chosen = record.recipe.get("algorithm")
    if not isinstance(chosen, Mapping):
        return True
    options = chosen.get("options")
    selection = options.get("selection") if isinstance(options, Mapping) else None
    return (selection or chosen.get("selection") or "none") != "none"


def _sentences(total: ClientDamage, measured: Sequence[Damage], checked: bool) -> list[str]:
    count = total.rewrites
    sentences = [
        f"{total.kept:,} of {counted(count, 'rewrite')} ({share(total.kept / count)}) passed the "
        f"checks and are trained on; {total.fell_back:,} fell back to the raw answer."
        if checked
        else f"{total.kept:,} of {counted(count, 'rewrite')} are trained on, whatever they say: "
        "this run checks nothing (selection: none).",
        f"The median rewrite is {total.ratio:.2f} times as long as its raw answer; "
        f"{total.written.get('too-long', 0):,} are over twice as long.",
    ]
    damaged = [row for row in measured if set(row.kinds) - {"too-long"}]
    sentences.append(
        f"Other damage was found in {len(damaged):,} ({share(len(damaged) / count)}), of which "
        f"{sum(row.kept for row in damaged):,} are trained on all the same."
    )
    if total.judged:
        sentences.append(
            f"By the exact verdict, {total.faithful:,} of {total.judged:,} "
            f"({share(total.faithful / total.judged)}) say what is true and nothing else."
        )
    return sentences


def _sample_in_words(packed: Packed, read: Rewrites, without_texts: int) -> str:
    if packed.shown == packed.total:
        words = f"All {counted(packed.total, 'rewrite')} can be read below."
    else:
        words = (
            f"{packed.shown:,} of {packed.total:,} rewrites can be read below, so that the page "
            "stays small: from each client and kind of damage in turn one, drawn at random "
            f"(seed {SEED}). The counts above are over all {packed.total:,}."
        )
    if packed.cut:
        words += f" {counted(packed.cut, 'text')} too long for a page are cut, and say so."
    if read.unreadable:
        words += f" {counted(read.unreadable, 'line')} of the files could not be read."
    if without_texts > 0:
        words += f" Of {counted(without_texts, 'other client')} this page holds counts only."
    return words
