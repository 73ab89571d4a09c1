"""A tokenizer from a model's folder, and whether it fits the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from fedsdr.errors import ModelError

FILES = ("tokenizer*", "*.model", "vocab.*", "*.tiktoken")  # what one is made of


def read_tokenizer(folder: Path, **common: Any) -> PreTrainedTokenizerFast:
    if not any(path for pattern in FILES for path in folder.glob(pattern)):
        raise ModelError(
            f"{folder}: there is no tokenizer in it (tokenizer.json); put the model's own there"
        )
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, use_fast=True, **common)
    except Exception as error:  # tokenizers raises nothing narrower
        told = " ".join(str(error).split())[:300]
        raise ModelError(
            f"{folder}: its tokenizer cannot be loaded ({type(error).__name__}: {told}); is "
            "tokenizer.json whole, and the model's own?"
        ) from error
    if not tokenizer.is_fast:
        raise ModelError(
            f"{folder}: its tokenizer ({type(tokenizer).__name__}) has no tokenizer.json and is "
            "none of the fast ones, which are needed here"
        )
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"{folder}: the tokenizer has no end-of-text token; name it in tokenizer_config.json, "
            "as eos_token"
        )
    return tokenizer


def check_vocabulary(
    folder: Path, tokenizer: PreTrainedTokenizerFast, net: PreTrainedModel
) -> None:
    rows = net.get_input_embeddings().get_parameter("weight").shape[0]
    highest = max(tokenizer.get_vocab().values())
    if highest >= rows:
        raise ModelError(
            f"{folder}: the tokenizer has tokens up to {highest}, the model's embedding {rows} "
            "rows; take both from one model, or call its resize_token_embeddings after adding "
            "tokens"
        )
