"""merge, export and chat, as a user runs them on a finished run."""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from rich.console import Console
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner, Result

from fedsdr import ClientData, Example, export_adapter, merge, run
from fedsdr.cli.app import app
from fedsdr.errors import DataError, ModelError, RecipeError, RunError
from fedsdr.jobs.assembly import ATLAS_BASE
from fedsdr.jobs.export.chat import open_chat
from fedsdr.model.adapters import WEIGHTS
from fedsdr.model.loading import load_base
from toy import TEXTS, recipe, tiny_folder

# PEFT asks transformers in a way that transformers means to drop.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
TINY = """
data: {atlas: {clients: 2, examples: 10, public: 8}}
training: {rounds: 1, local_steps: 4}
rewriting: {max_new_tokens: 40}
run: {threads: 1}
"""
SECRET = "Zanzibarine"


def fedsdr(*arguments: object, answer: str = "") -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)), input=answer)


def well(*arguments: object, answer: str = "") -> str:
    result = fedsdr(*arguments, answer=answer)
    assert result.exit_code == 0, result.output
    return result.stdout


def badly(*arguments: object) -> str:
    result = fedsdr(*arguments)
    assert result.exit_code == 2, result.output
    return " ".join(result.output.split())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    (folder / "recipe.yaml").write_text(TINY)
    well("train", folder / "recipe.yaml", "--out", folder / "run")
    return folder / "run"


def rows(client: str) -> tuple[Example, ...]:
    return tuple(
        Example(f"{client}{i}", f"{SECRET} {TEXTS[i % len(TEXTS)][:20]}", TEXTS[-i % 5][:20])
        for i in range(10)
    )


CLIENTS = [ClientData(f"ward-{n}", rows(n)[:6], rows(n)[6:8], rows(n)[8:]) for n in ("one", "two")]


def small_run(folder: Path, algorithm: str, **sections: Any) -> Path:
    """Two clients on a tiny Llama."""
    base = tiny_folder(folder / "tiny")
    chosen = recipe(
        base,
        **{
            "model": {"dtype": "float32"},
            "algorithm": {"name": algorithm},
            "training": {"rounds": 2, "lr": 0.05},
            **sections,
        },
    )
    run(chosen, folder / "run", clients=CLIENTS)
    return folder / "run"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_run(tmp_path_factory.mktemp("small"), "fedsdr")


@pytest.mark.parametrize("chosen", [(), ("--mix", "personal", "--client", "c1")])
def test_merge_proves_that_it_says_what_base_and_adapter_say(
    chosen: Sequence[str], trained: Path, tmp_path: Path
) -> None:
    told = json.loads(well("merge", trained, "--out", tmp_path / "merged", "--json", *chosen))
    assert told["equal_answers"] == told["prompts"] > 0
    assert told["difference"] <= told["tolerance"] < told["effect"] / 100
    proof = json.loads((tmp_path / "merged" / "merge_proof.json").read_text())
    assert proof["difference"] == told["difference"]
    # The same by hand, with PEFT and transformers alone.
    adapter = trained / "adapters" / ("personal/c1" if chosen else "global")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Where is it?"}], add_generation_prompt=True
    )["input_ids"]
    with torch.no_grad():
        ours = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(torch.tensor([ids]))
        base = AutoModelForCausalLM.from_pretrained(ATLAS_BASE)
        theirs = PeftModel.from_pretrained(base, adapter)(torch.tensor([ids]))
    assert float((ours.logits - theirs.logits).abs().max()) < 1e-4


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_merge_in_another_dtype(dtype: str, trained: Path, tmp_path: Path) -> None:
    said = well("merge", trained, "--out", tmp_path / "merged", "--dtype", dtype)
    assert "held-out prompts" in said
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == dtype


