"""The checks, each a function from a case to its figures; it raises `CheckFailed`, or
`NotApplicable` where it says nothing of this algorithm.

Checks of what goes over the wire: nothing personal, and as many bytes as declared.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fedsdr.algorithms.fedavg import fedavg
from fedsdr.algorithms.fedsd import boosted
from fedsdr.data.render import render
from fedsdr.jobs.plan.traffic import numbers
from fedsdr.parts.algorithm import Algorithm
from fedsdr.parts.combine import Mean
from fedsdr.parts.local import LocalSettings
from fedsdr.parts.mix import is_part
from fedsdr.parts.objectives import CrossEntropy
from fedsdr.parts.views import Raw
from fedsdr.tensors import nbytes
from fedsdr.testing.case import (
    PRIVACY,
    ROUNDS,
    SIZES,
    STACK,
    Answer,
    Case,
    Killed,
    Make,
    Run,
    compared,
    largest,
)
from fedsdr.testing.report import CheckFailed, Figures, NotApplicable, fine_tune
from fedsdr.testing.toy import RATE, SEED, SPECS, clients, tiny_base
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


EXACT = 1e-9  # what rounding in fp64 may grow to over three rounds
SAME = 1e-12  # where even the sums are nearly the same
STACKED = "K stacked equals one by one"
ORDER = "client order is irrelevant"
RESUME = "resume is exact"
ALONE = "one client alone is fine-tuning"
REDUCES = "it reduces to FedAvg"
BOOSTED = "boosted, it stacks too"
RANKS = "ranks may differ"
DEATHS = ({"save_update": 2}, {"save_checkpoint": 1}, {"save_update": STACK + 1})
PLAIN = LocalSettings(batch=3, weight_decay=0.1, clip=0.5)
WHOLE = LocalSettings(batch=8, epochs=2)  # every step sees all of a client's rows
Check = Callable[[Case], Figures]


def stacked(case: Case) -> Figures:
    """K clients side by side end where K clients one after another end, personal state too."""
    together = case.reference()
    _several(together)
    alone = case.run("one by one", stack=1)
    moved = largest(together.tensors, together.first)
    if not moved > 1e-6:
        raise CheckFailed(STACKED, "nothing moved in three rounds, so there is nothing to compare")
    what = f"{STACK} side by side against one by one"
    difference = compared(STACKED, together.tensors, alone.tensors, EXACT, what)
    return {"largest difference": difference, "moved by": moved}


def order(case: Case) -> Figures:
    """Clients listed and asked the other way round, and their answers coming in backwards."""
    forth = case.reference()
    _several(forth)
    return _same_bytes(ORDER, forth, case.run("backwards", backwards=True))


def resume(case: Case) -> Figures:
    """Killed within a group, before a commit, and between two groups; resumed each time."""
    deaths = 0
    for number, fuses in enumerate(DEATHS):
        try:
            case.play("killed", resume=number > 0, fuses=dict(fuses))
        except Killed:
            deaths += 1
    again = case.play("killed", resume=True)
    return {"killed": f"{deaths} times", **_same_bytes(RESUME, case.reference(), again)}


def alone(case: Case) -> Figures:
    """One client, and nothing but R, its mean and cross-entropy: plain torch must end there."""
    _require_plain(case.make())
    data = clients((7,))
    run, base = case.run("alone", data=data, training=PLAIN), tiny_base()
    (client,) = {answer.order.client_id for answer in run.answers}
    rows = [render(base, e, 256) for client_data in data.values() for e in client_data.train]
    begin = {n.removeprefix("R/"): t for n, t in run.first.items()}
    ours = {n.removeprefix("R/"): t for n, t in run.shared().items()}
    scale = SPECS["R"].scale
    theirs = fine_tune(
        base,
        rows,
        begin=begin,
        scale=scale,
        settings=PLAIN,
        lr=RATE,
        rounds=ROUNDS,
        seed=(SEED, client),
    )
    difference = compared(ALONE, ours, theirs, EXACT, "against plain torch")
    return {"largest difference": difference, "moved by": largest(ours, begin)}


def boost(case: Case) -> Figures:
    """FedSD over the algorithm: on rewritten views, and stacked as well."""
    plain, better = case.make(), boosted(case.make())
    if better.stages == plain.stages:
        raise NotApplicable("it trains on no raw answers")
    if any(isinstance(term.view, Raw) for stage in better.stages for term in stage.terms):
        raise CheckFailed(BOOSTED, "a term still trains on the raw answers")
    together, single = (
        case.run(f"boosted, K = {k}", make=lambda: boosted(case.make()), stack=k)
        for k in (STACK, 1)
    )
    what = f"{STACK} side by side against one by one"
    difference = compared(BOOSTED, together.tensors, single.tensors, EXACT, what)
    moved = largest(together.tensors, case.reference().tensors)
    if not moved > 1e-6:
        raise CheckFailed(BOOSTED, "it ends where it ends on the raw answers")
    return {"largest difference": difference, "from raw": moved}


def ranks(case: Case) -> Figures:
    """Clients of ranks 1, 2 and 3 stack, and none sends or is sent more than its own."""
    if not case.make().any_rank:
        raise NotApplicable("all its clients need the same rank")
    rank_of = {client: 1 + k % 3 for k, client in enumerate(clients(SIZES))}
    together, single = (case.run(f"ranks, K = {k}", ranks=rank_of, stack=k) for k in (STACK, 1))
    what = f"ranks 1 to 3, {STACK} side by side against one by one"
    difference = compared(RANKS, together.tensors, single.tensors, EXACT, what)
    for answer in together.answers:
        rank = rank_of[answer.order.client_id]
        for name, tensor in (*answer.update.shared.items(), *answer.order.shared.items()):
            of = tensor.shape[0 if name.endswith(".A") else 1]
            if name.startswith("R/") and of > rank:
                raise CheckFailed(RANKS, f"a client of rank {rank} has rank {of} on the wire", name)
    return {"largest difference": difference, **counted(RANKS, together)}


def reduces(special: Make | None) -> Check:
    """With its idea switched off, the shared R is FedAvg's."""

    def check(case: Case) -> Figures:
        if special is None:
            raise NotApplicable("no options are given under which it is FedAvg")
        # A stage's number is in the seed of its batches: where R is not trained by the first, only
        # whole batches are the same ones.
        seats = {i for i, s in enumerate(special().stages) for t in s.terms if t.train == "R"}
        training = WHOLE if seats != {0} else None
        ends = [
            case.run(name, make=make, training=training).shared()
            for name, make in (("reduced", special), ("fedavg", fedavg))
        ]
        ours, theirs = ({n: t for n, t in e.items() if n.startswith("R/")} for e in ends)
        return {"largest difference": compared(REDUCES, ours, theirs, SAME, "against FedAvg")}

    return check


