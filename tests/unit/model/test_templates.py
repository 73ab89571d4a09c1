"""Masks of every named template, against strings written down from their sources.

`marked` writes special tokens as ‹token› and trained parts as ⟦part⟧, so that text which merely
looks like a special token cannot pass for one. No hub was at hand: the strings follow the public
copies that `NamedTemplate.copy` names (of Mistral's, the cookbook's; of Llama 3's, Meta's code).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AddedToken, PreTrainedTokenizerFast

from fedsdr.data.render import Rendered, messages_of, render, render_prompt
from fedsdr.errors import DataError, ModelError, RecipeError
from fedsdr.model.base import BaseModel, TrainOn, with_template
from fedsdr.model.loading import load_base
from fedsdr.model.speech import DATED, NO_TEMPLATE, own_template
from fedsdr.recipe.settings import Model, build_recipe
from fedsdr.text.templates import CHOICES, TEMPLATES
from fedsdr.types import Example, Message

ROW = Example("a", "Hi", "Hello")
SAID = (Message("user", "Hi"), Message("assistant", "Hello"))
TURNS = Example("b", "Bye", "Ciao", system="Be kind.", history=SAID)
SPACE = "▁"  # how SentencePiece writes it


def tokenizer_of(
    specials: Sequence[str], bos: str | None = None, adds_bos: bool = False, kind: str = "bytes"
) -> PreTrainedTokenizerFast:
    """Every character a token of its own (or every byte), so that a mask can be read off. The
    special tokens come first: padding, then the end of text."""
    characters = [chr(i) for i in range(32, 127)] + ["\n", SPACE]
    if kind.startswith("bytes"):
        characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {text: i for i, text in enumerate([*specials, *characters])}
    made = Tokenizer(models.BPE(vocabulary, [], fuse_unk=False))
    match kind:
        case "bytes" | "bytes with a space in front":
            prefix = kind != "bytes"
            made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=False)
            made.decoder = decoders.ByteLevel()
        case "Prepend":
            steps = [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
            made.normalizer = normalizers.Sequence(steps)
        case _:
            made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=kind, split=False)
    made.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in specials])
    if bos is not None and adds_bos:
        made.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, vocabulary[bos])]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token=specials[0], eos_token=specials[1], bos_token=bos
    )


def speaking(
    base: BaseModel, tokenizer: PreTrainedTokenizerFast, choice: str, train_on: TrainOn = "last"
) -> BaseModel:
    template, notes = own_template(tokenizer)
    base = replace(base, tokenizer=tokenizer, template=template, notes=notes)
    return with_template(base, choice, train_on)


def marked(base: BaseModel, row: Rendered) -> str:
    special, found, trained = base.tokenizer.added_tokens_decoder, "", False
    run = list[int]()
    for token, weight in [*zip(row.ids, row.weights, strict=True), (None, 0.0)]:
        if token is None or token in special or (weight > 0) != trained:
            found += str(base.tokenizer.decode(run))
            run = []
        if (weight > 0) != trained:
            trained = weight > 0
            found += "⟦" if trained else "⟧"
        if token in special:
            found += f"‹{special[token].content}›"
        elif token is not None:
            run.append(token)
    return found


def last_only(text: str) -> str:
    """The same mask when only the last answer is trained."""
    before, mark, last = text.rpartition("⟦")
    return before.replace("⟦", "").replace("⟧", "") + mark + last


@dataclass(frozen=True)
class Family:
    specials: tuple[str, ...]
    single: str
    turns: str  # TURNS, trained on all answers
    bos: str | None = None
    adds_bos: bool = True

    def tokenizer(self) -> PreTrainedTokenizerFast:
        return tokenizer_of(self.specials, self.bos, self.adds_bos and self.bos is not None)


LLAMA = ("<unk>", "</s>", "<s>")
VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions."
)
ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request."
)
QWEN = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
IM, IM_END = "‹<|im_start|>›", "‹<|im_end|>›"
HEAD, HEAD_END, EOT = "‹<|start_header_id|>›", "‹<|end_header_id|>›\n\n", "‹<|eot_id|>›"
CHATML_TURNS = (
    f"{IM}system\nBe kind.{IM_END}\n{IM}user\nHi{IM_END}\n{IM}assistant\n⟦Hello{IM_END}⟧\n"
    f"{IM}user\nBye{IM_END}\n{IM}assistant\n⟦Ciao{IM_END}⟧"
)
FAMILIES = {
    "plain": Family(
        ("<pad>", "<end>"),
        "user:\nHi‹<end>›\nassistant:\n⟦Hello‹<end>›⟧",
        "system:\nBe kind.‹<end>›\nuser:\nHi‹<end>›\nassistant:\n⟦Hello‹<end>›⟧\n"
        "user:\nBye‹<end>›\nassistant:\n⟦Ciao‹<end>›⟧",
    ),
    "chatml": Family(
        ("<|endoftext|>", "<|im_end|>", "<|im_start|>"),
        f"{IM}user\nHi{IM_END}\n{IM}assistant\n⟦Hello{IM_END}⟧",
        CHATML_TURNS,
    ),
    "qwen2.5": Family(
        ("<|endoftext|>", "<|im_end|>", "<|im_start|>"),
        f"{IM}system\n{QWEN}{IM_END}\n{IM}user\nHi{IM_END}\n{IM}assistant\n⟦Hello{IM_END}⟧",
        CHATML_TURNS,
    ),
    "llama-2": Family(
        LLAMA,
        "‹<s>›[INST] Hi [/INST]⟦ Hello ‹</s>›⟧",
        "‹<s>›[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nHi [/INST]⟦ Hello ‹</s>›⟧"
        "‹<s>›[INST] Bye [/INST]⟦ Ciao ‹</s>›⟧",
        bos="<s>",
    ),
    "llama-3": Family(
        ("<pad>", "<|end_of_text|>", "<|begin_of_text|>", "<|start_header_id|>",
         "<|end_header_id|>", "<|eot_id|>"),
        f"‹<|begin_of_text|>›{HEAD}user{HEAD_END}Hi{EOT}{HEAD}assistant{HEAD_END}⟦Hello{EOT}⟧",
        f"‹<|begin_of_text|>›{HEAD}system{HEAD_END}Be kind.{EOT}"
        f"{HEAD}user{HEAD_END}Hi{EOT}{HEAD}assistant{HEAD_END}⟦Hello{EOT}⟧"
        f"{HEAD}user{HEAD_END}Bye{EOT}{HEAD}assistant{HEAD_END}⟦Ciao{EOT}⟧",
        bos="<|begin_of_text|>",
    ),
    "mistral-v0.1": Family(
        LLAMA,
        "‹<s>› [INST] Hi [/INST]⟦ Hello‹</s>›⟧",
        "‹<s>› [INST] Be kind.\n\nHi [/INST]⟦ Hello‹</s>›⟧ [INST] Bye [/INST]⟦ Ciao‹</s>›⟧",
        bos="<s>",
    ),
    "mistral": Family(
        (*LLAMA, "[INST]", "[/INST]"),
        "‹<s>›‹[INST]› Hi‹[/INST]›⟦ Hello‹</s>›⟧",
        "‹<s>›‹[INST]› Be kind.\n\nHi‹[/INST]›⟦ Hello‹</s>›⟧‹[INST]› Bye‹[/INST]›⟦ Ciao‹</s>›⟧",
        bos="<s>",
    ),
    "gemma": Family(
        ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"),
        "‹<bos>›‹<start_of_turn>›user\nHi‹<end_of_turn>›\n"
        "‹<start_of_turn>›model\n⟦Hello‹<end_of_turn>›⟧",
        "‹<bos>›‹<start_of_turn>›user\nBe kind.\n\nHi‹<end_of_turn>›\n"
        "‹<start_of_turn>›model\n⟦Hello‹<end_of_turn>›⟧\n"
        "‹<start_of_turn>›user\nBye‹<end_of_turn>›\n"
        "‹<start_of_turn>›model\n⟦Ciao‹<end_of_turn>›⟧",
        bos="<bos>",
    ),
    "phi-3": Family(
        ("<pad>", "<|endoftext|>", "<s>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        "‹<|user|>›\nHi‹<|end|>›\n‹<|assistant|>›\n⟦Hello‹<|end|>›⟧",
        "‹<|system|>›\nBe kind.‹<|end|>›\n‹<|user|>›\nHi‹<|end|>›\n"
        "‹<|assistant|>›\n⟦Hello‹<|end|>›⟧\n‹<|user|>›\nBye‹<|end|>›\n"
        "‹<|assistant|>›\n⟦Ciao‹<|end|>›⟧",
        bos="<s>",
        adds_bos=False,
    ),
    "zephyr": Family(
        LLAMA,
        "‹<s>›<|user|>\nHi‹</s>›\n<|assistant|>\n⟦Hello‹</s>›⟧",
        "‹<s>›<|system|>\nBe kind.‹</s>›\n<|user|>\nHi‹</s>›\n<|assistant|>\n⟦Hello‹</s>›⟧\n"
        "<|user|>\nBye‹</s>›\n<|assistant|>\n⟦Ciao‹</s>›⟧",
        bos="<s>",
    ),
    "vicuna": Family(
        LLAMA,
        f"‹<s>›{VICUNA} USER: Hi ASSISTANT:⟦ Hello‹</s>›⟧",
        "‹<s>›Be kind. USER: Hi ASSISTANT:⟦ Hello‹</s>›⟧USER: Bye ASSISTANT:⟦ Ciao‹</s>›⟧",
        bos="<s>",
    ),
    "alpaca": Family(
        LLAMA,
        f"‹<s>›{ALPACA}\n\n### Instruction:\nHi\n\n### Response:⟦Hello‹</s>›⟧",
        "‹<s>›Be kind.\n\n### Instruction:\nHi\n\n### Response:⟦Hello‹</s>›⟧"
        "\n\n### Instruction:\nBye\n\n### Response:⟦Ciao‹</s>›⟧",
        bos="<s>",
    ),
}  # fmt: skip
NAMES = pytest.mark.parametrize("name", FAMILIES)


# --- golden masks ---


def test_every_name_has_a_golden_mask_and_says_where_it_comes_from() -> None:
    assert set(FAMILIES) == set(TEMPLATES) == set(CHOICES) - {"auto"}
    for name, chosen in TEMPLATES.items():
        assert chosen.model
        assert chosen.verified == (name != "plain")
        assert name == "plain" or " @ " in chosen.copy


@NAMES
def test_one_turn(name: str, base32: BaseModel) -> None:
    base = speaking(base32, FAMILIES[name].tokenizer(), name)
    assert marked(base, render(base, ROW, 1024)) == FAMILIES[name].single


@NAMES
@pytest.mark.parametrize("train_on", ["last", "all"])
def test_system_and_two_turns(name: str, train_on: TrainOn, base32: BaseModel) -> None:
    base = speaking(base32, FAMILIES[name].tokenizer(), name, train_on)
    wanted = FAMILIES[name].turns
    row = render(base, TURNS, 1024)
    assert marked(base, row) == (wanted if train_on == "all" else last_only(wanted))
    # Of one turn, there is but one answer to train on.
    assert marked(base, render(base, ROW, 1024)) == FAMILIES[name].single


def test_token_by_token(base32: BaseModel) -> None:
    base = speaking(base32, FAMILIES["chatml"].tokenizer(), "chatml", "all")
    turns = Example("c", "b", "d", history=(Message("user", "a"), Message("assistant", "c")))
    row = render(base, turns, 1024)
    tokens = base.tokenizer.convert_ids_to_tokens(list(row.ids))
    user = ["<|im_start|>", *"user", "Ċ"]
    assistant = ["<|im_start|>", *"assistant", "Ċ"]
    wanted = [
        *((t, 0.0) for t in [*user, "a", "<|im_end|>", "Ċ", *assistant]),
        *((t, 1.0) for t in ["c", "<|im_end|>"]),
        *((t, 0.0) for t in ["Ċ", *user, "b", "<|im_end|>", "Ċ", *assistant]),
        *((t, 1.0) for t in ["d", "<|im_end|>"]),
    ]
    assert list(zip(tokens, row.weights, strict=True)) == wanted


@NAMES
def test_training_sees_what_generation_sees(name: str, base32: BaseModel) -> None:
    for train_on in ("last", "all"):
        base = speaking(base32, FAMILIES[name].tokenizer(), name, train_on)
        for example in (ROW, TURNS, replace(TURNS, system="")):
            row, prompt = render(base, example, 1024), render_prompt(base, example)
            assert list(row.ids[: row.prompt]) == prompt
            assert set(row.weights[row.prompt :]) == {1.0}


@NAMES
def test_text_of_any_script_survives(name: str, base32: BaseModel) -> None:
    base = speaking(base32, FAMILIES[name].tokenizer(), name, "all")
    odd = "größe 40 µg — 漢字 😀👩‍👩‍👧 שלום مرحبا \u200fx\u2028y {{ m }} {% if %}"
    plain, strange = (
        Example("d", x, x, system=x, history=(Message("user", x), Message("assistant", x)))
        for x in ("\x01", odd)
    )
    wanted = marked(base, render(base, plain, 4096)).replace("\x01", odd)
    assert marked(base, render(base, strange, 4096)) == wanted


def test_an_empty_system_text_is_no_system_turn(base32: BaseModel) -> None:
    base = speaking(base32, FAMILIES["chatml"].tokenizer(), "chatml")
    assert marked(base, render(base, replace(ROW, system=""), 1024)) == FAMILIES["chatml"].single


# --- what a record may not say ---


@NAMES
@pytest.mark.parametrize("field", ["prompt", "response", "system", "history"])
def test_no_record_can_write_a_special_token(name: str, field: str, base32: BaseModel) -> None:
    family = FAMILIES[name]
    base = speaking(base32, family.tokenizer(), name, "all")
    evil = "say " + " and ".join(family.specials) + "".join(family.specials)
    changed: Any = {field: evil}
    if field == "history":
        changed = {"history": tuple(replace(m, content=evil) for m in TURNS.history)}
    tame, wild = render(base, TURNS, 4096), render(base, replace(TURNS, **changed), 4096)
    added = base.tokenizer.added_tokens_decoder
    assert [t for t in wild.ids if t in added] == [t for t in tame.ids if t in added]
    assert evil in marked(base, wild)  # marked() writes a real one with ‹ ›
    asked = render_prompt(base, replace(TURNS, **changed))
    assert asked == list(wild.ids[: wild.prompt])


def test_tokens_that_overlap_are_cut_too(base32: BaseModel) -> None:
    base = speaking(base32, tokenizer_of(("<pad>", "<end>", "d><p")), "plain")
    row = render(base, replace(ROW, prompt="<end><pad>"), 1024)
    assert marked(base, row) == "user:\n<end><pad>‹<end>›\nassistant:\n⟦Hello‹<end>›⟧"


def test_a_turns_end_that_is_not_marked_as_special_is_guarded_too(base32: BaseModel) -> None:
    """But a token such as <think>, which answers do hold, stays one."""
    tokenizer = tokenizer_of(("<pad>", "<end>"))
    tokenizer.add_tokens(["<|im_end|>", "<|im_start|>", "<think>"])
    tokenizer.chat_template = TEMPLATES["chatml"].text
    base = speaking(base32, tokenizer, "auto")
    row = render(base, replace(ROW, response="<think>so<|im_end|>"), 1024)
    assert marked(base, row).endswith(f"⟦‹<think>›so<|im_end|>{IM_END}⟧")


def test_half_of_a_surrogate_pair_is_refused(base32: BaseModel) -> None:
    with pytest.raises(DataError, match="surrogate") as caught:
        render(base32, replace(ROW, prompt="secret \udfff"), 256)
    assert "secret" not in str(caught.value)


# --- bos, eos and the spaces of SentencePiece ---


@NAMES
@pytest.mark.parametrize("adds_bos", [True, False])
def test_bos_stands_in_front_exactly_once(name: str, adds_bos: bool, base32: BaseModel) -> None:
    """Where the source writes it or the tokenizer adds it; Llama 2 begins each turn with it."""
    bos = FAMILIES[name].bos or "<s>"
    specials = tuple(dict.fromkeys((*FAMILIES[name].specials, bos)))
    base = speaking(base32, tokenizer_of(specials, bos, adds_bos), name)
    row, number = render(base, TURNS, 1024), base.tokenizer.bos_token_id
    writes = "bos_token" in TEMPLATES[name].text
    turns = 2 if name == "llama-2" else 1
    assert row.ids.count(number) == (turns if writes or adds_bos else 0)
    assert (row.ids[0] == number) == (writes or adds_bos)


@NAMES
def test_a_tokenizer_without_bos_gets_none(name: str, base32: BaseModel) -> None:
    base = speaking(base32, tokenizer_of(FAMILIES[name].specials), name)
    wanted = FAMILIES[name].single.replace(f"‹{FAMILIES[name].bos}›", "")
    assert marked(base, render(base, ROW, 1024)) == wanted


@NAMES
def test_the_tokenizers_own_template_is_encoded_as_transformers_does(
    name: str, base32: BaseModel
) -> None:
    """With one bos, not two: the template writes it and encoding adds none."""
    tokenizer = FAMILIES[name].tokenizer()
    tokenizer.chat_template = TEMPLATES[name].text
    base = speaking(base32, tokenizer, "auto")
    asked = [{"role": "user", "content": "Hi"}]
    wanted: Any = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=True)
    assert render_prompt(base, ROW) == list(wanted["input_ids"])


@pytest.mark.parametrize("name", ["llama-2", "mistral-v0.1", "mistral", "vicuna", "zephyr"])
@pytest.mark.parametrize("kind", ["Prepend", "always", "first", "never"])
def test_an_answer_gets_no_second_space(name: str, kind: str, base32: BaseModel) -> None:
    """SentencePiece puts a space before a text; legacy ones also after every special token. Pieces
    come out as the whole does."""
    tokenizer = tokenizer_of(FAMILIES[name].specials, "<s>", True, kind)
    base = speaking(base32, tokenizer, name, "all")
    for example in (ROW, replace(TURNS, response="Ciao, bella")):
        messages = [*messages_of(example), {"role": "assistant", "content": example.response}]
        text = base.chat(messages, opened=False).rstrip()
        row = list(render(base, example, 1024).ids)
        if (name, kind) != ("mistral", "Prepend"):  # it doubles the space after [/INST] as well
            assert row == tokenizer.encode(text, add_special_tokens=False)
        tokens = "".join(tokenizer.convert_ids_to_tokens(row))
        assert f"{SPACE}{SPACE}{example.response[:4]}" not in tokens


def test_bytes_with_a_space_in_front(base32: BaseModel) -> None:
    tokenizer = tokenizer_of(("<pad>", "<end>"), kind="bytes with a space in front")
    base = speaking(base32, tokenizer, "plain")
    row = render(base, ROW, 1024)
    tokens = tokenizer.convert_ids_to_tokens(list(row.ids[row.prompt :]))
    assert tokens == [*"Hello", "<end>"]


def test_a_tokenizer_without_padding_or_template(base32: BaseModel) -> None:
    tokenizer = tokenizer_of(("<pad>", "<end>"))
    tokenizer.pad_token = None
    base = speaking(base32, tokenizer, "auto")
    assert base.notes == (NO_TEMPLATE,)
    assert base.pad == base.eos
    assert marked(base, render(base, ROW, 1024)) == FAMILIES["plain"].single


def test_of_several_templates_the_default_is_taken() -> None:
    tokenizer = tokenizer_of(("<pad>", "<end>"))
    tokenizer.chat_template = {"default": "one", "tool_use": "two"}  # pyright: ignore[reportAttributeAccessIssue]
    assert own_template(tokenizer) == ("one", ())


# --- where an answer ends ---


def test_what_ends_an_answer(base32: BaseModel) -> None:
    base = speaking(base32, FAMILIES["llama-3"].tokenizer(), "llama-3")
    number: Any = base.tokenizer.convert_tokens_to_ids
    settings = SimpleNamespace(eos_token_id=[number("<|begin_of_text|>"), 40])
    quiet = SimpleNamespace(eos_token_id=None)
    net: Any = SimpleNamespace(config=quiet, generation_config=settings)
    base = replace(base, net=net)
    # 40 is an ordinary character: a configuration for another tokenizer ends no answer here.
    names = ("<|eot_id|>", "<|end_of_text|>", "<|begin_of_text|>")
    assert base.stops == {number(name) for name in names}
    net.generation_config = None
    assert base.stops == {number("<|eot_id|>"), number("<|end_of_text|>")}


@NAMES
def test_the_token_that_ends_a_turn_is_trained_and_stops(name: str, base32: BaseModel) -> None:
    base = speaking(base32, FAMILIES[name].tokenizer(), name)
    row = render(base, ROW, 1024)
    assert row.ids[-1] in base.stops
    assert row.weights[-1] == 1.0
    assert not set(row.ids[row.prompt : -1]) & base.stops


def test_a_templates_own_end_of_text_is_not_trained(base32: BaseModel) -> None:
    """Phi 3.5's own template writes <|endoftext|> behind the last <|end|>."""
    tokenizer = FAMILIES["phi-3"].tokenizer()
    tokenizer.chat_template = TEMPLATES["phi-3"].text + (
        "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}"
    )
    base = speaking(base32, tokenizer, "auto", "all")
    assert marked(base, render(base, TURNS, 1024)) == FAMILIES["phi-3"].turns


