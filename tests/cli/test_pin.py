"""`add` and `pin`: what is found out, where it comes from, and that nothing else in a manifest changes."""

from __future__ import annotations

import json
import os
import re
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType, SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import weightcache
from hub import File, Hub
from origin import Origin, broken, other_bytes, stalled
from origin import status as answer
from support import blob, change_settings, partials, sha256, visible
from weightcache import Checkpoint, DownloadError, Manifest, ManifestError, ensure
from weightcache.cli import toml_edit
from weightcache.cli.hash_remote import CHUNK
from weightcache.cli.manifest_draft import Draft, HubUrl
from weightcache.cli.resolve_pins import complete
from weightcache.manifest.parse import parse_toml
from weightcache.manifest.validate import path_problem

DATA = blob(300_001)
LARGE = blob(3 * CHUNK + 17, seed=3)
TOKEN = "hf_SeCrEtSeCrEtSeCrEt"


def text() -> str:
    return Path("weights.toml").read_text()


def quiet(root: Path, **options: Any) -> Any:
    return ensure("weights.toml", root=root, progress=False, **options)


# add ---------------------------------------------------------------------------------------------------------------


def test_add_makes_a_manifest_that_ensure_takes(run: Any, origin: Origin, root: Path) -> None:
    origin.put("/w/a b.pt", DATA)
    code, out, err = run("add", "sam2", origin.url("/w/a%20b.pt?part=hush"))
    assert code == 0, err
    assert out == (
        "sam2: added to weights.toml\n"
        f"  a b.pt  300,001 bytes  {sha256(DATA)}\n    computed here from {origin.url('/w/a%20b.pt')}\n"
    )
    assert text() == (
        "version = 1\n\n[checkpoints.sam2]\n"
        f'urls = ["{origin.url("/w/a%20b.pt?part=hush")}"]\nfile = "a b.pt"\nsha256 = "{sha256(DATA)}"\nsize = 300001\n'
    )
    assert quiet(root)["sam2"].read_bytes() == DATA


@pytest.mark.parametrize(
    ("before", "query", "told"),
    [
        ("u:hush@", "", "~/.netrc"),
        ("", "?part=1&Sig=hush", "Sig=${VARIABLE}"),
        ("", "?token=hush", "token=${VARIABLE}"),
    ],
)
def test_add_writes_no_secret(before: str, query: str, told: str, run: Any, origin: Origin) -> None:
    origin.put("/a.pt", DATA)
    code, out, err = run("add", "sam2", origin.url(f"/a.pt{query}").replace("//", f"//{before}"))
    assert (code, out) == (2, "")
    assert told in err
    assert "hush" not in err
    assert not Path("weights.toml").exists()
    assert origin.requests == []


def test_add_appends_and_leaves_the_rest_as_it_is(run: Any, origin: Origin) -> None:
    before = (
        '# ours\nversion = 1  # one\n\n[checkpoints."a.b"]   # first\nurls = [\n  # none\n]\nsha256 = "'
        + "a" * 64
        + '"'
    )
    Path("weights.toml").write_text(before)
    os.chmod("weights.toml", 0o640)
    Path("link.toml").symlink_to("weights.toml")
    origin.put("/b.pt", DATA)
    assert run("add", "b", origin.url("/b.pt"), "-m", "link.toml")[0] == 0
    assert text().startswith(f"{before}\n\n[checkpoints.b]\n")
    assert Path("link.toml").is_symlink()
    assert stat.S_IMODE(os.stat("weights.toml").st_mode) == 0o640
    code, _, err = run("add", "b", origin.url("/b.pt"))
    assert (code, "already declares b; `weightcache pin`" in err) == (2, True)
    Path("weights.toml").write_bytes(text().replace("\n", "\r\n").encode())
    assert run("add", "c", origin.url("/b.pt"), "--file", "c.pt", "--auth", "TOK")[0] == 3
    os.environ["TOK"] = "x"
    try:
        assert run("add", "c", origin.url("/b.pt"), "--file", "c.pt", "--auth", "TOK")[0] == 0
    finally:
        del os.environ["TOK"]
    raw = Path("weights.toml").read_bytes()
    assert raw.count(b"\r\n") == raw.count(b"\n")
    assert (Manifest.load("weights.toml")["c"].auth, Manifest.load("weights.toml")["c"].files[0].path) == (
        "TOK",
        "c.pt",
    )


