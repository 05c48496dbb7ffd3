"""A refusal says why: what the server said, what the environment has wrong, what came instead; and never a secret."""

from __future__ import annotations

import base64
import json
import logging
import pickle
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from origin import Origin, redirect
from origin import status as answer
from raw_server import raw_server
from support import blob, one
from weightcache import DownloadError, IntegrityError, ensure
from weightcache._transfer.server_message import reason, safe, secrets_in

DATA = blob(300_000)
TOKEN = "hf_SeCrEtSeCrEtSeCrEt"
COMMIT = "0123456789" * 4
HUB_PATH = f"/org/repo/resolve/{COMMIT}/weights.pt"
SIGNED = "?X-Amz-Date=20261128T000000Z&X-Amz-Signature=5ec4e75ec4e7&X-Amz-Credential=AKIASECRET%2F2026"
PAGE = b"<!DOCTYPE html><html><title>Sign in</title></html>"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 300000\n"


def failing(root: Path, *urls: str, **more: Any) -> DownloadError:
    with pytest.raises(DownloadError) as caught:
        ensure(one(DATA, *urls, **more), root=root, progress=False)
    return caught.value


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def cdn() -> Iterator[Origin]:
    with Origin(host="localhost") as server:
        yield server


@pytest.fixture
def hub(origin: Origin, monkeypatch: pytest.MonkeyPatch) -> Origin:
    monkeypatch.setenv("HF_ENDPOINT", origin.url(""))
    return origin


def xml(code: str, message: str, rest: str = "") -> bytes:
    return f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>{message}</Message>{rest}</Error>'.encode()


EXPIRED = xml("AccessDenied", "Request has expired", "<Expires>2026-11-27T00:00:00Z</Expires>")
ANSWERS: dict[str, tuple[str, int, dict[str, str], bytes, str, str]] = {
    # query, status, headers, body -> words of the error, words of the hint
    "expired at S3": (SIGNED, 403, {}, EXPIRED, "AccessDenied: Request has expired", "new signed URL"),
    "expired at Google": (
        "?X-Goog-Signature=5ec4e7",
        400,
        {},
        xml("ExpiredToken", "Invalid argument.", "<Details>key=AKIASECRET</Details>"),
        "ExpiredToken: Invalid argument.; its URL is signed",
        "new signed URL",
    ),
    "expired at Azure": (
        "?sv=2024&se=2026-01-01&sig=5ec4e7",
        403,
        {},
        b"\xef\xbb\xbf" + xml("AuthenticationFailed", "Server failed to authenticate the request.\nRequestId:1"),
        "AuthenticationFailed: Server failed to authenticate the request.",
        "new signed URL",
    ),
    "a private bucket": (
        "",
        403,
        {},
        xml("AccessDenied", "Access Denied"),
        "AccessDenied: Access Denied",
        "signed URL",
    ),
    "JSON": (
        "",
        403,
        {},
        b'{"error": {"code": 403, "message": "Quota exceeded"}}',
        "it says: Quota exceeded",
        "browser",
    ),
    "JSON of a host that takes tokens": ("", 401, {}, b'{"message": "Log in first"}', "Log in first", "declare `auth`"),
    "401": ("", 401, {}, b"", "no token was sent (no `auth` is declared)", "declare `auth`"),
    "403": ("", 403, {}, b"", "no token was sent (no `auth` is declared)", "declare `auth`"),
    "401 for a password": ("", 401, {"WWW-Authenticate": 'Basic realm="x"'}, b"", "no token was sent", "netrc"),
    "a page": ("", 403, {"Content-Type": "text/html"}, PAGE, "with an HTML page", "browser"),
    "a refused client": ("", 403, {}, b"error code: 1010", "refuses this client (its User-Agent)", "another mirror"),
    "a User-Agent": ("", 403, {}, b"Please set a User-Agent header", "refuses this client", "another mirror"),
    "a challenge": (
        "",
        403,
        {"cf-mitigated": "challenge"},
        PAGE,
        "a browser that solves a challenge",
        "another mirror",
    ),
    "404": ("", 404, {}, b'{"detail": "No such file"}', "HTTP 404 Not Found; it says: No such file", ""),
    "404 with a page": ("", 404, {}, PAGE, "HTTP 404 Not Found, with an HTML page", ""),
    "410": ("", 410, {}, b"", "gone for good", ""),
    "451": ("", 451, {}, b"", "for legal reasons", ""),
    "204": ("", 204, {}, b"", "HTTP 204 No Content: it has no content there", ""),
    "a proxy on the way": ("", 407, {}, b"", "wants a user name and password", "USER:PASSWORD@HOST"),
    "503": ("", 503, {}, xml("SlowDown", "Reduce your request rate."), "SlowDown: Reduce your request rate.", ""),
}