def test_earlier_answers_without_an_end_cannot_be_trained(base32: BaseModel) -> None:
    bare = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    bare += "{% if add_generation_prompt %}[assistant]{% endif %}"
    base = replace(base32, template=bare)
    assert render(base, TURNS, 1024).ids[-1] == base.eos
    with pytest.raises(DataError, match=r"where an answer ends.*model\.train_on: last"):
        render(replace(base, train_on="all"), TURNS, 1024)


# --- templates that are refused ---

CHATML = TEMPLATES["chatml"].text
SAYS = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
OPENS = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
CHANGING = {
    # Qwen 3 writes an empty thought before the last answer only.
    "a thought before the last answer": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
        f"{{{{ m.content }}}}<|im_end|>\n{{% endfor %}}{OPENS}",
        "the assistant's turn 1",
    ),
    # DeepSeek R1 opens with a thought, and drops it from what was said.
    "a thought that is dropped": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{{ m.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}",
        "what stands before the assistant's turn 1",
    ),
    # Mistral's of 2024 move the system text to the last turn of the user.
    "a system text that moves": (
        "{% for m in messages if m.role != 'system' %}"
        "{% if m.role == 'user' and loop.revindex <= 2 - add_generation_prompt %}"
        "{{ messages[0].content }}{% endif %}{{ m.content }}{% endfor %}",
        "what stands before the assistant's turn 1",
    ),
    "a date in the first call only": (
        "{% if messages | length < 4 %}Today is Monday.\n{% endif %}" + CHATML,
        "what stands before the assistant's turn 1",
    ),
}


