"""A tokenizer from a model's folder, and whether it fits the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from fedsdr.errors import ModelError
from fedsdr.model.rehearsal import in_words, is_damage
from fedsdr.runs.plain import read_plain

FILES = ("tokenizer*", "*.model", "vocab.*", "*.tiktoken")  # what one is made of
TEXT = "tokenizer.json"
# What a tokenizer is tried on: a pattern that backtracks takes long over what repeats.
TRIALS = ("", "a", "Ab 1, ä€\u0301 \U0001f600\n", *(part * 2000 for part in "a 1\n-"), "a b" * 700)


def read_tokenizer(folder: Path, given: Path, **common: Any) -> PreTrainedTokenizerFast:
    """`folder` is what it is called, `given` what it is read from."""
    if not any(path for pattern in FILES for path in given.glob(pattern)):
        raise ModelError(
            f"{folder}: there is no tokenizer in it (tokenizer.json); put the model's own there"
        )
    _refuse_dice(folder, given)
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(given, use_fast=True, **common)
    except BaseException as error:
        if not is_damage(error):
            raise
        message = in_words(error).replace(str(given), str(folder))
        raise ModelError(
            f"{folder}: its tokenizer cannot be loaded ({type(error).__name__}: {message}); is "
            "tokenizer.json whole, and the model's own?"
        ) from error
    tokenizer.name_or_path = str(folder)
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


def try_tokenizer(folder: Path, tokenizer: Any) -> None:
    """Each of its parts does its work once."""
    try:
        for text in TRIALS:
            for special in (False, True):
                tokenizer.encode(text, add_special_tokens=special)
        if not tokenizer.encode("a", add_special_tokens=False):
            raise ValueError("it has no token for 'a'")
        tokenizer("a", "b")
        ids = list(range(min(len(tokenizer), 1 << 16)))
        tokenizer.decode(ids)
        tokenizer.decode(ids[:100], skip_special_tokens=True)
    except BaseException as error:
        if not is_damage(error):
            raise
        raise ModelError(
            f"{folder}: its tokenizer cannot be used ({type(error).__name__}: {in_words(error)}); "
            "is tokenizer.json whole, and the model's own?"
        ) from None


def _refuse_dice(folder: Path, given: Path) -> None:
    """A tokenizer that draws: a run could not be repeated, nor gone on with."""
    if not (given / TEXT).is_file():
        return
    try:
        model: Any = json.loads(read_plain(given / TEXT, 1 << 30, ModelError))["model"]
        drawn = {key: model.get(key) for key in ("dropout", "alpha", "nbest_size")}
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return  # loading it will say what is wrong
    for key, value in drawn.items():
        if value:
            raise ModelError(
                f"{folder / TEXT}: model.{key} is {str(value)[:20]}: the same text would be cut "
                "another way every time, so that no run could be repeated; set it to null"
            )


def check_vocabulary(
    folder: Path, tokenizer: PreTrainedTokenizerFast, net: PreTrainedModel
) -> None:
    rows = net.get_input_embeddings().get_parameter("weight").shape[0]
    # What it puts around a text is named by number, and may be beyond its own vocabulary.
    highest = max(*tokenizer.get_vocab().values(), *tokenizer.encode("a"))
    if highest >= rows:
        raise ModelError(
            f"{folder}: the tokenizer has tokens up to {highest}, the model's embedding {rows} "
            "rows; take both from one model, or call its resize_token_embeddings after adding "
            "tokens"
        )
