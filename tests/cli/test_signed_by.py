"""`add --signed-by` and `verify --signed-by`: only what a key signed becomes an entry, or is called right."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from hub import File, Hub
from origin import Origin
from origin import status as answer
from pins import text
from signing import KEY, OTHER, bundle, pem, signer, write_key
from support import partials, quiet, sha256, visible
from weightcache import Manifest

FILES = {"config.json": b'{"a": 1}\n', "model.safetensors": b"w" * 3000, "unet/model.safetensors": b"u" * 100}
LFS = {path: File(data, lfs=path.endswith(".safetensors")) for path, data in FILES.items()}
ADD = ("add", "bert", "hf://acme/bert", "--signed-by", "release.pem", "-q")
REAL = Path(__file__).resolve().parents[1] / "data" / "model_signing"
TOKEN = "SeCrEtSeCrEtSeCrEt"


def publish(hub: Hub, more: dict[str, Any] | None = None) -> str:
    """A repository whose files are signed; return its commit."""
    write_key()
    return hub.push("acme/bert", "main", {**LFS, "model.sig": bundle(FILES), ".gitattributes": b"*", **(more or {})})


def serve(origin: Origin, files: dict[str, bytes], signature: bytes) -> None:
    write_key()
    for path, data in {**files, "model.sig": signature}.items():
        origin.put(f"/m/{path}", data)


def refused(run: Any, *words: Any, code: int = 3) -> str:
    """What a command says that fails and writes nothing."""
    before = text() if Path("weights.toml").exists() else None
    got, out, err = run(*words)
    assert (got, out, text() if Path("weights.toml").exists() else None) == (code, "", before), err
    return str(err)


def test_a_signed_repository(run: Any, hub: Hub, root: Path) -> None:
    commit = publish(hub)
    code, out, err = run(*ADD, "--root", root)
    assert (code, err) == (0, "")
    [bert] = Manifest.load("weights.toml")
    assert bert.urls == (f"hf://acme/bert@{commit}",)
    assert {file.path: (file.sha256, file.size) for file in bert.files} == {
        path: (sha256(data), len(data)) for path, data in FILES.items()
    }
    assert bert.signed_by == signer()
    assert f"  signed by {signer()}\n" in out
    assert "published by the Hub (acme/bert); signed\n" in out
    assert f'signed_by = "{signer()}"\n[checkpoints.bert.files]\n' in text()
    assert quiet("weights.toml", root, offline=True).report["bert"].outcome == "hit"
    assert [each.path for each in hub.seen if "model.sig" in each.path] == [f"/acme/bert/resolve/{commit}/model.sig"]


def test_the_result_says_who_signed(run: Any, hub: Hub) -> None:
    publish(hub)
    [row] = json.loads(run(*ADD, "--json")[1])["checkpoints"]
    assert (row["signed_by"], row["files"]["config.json"]["from"][-8:]) == (signer(), "; signed")
    [unsigned] = json.loads(run("add", "other", "hf://acme/bert", "-q", "--json")[1])["checkpoints"]
    assert (unsigned["signed_by"], Manifest.load("weights.toml")["other"].signed_by) == (None, None)


@pytest.mark.parametrize("path", ["model.safetensors", "config.json"], ids=["the digest of the Hub", "a download"])
def test_a_file_that_was_changed_after_it_was_signed(path: str, run: Any, hub: Hub, root: Path) -> None:
    publish(hub, {path: File(b"evil", lfs=path != "config.json")})
    err = refused(run, *ADD, "--root", root)
    assert f"checkpoint bert: {path} is not the file that " in err
    assert f"expected {sha256(FILES[path])}\n  actual   {sha256(b'evil')}" in err
    assert (visible(root), partials(root)) == ([], [])


def test_a_mirror_that_sends_other_bytes(run: Any, origin: Origin, root: Path) -> None:
    serve(origin, {**FILES, "config.json": b"<!doctype html><html>"}, bundle(FILES))
    err = refused(run, "add", "m", origin.url("/m"), "--signed-by", "release.pem", "--root", root)
    assert "config.json is not the file that" in err
    assert "it is an HTML page" in err
    assert (visible(root), partials(root)) == ([], [])


def test_a_host_that_is_busy_for_a_moment(run: Any, origin: Origin) -> None:
    serve(origin, FILES, b"")
    origin.put("/m/model.sig", bundle(FILES), faults=[answer(503)])
    assert run("add", "m", origin.url("/m"), "--signed-by", "release.pem")[0] == 0


def test_a_mirror_that_answers_with_a_page_for_a_login(run: Any, origin: Origin, mirror: Origin, root: Path) -> None:
    serve(origin, FILES, bundle(FILES))
    assert run("add", "m", origin.url("/m"), "--signed-by", "release.pem", "--root", root)[0] == 0
    Path("weights.toml").write_text(text().replace('urls = ["', f'urls = ["{mirror.url("/login")}", "'))
    mirror.put("/login/model.sig", b"<!doctype html><html>")
    verify = ("verify", "--root", root, "--signed-by", "release.pem")
    code, out, err = run(*verify)
    assert (code, f"signed by {signer()}" in out) == (0, True), err
    del origin.files["/m/model.sig"]
    assert "model.sig: it is not JSON, as a signature is" in run(*verify)[2]


def test_files_that_are_signed_and_not_there(run: Any, hub: Hub, origin: Origin) -> None:
    publish(hub, {"config.json": None})
    assert "config.json at hf://acme/bert@" in (err := refused(run, *ADD))
    assert "actual   missing" in err
    serve(origin, {path: data for path, data in FILES.items() if path != "config.json"}, bundle(FILES))
    err = refused(run, "add", "m", origin.url("/m"), "--signed-by", "release.pem")
    assert "config.json cannot be pinned, no mirror delivered it" in err


def test_files_that_are_not_signed_are_left_out(run: Any, hub: Hub) -> None:
    publish(hub, {"evil.py": b"", "README.md": b"#\n", ".gitignore": b"*\n", "\x1b[2J": b""})
    code, _, err = run(*ADD)
    assert code == 0
    assert err == "weightcache: bert: files that are not signed are left out: '\\x1b[2J', README.md, evil.py\n"
    assert [file.path for file in Manifest.load("weights.toml")["bert"].files] == sorted(FILES)


def test_some_of_the_signed_files(run: Any, hub: Hub) -> None:
    publish(hub)
    assert run(*ADD, "--include", "*.safetensors", "--exclude", "unet/*")[0] == 0
    [bert] = Manifest.load("weights.toml")
    assert ([file.path for file in bert.files], bert.signed_by) == (["model.safetensors"], signer())
    assert "none of the 3 file(s) in" in refused(run, "add", "b", *ADD[2:], "--include", "*.pt", code=2)


def test_a_push_while_it_is_added_changes_nothing(run: Any, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Signature and files are of one commit."""
    commit = publish(hub)
    answer = hub.answer

    def push_first(method: str, target: str, *rest: Any) -> Any:
        if target.endswith("model.sig"):
            hub.push("acme/bert", "main", {"config.json": b"[]", "model.sig": b"{}"})
        return answer(method, target, *rest)

    monkeypatch.setattr(hub, "answer", push_first)
    assert run(*ADD)[0] == 0
    assert Manifest.load("weights.toml")["bert"].urls == (f"hf://acme/bert@{commit}",)