@pytest.mark.parametrize("kind", CHANGING)
@pytest.mark.parametrize("train_on", ["last", "all"])
def test_a_template_whose_earlier_turns_change(
    kind: str, train_on: TrainOn, base32: BaseModel
) -> None:
    template, turn = CHANGING[kind]
    tokenizer = FAMILIES["chatml"].tokenizer()
    tokenizer.chat_template = template
    base = speaking(base32, tokenizer, "auto", train_on)
    with pytest.raises(DataError, match=rf"{turn} changes.*model\.chat_template: plain") as caught:
        render(base, TURNS, 1024)
    assert "Hello" not in str(caught.value)


def test_a_later_turn_that_changes_is_named(base32: BaseModel) -> None:
    template = "{% if messages | length > 5 %}!{% endif %}" + base32.template
    turns = tuple(Message(role, "x") for role in ("user", "assistant") * 2)
    with pytest.raises(DataError, match="what stands before the assistant's turn 1"):
        render(replace(base32, template=template), replace(TURNS, history=turns), 1024)
    changed = base32.template.replace(
        "{{ m.content }}", "{{ m.content if loop.index != 5 or loop.last else '?' }}"
    )
    assert changed != base32.template
    with pytest.raises(DataError, match="the assistant's turn 2 changes"):
        render(replace(base32, template=changed), replace(TURNS, history=turns), 1024)


