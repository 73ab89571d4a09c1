"""The shipped base model is the recorded one, and can do what docs/atlas.md says of it."""

import hashlib
import json

import pytest

from fedsdr.atlas.check import check, rewriting_faithfulness
from fedsdr.atlas.pretrain import HERE, Plan
from fedsdr.model.base import BaseModel
from fedsdr.model.loading import load_base


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return load_base(HERE)


def test_the_shipped_files_are_the_recorded_ones():
    record = json.loads((HERE / "record.json").read_text())
    for name, recorded in record["sha256"].items():
        assert hashlib.sha256((HERE / name).read_bytes()).hexdigest() == recorded, name
    assert "model.safetensors" in record["sha256"]
    assert Plan(**record["plan"]) == Plan(), "the plan changed: train the base again"
    assert sum(p.stat().st_size for p in HERE.iterdir()) <= 6 * 2**20


def test_it_is_a_llama_with_a_chat_template(base: BaseModel):
    assert base.net.config.model_type == "llama"
    assert base.notes == ()
    text = base.chat([{"role": "user", "content": "Hi"}], opened=True)
    assert text == "<|user|>Hi<|end|><|assistant|>"
    assert base.tokenizer.decode(base.encode("Größe: 3 < 4, 漢字")) == "Größe: 3 < 4, 漢字"


@pytest.mark.slow
def test_it_recalls_keeps_house_and_rewrites_mostly_faithfully(base: BaseModel):
    found = check(base, rewrites=40)
    assert found["public_recall"] >= 0.97
    styles = found["styles_sampled"]
    assert 0.3 < styles["house"] < 0.8
    assert sum(share >= 0.02 for style, share in styles.items() if style != "house") >= 7
    rewrites = rewriting_faithfulness(base, 800, seed=3)
    assert 0.10 <= 1 - rewrites["describe"] <= 0.50
    assert rewrites["fact"] >= 0.90
