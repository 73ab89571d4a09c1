"""Names that would be paths: wherever a name becomes part of one, nothing is written or read
outside the run, and nothing in it that is another's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from attack import snapshot
from fedsdr.errors import FedsdrError
from fedsdr.evaluate.finished import sealed
from fedsdr.jobs.export.chosen import Finished
from fedsdr.runs.artifact import save_artifact
from fedsdr.runs.directory import RunDirectory
from made_runs import write_run

pytestmark = pytest.mark.usefixtures("no_fsync")

UP = (
    "..",
    "../x",
    "../../x",
    "../../../../../../tmp/fedsdr-escaped",
    "a/../../x",
    "./../x",
    "a/..",
    "..//x",
    "../x/",
    ".../../x",
    "x/../../precious/thesis",
    "../precious",
    "../precious/thesis",
)
ROOTED = (
    "/",
    "//",
    "/etc/passwd",
    "/tmp/fedsdr-escaped",
    "//tmp//x",
    "~",
    "~root/x",
    "~/x",
    "$HOME/x",
    "${HOME}",
    "`id`",
    "file:///etc/passwd",
    "C:\\x",
    "\\\\host\\share",
    "..\\x",
    "a\\..\\..\\x",
)
HIDDEN = (
    ".",
    "",
    " ",
    ".tmp-x",
    ".tmp-a.old",
    ".purged",
    ".hidden",
    "-",
    "--",
    "a b",
    "a\n",
    "\n",
    "a\0b",
    "\0",
    "a\r",
    "\x1b[2J",
    "a\tb",
    "con:",
    "a" * 65,
    "a" * 5000,
    "x/" * 3000,
)
SPELT = (
    "%2e%2e%2fx",
    "..%2fx",
    "%00",
    "\uff0e\uff0e\uff0fx",
    "\u2024\u2024/x",
    "\u2215x",
    "ü",
    "\ud800",
    "a\u202eb",
    "..;/x",
    "..%c0%afx",
    "*",
    "?",
    "[a]",
    "a|b",
    "a;b",
    "a&b",
    "a>b",
)
PAYLOADS = (*UP, *ROOTED, *HIDDEN, *SPELT)
SHORT = {"shared": {"A": torch.zeros(2)}}
Use = Callable[[RunDirectory, str], object]
USES: dict[str, Use] = {
    "a client's state": lambda run, name: run.save_client_state(name, 1, SHORT, {}),
    "a client's state, read": lambda run, name: run.load_client_state(name, 9),
    "an update": lambda run, name: run.save_update(name, 1, SHORT, {}),
    "an update, read": lambda run, name: run.load_update(name, 1),
    "a client's texts": lambda run, name: run.save_private_rows(name, "x.jsonl", [{"a": 1}]),
    "a private file": lambda run, name: run.save_private_rows("a", name, [{"a": 1}]),
    "rows": lambda run, name: run.append_row(name, {"round": 1}),
    "tensors": lambda run, name: save_artifact(run.root / "x", {name: {}}, {}),
    "a checkpoint's tensors": lambda run, name: run.save_checkpoint(9, {name: {}}, {}),
    "a deployed mix": lambda run, name: Finished.open(run.root).chosen(name),
    "a client's adapter": lambda run, name: Finished.open(run.root).chosen("global", name),
}


@pytest.mark.parametrize("use", USES)
def test_no_name_leads_out_of_a_run(use: str, tmp_path: Path) -> None:
    root = write_run(tmp_path / "runs" / "run")
    for folder in (tmp_path / "precious", tmp_path / "runs" / "precious", root / "precious"):
        folder.mkdir()
        (folder / "thesis").write_text("{}\n")
    run = RunDirectory(root)
    results = json.loads((root / "results.json").read_text())
    # As a stranger's run could have them, sealed as if they were its own.
    results["scores"] |= {name: {} for name in PAYLOADS if name.isprintable()}
    (root / "results.json").write_text(json.dumps(results))
    run.amend({"results_sha256": sealed((root / "results.json").read_bytes())})
    before = snapshot(tmp_path)
    for name in PAYLOADS:
        try:
            USES[use](run, name)
            refused = False
        except FedsdrError:
            refused = True
        assert refused or name in ("-", "--"), (use, name[:50])
        now = snapshot(tmp_path)
        changed = {name for name, _ in now.items() ^ before.items()}
        assert all(path.startswith("runs/run/") for path in changed), (use, name[:50])
        assert not changed or not refused, (use, name[:50])
        before = now
    assert not Path("/tmp/fedsdr-escaped").exists()


def test_there_are_enough() -> None:
    assert len(set(PAYLOADS)) >= 50
