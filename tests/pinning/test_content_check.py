"""What is no weights is not pinned: by whatever way a digest would get into a manifest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hub import File, Hub, pointer
from origin import Exchange, Origin
from support import blob, sha256
from weightcache import Manifest, ManifestError, publish
from weightcache._pinning.content_check import advice, content_problem
from weightcache._pinning.hash_remote import Opening

DATA = blob(5000)
REAL = sha256(DATA)
POINTER = pointer(REAL, len(DATA))
FOREIGN = {
    "a Git LFS pointer": POINTER,
    "an HTML page": b"\n<!DOCTYPE html><title>Log in</title>",
    "an XML document": b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
    "a JSON document": b'{"error": "no such file"}',
    "an empty file": b"",
}
each_foreign = pytest.mark.parametrize(("what", "data"), FOREIGN.items(), ids=[*FOREIGN])


def answers(data: bytes, **headers: str) -> Callable[[Exchange], None]:
    """A server's answer in full, to whatever part was asked for."""

    def answer(exchange: Exchange) -> None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        exchange.head(200, {"Content-Length": len(data), **named})
        exchange.body(data)

    return answer


def refused(run: Any, *words: Any) -> str:
    """Run a command that must fail without changing anything; return what it says."""
    before = Path("weights.toml").read_bytes() if Path("weights.toml").exists() else None
    code, out, err = run(*words, "-q")
    assert code == 3, (out, err)
    assert "nothing was changed" in err
    assert (Path("weights.toml").read_bytes() if Path("weights.toml").exists() else None) == before
    return str(err)


@each_foreign
def test_add_refuses_it_unless_it_is_expected(what: str, data: bytes, run: Any, origin: Origin) -> None:
    origin.put("/w.pt", data)
    err = refused(run, "add", "w", origin.url("/w.pt?part=hush"))
    assert f"{origin.url('/w.pt')} sent {what}" in err
    assert f"--expect {sha256(data)}" in err
    assert "hush" not in err
    code, _, err = run("add", "w", origin.url("/w.pt"), "--expect", REAL, "-q")
    assert (code, f"w.pt is {what}" in err) == (3, True)
    code, out, _ = run("add", "w", origin.url("/w.pt"), "--expect", sha256(data), "-q")
    assert (code, f"it is {what}" in out) == (0, True)
    assert Manifest.load("weights.toml")["w"].digest == sha256(data)


