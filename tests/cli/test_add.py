"""`add`: what becomes an entry, where it comes from, and what is refused."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from hub import File, Hub
from origin import Origin
from pins import DATA, LARGE, text
from support import partials, quiet, sha256, visible
from weightcache import Manifest, ensure

TOKEN = "hf_SeCrEtSeCrEtSeCrEt"


def test_add_makes_a_manifest_that_ensure_takes(run: Any, origin: Origin, root: Path) -> None:
    origin.put("/w/a b.pt", DATA)
    code, out, err = run("add", "sam2", origin.url("/w/a%20b.pt?part=hush"))
    assert code == 0, err
    assert out == (
        "sam2: added to weights.toml\n"
        f"  a b.pt  300,001 bytes\n    sha256 {sha256(DATA)}\n    computed here from {origin.url('/w/a%20b.pt')}\n"
    )
    assert text() == (
        "version = 1\n\n[checkpoints.sam2]\n"
        f'urls = ["{origin.url("/w/a%20b.pt?part=hush")}"]\nfile = "a b.pt"\nsha256 = "{sha256(DATA)}"\nsize = 300001\n'
    )
    assert quiet("weights.toml", root)["sam2"].read_bytes() == DATA


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
    [told] = json.loads(run("add", "b", origin.url("/b.pt"), "--json", "-q")[1])["checkpoints"]
    assert (told["digest"], told["entry"]) == (sha256(DATA), out)
    assert told["files"]["b.pt"]["from"] == f"computed here from {origin.url('/b.pt')}"


@pytest.mark.usefixtures("one_connection")
def test_what_is_pinned_into_a_root_is_not_fetched_twice(run: Any, origin: Origin, root: Path) -> None:
    origin.put("/b.pt", LARGE)
    assert run("add", "b", origin.url("/b.pt"), "--root", root, "-q")[0] == 0
    assert visible(root) == [f"b/{sha256(LARGE)[:16]}/b.pt"]
    assert partials(root) == []
    assert origin.sent("/b.pt") == len(LARGE)
    assert quiet("weights.toml", root, offline=True).report["b"].outcome == "hit"
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
    weights = quiet("weights.toml", root, offline=True)
    assert {each.outcome for each in weights.report.values()} == {"hit"}
    assert (weights["sam-2"].read_bytes(), os.stat(weights["sam-2"]).st_nlink) == (DATA, 1)
    assert run("add", "all", "--from-dir", folder, "--root", root.parent / "r2", "--link")[0] == 0
    linked = ensure("weights.toml", root=root.parent / "r2", only=["all"], progress=False)["all"] / "sam 2.pt"
    assert os.stat(linked).st_ino == os.stat(folder / "sam 2.pt").st_ino


def test_links_lead_through_the_symbolic_links_of_a_hub_cache(run: Any, hub: Hub, root: Path, tmp_path: Path) -> None:
    from huggingface_hub import snapshot_download

    hub.push("acme/bert", "main", {"model.safetensors": File(DATA, lfs=True), "config.json": b"{}"})
    snapshot = Path(snapshot_download("acme/bert", cache_dir=tmp_path / "hub", endpoint=hub.url))
    assert (snapshot / "model.safetensors").is_symlink()
    assert run("add", "bert", "--from-dir", snapshot, "--root", root, "--link")[0] == 0
    bert = quiet("weights.toml", root, offline=True)["bert"]
    for name in ("model.safetensors", "config.json"):
        assert (bert / name).lstat().st_ino == (snapshot / name).stat().st_ino


@pytest.mark.parametrize("before", ["", "# ours\n"], ids=["made", "there"])
def test_the_manifest_and_the_root_in_a_directory_are_no_weights(before: str, run: Any) -> None:
    Path("x.pt").write_bytes(DATA)
    if before:
        Path("weights.toml").write_text(before)
    code, _, err = run("add", "--from-dir", ".", "--root", "root")
    assert code == 0, err
    assert [each.name for each in Manifest.load("weights.toml")] == ["x"]
    assert quiet("weights.toml", Path("root"), offline=True).report["x"].outcome == "hit"
    code, _, err = run("add", "all", "--from-dir", ".")
    assert (code, "would become part of all; put it elsewhere (-m)" in err) == (2, True), err


def test_two_names_that_would_be_one(run: Any) -> None:
    Path("mine").mkdir()
    for name in ("a.pt", "a.bin"):
        Path("mine", name).write_bytes(b"")
    assert "a.bin and a.pt in" in run("add", "--from-dir", "mine")[2]
    code, _, err = run("add", "--from-dir", "none")
    assert (code, "is not a directory" in err) == (2, True)


def test_a_directory_that_cannot_be_listed(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("mine").mkdir()

    def locked(path: str) -> list[str]:  # permissions do not hold for root
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    monkeypatch.setattr(os, "listdir", locked)
    code, _, err = run("add", "--from-dir", "mine")
    assert (code, f"cannot read {Path('mine').resolve()}: Permission denied" in err) == (5, True), err


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