def test_add_prints_and_writes_nothing(run: Any, origin: Origin) -> None:
    origin.put("/b.pt", DATA)
    code, out, err = run("add", "b", origin.url("/b.pt"), "--print", "--quiet")
    assert code == 0
    assert out.startswith("[checkpoints.b]\nurls = [")
    assert "b: pinned\n" in err
    assert os.listdir() == []
    [told] = json.loads(run("add", "b", origin.url("/b.pt"), "--json", "-q")[1])
    assert (told["digest"], told["entry"]) == (sha256(DATA), out)
    assert told["files"]["b.pt"]["from"] == f"computed here from {origin.url('/b.pt')}"


@pytest.mark.usefixtures("one_connection")
def test_what_is_pinned_into_a_root_is_not_fetched_twice(run: Any, origin: Origin, root: Path) -> None:
    origin.put("/b.pt", LARGE)
    assert run("add", "b", origin.url("/b.pt"), "--root", root, "-q")[0] == 0
    assert visible(root) == [f"b/{sha256(LARGE)[:16]}/b.pt"]
    assert partials(root) == []
    assert origin.sent("/b.pt") == len(LARGE)
    assert quiet(root, offline=True).report["b"].outcome == "hit"
    assert run("add", "gone", origin.url("/gone"), "--root", root, "-q")[0] == 3
    assert partials(root) == []
    assert run("add", "gone", origin.url("/gone"), "--root", root.parent / "new", "-q")[0] == 3
    assert not (root.parent / "new" / ".weightcache").exists()


def test_anything_else_than_what_is_expected_is_refused(run: Any, origin: Origin) -> None:
    origin.put("/b.pt", DATA)
    code, _, err = run("add", "b", origin.url("/b.pt"), "--expect", "0" * 64)
    assert (code, f"expected {'0' * 64}\n  actual   {sha256(DATA)}" in err, os.listdir()) == (3, True, [])
    assert run("add", "b", origin.url("/b.pt"), "--expect", sha256(DATA).upper())[0] == 0


@pytest.mark.parametrize(
    ("digits", "code"),
    [("", 0), ("5c106cde", 3), ("20240131", 0), ("deadbee", 0)],
    ids=["right", "wrong", "a date", "too few"],
)
def test_the_digits_in_a_name_of_torch_hub(digits: str, code: int, run: Any, origin: Origin) -> None:
    path = f"/net-{digits or sha256(DATA)[:8]}.pth"
    origin.put(path, DATA)
    found, out, err = run("add", "b", origin.url(path))
    assert found == code, err
    assert ("agrees" in out) == (not digits)
    assert ("has a name that says its sha256 begins with 5c106cde" in err) == bool(code)
    if code:
        assert run("add", "b", origin.url(path), "--expect", sha256(DATA))[0] == 0


def test_every_mirror_must_have_the_same_length(run: Any, origin: Origin, mirror: Origin) -> None:
    for server in (origin, mirror):
        server.put("/b.pt", DATA)
    assert run("add", "b", origin.url("/b.pt"), mirror.url("/b.pt"))[0] == 0
    assert mirror.sent() < len(DATA)  # asked, not fetched
    mirror.put("/b.pt", DATA[:-1])
    code, _, err = run("add", "c", origin.url("/b.pt"), mirror.url("/b.pt"))
    assert (code, "expected 300001 bytes\n  actual   300000 bytes" in err) == (3, True)
    assert "c" not in [each.name for each in Manifest.load("weights.toml")]
    code, _, err = run("add", "d", origin.url("/gone"), origin.url("/b.pt"))
    assert (code, f"{origin.url('/gone')} does not deliver gone: HTTP 404" in err) == (0, True), err