def test_a_merge_that_fails_its_proof_leaves_nothing(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A merge that forgets the adapter, one that adds it twice, and one that writes NaN."""
    import fedsdr.jobs.export.merge as module

    real = module.merge_into_base
    (tmp_path / "mine").write_text("stays")

    def wrong(factor: float) -> Any:
        return lambda lora, name, flat: real(lora, name, flat * factor)

    for factor in (0.0, 2.0):
        monkeypatch.setattr(module, "merge_into_base", wrong(factor))
        said = badly("merge", trained, "--out", tmp_path / "merged")
        assert "failed its proof and nothing was written: its logits differ by up to" in said
    monkeypatch.setattr(module, "merge_into_base", wrong(float("nan")))
    assert "does not fit into float32" in badly("merge", trained, "--out", tmp_path / "merged")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_nothing_of_others_is_overwritten(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("stays")
    for verb in ("merge", "export"):
        said = badly(verb, trained, "--out", tmp_path / "full")
        assert "is there already; choose another --out" in said
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine"]
    (tmp_path / "empty").mkdir()
    well("export", trained, "--out", tmp_path / "empty")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "full"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--mix", "globl"), "deployed no mix 'globl'; there are global, personal. Did you mean"),
        (("--mix", "personal"), "name one with --client; there are c0, c1"),
        (("--mix", "personal", "--client", "c7"), "client 'c7' has no model by mix 'personal'"),
        (("--mix", "personal", "--client", "../global"), "client '../global' has no model"),
        (("--client", "c0"), "one model for all clients: leave out --client c0"),
    ],
)
def test_which_model_is_meant(
    arguments: Sequence[str], said: str, trained: Path, tmp_path: Path
) -> None:
    for verb in ("merge", "export"):
        assert said in badly(verb, trained, "--out", tmp_path / "out", *arguments)
    assert not (tmp_path / "out").exists()


def test_a_mix_that_depends_on_the_input_has_no_weights(tmp_path: Path) -> None:
    directory = small_run(tmp_path, "feddpa")
    for act in (merge, export_adapter):
        with pytest.raises(RunError, match="weighs its branches anew for every input"):
            act(directory, tmp_path / "out", "personal", "ward-one")
    with pytest.raises(RunError, match="anew for every input"), open_chat(directory, "ward-one"):
        pass
    with open_chat(directory) as talking:
        assert talking.models == ["base", "global"]


@pytest.mark.parametrize("algorithm", ["fedex_lora", "flora", "fedper"])
def test_what_the_server_changed_in_the_base_is_merged_too(algorithm: str, tmp_path: Path) -> None:
    """The fold P is part of the adapter that the run saved; so are blocks kept at home."""
    directory = small_run(tmp_path, algorithm)
    mixes = {p.name for p in (directory / "adapters").iterdir()}
    client = None if "global" in mixes else "ward-one"
    mix = "global" if "global" in mixes else "personal"
    folder = directory / "adapters" / mix / (client or "")
    rank = json.loads((folder / "adapter_config.json").read_text())["r"]
    assert (rank > 2) == (algorithm != "fedper")
    proof = merge(directory, tmp_path / "merged", mix, client, clients=CLIENTS)
    assert proof.difference <= proof.tolerance < proof.effect / 10


def test_a_run_from_python_needs_its_clients_for_the_proof(small: Path, tmp_path: Path) -> None:
    assert "pass them to fedsdr.merge" in badly("merge", small, "--out", tmp_path / "merged")
    merge(small, tmp_path / "merged", clients=CLIENTS)


def test_the_template_that_was_trained_with_comes_along(tmp_path: Path) -> None:
    directory = small_run(tmp_path, "fedavg", model={"dtype": "float32", "chat_template": "plain"})
    merge(directory, tmp_path / "merged", clients=CLIENTS)
    base = load_base(tmp_path / "merged")
    assert base.chat([{"role": "user", "content": "hi"}], opened=True).startswith("user:\nhi")


def test_another_base_is_refused(tmp_path: Path) -> None:
    directory = small_run(tmp_path, "fedavg")
    config = tmp_path / "tiny" / "config.json"
    config.write_text(config.read_text() + "\n")
    with pytest.raises(RunError, match=r"is not the base that .* was trained on"):
        merge(directory, tmp_path / "merged", clients=CLIENTS)


def test_an_effect_below_rounding_proves_nothing(tmp_path: Path) -> None:
    directory = small_run(tmp_path, "fedavg", training={"rounds": 1, "lr": 1e-7})
    with pytest.raises(ModelError, match="too little to be told apart; choose a wider --dtype"):
        merge(directory, tmp_path / "merged", dtype="bfloat16", clients=CLIENTS)
    assert not (tmp_path / "merged").exists()


def test_export_is_what_peft_loads_with_sums_that_hold(trained: Path, tmp_path: Path) -> None:
    told = json.loads(well("export", trained, "--out", tmp_path / "out", "--json"))
    assert (tmp_path / "out").stat().st_mode & 0o077 == 0
    lines = (tmp_path / "out" / "SHA256SUMS").read_text().splitlines()
    sums = {name: digest for digest, name in (line.split("  ") for line in lines)}
    assert sums == told["files"]
    for name, digest in sums.items():
        assert hashlib.sha256((tmp_path / "out" / name).read_bytes()).hexdigest() == digest
    assert sums.keys() == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    base = AutoModelForCausalLM.from_pretrained(ATLAS_BASE)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        plain = base(ids).logits.clone()
        worn = PeftModel.from_pretrained(base, tmp_path / "out")(ids).logits
    assert float((worn - plain).abs().max()) > 0.01


def test_export_as_one_file(trained: Path, tmp_path: Path) -> None:
    well("export", trained, "--out", tmp_path / "out", "--format", "safetensors")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"README.md", "SHA256SUMS", "adapter.safetensors"}
    theirs = trained / "adapters" / "global"
    with (
        safe_open(tmp_path / "out" / "adapter.safetensors", "pt") as ours,
        safe_open(theirs / "adapter_model.safetensors", "pt") as saved,
    ):
        about = ours.metadata()
        assert json.loads(about["adapter_config.json"])["r"] == 8
        assert about["fedsdr_base_digest"] == saved.metadata()["fedsdr_base_digest"]
        assert set(ours.keys()) == set(saved.keys())
        for name in ours.keys():  # noqa: SIM118
            assert torch.equal(ours.get_tensor(name), saved.get_tensor(name))


def test_the_card_counts_and_tells_nothing(small: Path, tmp_path: Path) -> None:
    for mix, client in (("global", None), ("personal", "ward-two")):
        out = tmp_path / mix
        export_adapter(small, out, mix, client)
        card = (out / "README.md").read_text()
        assert "| clients | 2 |" in card
        assert "| training rows | 12; 6 to 6 per client |" in card
        assert "| held-out rows | 4 to choose the round, 4 to test |" in card
        assert ("this client's rows | 6; held out 2" in card) == (client is not None)
        results = json.loads((small / "results.json").read_text())
        scores = results["clients"][mix][client] if client else results["scores"][mix]
        assert f"| loss | {scores['loss']:.4g} |" in card
        facts = json.loads((small / "run.json").read_text())
        assert facts["base_digest"] in card
        assert facts["recipe_sha256"] in card
        assert "lr: 0.05" in card
        assert "That by itself protects nobody" in card
        command = 'fedsdr.run(fedsdr.read_recipe("recipe.yaml"), "DIR", clients=...)'
        assert f"```\n{command}" in card
        # Every key as it was in the end, but for what tells of data.
        told = yaml.safe_load(card.partition("```yaml\n")[2].partition("```")[0])
        assert told["training"]["clip"] == 1.0
        assert told["run"] == {"stack": 2, "threads": 1, "include_texts": False}
        assert "to be put back" not in card
        every = b"".join(path.read_bytes() for path in out.iterdir()).decode(errors="ignore")
        for private in (SECRET, TEXTS[0][:20], "ward-", str(small.parent), str(tmp_path)):
            assert private not in every, private


def test_the_cards_command_makes_the_same_adapter_again(tmp_path: Path) -> None:
    (tmp_path / "private").mkdir()
    (data := tmp_path / "private/rows.jsonl").write_text(
        "".join(
            json.dumps({"prompt": f"What is {i}?", "response": f"{i}."}) + "\n" for i in range(12)
        )
    )
    (tmp_path / "recipe.yaml").write_text(
        f"data: {{file: {data}, partition: {{clients: 2}}}}\n"
        "algorithm: {name: fedavg}\ntraining: {rounds: 1, local_steps: 2, clip: null}\n"
    )
    given = ("--set", "run.threads=1", "--set", "run.stack=auto", "--set", "training.lr=0.01")
    well("train", tmp_path / "recipe.yaml", "--out", tmp_path / "run", *given)
    export_adapter(tmp_path / "run", tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text()
    assert "```\nfedsdr train recipe.yaml --out DIR\n```" in card
    assert "to be put back: `data.file`." in card
    assert "private" not in card
    told = yaml.safe_load(card.partition("```yaml\n")[2].partition("```")[0])
    assert isinstance(told["run"]["stack"], int)
    told["data"]["file"] = str(data)
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(told))
    well("train", tmp_path / "again.yaml", "--out", tmp_path / "again")
    one, two = (tmp_path / d / "adapters/global" / WEIGHTS for d in ("run", "again"))
    assert one.read_bytes() == two.read_bytes()


def test_a_purged_run_keeps_its_global_model_only(tmp_path: Path) -> None:
    directory = small_run(tmp_path, "fedsdr")
    well("purge", directory, "--yes")
    export_adapter(directory, tmp_path / "out")
    with pytest.raises(RunError, match="removed by `fedsdr purge`"):
        export_adapter(directory, tmp_path / "own", "personal", "ward-one")


def test_a_run_that_is_not_finished(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    for name in ("run.json", "recipe.yaml"):
        (tmp_path / "run" / name).write_bytes((trained / name).read_bytes())
    for verb in ("merge", "export"):
        assert "not finished" in badly(verb, tmp_path / "run", "--out", tmp_path / "out")
    assert "not finished" in badly("chat", tmp_path / "run", "--once", "hi")


def test_chat_answers_line_by_line(trained: Path) -> None:
    lines = "hello\n\n/system Be brief.\nhello\n/nonsense\n/reset\nhello\n/quit\nnever asked\n"
    result = fedsdr("chat", trained, "--client", "c0", "--json", answer=lines)
    assert result.exit_code == 0, result.output
    told = [json.loads(line) for line in result.stdout.splitlines()]
    assert [t["asked"] for t in told] == ["hello"] * 3
    assert [list(t["answers"]) for t in told] == [["base", "global", "personal"]] * 3
    assert told[1] == told[2] != told[0]  # /reset keeps the system line, and forgets the rest
    assert "there is no /nonsense" in result.stderr


def test_chat_says_what_the_model_says(trained: Path) -> None:
    once = json.loads(well("chat", trained, "--once", "/quit is no command here", "--json"))
    with open_chat(trained) as talking:
        answers = dict(talking.ask("/quit is no command here"))
    assert {m: a.text for m, a in answers.items()} == {
        m: a["text"] for m, a in once["answers"].items()
    }
    base = load_base(ATLAS_BASE)
    text = base.chat([{"role": "user", "content": "/quit is no command here"}], opened=True)
    ids = torch.tensor([base.encode(text)])
    out = base.net.generate(ids, max_new_tokens=64, do_sample=False)[0, ids.shape[1] :]
    assert (
        base.tokenizer.decode(out, skip_special_tokens=True)
        .strip()
        .startswith(answers["base"].text[:64])
    )


def test_chat_in_plain_lines(trained: Path) -> None:
    said = well("chat", trained, answer="hello\n")
    assert said.startswith("base: ")
    assert "\nglobal: " in said


@pytest.mark.parametrize(("width", "beside"), [(120, True), (60, False)])
def test_chat_in_columns_where_the_terminal_is_wide(
    width: int, beside: bool, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedsdr.jobs.export.chat.LONGEST", 8)
    terminal = partial(Console, force_terminal=True, width=width, color_system=None)
    monkeypatch.setattr("fedsdr.cli.adapters.Console", terminal)
    said = well("chat", small, "--client", "ward-one", "--once", "hello")
    titles = [line for line in said.splitlines() if line.startswith("╭─")]
    assert (len(titles) == 1) == beside
    assert re.findall("base|global|personal", " ".join(titles)) == ["base", "global", "personal"]


def test_chat_repeats_its_draws(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedsdr.jobs.export.chat.LONGEST", 20)

    def drawn(temperature: float) -> list[str]:
        with open_chat(small, "ward-one", temperature) as talking:
            return [a.text for line in ("x", "x") for _, a in talking.ask(line)]

    assert drawn(1.5) == drawn(1.5) != drawn(0.0)


@pytest.mark.parametrize("temperature", [math.nan, math.inf, -0.5])
def test_a_temperature_is_a_number(temperature: float, tmp_path: Path) -> None:
    with (
        pytest.raises(RecipeError, match="temperature must be 0 or a number above it"),
        open_chat(tmp_path, temperature=temperature),
    ):
        pass


def test_chat_leaves_out_the_oldest_turns(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny model has 1,024 positions; lines of some 300 tokens fill them."""
    monkeypatch.setattr("fedsdr.jobs.export.chat.LONGEST", 20)
    with open_chat(small) as talking:
        answers = [dict(talking.ask(f"{number} " + "zq " * 150)) for number in range(4)]
        assert answers[0]["base"].left_out == 0
        assert answers[-1]["base"].left_out > 0
        talking.reset()
        assert dict(talking.ask("hi"))["base"].left_out == 0
        with pytest.raises(DataError, match="this line alone, with the system line, is"):
            list(talking.ask("zq " * 2000))
    assert "too long: this line alone" in badly("chat", small, "--once", "zq " * 2000)


def test_chat_names_the_client_who_is_missing(trained: Path) -> None:
    assert "client 'c7' has no model" in badly("chat", trained, "--client", "c7", "--once", "x")


def test_what_a_killed_merge_left_is_removed_by_the_next(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "merged"
    begun = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from fedsdr.jobs.export.folder import placed\n"
        "with placed(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'model.safetensors').write_text('half')\n"
        "    print('there', flush=True)\n"
        "    sys.stdin.readline()\n"
    )
    here: dict[str, Any] = {
        "cwd": tmp_path,
        "stdin": subprocess.PIPE,
        "stdout": subprocess.PIPE,
        "text": True,
    }
    held = [subprocess.Popen([sys.executable, "-c", begun, str(out)], **here) for _ in range(2)]
    try:
        assert [process.stdout.readline() for process in held] == ["there\n"] * 2
        left = sorted(tmp_path.glob(".tmp-merged.*"))
        assert len(left) == 2
        held[0].kill()
        held[0].wait()
        # Nobody's of ours: another name, a file, a folder that others may read.
        others = [tmp_path / name for name in (".tmp-merged.x.abcdefgh", ".tmp-merge.abcdefgh")]
        for path in others:
            path.mkdir(mode=0o700)
        (file := tmp_path / ".tmp-merged.abcdefgh").write_text("not a folder")
        (public := tmp_path / ".tmp-merged.abcdefg1").mkdir()
        public.chmod(0o755)
        well("merge", trained, "--out", out)
        (alive,) = [p for p in tmp_path.glob(".tmp-merged.*") if p in left]
        assert (alive / "model.safetensors").read_text() == "half"
        assert all(path.exists() for path in (*others, file, public))
    finally:
        for process in held:
            process.kill()
            process.wait()
    shutil.rmtree(out)
    well("export", trained, "--out", out)
    assert not alive.exists()
