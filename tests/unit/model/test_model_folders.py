"""What of a model's folder is read, and what is refused before it is believed. Each hostile folder
is opened in a process of its own, under an audit hook."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from test_classifier import make as make_classifier

from attack import Outcome, attempt
from fedsdr.errors import ModelError
from fedsdr.model.classifier import classifier_digest, load_classifier
from fedsdr.model.loading import load_base
from fedsdr.model.outline import outline_base
from fedsdr.model.rehearsal import Damage, rehearse
from fedsdr.model.sealed import sealed
from hostile_models import (
    CASES,
    CONFIG,
    IN_ORDER,
    INDEX,
    SETTINGS,
    TOKENIZER,
    WEIGHTS,
    Opened,
    edited,
    embedded,
    part,
    pickled,
    sharded,
    template_of,
    used,
    workplace,
)

PATIENCE = 60.0  # seconds: limits are in seconds of computing, and the machine may have other work
# Kind -> what is said. The fuzz (tests/fuzz) tries all of CASES, and others by chance.
SAID = {
    "config is null": "config.json: not a JSON object",
    "no heads": "'num_attention_heads' is 0; it has to be a whole number from 1",
    "three heads": "cannot be loaded: ",
    "10 million layers": "'num_hidden_layers' is 10000000; it has to be a whole number from 0 to",
    "3000 layers": "asks for a model that is much larger than the weights (20 tensors of 10,768",
    "huge words": "asks for a model that is much larger than the weights",
    "text config": "'num_hidden_layers' is 10000000",
    "xlm, many positions": "asks for a model that is much larger than the weights",
    "end of text": "eos_token_id is {'a': 1}; it has to be a token's number",
    "quantised otherwise": "quantization_config is of no kind that is known here",
    "kernels from elsewhere": "'attn_implementation' names code elsewhere ('evil/kernel')",
    "weights by config": "transformers_weights names a file",
    "code": "it comes with Python code of its own",
    "code elsewhere": "its Python code lies elsewhere ('evil/repo--evil.Config')",
    "pickle by index": "weight_map names 'good.bin'; only *.safetensors in the folder itself",
    "index leads out": "weight_map names '../outside/w.safetensors'; only *.safetensors",
    "index leads down": "weight_map names 'deeper/w.safetensors'; only *.safetensors",
    "index is a list": "there is no weight_map in it",
    "index of other tensors": "says that 'a' is in w.safetensors: it is not",
    "an embedded adapter": "holds a PEFT adapter (adapter_config.json) beside the model",
    "config leads out": "is a link out of the folder",
    "weights are a pipe": "is a named pipe, not a file",
    "weights never end": "is a device, not a file",
    "header twice": "a key is given twice",
    "header huge": "not a safetensors file: its header has 1,152,921,504,606,846,976 bytes",
    "dropout": "model.dropout is 0.1: the same text would be cut another way every time",
    "no words": "it has no token for 'a'",
    "a charsmap": "its tokenizer cannot be loaded (PanicException",
    "a pattern that backtracks": "its tokenizer cannot be used (PanicException",
    "text that grows": "model: cannot be loaded: ",
    "a token that is not there": "its tokenizer cannot be used (PanicException",
    "another that is not there": "the tokenizer has tokens up to 2147483648",
    "end of text is half a pair": "its tokenizer cannot be loaded (UnicodeEncodeError",
    "template, loops in loops": "the chat template takes longer than 2 seconds",
    "template, text times": "its chat template cannot be used: MemoryError",
    "template, a long text": "it writes 40,000,012 characters",
    "template, a surrogate made": "the chat template writes half of a surrogate pair",
    "template, an escape": "access to attribute '__class__'",
    "template, a global": "access to attribute '__init__'",
    "template, an import": "its chat template cannot be used",
}


@pytest.mark.parametrize("name", SAID)
def test_it_is_refused_in_words(name: str, tiny_folder: Path, tmp_path: Path) -> None:
    folder = workplace(tmp_path, tiny_folder)
    CASES[name](folder)
    outcome = attempt(lambda: used(folder), PATIENCE)
    assert outcome.kind == "refused", outcome
    assert SAID[name] in outcome.text
    assert "fedsdr-model-" not in outcome.text, "the place that it is read from is nobody's concern"


@pytest.mark.parametrize("name", IN_ORDER)
def test_what_is_in_order_is_loaded_and_what_does_not_matter_not_read(
    name: str, tiny_folder: Path, tmp_path: Path
) -> None:
    folder = workplace(tmp_path, tiny_folder)
    IN_ORDER[name](folder)
    outcome = attempt(lambda: used(folder), PATIENCE)
    assert outcome.kind == "returned", outcome


def other(path: Path) -> None:
    """The same to a reader, with other bytes."""
    if path.suffix == ".json":
        values = json.loads(path.read_text())
        if path.name == "generation_config.json":
            values["eos_token_id"] = [1, 7]
        path.write_text(json.dumps(values, indent=1) + "\n")
    elif path.suffix == ".jinja":
        path.write_text(path.read_text() + "{# #}")
    else:
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)


def test_all_that_is_read_is_in_the_digest(tiny_folder: Path, tmp_path: Path) -> None:
    """Of a folder with every file that transformers knows."""
    folder = workplace(tmp_path, tiny_folder)
    sharded("model-00001-of-00001.safetensors")(folder)
    (folder / "special_tokens_map.json").write_text('{"pad_token": "<|pad|>"}')
    (folder / "added_tokens.json").write_text("{}")

    def opened() -> list[str]:
        watch = Opened(Path("/"))
        load_base(folder)
        return sorted({f for f in watch.files if "fedsdr-model-" in f or f.startswith("tmp")})

    outcome = attempt(opened, PATIENCE)
    assert outcome.kind == "returned", outcome
    names = {os.path.basename(f) for f in outcome.value if "fedsdr-model-" in f}
    assert {CONFIG, TOKENIZER, SETTINGS, INDEX, "special_tokens_map.json"} <= names
    first = load_base(folder).digest
    for name in names & {path.name for path in folder.iterdir()}:
        kept = (folder / name).read_bytes()
        other(folder / name)
        with sealed(folder) as model:
            assert model.digest != first, name
        (folder / name).write_bytes(kept)
    with sealed(folder) as model:
        assert model.digest == first


def test_a_snapshot_in_a_hubs_cache_is_links_and_is_loaded(
    tiny_folder: Path, tmp_path: Path
) -> None:
    home = tmp_path / "models--a--b"
    (home / "blobs").mkdir(parents=True)
    snapshot = home / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(tiny_folder.iterdir())):
        shutil.copy(path, home / "blobs" / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    assert load_base(snapshot).digest == load_base(tiny_folder).digest
    (snapshot / CONFIG).unlink()
    (snapshot / CONFIG).symlink_to(tmp_path / "elsewhere.json")
    shutil.copy(tiny_folder / CONFIG, tmp_path / "elsewhere.json")
    with pytest.raises(ModelError, match="a link out of the folder"):
        load_base(snapshot)


def test_generation_settings_count_where_they_say_more_than_the_config(
    tiny_folder: Path, tmp_path: Path
) -> None:
    folder = workplace(tmp_path, tiny_folder)
    first = load_base(folder)
    (folder / "generation_config.json").unlink()
    assert load_base(folder).digest == first.digest
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    second = load_base(folder)
    assert second.digest != first.digest
    assert second.stops == first.stops | {2}


def classified(folder: Path) -> Outcome:
    def action() -> None:
        watch = Opened(folder)
        load_classifier(folder).entailment("a", "b")
        assert not watch.wrong

    return attempt(action, PATIENCE)


def test_a_classifiers_folder_is_looked_at_alike(tmp_path: Path) -> None:
    for name, change, said in (
        ("a", pickled, "only *.safetensors in the folder itself"),
        ("b", embedded, "holds a PEFT adapter"),
        ("c", edited(CONFIG, num_hidden_layers=3000), "much larger than the weights"),
        ("d", edited(TOKENIZER, post_processor=template_of("<nowhere>")), "cannot be used"),
        ("e", part("normalizer", type="Precompiled", precompiled_charsmap="AAAA"), "cannot be"),
        ("f", edited(CONFIG, num_attention_heads=0), "'num_attention_heads' is 0"),
    ):
        folder = make_classifier(tmp_path / name)
        change(folder)
        outcome = classified(folder)
        assert outcome.kind == "refused", (name, outcome)
        assert said in outcome.text, (name, outcome)
    before = classifier_digest(make_classifier(tmp_path / "g"))
    (tmp_path / "g" / "special_tokens_map.json").write_text("{}")
    assert classifier_digest(tmp_path / "g") != before


def test_on_paper_a_config_alone_is_bounded_too(tiny_folder: Path, tmp_path: Path) -> None:
    folder = workplace(tmp_path, tiny_folder)
    (folder / WEIGHTS).unlink()
    assert outline_base(folder).net.device.type == "meta"
    edited(CONFIG, num_hidden_layers=4000, hidden_size=1 << 17, intermediate_size=1 << 20)(folder)
    outcome = attempt(lambda: outline_base(folder) and None, PATIENCE)
    assert outcome.kind == "refused", outcome


def abort() -> None:
    os.abort()


def spin() -> None:
    while True:
        pass


def fill() -> None:
    _ = bytearray(1 << 34)


@pytest.mark.parametrize(
    ("action", "said"),
    [
        (abort, "ended with SIGABRT"),
        (spin, "takes more than 2 seconds of computing"),
        (fill, "MemoryError"),
        (lambda: [][1], "IndexError"),
    ],
    ids=["abort", "spin", "fill", "error"],
)
def test_what_dies_in_a_rehearsal_dies_there(action: object, said: str) -> None:
    with pytest.raises(Damage, match=said):
        rehearse(action, 0)  # pyright: ignore[reportArgumentType]


def test_a_rehearsal_leaves_nothing_behind(capfd: pytest.CaptureFixture[str]) -> None:
    here, ours = os.getpid(), torch.get_num_threads()
    handles = len(os.listdir("/proc/self/fd"))
    rehearse(lambda: print("said in the fork"), 0)
    assert (os.getpid(), torch.get_num_threads()) == (here, ours)
    assert len(os.listdir("/proc/self/fd")) == handles
    assert capfd.readouterr().out == ""
    with suppress(ChildProcessError):  # the process that renders templates may run
        assert os.waitpid(-1, os.WNOHANG) == (0, 0)
