"""A path in an ``hf://`` URL is that of the file in its repository, with whatever characters it has."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from hub import File, Hub
from support import blob, sha256
from weightcache import Manifest, ensure
from weightcache._pinning.unpinned_entries import HubUrl
from weightcache._transfer.raw_url import request_target
from weightcache.errors import redacted
from weightcache.manifest.parse import parse_toml
from weightcache.manifest.urls import hub_parts, name_from_url, resolved_url, url_problem, variables
from weightcache.manifest.validate import path_problem

DATA = blob(5000)
COMMIT = "0123456789abcdef" * 2 + "01234567"
ODD = [
    "Text Encoder/gemma.pt",
    "a#b.pt",
    "100%.pt",
    "a%20b.pt",
    "what?.pt",
    "~user/~x.pt",
    "a+b.pt",
    "[1]/w[2].pt",
    "Größe/é.pt",
    "a&b=c;d@e!$'().pt",
    "${HOME}.pt",
]


def published(root: Path) -> Any:
    return ensure("weights.toml", root=root, progress=False)


@pytest.mark.parametrize("path", ODD)
def test_one_file_is_added_and_fetched(path: str, run: Any, hub: Hub, root: Path) -> None:
    commit = hub.push("acme/w", "main", {path: File(DATA, lfs=ODD.index(path) % 2 == 0)})
    code, out, err = run("add", "w", f"hf://acme/w@main/{path}", "--json", "-q")
    assert code == 0, err
    [row] = json.loads(out)["checkpoints"]
    assert row["urls"] == [f"hf://acme/w@{commit}/{path}"]
    assert list(row["files"]) == [path.rpartition("/")[2]]
    weights = published(root)
    assert weights["w"].name == path.rpartition("/")[2]
    assert weights["w"].read_bytes() == DATA
    cached = weights.hf_cache(root.parent / "cache") / "models--acme--w" / "snapshots" / commit / path
    assert cached.read_bytes() == DATA


def test_a_repository_of_them(run: Any, hub: Hub, root: Path) -> None:
    hub.push("acme/w", "main", {f"my base/{path}": File(f"{path}!".encode() * 9, lfs=True) for path in ODD})
    assert run("add", "w", "hf://acme/w/my base", "-q")[0] == 0
    folder = published(root)["w"]
    assert {path: (folder / path).read_bytes() for path in ODD} == {path: f"{path}!".encode() * 9 for path in ODD}


def test_pin_takes_it_as_literally(run: Any, hub: Hub, root: Path) -> None:
    hub.push("acme/w", "main", {"a b%20c#.pt": DATA})
    Path("weights.toml").write_text('[checkpoints.w]\nurls = ["hf://acme/w@main/a b%20c#.pt"]\n')
    code, _, err = run("pin", "-q")
    assert code == 0, err
    assert published(root)["w"].name == "a b%20c#.pt"


@pytest.mark.parametrize("verb", ["add", "pin"])
@pytest.mark.parametrize(
    ("path", "literal"), [("Text%20Encoder/w%23.pt", "Text Encoder/w#.pt"), ("Text%20Encoder", "Text Encoder")]
)
def test_a_path_that_was_copied_percent_encoded_is_named(
    verb: str, path: str, literal: str, run: Any, hub: Hub
) -> None:
    hub.push("acme/w", "feature/x", {"Text Encoder/w#.pt": DATA})
    url = f"hf://acme/w@feature%2Fx/{path}"
    if verb == "pin":
        if path == "Text%20Encoder":
            url = f"hf://acme/w@feature%2Fx/{path}.pt"  # an entry with a path and without `files` is one file
            hub.push("acme/w", "feature/x", {"Text Encoder.pt": DATA})
            literal += ".pt"
        Path("weights.toml").write_text(f'[checkpoints.w]\nurls = ["{url}"]\n')
    code, _, err = run("add", "w", url) if verb == "add" else run("pin")
    assert code == 3
    assert f"; it has {literal}\n" in err
    assert f"write {shlex.quote(f'hf://acme/w@feature%2Fx/{literal}')}, without percent-encoding" in err
    assert "weights.toml" not in err


def test_what_is_there_as_it_is_written_wins(run: Any, hub: Hub, root: Path) -> None:
    hub.push("acme/w", "main", {"a%20b.pt": DATA, "a b.pt": b"another"})
    assert run("add", "w", "hf://acme/w/a%20b.pt", "-q")[0] == 0
    assert published(root)["w"].read_bytes() == DATA


def test_the_rules_of_a_path_still_hold() -> None:
    base = f"hf://acme/w@{COMMIT}"
    for path in ODD:
        assert url_problem(f"{base}/{path}", directory=False) is None
        assert name_from_url(f"{base}/{path}") == path.rpartition("/")[2]
        assert variables(f"{base}/{path}") == []
        assert HubUrl.parse(f"{base}/{path}") == HubUrl("acme/w", COMMIT, path)
        assert redacted(f"{base}/{path}") == f"{base}/{path}"
    for path in ("a\nb", "a\\b", "../x", "a//b", "/a", "a\x7f"):
        assert url_problem(f"{base}/{path}", directory=False)
    assert url_problem("hf://acme/w@main/a b#c", directory=False).startswith("names no commit")  # type: ignore[union-attr]
    assert url_problem("https://h/a b", directory=False)
    assert url_problem("https://h/a#b", directory=False)


# Printable text alone (`str.isprintable`: no control, format, separator or unassigned character but the space), so that
# `assume` refuses few examples: hypothesis ends a test with an error where it refuses nine of ten.
PRINTABLE = st.characters(exclude_categories=("C", "Z"), exclude_characters="/\\") | st.just(" ")
PATHS = st.lists(st.text(PRINTABLE, min_size=1, max_size=12), min_size=1, max_size=4).map("/".join)


@given(PATHS)
def test_any_path_that_a_manifest_takes_is_literal(path: str) -> None:
    assume(path_problem(path) is None)
    url = f"hf://acme/w@{COMMIT}/{path}"
    manifest = Manifest.load({"checkpoints": {"w": {"urls": [url], "sha256": "0" * 64}}})
    assert manifest["w"].urls == (url,)
    assert manifest["w"].files[0].path == path.rpartition("/")[2]
    assert Manifest.load(parse_toml(str(manifest["w"]).encode(), "w")) == manifest
    assert hub_parts(url) == ("acme/w", COMMIT, path)
    asked = resolved_url(url, "")
    assert unquote(asked) == f"https://huggingface.co/acme/w/resolve/{COMMIT}/{path}"
    assert request_target(asked) == asked.removeprefix("https://huggingface.co")
    assert redacted(asked) == asked


def test_a_query_is_a_part_of_the_name_and_no_secret(run: Any, hub: Hub) -> None:
    hub.push("acme/w", "main", {"w.pt?token=x": DATA})
    assert run("add", "w", "hf://acme/w/w.pt?token=x", "-q")[0] == 0


def test_a_list_of_digests_has_literal_paths(run: Any, hub: Hub) -> None:
    hub.push("acme/w", "main", {"a%20b.pt": DATA, "a b.pt": b"another"})
    Path("SUMS").write_text(f"{sha256(b'another')}  a b.pt\n{sha256(DATA)}  a%20b.pt\n")
    assert run("add", "w", "hf://acme/w/a%20b.pt", "--from-sha256sums", "SUMS", "-q")[0] == 0
    assert Manifest.load("weights.toml")["w"].files[0].sha256 == sha256(DATA)


@pytest.mark.parametrize(("first", "second"), [("Readme.md", "README.md"), ("caf\u00e9.txt", "cafe\u0301.txt")])
def test_names_that_a_file_system_may_fold_are_chosen_among(first: str, second: str, run: Any, hub: Hub) -> None:
    hub.push("acme/w", "main", {first: b"one", second: b"two", "w.pt": DATA})
    code, _, err = run("add", "w", "hf://acme/w", "-q")
    assert code == 2
    assert "only in case or Unicode form" in err
    assert "leave one of them out" in err
    assert "--exclude" in err
    assert run("add", "w", "hf://acme/w", "--exclude", second, "-q")[0] == 0
    assert [file.path for file in Manifest.load("weights.toml")["w"].files] == sorted([first, "w.pt"])


def test_a_client_that_must_not_ask_is_named(run: Any, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.push("acme/w", "main", {"w.pt": DATA})
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    code, _, err = run("add", "w", "hf://acme/w", "-q")
    assert code == 3
    assert f"{hub.url} was not asked: HF_HUB_OFFLINE is set" in err
    assert not hub.seen