@pytest.mark.parametrize(
    ("before", "name", "said"),
    [
        ("{entry}", "sam2", "already declares sam2"),
        ("{entry}", "SAM2", "checkpoints.SAM2: differs from checkpoints.sam2 only in case"),
        ("version = 2\n", "a", "reads version 1, got 2"),
        ("colour = 3\n", "a", "colour: unknown key"),
        ("checkpoints = []\n", "a", "want a table, got an array"),
        (
            "checkpoints = {{ z = {{ urls = [], sha256 = '{zeros}' }} }}\n",
            "a",
            "cannot be changed so that it stays TOML",
        ),
    ],
)
def test_what_cannot_be_added_is_refused_before_anything_is_downloaded(
    before: str, name: str, said: str, run: Any, origin: Origin
) -> None:
    origin.put("/b.pt", DATA)
    before = before.format(entry=f'[checkpoints.sam2]\nurls = []\nsha256 = "{"0" * 64}"\n', zeros="0" * 64)
    Path("weights.toml").write_text(before)
    code, _, err = run("add", name, origin.url("/b.pt"))
    assert (code, said in err, origin.requests, text()) == (2, True, [], before), err


def test_a_manifest_that_is_no_regular_file_is_not_replaced(run: Any, origin: Origin) -> None:
    """Such as /dev/null, which a rename would make a file."""
    origin.put("/b.pt", DATA)
    os.mkfifo("weights.toml")
    code, _, err = run("add", "b", origin.url("/b.pt"))  # nor opened, which would wait for ever
    assert (code, "is not a regular file" in err, origin.requests) == (2, True, []), err
    assert stat.S_ISFIFO(os.stat("weights.toml").st_mode)
    reading, writing = os.pipe()
    os.write(writing, b"[checkpoints.b]\nurls = []\n")
    os.close(writing)
    assert run("pin", "--check", "-m", f"/dev/fd/{reading}")[:2] == (1, "WARN  b  the sha256 of b\n")
    os.close(reading)


def test_an_empty_file(run: Any, origin: Origin) -> None:
    origin.put("/empty", b"")
    urls = [origin.url("/empty"), origin.url("/empty?again")]
    assert run("add", "e", *urls, "--expect", sha256(b""))[0] == 0
    assert Manifest.load("weights.toml")["e"].size == 0


FAULTS: dict[str, Any] = {
    "breaks off": [broken(CHUNK + 5), broken(2 * CHUNK)],
    "stumbles": [answer(503), broken(10), answer(429, {"Retry-After": "0"})],
    "changes": [broken(2 * CHUNK), other_bytes(LARGE, '"another"')],
}


