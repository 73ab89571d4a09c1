"""The recipe: strict YAML <-> typed settings. An unknown key is refused, with the nearest known
one."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from fedsdr.errors import RecipeError
from fedsdr.recipe.limits import (
    ATLAS_CLIENTS,
    ATLAS_EXAMPLES,
    MOST,
    MOST_EXAMPLES,
    Batch,
    Clients,
    Count,
    Decay,
    Epochs,
    Free,
    Part,
    Place,
    Places,
    Rank,
    Rate,
    Rounds,
    Seconds,
    Seed,
    Share,
    Size,
    Steps,
    Temperature,
    Text,
    Tokens,
    Words,
    refusal,
    told,
)
from fedsdr.recipe.yaml import apply_change, dump_yaml, load_yaml, read_yaml
from fedsdr.text.templates import check_choice


def _device(name: str) -> str:
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", name):
        raise ValueError("must be cpu, cuda, or cuda:N for the GPU of that number")
    return name


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Model(Section):
    path: Place = "atlas"  # the embedded base, a Hugging Face model folder, or a hub's name
    revision: Text | None = None  # of a hub's model: a branch, tag or commit
    dtype: Literal["float32", "float64", "bfloat16", "float16"] = "float32"
    quantize: Literal["8bit", "4bit"] | None = None  # the frozen base alone, by bitsandbytes
    device: Annotated[str, AfterValidator(_device)] = "cpu"
    max_length: Tokens = 1024
    packing: bool = True  # rows one behind the other, where the architecture can
    checkpointing: bool = False  # recompute activations in the backward pass: less memory, slower
    chat_template: Annotated[str, AfterValidator(check_choice)] = "auto"
    train_on: Literal["last", "all"] = "last"  # answers of the assistant in a conversation


class Atlas(Section):
    """The embedded world; what is not given comes from the preset."""

    preset: Literal["mild", "medium", "severe", "iid"] = "medium"
    clients: Clients | None = None
    examples: Annotated[int, Field(ge=5, le=MOST_EXAMPLES)] | None = None
    style_skew: Share | None = None
    domain_skew: Share | None = None
    quantity_skew: Annotated[float, Field(ge=0, le=10)] | None = None
    overlap: Share | None = None
    public: Count = 120
    world_seed: Seed | None = None  # the run's seed where not given

    @model_validator(mode="after")
    def can_be_built(self) -> Atlas:
        clients, examples = self.clients or ATLAS_CLIENTS, self.examples or ATLAS_EXAMPLES
        if clients * examples > MOST_EXAMPLES:
            raise ValueError(
                f"{clients:,} clients of {examples:,} examples are {clients * examples:,}; the "
                f"embedded world makes at most {MOST_EXAMPLES:,}"
            )
        return self


class Partition(Section):
    method: Literal["iid", "column", "dirichlet", "quantity"] = "iid"
    clients: Clients = 8
    column: Text | None = None
    alpha: Annotated[float, Field(ge=1e-3, le=1e6)] = 0.5


class Data(Section):
    """Exactly one of `atlas`, `files` (client: path) and `file` (partitioned)."""

    atlas: Atlas | None = None
    files: Places | None = None
    test_files: Places | None = None
    file: Place | None = None
    partition: Partition | None = None
    manifest: Place | None = None
    shape: Literal["auto", "alpaca", "sharegpt", "messages", "columns"] = "auto"
    columns: Annotated[dict[Text, Text], Field(max_length=100)] = {}
    validation: Part = 0.1
    test: Part = 0.1
    overlong: Literal["refuse", "drop"] = "refuse"  # rows that do not fit into the model
    unseen: Count = 0  # clients that never train, but are scored at the end

    @model_validator(mode="after")
    def one_source(self) -> Data:
        given = [k for k in ("atlas", "files", "file") if getattr(self, k) is not None]
        if len(given) != 1:
            raise ValueError(
                f"give exactly one of data.atlas, data.files and data.file "
                f"({', '.join(given) or 'none'} given)"
            )
        if self.files is not None and not self.files:
            raise ValueError("data.files names no client; write client: path")
        if self.partition is not None and self.file is None:
            raise ValueError(
                "data.partition needs data.file: files by client are partitioned already"
            )
        return self


class Branch(Section):
    rank: Rank = 8
    alpha: Size = 16.0


class SharedBranch(Branch):
    ranks: (  # by client, none above `rank`
        Annotated[list[Rank], Field(max_length=MOST)]
        | Annotated[dict[Text, Rank], Field(max_length=MOST)]
        | None
    ) = None


class Lora(Section):
    # all-linear, attention, default, or a regular expression over layer names
    targets: Annotated[Text, Field(max_length=1000)] = "all-linear"
    R: SharedBranch = SharedBranch()
    S: Branch = Branch()
    init: Place | None = None  # a PEFT adapter folder that R starts from


class AlgorithmChoice(Section):
    name: Text = "fedsdr"
    boosted: bool = False  # FedSD over it
    selection: Text = "none"  # of the booster's rewrites
    options: Free = {}
    objectives: Free = {}  # added to its loss: name and weight, or name and options


class Server(Section):
    combine: Text | None = None  # a robust rule in place of the mean
    filters: Words = []


class Training(Section):
    rounds: Rounds = 10
    participation: Annotated[float, Field(ge=1e-6, le=MOST)] = 1.0  # a share up to 1, a count above
    local_epochs: Epochs = 2.0
    local_steps: Steps | None = None
    batch: Batch = 8
    micro_batch: Batch | None = None
    lr: Rate = 3e-3
    schedule: Literal["constant", "cosine"] = "constant"
    min_lr: Decay = 0.0
    optimizer: Literal["adamw", "sgd"] = "adamw"
    weight_decay: Decay = 0.0
    clip: Size | None = 1.0
    loss: Literal["tokens", "examples"] = "tokens"
    weights: Literal["examples", "equal"] = "examples"
    quorum: Clients = 1


class Endpoint(Section):
    """A server that speaks OpenAI's protocol."""

    url: Text  # up to /v1
    model: Text
    revision: Text = ""  # of that model: part of what identifies a rewrite
    protocol: Literal["chat", "completions"] = "chat"
    concurrency: Annotated[int, Field(ge=1, le=1024)] = 8
    timeout: Seconds = 120.0  # per request
    retries: Annotated[int, Field(ge=0, le=100)] = 5
    allow: Words = []  # hosts beside this machine that the records may go to
    key_env: Text | None = None  # the environment variable that holds the key

    @model_validator(mode="after")
    def allowed(self) -> Endpoint:
        if problem := refusal(self.url, self.allow):
            raise ValueError(f"url {problem}")
        return self

    def key(self) -> str | None:
        if self.key_env is None:
            return None
        key = os.environ.get(self.key_env, "")
        if not re.fullmatch(r"[\x21-\x7e]+", key):
            what = "holds what is no key" if key else "is not set"
            raise RecipeError(f"rewriting.engine.key_env: the variable {self.key_env} {what}")
        return key


