"""Secrets: a token goes to its own host and nowhere else, and is found in nothing that anybody reads (G6)."""

from __future__ import annotations

import base64
import logging
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import weightcache
from origin import Origin, broken, redirect
from origin import status as answer
from support import blob, one
from weightcache import DownloadError, ensure
from weightcache._partial import BLOCK

DATA = blob(BLOCK + 500)
TOKEN = "hf_SeCrEtSeCrEtSeCrEt"


def quiet(manifest: Any, root: Path, **options: Any) -> weightcache.Weights:
    return ensure(manifest, root=root, progress=False, **options)


@pytest.fixture
def cdn() -> Iterator[Origin]:
    """Another host: `localhost` is not `127.0.0.1` to anybody who compares names."""
    with Origin(host="localhost") as server:
        yield server


@pytest.fixture
def token(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MY_TOKEN", f" {TOKEN}\n")  # as `echo` into a secret leaves it
    return "MY_TOKEN"


@pytest.fixture
def netrc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "netrc"
    path.write_text("machine 127.0.0.1 login user password own\nmachine localhost login user password other\n")
    monkeypatch.setenv("NETRC", str(path))


def authorization(origin: Origin) -> list[str | None]:
    return [each.headers.get("Authorization") for each in origin.requests]


def test_the_token_is_sent(origin: Origin, root: Path, token: str, netrc: None) -> None:
    origin.put("/a", DATA, faults=[broken(500), redirect("/b")])
    origin.put("/b", DATA)
    quiet(one(DATA, origin.url("/a"), auth=token), root)
    assert authorization(origin) == [f"Bearer {TOKEN}"] * 3


def test_the_token_is_not_sent_to_another_host(
    origin: Origin, cdn: Origin, root: Path, token: str, netrc: None
) -> None:
    origin.put("/a", DATA, always=redirect(cdn.url("/b?sig=1")))
    cdn.put("/b", DATA, faults=[broken(500)])
    quiet(one(DATA, origin.url("/a"), auth=token), root)
    assert authorization(origin) == [f"Bearer {TOKEN}"]  # asked once where it leads
    assert authorization(cdn) == [None, None]


def test_the_token_is_not_sent_to_another_port(origin: Origin, mirror: Origin, root: Path, token: str) -> None:
    origin.put("/a", DATA, always=redirect(mirror.url("/b")))
    mirror.put("/b", DATA)
    quiet(one(DATA, origin.url("/a"), auth=token), root)
    assert authorization(mirror) == [None]


def test_there_and_back(origin: Origin, cdn: Origin, root: Path, token: str) -> None:
    origin.put("/a", DATA, always=redirect(cdn.url("/b")))
    cdn.put("/b", DATA, always=redirect(origin.url("/c")))
    origin.put("/c", DATA)
    quiet(one(DATA, origin.url("/a"), auth=token), root)
    assert authorization(cdn) == [None]
    assert authorization(origin) == [f"Bearer {TOKEN}"] * 2


def test_netrc_serves_who_declares_no_auth(origin: Origin, root: Path, netrc: None) -> None:
    origin.put("/a", DATA)
    quiet(one(DATA, origin.url("/a")), root)
    assert authorization(origin) == ["Basic " + base64.b64encode(b"user:own").decode()]


def test_credentials_in_a_url(origin: Origin, root: Path) -> None:
    origin.put("/a", DATA)
    url = origin.url("/a").replace("//", "//user:secret@")
    weights = quiet(one(DATA, url), root)
    assert authorization(origin) == ["Basic " + base64.b64encode(b"user:secret").decode()]
    assert weights.report["sam2"].sources == (origin.url("/a"),)


def test_a_token_that_is_not_set(origin: Origin, mirror: Origin, root: Path) -> None:
    with pytest.raises(DownloadError, match="environment variable MY_TOKEN") as caught:
        quiet(one(DATA, origin.url("/a"), auth="MY_TOKEN"), root)
    assert "set MY_TOKEN" in caught.value.hint
    assert origin.requests == []


def test_a_token_that_cannot_be_one(origin: Origin, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "a\r\nHost: evil")
    with pytest.raises(DownloadError, match="characters no token has") as caught:
        quiet(one(DATA, origin.url("/a"), auth="MY_TOKEN"), root)
    assert "evil" not in str(caught.value)
    assert origin.requests == []


def test_a_refused_token_is_named_and_not_shown(origin: Origin, root: Path, token: str) -> None:
    origin.put("/a", DATA, always=answer(401))
    with pytest.raises(DownloadError, match="401 Unauthorized; the token from MY_TOKEN was sent"):
        quiet(one(DATA, origin.url("/a"), auth=token), root)


def test_the_token_is_in_nothing_that_anybody_reads(
    origin: Origin,
    root: Path,
    token: str,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("weightcache._progress.LINE_EVERY", 0.0)
    caplog.set_level(logging.DEBUG)
    said: list[str] = []
    url = origin.url("/a?sig=query-secret").replace("//", "//user:url-secret@")
    origin.put("/a", DATA, faults=[broken(500), answer(503)], always=answer(401))
    with pytest.raises(DownloadError) as caught:
        ensure(one(DATA, url, auth=token), root=root)
    error = caught.value
    said += [str(error), repr(error), str(vars(error)), pickle.dumps(error).decode("latin-1")]
    origin.files["/a"].always = None
    said.append(repr(ensure(one(DATA, url, auth=token), root=root).report))
    said += [path.read_bytes().decode("latin-1") for path in (root / ".weightcache").rglob("*") if path.is_file()]
    said += [record.getMessage() for record in caplog.records if record.name.startswith("weightcache")]
    shown = capsys.readouterr()
    assert "weightcache: sam2" in shown.err
    said += [shown.out, shown.err]
    everything = "\n".join(said)
    for secret in (TOKEN, "query-secret", "url-secret"):
        assert secret not in everything
    for record in caplog.records:  # those of urllib3 too: they show the path, never a header
        assert TOKEN not in record.getMessage()
