"""Entailment from a tiny classifier whose logits are known."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
)

from fedsdr.errors import ModelError
from fedsdr.model import classifier as classifier_module
from fedsdr.model.classifier import classifier_digest, entailment_class, load_classifier

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "oslo", "is", "big", "small", "not")
LABELS = {0: "CONTRADICTION", 1: "neutral", 2: "Entailment"}


def make(folder: Path, labels: dict[int, str] | None = None, known: bool = True) -> Path:
    labels = labels or LABELS
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=34, num_labels=len(labels),
        id2label=labels, label2id={name: at for at, name in labels.items()},
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = BertForSequenceClassification(config)
    if known:
        # softmax(0, ln 2, ln 5) = 1/8, 2/8, 5/8, whatever the texts are
        net.classifier.weight.data.zero_()
        net.classifier.bias.data = torch.tensor([0.0, math.log(2), math.log(5)])[: len(labels)]
    net.save_pretrained(folder, safe_serialization=True)
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    inner.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]",
    )  # fmt: skip
    tokenizer.save_pretrained(folder)
    return folder


def test_the_class_is_found_by_its_name(tmp_path: Path) -> None:
    classifier = load_classifier(make(tmp_path / "a"))
    assert classifier.entailment_class == 2
    assert classifier.entailment("oslo is big", "oslo is not small") == pytest.approx(5 / 8)
    two = {0: "entailment", 1: "not_entailment"}
    assert entailment_class(make(tmp_path / "b", two)) == 0
    assert load_classifier(tmp_path / "b").entailment("a", "b") == pytest.approx(1 / 3)


def test_premise_and_hypothesis_keep_their_places(tmp_path: Path) -> None:
    classifier = load_classifier(make(tmp_path / "random", known=False))
    there = classifier.entailment("oslo is big", "oslo")
    back = classifier.entailment("oslo", "oslo is big")
    assert there != back
    ids = torch.tensor([[2, 4, 5, 6, 3, 4, 3]])  # [CLS] oslo is big [SEP] oslo [SEP]
    kinds = torch.tensor([[0, 0, 0, 0, 0, 1, 1]])
    with torch.no_grad():
        logits = classifier.net(input_ids=ids, token_type_ids=kinds).logits[0]
    assert there == pytest.approx(float(logits.softmax(-1)[2]), abs=1e-6)


def test_many_pairs_are_judged_as_each_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = load_classifier(make(tmp_path / "random", known=False))
    texts = ["oslo", "oslo is big", "small", "oslo is not small " * 30, "", "big oslo"]
    pairs = [(premise, hypothesis) for premise in texts for hypothesis in texts]
    alone = [classifier.entailment(*pair) for pair in pairs]
    assert len(set(alone)) > 10
    passes = list[int]()
    watched = classifier.net.register_forward_pre_hook(lambda *_: passes.append(1))
    monkeypatch.setattr(classifier_module, "AT_ONCE", 7)
    assert classifier.entailments(pairs) == pytest.approx(alone, abs=1e-6)
    assert len(passes) == -(-len(pairs) // 7)
    watched.remove()
    assert classifier.entailments([]) == []
    # One that does not know how to pad judges one at a time.
    classifier.net.config.pad_token_id = None
    assert classifier.entailments(pairs) == alone


def test_another_classifier_has_another_digest(tmp_path: Path) -> None:
    first = classifier_digest(make(tmp_path / "a"))
    assert classifier_digest(make(tmp_path / "a")) == first
    assert classifier_digest(make(tmp_path / "b", known=False)) != first
    vocabulary = tmp_path / "a/vocab.txt"
    vocabulary.write_text("oslo")
    assert classifier_digest(tmp_path / "a") != first


def test_a_text_that_is_too_long_is_cut(tmp_path: Path) -> None:
    classifier = load_classifier(make(tmp_path / "a"))
    assert classifier.longest == 32
    assert classifier.entailment("oslo is big " * 100, "oslo") == pytest.approx(5 / 8)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({0: "LABEL_0", 1: "LABEL_1"}, "one class of id2label must be named entailment"),
        ({0: "not_entailment", 1: "neutral"}, "one class"),
        ({0: "entailment", 1: "entailment too"}, "one class"),
    ],
)
def test_without_the_name_it_is_refused(
    tmp_path: Path, labels: dict[int, str], message: str
) -> None:
    make(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["id2label"] = labels
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=message):
        entailment_class(tmp_path)


def test_folders_that_hold_no_classifier(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        load_classifier(tmp_path / "nowhere")
    make(tmp_path / "a")
    (tmp_path / "a/model.safetensors").rename(tmp_path / "a/pytorch_model.bin")
    with pytest.raises(ModelError, match="pickled weights"):
        load_classifier(tmp_path / "a")
    (tmp_path / "a/model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ModelError, match="not a safetensors file"):
        load_classifier(tmp_path / "a")
    (tmp_path / "a/config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json: not valid JSON"):
        load_classifier(tmp_path / "a")


def test_a_head_that_would_guess_is_refused(tmp_path: Path) -> None:
    make(tmp_path)
    net = BertForSequenceClassification.from_pretrained(tmp_path)
    BertForMaskedLM(net.config).save_pretrained(tmp_path / "lm", safe_serialization=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "lm/config.json").write_text(json.dumps(config))
    (tmp_path / "lm/tokenizer.json").write_bytes((tmp_path / "tokenizer.json").read_bytes())
    with pytest.raises(ModelError, match=r"not in its weights, such as 'bert\.pooler"):
        load_classifier(tmp_path / "lm")
