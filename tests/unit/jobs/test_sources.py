from pathlib import Path

import pytest

from fedsdr.errors import DataError
from fedsdr.jobs.sources import load_federation
from fedsdr.recipe.settings import build_recipe

SMALL = {"clients": 3, "examples": 10, "world_seed": 4}


def test_a_world_is_dealt_out_as_its_manifest_says(tmp_path: Path) -> None:
    first = load_federation(build_recipe({"data": {"atlas": SMALL}}))
    first.write_manifest(tmp_path / "partition.json")
    data = {"atlas": SMALL, "manifest": str(tmp_path / "partition.json")}
    again = load_federation(build_recipe({"seed": 9, "data": data}))
    assert again.world == first.world
    assert again.atlas is not None
    assert all(e.id in again.atlas.truths for c in again.clients for e in c.test)


def test_a_manifest_of_another_world_is_refused(tmp_path: Path) -> None:
    load_federation(build_recipe({"data": {"atlas": SMALL}})).write_manifest(tmp_path / "p.json")
    other = {"atlas": {**SMALL, "world_seed": 5}, "manifest": str(tmp_path / "p.json")}
    with pytest.raises(DataError):
        load_federation(build_recipe({"data": other}))


def test_several_files_are_told_of_in_one_line(tmp_path: Path) -> None:
    rows = {
        "a.jsonl": ['{"instruction": "x", "output": "y"}'] * 3,
        "b.jsonl": ['{"prompt": "x", "response": "y"}'] * 2,
        "c.jsonl": ['{"instruction": "x", "output": "y"}'] * 1200,
    }
    for name, lines in rows.items():
        (tmp_path / name).write_text("\n".join(lines))
    files = {name[0]: str(tmp_path / name) for name in rows}
    found = load_federation(build_recipe({"data": {"files": files}}))
    assert found.notes == ("3 files, 1,205 rows, read 2 as alpaca, 1 as columns",)
    assert [line.partition(" rows, ")[0] for line in found.files] == [
        f"{tmp_path / name}: {len(lines)}" for name, lines in rows.items()
    ]
    alike = load_federation(build_recipe({"data": {"files": {k: files[k] for k in "ac"}}}))
    assert alike.notes == ("2 files, 1,203 rows, read as alpaca",)
    one = load_federation(build_recipe({"data": {"files": {"a": files["a"]}}}))
    assert one.files == ()
    assert one.notes[0].startswith(f"{tmp_path / 'a.jsonl'}: 3 rows, read as alpaca (prompt from")
