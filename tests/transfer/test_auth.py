"""Secrets: a token goes to its own host and nowhere else, and is found in nothing that anybody reads (G6)."""

from __future__ import annotations

import base64
import itertools
import logging
import os
import pickle
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from origin import Origin, broken, redirect
from origin import status as answer
from support import blob, change_settings, one, quiet
from weightcache import DownloadError, ensure
from weightcache._runtime.writer_identity import write_note
from weightcache._store.partial_directory import BLOCK
from weightcache.cli.main import main

DATA = blob(BLOCK + 500)
TOKEN = "hf_SeCrEtSeCrEtSeCrEt"


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


@pytest.mark.parametrize("query", ["", "?sig=1"])  # no token is sent to a signed URL of any host
def test_the_token_is_not_sent_to_another_host(
    query: str, origin: Origin, cdn: Origin, root: Path, token: str, netrc: None
) -> None:
    origin.put("/a", DATA, always=redirect(cdn.url(f"/b{query}")))
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


@pytest.mark.parametrize("verb", ["ensure", "add"])
def test_the_host_of_every_declared_url_gets_the_token_and_no_third_one(
    verb: str, origin: Origin, cdn: Origin, root: Path, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mirrors of one checkpoint have one `auth`; the reference says so."""
    monkeypatch.chdir(root.parent)
    with Origin(host="127.0.0.2") as storage:
        storage.put("/c", DATA)
        origin.put("/a", DATA, always=answer(404))
        cdn.put("/b", DATA, always=redirect(storage.url("/c?sig=1")))
        urls = [origin.url("/a"), cdn.url("/b")]
        if verb == "ensure":
            quiet(one(DATA, *urls, auth=token), root)
        else:
            assert main(["add", "sam2", *urls, "--auth", token, "--quiet"]) == 0
        assert set(authorization(origin)) == set(authorization(cdn)) == {f"Bearer {TOKEN}"}
        assert set(authorization(storage)) == {None}


def test_netrc_serves_who_declares_no_auth(origin: Origin, root: Path, netrc: None) -> None:
    origin.put("/a", DATA)
    quiet(one(DATA, origin.url("/a")), root)
    assert authorization(origin) == ["Basic " + base64.b64encode(b"user:own").decode()]


@pytest.mark.parametrize("where", ["netrc", "URL"])
def test_a_user_name_that_is_refused_is_not_taken_for_none(
    where: str, origin: Origin, root: Path, request: pytest.FixtureRequest
) -> None:
    origin.put("/a", DATA, always=answer(403))
    if where == "netrc":
        request.getfixturevalue("netrc")
    url = origin.url("/a").replace("//", "//user:secret@") if where == "URL" else origin.url("/a")
    with pytest.raises(DownloadError, match=r"403 Forbidden; a user name and password \(netrc, or the URL\)") as caught:
        quiet(one(DATA, url), root)
    assert "valid here" in caught.value.hint
    assert "secret" not in f"{caught.value}"


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
    change_settings(monkeypatch, line_interval=0.0)
    caplog.set_level(logging.DEBUG)
    said: list[str] = []
    notes: list[str] = []  # of the temporary directory: the last one is gone at the end
    monkeypatch.setattr(
        "weightcache._coordination.lock.write_note", lambda path, text: (notes.append(text), write_note(path, text))
    )
    url = origin.url("/a?sig=query-secret").replace("//", "//user:url-secret@")
    origin.put("/a", DATA, faults=[broken(500), answer(503)], always=answer(401))
    with pytest.raises(DownloadError) as caught:
        ensure(one(DATA, url, auth=token), root=root)
    error = caught.value
    said += [str(error), repr(error), str(vars(error)), pickle.dumps(error).decode("latin-1")]
    origin.files["/a"].always = None
    said.append(repr(ensure(one(DATA, url, auth=token), root=root).report))
    said += [path.read_bytes().decode("latin-1") for path in (root / ".weightcache").rglob("*") if path.is_file()]
    said += [path.read_bytes().decode("latin-1") for path in Path(os.environ["TMPDIR"]).rglob("*") if path.is_file()]
    said += notes
    assert any("downloading" in note for note in notes)
    said += [record.getMessage() for record in caplog.records if record.name.startswith("weightcache")]
    shown = capsys.readouterr()
    assert "weightcache: sam2" in shown.err
    said += [shown.out, shown.err]
    everything = "\n".join(said)
    for secret in (TOKEN, "query-secret", "url-secret"):
        assert secret not in everything
    for record in caplog.records:  # those of urllib3 too: they show the path, never a header
        assert TOKEN not in record.getMessage()


# Secrets in a URL ------------------------------------------------------------------------------------------------


def test_a_variable_in_a_url_is_filled_in_at_the_request(
    origin: Origin, root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "weightcache")
    origin.put("/a", DATA, faults=[broken(500)])
    manifest = one(DATA, origin.url("/a?key=1&${SIGNED_PART}"))
    monkeypatch.setenv("SIGNED_PART", "sig=hush%2Fhush&exp=7\n")
    weights = quiet(manifest, root)
    assert {each.path for each in origin.requests} == {"/a?key=1&sig=hush%2Fhush&exp=7"}
    monkeypatch.delenv("SIGNED_PART")
    assert quiet(manifest, root).report["sam2"].outcome == "hit"  # needs no secret
    said = [path.read_bytes().decode("latin-1") for path in (root / ".weightcache").rglob("*") if path.is_file()]
    assert "hush" not in "".join([*said, repr(weights.report), *(r.getMessage() for r in caplog.records)])


@pytest.mark.parametrize(
    ("value", "why"),
    [(None, "is not set"), (" \n", "is not set"), ("a b", "what no URL may"), ("é#", "what no URL may")],
)
def test_a_variable_that_cannot_be_filled_in(
    value: str | None, why: str, origin: Origin, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if value is not None:
        monkeypatch.setenv("SIGNED_PART", value)
    with pytest.raises(DownloadError, match=rf"environment variable SIGNED_PART \(in its URL\) .*{why}") as caught:
        quiet(one(DATA, origin.url("/a?${SIGNED_PART}")), root)
    assert "set SIGNED_PART in the environment" in caught.value.hint
    assert value is None or not value.strip() or value not in str(caught.value)
    assert origin.requests == []
    assert [each.tries for each in caught.value.attempts] == [0]


# The token of a user of the Hub ----------------------------------------------------------------------------------

COMMIT = "0123456789abcdef0123456789abcdef01234567"
HUB_PATH = f"/org/repo/resolve/{COMMIT}/weights.pt"


@pytest.fixture
def hub(origin: Origin, monkeypatch: pytest.MonkeyPatch) -> Origin:
    monkeypatch.setenv("HF_ENDPOINT", origin.url(""))
    return origin


def from_hub(**more: Any) -> dict[str, Any]:
    return one(DATA, f"hf://org/repo@{COMMIT}/weights.pt", **more)


def test_a_hub_file_is_fetched_with_the_users_token_which_stays_at_the_hub(
    hub: Origin, cdn: Origin, root: Path, monkeypatch: pytest.MonkeyPatch, netrc: None
) -> None:
    """huggingface_hub sends it wherever a redirect leads if netrc or a header adds it there (a leak of peers)."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.put(HUB_PATH, DATA, always=redirect(cdn.url("/blob?sig=1")))
    cdn.put("/blob", DATA)
    quiet(from_hub(), root)
    assert authorization(hub) == [f"Bearer {TOKEN}"]
    assert set(authorization(cdn)) == {None}


def test_no_other_host_gets_the_hubs_token(origin: Origin, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    origin.put(HUB_PATH, DATA)
    quiet(one(DATA, origin.url(HUB_PATH)), root)
    assert set(authorization(origin)) == {None}


@pytest.mark.parametrize("where", ["HF_TOKEN_PATH", "HF_HOME", "XDG_CACHE_HOME", "HOME"])
def test_the_token_file_is_found_where_the_hubs_client_finds_it(
    where: str, hub: Origin, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / {"HF_HOME": "token", "XDG_CACHE_HOME": "huggingface/token"}.get(where, "t")
    if where == "HOME":
        path = tmp_path / ".cache" / "huggingface" / "token"
    monkeypatch.delenv("HF_HOME")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv(where, str(path) if where == "HF_TOKEN_PATH" else str(tmp_path))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{TOKEN}\n")
    code = "from huggingface_hub import get_token; print(get_token())"
    theirs = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert theirs.stdout.strip() == TOKEN
    hub.put(HUB_PATH, DATA)
    quiet(from_hub(), root)
    assert set(authorization(hub)) == {f"Bearer {TOKEN}"}


def test_the_order_of_the_hubs_tokens(
    hub: Origin, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    (tmp_path / "token").write_text("from-file")
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("HUGGING_FACE_HUB_TOKEN", "from-old")
    monkeypatch.setenv("HF_TOKEN", "from-new")
    hub.put(HUB_PATH, DATA, always=answer(401))

    def sent(**more: Any) -> str | None:
        hub.requests.clear()
        with pytest.raises(DownloadError):
            quiet(from_hub(**more), root)
        return authorization(hub)[0]

    assert sent() == "Bearer from-new"
    assert sent(auth=token) == f"Bearer {TOKEN}"  # what is declared wins
    monkeypatch.setenv("HF_TOKEN", " ")
    assert sent() == "Bearer from-old"
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN")
    assert sent() == "Bearer from-file"
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "yes")
    assert sent() is None


@pytest.mark.parametrize(
    ("status", "code", "sends", "said", "hint"),
    [
        (
            401,
            "GatedRepo",
            False,
            "no token was sent; {page} is gated",
            "accept its licence at {page}, and use the token",
        ),
        (403, "GatedRepo", True, "the token from HF_TOKEN was sent; {page} is gated", "of that account in HF_TOKEN"),
        (401, "RepoNotFound", False, "no token was sent; RepoNotFound", "if it is private, set HF_TOKEN"),
        (401, "", True, "the token from HF_TOKEN was sent", "the token in HF_TOKEN may read it"),
    ],
)
def test_a_refusal_of_the_hub_says_which_token_and_what_to_do(
    status: int, code: str, sends: bool, said: str, hint: str, hub: Origin, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if sends:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.put(HUB_PATH, DATA, always=answer(status, {"X-Error-Code": code} if code else {}))
    with pytest.raises(DownloadError) as caught:
        quiet(from_hub(), root)
    page = hub.url("/org/repo")
    assert said.format(page=page) in str(caught.value)
    assert hint.format(page=page) in caught.value.hint
    assert TOKEN not in str(caught.value)


def test_a_token_file_that_holds_no_token(
    hub: Origin, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "token"
    monkeypatch.setenv("HF_TOKEN_PATH", str(path))
    hub.put(HUB_PATH, DATA)
    path.write_bytes(b"\xff\xfe")
    quiet(from_hub(), root)
    assert set(authorization(hub)) == {None}
    path.write_text("a\x00b\rc")
    with pytest.raises(DownloadError, match="characters no token has"):
        quiet(one(DATA[1:], f"hf://org/repo@{COMMIT}/weights.pt"), root)


# Redirects that would give something away ------------------------------------------------------------------------


@pytest.mark.parametrize("auth", [False, True])
def test_no_password_follows_a_redirect_from_https_to_http(
    auth: bool, origin: Origin, root: Path, tmp_path: Path, token: str, netrc: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "ca.pem"))
    origin.put("/b", DATA)
    with Origin(tls=context) as encrypted:
        encrypted.put("/a", DATA, always=redirect(origin.url("/b")))
        quiet(one(DATA, encrypted.url("/a"), **({"auth": token} if auth else {})), root)
        assert [value is not None for value in authorization(encrypted)] == [True]
    assert authorization(origin) == [None]


def cookies(server: Origin) -> list[str | None]:
    return [each.headers.get("Cookie") for each in server.requests]


def test_a_cookie_goes_along_the_redirects_of_its_own_host(origin: Origin, cdn: Origin, root: Path) -> None:
    """Some hosts want it there. No other host gets it, whatever its Domain says, and it is forgotten afterwards."""

    def setting(value: str, target: str) -> Any:
        return answer(302, {"Location": target, "Set-Cookie": value})

    origin.put("/a", DATA, faults=[setting("own=1; Path=/", "/b")])
    origin.put("/b", DATA, always=setting("other=2; Domain=localhost; Path=/", cdn.url("/c")))
    cdn.put("/c", DATA)
    quiet(one(DATA, origin.url("/a")), root)
    assert cookies(origin) == [None, "own=1"]
    assert cookies(cdn) == [None]
    origin.put("/d", blob(7))
    quiet(one(blob(7), origin.url("/d"), name="next"), root)
    assert cookies(origin) == [None, "own=1", None]


def test_a_cookie_that_a_redirect_deletes_is_not_sent_again(origin: Origin, root: Path) -> None:
    def setting(value: str, target: str) -> Any:
        return answer(302, {"Location": target, "Set-Cookie": value})

    origin.put("/a", DATA, always=setting("own=1; Path=/", "/b"))
    origin.put("/b", DATA, always=setting("own=; Max-Age=0; Path=/", "/c"))
    origin.put("/c", DATA)
    quiet(one(DATA, origin.url("/a")), root)
    assert cookies(origin) == [None, "own=1", None]


def test_a_jar_of_cookies_does_not_grow(origin: Origin, root: Path) -> None:
    """The threads of a download would read it while others add to it."""
    numbers = itertools.count()

    def fault(exchange: Any) -> None:
        exchange.good_headers = lambda: {"Set-Cookie": f"c{next(numbers)}=1", "ETag": '"x"', "Accept-Ranges": "bytes"}
        exchange.good()

    origin.put("/a", blob(12 * BLOCK), always=fault)
    quiet(one(blob(12 * BLOCK), origin.url("/a")), root)
    assert len(origin.requests) > 1
    assert set(cookies(origin)) == {None}
