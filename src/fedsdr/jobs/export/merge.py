"""Base + adapter as one model with full weights, written only if it is proved to be the same.

The proof of a merge: the folder that was written, read again, must say what base + adapter say.

Both are asked held-out prompts, and compared where it counts: in the logits along each prompt's end
and the greedy answer of base + adapter. How far they may differ depends on the dtype; but always
less than half of what the adapter itself changes, or else the bare base would pass as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import chain, zip_longest
from pathlib import Path

import torch
from torch import Tensor, nn

from fedsdr.coordinator.job import Watch
from fedsdr.data.render import render_prompt
from fedsdr.distill.generate import Sampling, generate
from fedsdr.errors import ModelError, RunError
from fedsdr.jobs.assembly import given
from fedsdr.jobs.export.chosen import Chosen, Finished
from fedsdr.jobs.export.folder import placed, sha256
from fedsdr.jobs.sources import load_federation
from fedsdr.model.adapters import WEIGHTS, adapter_spec, load_adapter
from fedsdr.model.base import BaseModel
from fedsdr.model.loading import DTYPES, keep_norms_wide, load_base
from fedsdr.model.lora import StackedLora
from fedsdr.model.merge import merge_into_base, save_merged
from fedsdr.model.sealed import TRUSTED
from fedsdr.runs.files import write_json_atomic
from fedsdr.types import ClientData, Example

PROMPTS, ANSWER, PROMPT_END = 16, 24, 32  # how many, and how many tokens of each are compared
# Of the largest logit. fp16 and bf16 keep 11 and 8 bits of every weight and activation.
TOLERANCE = {"float64": 1e-6, "float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}
EXACT = ("float64", "float32")  # here every greedy answer must be equal; in the others, half


@dataclass(frozen=True, slots=True)
class Proof:
    """Largest differences of logits: of merged and base + adapter, and of base + adapter and base;
    and how many greedy answers are equal."""

    dtype: str
    prompts: int
    equal_answers: int
    difference: float
    tolerance: float
    effect: float

    def failure(self) -> str:
        """What is wrong, or nothing."""
        if not self.difference <= self.tolerance:
            return (
                f"its logits differ by up to {self.difference:.3g} from those of base + adapter, "
                f"more than the {self.tolerance:.3g} that {self.dtype} allows"
            )
        if self.difference > self.effect / 2 and self.effect > 0:
            return (
                f"{self.dtype} changes its logits by up to {self.difference:.3g}, the adapter by "
                f"no more than {self.effect:.3g}: too little to be told apart; choose a wider "
                "--dtype"
            )
        needed = self.prompts if self.dtype in EXACT else (self.prompts + 1) // 2
        if self.equal_answers < needed:
            return (
                f"only {self.equal_answers} of {self.prompts} greedy answers are those of base + "
                f"adapter, {needed} have to be in {self.dtype}"
            )
        return ""


@dataclass(frozen=True, slots=True)
class Heard:
    """What base + adapter says: its answers, and its logits along `rows` (prompt and answer)."""

    examples: Sequence[Example]
    prompts: list[list[int]]
    rows: list[list[int]]
    answers: list[str]
    logits: list[Tensor]


def listen(base: BaseModel, examples: Sequence[Example]) -> Heard:
    """Ask base + adapter, whose answers the merged model will be held to."""
    fit = [e for e in examples if len(render_prompt(base, e)) + ANSWER <= base.max_length]
    if not fit:
        raise ModelError("no held-out prompt fits the model, so that a merge cannot be proved")
    asked = fit[:PROMPTS]
    prompts = [render_prompt(base, e) for e in asked]
    answers = _answers(base, prompts)
    rows = [(p + base.encode(a))[: base.max_length] for p, a in zip(prompts, answers, strict=True)]
    return Heard(asked, prompts, rows, answers, logits_along(base, prompts, rows))


@torch.inference_mode()
def logits_along(
    base: BaseModel, prompts: Sequence[Sequence[int]], rows: Sequence[Sequence[int]]
) -> list[Tensor]:
    logits: list[Tensor] = []
    for prompt, row in zip(prompts, rows, strict=True):
        keep = torch.arange(max(0, len(prompt) - PROMPT_END), len(row), device=base.net.device)
        ids = torch.tensor([row], device=base.net.device)
        logits.append(base.logits(ids, keep=keep)[0].double().cpu())
    return logits


def compare(merged: BaseModel, heard: Heard, plain: Sequence[Tensor], dtype: str) -> Proof:
    """Hold the merged model, as read from its folder, to what was heard; `plain`: the logits of the
    base alone."""
    if [render_prompt(merged, e) for e in heard.examples] != heard.prompts:
        raise ModelError("the merged folder's tokenizer renders the prompts differently")
    answers = _answers(merged, heard.prompts)
    equal = sum(a == b for a, b in zip(answers, heard.answers, strict=True))
    logits = logits_along(merged, heard.prompts, heard.rows)
    scale = max(1.0, *(float(t.abs().max()) for t in heard.logits))
    return Proof(
        dtype,
        len(answers),
        equal,
        _largest(logits, heard.logits),
        TOLERANCE[dtype] * scale,
        _largest(heard.logits, plain),
    )


def _answers(base: BaseModel, prompts: Sequence[Sequence[int]]) -> list[str]:
    sampling = Sampling(temperature=0.0, max_new_tokens=ANSWER)
    return [g.text for g in generate(base, prompts, sampling, batch=PROMPTS)]


def _largest(left: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    """NaN anywhere is NaN, which no tolerance allows."""
    gaps = [(a - b).abs().max() for a, b in zip(left, right, strict=True)]
    return float(torch.stack(gaps).max())


PROOF = "merge_proof.json"


def merge(
    directory: str | Path,
    out: str | Path,
    mix: str = "global",
    client: str | None = None,
    dtype: str | None = None,
    watch: Watch | None = None,
    clients: Sequence[ClientData] | None = None,
) -> Proof:
    """Write a run's deployed model as a Hugging Face folder of full weights (by default in the
    dtype it was trained over; of a quantised base, the full weights), or nothing if it does not say
    what base + adapter say.

    Args:
        directory: The run's folder.
        out: A new folder for the model.
        mix: The deployed mix.
        client: Whose personal model is meant, where each client has one.
        dtype: Of the weights; by default the run's.
        watch: Is told progress, every round's row and notes; nobody by default.
        clients: The clients of a run begun from Python, for the prompts of the proof.
    """
    watch, chosen = watch or Watch(), Finished.open(directory).chosen(mix, client)
    dtype = dtype or chosen.of.recipe.model.dtype
    if dtype not in DTYPES:
        raise ModelError(f"--dtype {dtype!r} is unknown; use one of {', '.join(DTYPES)}")
    if how := chosen.of.recipe.model.quantize:
        watch.note(f"the run's base was quantised to {how}: merging into its full weights instead")
    with placed(Path(out)) as folder:
        examples = _prompts(chosen, clients)
        try:
            heard, plain = _merged(chosen, examples, folder, dtype)
            watch.note(f"written in {dtype}; asking it {len(heard.prompts)} held-out prompts")
            trusted = chosen.of.recipe.model.path in TRUSTED.get()
            again = load_base(folder, dtype, chosen.of.device, trusted=trusted)
            proof = compare(again, heard, plain, dtype)
        except torch.OutOfMemoryError as error:
            raise ModelError(
                "the model in full precision does not fit on the GPU; hide it "
                "(CUDA_VISIBLE_DEVICES=) to merge on the CPU"
            ) from error
        if failure := proof.failure():
            raise ModelError(f"the merge failed its proof and nothing was written: {failure}")
        about = {
            "run": chosen.of.facts["run"],
            "mix": mix,
            "round": chosen.round,
            "base_digest": chosen.of.facts["base_digest"],
            "adapter_sha256": sha256(chosen.folder / WEIGHTS),
        }
        write_json_atomic(folder / PROOF, {**asdict(proof), **about})
    return proof


def _merged(
    chosen: Chosen, examples: Sequence[Example], folder: Path, dtype: str
) -> tuple[Heard, list[torch.Tensor]]:
    """Fill the folder; what base + adapter said before, and the base alone."""
    base = _widened(chosen.of.base(quantized=False), dtype)
    name = "adapter"
    lora = StackedLora(base, chosen.of.recipe.lora.targets, {name: adapter_spec(chosen.folder)})
    flat = load_adapter(chosen.folder, lora, name).to(base.net.device)
    with lora.wear({name: flat[None].to(base.dtype)}, [name]):
        heard = listen(base, examples)
    plain = logits_along(base, heard.prompts, heard.rows)
    merge_into_base(lora, name, flat)
    save_merged(base, folder, dtype)
    return heard, plain


def _widened(base: BaseModel, dtype: str) -> BaseModel:
    """The weights that were trained over, computing in fp32 at least: what is compared with must
    not itself be rounded."""
    wide = torch.promote_types(torch.promote_types(base.dtype, DTYPES[dtype]), torch.float32)
    nn.Module.to(base.net, wide)
    if wide == torch.float64:
        keep_norms_wide(base.net)
    return base


def _prompts(chosen: Chosen, clients: Sequence[ClientData] | None) -> list[Example]:
    """Held-out rows of the client whose model it is, or of all clients in turn."""
    run, recipe = chosen.of, chosen.of.recipe
    if run.facts["from_python"].get("clients") and clients is None:
        raise RunError(
            f"{run.run.root} was started from Python with its own clients, of which a merge needs "
            "the held-out rows: pass them to fedsdr.merge"
        )
    federation = given(clients, recipe) or load_federation(recipe)
    asked = [c for c in federation.clients if chosen.client in (None, c.client_id)]
    by_client = [(*c.test, *c.validation) for c in asked]
    examples = [e for e in chain(*zip_longest(*by_client)) if e is not None]
    if not examples:
        raise RunError(
            f"{run.run.root} holds no rows back (data.validation and data.test are 0), so that "
            "nothing can prove a merge"
        )
    return examples
