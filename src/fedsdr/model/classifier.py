"""Natural language inference: does one text entail another? Any sequence classifier of Hugging
Face's with a class of that name, from a local folder."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as hf_logging

from fedsdr.errors import ModelError
from fedsdr.model.loading import call_it, reading
from fedsdr.model.paper import rehearse_model
from fedsdr.model.sealed import look, sealed

hf_logging.set_verbosity_error()
_ENTAILMENT = re.compile(r"(?<!not)(?<!non)(?<!not[_ -])(?<!non[_ -])entail", re.IGNORECASE)
AT_ONCE = 32  # pairs in a forward pass
_POSITIONS_KEPT = 2  # RoBERTa's positions begin behind its padding


@dataclass(frozen=True, slots=True)
class Classifier:
    net: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    entailment_class: int
    longest: int

    def entailment(self, premise: str, hypothesis: str) -> float:
        """The probability that whoever holds the premise true holds the hypothesis true. Of a pair
        that is too long, the longer text is cut."""
        return self.entailments([(premise, hypothesis)])[0]

    @torch.inference_mode()
    def entailments(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Of many pairs, those of like length together."""
        if not pairs:
            return []
        rows: Any = self.tokenizer(
            [premise for premise, _ in pairs],
            [hypothesis for _, hypothesis in pairs],
            truncation="longest_first",
            max_length=self.longest,
            # A generic tokenizer leaves them out, though the model learnt to tell texts by them.
            return_token_type_ids=int(getattr(self.net.config, "type_vocab_size", 0) or 0) > 1,
        )
        order = sorted(range(len(pairs)), key=lambda i: len(rows["input_ids"][i]))
        probabilities, size = [0.0] * len(pairs), self._batch()
        for first in range(0, len(order), size):
            batch = order[first : first + size]
            named = {name: [values[i] for i in batch] for name, values in rows.items()}
            padded = self.tokenizer.pad(named, return_tensors="pt") if size > 1 else named
            tensors = {name: torch.as_tensor(values) for name, values in padded.items()}
            odds = self.net(**tensors).logits.float().softmax(-1)[:, self.entailment_class]
            for i, probability in zip(batch, odds.tolist(), strict=True):
                probabilities[i] = probability
        return probabilities

    def _batch(self) -> int:
        """One at a time, where either does not know how to pad."""
        pads = (self.tokenizer.pad_token_id, getattr(self.net.config, "pad_token_id", None))
        return 1 if None in pads else AT_ONCE


def classifier_digest(folder: Path) -> str:
    """sha256 over the files that decide what it judges."""
    with sealed(folder) as model:
        _entailment(folder, model.config)
        return model.digest


def entailment_class(folder: Path) -> int:
    """Which class of the classifier in a folder means entailment, by its config's names."""
    return _entailment(folder, look(folder).config)


def _entailment(folder: Path, config: Mapping[str, Any]) -> int:
    try:
        labels = cast("Mapping[str, str]", config["id2label"])
        classes = [int(index) for index, name in labels.items() if _ENTAILMENT.search(name)]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ModelError(
            f"{folder}/config.json: no id2label with the names of the classes can be read"
        ) from None
    if len(classes) != 1:
        raise ModelError(
            f"{folder}/config.json: one class of id2label must be named entailment, and there are "
            f"{', '.join(map(str, labels.values()))}; name the right one"
        )
    return classes[0]


@lru_cache(maxsize=1)
def load_classifier(folder: Path) -> Classifier:
    """The classifier in a folder, in single precision on the CPU; loaded once per process."""
    with sealed(folder) as model, reading(model, folder, False):
        at = _entailment(folder, model.config)
        rehearse_model(model, AutoModelForSequenceClassification, _tokenizer)
        loaded: Any = AutoModelForSequenceClassification.from_pretrained(
            model.folder,
            dtype=torch.float32,
            output_loading_info=True,
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
        )
        tokenizer: Any = _tokenizer(model.folder)
        net, report = loaded
        call_it(net, folder)
        if missing := sorted(report["missing_keys"]):
            # transformers would fill them with random numbers: a head that guesses.
            raise ModelError(
                f"{folder}: {len(missing)} tensors of a classifier are not in its weights, such as "
                f"{missing[0]!r}; it is another kind of model"
            )
        positions = int(getattr(net.config, "max_position_embeddings", 0) or 512)
        longest = min(int(tokenizer.model_max_length), positions - _POSITIONS_KEPT)
    return Classifier(net.requires_grad_(False).eval(), tokenizer, at, longest)


def _tokenizer(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