def _endpoint(given: object) -> object:
    if given == "builtin":
        return None
    if isinstance(given, str):
        raise ValueError("must be builtin, or an endpoint: {url: ..., model: ...}")
    return given


class RewritingChoice(Section):
    # The base itself (builtin, None here), or an endpoint.
    engine: Annotated[Endpoint | None, BeforeValidator(_endpoint)] = None
    temperature: Temperature = 0.95
    top_p: Annotated[float, Field(ge=1e-6, le=1)] = 0.7
    top_k: Annotated[int, Field(ge=0, le=10_000_000)] = 50
    max_new_tokens: Tokens = 512
    template: Literal["auto", "free", "checkable"] = "auto"
    batch: Batch = 128
    cache: Place | None = None  # shared between runs; the run's own folder where not given


class Evaluation(Section):
    every: Rounds = 1
    select: Literal["best", "last"] = (
        "best"  # the round deployed: best on validation data, or the last
    )
    patience: Rounds | None = None  # stop after so many evaluations without a better one
    batch: Batch = 128
    answers: Count = 5  # test questions per client that every model answers


class Running(Section):
    stack: Clients | Literal["auto"] = 8  # K: clients trained side by side; auto: as many as fit
    threads: Annotated[int, Field(ge=0, le=1024)] = 0  # 0: as many cores as it may use
    include_texts: bool = False


class Recipe(Section):
    seed: Seed = 1
    model: Model = Model()
    data: Data = Data(atlas=Atlas())
    lora: Lora = Lora()
    algorithm: AlgorithmChoice = AlgorithmChoice()
    server: Server = Server()
    training: Training = Training()
    rewriting: RewritingChoice = RewritingChoice()
    evaluation: Evaluation = Evaluation()
    run: Running = Running()


def read_recipe(path: str | Path, changes: Sequence[str] = ()) -> Recipe:
    """A recipe file, with `key.path=value` changes on top.

    Args:
        path: The YAML file.
        changes: `key.path=value`, on top of it.
    """
    return _changed(read_yaml(path, "`fedsdr init` writes one"), str(path), changes)


def parse_recipe(text: str, name: str = "recipe", changes: Sequence[str] = ()) -> Recipe:
    """The recipe in a YAML text.

    Args:
        text: YAML.
        name: What messages call it.
        changes: `key.path=value`, on top of it.
    """
    return _changed(load_yaml(text, name), name, changes)


def _changed(values: Any, name: str, changes: Sequence[str]) -> Recipe:
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise RecipeError(f"{name}: a recipe is a mapping of keys, not a {type(values).__name__}")
    tree = cast(dict[str, Any], values)
    for change in changes:
        apply_change(tree, change)
    return build_recipe(tree, name)


def build_recipe(tree: Mapping[str, Any], name: str = "recipe") -> Recipe:
    """The recipe of keys and values, as YAML would have them.

    Args:
        tree: The keys and values.
        name: What messages call it.
    """
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        raise RecipeError(told(error, Recipe, name)) from None


def dump_recipe(recipe: Recipe) -> str:
    """YAML that reads back to the same recipe, every value written out.

    Args:
        recipe: Any.
    """
    return dump_yaml(recipe.model_dump())
