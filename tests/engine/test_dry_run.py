"""`ensure(dry_run=True)`: the plan is what the real call then does, and nothing in the root changes."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import urllib3.util.connection  # noqa: F401 - before `dry`: its import opens a socket, to see whether there is IPv6

import weightcache
from origin import Origin, broken
from origin import status as answer
from support import blob, directory, one, partials, quiet, sha256
from weightcache import CheckpointPlan, FilePlan, Manifest, NotCachedError, Plan, StorageError, aensure, ensure
from weightcache._store.partial_directory import BLOCK
from weightcache.cli.main import main
from weightcache.modal import WeightVolume

DATA = blob(3 * BLOCK + 321)
FILES = {"config.json": b"{}", "model/a.bin": blob(4321, 1), "model/b.bin": blob(1234, 2)}
URL = "https://weights.example/a"


def snapshot(root: Path) -> dict[str, Any]:
    """Every path below the root with its bytes and all that a change would show in."""
    found = {}
    for path in [root, *sorted(root.rglob("*"))] if root.exists() else []:
        seen = path.lstat()
        data = path.read_bytes() if path.is_file() else b""
        found[str(path)] = (seen.st_mode, seen.st_ino, seen.st_nlink, seen.st_mtime_ns, seen.st_ctime_ns, data)
    return found


class Forbidden:
    """A volume that must not be called."""

    def commit(self) -> None:
        raise AssertionError

    reload = commit


def dry(manifest: Any, root: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Plan:
    """Plan; nothing in the root, on the container's own disk or on the network may be touched."""
    before, notes = snapshot(root), snapshot(Path(os.environ["TMPDIR"]))
    with monkeypatch.context() as patch:
        patch.setattr(socket, "socket", lambda *_, **__: pytest.fail("it uses the network"))
        patch.setattr("weightcache._store.file_operations.hash_file", lambda *_, **__: pytest.fail("it hashes"))
        plan = ensure(manifest, root=root, volume=Forbidden(), dry_run=True, **options)
    assert snapshot(root) == before
    assert snapshot(Path(os.environ["TMPDIR"])) == notes
    return plan


@pytest.fixture(autouse=True)
def own_notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "notes").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "notes"))


def actions(plan: Plan) -> dict[str, list[str]]:
    return {name: [file.action for file in each.files] for name, each in plan.items()}


@pytest.fixture
def held(origin: Origin, root: Path) -> dict[str, Any]:
    """A manifest whose checkpoint is in the root."""
    origin.put("/a", DATA)
    manifest = one(DATA, origin.url("/a"))
    quiet(manifest, root)
    return manifest