@pytest.mark.parametrize(
    ("url", "signature", "signed"),
    [
        ("/m/model.safetensors", None, FILES),
        ("/m/model.safetensors?part=1", None, {".": FILES["model.safetensors"]}),
        ("/m/unet/model.safetensors", "/m/model.sig", {"unet/model.safetensors": FILES["unet/model.safetensors"]}),
        ("/m/138296", "/m/model.sig", {".": b"w" * 10}),
    ],
    ids=["beside", "a model of one file", "in a folder", "without an ending"],
)
def test_one_file(url: str, signature: str | None, signed: dict[str, bytes], run: Any, origin: Origin) -> None:
    serve(origin, {**FILES, "138296": b"w" * 10}, bundle(signed))
    more = () if signature is None else ("--signature", origin.url(signature))
    code, _, err = run("add", "m", origin.url(url), "--signed-by", "release.pem", "-q", *more)
    assert (code, err) == (0, "")
    [m] = Manifest.load("weights.toml")
    assert (m.is_directory, m.files[0].path, m.signed_by) == (False, url.rpartition("/")[2].partition("?")[0], signer())


def test_one_file_of_the_hub(run: Any, hub: Hub) -> None:
    publish(hub)
    words = ("add", "m", "hf://acme/bert/unet/model.safetensors", "--signed-by", "release.pem", "-q")
    assert "no mirror has a signature\n  " in (err := refused(run, *words))
    assert "/unet/model.sig: HTTP 404" in err
    signature = ("--signature", "hf://acme/bert/model.sig")
    assert "signs several files that it may be: model.safetensors, unet/model.saf" in refused(
        run, *words, *signature, code=2
    )
    Path("unet.sig").write_bytes(bundle({path: FILES[path] for path in ("config.json", "unet/model.safetensors")}))
    assert run(*words, "--signature", "unet.sig")[0] == 0
    assert Manifest.load("weights.toml")["m"].files[0].sha256 == sha256(FILES["unet/model.safetensors"])


