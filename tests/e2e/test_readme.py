"""What README and docs tell people to type exists, and the cheap part of it runs."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
import yaml
from typer.testing import CliRunner

import fedsdr
from fedsdr.cli.app import app
from fedsdr.jobs.sweep.recipe import parse_sweep
from fedsdr.recipe.settings import load_yaml

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "DEVELOPERS.md", *sorted((ROOT / "docs").rglob("*.md"))]
VERBS = typer.main.get_command(app).commands  # type: ignore[attr-defined]  # a Typer with several verbs is a group


def blocks(language: str) -> Iterator[tuple[str, str]]:
    """(page, text) of every fenced block of a language."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for found in re.finditer(rf"^```{language}\n(.*?)^```", text, re.M | re.S):
            yield page.relative_to(ROOT).as_posix(), found[1]


def shell_lines() -> Iterator[tuple[str, str]]:
    for page, text in blocks("sh"):
        for line in text.replace("\\\n", " ").splitlines():
            if command := line.partition(" #")[0].strip():
                yield page, command


COMMANDS = sorted({(page, line) for page, line in shell_lines() if line.startswith("fedsdr ")})
INLINE = sorted(
    {
        (page.relative_to(ROOT).as_posix(), found)
        for page in PAGES
        for found in re.findall(r"`(fedsdr [a-z][^`]*)`", page.read_text(encoding="utf-8"))
    }
)


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_command_exists_with_its_options(page: str, command: str) -> None:
    """Parsed as the command line would, without running it: unknown verbs and options fail."""
    verb, *arguments = shlex.split(command)[1:]
    assert verb in VERBS, f"{page}: there is no `fedsdr {verb}`"
    VERBS[verb].make_context(verb, arguments)


@pytest.mark.parametrize(("page", "mention"), INLINE)
def test_mentioned_verb_and_options_exist(page: str, mention: str) -> None:
    verb, *rest = mention.split()[1:]
    assert verb in VERBS, f"{page}: there is no `fedsdr {verb}`"
    known = {option for parameter in VERBS[verb].params for option in parameter.opts}
    assert {word for word in rest if word.startswith("--")} <= known | {"--help"}


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_verb_is_documented_and_explains_itself(verb: str) -> None:
    assert any(command.split()[1] == verb for _, command in [*COMMANDS, *INLINE])
    shown = CliRunner().invoke(app, [verb, "--help"])
    assert shown.exit_code == 0
    assert "Usage:" in shown.output


def test_readme_shows_both_commands_and_ci_runs_exactly_these() -> None:
    (_, first), *_others = blocks("sh")
    typed = [line.partition("#")[0].strip() for line in first.splitlines()]
    assert typed == ["make demo", "make test"]
    run = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert re.findall(r'"(make [a-z]+)"', run) == typed


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = {line.split()[1] for _, line in shell_lines() if line.startswith("make ")}
    assert {"demo", "test", "lint", "bench", "clean"} <= named
    assert all(re.search(rf"^{target}:", makefile, re.M) for target in named)


@pytest.mark.parametrize(("page", "text"), sorted(set(blocks("python"))))
def test_python_compiles_and_uses_public_names(page: str, text: str) -> None:
    tree = ast.parse(text, page)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "fedsdr":
            assert {alias.name for alias in node.names} <= set(fedsdr.__all__)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "fedsdr":
            assert node.attr in fedsdr.__all__


def test_every_public_name_is_in_the_api_page() -> None:
    page = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    assert {name for name in fedsdr.__all__ if not re.search(rf"\b{name}\b", page)} == set()


def test_the_readme_builds_fedsdr_as_it_is() -> None:
    """The snippet's stages, share and deploys are those of the built-in algorithm."""
    from fedsdr.algorithms.fedsdr import fedsdr as built_in

    (snippet,) = [
        text for page, text in blocks("python") if page == "README.md" and "Stage(" in text
    ]
    names: dict[str, fedsdr.Algorithm] = {}
    exec(compile(snippet, "README.md", "exec"), names)
    mine, theirs = names["mine"], built_in()
    assert (mine.stages, mine.share, mine.deploys) == (theirs.stages, theirs.share, theirs.deploys)


@pytest.mark.parametrize(("page", "text"), sorted(set(blocks("yaml"))))
def test_recipe_snippets_are_recipes(page: str, text: str) -> None:
    tree = load_yaml(text, page)
    if "task" in tree:
        return  # of lm-eval
    if "sweep" in tree:
        parse_sweep(tree, page)
    else:
        fedsdr.parse_recipe(text, page)


def test_init_then_plan_as_the_readme_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for command in (["init"], ["plan", "recipe.yaml"], ["--version"]):
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, done.output


def test_links_lead_somewhere() -> None:
    for page in [*PAGES, ROOT / "CHANGELOG.md"]:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
            if not target.startswith(("http://", "https://")):
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_citation_names_the_papers() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    titles = " ".join(work["title"] for work in cited["references"])
    assert cited["version"] == fedsdr.__version__
    assert "Federated Self-Distillation with Rectification" in titles
    assert "Structural Perturbation" in titles
