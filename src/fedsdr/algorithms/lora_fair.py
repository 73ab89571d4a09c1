"""LoRA-FAIR (Bian et al. 2025): FedAvg on the factors, of which B is then corrected so that the
product comes nearer to the mean product."""

from dataclasses import replace
from typing import Annotated

from pydantic import Field

from fedsdr.algorithms.fedavg import fedavg
from fedsdr.algorithms.options import checked
from fedsdr.parts.algorithm import Algorithm
from fedsdr.parts.lora_rules import Refined


@checked
def lora_fair(lam: Annotated[float, Field(ge=1e-12, le=1e12)] = 0.01) -> Algorithm:
    """B ← B̄ + argmin_ΔB ‖ΔW − (B̄ + ΔB) Ā‖² + λ‖ΔB‖²; a large λ is FedAvg."""
    return replace(fedavg(), name="lora_fair", combine=Refined(lam))
