"""What lm-eval finds in the process while it runs, and what is given back afterwards."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from contextlib import contextmanager, redirect_stdout
from random import Random, getstate, setstate

import datasets.config
import evaluate.config
import huggingface_hub.constants
import numpy as np
import torch
from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED

FEWSHOT_SEED = DEFAULT_OTHER_SEED
# Read from the environment when these packages were imported, long before now.
SWITCHES = (
    (huggingface_hub.constants, "HF_HUB_OFFLINE"),
    (datasets.config, "HF_HUB_OFFLINE"),
    (datasets.config, "HF_DATASETS_OFFLINE"),
    (evaluate.config, "HF_EVALUATE_OFFLINE"),
)
VARIABLES = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE")


@contextmanager
def no_hub() -> Generator[None]:
    """Data, metrics and models from this machine only."""
    flags = [(module, name, getattr(module, name)) for module, name in SWITCHES]
    variables = {name: os.environ.get(name) for name in VARIABLES}
    try:
        for module, name, _ in flags:
            setattr(module, name, True)
        os.environ.update(dict.fromkeys(VARIABLES, "1"))
        yield
    finally:
        for module, name, before in flags:
            setattr(module, name, before)
        for name, before in variables.items():
            if before is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = before


@contextmanager
def seeded() -> Generator[None]:
    """Tasks may shuffle with the global generators (GPQA its choices): they find lm-eval's own
    seeds, so that figures agree with its command line, and the generators go on as if they had
    never been touched. What lm-eval prints goes to stderr: stdout is for results."""
    python, numpy = getstate(), np.random.get_state()
    try:
        setstate(Random(DEFAULT_RANDOM_SEED).getstate())
        np.random.set_state(np.random.RandomState(DEFAULT_OTHER_SEED).get_state())
        with torch.random.fork_rng(), redirect_stdout(sys.stderr):
            torch.manual_seed(DEFAULT_OTHER_SEED)
            yield
    finally:
        setstate(python)
        np.random.set_state(numpy)
