"""All data in one place: the reference that no federation is allowed, and every federation is
measured by."""

from dataclasses import replace

from fedsdr.algorithms.fedavg import fedavg
from fedsdr.parts.algorithm import Algorithm


def central() -> Algorithm:
    """Plain fine-tuning on all clients' rows pooled: FedAvg with one client that owns
    everything."""
    return replace(fedavg(), name="central", pool=True)
