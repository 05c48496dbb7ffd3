"""A manifest is written as it is read, and only what was asked for changes, for manifests made by Hypothesis."""

from __future__ import annotations

import os
import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import weightcache
from weightcache import Checkpoint, Manifest, ManifestError, StorageError
from weightcache.cli import toml_edit
from weightcache.manifest.validate import path_problem

NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,8}", fullmatch=True)
PATHS = st.lists(
    st.text(st.characters(blacklist_categories=("C", "Z"), blacklist_characters="\\/"), min_size=1, max_size=6).filter(
        lambda part: path_problem(part) is None
    ),
    min_size=1,
    max_size=3,
).map("/".join)
DIGESTS = st.integers(0, 2**256 - 1).map(lambda number: f"{number:064x}")
SIZES = st.none() | st.integers(0, 2**62)
URLS = st.lists(st.integers(0, 99).map(lambda n: f"https://host/{n}%20\u00e9?a=%22"), unique=True, max_size=3)
FILE_TABLES = st.dictionaries(PATHS, st.tuples(DIGESTS, SIZES), min_size=1, max_size=4)


@st.composite
def checkpoints(draw: Any) -> list[Checkpoint]:
    found = []
    for name in draw(st.lists(NAMES, min_size=1, max_size=4, unique_by=str.casefold)):
        files, is_directory = draw(FILE_TABLES), draw(st.booleans())
        if not is_directory:
            files = {next(iter(files)).rpartition("/")[2]: next(iter(files.values()))}
        pins = tuple(weightcache.File(path, *pin) for path, pin in sorted(files.items()))
        auth = draw(st.none() | st.just("MY_TOKEN"))
        found.append(Checkpoint(name, tuple(draw(URLS)), pins, is_directory, auth))
    try:
        Manifest.load(_raw(found))  # clashes of case and Unicode form are the manifest's own business
    except ManifestError:
        assume(False)
    return found


def _raw(found: list[Checkpoint]) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    for each in found:
        pins = {f.path: {"sha256": f.sha256, **({} if f.size is None else {"size": f.size})} for f in each.files}
        [path, *_] = pins
        files = {"files": pins} if each.is_directory else {"file": path, **pins[path]}
        entries[each.name] = {"urls": list(each.urls), **files, **({"auth": each.auth} if each.auth else {})}
    return {"version": 1, "checkpoints": entries}


@settings(deadline=None)
@given(checkpoints())
def test_every_manifest_survives_being_written(found: list[Checkpoint]) -> None:
    with TemporaryDirectory() as folder:
        path = f"{folder}/weights.toml"
        toml_edit.ManifestFile(path).add(found)
        first = Manifest.load(path)
        assert tuple(first) == tuple(Manifest.load(_raw(found)))
        again = f"{folder}/again.toml"
        toml_edit.ManifestFile(again).add(list(first))
        assert Path(again).read_bytes() == Path(path).read_bytes()


@settings(deadline=None)
@given(checkpoints(), st.data())
def test_pin_changes_nothing_that_it_was_not_asked_to(found: list[Checkpoint], data: Any) -> None:
    """Whatever comments and blank lines there are: what was there stays, in its order, and pins are all that comes."""
    trivia = st.sampled_from(["", "\n", "# about it\n", "\n\n# two\n# lines\n\n", "   # far\n"])
    chosen = data.draw(st.integers(0, len(found) - 1))
    blocks = [f"{each}\n" for each in found]
    target = found[chosen]
    blocks[chosen] = re.sub(r'^sha256 = "[0-9a-f]{64}"\n(size = \d+\n)?', "", blocks[chosen], flags=re.M)
    blocks[chosen] = re.sub(r"^(.*) = \{ .* \}$", r"\1 = {}", blocks[chosen], flags=re.M)
    before = "".join(data.draw(trivia) + block for block in blocks) + data.draw(trivia)
    with TemporaryDirectory() as folder:
        path = Path(folder, "weights.toml")
        path.write_bytes(before.encode())
        toml_edit.ManifestFile(str(path)).complete([target])
        after = path.read_bytes().decode()
        assert tuple(Manifest.load(path)) == tuple(Manifest.load(_raw(found)))
    assert re.sub(r"\{ sha256 = .* \}$", "{}", after, flags=re.M).count("{}") >= before.count("{}")
    if target.is_directory:
        emptied = [line if " = {}" not in line else "" for line in before.split("\n")]
        assert [line for line in emptied if line] == [
            line for line, old in zip(after.split("\n"), before.split("\n"), strict=True) if line and " = {}" not in old
        ]
    else:
        [file] = target.files
        pin = f'sha256 = "{file.sha256}"\n' + ("" if file.size is None else f"size = {file.size}\n")
        assert before in {after[:at] + after[at + len(pin) :] for at in range(len(before) + 1)}
        assert len(after) == len(before) + len(pin)


@pytest.mark.parametrize("writes", [False, True])
def test_a_manifest_without_end_is_not_read_to_its_end(writes: bool, tmp_path: Path) -> None:
    """As `Manifest.load` does: a path may name a device, or a file of many gigabytes."""
    path = tmp_path / "weights.toml"
    path.touch()
    os.truncate(path, 1 << 40)  # more than any memory
    with pytest.raises(ManifestError, match="has more than 67,108,864 bytes, the most that is read"):
        toml_edit.ManifestFile(str(path), writes=writes)


def test_a_manifest_that_became_endless_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "weights.toml"
    path.touch()
    file = toml_edit.ManifestFile(str(path), writes=True)
    os.truncate(path, 1 << 40)
    with pytest.raises(StorageError, match="was changed by another process"):
        file.add([Checkpoint("a", (), (weightcache.File("a", "0" * 64),))])
    assert (path.stat().st_size, list(tmp_path.glob(".weights-*"))) == (1 << 40, [])