@pytest.mark.parametrize("faults", FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize("etag", ['"strong"', None])
def test_a_pin_is_of_one_whole_file(faults: list[Any], etag: str | None, run: Any, origin: Origin, root: Path) -> None:
    origin.put("/b.pt", LARGE, faults=list(faults), etag=etag)
    code, _, err = run("add", "b", origin.url("/b.pt"), "--root", root)
    assert code == 0, err
    assert Manifest.load("weights.toml")["b"].digest == sha256(LARGE)
    assert quiet(root, offline=True)["b"].read_bytes() == LARGE


def test_bytes_of_two_versions_are_not_joined(run: Any, origin: Origin) -> None:
    """Without a strong ETag nothing says that the rest belongs to what came before."""
    origin.put("/b.pt", LARGE, faults=[broken(CHUNK), other_bytes(bytes(len(LARGE)))], etag=None)
    assert run("add", "b", origin.url("/b.pt"))[0] == 0
    assert Manifest.load("weights.toml")["b"].digest in (sha256(LARGE), sha256(bytes(len(LARGE))))


def test_a_part_that_nobody_asked_for_is_not_asked_for_again_for_ever(run: Any, origin: Origin) -> None:
    part = {"Content-Range": f"bytes 0-{len(DATA) - 1}/{len(DATA)}"}
    origin.put("/b.pt", DATA, faults=[answer(206, part, DATA)] * 3, always=answer(404))
    code, _, err = run("add", "b", origin.url("/b.pt"))
    assert (code, "HTTP 206 with Content-Range" in err, len(origin.requests)) == (3, True, 1), err


@pytest.mark.parametrize("length", [True, False])
def test_a_mirror_of_another_length_is_left_as_soon_as_it_shows(length: bool, run: Any, origin: Origin) -> None:
    longer = blob(40 * CHUNK)
    origin.put("/b.pt", longer, length=length)
    entry = f'[checkpoints.b]\nurls = ["{origin.url("/b.pt")}"]\nsize = {CHUNK}\n'
    Path("weights.toml").write_text(entry)
    code, _, err = run("pin")
    assert (code, f"wrong bytes: expected {CHUNK} bytes, got" in err, text()) == (3, True, entry), err
    assert origin.sent() < len(longer)
    origin.put("/c.pt", longer[:CHUNK])
    Path("weights.toml").write_text(entry.replace("urls = [", f'urls = ["{origin.url("/c.pt")}", '))
    assert "expected 1048576 bytes\n  actual   " in run("pin")[2] or length is False
    Path("weights.toml").write_text(entry.replace('"]', f'", "{origin.url("/c.pt")}"]'))
    origin.files["/b.pt"].always = answer(404)
    assert run("pin")[0] == 0
    assert Manifest.load("weights.toml")["b"].digest == sha256(longer[:CHUNK])


def test_a_mirror_that_never_delivers_the_end(run: Any, origin: Origin) -> None:
    origin.put("/b.pt", LARGE, always=broken(CHUNK), etag=None)
    code, _, err = run("add", "b", origin.url("/b.pt"))
    assert (code, "cannot be pinned, no mirror delivered it" in err, os.listdir()) == (3, True, [])


def test_what_a_disk_took_half_of_is_not_taken_for_whole(run: Any, origin: Origin, small_disk: Path) -> None:
    """The last write of a file may be cut short without an error; there is no next one to fail."""
    origin.put("/b.pt", blob(8 * CHUNK + 100))
    code, _, err = run("add", "b", origin.url("/b.pt"), "--root", small_disk / "root")
    assert (code, "kept: the disk is full" in err, os.listdir()) == (5, True, []), err


def test_a_length_that_was_not_announced_is_told(run: Any, origin: Origin) -> None:
    def unannounced(exchange: Any) -> None:
        exchange.head(200, {"Connection": "close"})
        exchange.body(DATA)

    origin.put("/b.pt", DATA, always=unannounced)
    code, out, _ = run("add", "b", origin.url("/b.pt"))
    assert (code, "the server announced no length: check that the file is complete" in out) == (0, True)


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
    assert {path: quiet(root)["both"].joinpath(path).read_bytes() for path in files} == files
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


def test_a_directory_of_weights_becomes_entries(run: Any, root: Path) -> None:
    folder = Path("mine")
    (folder / "bert" / "deep").mkdir(parents=True)
    (folder / "sam 2.pt").write_bytes(DATA)
    (folder / "bert" / "deep" / "x.bin").write_bytes(b"x")
    (folder / ".hidden").write_bytes(b"")
    code, out, err = run("add", "--from-dir", folder)
    assert code == 0, err
    assert out.count("computed here") == 2
    manifest = Manifest.load("weights.toml")
    assert [(each.name, each.urls, each.is_directory) for each in manifest] == [
        ("bert", (), True),
        ("sam-2", (), False),
    ]
    Path("weights.toml").unlink()
    assert run("add", "--from-dir", folder, "--root", root)[0] == 0
    weights = quiet(root, offline=True)
    assert {each.outcome for each in weights.report.values()} == {"hit"}
    assert (weights["sam-2"].read_bytes(), os.stat(weights["sam-2"]).st_nlink) == (DATA, 1)
    assert run("add", "all", "--from-dir", folder, "--root", root.parent / "r2", "--link")[0] == 0
    linked = ensure("weights.toml", root=root.parent / "r2", only=["all"], progress=False)["all"] / "sam 2.pt"
    assert os.stat(linked).st_ino == os.stat(folder / "sam 2.pt").st_ino


@pytest.mark.parametrize("before", ["", "# ours\n"], ids=["made", "there"])
def test_the_manifest_and_the_root_in_a_directory_are_no_weights(before: str, run: Any) -> None:
    Path("x.pt").write_bytes(DATA)
    if before:
        Path("weights.toml").write_text(before)
    code, _, err = run("add", "--from-dir", ".", "--root", "root")
    assert code == 0, err
    assert [each.name for each in Manifest.load("weights.toml")] == ["x"]
    assert quiet(Path("root"), offline=True).report["x"].outcome == "hit"
    code, _, err = run("add", "all", "--from-dir", ".")
    assert (code, "would become part of all; put it elsewhere (-m)" in err) == (2, True), err


def test_two_names_that_would_be_one(run: Any) -> None:
    Path("mine").mkdir()
    for name in ("a.pt", "a.bin"):
        Path("mine", name).write_bytes(b"")
    assert "a.bin and a.pt in" in run("add", "--from-dir", "mine")[2]
    code, _, err = run("add", "--from-dir", "none")
    assert (code, "is not a directory" in err) == (2, True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["add"], "want NAME and URL"),
        (["add", "a"], "want NAME and URL"),
        (["add", "a b", "https://h/x"], "a name is 1 to 100 of"),
        (["add", "a", "s3://b/k"], "want https, http, file or hf"),
        (["add", "a", "https://h/x", "--link"], "--link needs --from-dir"),
        (["add", "a", "https://h/x", "--from-dir", "."], "--from-dir cannot be combined with URL"),
        (["add", "--from-dir", ".", "--link"], "--link needs --root"),
        (["add", "a", "https://h/x", "--include", "*"], "--include and --exclude select files"),
        (["pin", "--expect", "a" * 64], "there is no such file"),
        (["add", "a", "https://h/x", "--expect", "abc"], "--expect: want 64 lower-case hex digits"),
        (["add", "a", "https://h/x", "-m", "none/weights.toml"], "there is no directory"),
        (["add", "--from-dir", ".", "--auth", "TOKEN"], "--from-dir cannot be combined with --auth"),
        (["pin", "--expect", "abc"], "--expect: want 64 lower-case hex digits"),
        (["pin", "--check-upstream", "--expect", "a" * 64], "there is no such file"),
    ],
)
def test_misuse(words: list[str], said: str, run: Any) -> None:
    code, out, err = run(*words)
    assert (code, out, said in err) == (2, "", True), err
    assert os.listdir() == []


