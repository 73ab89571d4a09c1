"""Model folders of strangers: what can be wrong in one, by name and by chance; and what reading one
opened, imported or ran."""

from __future__ import annotations

import base64
import json
import os
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from fedsdr.data.render import render, render_prompt
from fedsdr.model.base import with_template
from fedsdr.model.loading import load_base
from fedsdr.types import Example

Change = Callable[[Path], object]
CONFIG, TOKENIZER, SETTINGS = "config.json", "tokenizer.json", "tokenizer_config.json"
INDEX, WEIGHTS = "model.safetensors.index.json", "model.safetensors"
FINE = "{% for m in messages %}{{ m.content }}{% endfor %}"


def edited(name: str, **changes: Any) -> Change:
    def change(folder: Path) -> None:
        values = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**values, **changes}))

    return change


def written(name: str, content: str | bytes) -> Change:
    data = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
    return lambda folder: (folder / name).write_bytes(data)


def template(text: str) -> Change:
    return written("chat_template.jinja", text)


def part(name: str, **value: Any) -> Change:
    """A part of the tokenizer."""
    return edited(TOKENIZER, **{name: value})


def model(**changes: Any) -> Change:
    def change(folder: Path) -> None:
        path = folder / TOKENIZER
        values = json.loads(path.read_text())
        values["model"].update(changes)
        path.write_text(json.dumps(values))

    return change


def linked(name: str, target: str) -> Change:
    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return change


def piped(name: str) -> Change:
    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return change


def sharded(name: str, **more: Any) -> Change:
    """Weights under an index that names this file; the file itself is there."""

    def change(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        (folder / WEIGHTS).unlink()
        target = folder / name
        target.parent.mkdir(exist_ok=True)
        save_file(tensors, target, {"format": "pt"})
        if target.parent != folder or target.suffix != ".safetensors":  # so that there are some
            save_file(tensors, folder / "decoy.safetensors", {"format": "pt"})
        index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, name), **more}
        (folder / INDEX).write_text(json.dumps(index))

    return change