@pytest.mark.parametrize(("query", "status", "headers", "body", "words", "hint"), ANSWERS.values(), ids=ANSWERS)
def test_an_answer_says_why(
    query: str, status: int, headers: dict[str, str], body: bytes, words: str, hint: str, origin: Origin, root: Path
) -> None:
    origin.put("/w.pt", DATA, always=answer(status, headers, body))
    error = failing(root, origin.url(f"/w.pt{query}"))
    assert words in str(error)
    assert hint in error.hint
    assert "5ec4e7" not in str(error)
    assert "AKIA" not in str(error)
    if "auth" not in hint:
        assert "declare `auth`" not in error.hint


@pytest.mark.parametrize(
    ("status", "code", "words", "hint"),
    [
        (404, "RevisionNotFound", "the Hub does not have this commit", "its history was rewritten"),
        (404, "RepoNotFound", "the repository does not exist, or is private", "if it is private, set HF_TOKEN"),
        (404, "EntryNotFound", "this commit has no such file", "the files of that commit"),
        (403, "GatedRepo", "is gated", "accept its licence"),
        (404, "SomethingNew", "SomethingNew", "check that"),
    ],
)
@pytest.mark.parametrize("declared", ["hf", "https"])
def test_the_hub_says_why(
    declared: str, status: int, code: str, words: str, hint: str, hub: Origin, root: Path
) -> None:
    hub.put(HUB_PATH, DATA, always=answer(status, {"X-Error-Code": code, "X-Error-Message": "no"}))
    error = failing(root, f"hf://org/repo@{COMMIT}/weights.pt" if declared == "hf" else hub.url(HUB_PATH))
    assert words in str(error)
    assert hint in error.hint


def test_a_disabled_repository(hub: Origin, root: Path) -> None:
    hub.put(HUB_PATH, DATA, always=answer(403, {"X-Error-Message": "Access to this resource is disabled."}))
    assert "the Hub has disabled the repository" in str(failing(root, f"hf://org/repo@{COMMIT}/weights.pt"))


# What came instead -----------------------------------------------------------------------------------------------

INSTEAD = {
    "page": (PAGE, "text/html", "an HTML page", "browser"),
    "pointer": (POINTER, "text/plain", "a Git LFS pointer", "Git LFS"),
    "JSON": (b'{"id": 1, "name": "w.pt"}', "application/json", "a JSON document", "what the host says"),
    "XML": (EXPIRED, "application/xml", "an XML document", "what the host says"),
    "nothing": (b"", "", "an empty file", "empty file"),
}


@pytest.mark.parametrize("size", [True, False])
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(("body", "kind", "words", "hint"), INSTEAD.values(), ids=INSTEAD)
def test_what_came_instead_is_named(
    body: bytes, kind: str, words: str, hint: str, chunked: bool, size: bool, origin: Origin, root: Path
) -> None:
    def page(exchange: Any) -> None:
        if chunked:
            exchange.chunked(body, {"Content-Type": kind})
        else:
            answer(200, {"Content-Type": kind}, body)(exchange)

    origin.put("/w.pt", DATA, always=page)
    error = failing(root, origin.url("/w.pt"), size=size)
    if chunked and size and not body:  # as a connection ends that breaks off
        assert "ended at byte 0 of" in str(error)
        return
    assert isinstance(error, IntegrityError)
    assert words in str(error)
    assert hint in error.hint


def test_a_page_that_a_redirect_led_to(origin: Origin, cdn: Origin, root: Path) -> None:
    origin.put("/w.pt", DATA, always=redirect(cdn.url("/login?next=secret")))
    cdn.put("/login", DATA, always=answer(200, {"Content-Type": "text/html"}, PAGE))
    error = failing(root, origin.url("/w.pt"))
    assert "an HTML page from localhost, to which it redirects" in str(error)
    assert "secret" not in str(error)
    cdn.put("/login", DATA, always=answer(401))
    error = failing(root, origin.url("/w.pt"))
    assert "HTTP 401 Unauthorized from localhost, to which it redirects" in str(error)
    assert "auth" not in error.hint