# the Hub -----------------------------------------------------------------------------------------------------------

MODEL = File(DATA, lfs=True)
FILES: dict[str, Any] = {
    "config.json": b"{}\n",
    "model.safetensors": MODEL,
    "onnx/model.onnx": File(b"o" * 50, lfs=True),
}


def test_a_repository_of_the_hub(run: Any, hub: Hub, root: Path) -> None:
    commit = hub.push("acme/bert", "main", FILES)
    code, out, err = run("add", "bert", "hf://acme/bert@main", "--exclude", "onnx/*")
    assert code == 0, err
    assert out.count("published by the Hub (acme/bert)") == 1
    assert f"computed here from {hub.url}/acme/bert/resolve/{commit}/config.json" in out
    bert = Manifest.load("weights.toml")["bert"]
    assert bert.urls == (f"hf://acme/bert@{commit}",)
    assert {file.path: (file.sha256, file.size) for file in bert.files} == {
        "config.json": (sha256(b"{}\n"), 3),
        "model.safetensors": (sha256(DATA), len(DATA)),
    }
    assert not [each for each in hub.seen if each.host == "cdn"]  # what the Hub publishes is not downloaded
    assert (quiet(root)["bert"] / "model.safetensors").read_bytes() == DATA


def test_one_file_and_a_folder_of_a_repository(run: Any, hub: Hub, root: Path) -> None:
    hub.push("gpt2", "main", FILES)
    commit = hub.push("gpt2", "next", {"config.json": b"[]"})
    assert run("add", "one", "hf://gpt2@next/config.json")[0] == 0
    assert run("add", "onnx", "hf://gpt2@main/onnx", "--root", root)[0] == 0
    manifest = Manifest.load("weights.toml")
    assert (manifest["one"].is_directory, manifest["one"].urls) == (False, (f"hf://gpt2@{commit}/config.json",))
    assert [file.path for file in manifest["onnx"].files] == ["model.onnx"]
    weights = quiet(root)
    assert (weights["one"].read_bytes(), (weights["onnx"] / "model.onnx").read_bytes()) == (b"[]", b"o" * 50)


