"""What is published: a wheel, built and installed elsewhere, with its types and its data."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]


def test_it_is_typed_and_works_where_it_is_installed(tmp_path: Path) -> None:
    source = tmp_path / "source"  # a build leaves things beside what it builds
    for name in ("src", "pyproject.toml", "README.md", "LICENSE"):
        (source / name).parent.mkdir(exist_ok=True, parents=True)
        subprocess.run(["cp", "-r", ROOT / name, source / name], check=True)
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, source]
    subprocess.run([*PIP, *build], check=True, cwd=tmp_path)
    (wheel,) = tmp_path.glob("fedsdr-*.whl")
    with zipfile.ZipFile(wheel) as held:
        names = set(held.namelist())
    assert "fedsdr/py.typed" in names
    assert "fedsdr/atlas/base/model.safetensors" in names
    assert "fedsdr/cli/recipe.yaml" in names
    assert not [n for n in names if not n.startswith(("fedsdr/", "fedsdr-"))], "tests stay at home"
    there = tmp_path / "there"
    subprocess.run([*PIP, "install", "--no-deps", "--target", there, wheel], check=True)
    script = (
        "import fedsdr; from pathlib import Path; from fedsdr.jobs.plan import make_plan; "
        f"assert Path(fedsdr.__file__).is_relative_to({str(there)!r}), fedsdr.__file__; "
        "print(fedsdr.__version__, make_plan(fedsdr.parse_recipe('seed: 1')).problems)"
    )
    told = subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONPATH": str(there), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True,
        cwd=tmp_path,
        check=True,
    ).stdout.decode()
    assert told.split() == [_version(), "()"]


def _version() -> str:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return text.split('version = "', 1)[1].split('"', 1)[0]
