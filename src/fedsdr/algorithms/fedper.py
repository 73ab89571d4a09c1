"""FedPer (Arivazhagan et al. 2019): the last layers stay at home, the rest is averaged."""

from dataclasses import replace
from typing import Annotated

from pydantic import Field

from fedsdr.algorithms.fedavg import fedavg
from fedsdr.algorithms.options import checked
from fedsdr.parts.algorithm import Algorithm


@checked
def fedper(blocks: Annotated[int, Field(ge=0, le=1_000_000)] = 1) -> Algorithm:
    """The adapters of the model's last `blocks` blocks never leave their client; 0 is FedAvg. (The
    paper keeps a vision model's last layers; the head of a language model is not adapted here.)"""
    deploys = {"personal": "R"} if blocks else {"global": "R"}
    return replace(fedavg(), name="fedper", local_blocks=blocks, deploys=deploys)
