"""FedSDR (Ren et al. 2026): self-distillation with rectification. Two branches on the same frozen
layers,

    h_out = W0 h + (α/r) B_s A_s h + (α/r) B_r A_r h

1. smooth:   freeze R,  S ← argmin E_rewritten[−log p_{R,S}(ỹ | c, x)]     S never leaves the client
2. rectify:  freeze S,  R ← argmin E_raw[−log p_{R,S}(y | c, x)]           ΔR is all that is sent
   server:   R ← R + Σ (n_k/n) ΔR_k

Deployed: global W0 + R, and personal W0 + R + S_k.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field

from fedsdr.algorithms.fedavg import fedavg
from fedsdr.algorithms.fedsd import boosted
from fedsdr.algorithms.options import Count, Epochs, Every, Share, checked, refuse_idle
from fedsdr.parts.algorithm import Algorithm, Fade, Stage, Term, When
from fedsdr.parts.views import Raw, Rewritten, Teacher

Ablation = Literal[
    "none", "without_s", "without_r", "share_both", "share_s", "r_on_rewritten", "s_on_raw"
]


@checked
def fedsdr(
    schedule: Literal["alternate", "joint", "warmup"] = "alternate",
    s_state: Literal["persist", "reset", "from_R"] = "persist",
    selection: str = "none",
    teacher: Teacher = "base",
    redistill_every: Every = 0,
    smooth_epochs: Epochs | None = None,
    rectify_epochs: Epochs | None = None,
    match_compute: bool = False,
    s_scale: Annotated[float, Field(ge=-1000, le=1000)] = 1.0,
    s_dropout: Share = 0.0,
    warmup_rounds: Count = 1,
    ablation: Ablation = "none",
) -> Algorithm:
    """`smooth_epochs`, `rectify_epochs`: E_s and E_r, the recipe's local epochs where not given;
    `match_compute` halves both, so that E_s + E_r is the baseline's E. `s_scale` and `s_dropout`
    weaken S while R is rectified, since R is deployed without it. `warmup`: S in the first
    `warmup_rounds` only, then R only."""
    for idle, why in _idle(locals()):
        refuse_idle(fedsdr, locals(), idle, why)
    rewritten = Rewritten(selection, teacher, redistill_every)
    if ablation == "without_s":
        return replace(fedavg(), name="fedsdr-without_s")
    if ablation == "without_r":
        return replace(boosted(fedavg(), rewritten), name="fedsdr-without_r")

    part = 0.5 if match_compute else 1.0
    weaker = None if (s_scale, s_dropout) == (1.0, 0.0) else Fade("S", s_scale, s_dropout)
    smooth = Term(Raw() if ablation == "s_on_raw" else rewritten, forward="R+S", train="S")
    rectify = Term(
        rewritten if ablation == "r_on_rewritten" else Raw(), forward="R+S", train="R", fade=weaker
    )
    if schedule == "joint":
        stages = (Stage((smooth, rectify), part=part),)
    elif schedule == "warmup":
        stages = (
            Stage((smooth,), when=When(last=warmup_rounds), epochs=smooth_epochs, part=part),
            Stage((rectify,), when=When(first=warmup_rounds + 1), epochs=rectify_epochs, part=part),
        )
    else:
        stages = (
            Stage((smooth,), epochs=smooth_epochs, part=part),
            Stage((rectify,), epochs=rectify_epochs, part=part),
        )
    name = "fedsdr" if ablation == "none" else f"fedsdr-{ablation}"
    share, deploys = "R", {"global": "R", "personal": "R+S"}
    if ablation == "share_both":
        share, deploys = "R+S", {"global": "R+S"}
    if ablation == "share_s":
        share, deploys = "S", {"global": "S", "personal": "R+S"}
    return Algorithm(name, stages, share=share, deploys=deploys, keep=s_state)


REWRITING = ("selection", "teacher", "redistill_every")
TWO_BRANCHES = (
    "schedule", "s_state", "smooth_epochs", "rectify_epochs", "match_compute", "s_scale",
    "s_dropout", "warmup_rounds",
)  # fmt: skip


def _idle(given: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Which options would have no effect beside the others, and why."""
    ablation, schedule = given["ablation"], given["schedule"]
    if ablation == "without_s":
        yield (*TWO_BRANCHES, *REWRITING), "ablation: without_s, which is FedAvg"
    elif ablation == "without_r":
        yield TWO_BRANCHES, "ablation: without_r, which is FedSD"
    elif ablation == "s_on_raw":
        yield REWRITING, "ablation: s_on_raw, which rewrites nothing"
    elif ablation in ("share_s", "share_both"):
        yield ("s_state",), f"ablation: {ablation}, where S comes from the server"
    if schedule == "joint":
        yield ("smooth_epochs", "rectify_epochs"), "schedule: joint, S and R in one stage"
    if schedule != "warmup":
        yield ("warmup_rounds",), f"schedule: {schedule}"
    if given["s_dropout"] == 1:
        yield ("s_scale",), "s_dropout: 1, which leaves S out"
    elif given["s_scale"] == 0:
        yield ("s_dropout",), "s_scale: 0, which leaves S out"
