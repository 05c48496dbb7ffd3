"""`pin`: what it completes, and that nothing else in a manifest changes."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import weightcache
from hub import File, Hub
from origin import Origin
from origin import status as answer
from pins import DATA, FILES, LARGE, text
from support import blob, quiet, sha256
from weightcache import Checkpoint, Manifest
from weightcache._pinning.unpinned_entries import HubUrl
from weightcache.cli import toml_edit
from weightcache.manifest.parse import parse_toml


def test_pin_completes_what_lacks_and_nothing_else(run: Any, origin: Origin, hub: Hub, root: Path) -> None:
    origin.put("/a.pt", DATA)
    for path in ("x", "y/z"):
        origin.put(f"/d/{path}", path.encode())
    commit = hub.push("acme/bert", "main", FILES)
    Path("weights.toml").write_text(f"""\
# Ours.
version = 1

[checkpoints.a]   # the first
urls = [
  "{origin.url("/a.pt")}",   # the only mirror
]
# after it

[checkpoints.d]
urls = ['{origin.url("/d")}']
files = {{ x = {{ sha256 = "{sha256(b"x")}" }}, "y/z" = {{}} }}
[checkpoints.bert]
urls   = ["hf://acme/bert@main"] # main

# About z.
[checkpoints.z]
urls = []
sha256 = "{"a" * 64}"
""")
    code, _, err = run("ensure", "--root", root)
    assert code == 2
    assert "run `weightcache pin a d bert -m weights.toml`" in err
    assert run("pin", "--check")[:2] == (
        1,
        """\
WARN  a     the sha256 of a.pt
WARN  d     the sha256 of y/z
WARN  bert  the commit of hf://acme/bert@main
WARN  bert  the list of its files
""",
    )
    code, out, err = run("pin", "d", "-q")
    assert (code, [line for line in out.splitlines() if not line.startswith(" ")]) == (0, ["d: pinned in weights.toml"])
    assert run("pin", "a", "bert", "--print")[0] == 0
    assert run("pin")[0] == 0
    completed = f"""\
# Ours.
version = 1

[checkpoints.a]   # the first
urls = [
  "{origin.url("/a.pt")}",   # the only mirror
]
sha256 = "{sha256(DATA)}"
size = 300001
# after it

[checkpoints.d]
urls = ['{origin.url("/d")}']
files = {{ x = {{ sha256 = "{sha256(b"x")}", size = 1 }}, "y/z" = {{ sha256 = "{sha256(b"y/z")}", size = 3 }} }}
[checkpoints.bert]
urls   = ["hf://acme/bert@{commit}"] # main

[checkpoints.bert.files]
"config.json" = {{ sha256 = "{sha256(b"{}" + bytes([10]))}", size = 3 }}
"model.safetensors" = {{ sha256 = "{sha256(DATA)}", size = 300001 }}
"onnx/model.onnx" = {{ sha256 = "{sha256(b"o" * 50)}", size = 50 }}

