"""Write docs/architectures.md, what works with which architecture, by the tests' own functions:

python tests/e2e/architecture_table.py
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from pathlib import Path

import torch
import transformers
from peft import __version__ as peft_version

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests/e2e")]

import test_architectures as tried  # noqa: E402

from families import FAMILIES  # noqa: E402
from fedsdr.errors import FedsdrError  # noqa: E402
from fedsdr.model.loading import load_base  # noqa: E402

HEAD = """# Architectures

Small models of the true classes of `transformers`, made on the spot with random weights and a
vocabulary of 300; two clients, two rounds of FedSDR, LoRA on every linear layer but the head and
those named below, fp32 on a CPU. Written by `python tests/e2e/architecture_table.py` (a minute;
transformers {transformers}, peft {peft}, torch {torch});
`pytest tests/e2e/test_architectures.py` asserts what the same functions find. No hub was at hand:
published weights were not tried.

- **trained**: the clients' mean training loss in the first and in the second round.
- **resumed**: stopped after its first round and resumed, the run ends with the same bytes (rounds,
  ledger, results, adapters).
- **PEFT**: the saved adapters, loaded by `PeftModel.from_pretrained` over plain transformers:
  largest difference of any logit to ours; logits go up to {largest:.0f}.
- **merged**: `fedsdr merge` by its own proof: largest difference of logits between base + adapter
  and the merged folder read again; greedy answers that are equal. In brackets the folder read by
  plain transformers, beside PEFT on the base.
- **packed**: rows stand one behind the other without padding; how far their loss is from that of
  padded rows, in fp64 and as a share of it. "padded": rows of this architecture always are.

"""
COLUMNS = (
    *("model", "class", "head", "what is special", "trained", "resumed"),
    *("PEFT, global / personal", "merged, global", "merged, personal", "packed"),
)
TAIL = """
## What is left out, and what is refused

A preset (`all-linear`, `attention`, `default`) leaves out what cannot be adapted, and `fedsdr plan`
and `train` say which layers and why; a pattern of your own that names such a layer is refused.

- **Shared experts** and dense blocks of some mixtures of experts (tried: DeepSeek-V2 and V3,
  GLM-4-MoE, Qwen3-Next, AFMoE): PEFT {peft} takes every layer called `gate_proj`, `up_proj` or
  `down_proj` there for the routed experts', and in Laguna it looks for the shared expert under
  another name; what they learnt would not be worn. The rule is PEFT's own, read off
  `transformers`; a test compares it with PEFT's for every model type. Llama 4, Qwen2-MoE and
  Qwen3.5-MoE keep theirs.
- **Layers that are not called**: Jamba's `dt_proj`, whose weight its Mamba layers read themselves;
  and routers that return more than W x (Llama 4's). A pass over four tokens at loading finds them,
  which `fedsdr plan --on-paper` cannot make: it counts them in.
- **Routed experts** keep their weights in one tensor, not in linear layers.
- **Recurrent models without attention** (Mamba, Mamba-2, RWKV; XLNet) keep no keys and values, so
  that they cannot generate here: refused at loading.
- **A dtype that a model does not run in** is refused at loading. Mixtures of experts run in fp64,
  one expert after another.
"""


def row(name: str, root: Path) -> tuple[str, float]:
    """Its line, and its largest logit."""
    ran = tried.train_family(name, root)
    net = load_base(ran.folder).net
    head, embedding = net.get_output_embeddings(), net.get_input_embeddings()
    tied = head is not None and head.weight is embedding.weight
    first, last = tried.losses(ran)
    peft = [tried.peft_gap(ran, mix) for mix in tried.MIXES]
    packing = tried.packing_gap(ran)
    cells = (
        name,
        f"`{type(net).__name__}`",
        "tied" if tied else "its own",
        FAMILIES[name][2],
        f"{first:.2f} → {last:.2f}",
        "same bytes" if tried.resumed(ran, root / "resumed") else "**differs**",
        " / ".join(small(gap.difference) for gap in peft),
        *(merged(ran, mix, root / f"merged-{mix}") for mix in tried.MIXES),
        "padded" if packing is None else small(packing),
    )
    return "| " + " | ".join(cells) + " |", max(gap.largest for gap in peft)


def merged(ran: tried.Ran, mix: str, out: Path) -> str:
    try:
        proof, plain = tried.merged(ran, mix, out)
    except FedsdrError as error:
        return f"**{error}**"
    return (
        f"{small(proof.difference)}, {proof.equal_answers} of {proof.prompts} "
        f"({small(plain.difference)})"
    )


def small(number: float) -> str:
    return f"{number:.0e}" if number else "0"


def main() -> None:
    warnings.simplefilter("ignore", FutureWarning)
    torch.set_num_threads(1)
    rows = list[tuple[str, float]]()
    for name in FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(row(name, Path(folder)))
    figures = {
        "transformers": transformers.__version__,
        "peft": peft_version,
        "torch": torch.__version__.partition("+")[0],
        "largest": max(largest for _, largest in rows),
    }
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|", *(line for line, _ in rows)]
    text = HEAD.format(**figures) + "\n".join(lines) + "\n" + TAIL.format(**figures)
    (ROOT / "docs/architectures.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