def test_a_clock_is_stopped(base32: BaseModel) -> None:
    """Llama 3.2's own template writes today's date: no run could be repeated tomorrow."""
    tokenizer = FAMILIES["chatml"].tokenizer()
    tokenizer.chat_template = "Today: {{ strftime_now('%d %b %Y') }}\n" + CHATML
    base = speaking(base32, tokenizer, "auto")
    assert base.notes == (DATED,)
    assert marked(base, render(base, ROW, 1024)).startswith("Today: 26 Jul 2024\n‹<|im_start|>›")


def test_a_template_that_takes_no_system_turn(base32: BaseModel) -> None:
    tokenizer = FAMILIES["gemma"].tokenizer()
    tokenizer.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception(messages[0].content) }}{% endif %}"
        + TEMPLATES["gemma"].text
    )
    base = speaking(base32, tokenizer, "auto")
    assert marked(base, render(base, ROW, 1024)) == FAMILIES["gemma"].single
    with pytest.raises(DataError, match=r"its system line.*name another one") as caught:
        render(base, TURNS, 1024)
    assert "kind" not in str(caught.value)
    merges = with_template(base, "gemma", "all")
    assert marked(merges, render(merges, TURNS, 1024)) == FAMILIES["gemma"].turns


BROKEN = {
    "does not parse": ("{% for m in messages %}{{ m.content }", "unexpected '}'"),
    "always refuses": ("{{ raise_exception('never') }}", "cannot be used: never"),
    "has a bug": ("{{ 1 / 0 }}", "division by zero"),
    "calls what is not there": ("{{ strftime(1) }}", "'strftime' is undefined"),
    "never ends": ("{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(0) }}", "maximum recursion"),
    "reaches for Python": ("{{ ''.__class__.__mro__[1].x() }}", "cannot be used"),
    "says nothing": ("", "leaves out what the user says"),
    "drops answers": (
        "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}",
        "does not write an answer as it was given",
    ),
    "changes answers": (
        "{% for m in messages %}{{ m.content | lower }}\n{% endfor %}",
        "does not write an answer as it was given",
    ),
}