def test_a_signed_file_is_not_taken_for_another(run: Any, origin: Origin) -> None:
    """Of the same name in another folder, where a mirror could have put it; or with the end of its name."""
    serve(origin, FILES, bundle({"vae/model.safetensors": FILES["unet/model.safetensors"], "config.json": b""}))
    words = ("--signed-by", "release.pem", "--signature", origin.url("/m/model.sig"), "--file", "x.safetensors")
    err = refused(run, "add", "m", origin.url("/m/unet/model.safetensors"), *words, code=2)
    assert "does not sign it, but: config.json, vae/model.safetensors" in err
    assert "does not sign it, but" in refused(run, "add", "m", origin.url("/m/my-config.json"), *words, code=2)
    assert {each.path for each in origin.requests} == {"/m/model.sig"}  # nothing is downloaded before


def test_the_signature_of_one_file_is_not_that_of_a_directory(run: Any, hub: Hub) -> None:
    publish(hub, {"model.sig": bundle({".": FILES["config.json"]})})
    assert "has an empty, `.` or `..` segment" in refused(run, *ADD, code=2)


def test_a_directory_of_this_machine(run: Any, tmp_path: Path) -> None:
    """With what the real tool signed."""
    folder = shutil.copytree(REAL / "model", tmp_path / "model")
    shutil.copy(REAL / "p384.sig", folder / "model.sig")
    words = ("--signed-by", REAL / "p384.pem", "-q")
    assert run("add", "m", f"file://{folder}", *words)[0] == 0
    assert [file.path for file in Manifest.load("weights.toml")["m"].files] == [
        *("README.md", "config.json", "unet/model.safetensors")
    ]
    (folder / "model.sig").unlink()
    assert "give the URL or the path of the signature with --signature" in refused(
        run, "add", "n", f"file://{folder}", *words
    )
    assert run("add", "n", f"file://{folder}", *words, "--signature", REAL / "p384.sig")[0] == 0


def test_another_key(run: Any, hub: Hub) -> None:
    publish(hub)
    write_key(key=OTHER)
    err = refused(run, *ADD)
    assert f"is not signed by release.pem\n  expected {signer(OTHER)}\n  actual   {signer()}" in err


