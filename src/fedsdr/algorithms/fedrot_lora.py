"""FedRot-LoRA (Zhang et al. 2026): B A = (B Q)(Qᵀ A) for every rotation Q, so clients may mean
the same and average to something else; they are rotated into one frame first."""

from dataclasses import replace

from fedsdr.algorithms.fedavg import fedavg
from fedsdr.algorithms.options import Share, checked
from fedsdr.parts.algorithm import Algorithm
from fedsdr.parts.lora_rules import Aligned


@checked
def fedrot_lora(lam: Share = 0.5) -> Algorithm:
    """A ← Σ p_k Q_kᵀ A_k, B ← Σ p_k B_k Q_k; λ = 0 is FedAvg, λ = 1 the whole rotation."""
    return replace(fedavg(), name="fedrot_lora", combine=Aligned(lam))