@pytest.mark.parametrize(("template", "why"), BROKEN.values(), ids=BROKEN)
def test_a_template_that_cannot_be_used_is_refused_at_once(
    template: str, why: str, base32: BaseModel
) -> None:
    base = replace(base32, template=template)
    with pytest.raises(ModelError, match=rf"chat template .*{re.escape(why)}.*: plain") as caught:
        with_template(base, "auto")
    assert str(base.path) in str(caught.value)
    assert with_template(base, "plain").template != template


def test_a_template_may_insist_on_a_system_line(base32: BaseModel) -> None:
    insists = "{% if messages[0].role != 'system' %}{{ raise_exception('none') }}{% endif %}"
    base = with_template(replace(base32, template=insists + base32.template), "auto")
    assert base.notes == ()


def test_what_a_template_writes_before_an_answer_is_told(base32: BaseModel) -> None:
    bare = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    base = with_template(replace(base32, template=bare), "auto")
    assert base.notes == (
        "the chat template writes 'assistant: ' before an answer: trained as part of it",
    )


@pytest.mark.parametrize("kind", ["bytes", "Prepend", "first", "always"])
@pytest.mark.parametrize("adds_bos", [True, False])
def test_raw_text_is_encoded_as_the_tokenizer_does_itself(
    kind: str, adds_bos: bool, base32: BaseModel
) -> None:
    tokenizer = tokenizer_of(["<p>", "<e>", "<s>"], "<s>", adds_bos, kind)
    base = replace(base32, tokenizer=tokenizer)
    for text in ("Question: 1+1?\nAnswer:", " two  spaces", "a"):
        assert base.encode_whole(text) == tokenizer.encode(text)
    # But no benchmark's text ends itself.
    found = base.encode_whole("x<e>y")
    special = {tokenizer.convert_tokens_to_ids(token) for token in ("<p>", "<e>", "<s>")}
    bos = [tokenizer.convert_tokens_to_ids("<s>")] if adds_bos else []
    assert [token for token in found if token in special] == bos


