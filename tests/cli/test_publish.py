"""`weightcache publish`: what it prints, and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from command_line import run
from support import directory, sha256
from trained import DATA, FILES
from weightcache import Manifest


def test_the_command(folder: Path, made: Path, root: Path, tmp_path: Path, capsys: Any) -> None:
    code, out, err = run(capsys, "publish", folder, "tag", "--root", root)
    assert code == 0
    checkpoint = Manifest.load(directory(FILES, name="tag"))["tag"]
    assert out == f"\n{checkpoint}\n"  # a file that lacks its last line end can be appended to as well
    assert err == f"weightcache: tag is at {root}/tag/{checkpoint.version}\n"
    code, more, err = run(capsys, "publish", made, "seg", "--root", root, "--json")
    assert (code, err) == (0, "")
    told = json.loads(more)
    assert set(told) == {"name", "path", "digest", "files", "warnings", "entry", "version", "command"}
    assert (told["name"], told["digest"]) == ("seg", sha256(DATA))
    assert told["files"] == {"model.bin": {"sha256": sha256(DATA), "size": len(DATA)}}
    assert Path(told["path"]).read_bytes() == DATA
    (tmp_path / "weights.toml").write_text(f"version = 1{out}{told['entry']}")  # as `>> weights.toml` has it
    assert run(capsys, "status", "-m", tmp_path / "weights.toml", "--root", root)[0] == 0


def test_the_exit_codes_of_the_command(made: Path, root: Path, capsys: Any, monkeypatch: Any) -> None:
    assert run(capsys, "publish", made, "a b", "--root", root)[0] == 2
    assert run(capsys, "publish", root.parent, "a", "--root", root)[0] == 2
    assert run(capsys, "publish", made, "--root", root)[0] == 2
    assert run(capsys, "publish", made, "a")[0] == 2
    code, out, _ = run(capsys, "publish", root / "nothing", "a", "--root", root, "--json")
    assert (code, json.loads(out)["error"]) == (5, "StorageError")
    monkeypatch.setenv("WEIGHTCACHE_ROOT", str(root))
    assert run(capsys, "publish", made, "a")[0] == 0