def test_a_root_that_does_not_exist_stays_so(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = dry(one(DATA, URL), root, monkeypatch)
    assert not root.exists()
    [file] = plan["sam2"].files
    assert file == FilePlan("weights.pt", "fetch", len(DATA), bytes_to_fetch=len(DATA))
    assert (plan["sam2"].action, plan["sam2"].bytes_to_fetch, plan.bytes_to_fetch) == ("fetch", len(DATA), len(DATA))
    assert str(plan) == "sam2: fetch 1 file (3.1 MB)\nto fetch: 3.1 MB"


def test_a_hit(held: dict[str, Any], root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = dry(held, root, monkeypatch)
    assert plan["sam2"] == CheckpointPlan(
        "sam2", quiet(held, root)["sam2"], (FilePlan("weights.pt", "keep", len(DATA), verified=True),)
    )
    assert plan.bytes_to_fetch == 0
    again = dry(held, root, monkeypatch, rehash=True)
    assert [file.verified for file in again["sam2"].files] == [False]


def test_a_download_that_was_interrupted_counts(origin: Origin, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    origin.put("/a", DATA, faults=[broken(2 * BLOCK + 5)], always=answer(404))
    manifest = one(DATA, origin.url("/a"))
    with pytest.raises(weightcache.DownloadError):
        quiet(manifest, root)
    assert partials(root)
    there = dry(manifest, root, monkeypatch).bytes_to_fetch
    assert there is not None
    assert there < len(DATA) - BLOCK
    origin.put("/a", DATA)
    assert quiet(manifest, root).report["sam2"].bytes_fetched == there


def test_a_journal_that_says_more_than_is_there(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    partial = root / ".weightcache/partial" / f"{sha256(DATA)}.0123456789ab-1-1-00000000"
    partial.mkdir(parents=True)
    lines = [f"{sha256(DATA)} {block} {BLOCK} 00000000\n" for block in (0, 1, 1, 900)]
    (partial / "journal").write_text("".join(lines))
    (partial / sha256(DATA)).write_bytes(b"x" * 2 * BLOCK)
    assert dry(one(DATA, URL), root, monkeypatch).bytes_to_fetch == len(DATA) - 2 * BLOCK


def test_a_damaged_file(held: dict[str, Any], root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.truncate(quiet(held, root)["sam2"], 5)
    plan = dry(held, root, monkeypatch)
    assert (plan["sam2"].action, plan.bytes_to_fetch) == ("fetch", len(DATA))
    assert quiet(held, root).report["sam2"].outcome == "healed"


def test_what_has_no_receipt_is_adopted(held: dict[str, Any], root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(root / ".weightcache")
    [file] = dry(held, root, monkeypatch)["sam2"].files
    assert file == FilePlan("weights.pt", "adopt", len(DATA), verified=False)
    assert quiet(held, root).report["sam2"].outcome == "adopted"


def test_another_name_of_the_same_bytes(held: dict[str, Any], root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = one(DATA, name="other", size=False)
    [file] = dry(other, root, monkeypatch)["other"].files
    assert file == FilePlan("weights.pt", "copy", len(DATA), sources=(str(quiet(held, root)["sam2"]),))
    assert quiet(other, root).report["other"].outcome == "copied"
    os.truncate(quiet(held, root)["sam2"], 5)
    shutil.rmtree(root / "other")
    assert actions(dry(one(DATA, name="third"), root, monkeypatch)) == {"third": ["fetch"]}


def test_what_has_no_receipt_is_copied_to_another_name(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = one(DATA, URL, name="a")
    manifest["checkpoints"] |= one(DATA, URL, name="b")["checkpoints"]
    path = dry(manifest, root, monkeypatch)["a"].path
    path.parent.mkdir(parents=True)
    path.write_bytes(DATA)
    plan = dry(manifest, root, monkeypatch)
    assert actions(plan) == {"a": ["adopt"], "b": ["copy"]}
    assert plan["b"].files[0].sources == (str(path),)
    weights = quiet(manifest, root, offline=True)
    assert [weights.report[name].outcome for name in "ab"] == ["adopted", "copied"]


def test_the_same_bytes_are_fetched_once(origin: Origin, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    origin.put("/a", DATA)
    manifest = one(DATA, origin.url("/a"), name="a")
    manifest["checkpoints"] |= one(DATA, origin.url("/a"), name="b")["checkpoints"]
    plan = dry(manifest, root, monkeypatch)
    assert actions(plan) == {"a": ["fetch"], "b": ["copy"]}
    assert plan["b"].files[0].sources == (str(plan["a"].path),)
    assert quiet(manifest, root).report.bytes_fetched == plan.bytes_to_fetch == len(DATA)


def test_a_directory_of_which_some_is_there(origin: Origin, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path, data in FILES.items():
        origin.put(f"/d/{path}", data)
    manifest = directory(FILES, origin.url("/d"))
    weights = quiet(manifest, root)
    (weights["bert"] / "model/a.bin").unlink()
    plan = dry(manifest, root, monkeypatch)
    assert actions(plan) == {"bert": ["keep", "fetch", "keep"]}
    assert plan.bytes_to_fetch == len(FILES["model/a.bin"])
    shutil.rmtree(root / ".weightcache")
    (weights["bert"] / "model/b.bin").write_bytes(b"another length")
    assert actions(dry(manifest, root, monkeypatch)) == {"bert": ["adopt", "fetch", "fetch"]}
    assert "fetch 2 files (5.6 kB), adopt 1 file (2 bytes)" in str(plan := dry(manifest, root, monkeypatch))
    assert quiet(manifest, root).report.bytes_fetched == plan.bytes_to_fetch


def test_a_size_that_is_not_declared(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = dry(one(DATA, URL, size=False), root, monkeypatch)
    assert plan.bytes_to_fetch is plan["sam2"].bytes_to_fetch is None
    assert str(plan).endswith("to fetch: unknown size")


def test_what_the_real_call_refuses(held: dict[str, Any], root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing, local = one(b"other", URL, name="new"), one(b"other", name="new")
    assert dry(missing, root, monkeypatch)["new"].blocked == ""
    assert dry(missing, root, monkeypatch, offline=True)["new"].blocked == "offline=True"
    assert dry(local, root, monkeypatch)["new"].blocked == "it declares no URL"
    assert dry(one(DATA, name="new"), root, monkeypatch, offline=True)["new"].blocked == ""  # it is copied
    for name in ("run_miss", "dry_run"):
        monkeypatch.setattr(
            f"weightcache._engine.{name}.{'store_root.' * (name == 'run_miss')}is_read_only", lambda _: True
        )
    plan = dry({"checkpoints": held["checkpoints"] | missing["checkpoints"]}, root, monkeypatch)
    assert [each.blocked for each in plan.values()] == ["", "the root is read-only here"]
    assert str(plan).splitlines()[1] == "new: fetch 1 file (5 bytes); blocked: the root is read-only here"
    assert dry(one(DATA, URL, name="new"), root, monkeypatch)["new"].blocked  # a copy is a write too
    with pytest.raises(NotCachedError, match="the root is read-only here"):
        quiet(missing, root)


def test_arguments_are_checked_as_in_a_real_call(root: Path, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="volume must have commit"):
        ensure(one(DATA, URL), root=root, volume="weights", dry_run=True)  # type: ignore[call-overload]
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="it is a file"):
        ensure(one(DATA, URL), root=tmp_path / "file", dry_run=True)


def test_in_async_code_and_of_a_volume(held: dict[str, Any], root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = dry(held, root, monkeypatch)
    assert asyncio.run(aensure(held, root=root, dry_run=True)) == plan
    assert pickle.loads(pickle.dumps(plan)) == plan
    cache = WeightVolume(held, name="weights", path=str(root))
    assert cache.ensure(dry_run=True) == asyncio.run(cache.aensure(dry_run=True)) == plan


def test_on_the_command_line(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = tmp_path / "weights.toml"
    manifest.write_text(str(Manifest.load(one(DATA, URL))["sam2"]))
    words = ["ensure", "--manifest", str(manifest), "--root", str(root), "--dry-run"]
    assert main(words) == 0
    assert capsys.readouterr().out == "sam2: fetch 1 file (3.1 MB)\nto fetch: 3.1 MB\n"
    assert main([*words, "--json", "--offline"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["bytes_to_fetch"] == len(DATA)
    [row] = told["checkpoints"]
    assert (row["name"], row["action"], row["blocked"]) == ("sam2", "fetch", "offline=True")
    assert row["files"][0]["bytes_to_fetch"] == len(DATA)
    assert not root.exists()
