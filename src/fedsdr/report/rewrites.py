"""The rewrite viewer: what rewriting did to the answers, in counts for all, in texts for those who
may read them."""

from __future__ import annotations

from collections.abc import Sequence

from fedsdr.report.damage import KINDS, ClientDamage, Damage, by_client, damage_of, totals
from fedsdr.report.packing import MOST_PACKED, MOST_UNPACKED, SEED, Packed, pack
from fedsdr.report.record import RunRecord
from fedsdr.report.rewrite_rows import Rewrites, clients_with_rewrites, read_rewrites
from fedsdr.report.safe_text import short
from fedsdr.report.section import Absent, Section
from fedsdr.report.texts import IncludeTexts, how_to_show, readable

ID, TITLE = "rewrites", "What rewriting did to the answers"


def rewrites_section(
    record: RunRecord, include_texts: IncludeTexts = False, *, runs: int = 1
) -> Section | Absent:
    """Without texts, nothing under `clients/` is opened. `runs`: how many share the page's size."""
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
    packed = (
        pack(read.entries, MOST_PACKED // runs, MOST_UNPACKED // runs) if read.entries else None
    )
    total, rows = totals("all clients", measured), by_client(measured)
    return Section(
        id=ID,
        title=TITLE,
        template="rewrites.html.j2",
        data={
            "total": total,
            "clients": rows,
            "kinds": [(kind, words) for kind, words in KINDS.items() if total.written.get(kind)],
            "unseen": [words for kind, words in KINDS.items() if not total.written.get(kind)],
            "sentences": _sentences(total, measured),
            "payload": packed.payload if packed else None,
            "sample": _sample_in_words(packed, read, len(rows) - len(clients)) if packed else "",
            "share": _share,
            "command": how_to_show(record),
        },
        script="rewrites.js",
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


def _sentences(total: ClientDamage, measured: Sequence[Damage]) -> list[str]:
    count = total.rewrites
    found = [
        f"{total.kept:,} of {_many(count, 'rewrite')} ({_share(total.kept, count)}) passed the "
        f"checks and are trained on; {total.fell_back:,} fell back to the raw answer.",
        f"The median rewrite is {total.ratio:.2f} times as long as its raw answer; "
        f"{total.written.get('too-long', 0):,} are over twice as long.",
    ]
    damaged = [row for row in measured if set(row.kinds) - {"too-long"}]
    found.append(
        f"Other damage was found in {len(damaged):,} ({_share(len(damaged), count)}), of which "
        f"{sum(row.kept for row in damaged):,} are trained on all the same."
    )
    if total.judged:
        found.append(
            f"By the exact verdict, {total.faithful:,} of {total.judged:,} "
            f"({_share(total.faithful, total.judged)}) say what is true and nothing else."
        )
    return found


def _sample_in_words(packed: Packed, read: Rewrites, without_texts: int) -> str:
    if packed.shown == packed.total:
        words = f"All {_many(packed.total, 'rewrite')} can be read below."
    else:
        words = (
            f"{packed.shown:,} of {packed.total:,} rewrites can be read below, so that the page "
            "stays small: from each client and kind of damage in turn one, drawn at random "
            f"(seed {SEED}). The counts above are over all {packed.total:,}."
        )
    if packed.cut:
        words += f" {_many(packed.cut, 'text')} too long for a page are cut, and say so."
    if read.unreadable:
        words += f" {_many(read.unreadable, 'line')} of the files could not be read."
    if without_texts > 0:
        words += f" Of {_many(without_texts, 'other client')} this page holds counts only."
    return words


def _share(part: int, whole: int) -> str:
    """99.8 % is not all, and 0.2 % is not none."""
    if part in (0, whole):
        return "100 %" if part else "0 %"
    if part * 100 < whole:
        return "<1 %"
    return f"{min(round(100 * part / whole), 99)} %"


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