def test_a_local_file_that_is_a_pointer(root: Path, tmp_path: Path) -> None:
    """As in a clone made without Git LFS."""
    (tmp_path / "w.pt").write_bytes(POINTER)
    for size in (True, False):
        error = failing(root, (tmp_path / "w.pt").as_uri(), size=size)
        assert "a Git LFS pointer" in str(error)


def test_a_signature_of_the_host_itself(origin: Origin, root: Path) -> None:
    origin.put("/w.pt", DATA, always=redirect(f"/s{SIGNED}"))
    origin.put("/s", DATA, always=answer(403, body=EXPIRED))
    error = failing(root, origin.url("/w.pt"))
    assert "Request has expired" in str(error)
    assert "try again" in error.hint


def test_a_page_costs_no_byte_of_an_earlier_run(origin: Origin, root: Path) -> None:
    """A host that wants a login today had the file yesterday: what it sent then is kept."""
    from origin import broken
    from weightcache._store.partial_directory import BLOCK

    data = blob(2 * BLOCK + 5)
    origin.put("/w.pt", data, faults=[broken(BLOCK + 5)], always=answer(404))
    with pytest.raises(DownloadError):
        ensure(one(data, origin.url("/w.pt")), root=root, progress=False)
    origin.put("/w.pt", data, faults=[lambda exchange: exchange.chunked(PAGE, {})], ranges=False)
    with pytest.raises(IntegrityError, match="an HTML page"):
        ensure(one(data, origin.url("/w.pt")), root=root, progress=False)
    origin.put("/w.pt", data)
    ensure(one(data, origin.url("/w.pt")), root=root, progress=False)
    assert origin.sent("/w.pt") < 1.6 * len(data)


@pytest.mark.parametrize("prefix", ["", "/api/v3"])
def test_an_asset_of_github_is_asked_for_as_a_file(prefix: str, origin: Origin, root: Path) -> None:
    def asset(exchange: Any) -> None:
        if exchange.request.headers["Accept"] == "application/octet-stream":
            exchange.good()
        else:
            answer(200, {"Content-Type": "application/json"}, b'{"url": "x"}')(exchange)

    path = f"{prefix}/repos/o/r/releases/assets/123"
    origin.put(path, DATA, always=asset)
    ensure(one(DATA, origin.url(path)), root=root, progress=False)
    origin.put("/w.pt", DATA[:-1])
    ensure(one(DATA[:-1], origin.url("/w.pt")), root=root, progress=False)
    assert origin.requests[-1].headers["Accept"] == "*/*"


@pytest.mark.parametrize("status", [200, 201, 203])
def test_other_answers_with_the_right_bytes_are_a_success(status: int, origin: Origin, root: Path) -> None:
    origin.put("/w.pt", DATA, always=answer(status, body=DATA))
    assert ensure(one(DATA, origin.url("/w.pt")), root=root, progress=False)["sam2"].read_bytes() == DATA


def test_no_advice_on_permission_for_a_url_that_has_served(origin: Origin, root: Path) -> None:
    from origin import broken

    origin.put("/w.pt", DATA, faults=[broken(1000)], always=answer(403))
    error = failing(root, origin.url("/w.pt"))
    assert "HTTP 403" in str(error)
    assert "auth" not in error.hint


# What the environment has wrong ----------------------------------------------------------------------------------