@each_foreign
def test_pin_refuses_it_unless_it_is_expected(what: str, data: bytes, run: Any, tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(data)
    Path("weights.toml").write_text(f'[checkpoints.w]\nurls = ["file://{tmp_path}/w.pt"]\n')
    assert what in refused(run, "pin")
    assert run("pin", "--expect", sha256(data), "-q")[0] == 0


@pytest.mark.parametrize("length", [True, False])
@each_foreign
def test_a_mirror_that_sends_it_is_refused(
    what: str, data: bytes, length: bool, run: Any, origin: Origin, mirror: Origin
) -> None:
    origin.put("/w.pt", DATA)
    mirror.put("/w.pt", data, length=length, ranges=False)
    for urls in ([origin.url("/w.pt"), mirror.url("/w.pt")], [mirror.url("/w.pt"), origin.url("/w.pt")]):
        assert f"{mirror.url('/w.pt')} sent {what}" in refused(run, "add", "w", *urls)


@each_foreign
def test_a_list_of_digests_is_no_leave_for_it(what: str, data: bytes, run: Any, origin: Origin) -> None:
    """`sha256sum` in a clone without Git LFS lists pointers."""
    origin.put("/d/w.pt", data)
    Path("SUMS").write_text(f"{sha256(data)}  w.pt\n")
    assert what in refused(run, "add", "w", origin.url("/d/w.pt"), "--from-sha256sums", "SUMS")
    assert what in refused(run, "add", "w", origin.url("/d"), "--from-sha256sums", "SUMS")


@each_foreign
def test_a_directory_has_none_among_its_weights(what: str, data: bytes, run: Any, origin: Origin) -> None:
    origin.put("/d/w.pt", data)
    origin.put("/d/config.json", b"{}")
    files = '"config.json" = {}\n"w.pt" = {}\n'
    Path("weights.toml").write_text(f'[checkpoints.w]\nurls = ["{origin.url("/d")}"]\n[checkpoints.w.files]\n{files}')
    err = refused(run, "pin")
    assert f"{origin.url('/d/w.pt')} sent {what}" in err
    assert "--exclude w.pt" in err


@pytest.mark.parametrize("lfs", [True, False])
def test_a_pointer_that_was_uploaded_to_the_hub(lfs: bool, run: Any, hub: Hub) -> None:
    hub.push("acme/w", "main", {"config.json": b"{}", "w.safetensors": File(POINTER, lfs=lfs)})
    assert "sent a Git LFS pointer" in refused(run, "add", "w", "hf://acme/w/w.safetensors")
    err = refused(run, "add", "w", "hf://acme/w")
    assert f"the file with sha256 {REAL}" in err
    assert run("add", "w", "hf://acme/w", "--exclude", "*.safetensors", "-q")[0] == 0


def test_a_directory_has_small_files_as_they_are(run: Any, hub: Hub) -> None:
    files = {
        "__init__.py": b"",
        ".gitkeep": b"",
        "LICENSE": b"",
        "README.md": b'<p align="center"><img src="x.png"></p>',
        "index.html": b"<!DOCTYPE html><html></html>",
        "docs/old.md": b"<!DOCTYPE html><html></html>",
        "config.json": b'{"model_type": "bert"}',
        "openvino_model.xml": b'<?xml version="1.0"?><net name="m"/>',
        "prompts.txt": b'["a", "b"]',
        "chat_template.jinja": b"<s>{{ text }}",
        "w.safetensors": DATA,
    }
    hub.push("acme/w", "main", files)
    code, _, err = run("add", "w", "hf://acme/w", "-q")
    assert (code, err) == (0, "")
    assert {file.path for file in Manifest.load("weights.toml")["w"].files} == set(files)


def test_a_mirror_that_has_the_same_page_has_the_file(run: Any, hub: Hub, origin: Origin) -> None:
    page = b"<!DOCTYPE html><html></html>"
    hub.push("acme/w", "main", {"old.md": page, "w.pt": DATA})
    origin.put("/d/old.md", page)
    origin.put("/d/w.pt", DATA)
    code, _, err = run("add", "w", "hf://acme/w", origin.url("/d"), "-q")
    assert (code, err) == (0, "")


@pytest.mark.parametrize(
    ("name", "data", "content_type"),
    [
        ("config.json", b'{"a": 1}', "application/json"),
        ("page.html", b"<!DOCTYPE html><html></html>", "text/html"),
        ("graph.xml", b'<?xml version="1.0"?><net/>', "application/xml"),
        ("README.md", b"<div>Hello</div>", "text/html; charset=utf-8"),
        ("vocab.txt", b"[PAD]\n[UNK]\n", "text/html"),
        ("w.pt", DATA, "text/html"),
        ("w.pt", DATA, "application/json"),
    ],
)
def test_what_was_asked_for_by_its_name_is_pinned(
    name: str, data: bytes, content_type: str, run: Any, origin: Origin
) -> None:
    origin.put(f"/{name}", data, always=answers(data, Content_Type=content_type))
    code, _, err = run("add", "w", origin.url(f"/{name}"), "-q")
    assert (code, err) == (0, "")


def test_the_content_type_names_a_page_that_has_no_tag(run: Any, origin: Origin) -> None:
    origin.put("/w.pt", b"", always=answers(b"Please log in", Content_Type="text/html; charset=utf-8"))
    assert "sent an HTML page" in refused(run, "add", "w", origin.url("/w.pt"))


def test_a_name_that_only_the_server_gives_counts(run: Any, origin: Origin) -> None:
    given = answers(
        b'{"a": 1}', Content_Type="application/json", Content_Disposition="attachment; filename=config.json"
    )
    origin.put("/api/17", b"", always=given)
    assert run("add", "w", origin.url("/api/17"), "-q")[0] == 0


def test_check_upstream_says_what_came_instead(run: Any, origin: Origin) -> None:
    origin.put("/w.pt", DATA)
    origin.put("/p.json", b"{}")
    assert run("add", "w", origin.url("/w.pt"), "-q")[0] == 0
    assert run("add", "p", origin.url("/p.json"), "--file", "p.pt", "--expect", sha256(b"{}"), "-q")[0] == 0
    assert run("pin", "--check-upstream")[0] == 0
    origin.put("/w.pt", FOREIGN["an HTML page"], length=False)
    code, out, _ = run("pin", "--check-upstream")
    assert (code, f"{origin.url('/w.pt')} sends an HTML page instead of w.pt" in out) == (1, True)


def test_a_clone_without_its_large_files_is_not_published(run: Any, root: Path, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    clone.mkdir()
    (clone / "config.json").write_text("{}")
    (clone / "w.safetensors").write_bytes(POINTER)
    with pytest.raises(ManifestError, match=r"'w\.safetensors' is a Git LFS pointer") as caught:
        publish(clone, name="w", root=root)
    assert "git lfs pull" in str(caught.value)
    assert not root.exists()
    for words in (["publish", clone, "w", "--root", root], ["add", "w", "--from-dir", clone, "--root", root]):
        code, _, err = run(*words)
        assert (code, "git lfs pull" in err) == (2, True)
    listing = f"{sha256(b'{}')}  config.json\n{sha256(POINTER)}  w.safetensors\n"
    words = ["add", "w", "--from-dir", clone, "--root", root, "--expect", sha256(listing.encode())]
    assert run(*words)[0] == 0


@pytest.mark.parametrize(
    ("url", "what", "expected"),
    [
        ("https://huggingface.co/acme/w/blob/main/a%20b/w.pt?x=1", "an HTML page", "'hf://acme/w@main/a b/w.pt'"),
        ("https://huggingface.co/acme/w/raw/main/w.pt", "a Git LFS pointer", "hf://acme/w@main/w.pt"),
        ("https://huggingface.co/acme/w/raw/main/w.pt", "a Git LFS pointer", "/resolve/"),
        ("https://huggingface.co/acme/w", "an HTML page", "hf://acme/w@main;"),
        ("https://huggingface.co/acme/w/", "an HTML page", "hf://acme/w@main;"),
        ("https://huggingface.co/acme/w/tree/v1/a%20b", "an HTML page", "'hf://acme/w@v1/a b'"),
        ("https://github.com/o/r/blob/v1/d/w.pt", "an HTML page", "https://github.com/o/r/raw/v1/d/w.pt"),
        (
            "https://github.com/o/r/raw/v1/w.pt",
            "a Git LFS pointer",
            "https://media.githubusercontent.com/media/o/r/v1/w.pt",
        ),
        (
            "https://raw.githubusercontent.com/o/r/v1/w.pt",
            "a Git LFS pointer",
            "https://media.githubusercontent.com/media/o/r/v1/w.pt",
        ),
        ("https://gitlab.com/o/r/-/blob/main/w.pt", "an HTML page", "https://gitlab.com/o/r/-/raw/main/w.pt"),
        ("https://h/w.pt", "a Git LFS pointer", "media.githubusercontent.com/media/OWNER"),
        ("https://h/w.pt", "an HTML page", "open the URL in a browser"),
        ("file:///clone/w.pt", "a Git LFS pointer", "git lfs pull"),
        ("hf://a/b@main/w.pt", "a JSON document", "open the URL"),
    ],
)
def test_the_way_to_the_file_itself_is_said(url: str, what: str, expected: str) -> None:
    assert expected in f"{advice(url, what, POINTER)};"


def test_a_hub_of_ones_own_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.example.org")
    assert "hf://acme/w@main/w.pt" in advice("https://hub.example.org/acme/w/blob/main/w.pt", "an HTML page", b"")


def test_what_git_says_is_so_is_judged_where_it_is_named_as_weights() -> None:
    page = Opening(30, b"<!DOCTYPE html><html></html>", "", "")
    assert content_problem("notes", page, is_directory=False) == "an HTML page"
    assert content_problem("notes", page, is_directory=False, matches_git_id=True) == ""
    assert content_problem("w.bin", page, is_directory=True, matches_git_id=True) == "an HTML page"
