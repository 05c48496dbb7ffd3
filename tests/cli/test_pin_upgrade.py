"""`pin --upgrade`: what moves, what is shown of it, and that comments and everything else stay."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from hub import File, Hub
from origin import Origin
from pins import text
from support import blob, sha256
from weightcache import Manifest, ensure

OLD, NEW = blob(300_001), blob(300_002, seed=2)
FILES: dict[str, Any] = {
    "README.md": b"# old\n",
    "config.json": b"{}\n",
    "model-1.safetensors": File(OLD, lfs=True),
    "pytorch_model.bin": File(b"PK", lfs=True),
}


def listed(name: str) -> list[str]:
    return [file.path for file in Manifest.load("weights.toml")[name].files]


def pinned(run: Any, hub: Hub, *more: str) -> str:
    """A manifest with one directory of the Hub, pinned; return its commit."""
    commit = hub.push("acme/bert", "main", FILES)
    assert run("add", "bert", "hf://acme/bert", *more)[0] == 0
    return commit


WEIGHTS = ("--include", "*.json", "--include", "*.safetensors")


def test_an_entry_moves_to_the_newest_commit_and_comments_stay(run: Any, hub: Hub, origin: Origin, root: Path) -> None:
    first = pinned(run, hub, *WEIGHTS)
    origin.put("/a.pt", OLD)
    assert run("add", "a", origin.url("/a.pt"))[0] == 0
    before = (
        text()
        .replace("version = 1\n", "# Ours.\nversion = 1   # the format\n")
        .replace("[checkpoints.bert]\n", "# The text model.\n[checkpoints.bert]  # base\n")
        .replace(f'{first}"]\n', f'{first}"]   # reviewed by A.\n')
        .replace("size = 3 }\n", "size = 3 }   # tiny\n")
        .replace("[checkpoints.a]\n", "# About a.\n[checkpoints.a]\n")
        .replace(f'sha256 = "{sha256(OLD)}"\nsize = 300001\n', f'size = 300_001 # bytes\nsha256 = "{sha256(OLD)}"\n')
    )
    assert before.count("#") == 8
    Path("weights.toml").write_text(before)
    old = Manifest.load("weights.toml")
    second = hub.push(
        "acme/bert",
        "main",
        {"config.json": b"[]\n\n", "model-2.safetensors": File(NEW, lfs=True), "tf_model.h5": File(b"h5", lfs=True)},
    )
    origin.put("/a.pt", NEW)
    code, out, err = run("pin", "--upgrade", "-q")
    assert code == 0, err
    new = Manifest.load("weights.toml")
    changed = {
        first: second,
        "size = 3 }   # tiny": "size = 4 }   # tiny",
        sha256(b"{}\n"): sha256(b"[]\n\n"),
        "size = 300_001 # bytes": "size = 300002 # bytes",
        f'# bytes\nsha256 = "{sha256(OLD)}"': f'# bytes\nsha256 = "{sha256(NEW)}"',
    }
    shard = f'"model-2.safetensors" = {{ sha256 = "{sha256(NEW)}", size = 300002 }}\n'
    wanted = before
    for one, other in changed.items():
        assert one in wanted
        wanted = wanted.replace(one, other)
    wanted = wanted.replace("size = 300001 }\n", f"size = 300001 }}\n{shard}", 1)
    assert text() == wanted
    assert out.splitlines() == [
        "bert: changed",
        f"  {old['bert'].digest} → {new['bert'].digest}",
        f"  hf://acme/bert@{first} → hf://acme/bert@{second}",
        "  config.json",
        f"    {sha256(b'{}' + bytes([10]))} (3 bytes) → {sha256(b'[]' + bytes([10, 10]))} (4 bytes)",
        f"    computed here from {hub.url}/acme/bert/resolve/{second}/config.json",
        "  model-2.safetensors",
        f"    not there → {sha256(NEW)} (300,002 bytes)",
        "    published by the Hub (acme/bert)",
        "a: changed",
        f"  {sha256(OLD)} → {sha256(NEW)}",
        "  a.pt",
        f"    {sha256(OLD)} (300,001 bytes) → {sha256(NEW)} (300,002 bytes)",
        f"    computed here from {origin.url('/a.pt')}",
    ]
    assert ensure("weights.toml", root=root, progress=False)["a"].read_bytes() == NEW
    requests = len(origin.requests)
    assert run("pin", "--upgrade", "bert")[:2] == (0, "bert: nothing changed\n")
    assert (text(), len(origin.requests)) == (wanted, requests)


def test_check_changes_nothing_and_says_with_its_code_whether_something_would_change(run: Any, hub: Hub) -> None:
    first = pinned(run, hub, *WEIGHTS)
    before, seen = text(), os.stat("weights.toml")
    assert run("pin", "--upgrade", "--check")[:2] == (0, "bert: nothing changed\n")
    readme = hub.push("acme/bert", "main", {"README.md": b"# new\n", "pytorch_model.bin": File(b"PK2", lfs=True)})
    code, out, _ = run("pin", "--upgrade", "--check")
    assert (code, out) == (0, f"bert: nothing changed; hf://acme/bert@{readme} has the same files\n")
    hub.push("acme/bert", "main", {"config.json": b"[]"})
    code, out, _ = run("pin", "--upgrade", "--check")
    assert (code, "bert: would change" in out, f"hf://acme/bert@{first} → " in out) == (1, True, True)
    [row] = json.loads(run("pin", "--upgrade", "--check", "--json")[1])["checkpoints"]
    assert (row["changed"], row["old_digest"] != row["digest"]) == (True, True)
    assert row["old_files"]["config.json"] == {"sha256": sha256(b"{}\n"), "size": 3}
    assert row["files"]["config.json"]["sha256"] == sha256(b"[]")
    assert run("pin", "--upgrade", "--print")[1] == row["entry"]
    after = os.stat("weights.toml")
    assert (text(), after.st_mtime_ns, after.st_ino) == (before, seen.st_mtime_ns, seen.st_ino)
    os.chmod("weights.toml", 0o400)
    assert run("pin", "--upgrade", "--check")[0] == 1


def test_to_another_revision_even_with_the_same_files(run: Any, hub: Hub) -> None:
    first = pinned(run, hub, *WEIGHTS)
    readme = hub.push("acme/bert", "next", {"README.md": b"# new\n"})
    assert run("pin", "--upgrade", "--to", "next", "--check")[0] == 1
    assert run("pin", "--upgrade", "--to", "next")[0] == 0
    assert f"hf://acme/bert@{readme}" in text()
    assert run("pin", "--upgrade", "--to", first, "bert")[0] == 0
    assert f"hf://acme/bert@{first}" in text()
    before = text()
    code, _, err = run("pin", "--upgrade", "--to", "v9")
    assert (code, "has no revision 'v9'" in err, text()) == (3, True, before)


def test_files_that_come_and_go(run: Any, hub: Hub) -> None:
    pinned(run, hub, *WEIGHTS)
    hub.push("acme/all", "main", FILES)
    assert run("add", "all", "hf://acme/all")[0] == 0
    moved = {
        "model-1.safetensors": None,
        "model.safetensors": File(NEW, lfs=True),
        "x.py": b"x = 1\n",
        "sub/y.json": b"y",
    }
    for name in ("bert", "all"):
        hub.push(f"acme/{name}", "main", moved)
    code, out, err = run("pin", "--upgrade")
    assert code == 0, err
    assert listed("bert") == ["config.json", "model.safetensors"]
    assert listed("all") == ["README.md", "config.json", "model.safetensors", "pytorch_model.bin", "sub/y.json", "x.py"]
    assert f"  model-1.safetensors\n    {sha256(OLD)} (300,001 bytes) → not there\n" in out
    before = text()
    hub.push("acme/bert", "main", {"config.json": None, "model.safetensors": None})
    code, _, err = run("pin", "--upgrade")
    assert (code, "has no files at" in err, text()) == (3, True, before)


@pytest.mark.parametrize(
    "files",
    [
        '[checkpoints.d.files."y.json"]\nsha256 = "{y}"\n# x\n[checkpoints.d.files."x.json"]\nsha256 = "{x}"\n',
        'files = {{ "x.json" = {{ sha256 = "{x}" }}, "y.json" = {{ sha256 = "{y}" }} }} # both\n',
        'files."x.json".sha256 = "{x}" # x\nfiles."y.json".sha256 = "{y}"\n',
        '[checkpoints.d.files."x.json"] # x\nsha256 = "{x}"\n[checkpoints.d.files."y.json"]\nsha256 = "{y}"\n',
        '[checkpoints.d.files]\n"x.json" = {{ sha256 = "{x}", size = 1 }} # x\n"y.json".sha256 = "{y}"\n',
    ],
)
def test_every_layout_of_files(files: str, run: Any, hub: Hub) -> None:
    commit = hub.push("acme/d", "main", {"x.json": b"x", "y.json": b"y", "z.txt": b"z"})
    declared = files.format(x=sha256(b"x"), y=sha256(b"y"))
    Path("weights.toml").write_text(f'[checkpoints.d]\nurls = ["hf://acme/d@{commit}"]\n{declared}# the end\n')
    hub.push("acme/d", "main", {"x.json": b"xx", "y.json": None, "v.json": b"v"})
    code, _, err = run("pin", "--upgrade")
    assert code == 0, err
    found = {file.path: (file.sha256, file.size) for file in Manifest.load("weights.toml")["d"].files}
    assert found == {"x.json": (sha256(b"xx"), 2), "v.json": (sha256(b"v"), 1)}
    assert ("# both" in text()) or ("# x" in text())
    assert "# the end\n" in text()


def test_a_commit_that_the_hub_no_longer_has(run: Any, hub: Hub) -> None:
    first = pinned(run, hub, *WEIGHTS)
    hub.push("acme/bert", "main", {"config.json": b"[]", "model-2.safetensors": File(NEW, lfs=True)})
    del hub.repositories["acme/bert"].commits[first]
    code, _, err = run("pin", "--upgrade")
    assert (code, "so files that are new in the repository are not added" in err) == (0, True), err
    assert listed("bert") == ["config.json", "model-1.safetensors"]


def test_single_files_and_weights_of_ones_own(run: Any, hub: Hub) -> None:
    hub.push("acme/bert", "main", FILES)
    assert run("add", "one", "hf://acme/bert@main/model-1.safetensors", "--file", "m.safetensors")[0] == 0
    with open("weights.toml", "a") as stream:
        stream.write(f'\n[checkpoints.own]\nurls = []\nsha256 = "{"a" * 64}"\n')
    commit = hub.push("acme/bert", "main", {"model-1.safetensors": File(NEW, lfs=True)})
    code, out, err = run("pin", "--upgrade")
    assert (code, "own: nothing changed" in out) == (0, True), err
    one = Manifest.load("weights.toml")["one"]
    assert (one.urls, one.files[0].path, one.digest, one.size) == (
        (f"hf://acme/bert@{commit}/model-1.safetensors",),
        "m.safetensors",
        sha256(NEW),
        len(NEW),
    )
    assert not [each for each in hub.seen if each.host == "cdn"]
    hub.push("acme/bert", "main", {"model-1.safetensors": None})
    before = text()
    code, _, err = run("pin", "--upgrade", "one")
    assert (code, "has no model-1.safetensors at" in err, text()) == (3, True, before)


def test_a_mirror_that_has_not_moved_stops_it(run: Any, hub: Hub, origin: Origin) -> None:
    hub.push("acme/bert", "main", FILES)
    origin.put("/m.safetensors", OLD)
    assert run("add", "m", "hf://acme/bert@main/model-1.safetensors", origin.url("/m.safetensors"))[0] == 0
    before = text()
    hub.push("acme/bert", "main", {"model-1.safetensors": File(NEW, lfs=True)})
    code, _, err = run("pin", "--upgrade")
    assert (code, "is not the file that was expected" in err, text()) == (3, True, before)


def test_an_unpinned_entry_keeps_its_branch(run: Any, hub: Hub) -> None:
    hub.push("acme/bert", "main", FILES)
    commit = hub.push("acme/bert", "next", {"config.json": b"[]"})
    Path("weights.toml").write_text('[checkpoints.bert]\nurls = ["hf://acme/bert@next"]\n')
    assert run("pin", "--upgrade", "--check")[0] == 1
    code, out, err = run("pin", "--upgrade")
    assert (code, f"  hf://acme/bert@next → hf://acme/bert@{commit}" in out, "  unpinned → " in out) == (
        0,
        True,
        True,
    ), err


def test_what_it_downloads_is_published_in_a_root(run: Any, origin: Origin, root: Path) -> None:
    origin.put("/a.pt", OLD)
    assert run("add", "a", origin.url("/a.pt"), "--root", root, "-q")[0] == 0
    origin.put("/a.pt", NEW)
    assert run("pin", "--upgrade", "--check", "--root", root, "-q")[0] == 1
    assert run("pin", "--upgrade", "--root", root, "-q")[0] == 0
    assert ensure("weights.toml", root=root, offline=True).report["a"].outcome == "hit"
    assert sorted(each.name for each in (root / "a").iterdir()) == sorted([sha256(OLD)[:16], sha256(NEW)[:16]])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--to", "v1"], "--to needs --upgrade"),
        (["--upgrade", "--check-upstream"], "--upgrade cannot be combined with --check-upstream"),
        (["--upgrade", "--check", "--expect", "a" * 64], "--expect cannot be combined with --check"),
        (["--upgrade", "--expect", "a" * 64], "--expect is the digest of one checkpoint"),
        (["--upgrade", "none"], "no checkpoint is called 'none'"),
    ],
)
def test_what_cannot_be_combined(words: list[str], said: str, run: Any) -> None:
    Path("weights.toml").write_text("".join(f'[checkpoints.{n}]\nurls = []\nsha256 = "{"a" * 64}"\n' for n in "ab"))
    code, _, err = run("pin", *words)
    assert (code, said in err) == (2, True), err


def test_another_digest_than_the_expected_one_changes_nothing(run: Any, origin: Origin) -> None:
    origin.put("/a.pt", OLD)
    run("add", "a", origin.url("/a.pt"))
    before = text()
    origin.put("/a.pt", NEW)
    assert run("pin", "--upgrade", "a", "--expect", sha256(OLD))[0] == 3
    assert text() == before
    assert run("pin", "--upgrade", "a", "--expect", sha256(NEW))[0] == 0