def test_a_private_repository_is_pinned_and_fetched_with_the_users_token_which_stays_at_the_hub(
    run: Any, hub: Hub, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.create("acme/secret", private=True)
    hub.grant(TOKEN, "acme/secret")
    hub.push("acme/secret", "main", FILES)
    code, _, err = run("add", "s", "hf://acme/secret")
    assert (code, "is private, and no token was sent" in err, "HF_TOKEN (or run `hf auth login`)" in err) == (
        3,
        True,
        True,
    )
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    code, out, err = run("add", "s", "hf://acme/secret")
    assert code == 0, err
    quiet(root)
    assert {each.authorization for each in hub.seen if each.host == "cdn"} == {None}
    assert {each.authorization for each in hub.seen[-4:] if each.host == "hub"} == {f"Bearer {TOKEN}"}
    assert TOKEN not in text() + out + err


@pytest.mark.parametrize("granted", [False, True])
def test_a_gated_repository(granted: bool, run: Any, hub: Hub, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.create("acme/gated", gated=True)
    commit = hub.push("acme/gated", "main", FILES)
    hub.grant(TOKEN, *(["acme/gated"] if granted else []))
    monkeypatch.setenv("MY_TOKEN", TOKEN)
    code, _, err = run("add", "g", "hf://acme/gated", "--auth", "MY_TOKEN")
    assert code == (0 if granted else 3)
    if granted:
        assert quiet(root).report["g"].outcome == "downloaded"
        return
    assert "the token from MY_TOKEN was sent" in err
    assert f"accept its licence at {hub.url}/acme/gated" in err
    entry = {"urls": [f"hf://acme/gated@{commit}/model.safetensors"], "sha256": sha256(DATA), "auth": "MY_TOKEN"}
    with pytest.raises(DownloadError, match="is gated") as caught:
        ensure({"checkpoints": {"g": entry}}, root=root, progress=False)
    assert f"accept its licence at {hub.url}/acme/gated" in str(caught.value)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("hf://acme/none", "/acme/none does not exist, or is private"),
        ("hf://acme/bert@v9", "/acme/bert has no revision 'v9'"),
        ("hf://acme/bert@main/none.bin", "/acme/bert has no none.bin at "),
    ],
)
def test_what_the_hub_does_not_have(url: str, said: str, run: Any, hub: Hub) -> None:
    hub.push("acme/bert", "main", FILES)
    code, _, err = run("add", "x", url)
    assert (code, said in err, os.listdir()) == (3, True, []), err


