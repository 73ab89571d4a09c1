"""HetLoRA (Cho et al. 2024): clients of different ranks; factors are cut on the way down, padded
with zeros on the way up, and averaged by how much they do."""

from dataclasses import replace
from typing import Literal

from fedsdr.algorithms.fedavg import fedavg
from fedsdr.algorithms.options import checked
from fedsdr.parts.algorithm import Algorithm
from fedsdr.parts.lora_rules import PaddedMean, Truncated


@checked
def hetlora(weights: Literal["norm", "examples"] = "norm") -> Algorithm:
    """w ← Σ p_k pad(w_k), p_k = ‖B_k A_k‖_F / Σ, layer by layer; `examples`: p_k = n_k/n, which at
    equal ranks is FedAvg. The paper's rank pruning and tail penalty are left out."""
    downlink = Truncated()
    return replace(
        fedavg(),
        name="hetlora",
        combine=PaddedMean(downlink, weights),
        downlink=downlink,
        any_rank=True,
    )