def test_a_token_goes_to_the_hosts_of_the_files_alone(
    run: Any, origin: Origin, mirror: Origin, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACME_TOKEN", TOKEN)
    serve(origin, FILES, bundle(FILES))
    serve(mirror, {}, bundle(FILES))
    publish(hub)
    words = (origin.url("/m"), "--signed-by", "release.pem", "--auth", "ACME_TOKEN", "-q")
    assert run("add", "a", *words)[0] == 0
    assert {each.headers.get("Authorization") for each in origin.requests} == {f"Bearer {TOKEN}"}
    assert run("add", "b", *words, "--signature", mirror.url("/m/model.sig"))[0] == 0
    assert run("add", "c", *words, "--signature", "hf://acme/bert/model.sig")[0] == 0
    assert [each.headers.get("Authorization") for each in mirror.requests] == [None]
    assert {each.authorization for each in hub.seen} == {None}
    assert run("add", "d", *words, "--signature", origin.url("/m/model.sig"))[0] == 0
    assert {each.headers.get("Authorization") for each in origin.requests} == {f"Bearer {TOKEN}"}


MISUSE = {
    "a signature and no key": (["add", "a", "https://h/x", "--signature", "x.sig"], "--signature needs --signed-by"),
    "a directory": (["add", "a", "--from-dir", ".", "--signed-by", "release.pem"], "--from-dir cannot be combined"),
    "two lists": (
        ["add", "a", "https://h/x", "--signed-by", "release.pem", "--from-sha256sums", "x"],
        "--signed-by cannot be combined with --from-sha256sums",
    ),
    "no key": (
        ["add", "a", "https://h/x.pt", "--signed-by", "weights.toml"],
        "weights.toml is not a public key in PEM",
    ),
    "a scheme": (
        ["add", "a", "https://h/x", "--signed-by", "release.pem", "--signature", "s3://b/k"],
        "want https, http",
    ),
    "a repository": (
        ["add", "a", "https://h/x", "--signed-by", "release.pem", "--signature", f"hf://a/b@{'0' * 40}"],
        "--signature hf://a/b@0000000000000000000000000000000000000000: names a whole repository",
    ),
    "pin": (["pin", "--signed-by", "release.pem"], "--signed-by needs --upgrade"),
    "pin a signature": (["pin", "--signature", "x.sig"], "--signature needs --upgrade"),
    "upgrade a signature and no key": (
        ["pin", "--upgrade", "x", "--signature", "x.sig"],
        "--signature needs --signed-by",
    ),
    "upgrade several": (
        ["pin", "--upgrade", "--signed-by", "release.pem", "--signature", "x.sig"],
        "--signature is that of one checkpoint: name",
    ),
    "verify a signature and no key": (
        ["verify", "--root", "r", "--signature", "x.sig"],
        "--signature needs --signed-by",
    ),
    "verify on Modal": (
        ["verify", "--signed-by", "release.pem", "--volume", "v"],
        "--signed-by cannot be combined with --volume",
    ),
    "verify a tag": (["verify", "a", "--tag", "t", "--root", "r", "--signed-by", "release.pem"], "combined with --tag"),
    "verify several": (
        ["verify", "--root", "r", "--signed-by", "release.pem", "--signature", "x.sig"],
        "--signature is that of one checkpoint, and 2 are selected",
    ),
}


@pytest.mark.parametrize(("words", "said"), MISUSE.values(), ids=MISUSE)
def test_misuse(words: list[str], said: str, run: Any) -> None:
    write_key()
    entry = f"urls = []\nsha256 = '{'0' * 64}'\n"
    Path("weights.toml").write_text(f"[checkpoints.x]\n{entry}[checkpoints.y]\n{entry}")
    assert said in refused(run, *words, code=2)


# pin -----------------------------------------------------------------------------------------------------------

UPGRADE = ("pin", "--upgrade", "bert", "--signed-by", "release.pem", "-q")


def push(hub: Hub, changed: dict[str, bytes], key: Any = KEY, unsigned: dict[str, bytes] | None = None) -> str:
    """A new version, signed; return its commit."""
    files = {**FILES, **changed}
    lfs = {path: File(data, lfs=path.endswith(".safetensors")) for path, data in files.items()}
    return hub.push("acme/bert", "main", {**lfs, **(unsigned or {}), "model.sig": bundle(files, key)})


def test_an_upgrade_to_what_is_signed(run: Any, hub: Hub, root: Path) -> None:
    publish(hub)
    assert run(*ADD)[0] == 0
    Path("weights.toml").write_text(text().replace("signed_by", "# Ours.\nsigned_by"))
    commit = push(hub, {"config.json": b"[]", "more.safetensors": b"m"}, unsigned={"evil.safetensors": b"e"})
    code, out, err = run(*UPGRADE, "--root", root)
    assert (code, err) == (0, "weightcache: bert: files that are not signed are left out: evil.safetensors\n")
    [bert] = Manifest.load("weights.toml")
    assert (bert.urls, bert.signed_by) == ((f"hf://acme/bert@{commit}",), signer())
    assert [file.path for file in bert.files] == [*sorted([*FILES, "more.safetensors"])]
    assert "; signed\n" in out
    assert "# Ours.\n" in text()
    assert quiet("weights.toml", root, offline=True).report["bert"].outcome == "hit"
    assert "bert: nothing changed" in run(*UPGRADE)[1]


@pytest.mark.parametrize(
    ("signed", "key", "said"),
    [
        ({"config.json": b"{}"}, KEY, "config.json is not the file that"),
        ({}, OTHER, "is not signed by release.pem"),
    ],
    ids=["other bytes", "another key"],
)
def test_an_upgrade_to_what_is_not_signed(signed: dict[str, bytes], key: Any, said: str, run: Any, hub: Hub) -> None:
    publish(hub)
    assert run(*ADD)[0] == 0
    hub.push("acme/bert", "main", {"config.json": b"[]", "model.sig": bundle({**FILES, **signed}, key)})
    assert said in refused(run, *UPGRADE)


def test_an_upgrade_to_a_version_that_signs_fewer_files(run: Any, hub: Hub) -> None:
    publish(hub)
    assert run(*ADD)[0] == 0
    hub.push("acme/bert", "main", {"model.sig": bundle({"config.json": FILES["config.json"]})})
    hub.push("acme/bert", "main", {"model.safetensors": b"x"})
    before = len(hub.seen)
    assert "model.sig does not sign it, but: config.json" in refused(run, *UPGRADE, code=2)
    downloads = [each.path.rpartition("/")[2] for each in hub.seen[before:] if "/resolve/" in each.path]
    assert downloads == ["model.sig"]


def test_a_signed_entry_is_not_upgraded_without_a_key(run: Any, hub: Hub) -> None:
    publish(hub)
    assert run(*ADD)[0] == 0
    assert run("add", "other", "hf://acme/bert", "-q")[0] == 0
    commit = push(hub, {"config.json": b"[]"})
    err = refused(run, "pin", "--upgrade", "bert", code=2)
    assert f"bert: {signer()} signed it: to upgrade it, give that key to --signed-by" in err
    code, _, err = run("pin", "--upgrade", "-q")  # the others are, so that a job for all entries goes on
    assert (code, f"weightcache: bert: not upgraded, because {signer()} signed it" in err) == (0, True)
    bert, other = Manifest.load("weights.toml")
    assert (commit in bert.urls[0], commit in other.urls[0]) == (False, True)


def test_an_upgrade_of_all_entries_needs_signatures_of_signed_ones_only(run: Any, hub: Hub) -> None:
    publish(hub)
    hub.push("acme/plain", "main", {"config.json": b"{}"})
    assert run(*ADD)[0] == 0
    assert run("add", "plain", "hf://acme/plain", "-q")[0] == 0
    commits = [push(hub, {"config.json": b"[]"}), hub.push("acme/plain", "main", {"config.json": b"[]"})]
    code, _, err = run("pin", "--upgrade", "--signed-by", "release.pem", "-q")
    assert code == 0, err
    bert, plain = Manifest.load("weights.toml")
    assert [commit in each.urls[0] for commit, each in zip(commits, (bert, plain), strict=True)] == [True, True]
    assert (bert.signed_by, plain.signed_by) == (signer(), None)
    assert "has a signature" in refused(run, "pin", "--upgrade", "plain", "--signed-by", "release.pem")


@pytest.mark.parametrize("comment", ["", "# About a.\n"])
def test_an_upgrade_notes_the_new_signer(comment: str, run: Any, hub: Hub) -> None:
    """Of an entry that was not signed, and of a publisher that has a new key."""
    publish(hub)
    assert run(*ADD[:3], "-q", "--include", "*.json", "--include", "*.safetensors")[0] == 0
    entry = f"[checkpoints.a]\nurls = []\nsha256 = '{'0' * 64}'\n"
    Path("weights.toml").write_text(f"{text()}{comment}{entry}")
    code, out, _ = run(*UPGRADE)
    assert (code, f"  signed by nobody → {signer()}\n" in out) == (0, True)
    push(hub, {}, OTHER)
    write_key(key=OTHER)
    code, out, _ = run(*UPGRADE)
    assert (code, f"  signed by {signer()} → {signer(OTHER)}\n" in out) == (0, True)
    assert Manifest.load("weights.toml")["bert"].signed_by == signer(OTHER)
    assert text().endswith(f"{comment}{entry}")


def test_a_signed_entry_that_lacks_a_pin_is_not_completed(run: Any, hub: Hub) -> None:
    """A digest that nobody signed would be called signed."""
    publish(hub)
    assert run(*ADD)[0] == 0
    whole = text()
    Path("weights.toml").write_text(whole.replace(f'sha256 = "{sha256(FILES["config.json"])}", ', ""))
    assert "its entry lacks the sha256 of config.json; remove the entry" in refused(run, "pin", code=2)
    Path("weights.toml").write_text(whole.replace(f", size = {len(FILES['config.json'])} ", " "))
    assert run("pin", "-q")[0] == 0  # a size is no claim about the bytes
    assert text() == whole


# verify --------------------------------------------------------------------------------------------------------


def test_verify(run: Any, hub: Hub, root: Path) -> None:
    commit = publish(hub)
    assert run(*ADD, "--root", root)[0] == 0
    hub.push("acme/bert", "main", {"model.sig": b"{}"})  # the signature of the pinned commit counts
    words = ("verify", "--root", root, "--signed-by", "release.pem")
    code, out, _ = run(*words)
    assert (code, out.splitlines()[0].endswith(f"  signed by {signer()}")) == (0, True), out
    [row] = json.loads(run(*words, "--json")[1])["checkpoints"]
    assert (row["state"], row["detail"]) == ("ready", f"signed by {signer()}")
    Path("kept.sig").write_bytes(bundle(FILES))
    before = len(hub.seen)
    assert run(*words, "--signature", "kept.sig")[0] == 0
    assert len(hub.seen) == before
    [damaged] = root.glob("bert/*/config.json")
    damaged.chmod(0o644)
    damaged.write_bytes(b'{"a": 2}\n')
    code, out, _ = run(*words, "--signature", "kept.sig")
    assert (code, "damaged" in out, "wrong bytes in config.json" in out, "signed by" in out) == (1, True, True, False)
    assert commit in text()


def test_verify_refuses_what_was_not_signed(run: Any, hub: Hub, root: Path) -> None:
    publish(hub)
    assert run(*ADD, "--root", root)[0] == 0
    words = ("verify", "--root", root, "--signed-by", "release.pem", "--signature", "x.sig")
    for signed, said, code in [
        (
            bundle({**FILES, "config.json": b"{}"}),
            f"expected {sha256(b'{}')}\n  actual   {sha256(FILES['config.json'])}",
            3,
        ),
        (bundle({"config.json": FILES["config.json"]}), "x.sig does not sign it, but: config.json", 2),
        (
            bundle(FILES, OTHER),
            f"x.sig is not signed by release.pem\n  expected {signer()}\n  actual   {signer(OTHER)}",
            3,
        ),
        (b"{}", "the signature has no mediaType", 2),
    ]:
        Path("x.sig").write_bytes(signed)
        assert said in refused(run, *words, code=code)
    Path("x.sig").unlink()
    assert "cannot read x.sig" in refused(run, *words, code=5)


def test_verify_compares_the_key_with_that_of_the_entry(run: Any, hub: Hub, root: Path) -> None:
    publish(hub)
    assert run(*ADD, "--root", root)[0] == 0
    Path("new.sig").write_bytes(bundle(FILES, OTHER))
    Path("new.pem").write_bytes(pem(OTHER))
    err = refused(run, "verify", "--root", root, "--signed-by", "new.pem", "--signature", "new.sig")
    assert (
        f"the entry in the manifest is not signed by new.pem\n  expected {signer(OTHER)}\n  actual   {signer()}" in err
    )


def test_verify_an_entry_that_was_pinned_without_a_signature(run: Any, root: Path) -> None:
    """Also weights of your own, which have no URL."""
    os.mkdir("mine")
    for path in ("a.pt", "b.pt"):
        Path("mine", path).write_bytes(path.encode())
    assert run("add", "mine", "--from-dir", "mine", "--root", root)[0] == 0
    Path("x.sig").write_bytes(bundle({path: path.encode() for path in ("a.pt", "b.pt", "c.pt")}))
    words = ("verify", "--root", root, "--signed-by", write_key())
    assert run(*words, "--signature", "x.sig")[0] == 0
    assert "no mirror has a signature\n  it declares no URL" in refused(run, *words)