def test_a_hub_that_is_away(run: Any, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    code, _, err = run("add", "x", "hf://acme/bert")
    assert (code, "http://127.0.0.1:9 cannot be reached" in err) == (3, True), err


@pytest.mark.parametrize(
    ("times", "path"), [(1, "/revision/"), (6, "/tree/")], ids=["the commit", "the files, asked for six times"]
)
@pytest.mark.parametrize(
    ("without", "hint"),
    [
        ([], "try again in 55 seconds"),
        (["RateLimit"], "try again in 55 seconds"),
        (["Retry-After"], "try again in 55 seconds"),
        (["RateLimit", "Retry-After"], "try again"),
    ],
    ids=["both headers", "Retry-After", "RateLimit", "neither"],
)
def test_a_hub_that_is_asked_too_often_says_when_to_try_again(
    times: int, path: str, without: list[str], hint: str, run: Any, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub.utils import _http

    slept: list[float] = []
    monkeypatch.setattr(_http, "time", SimpleNamespace(sleep=slept.append))  # the client would, between its own tries
    hub.push("acme/bert", "main", FILES)
    hub.fail(times, path=path, wait=55)
    for name in without:
        del hub._faults[0][1].answer.headers[name]  # it is one for all times
    code, _, err = run("add", "x", "hf://acme/bert")
    assert (code, os.listdir()) == (3, [])
    assert err.endswith(f"{hub.url}/acme/bert: HTTP 429\n  hint: nothing was changed; {hint}\n")
    assert len(slept) == times - 1
    assert run("add", "x", "hf://acme/bert")[0] == 0


def test_files_of_a_hub_that_is_asked_too_often_are_asked_for_again(run: Any, hub: Hub) -> None:
    hub.push("acme/bert", "main", FILES)
    hub.fail(2, path="/resolve/")
    hub.fail(1, status=503, path="/resolve/")
    code, out, err = run("add", "x", "hf://acme/bert", "--include", "config.json")
    assert code == 3, err  # three in a row are enough
    assert "HTTP 503" in err
    hub.fail(2, path="/resolve/")
    code, out, err = run("add", "x", "hf://acme/bert", "--include", "config.json")
    assert (code, "computed here from" in out) == (0, True), err


def test_a_file_that_git_calls_otherwise_is_not_pinned(run: Any, hub: Hub) -> None:
    commit = hub.push("acme/bert", "main", {"config.json": b"{}\n"})
    hub.repositories["acme/bert"].commits[commit]["config.json"].oid = "0" * 40
    code, _, err = run("add", "x", "hf://acme/bert")
    assert (code, "expected Git's 0000" in err, os.listdir()) == (3, True, [])


def said_by(hub: Hub, monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    """Let the Hub say something else than it would: ``change`` gets each answer, decoded."""
    route = hub._route

    def changed(*words: Any) -> Any:
        said = route(*words)
        if said.headers.get("Content-Type", "").startswith("application/json"):
            said.body = json.dumps(change(json.loads(said.body))).encode()
        return said

    monkeypatch.setattr(hub, "_route", changed)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("path", "../../../evil", "has an empty, `.` or `..` segment"),
        ("path", "/evil", "is absolute"),
        ("path", "evil\x1b[31m", "holds a control"),
        ("path", "CONFIG.json", "only in case"),
        ("size", -1, "want a number of bytes"),
        ("lfs", {"oid": "../evil", "size": 1, "pointerSize": 1}, "want 64 lower-case hex digits"),
    ],
)
@pytest.mark.parametrize("more", [[], ["--print"]])
def test_what_a_repository_lists_is_held_against_the_rules(
    key: str, value: Any, said: str, more: list[str], run: Any, hub: Hub, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --print no manifest is written that would refuse it, and --root would publish it."""
    hub.push("acme/bert", "main", {"config.json": b"{}", "evil.bin": File(DATA, lfs=True)})

    def change(answer: Any) -> Any:
        if isinstance(answer, list):
            answer[-1][key] = value
        return answer

    said_by(hub, monkeypatch, change)
    code, out, err = run("add", "x", "hf://acme/bert", "--root", root, *more)
    assert (code, out, said in err, os.listdir()) == (2, "", True, []), err
    assert "\x1b" not in err
    assert visible(root) == []
    assert run("add", "x", "hf://acme/bert", "--include", "config.json", *more)[0] == 0


@pytest.mark.parametrize(
    "answer",
    ["<html>", None, [], {"id": "x"}, {"id": "acme/bert", "sha": "main"}, {"id": "x", "sha": "0", "lastModified": "?"}],
    ids=str,
)
def test_answers_that_are_none_of_the_hubs(answer: Any, run: Any, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a proxy that wants somebody to log in."""
    hub.push("acme/bert", "main", FILES)
    said_by(hub, monkeypatch, lambda _: answer)
    code, _, err = run("add", "x", "hf://acme/bert")
    assert (code, f"{hub.url} sent a response that is not from the Hub" in err) == (3, True), err


def test_a_password_in_the_address_of_the_hub_is_not_shown(
    run: Any, hub: Hub, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.push("acme/bert", "main", FILES)
    for address in (hub.url, "http://127.0.0.1:9"):
        monkeypatch.setenv("HF_ENDPOINT", address.replace("://", "://user:SeCrEt@"))
        code, out, err = run("add", "x", "hf://acme/bert@none")
        assert (code, address in err, "SeCrEt" in out + err) == (3, True, False), err
        entry = {"urls": [f"hf://acme/bert@{'0' * 40}/x"], "sha256": "0" * 64}
        with pytest.raises(DownloadError) as caught:
            ensure({"checkpoints": {"x": entry}}, root=root, progress=False)
        assert "SeCrEt" not in str(caught.value)


# pin ---------------------------------------------------------------------------------------------------------------


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
    assert quiet(root, only=["a", "d", "bert"]).report["bert"].outcome == "downloaded"


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
    assert quiet(root, offline=True).report["a"].outcome == "hit"
    assert run("pin", "a", "--expect", "0" * 64)[0] == 3
    assert run("pin", "none")[0] == 2


def test_what_moved_upstream(run: Any, origin: Origin, hub: Hub) -> None:
    commit = hub.push("acme/bert", "main", FILES)
    origin.put("/a.pt", DATA)
    assert (
        run("add", "a", origin.url("/a.pt"))[0] == run("add", "bert", "hf://acme/bert", "--include", "*.json")[0] == 0
    )
    assert run("pin", "--check-upstream")[:2] == (0, "ok  nothing moved\n")
    hub.push("acme/bert", "main", {"README.md": b"news", "model.safetensors": File(b"other", lfs=True)})
    assert run("pin", "--check-upstream")[0] == 0  # nothing that is declared
    moved = hub.push("acme/bert", "main", {"config.json": b"[]"})
    origin.put("/a.pt", DATA[:-1])
    code, out, _ = run("pin", "--check-upstream")
    assert (code, out.splitlines()) == (
        1,
        [
            f"WARN  a     {origin.url('/a.pt')} has a.pt with 300000 bytes, 300001 are pinned",
            f"WARN  bert  acme/bert has other bytes of config.json at main ({moved})",
        ],
    )
    hub.push("acme/bert", "main", {"config.json": None})
    origin.put("/a.pt", b"", always=answer(404))
    rows = json.loads(run("pin", "--check-upstream", "--json")[1])
    assert "does not deliver a.pt: HTTP 404" in rows[0]["moved"][0]
    assert "has no config.json at main" in rows[1]["moved"][0]
    del hub.repositories["acme/bert"]
    assert "does not exist, or is private" in run("pin", "bert", "--check-upstream")[1]
    assert commit in text()


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


def test_a_stalled_mirror_is_left_for_the_next(run: Any, origin: Origin, mirror: Origin, monkeypatch: Any) -> None:
    change_settings(monkeypatch, connect_timeout=5.0, stall_timeout=0.2)
    origin.put("/b.pt", LARGE, always=stalled(CHUNK), etag=None)
    mirror.put("/b.pt", LARGE)
    code, out, _ = run("add", "b", origin.url("/b.pt"), mirror.url("/b.pt"))
    assert (code, f"computed here from {mirror.url('/b.pt')}" in out) == (0, True)


# Properties --------------------------------------------------------------------------------------------------------

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


PATTERNS = st.lists(
    st.sampled_from(
        ["*", "*.json", "onnx/", "onnx/*", "*/*", "model?safetensors", "[cm]*", "config.json", "*.bin", "**"]
    ),
    max_size=2,
)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(include=PATTERNS, exclude=PATTERNS)
def test_globs_select_what_the_hubs_own_client_selects(
    include: list[str], exclude: list[str], hub: Hub, tmp_path: Path
) -> None:
    from huggingface_hub import snapshot_download

    hub.push("acme/globs", "main", FILES)
    with TemporaryDirectory(dir=tmp_path) as folder:
        theirs = snapshot_download(
            "acme/globs",
            local_dir=folder,
            endpoint=hub.url,
            allow_patterns=include or None,
            ignore_patterns=exclude or None,
        )
        files = {str(path.relative_to(theirs)) for path in Path(theirs).rglob("*") if path.is_file()}
        files = {path for path in files if not path.startswith(".cache")}
    draft = Draft("globs", ["hf://acme/globs"], None, is_directory=True, knows_files=False)
    if not files:
        with pytest.raises(ValueError, match="is selected by"):
            complete(draft, include=include, exclude=exclude, quiet=True)
        return
    complete(draft, include=include, exclude=exclude, quiet=True)
    assert set(draft.pins) == files