def pickled(folder: Path) -> None:
    """What torch.load would open; unpickled, it writes a file."""
    sharded("good.bin")(folder)
    (folder / "good.bin").write_bytes(b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R.")


def header(text: str | bytes, length: int | None = None) -> Change:
    raw = text if isinstance(text, bytes) else text.encode()
    size = (len(raw) if length is None else length).to_bytes(8, "little")
    return written(WEIGHTS, size + raw)


def embedded(folder: Path) -> None:
    settings = {"peft_type": "LORA", "r": 1, "lora_alpha": 9, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(settings))


def code(folder: Path) -> None:
    """Code that comes with the model, for a class that transformers has itself."""
    (folder / "evil.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\n")
    named = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    edited(CONFIG, auto_map=named, model_type="evil")(folder)
    edited(SETTINGS, auto_map={"AutoTokenizer": ["evil.A", "evil.B"]})(folder)


def deep(levels: int, kind: str = "Sequence", key: str = "normalizers") -> dict[str, Any]:
    value: dict[str, Any] = {"type": "NFC"}
    for _ in range(levels):
        value = {"type": kind, key: [value]}
    return value


def template_of(name: str) -> dict[str, Any]:
    piece = {"SpecialToken": {"id": name, "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [piece, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [piece, {"Sequence": {"id": "A", "type_id": 0}}],
        "special_tokens": {},
    }


LOOPS = "{% for a in range(99999) %}" * 3 + "x" + "{% endfor %}" * 3
DOUBLED = (
    "{% set ns = namespace(s='ab') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}"
    "{% endfor %}{{ ns.s }}" + FINE
)
CALLED = "{% macro m(n) %}{{ m(n) }}{{ m(n) }}{% endmacro %}{{ m(1) }}" + FINE
TEMPLATES = {
    "loops in loops": LOOPS,
    "loops of records": "{% for m in messages %}" + LOOPS + "{{ m.content }}{% endfor %}",
    "text doubled": DOUBLED,
    "a macro of itself": CALLED,
    "text times": "{{ 'a' * 10**10 }}" + FINE,
    "a format": "{{ '%099999999999d' | format(1) }}" + FINE,
    "a power": "{{ 9 ** 9 ** 9 ** 9 }}" + FINE,
    "a long text": "{{ 'abcd' * 10**7 }}" + FINE,
    "deep": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}" + FINE,
    "a surrogate": "\ud800" + FINE,
    "a surrogate made": r"{{ '\ud800' }}" + FINE,
    "an escape": "{{ ''.__class__.__mro__[1].__subclasses__() }}" + FINE,
    "an escape by format": "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}" + FINE,
    "an import": "{% include '/etc/passwd' %}" + FINE,
    "a global": "{{ cycler.__init__.__globals__.os.system('true') }}" + FINE,
    "padding": "{{ 'a'.ljust(10**11) }}" + FINE,
    "nothing": "",
    "no end": "{% for m in messages %}{{ m.content",
    "an error": "{{ 1 // 0 }}" + FINE,
}
CASES: dict[str, Change] = {
    "config is null": written(CONFIG, "null"),
    "config is a list": written(CONFIG, "[]"),
    "config is empty": written(CONFIG, ""),
    "config nests": written(CONFIG, '{"a":' * 50_000 + "1" + "}" * 50_000),
    "config nests a little": written(CONFIG, '{"a":' * 40 + "1" + "}" * 40),
    "config is bytes": written(CONFIG, os.urandom(200)),
    "config is UTF-16": written(CONFIG, '{"model_type": "llama"}'.encode("utf-16")),
    "config is a pipe": piped(CONFIG),
    "config never ends": linked(CONFIG, "/dev/zero"),
    "config leads out": linked(CONFIG, "../outside/config.json"),
    "config is a loop": linked(CONFIG, CONFIG),
    "no heads": edited(CONFIG, num_attention_heads=0),
    "no key heads": edited(CONFIG, num_key_value_heads=0),
    "less than no heads": edited(CONFIG, num_attention_heads=-2),
    "three heads": edited(CONFIG, num_attention_heads=3, num_key_value_heads=3),
    "10 million layers": edited(CONFIG, num_hidden_layers=10**7),
    "3000 layers": edited(CONFIG, num_hidden_layers=3000),
    "half a layer": edited(CONFIG, num_hidden_layers=1.5),
    "layers in words": edited(CONFIG, num_hidden_layers="two"),
    "huge words": edited(CONFIG, vocab_size=10**12),
    "wide": edited(CONFIG, hidden_size=10**6, intermediate_size=10**7),
    "wider than bits": edited(CONFIG, hidden_size=2**62),
    "no width": edited(CONFIG, hidden_size=0),
    "positions": edited(CONFIG, max_position_embeddings="many"),
    "no positions": edited(CONFIG, max_position_embeddings=-5),
    "rotation": edited(CONFIG, rope_parameters={"rope_type": "evil", "rope_theta": "x"}),
    "epsilon": edited(CONFIG, rms_norm_eps="x"),
    "end of text": edited(CONFIG, eos_token_id={"a": 1}),
    "end of text beyond": edited(CONFIG, eos_token_id=10**9, pad_token_id=10**9),
    "unknown model": edited(CONFIG, model_type="evil"),
    "model type is a number": edited(CONFIG, model_type=7),
    "another model": edited(CONFIG, model_type="gpt2"),
    "a vision model": edited(CONFIG, model_type="clip"),
    "xlm, many positions": edited(
        CONFIG, model_type="xlm", max_position_embeddings=10**9, emb_dim=16, n_layers=1, n_heads=2
    ),
    "activation": edited(CONFIG, hidden_act="evil"),
    "dtype": edited(CONFIG, dtype="__import__"),
    "kernels from elsewhere": edited(CONFIG, attn_implementation="evil/kernel"),
    "weights by config": edited(CONFIG, transformers_weights="../outside/model.safetensors"),
    "quantised otherwise": edited(CONFIG, quantization_config={"quant_method": "evil"}),
    "quantised in words": edited(CONFIG, quantization_config="yes"),
    "text config": edited(CONFIG, text_config={"num_hidden_layers": 10**7}),
    "code": code,
    "code elsewhere": edited(CONFIG, auto_map={"AutoConfig": "evil/repo--evil.Config"}),
    "pickle by index": pickled,
    "index leads out": sharded("../outside/w.safetensors"),
    "index leads down": sharded("deeper/w.safetensors"),
    "index of a list": sharded("w.safetensors", weight_map=[1, 2]),
    "index is a list": lambda f: (sharded("w.safetensors")(f), written(INDEX, "[]")(f)),
    "index is null": lambda f: (sharded("w.safetensors")(f), written(INDEX, "null")(f)),
    "index of numbers": sharded("w.safetensors", weight_map={"a": 1}),
    "index of nothing": sharded("w.safetensors", weight_map={}),
    "index of a dot": sharded("w.safetensors", weight_map={"a": ".safetensors"}),
    "index of what is not there": sharded("w.safetensors", weight_map={"a": "b.safetensors"}),
    "index of other tensors": sharded("w.safetensors", weight_map={"a": "w.safetensors"}),
    "index is a pipe": lambda f: (sharded("w.safetensors")(f), piped(INDEX)(f)),
    "another name for weights": lambda f: (f / WEIGHTS).rename(f / "weights.safetensors"),
    "an embedded adapter": embedded,
    "weights are a pipe": piped(WEIGHTS),
    "weights never end": linked(WEIGHTS, "/dev/zero"),
    "no weights": lambda f: (f / WEIGHTS).unlink(),
    "weights cut": lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-9]),
    "weights empty": written(WEIGHTS, b""),
    "header huge": header("{}", 1 << 60),
    "header large": header("{}", 1 << 30),
    "header is a list": header("[]"),
    "header of nulls": header('{"a": null}'),
    "header twice": header('{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"a":{}}'),
    "header overlaps": header(
        '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
        '"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}' + "    "
    ),
    "header of huge shapes": header(
        '{"a":{"dtype":"F32","shape":[4611686018427387904,8],"data_offsets":[0,4]}}    '
    ),
    "header nests": header("[" * 100_000),
    "tokenizer is null": written(TOKENIZER, "null"),
    "tokenizer is a list": written(TOKENIZER, "[1]"),
    "tokenizer is a pipe": piped(TOKENIZER),
    "tokenizer never ends": linked(TOKENIZER, "/dev/zero"),
    "tokenizer settings are null": written(SETTINGS, "null"),
    "tokenizer settings are a list": written(SETTINGS, "[]"),
    "tokens of special kinds": edited(SETTINGS, eos_token={"a": 1}),
    "end of text is a number": edited(SETTINGS, eos_token=5),
    "end of text is half a pair": edited(SETTINGS, eos_token="\ud800"),
    "tokenizer class, slow": edited(SETTINGS, tokenizer_class="CTRLTokenizer"),
    "longest": edited(SETTINGS, model_max_length="x"),
    "extra tokens": edited(SETTINGS, extra_special_tokens=7),
    "added tokens": edited(SETTINGS, added_tokens_decoder={"x": {"content": 1}}),
    "map of special tokens": written("special_tokens_map.json", "[1]"),
    "dropout": model(dropout=0.1),
    "dropout in words": model(dropout="x"),
    "no model": edited(TOKENIZER, model=None),
    "no words": model(vocab={}, merges=[]),
    "words beyond": model(vocab={"a": 2**32 - 1}, merges=[]),
    "merges of what is not there": model(merges=[["qq", "zz"]]),
    "a charsmap": part("normalizer", type="Precompiled", precompiled_charsmap="AAAA"),
    "a random charsmap": part(
        "normalizer", type="Precompiled",
        precompiled_charsmap=base64.b64encode(
            (64).to_bytes(4, "little") + random.Random(1).randbytes(200)).decode(),
    ),
    "a pattern that backtracks": part(
        "pre_tokenizer", type="Split", pattern={"Regex": "(a|a|aa)+$x"}, behavior="Isolated",
        invert=False,
    ),
    "a pattern that is none": part(
        "normalizer", type="Replace", pattern={"Regex": "(("}, content="b"
    ),
    "text that grows": edited(TOKENIZER, normalizer={
        "type": "Sequence", "normalizers": [
            {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 200}] * 9,
    }),
    "parts that nest deep": edited(TOKENIZER, normalizer=deep(5000)) if False else written(
        TOKENIZER, '{"normalizer":' + '{"type":"Sequence","normalizers":[' * 20_000
    ),
    "a token that is not there": edited(TOKENIZER, post_processor=template_of("<nowhere>")),
    "another that is not there": part(
        "post_processor", type="BertProcessing", sep=["x", 10**9], cls=["y", 2**31]
    ),
    "truncation": edited(TOKENIZER, truncation={
        "direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 10**9}),
    "a decoder": part("decoder", type="Strip", content="ab", start=2**40, stop=-1),
    "generation settings are a list": written("generation_config.json", "[]"),
    "generation settings' end": edited("generation_config.json", eos_token_id=["x"]),
    "template is bytes": written("chat_template.jinja", os.urandom(50)),
    "template is a pipe": piped("chat_template.jinja"),
    "template leads out": linked("chat_template.jinja", "../outside/t.jinja"),
    **{f"template, {name}": template(text) for name, text in TEMPLATES.items()},
}  # fmt: skip
# Odd, but in order: what is strange in them is not read, or means what it says.
IN_ORDER: dict[str, Change] = {
    "as it is": lambda folder: None,
    "sharded": sharded("model-00001-of-00001.safetensors"),
    "a file beside": written("notes.bin", b"\x80\x02cos\nsystem\n."),
    "a pickle beside": written("pytorch_model.bin", b"\x80\x02cos\nsystem\n."),
    "an old name of a file": edited(SETTINGS, tokenizer_file="/root/tokenizer.json"),
    "old names of files": edited(SETTINGS, vocab_file="../outside/v", fast_tokenizer_files=["x"]),
    "more templates": lambda f: (
        (f / "additional_chat_templates").mkdir(),
        written("additional_chat_templates/default.jinja", "{{ evil }}")(f),
    ),
    "weights elsewhere": lambda f: (
        (f / WEIGHTS).rename(f.parent / "outside" / WEIGHTS),
        (f / WEIGHTS).symlink_to(f.parent / "outside" / WEIGHTS),
    ),
    "auto_map is a list": edited(CONFIG, auto_map=[1]),
    "pickle's own index": written("pytorch_model.bin.index.json", "{}"),
    "tokenizer class": edited(SETTINGS, tokenizer_class="os.system"),
    "more stops": edited("generation_config.json", eos_token_id=[1, 2]),
}

# What becomes of these is the libraries' business; not how.
EITHER: dict[str, Change] = {
    "a pattern that backtracks, replaced": part(
        "normalizer", type="Replace", pattern={"Regex": "(a*)*(a*)*(a*)*b"}, content="b"
    ),
    "parts that nest": edited(TOKENIZER, normalizer=deep(60)),
    "a tokenizer's padding": edited(
        TOKENIZER,
        padding={
            "strategy": {"Fixed": 10**12},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "x",
        },
    ),
    "quantised": edited(CONFIG, quantization_config={"quant_method": "bitsandbytes"}),
}


class Opened:
    """What this process opens, unpickles, starts or connects to from now on; for a fork, for it
    cannot be taken back."""

    def __init__(self, below: Path) -> None:
        self.below, self.files, self.wrong = str(below.resolve()), set[str](), list[str]()
        sys.addaudithook(self)

    def __call__(self, event: str, given: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(given[0], (str, bytes)):
            path = os.path.abspath(os.fsdecode(given[0]))
            if path.startswith(self.below):
                self.files.add(os.path.relpath(path, self.below))
        elif event in ("pickle.find_class", "os.system", "socket.connect", "os.exec") or (
            event == "subprocess.Popen" and "template_language" not in str(given[1])
        ):
            self.wrong.append(f"{event} {given!r:.200}")


def mutated(folder: Path, draw: random.Random) -> str:
    """Something, somewhere in the folder, is another thing now."""
    name = draw.choice((CONFIG, CONFIG, TOKENIZER, TOKENIZER, SETTINGS, "generation_config.json"))
    if draw.random() < 0.15:
        name = draw.choice((WEIGHTS, "chat_template.jinja", TOKENIZER, CONFIG))
        data = bytearray((folder / name).read_bytes())
        for _ in range(draw.choice((1, 3, 20))):
            data[draw.randrange(min(len(data), 4000))] = draw.randrange(256)
        if draw.random() < 0.3:
            del data[draw.randrange(len(data)) :]
        (folder / name).write_bytes(data)
        return f"bytes of {name}"
    values = json.loads((folder / name).read_text())
    said = [_changed(values, draw) for _ in range(draw.choice((1, 1, 2, 4)))]
    (folder / name).write_text(json.dumps(values))
    return f"{name}: {'; '.join(said)}"


def _odd(draw: random.Random) -> Any:
    numbers = (0, -1, 1, 3, 7, 10**4, 10**7, 2**31, 2**63, 10**30, 0.5, -0.0, 1e308, float("nan"))
    others = ("", "x", "\ud800", "../outside", "a/b", "x" * 5000, None, True, False, [], {}, [[]])
    return draw.choice((draw.choice(numbers), draw.choice(others), {"type": "Sequence"}))


def _changed(values: dict[str, Any], draw: random.Random) -> str:
    """A value somewhere below, an own one for half the time."""
    place: Any = values
    path = list[str]()
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            place = values
            keys = list(values)
            path = []
        key = draw.choice(keys)
        path.append(str(key))
        below = place[key]
        if isinstance(below, (dict, list)) and below and draw.random() < 0.7:
            place = below
            continue
        break
    if draw.random() < 0.15:
        del place[key]
        return f"{'.'.join(path)[-60:]} gone"
    place[key] = _odd(draw)
    return f"{'.'.join(path)[-60:]} = {place[key]!r:.30}"


ROW = Example("r", "What is the dose of Marudel?", "It is 40 mg aaaa 11.")


def used(folder: Path) -> dict[str, Any]:
    """The model is loaded, and does what a run does with it, under watch."""
    watch = Opened(folder.parent)
    try:
        base = with_template(load_base(folder), "auto")
        row = render(base, ROW, 256)
        render_prompt(base, ROW)
        with torch.no_grad():
            base.logits(torch.tensor([row.ids]))
        base.tokenizer.decode(list(row.ids))
        assert base.stops
        return {"digest": base.digest}
    finally:
        beside = sorted(f for f in watch.files if not f.startswith("model/") or f.endswith(".bin"))
        assert not watch.wrong, watch.wrong
        assert not beside, beside


def workplace(here: Path, plain: Path) -> Path:
    (here / "outside").mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        shutil.copy(plain / name, here / "outside" / name)
    (here / "outside" / "t.jinja").write_text("{{ messages }}")
    shutil.copytree(plain, here / "model")
    return here / "model"