# About z.
[checkpoints.z]
urls = []
sha256 = "{"a" * 64}"
"""
    assert text().splitlines() == completed.splitlines()
    assert run("pin", "--check")[:2] == (0, "ok  everything is pinned\n")
    assert quiet("weights.toml", root, only=["a", "d", "bert"]).report["bert"].outcome == "downloaded"


def test_what_goes_with_no_check(run: Any) -> None:
    Path("weights.toml").write_text(f'[checkpoints.a]\nurls = []\nsha256 = "{"a" * 64}"\n')
    for words in (["--check", "--print"], ["--check-upstream", "--expect", "a" * 64]):
        code, _, err = run("pin", *words)
        assert (code, f"{words[1]} cannot be combined with {words[0]}:" in err) == (2, True), err
    Path("weights.toml").write_bytes(b"\xef\xbb\xbf" + text().encode())
    for words in (["pin", "--check"], ["status", "--root", "r"]):
        code, _, err = run(*words)
        assert (code, "begins with a byte order mark: save it without" in err) == (2, True), err


def test_a_complete_manifest_is_not_touched(run: Any, origin: Origin, hub: Hub) -> None:
    hub.push("acme/bert", "main", FILES)
    origin.put("/a.pt", DATA)
    run("add", "a", origin.url("/a.pt"))
    run("add", "bert", "hf://acme/bert")
    Path("weights.toml").write_bytes(text().replace("\n", "\r\n", 3).encode() + b"\n\n# end")
    before, seen = Path("weights.toml").read_bytes(), os.stat("weights.toml")
    requests = len(origin.requests), len(hub.seen)
    assert run("pin")[0] == 0
    after = os.stat("weights.toml")
    assert Path("weights.toml").read_bytes() == before
    assert (after.st_mtime_ns, after.st_ino) == (seen.st_mtime_ns, seen.st_ino)
    assert (len(origin.requests), len(hub.seen)) == requests


def test_a_length_that_no_mirror_tells_changes_nothing(run: Any, origin: Origin) -> None:
    def unannounced(exchange: Any) -> None:
        exchange.head(200, {"Connection": "close"})
        exchange.body(DATA)

    origin.put("/a.pt", DATA, always=unannounced)
    Path("weights.toml").write_text(f'[checkpoints.a]\nurls = ["{origin.url("/a.pt")}"]\nsha256 = "{sha256(DATA)}"\n')
    before = os.stat("weights.toml")
    assert run("pin")[0] == 0
    assert os.stat("weights.toml").st_ino == before.st_ino


def test_a_manifest_that_changed_meanwhile_is_left_alone(run: Any, origin: Origin) -> None:
    def meanwhile(exchange: Any) -> None:
        Path("weights.toml").write_text(theirs)
        answer(200, {}, DATA)(exchange)

    Path("weights.toml").write_text(f'[checkpoints.a]\nurls = ["{origin.url("/a.pt")}"]\nsize = {len(DATA)}\n')
    theirs = text() + "# theirs\n"
    origin.put("/a.pt", DATA, always=meanwhile)
    code, _, err = run("pin")
    assert (code, "was changed by another process" in err, text()) == (5, True, theirs)
    assert os.listdir() == ["weights.toml"]


def test_a_layout_that_cannot_be_added_to(run: Any, origin: Origin) -> None:
    origin.put("/a.pt", DATA)
    inline = f'checkpoints = {{ z = {{ urls = ["{origin.url("/a.pt")}"] }} }}\n'
    Path("weights.toml").write_text(inline)
    code, _, err = run("add", "a", origin.url("/a.pt"))
    assert (code, text(), "cannot be changed so that it stays TOML" in err) == (2, inline, True), err
    assert run("pin")[0] == 0
    assert Manifest.load("weights.toml")["z"].digest == sha256(DATA)


def test_line_ends_stay_as_mixed_as_they_are(run: Any, origin: Origin) -> None:
    origin.put("/a.pt", DATA)
    before = f'# a\r\n[checkpoints.a]\nurls = ["{origin.url("/a.pt")}"]\r\n\n# b\r\n'.encode()
    Path("weights.toml").write_bytes(before)
    assert run("pin")[0] == 0
    after = Path("weights.toml").read_bytes()
    assert after == before.replace(b"\n\n", f'\nsha256 = "{sha256(DATA)}"\nsize = {len(DATA)}\n\n'.encode())
    assert run("add", "c", origin.url("/a.pt"))[0] == 0
    assert Path("weights.toml").read_bytes().startswith(after)


def test_files_that_are_declared_in_pieces(run: Any, origin: Origin) -> None:
    for path in ("x", "y.z"):
        origin.put(f"/d/{path}", path.encode())
    Path("weights.toml").write_text(
        f'[checkpoints.d]\nurls = ["{origin.url("/d")}"]\nfiles.x.size = 1 # one\nfiles."y.z" = {{}}\n'
    )
    code, _, err = run("pin")
    assert code == 0, err
    assert {file.path: file.sha256 for file in Manifest.load("weights.toml")["d"].files} == {
        path: sha256(path.encode()) for path in ("x", "y.z")
    }
    assert "# one\n" in text()


def steps(work: Callable[[], object]) -> int:
    """How many instructions of `toml_edit` something takes, and calls of anything."""
    count, before = 0, sys.gettrace()

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count
        count += event in ("opcode", "call")
        frame.f_trace_opcodes = frame.f_code.co_filename == toml_edit.__file__
        return trace if frame.f_trace_opcodes else None

    sys._getframe().f_trace_opcodes = True  # Python 3.12 looks for such a frame when tracing begins, and not later
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("entry", ['"{}" = {{}}', 'files."{}".size = 1', '[checkpoints.d.files."{}"]'])
def test_pinning_twice_as_many_files_takes_twice_as_many_steps(entry: str) -> None:
    import tomlkit

    def complete(count: int) -> int:
        pins = tuple(weightcache.File(f"{number:03}", sha256(b"x"), 1) for number in range(count))
        head = "[checkpoints.d.files]\n" if entry.startswith('"') else "[checkpoints.d]\n"
        lines = "".join(f"{entry.format(file.path)}\n" for file in pins)
        table = tomlkit.parse(f"{head}{lines}# about the next\n\n[checkpoints.z]\n")["checkpoints"]["d"]  # type: ignore[index]
        return steps(lambda: toml_edit._complete(table, Checkpoint("d", (), pins, is_directory=True)))

    assert 5000 < complete(200) < 2.2 * complete(100)


def test_weights_of_ones_own_cannot_be_pinned_from_nowhere(run: Any) -> None:
    Path("weights.toml").write_text("[checkpoints.own]\nurls = []\n")
    code, _, err = run("pin")
    assert (code, "`weightcache publish PATH own`" in err) == (3, True), err


def test_what_pin_lacks_is_told_before_anything_is_downloaded(
    run: Any, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin.put("/a.pt", DATA)
    Path("weights.toml").write_text(f'[checkpoints.a]\nurls = ["{origin.url("/a.pt")}"]\n')
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "tomlkit", None)
        code, _, err = run("pin")
        assert (code, "pip install 'weightcache[tool]'" in err, origin.requests) == (2, True, []), err
        assert run("pin", "--check")[0] == 1
        assert run("pin", "--print")[0] == 0
    Path("weights.toml").unlink()
    os.mkfifo("weights.toml")
    assert run("pin")[0] == 2


@pytest.mark.usefixtures("one_connection")
def test_pin_with_a_root_keeps_what_it_downloads(run: Any, origin: Origin, root: Path) -> None:
    origin.put("/a.pt", LARGE)
    Path("weights.toml").write_text(f'[checkpoints.a]\nurls = ["{origin.url("/a.pt")}"]\n')
    assert run("pin", "--root", root, "-q")[0] == 0
    assert origin.sent("/a.pt") == len(LARGE)
    assert quiet("weights.toml", root, offline=True).report["a"].outcome == "hit"
    assert run("pin", "a", "--expect", "0" * 64)[0] == 3
    assert run("pin", "none")[0] == 2


def test_the_fashion_crop_manifest_is_rebuilt(run: Any, origin: Origin, hub: Hub) -> None:
    """Emptied of digests, sizes and commits, and pointed at loopback, where stand-ins lie under the same names."""
    given = (Path(__file__).parents[2] / "examples" / "fashion_crop" / "weights.toml").read_text()
    manifest = Manifest.load(Path(__file__).parents[2] / "examples" / "fashion_crop" / "weights.toml")
    standins: dict[str, bytes] = {}
    for checkpoint in manifest:
        for file in checkpoint.files:
            standins[file.sha256] = blob(1000 + len(standins), seed=len(standins))
    emptied, full = given, given
    for checkpoint in manifest:
        for file in checkpoint.files:
            data = standins[file.sha256]
            full = full.replace(file.sha256, sha256(data)).replace(f"size = {file.size}", f"size = {len(data)}")
            full = re.sub(rf"size( *)= {file.size}\b", rf"size\1= {len(data)}", full)
            if file.size is None:  # of a file whose size nobody publishes; it is pinned too
                full = full.replace(line := f'sha256 = "{sha256(data)}"', f"{line}\nsize = {len(data)}")
        for url in checkpoint.urls:
            if found := HubUrl.parse(url):
                files = {
                    found.path or file.path: File(standins[file.sha256], lfs="json" not in file.path)
                    for file in checkpoint.files
                }
                commit = hub.push(found.repository, "main", files)
                full = full.replace(found.revision, commit)
                emptied = emptied.replace(found.revision, "main")
            else:
                [file] = checkpoint.files
                path = "/" + url.rpartition("/")[2]
                origin.put(path, standins[file.sha256])
                full, emptied = (each.replace(url, origin.url(path)) for each in (full, emptied))
    for said in (r'sha256 *= "[0-9a-f]{64}",? *', r"size *= \d+ *"):
        emptied = re.sub(rf"^{said}(#.*)?\n", "", emptied, flags=re.M)  # a line of its own
        emptied = re.sub(said, "", emptied)  # in an inline table
    assert not re.search(r"[0-9a-f]{40}|size *=", emptied)
    Path("weights.toml").write_text(emptied)
    code, _, err = run("pin", "-q")
    assert code == 0, err
    assert tuple(Manifest.load("weights.toml")) == tuple(
        Manifest.load(parse_toml(full.encode(), "full"))  # the same digests, sizes, commits, order
    )
    assert [line for line in text().splitlines() if line.startswith("#")] == [
        line for line in given.splitlines() if line.startswith("#")
    ]
