"""`add` and `pin` of a repository of the Hub: which files, whose token, and what the Hub refuses."""

from __future__ import annotations

import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hub import File, Hub
from pins import DATA, FILES, MODEL, text
from support import quiet, sha256, visible
from weightcache import DownloadError, Manifest, WeightCacheError, ensure
from weightcache._pinning.hub_client import snapshot
from weightcache._pinning.resolve_pins import complete
from weightcache._pinning.unpinned_entries import Draft, HubUrl, Pin
from weightcache._runtime.cancel import Cancel

TOKEN = "hf_SeCrEtSeCrEtSeCrEt"


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
    assert (quiet("weights.toml", root)["bert"] / "model.safetensors").read_bytes() == DATA


def test_one_file_and_a_folder_of_a_repository(run: Any, hub: Hub, root: Path) -> None:
    hub.push("gpt2", "main", FILES)
    commit = hub.push("gpt2", "next", {"config.json": b"[]"})
    assert run("add", "one", "hf://gpt2@next/config.json")[0] == 0
    assert run("add", "onnx", "hf://gpt2@main/onnx", "--root", root)[0] == 0
    manifest = Manifest.load("weights.toml")
    assert (manifest["one"].is_directory, manifest["one"].urls) == (False, (f"hf://gpt2@{commit}/config.json",))
    assert [file.path for file in manifest["onnx"].files] == ["model.onnx"]
    weights = quiet("weights.toml", root)
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
    quiet("weights.toml", root)
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
        assert quiet("weights.toml", root).report["g"].outcome == "downloaded"
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


@pytest.mark.parametrize("path", ["/revision/", "/tree/"], ids=["the commit", "the files"])
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
    path: str, without: list[str], hint: str, run: Any, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(Cancel, "sleep", lambda _, seconds: slept.append(seconds))
    hub.push("acme/bert", "main", FILES)
    hub.fail(3, path=path, wait=55)
    for name in without:
        del hub._faults[0][1].answer.headers[name]  # it is one for all times
    code, _, err = run("add", "x", "hf://acme/bert")
    assert (code, os.listdir()) == (3, [])
    assert err.endswith(f"{hub.url}/acme/bert: HTTP 429\n  hint: nothing was changed; {hint}\n")
    assert [seconds >= 55 for seconds in slept] == ["seconds" in hint] * 2
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
    """Let the Hub say something else than it would: ``change`` gets each answer, decoded, and may return bytes."""
    route = hub._route

    def changed(*words: Any) -> Any:
        said = route(*words)
        if said.headers.get("Content-Type", "").startswith("application/json"):
            answer = change(json.loads(said.body))
            said.body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
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
    [
        "<html>",
        None,
        [],
        {"id": "x"},
        {"id": "acme/bert", "sha": "main"},
        {"id": "x", "sha": "0", "lastModified": "?"},
        b"[" * 100_000,
    ],
    ids=lambda answer: str(answer)[:40],
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


@pytest.mark.parametrize(
    "part",
    [
        {"size": "3"},
        {"size": True},
        {"path": 7},
        {"oid": True},
        {"lfs": {"oid": ["a"]}},
        {"lfs": "a"},
        {"lfs": {}},
        {"type": ["file"]},
    ],
    ids=str,
)
def test_a_listing_with_parts_of_another_type(part: dict[str, Any], hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """For example from another host in HF_ENDPOINT."""
    hub.push("acme/bert", "main", {"config.json": b"{}\n"})
    assert snapshot(HubUrl("acme/bert"), None, "bert").files[0].size == 3
    said_by(hub, monkeypatch, lambda said: [{**each, **part} for each in said] if isinstance(said, list) else said)
    if "type" in part:  # neither a file nor, to the client of the Hub, anything else
        assert snapshot(HubUrl("acme/bert"), None, "bert").files == ()
        return
    with pytest.raises(DownloadError, match="sent a response that is not from the Hub"):
        snapshot(HubUrl("acme/bert"), None, "bert")


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
            complete(draft, include=include, exclude=exclude, progress=False)
        return
    complete(draft, include=include, exclude=exclude, progress=False)
    assert set(draft.pins) == files


SECRET_URL = "https://user:hunter2@127.0.0.1:9/w?sig=SeCrEt"


@pytest.mark.parametrize(
    ("pins", "is_directory", "change", "include"),
    [
        ({"model.safetensors": Pin()}, False, {"lfs": {"oid": "NOT-HEX", "size": 1}}, ()),
        ({"model.safetensors": Pin("0" * 64)}, False, {}, ()),
        ({"none.bin": Pin()}, True, {}, ()),
        ({}, True, {}, ("*.none",)),
    ],
    ids=["no digest", "another digest", "a missing file", "no file selected"],
)
def test_no_error_has_the_secrets_of_a_mirror_that_stands_before_the_hub(
    pins: dict[str, Pin],
    is_directory: bool,
    change: dict[str, Any],
    include: tuple[str, ...],
    hub: Hub,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub.push("acme/bert", "main", {"model.safetensors": MODEL})
    said_by(hub, monkeypatch, lambda said: [{**each, **change} for each in said] if isinstance(said, list) else said)
    path = "" if is_directory else "/model.safetensors"
    copied = {name: Pin(pin.sha256) for name, pin in pins.items()}
    draft = Draft("x", [SECRET_URL, f"hf://acme/bert@main{path}"], None, is_directory, copied, bool(pins))
    with pytest.raises((WeightCacheError, ValueError)) as caught:
        complete(draft, include=include, progress=False)
    shown = f"{caught.value} {vars(caught.value)}"
    assert ("https://127.0.0.1:9/w" in shown, "hunter2" in shown, "SeCrEt" in shown) == (True, False, False), shown