def _several(run: Run) -> None:
    if run.algorithm.pool:
        raise NotApplicable("it pools all data: there is one client only")


def _same_bytes(check: str, left: Run, right: Run) -> Figures:
    compared(check, left.tensors, right.tensors, 0.0, "bit for bit")  # names the tensor
    ours, theirs = left.files(), right.files()
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            raise CheckFailed(check, f"{name} is not the same, byte by byte")
    return {"files, byte by byte": len(ours)}


def _require_plain(algorithm: Algorithm) -> None:
    if algorithm.share != "R" or algorithm.personal():
        raise NotApplicable("it does not share R and nothing else")
    if type(algorithm.combine) is not Mean or algorithm.filters:
        raise NotApplicable("its server does not take the plain mean")
    if len(algorithm.stages) != 1 or len(algorithm.stages[0].terms) != 1:
        raise NotApplicable("it has more than one stage or term")
    (stage,) = algorithm.stages
    (term,) = stage.terms
    if not isinstance(term.view, Raw):
        raise NotApplicable("it does not train on the raw answers")
    if type(term.objective) is not CrossEntropy:
        raise NotApplicable("its objective is not cross-entropy alone")
    parts = (stage.rule, stage.before, stage.after, stage.epochs, term.fade, term.blend)
    if any(parts) or (term.forward, term.train) != ("R", "R"):
        raise NotApplicable("its one stage is not R alone, trained as the recipe says")