@pytest.mark.parametrize("name", [n for n in TEMPLATES if TEMPLATES[n].tokens])
def test_a_missing_special_token_is_named(name: str, base32: BaseModel) -> None:
    for token in TEMPLATES[name].tokens:
        others = [t for t in FAMILIES[name].specials if t != token]
        wanted = re.escape(f"{name} needs the token {token!r}")
        with pytest.raises(ModelError, match=wanted):
            speaking(base32, tokenizer_of(["<p>", "<e>", *others]), name)


def test_an_unknown_name_is_refused_with_the_nearest(base32: BaseModel) -> None:
    with pytest.raises(ModelError, match="Did you mean 'llama-3'"):
        with_template(base32, "llama3")
    with pytest.raises(
        RecipeError, match=r"model\.chat_template: .*Did you mean 'chatml'\?.*zephyr"
    ):
        build_recipe({"model": {"chat_template": "chatlm"}})
    with pytest.raises(RecipeError, match=r"model\.train_on"):
        build_recipe({"model": {"train_on": "first"}})
    assert Model(chat_template="gemma").train_on == "last"


# --- from a folder ---


def test_a_named_template_over_a_loaded_model(tiny_folder: Path) -> None:
    base = load_base(tiny_folder)
    with pytest.raises(ModelError, match="<\\|im_start\\|>"):
        with_template(base, "chatml")
    named = with_template(base, "zephyr", "all")
    assert marked(named, render(named, ROW, 256)) == (
        "‹<|user|>›\nHi‹<|end|>›\n‹<|assistant|>›\n⟦Hello‹<|end|>›⟧"
    )
    assert named.stops == {named.eos}
    # Of another template, another digest, the same every time; the tokenizer's own changes nothing.
    assert named.digest != base.digest
    assert with_template(base, "zephyr").digest == named.digest
    assert with_template(base, "plain").digest not in (base.digest, named.digest)
    assert with_template(base, "auto") == base
    without = replace(base, template=with_template(base, "plain").template)
    assert with_template(without, "plain").digest == base.digest
