"""The recipe: strict YAML <-> typed settings. An unknown key is refused, with the nearest known
one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from fedsdr.distill.hosts import refusal
from fedsdr.errors import RecipeError, nearest
from fedsdr.model.templates import check_choice
from fedsdr.tree import apply_change, load_yaml

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def _device(name: str) -> str:
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", name):
        raise ValueError("must be cpu, cuda, or cuda:N for the GPU of that number")
    return name


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Model(Section):
    path: str = "atlas"  # the embedded base, a Hugging Face model folder, or a hub's owner/name
    revision: str | None = None  # of a hub's model: a branch, tag or commit
    dtype: Literal["float32", "float64", "bfloat16", "float16"] = "float32"
    quantize: Literal["8bit", "4bit"] | None = None  # the frozen base alone, by bitsandbytes
    device: Annotated[str, AfterValidator(_device)] = "cpu"
    max_length: Positive = 1024
    packing: bool = True  # rows one behind the other, where the architecture can
    checkpointing: bool = False  # recompute activations in the backward pass: less memory, slower
    chat_template: Annotated[str, AfterValidator(check_choice)] = "auto"
    train_on: Literal["last", "all"] = "last"  # answers of the assistant in a conversation


class Atlas(Section):
    """The embedded world; what is not given comes from the preset."""

    preset: Literal["mild", "medium", "severe", "iid"] = "medium"
    clients: Positive | None = None
    examples: Annotated[int, Field(ge=5)] | None = None
    style_skew: Share | None = None
    domain_skew: Share | None = None
    quantity_skew: Annotated[float, Field(ge=0)] | None = None
    overlap: Share | None = None
    public: Annotated[int, Field(ge=0)] = 120
    world_seed: int | None = None  # the run's seed where not given


class Partition(Section):
    method: Literal["iid", "column", "dirichlet", "quantity"] = "iid"
    clients: Positive = 8
    column: str | None = None
    alpha: Rate = 0.5


class Data(Section):
    """Exactly one of `atlas`, `files` (client: path) and `file` (partitioned)."""

    atlas: Atlas | None = None
    files: dict[str, str] | None = None
    test_files: dict[str, str] | None = None
    file: str | None = None
    partition: Partition | None = None
    manifest: str | None = None
    shape: Literal["auto", "alpaca", "sharegpt", "messages", "columns"] = "auto"
    columns: dict[str, str] = {}
    validation: Annotated[float, Field(ge=0, lt=1)] = 0.1
    test: Annotated[float, Field(ge=0, lt=1)] = 0.1
    overlong: Literal["refuse", "drop"] = "refuse"  # rows that do not fit into the model
    unseen: Annotated[int, Field(ge=0)] = 0  # clients that never train, but are scored at the end

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
    rank: Positive = 8
    alpha: Rate = 16.0


class SharedBranch(Branch):
    ranks: list[Positive] | dict[str, Positive] | None = None  # by client, none above `rank`


class Lora(Section):
    targets: str = "all-linear"  # attention, default, or a regular expression over layer names
    R: SharedBranch = SharedBranch()
    S: Branch = Branch()
    init: str | None = None  # a PEFT adapter folder that R starts from


class AlgorithmChoice(Section):
    name: str = "fedsdr"
    boosted: bool = False  # FedSD over it
    selection: str = "none"  # of the booster's rewrites
    options: dict[str, Any] = {}
    objectives: dict[str, Any] = {}  # added to its loss: name and weight, or name and options


class Server(Section):
    combine: str | None = None  # a robust rule in place of the mean
    filters: list[str] = []


class Training(Section):
    rounds: Positive = 10
    participation: Annotated[float, Field(gt=0)] = 1.0  # a share up to 1, a count above
    local_epochs: Rate = 2.0
    local_steps: Positive | None = None
    batch: Positive = 8
    micro_batch: Positive | None = None
    lr: Rate = 3e-3
    schedule: Literal["constant", "cosine"] = "constant"
    min_lr: Annotated[float, Field(ge=0)] = 0.0
    optimizer: Literal["adamw", "sgd"] = "adamw"
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    clip: Rate | None = 1.0
    loss: Literal["tokens", "examples"] = "tokens"
    weights: Literal["examples", "equal"] = "examples"
    quorum: Positive = 1


class EndpointChoice(Section):
    """A server that speaks OpenAI's protocol."""

    url: str  # up to /v1
    model: str
    revision: str = ""  # of that model: part of what identifies a rewrite
    protocol: Literal["chat", "completions"] = "chat"
    concurrency: Annotated[int, Field(ge=1, le=1024)] = 8
    timeout: Rate = 120.0
    retries: Annotated[int, Field(ge=0, le=100)] = 5
    allow: list[str] = []  # hosts beside this machine that the records may go to
    key_env: str | None = None  # the environment variable that holds the key

    @model_validator(mode="after")
    def allowed(self) -> EndpointChoice:
        if problem := refusal(self.url, self.allow):
            raise ValueError(f"url {problem}")
        return self


