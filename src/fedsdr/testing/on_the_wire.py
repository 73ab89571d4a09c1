"""Checks of what goes over the wire: nothing personal, and as many bytes as declared."""

from __future__ import annotations

import torch
from torch import Tensor

from fedsdr.jobs.plan.wire import numbers
from fedsdr.parts.mix import is_part
from fedsdr.tensors import nbytes
from fedsdr.testing.case import PRIVACY, ROUNDS, Answer, Case, Run
from fedsdr.testing.report import CheckFailed, Figures
from fedsdr.types import FOLD, Tensors

TRAFFIC = "bytes are as declared"


def privacy(case: Case) -> Figures:
    """Names are checked on the wire as they pass; here values: nothing that clients learned for
    themselves may be among them, as it is or as the change to it."""
    run = case.reference()
    learned = set[str]().union(*(stage.trains() for stage in run.algorithm.stages))
    for number in range(1, ROUNDS + 1):
        heard = [answer for answer in run.answers if answer.order.round == number]
        # By one client it can be chance: two adapters after the same first step of Adam.
        for sent, secret in set[tuple[str, str]].intersection(*(_leaks(a, learned) for a in heard)):
            reason = f"in round {number} it holds {secret} of every client, value by value"
            raise CheckFailed(PRIVACY, reason, sent)
    names = {name for answer in run.answers for name in answer.update.shared}
    secrets = {name for answer in run.answers for name in _secrets(answer, learned)}
    return {"tensors sent": len(names), "private ones looked for": len(secrets)}


def traffic(case: Case) -> Figures:
    """What rounds.jsonl has against a count from `share`, P, ranks and the model's layers."""
    return counted(TRAFFIC, case.reference())


def counted(check: str, run: Run) -> Figures:
    lines, merged = list[str](), 0
    for row in run.rows:
        heard = [a for a in run.answers if a.order.round == row["round"]]
        up = down = of_p = 0
        for answer in heard:
            rank, given = run.ranks.get(answer.order.client_id), answer.order.shared
            fold = {n: t for n, t in given.items() if n.startswith(f"{FOLD}/")}
            ours = run.wire.down(rank)
            _refuse_undeclared(check, given, {*ours, *fold})
            _refuse_swollen(check, fold, run.wire.folded(merged))
            size = max((t.element_size() for t in given.values()), default=0)
            up += numbers(run.wire.up(row["round"], rank).values()) * size
            down += numbers(ours.values()) * size + nbytes(fold)
            of_p += nbytes(fold)
        for way, declared in (("bytes_up", up), ("bytes_down", down)):
            if row[way] != declared:
                reason = f"round {row['round']} has {way} {row[way]:,}, declared are {declared:,}"
                raise CheckFailed(check, reason)
        merged += (len(heard) + 1) * run.wire.ranks.get("R", 0)
        lines.append(f"{up:,} up and {down:,} down" + (f" ({of_p:,} of it P)" if of_p else ""))
    if len(set(lines)) == 1:
        return {"each round": lines[0]}
    return {f"round {number}": text for number, text in enumerate(lines, 1)}


def _secrets(answer: Answer, learned: set[str]) -> Tensors:
    """What a client trained for itself; a constant is no secret."""
    return {
        name: tensor
        for name, tensor in answer.private.items()
        if is_part(name, learned) and len(tensor.unique()) > 1
    }


def _leaks(answer: Answer, learned: set[str]) -> set[tuple[str, str]]:
    """(what is sent, the private tensor that can be read off it)."""
    leaks, secrets = set[tuple[str, str]](), _secrets(answer, learned)
    for sent, change in answer.update.shared.items():
        before = answer.order.shared[sent]
        for name, secret in secrets.items():
            if change.shape == secret.shape and not torch.equal(before, secret):
                near = (_near(change, secret), _near(before + change, secret))
                leaks |= {(sent, name)} if any(near) else set()
    return leaks


def _near(left: Tensor, right: Tensor) -> bool:
    return torch.allclose(left, right, rtol=0, atol=1e-12)


def _refuse_swollen(check: str, fold: Tensors, most: int) -> None:
    count = sum(t.numel() for t in fold.values())
    if count > most:
        reason = f"has {count:,} numbers; what was merged so far needs {most:,} at most"
        raise CheckFailed(check, reason, FOLD)


def _refuse_undeclared(check: str, sent: Tensors, declared: set[str]) -> None:
    for name in sorted(sent.keys() ^ declared):
        what = "goes down, which nobody declared" if name in sent else "does not go down"
        raise CheckFailed(check, f"it {what}", name)