def test_a_socks_proxy_without_its_package(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5h://me:hush@127.0.0.1:9")
    error = failing(root, "http://weights.invalid/w.pt")
    assert "socks5h://127.0.0.1:9 (ALL_PROXY)" in str(error)
    assert "requests[socks]" in error.hint
    assert "hush" not in str(error)


def test_a_proxy_that_is_no_url(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "ftp://127.0.0.1:9")
    assert "HTTP_PROXY" in str(failing(root, "http://weights.invalid/w.pt"))


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_is_not_there(scheme: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{held.getsockname()[1]}"
        monkeypatch.setenv(f"{scheme.upper()}_PROXY", f"http://me:hush@{address}")
        error = failing(root, f"{scheme}://weights.invalid/w.pt")
    assert f"the proxy {address} ({scheme.upper()}_PROXY): Connection refused" in str(error)
    assert "hush" not in str(error)


@pytest.mark.parametrize(
    ("status", "words", "requests"),
    [
        ("407 Proxy Authentication Required", "wants a user name and password", 1),
        ("403 Forbidden", "refuses to connect there: HTTP 403 Forbidden", 1),
        ("502 Bad Gateway", "answered HTTP 502 Bad Gateway", 3),
    ],
)
def test_a_proxy_that_refuses_to_connect(
    status: str, words: str, requests: int, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode()
    with raw_server(lambda connection, _: connection.sendall(said)) as port:
        monkeypatch.setenv("HTTPS_PROXY", f"http://me:hush@127.0.0.1:{port}")
        error = failing(root, "https://weights.invalid/w.pt")
    assert words in str(error)
    assert f"127.0.0.1:{port} (HTTPS_PROXY)" in str(error)
    assert f"({requests} request(s))" in str(error)
    assert "hush" not in str(error)


def test_a_proxy_that_refuses_a_plain_request(origin: Origin, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    origin.put("http://weights.invalid/w.pt", DATA, always=answer(407))
    monkeypatch.setenv("http_proxy", origin.url("").replace("//", "//me:hush@"))
    error = failing(root, "http://weights.invalid/w.pt")
    assert f"the proxy 127.0.0.1:{origin.port} (http_proxy) answered HTTP 407" in str(error)
    assert "http_proxy" in error.hint
    assert "hush" not in str(error)


@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
@pytest.mark.parametrize(
    ("bundle", "words"), [("absent", "No such file or directory"), ("text", "no certificates in PEM form")]
)
def test_a_ca_bundle_that_is_none(
    bundle: str, words: str, variable: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text").write_text("hello")
    monkeypatch.setenv(variable, str(tmp_path / bundle))
    error = failing(root, "https://127.0.0.1:9/w.pt")
    assert f"the CA bundle {tmp_path / bundle} ({variable})" in str(error)
    assert words in str(error)
    assert variable in error.hint


@pytest.mark.parametrize(("set_to", "words"), [(None, "REQUESTS_CA_BUNDLE"), ("absent", "SSL_CERT_FILE, which names")])
def test_a_certificate_that_is_not_trusted(
    set_to: str | None, words: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ssl

    if set_to:
        monkeypatch.setenv("SSL_CERT_FILE", set_to)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    with Origin(tls=context) as origin:
        assert words in failing(root, origin.url("/w.pt")).hint


@pytest.fixture
def netrc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "netrc"
    path.write_text("machine 127.0.0.1 login me password hush\nmachine localhost login me password hush\n")
    monkeypatch.setenv("NETRC", str(path))
    return path


@pytest.mark.parametrize("text", [b"machine 127.0.0.1 login me password hush\nhush secretword\n", b"\xff\xfe\0hush"])
def test_a_netrc_file_that_cannot_be_parsed(text: bytes, netrc: Path, origin: Origin, root: Path) -> None:
    netrc.write_bytes(text)
    origin.put("/w.pt", DATA, always=answer(401))
    error = failing(root, origin.url("/w.pt"))
    assert f"the netrc file {netrc}" in str(error)
    assert "netrc" in error.hint
    assert "hush" not in str(error)
    assert "secretword" not in str(error)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_with_a_certificate_that_is_not_trusted(
    scheme: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    asked: list[bytes] = []

    def proxy(connection: socket.socket, _: object) -> None:
        with context.wrap_socket(connection, server_side=True) as client:
            asked.append(client.recv(65536))

    with raw_server(proxy, greeted=False) as port:
        monkeypatch.setenv(f"{scheme}_proxy", f"https://me:hush@127.0.0.1:{port}")
        error = failing(root, f"{scheme}://weights.invalid/w.pt")
    assert f"the proxy 127.0.0.1:{port} ({scheme}_proxy): TLS: certificate verify failed" in str(error)
    assert "hush" not in str(error)
    assert asked == []  # no CONNECT, and no request: both have the password of the proxy


def test_no_user_name_is_sent_to_a_signed_url(origin: Origin, cdn: Origin, root: Path, netrc: Path) -> None:
    origin.put("/w.pt", DATA)
    ensure(one(DATA, origin.url(f"/w.pt{SIGNED}")), root=root, progress=False)
    assert "Authorization" not in origin.requests[-1].headers
    cdn.put("/w.pt", DATA[1:])
    origin.put("/to", DATA[1:], always=redirect(cdn.url(f"/w.pt{SIGNED}")))
    ensure(one(DATA[1:], origin.url("/to"), name="b"), root=root, progress=False)
    assert "Authorization" in origin.requests[-1].headers
    assert "Authorization" not in cdn.requests[-1].headers


def test_no_token_is_sent_to_a_signed_url_of_the_same_host(
    origin: Origin, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_TOKEN", TOKEN)
    origin.put("/to", DATA, always=redirect(f"/w.pt{SIGNED}"))
    origin.put("/w.pt", DATA)
    ensure(one(DATA, origin.url("/to"), auth="MY_TOKEN"), root=root, progress=False)
    assert ["Authorization" in each.headers for each in origin.requests] == [True, False]


def test_two_permissions_at_once(origin: Origin, root: Path) -> None:
    """S3 answers 400 to a signed URL with a user name besides."""
    body = xml(
        "InvalidArgument", "Only one auth mechanism allowed", "<ArgumentValue>Basic bWU6aHVzaA==</ArgumentValue>"
    )
    origin.put("/w.pt", DATA, always=answer(400, body=body))
    error = failing(root, origin.url(f"/w.pt{SIGNED}").replace("//", "//me:hush@"))
    assert "Only one auth mechanism allowed" in str(error)
    assert "before the @" in error.hint


# No secret -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 400, 401, 403, 404, 429, 503])
@pytest.mark.parametrize("form", ["xml", "json", "reason"])
def test_what_a_server_repeats_of_a_request_is_not_shown(
    form: str,
    status: int,
    origin: Origin,
    root: Path,
    netrc: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.INFO, "weightcache")
    monkeypatch.setenv("MY_TOKEN", TOKEN)

    def parrot(exchange: Any) -> None:
        sent = exchange.request.headers.get("Authorization", "")
        pair = base64.b64decode(sent[6:]).decode() if sent.startswith("Basic ") else ""
        text = f"You sent {exchange.request.path} and {sent}, beginning with {sent[:16]}, for {pair} or {pair[-4:]}"
        body = xml(f"Bad {sent}", text) if form == "xml" else json.dumps({"error": sent, "message": text}).encode()
        answer(status, {"X-Error-Message": text}, body)(exchange)

    origin.put("/w.pt", DATA, always=parrot)
    urls = [
        origin.url(f"/w.pt{SIGNED}"),
        origin.url("/w.pt?key=5ec4e7"),
        origin.url("/w.pt").replace("//", "//u:hush@"),
    ]
    texts = []
    for number, url in enumerate(urls):
        for more in ({}, {"auth": "MY_TOKEN"}):
            error = failing(root / f"{number}{len(more)}", url, **more)
            texts += [str(error), repr(error.attempts), pickle.dumps(error).decode("latin-1")]
    texts += [each.getMessage() for each in caplog.records if each.name == "weightcache"]
    everything = "\n".join(texts)
    secrets = ("5ec4e7", "AKIASECRET", TOKEN, TOKEN[:9], "hush", base64.b64encode(b"me:hush").decode())
    assert [each for each in secrets if each in everything] == []


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Not found.", "Not found."),
        ("see https://h/x?sig=1 for more", "see … for more"),
        ("token=abc is bad", "… is bad"),
        ("key AKIAIOSFODNN7EXAMPLE", "key …"),
        ("SignatureDoesNotMatch", "SignatureDoesNotMatch"),
        ("a\x1b[31m\u202eb", "a [31m b"),
        ("pass s3cr is wrong", "pass … is wrong"),
        ("x " * 500, ("x " * 80).strip()),
    ],
)
def test_what_is_shown_of_a_message(text: str, shown: str) -> None:
    secrets = secrets_in({"Authorization": "Bearer s3cr"}, "https://h/x?sig=1")
    assert reason(json.dumps({"message": text}).encode(), secrets) == shown


@pytest.mark.parametrize(
    "body", [b"[" * 4000, b'{"code": ' + b"9" * 4000, b"{", b'{"error": [[[[[["x"]]]]]]}', b"\xff<Code>"]
)
def test_bodies_that_say_nothing(body: bytes) -> None:
    assert reason(body, set()) == ""


def test_no_six_characters_of_a_secret_are_shown() -> None:
    secret = "hf_Qwertyuiop"
    shown = [safe(f"the key {secret[at : at + 6]} is wrong", {secret}) for at in range(len(secret) - 5)]
    assert {secret[at : at + 6] for at, text in enumerate(shown) if secret[at : at + 6] in text} == set()
    assert safe("the key hf_Qw is wrong", {secret}) == "the key hf_Qw is wrong"
