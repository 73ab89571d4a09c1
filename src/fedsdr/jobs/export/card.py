"""The model card of an exported adapter: method, counts, rounds, scores, recipe, and what is to be
minded. It may be published, so it holds no record, no client's name and no path of this machine."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

from fedsdr.data.manifest import ClientRows, read_manifest
from fedsdr.jobs.export.chosen import Chosen
from fedsdr.jobs.recorded import recorded_recipe
from fedsdr.model.adapter_config import AdapterConfig
from fedsdr.recipe.settings import Recipe
from fedsdr.recipe.yaml import dump_yaml

# Of these sections, no more than this: the others may say where data and machines are.
PUBLIC = {
    "data": ("atlas", "partition", "shape", "validation", "test", "overlong", "unseen"),
    "rewriting": ("temperature", "top_p", "top_k", "max_new_tokens", "template", "batch"),
}
LEFT_OUT = "(left out)"


def model_card(chosen: Chosen, config: AdapterConfig, format: str) -> str:
    facts, results = chosen.of.facts, chosen.of.results
    whose = "the model of all clients" if chosen.client is None else "one client's own model"
    base = "atlas-base" if chosen.of.recipe.model.path == "atlas" else config.base
    header = {
        "library_name": "peft",
        "base_model": base,
        "tags": ["lora", "federated-learning", "fedsdr"],
    }
    python = [what for what, given in facts["from_python"].items() if given]
    how = "best on validation data" if chosen.of.recipe.evaluation.select == "best" else "the last"
    rounds = f"{results['rounds']} run; this is the model after round {chosen.round} ({how})"
    table = [
        ("method", f"{results['method']}, deployed as `{chosen.mix}`: {whose}"),
        ("base", f"{base} ({facts['dtype']}), digest `{facts['base_digest']}`"),
        ("LoRA", f"rank {config.rank}, α {config.alpha:g}"),
        ("rounds", rounds),
        *_data(chosen),
        ("seed", str(results["seed"])),
        *(("from Python", f"its {what} are not those of the recipe below") for what in python),
        ("run", f"`{facts['run']}`, fedsdr {facts['fedsdr']}, torch {facts['torch']}"),
    ]
    parts = [
        f"---\n{dump_yaml(header)}---",
        f"# {_cell(base)} + {_cell(results['method'])}",
        _table(("", ""), table),
        "## Scores",
        _scores(chosen),
        "## How it was made",
        *_how(chosen, config),
        "## Use",
        _use(config, base, format),
        "## Licence",
        f"The adapter changes {_cell(base)} and is of no use without it: that model's "
        "licence applies, and whatever the owners of the training data agreed to. This card grants "
        "nothing; whoever publishes the adapter adds a licence.",
        "## Privacy",
        "The method exchanges adapters, not records. That by itself protects nobody: an adapter "
        "can memorise records and give them back to whoever asks it, and unless the method above "
        "says so, nothing bounds how much (no differential privacy). Test it for that before "
        "handing it on.",
    ]
    return "\n\n".join(parts) + "\n"


def _data(chosen: Chosen) -> list[tuple[str, str]]:
    """Counts only."""
    everybody = read_manifest(chosen.of.run.root / "partition.json").clients
    trained = [c for c in everybody if c.client_id in chosen.of.results["clients"][chosen.mix]]
    rows = sorted(len(c.train) for c in trained)
    lines = [
        ("clients", f"{len(trained)}"),
        ("training rows", f"{sum(rows)}; {rows[0]} to {rows[-1]} per client"),
        ("held-out rows", _held_out(trained)),
    ]
    if unseen := len(everybody) - len(trained):
        lines.insert(1, ("clients that never trained", str(unseen)))
    if this_client := [c for c in everybody if c.client_id == chosen.client]:
        lines.append(
            (
                "this client's rows",
                f"{len(this_client[0].train)}; held out {_held_out(this_client)}",
            )
        )
    return lines


def _held_out(clients: Sequence[ClientRows]) -> str:
    validation = sum(len(c.validation) for c in clients)
    return f"{validation} to choose the round, {sum(len(c.test) for c in clients)} to test"


def _scores(chosen: Chosen) -> str:
    scores = chosen.scores()
    if not scores:
        return "There were no rows to test on."
    whose = "mean over clients" if chosen.client is None else "on this client's own rows"
    return _table(("measure", f"test, {whose}"), [(m, f"{v:.4g}") for m, v in scores.items()])


def _how(chosen: Chosen, config: AdapterConfig) -> list[str]:
    """The command, and the recipe with every value that the run came to."""
    facts, recipe = chosen.of.facts, recorded_recipe(chosen.of.run)
    whole = recipe.model_dump()
    public = _public(recipe, config.base)
    given = [f"{what}=..." for what, value in facts["from_python"].items() if value]
    trusted = f"--trust-remote-code {config.base} " if facts.get("trusted") else ""
    command = f"fedsdr {trusted}train recipe.yaml --out DIR"
    if given:
        made = ", ".join(['fedsdr.read_recipe("recipe.yaml")', '"DIR"', *given])
        command = f"fedsdr.run({made})  # in Python"
    paragraphs = [
        f"With fedsdr {facts['fedsdr']}, and as recipe.yaml the recipe below:",
        f"```\n{command}\n```",
        "That recipe holds every key, those too that were not given, and what the run came to: "
        f"{facts['stack']} clients at most side by side, threads: {facts['threads']}.",
    ]
    if hidden := _hidden(whole, public):
        paragraphs.append(
            "It leaves out what tells of data, clients or places, to be put back: "
            f"{', '.join(f'`{key}`' for key in hidden)}."
        )
    return [
        *paragraphs,
        f"```yaml\n{dump_yaml(public)}```",
        f"sha256 of the run's own recipe.yaml: `{facts['recipe_sha256']}`.",
    ]


def _public(recipe: Recipe, base: str) -> Mapping[str, Any]:
    """The recipe without paths, names of clients, and where data lie."""
    tree: dict[str, Any] = recipe.model_dump()
    for section, public in PUBLIC.items():
        tree[section] = {k: v for k, v in tree[section].items() if k in public}
    if isinstance(ranks := tree["lora"]["R"].get("ranks"), dict):
        tree["lora"]["R"]["ranks"] = sorted(ranks.values())
    tree = _without_paths(tree)
    tree["model"]["path"] = "atlas" if recipe.model.path == "atlas" else base
    tree["lora"]["targets"] = recipe.lora.targets
    return tree


def _hidden(whole: Mapping[str, Any], public: Mapping[str, Any], above: str = "") -> list[str]:
    """The keys that say something and are not told."""
    keys = list[str]()
    for key, value in whole.items():
        shown, name = public.get(key), f"{above}{key}"
        if isinstance(value, dict) and isinstance(shown, dict):
            keys += _hidden(
                cast(Mapping[str, Any], value), cast(Mapping[str, Any], shown), f"{name}."
            )
        elif (key not in public and value not in (None, {}, [])) or shown == LEFT_OUT:
            keys.append(name)
    return keys


def _without_paths(value: Any) -> Any:
    """A hub's name looks like a path, and goes too."""
    if isinstance(value, dict):
        return {key: _without_paths(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_paths(inner) for inner in value]
    return LEFT_OUT if isinstance(value, str) and ("/" in value or "\\" in value) else value


def _use(config: AdapterConfig, base: str, format: str) -> str:
    if format == "safetensors":
        return (
            "`adapter.safetensors` is one file: tensors named as PEFT names them, and PEFT's "
            "configuration in the metadata, under `adapter_config.json`. Every adapted weight W "
            f"becomes W + {config.alpha / config.rank:g} · lora_B · lora_A. "
            "`sha256sum --check SHA256SUMS` checks it."
        )
    return (
        "```python\n"
        "from peft import PeftModel\n"
        "from transformers import AutoModelForCausalLM\n\n"
        f"base = AutoModelForCausalLM.from_pretrained({json.dumps(base)})\n"
        'model = PeftModel.from_pretrained(base, "this/folder")\n'
        "```\n\n"
        "`sha256sum --check SHA256SUMS` checks the files."
    )


def _table(header: Sequence[str], rows: Sequence[tuple[str, str]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
