"""The hit: what it imports, what it asks of the file system, and which receipts it does not believe (G2)."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from origin import Origin
from support import blob, directory, forbidden, lacking, one, site_hooks, toml_of
from weightcache import Manifest, ensure, status
from weightcache._store import inspect as inspect_module
from weightcache._store.inspect import inspect, read_bytes
from weightcache._store.layout import Layout

DATA = blob(100_000)


@pytest.fixture
def filled(origin: Origin, root: Path) -> dict[str, Any]:
    """A manifest whose two checkpoints are in the root."""
    origin.put("/a.pt", DATA)
    origin.put("/d/x.json", b"{}")
    origin.put("/d/deep/y.json", b"[]")
    manifest = one(DATA, origin.url("/a.pt"))
    manifest["checkpoints"] |= directory({"x.json": b"{}", "deep/y.json": b"[]"}, origin.url("/d"))["checkpoints"]
    ensure(manifest, root=root, progress=False)
    origin.requests.clear()
    return manifest


HIT = """
import json, sys
import weightcache
before = set(sys.modules)
weights = weightcache.ensure(sys.argv[1], root=sys.argv[2])
assert all(path.exists() for path in weights.values())
print(json.dumps(sorted(sys.modules)))
"""


def test_a_hit_imports_only_the_standard_library(filled: dict[str, Any], root: Path, tmp_path: Path) -> None:
    path = toml_of(filled, tmp_path / "weights.toml")
    done = subprocess.run([sys.executable, "-c", HIT, path, root], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in json.loads(done.stdout)}
    foreign = {name for name in loaded if name not in sys.stdlib_module_names and not name.startswith("_")}
    assert foreign <= {"weightcache", "tomli", "coverage", "a1_coverage", "sitecustomize"} | site_hooks()
    ours = {name for name in json.loads(done.stdout) if name.startswith("weightcache.")}
    ours -= {f"weightcache.{name}" for name in ("_checkpoint", "_results", "_weights")}  # empty: for old pickles
    assert ours == {
        f"weightcache.{name}"
        for name in (
            "_api",
            "_frozen",
            "_message_text",
            "_store",
            "_store.inspect",
            "_store.layout",
            "_views",
            "_views.weights",
            "errors",
            "manifest",
            "manifest.model",
            "manifest.parse",
            "manifest.urls",
            "manifest.validate",
        )
    }
    for heavy in ("dataclasses", "inspect", "asyncio", "logging", "ssl", "concurrent", "tempfile"):
        assert heavy not in loaded - site_hooks()


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomli, which reads TOML here, compiles patterns of its own")
def test_a_hit_compiles_no_pattern(filled: dict[str, Any], root: Path, tmp_path: Path) -> None:
    """Compiling one takes as long as importing a module."""
    path = toml_of(filled, tmp_path / "weights.toml")
    path.write_text(path.read_text().replace('file = "weights.pt"\n', ""))  # so that the name is that of the URL
    assert "file =" not in path.read_text()
    code = """if True:
        import json, os, re, sys, tomllib
        re.purge()  # what Python itself has compiled
        import weightcache
        weightcache.ensure(sys.argv[1], root=sys.argv[2])
        print([pattern for kind, pattern, *_ in re._cache])
    """
    ensure(path, root=root, progress=False)
    done = subprocess.run([sys.executable, "-c", code, path, root], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_system_calls_of_a_hit(filled: dict[str, Any], root: Path, tmp_path: Path) -> None:
    if not shutil.which("strace"):
        lacking("strace is not installed")
    path, trace = toml_of(filled, tmp_path / "weights.toml"), tmp_path / "trace"
    code = "import sys, weightcache; weightcache.ensure(sys.argv[1], root=sys.argv[2])"
    command = ["strace", "-f", "-o", str(trace), "-e", "trace=%file,%network", sys.executable, "-c", code, path, root]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "PTRACE" in done.stderr:
        forbidden(f"strace does not work here: {done.stderr[-200:]}")
    assert done.returncode == 0, done.stderr
    calls = [line for line in trace.read_text().splitlines() if f'"{root}' in line]
    opened = [line for line in calls if re.search(r"\bopen(at)?\(", line)]
    looked_at = [line for line in calls if re.search(r"\b(newfstatat|stat|lstat|statx)\(", line)]
    assert len(opened) == 2, opened  # one receipt each
    assert all("/.weightcache/receipts/" in line for line in opened)
    assert len(looked_at) == 3, looked_at  # one stat a file
    assert len(calls) == 5, calls
    assert "socket(" not in trace.read_text()


def test_a_hit_needs_no_origin_and_no_volume(filled: dict[str, Any], root: Path, origin: Origin) -> None:
    class Forbidden:
        def commit(self) -> None:
            raise AssertionError("a hit commits nothing")

        reload = commit

    weights = ensure(Manifest.load(filled), root=root, volume=Forbidden())
    assert origin.requests == []
    assert list(weights) == ["sam2", "bert"]
    assert weights["sam2"].read_bytes() == DATA
    assert (weights["bert"] / "deep/y.json").read_bytes() == b"[]"
    assert {report.outcome for report in weights.report.values()} == {"hit"}
    assert weights.report.committed is None
    assert weights.report.bytes_fetched == 0
    assert (len(weights), len(weights.report), list(weights.report)) == (2, 2, ["sam2", "bert"])
    assert "sam2" in repr(weights)
    with pytest.raises(KeyError):
        weights["other"]
    with pytest.raises(TypeError):
        weights["sam2"] = Path()  # type: ignore[index]


def receipt_of(root: Path, name: str) -> Path:
    [path] = (root / ".weightcache/receipts" / name).iterdir()
    return path


def lie(receipt: Path, **changes: Any) -> None:
    receipt.write_text(json.dumps(json.loads(receipt.read_text()) | changes))


LIES = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:50]),
    "not JSON": lambda path: path.write_bytes(b"\xff\0"),
    "nested": lambda path: path.write_bytes(b"[" * 100_000),
    "a list": lambda path: path.write_text("[]"),
    "another format": lambda path: lie(path, format=2),
    "another name": lambda path: lie(path, name="other"),
    "another digest": lambda path: lie(path, digest="0" * 64),
    "no files": lambda path: lie(path, files={}),
    "a file too many": lambda path: lie(path, files={**json.loads(path.read_text())["files"], "b": {}}),
    "files a list": lambda path: lie(path, files=[]),
    "another file's digest": lambda path: lie(path, files={"weights.pt": {"sha256": "0" * 64, "size": len(DATA)}}),
    "another size": lambda path: lie(
        path, files={"weights.pt": {"sha256": json.loads(path.read_text())["digest"], "size": 5}}
    ),
    "size true": lambda path: lie(
        path, files={"weights.pt": {"sha256": json.loads(path.read_text())["digest"], "size": True}}
    ),
    "an entry that is no table": lambda path: lie(path, files={"weights.pt": 3}),
    "a directory": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("tell", LIES.values(), ids=LIES)
def test_a_receipt_that_lies_is_not_believed(tell: Any, filled: dict[str, Any], root: Path, origin: Origin) -> None:
    tell(receipt_of(root, "sam2"))
    [seen] = status(filled, root=root, only=["sam2"])
    assert seen.state == "unverified"
    if receipt_of(root, "sam2").is_dir():
        return
    weights = ensure(filled, root=root, progress=False)
    assert weights.report["sam2"].outcome == "adopted"
    assert origin.requests == []
    assert status(filled, root=root, only=["sam2"])[0].state == "ready"


def test_a_receipt_of_another_place_does_not_make_a_hit(origin: Origin, root: Path) -> None:
    """A file of the same size under another name must not be taken for this one."""
    right, stranger = blob(1000, 1), blob(1000, 2)
    origin.put("/right", right)
    origin.put("/stranger", stranger)
    ensure(one(stranger, origin.url("/stranger"), name="stranger"), root=root, progress=False)
    wanted = Manifest.load(one(right, origin.url("/right"), name="right"))
    layout, checkpoint = Layout(root), wanted["right"]
    place = Path(layout.published(checkpoint))
    place.parent.mkdir(parents=True)
    place.write_bytes(stranger)
    receipt = Path(layout.receipt(checkpoint))
    receipt.parent.mkdir(parents=True)
    shutil.copy(receipt_of(root, "stranger"), receipt)
    assert inspect(layout, checkpoint).state == "unverified"
    assert ensure(wanted, root=root, progress=False)["right"].read_bytes() == right


def test_states(filled: dict[str, Any], root: Path) -> None:
    def state(name: str) -> tuple[str, str]:
        [seen] = status(filled, root=root, only=[name])
        return seen.state, seen.detail

    assert state("sam2") == ("ready", "")
    [place] = (root / "sam2").iterdir()
    os.truncate(place / "weights.pt", 7)
    assert state("sam2") == ("damaged", "has a receipt, but weights.pt has 7 bytes instead of 100000")
    receipt_of(root, "sam2").unlink()
    assert state("sam2") == ("damaged", "weights.pt has 7 bytes instead of 100000")
    (place / "weights.pt").unlink()
    assert state("sam2") == ("missing", "is not there")
    (root / ".weightcache/partial" / f"{place.name}x").mkdir()
    assert state("sam2")[0] == "missing"
    digest = filled["checkpoints"]["sam2"]["sha256"]
    (root / ".weightcache/partial" / f"{digest}.somebody").mkdir()
    assert state("sam2") == ("partial", "a download was begun")
    (place / "weights.pt").mkdir()
    assert state("sam2") == ("damaged", "weights.pt is not a regular file")
    [bert] = (root / "bert").iterdir()
    receipt_of(root, "bert").unlink()
    assert state("bert")[0] == "unverified"
    (bert / "x.json").unlink()
    assert state("bert") == ("partial", "x.json is missing")


def test_a_root_that_is_not_there(root: Path) -> None:
    [seen] = status(one(b"x", "https://h/x"), root=root)
    assert (seen.state, seen.size, seen.path.name) == ("missing", 1, "weights.pt")
    assert not root.exists()


@pytest.mark.parametrize(
    ("bad", "error"), [("", ValueError), ("a\0b", ValueError), (b"x", TypeError), (None, TypeError)]
)
def test_a_root_that_is_none(bad: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="root must be"):
        ensure(one(b"x", "https://h/x"), root=bad)


def test_home_is_expanded_in_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Layout("~/x").root == str(tmp_path / "x")


def test_a_child_that_is_forked_while_a_receipt_is_read_does_not_keep_it_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a Volume, an open file makes every commit and reload fail."""
    real, codes = os.fstat, list[int]()

    def forking(descriptor: int) -> os.stat_result:
        child = os.fork()
        if not child:
            try:
                real(descriptor)
            except OSError:
                os._exit(17)
            os._exit(1)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        return real(descriptor)

    (tmp_path / "a").write_bytes(DATA)
    monkeypatch.setattr("weightcache._store.inspect.os.fstat", forking)
    assert read_bytes(str(tmp_path / "a"), len(DATA)) == DATA
    assert codes == [17]