def _endpoint(given: object) -> object:
    if given == "builtin":
        return None
    if isinstance(given, str):
        raise ValueError("must be builtin, or an endpoint: {url: ..., model: ...}")
    return given


class RewritingChoice(Section):
    # The base itself (builtin, None here), or an endpoint.
    engine: Annotated[EndpointChoice | None, BeforeValidator(_endpoint)] = None
    temperature: Annotated[float, Field(ge=0)] = 0.95
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.7
    top_k: Annotated[int, Field(ge=0)] = 50
    max_new_tokens: Positive = 512
    template: Literal["auto", "free", "checkable"] = "auto"
    batch: Positive = 128
    cache: str | None = None  # shared between runs; the run's own folder where not given


class Evaluation(Section):
    every: Positive = 1
    select: Literal["best", "last"] = (
        "best"  # the round deployed: best on validation data, or the last
    )
    patience: Positive | None = None  # stop after so many evaluations without a better one
    batch: Positive = 128
    answers: Annotated[int, Field(ge=0)] = 5  # test questions per client that every model answers


class Running(Section):
    stack: Positive | Literal["auto"] = 8  # K: clients trained side by side; auto: as many as fit
    threads: Annotated[int, Field(ge=0, le=1024)] = 0  # 0: as many cores as it may use
    include_texts: bool = False


class Recipe(Section):
    seed: int = 1
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
    """A recipe file, with `key.path=value` changes on top."""
    file = Path(path).expanduser()
    if file.is_dir():
        raise RecipeError(f"{file} is a folder; name the recipe file in it (recipe.yaml)")
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise RecipeError(f"{file} does not exist; `fedsdr init` writes one") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{file} cannot be read: {error}") from error
    return parse_recipe(text, str(file), changes)


def parse_recipe(text: str, name: str = "recipe", changes: Sequence[str] = ()) -> Recipe:
    """The recipe in a YAML text."""
    values = load_yaml(text, name)
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise RecipeError(f"{name}: a recipe is a mapping of keys, not a {type(values).__name__}")
    tree = cast(dict[str, Any], values)
    for change in changes:
        apply_change(tree, change)
    return build_recipe(tree, name)


def build_recipe(tree: Mapping[str, Any], name: str = "recipe") -> Recipe:
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        raise RecipeError("\n".join(f"{name}: {_explain(e)}" for e in error.errors())) from None


def dump_recipe(recipe: Recipe) -> str:
    """YAML that reads back to the same recipe, every value written out."""
    return yaml.safe_dump(recipe.model_dump(), sort_keys=False, allow_unicode=True)


def in_words(error: Any) -> str:
    """What pydantic says, without Python's names for what YAML calls otherwise."""
    kind = error["type"]
    if kind in ("dict_type", "model_type"):
        return "must be a mapping, such as {key: value}, or {}"
    if kind == "list_type":
        return "must be a list, such as [a, b]"
    return str(error["msg"]).removeprefix("Value error, ")


def _explain(error: Any) -> str:
    # Of a key that may hold one or the other, pydantic adds which of them it tried.
    parts = [str(part) for part in error["loc"] if not re.match(r"(list|dict)\[", str(part))]
    where = ".".join(parts)
    if where == "sweep":
        return "the key `sweep` makes this a sweep, which `fedsdr sweep` runs"
    if error["type"] == "extra_forbidden":
        section: Any = Recipe
        for part in error["loc"][:-1]:
            section = _section(section, part)
        known = list(section.model_fields) if section is not None else []
        guess = nearest(str(error["loc"][-1]), known)
        return f"unknown key {where!r}.{guess} Known here: {', '.join(known)}"
    message = in_words(error)
    given = error.get("input")
    shown = f" (given: {given!r})" if isinstance(given, (str, int, float, bool, type(None))) else ""
    return f"{where}: {message}{shown}" if where else message


def _section(section: Any, key: Any) -> Any:
    """The model class of a key, through `X | None`."""
    field = section.model_fields.get(key) if section is not None else None
    if field is None:
        return None
    choices = getattr(field.annotation, "__args__", (field.annotation,))
    return next((c for c in choices if isinstance(c, type) and issubclass(c, Section)), None)
