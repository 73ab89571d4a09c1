"""Write docs/bad-input.md, what each kind of bad input is answered with, from the tests' own cases:

python tests/e2e/bad_input_table.py
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / f) for f in ("tests", "tests/e2e", "tests/unit/coordinator")]

import bad_inputs  # noqa: E402
import test_admit as admitting  # noqa: E402
import test_bad_input as cases  # noqa: E402

from fedsdr.coordinator.admit import admit  # noqa: E402
from fedsdr.errors import UpdateRefused  # noqa: E402

RECIPES = ("unknown key", "text for a number", "bad yaml", "given twice", "unknown algorithm",
           "unknown option", "no data", "selection")  # fmt: skip
DATA = ("bad JSON line", "no response", "null response", "empty client", "a folder")
COMMANDS = ("recipe is missing", "run is missing", "out is taken", "too many draws")
LOCAL = re.compile(r"(?<=127\.0\.0\.1):\d+")
UPDATES = ("NaN", "Inf", "broadcastable (1,)", "half", "missing A", "the private branch",
           "unknown client", "weight 0")  # fmt: skip


def row(kind: str, what: str, said: str) -> str:
    clean = [
        " ".join(re.sub(r"[│╭╰─╮╯]", " ", t).split()).replace("|", "\\|") for t in (what, said)
    ]
    return f"| {kind} | `{clean[0][:90]}` | {clean[1][:400]} |"


def recipe_rows() -> list[str]:
    rows = list[str]()
    for kind in RECIPES:
        text = str(cases.RECIPES[kind][0])
        Path("recipe.yaml").write_text(text)
        rows.append(row(kind, text, cases.refused(["train", "recipe.yaml"])))
    return rows


def data_rows() -> list[str]:
    rows = list[str]()
    for kind in DATA:
        file, content, data, _ = cases.DATA[kind]
        Path(file).write_bytes(content if isinstance(content, bytes) else content.encode())
        given = data if re.match("files?:", data) else f"file: {file}, {data}"
        Path("recipe.yaml").write_text(f"data: {{{given}}}\n{cases.ONE_THREAD}")
        last = str(content).strip().splitlines()[-1] if str(content).strip() else "(blank lines)"
        rows.append(row(kind, last, cases.refused(["train", "recipe.yaml"])))
    return rows


def command_rows() -> list[str]:
    Path("recipe.yaml").write_text(cases.SMALL + cases.ONE_THREAD)
    Path("full").mkdir()
    Path("full/thesis.tex").write_text("years of work")
    chosen = {kind: cases.COMMANDS[kind][0] for kind in COMMANDS}
    return [row(k, "fedsdr " + " ".join(a), cases.refused(a)) for k, a in chosen.items()]


def update_rows() -> list[str]:
    rows = list[str]()
    for kind in UPDATES:
        try:
            admit(replace(admitting.GOOD, **admitting.BAD[kind][0]), admitting.EXPECTED)
        except UpdateRefused as error:
            rows.append(row(kind, "an update", str(error)))
    return rows


def model_rows() -> list[str]:
    """Of each group a heading, then every case in a workplace of its own."""
    begun, rows = Path.cwd(), list[str]()
    fine = begun / "fine"
    fine.mkdir()
    os.chdir(fine)
    bad_inputs.make_workplace(fine)
    for title, group in bad_inputs.GROUPS.items():
        rows.append(f"| **{title}** | | |")
        for kind, case in group.items():
            place = begun / kind.replace("/", "-")
            shutil.copytree(fine, place)
            os.chdir(place)
            case.change()
            with case.serving() as server:
                asked = ("--endpoint", server.url) if server else ()
                said = cases.refused((*case.arguments, *asked))
            said = said.replace(f"{place}/", "").replace(str(place), ".")
            given = f"{case.given}; " if case.given else ""
            rows.append(row(kind, f"{given}fedsdr {case.arguments[0]}", LOCAL.sub(":8000", said)))
            os.chdir(begun)
            shutil.rmtree(place)
    return rows


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        rows = [*recipe_rows(), *data_rows(), *command_rows(), *update_rows(), *model_rows()]
    head = (
        "# Bad input, and what is said\n\n"
        "Some of the cases that `tests/e2e/test_bad_input.py` and "
        "`tests/unit/coordinator/test_admit.py` hold, and all\nof `tests/e2e/bad_inputs.py`; "
        "each ends with exit code 2 (an update is refused and recorded, and the\nround goes on "
        "with the others), without a traceback. Written by `python "
        "tests/e2e/bad_input_table.py`.\n\n"
        "| kind | given | printed |\n|---|---|---|\n"
    )
    (ROOT / "docs/bad-input.md").write_text(head + "\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