def test_the_format_of_a_receipt_stays_as_it_is(filled: dict[str, Any], root: Path) -> None:
    """Else another version of the library would not believe it."""
    receipts = [json.loads(path.read_text()) for path in root.glob(".weightcache/receipts/*/*.json")]
    assert [receipt["format"] for receipt in receipts] == [1] * len(filled["checkpoints"])


def test_an_interrupt_at_any_line_of_an_open_leaves_no_descriptor(tmp_path: Path) -> None:
    path, line, done = tmp_path / "receipt", 0, False
    path.write_bytes(b"{}")
    assert read_bytes(str(path), 100) == b"{}"

    def trace(frame: Any, event: str, _argument: object) -> Any:
        nonlocal passed
        if frame.f_code is not inspect_module._open.__code__:
            return None
        passed += event == "line"
        if event == "line" and passed == line:
            raise KeyboardInterrupt
        return trace

    before = sys.gettrace()  # coverage's
    open_before = set(os.listdir("/proc/self/fd"))
    while not done:
        line, passed = line + 1, 0
        sys.settrace(trace)
        try:
            done = read_bytes(str(path), 100) == b"{}"
        except KeyboardInterrupt:
            assert set(os.listdir("/proc/self/fd")) == open_before, line
        finally:
            sys.settrace(before)
    assert line > 3
