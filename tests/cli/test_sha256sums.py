"""`add --sha256sums`: a list of digests is believed, and nothing is fetched."""

from __future__ import annotations

import os
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from hub import File, Hub
from origin import Origin
from pins import DATA
from support import quiet, sha256
from weightcache import Manifest, ManifestError
from weightcache.cli.sha256sums import read_sha256sums


def test_a_list_of_digests_is_believed_and_nothing_fetched(run: Any, origin: Origin, root: Path) -> None:
    files = {"config.json": b"{}", "a/model.bin": DATA}
    for path, data in files.items():
        origin.put(f"/w/{path}", data)
    Path("SUMS").write_text(
        f"# published\n{sha256(b'{}')} *./config.json\nSHA256 (a/model.bin) = {sha256(DATA).upper()}\n"
    )
    code, out, err = run("add", "both", origin.url("/w"), "--from-sha256sums", "SUMS")
    assert code == 0, err
    assert out.count("listed in SUMS") == 2
    assert origin.sent() < len(DATA)
    assert {path: quiet("weights.toml", root)["both"].joinpath(path).read_bytes() for path in files} == files
    assert run("add", "one", origin.url("/w/a/model.bin"), "--from-sha256sums", "SUMS", "--root", root)[0] == 0
    assert not Manifest.load("weights.toml")["one"].is_directory
    origin.put("/w/config.json", b"[]")
    Path("weights.toml").unlink()
    code, _, err = run("add", "both", origin.url("/w"), "--from-sha256sums", "SUMS", "--root", root.parent / "r2")
    assert (code, "delivers another config.json" in err) == (3, True)  # and the manifest says what was published


def test_of_two_files_with_one_name_the_list_tells_the_one_of_the_url(run: Any, origin: Origin) -> None:
    origin.put("/w/b/model.bin", DATA)
    Path("SUMS").write_bytes(b"\xef\xbb\xbf" + f"{'a' * 64}  a/model.bin\r\n{sha256(DATA)}  b/model.bin\r\n".encode())
    assert run("add", "right", origin.url("/w/b/model.bin?x=1"), "--from-sha256sums", "SUMS")[0] == 0
    assert Manifest.load("weights.toml")["right"].digest == sha256(DATA)
    code, _, err = run("add", "either", origin.url("/elsewhere/model.bin"), "--from-sha256sums", "SUMS")
    assert (code, "the list has a/model.bin and b/model.bin" in err) == (2, True), err


def test_a_list_of_digests_for_a_repository(run: Any, hub: Hub) -> None:
    commit = hub.push("acme/bert", "main", {"config.json": b"{}", "x/model.bin": File(DATA, lfs=True)})
    Path("SUMS").write_text(f"{sha256(DATA)}  x/model.bin\n")
    code, _, err = run("add", "bert", "hf://acme/bert", "--from-sha256sums", "SUMS")
    assert code == 0, err
    bert = Manifest.load("weights.toml")["bert"]
    assert (bert.urls, [file.path for file in bert.files]) == ((f"hf://acme/bert@{commit}",), ["x/model.bin"])


def test_of_a_list_of_digests_some_files_are_chosen(run: Any, origin: Origin, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in ("config.json", "a/vocab.json", "a/model.bin"):
        origin.put(f"/w/{path}", path.encode())
    listed = {path: sha256(path.encode()) for path in ("config.json", "a/vocab.json", "a/model.bin")}
    Path("SUMS").write_text("".join(f"{digest}  {path}\n" for path, digest in listed.items()))
    words = ("add", "d", origin.url("/w"), "--from-sha256sums", "SUMS")
    code, _, err = run(*words, "--include", "*.bin", "--exclude", "a/")
    assert (code, "none of the 3 file(s) in SUMS is selected by --include '*.bin' --exclude 'a/'" in err) == (2, True)
    code, _, err = run(*words, "--expect", listed["a/model.bin"], "--include", "*.bin")
    assert (code, "is not what was expected" in err) == (3, True), err  # of a directory of one file, not of a file
    one_file = ("add", "f", origin.url("/w/a/model.bin"), "--from-sha256sums", "SUMS", "--include", "*")
    assert "this is one file" in run(*one_file)[2]
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "huggingface_hub.utils", None)
        code, _, err = run(*words, "--include", "*.json")
        assert (code, "--include and --exclude need huggingface_hub" in err) == (2, True), err
        assert run(*words, "--print")[0] == 0
    assert run(*words, "--include", "*.json", "--exclude", "a/")[0] == 0
    assert [file.path for file in Manifest.load("weights.toml")["d"].files] == ["config.json"]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("abc  x\n", "line 1: want DIGEST  PATH, got 'abc  x'"),
        (f"{'a' * 64}  ../x\n{'b' * 64}  /y\n", "line 2: '/y' is absolute"),
        (f"{'a' * 64}  x\n{'b' * 64}  x\n", "line 2: a second digest for 'x'"),
        (f"\\{'a' * 64}  x\\ny\n", "line 1: want"),
        ("\n", "names no file"),
        (f"{'a' * 64}  x\n{'b' * 64}  X\n", "SUMS: 1 problem\n  checkpoints.b.files.'x': differs from 'X'"),
    ],
)
def test_a_list_that_cannot_be_used(lines: str, said: str, run: Any, origin: Origin) -> None:
    Path("SUMS").write_text(lines)
    code, _, err = run("add", "b", origin.url("/w"), "--from-sha256sums", "SUMS")
    assert (code, said in err, origin.requests, os.path.exists("weights.toml")) == (2, True, [], False), err
    assert run("add", "b", origin.url("/w"), "--from-sha256sums", "NONE")[0] == 2


def test_a_list_without_end(run: Any, origin: Origin) -> None:
    code, _, err = run("add", "b", origin.url("/w"), "--from-sha256sums", "/dev/zero")
    assert (code, "has more than 67,108,864 characters" in err) == (2, True), err


def test_what_is_no_list_is_not_told_line_by_line(run: Any, origin: Origin) -> None:
    """The campaign of random inputs found that the error of 40,000 short lines took 23 MB."""
    Path("SUMS").write_text(",\n" * 40_000)
    tracemalloc.start()
    with pytest.raises(ManifestError) as caught:
        read_sha256sums("SUMS")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(caught.value.problems) == 100
    assert caught.value.problems[-1] == "line 100 and those after it were not read"
    assert peak < 4 << 20
    code, _, err = run("add", "b", origin.url("/w"), "--from-sha256sums", "SUMS")
    assert (code, err.count("\n") < 110, "line 100 and those after" in err) == (2, True, True), err


def test_only_a_newline_ends_a_line(run: Any, origin: Origin) -> None:
    Path("SUMS").write_text(f"{'a' * 64}  a\u2028b\n", encoding="utf-8")
    code, _, err = run("add", "b", origin.url("/w"), "--from-sha256sums", "SUMS")
    assert (code, "line 1: 'a\\u2028b' " in err, "line 2" in err) == (2, True, False), err
