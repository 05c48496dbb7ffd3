"""What mirrors do: each fault with a real server ends in the right bytes or in an error that names the URL.

In every failing case nothing is published and nothing returned.
"""

from __future__ import annotations

import email.utils
import itertools
import logging
import os
import pickle
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import trustme

from origin import Exchange, Fault, Origin, broken, hang_up, other_bytes, redirect, stalled, wrong_part
from origin import status as answer
from support import blob, change_settings, one, partials, quiet, sha256, visible
from weightcache import DownloadError, IntegrityError
from weightcache._store.partial_directory import BLOCK
from weightcache._transfer import file_transfer, scheduler, transfer_types

DATA = blob(2 * BLOCK + 77_777)
FLIPPED = DATA[:1_000_000] + bytes([DATA[1_000_000] ^ 1]) + DATA[1_000_001:]
OTHER = blob(len(DATA), 9)


def cut(at: int, *, reset: bool = False) -> Fault:
    """Never send anything from byte ``at`` of the file on."""
    return lambda exchange: broken(max(0, at - (exchange.wanted() or (0, 0))[0]), reset=reset)(exchange)


ALWAYS: dict[str, tuple[Fault, type[DownloadError], str]] = {
    "flipped byte": (other_bytes(FLIPPED), IntegrityError, "delivers another weights.pt"),
    "truncated body": (cut(500_000), DownloadError, "the connection broke off at byte 500000 of"),
    "longer, with its length": (other_bytes(DATA + b"!"), IntegrityError, f"actual   {len(DATA) + 1} bytes"),
    "shorter, with its length": (other_bytes(DATA[:-1]), IntegrityError, f"actual   {len(DATA) - 1} bytes"),
    "longer, chunked": (lambda x: x.chunked(DATA + b"!", {}), IntegrityError, f"more than {len(DATA)} bytes"),
    "shorter, chunked": (lambda x: x.chunked(DATA[:-1], {}), DownloadError, f"ended at byte {len(DATA) - 1}"),
    "error page with 200": (answer(200, body=b"<html>quota exceeded</html>"), IntegrityError, "actual   27 bytes"),
    "empty 200": (answer(200), IntegrityError, "actual   0 bytes"),
    "204": (answer(204), DownloadError, "HTTP 204"),
    "206 unasked": (wrong_part(f"bytes 0-9/{len(DATA)}", DATA[:10]), DownloadError, "HTTP 206"),
    "404": (answer(404), DownloadError, "HTTP 404 Not Found (1 request(s))"),
    "401": (answer(401), DownloadError, "HTTP 401 Unauthorized; no token was sent"),
    "403": (answer(403), DownloadError, "HTTP 403"),
    "416": (answer(416), DownloadError, "HTTP 416"),
    "500": (answer(500), DownloadError, "HTTP 500 Internal Server Error (3 request(s))"),
    "304": (answer(304), DownloadError, "HTTP 304"),
    "a redirect to nowhere": (answer(302), DownloadError, "HTTP 302"),
    "a redirect to a file": (redirect("file:///etc/passwd"), DownloadError, "redirects to file:///etc/passwd; only"),
    "a redirect to no URL": (redirect("http://["), DownloadError, "redirects to no URL"),
    "a redirect to no text": (redirect("/\xff"), DownloadError, "redirects to no URL"),
    "a redirect that paints": (redirect("ftp://h/\x1b[31m"), DownloadError, "redirects to ftp://h/[31m; only"),
    "a redirect to ftp": (redirect("ftp://127.0.0.1/x?secret"), DownloadError, "redirects to ftp://127.0.0.1/x; only"),
    "endless redirects": (redirect("/a?again"), DownloadError, "more than 10 redirects, the last to"),
    "hangs up at once": (hang_up(), DownloadError, "(3 request(s))"),
    "resets at once": (hang_up(reset=True), DownloadError, "(3 request(s))"),
    "resets in the body": (cut(100_000, reset=True), DownloadError, "(3 request(s))"),
    "noise": (lambda x: (x.handler.wfile.write(b"\0\xff\n" * 50), x.hang_up()), DownloadError, "(3 request(s))"),
    "429 for too long": (answer(429, {"Retry-After": "999999"}), DownloadError, "asks to wait 999999 s) (1 request"),
    "broken gzip": (
        lambda x: (x.head(200, {"Content-Encoding": "gzip", "Content-Length": 9}), x.body(b"not gzip!")),
        DownloadError,
        "cannot be decoded",
    ),
}


@pytest.mark.parametrize(("fault", "error", "text"), ALWAYS.values(), ids=ALWAYS)
def test_a_mirror_that_always_fails(
    fault: Fault, error: type[DownloadError], text: str, origin: Origin, root: Path
) -> None:
    origin.put("/a", DATA, always=fault)
    with pytest.raises(DownloadError) as caught:
        quiet(one(DATA, origin.url("/a?sig=secret")), root, patience=0)
    assert type(caught.value) is error
    assert origin.url("/a") in str(caught.value)
    assert text in str(caught.value)
    assert "secret" not in str(caught.value)
    assert caught.value.hint
    assert [each.url for each in caught.value.attempts] == [origin.url("/a")]
    assert (caught.value.checkpoint, caught.value.file) == ("sam2", "weights.pt")
    assert visible(root) == []
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    assert caught.value.__cause__ is None  # a cause from requests would show the query
    assert caught.value.__context__ is None


@pytest.mark.parametrize(("fault", "error", "text"), ALWAYS.values(), ids=ALWAYS)
def test_the_next_mirror_heals(
    fault: Fault, error: type[DownloadError], text: str, origin: Origin, mirror: Origin, root: Path
) -> None:
    origin.put("/a", DATA, always=fault)
    mirror.put("/b", DATA)
    weights = quiet(one(DATA, origin.url("/a"), mirror.url("/b")), root)
    assert weights["sam2"].read_bytes() == DATA
    assert weights.report["sam2"].sources == (mirror.url("/b"),)


ONCE: dict[str, list[Fault | None]] = {
    "truncated": [broken(500_000)],
    "truncated again and again, with progress": [broken(200_000)] * 9,
    "reset": [broken(BLOCK + 5, reset=True)],
    "hung up": [hang_up(), hang_up(reset=True)],
    "503": [answer(503), answer(503)],
    "429": [answer(429, {"Retry-After": "0"})],
    "flipped after a resume": [broken(700_000), None],
    "206 from elsewhere": [broken(BLOCK + 9), wrong_part(f"bytes 5-9/{len(DATA)}", DATA[5:10])],
    "206 without a range": [broken(BLOCK + 9), answer(206, body=b"x")],
    "206 that is no range": [broken(BLOCK + 9), wrong_part("bytes */5", b"x")],
    "416 at the second": [broken(BLOCK + 9), answer(416)],
    "416 for a finished file": [broken(BLOCK + 9), answer(416, {"Content-Range": "bytes */5"})],
    "a redirect": [redirect("/elsewhere/b")],
    "408 and 425": [answer(408), answer(425)],
}


@pytest.mark.parametrize("faults", ONCE.values(), ids=ONCE)
def test_a_mirror_that_fails_and_recovers(faults: list[Fault | None], origin: Origin, root: Path) -> None:
    origin.put("/a", DATA, faults=list(faults))
    origin.put("/elsewhere/b", DATA)
    assert quiet(one(DATA, origin.url("/a")), root)["sam2"].read_bytes() == DATA
    assert origin.files["/a"].faults == []


@pytest.mark.parametrize("faults", ONCE.values(), ids=ONCE)
def test_the_same_without_a_declared_size(faults: list[Fault | None], origin: Origin, root: Path) -> None:
    origin.put("/a", DATA, faults=list(faults))
    origin.put("/elsewhere/b", DATA)
    assert quiet(one(DATA, origin.url("/a"), size=False), root)["sam2"].read_bytes() == DATA


SERVERS: dict[str, dict[str, Any]] = {
    "no ranges": {"ranges": False},
    "no length": {"length": False},
    "no ranges, no length": {"ranges": False, "length": False},
    "gzip": {"gzip": True},
    "gzip, no length": {"gzip": True, "length": False},
    "no ETag": {"etag": None},
    "a weak ETag": {"etag": 'W/"x"'},
}


@pytest.mark.parametrize("size", [True, False])
@pytest.mark.parametrize("server", SERVERS.values(), ids=SERVERS)
def test_servers_that_know_less(server: dict[str, Any], size: bool, origin: Origin, root: Path) -> None:
    origin.put("/a", DATA, faults=[broken(BLOCK + 9), None], **server)
    assert quiet(one(DATA, origin.url("/a"), size=size), root)["sam2"].read_bytes() == DATA


def test_a_gzip_file_that_is_labelled_as_encoded(origin: Origin, root: Path) -> None:
    """Apache sends x.gz with Content-Encoding: gzip; the pinned bytes are the file's own."""
    import gzip

    packed = gzip.compress(DATA, 1)
    origin.put(
        "/a",
        packed,
        always=lambda x: (x.head(200, {"Content-Encoding": "gzip", "Content-Length": len(packed)}), x.body(packed)),
    )
    assert quiet(one(packed, origin.url("/a")), root)["sam2"].read_bytes() == packed


def test_an_encoded_part_is_of_no_use(origin: Origin, root: Path) -> None:
    part = {"Content-Range": f"bytes {BLOCK + 9}-{len(DATA) - 1}/{len(DATA)}", "Content-Encoding": "gzip"}
    origin.put("/a", DATA, faults=[broken(BLOCK + 9), answer(206, part, b"x")])
    assert quiet(one(DATA, origin.url("/a")), root)["sam2"].read_bytes() == DATA


@pytest.mark.usefixtures("one_connection")
def test_a_resume_asks_for_the_rest(origin: Origin, root: Path) -> None:
    origin.put("/a", DATA, faults=[broken(BLOCK + 9)])
    quiet(one(DATA, origin.url("/a")), root)
    first, second = origin.requests
    assert "Range" not in first.headers
    assert second.headers["Range"] == f"bytes={BLOCK + 9}-"
    assert "If-Range" not in second.headers  # the digest judges, and not an ETag that each node may have its own of
    assert {each.headers["Accept-Encoding"] for each in origin.requests} == {"identity"}
    assert origin.sent() == len(DATA)


def test_content_that_changes_half_way(origin: Origin, mirror: Origin, root: Path) -> None:
    """The digest differs: a mix of two versions is wiped, and the new one is refused for what it is."""
    origin.put("/a", DATA, faults=[broken(BLOCK + 9)], always=other_bytes(OTHER, etag='"new"'))
    with pytest.raises(IntegrityError) as caught:
        quiet(one(DATA, origin.url("/a")), root)
    assert caught.value.actual == sha256(OTHER)
    assert caught.value.expected == sha256(DATA)
    assert caught.value.url == origin.url("/a")
    assert visible(root) == []


def test_a_part_of_a_file_of_another_size(origin: Origin, root: Path) -> None:
    part = wrong_part(f"bytes {BLOCK + 9}-{len(DATA)}/{len(DATA) + 1}", b"x")
    origin.put("/a", DATA, faults=[broken(BLOCK + 9)], always=part)
    with pytest.raises(IntegrityError, match=f"actual   {len(DATA) + 1} bytes"):
        quiet(one(DATA, origin.url("/a")), root)
    assert visible(root) == []


def test_content_that_changes_and_changes_back(origin: Origin, root: Path) -> None:
    origin.put("/a", DATA, faults=[broken(BLOCK + 9), other_bytes(OTHER, etag='"new"')])
    assert quiet(one(DATA, origin.url("/a")), root)["sam2"].read_bytes() == DATA


def test_a_mix_of_two_mirrors_is_not_blamed_on_the_second(origin: Origin, mirror: Origin, root: Path) -> None:
    """The first one broke off after wrong bytes; what it left must not make the second one look wrong."""
    bad = Origin()
    with bad:
        bad.put("/a", OTHER, faults=[broken(BLOCK + 9), answer(404)])
        mirror.put("/b", DATA)
        weights = quiet(one(DATA, bad.url("/a"), mirror.url("/b")), root)
    assert weights["sam2"].read_bytes() == DATA
    assert mirror.gets() == 2  # the rest, then the whole file alone


@pytest.mark.usefixtures("one_connection")
def test_a_second_mirror_goes_on_where_the_first_stopped(origin: Origin, mirror: Origin, root: Path) -> None:
    origin.put("/a", DATA, faults=[broken(BLOCK + 9)], always=answer(404))
    mirror.put("/b", DATA)
    weights = quiet(one(DATA, origin.url("/a"), mirror.url("/b")), root)
    assert weights["sam2"].read_bytes() == DATA
    assert mirror.sent() == len(DATA) - BLOCK - 9


def test_the_first_error_is_the_one_reported(origin: Origin, mirror: Origin, root: Path) -> None:
    origin.put("/gone", DATA, always=answer(404))
    origin.put("/wrong", DATA, always=other_bytes(OTHER))
    gone, wrong = origin.url("/gone"), origin.url("/wrong")
    with pytest.raises(DownloadError) as caught:
        quiet(one(DATA, gone, wrong), root)
    assert type(caught.value) is DownloadError
    assert [each.url for each in caught.value.attempts] == [gone, wrong]
    with pytest.raises(IntegrityError) as wrong_first:
        quiet(one(DATA, wrong, gone), root)
    assert [each.url for each in wrong_first.value.attempts] == [wrong, gone]
    assert "HTTP 404" in str(wrong_first.value)


@pytest.mark.usefixtures("one_connection")
def test_a_connection_that_stops_sending_is_replaced(
    origin: Origin, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_settings(monkeypatch, connect_timeout=5, stall_timeout=0.2)
    origin.put("/a", DATA, faults=[stalled(BLOCK + 9)])
    assert quiet(one(DATA, origin.url("/a")), root)["sam2"].read_bytes() == DATA
    assert origin.sent() == len(DATA)
    origin.put("/b", DATA, always=stalled(0))
    with pytest.raises(DownloadError, match=r"it sent nothing for 0\.2 s at byte 0 of \d+ \(3 request"):
        quiet(one(DATA, origin.url("/b"), name="b"), root / "b")


def test_a_server_that_does_not_answer_is_given_up(origin: Origin, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change_settings(monkeypatch, connect_timeout=5, stall_timeout=0.1)
    origin.put("/a", DATA, always=lambda exchange: exchange.origin.stopping.wait())
    with pytest.raises(DownloadError, match=r"no answer within 0\.1 s"):
        quiet(one(DATA, origin.url("/a")), root)


def test_a_connection_that_trickles_is_replaced(origin: Origin, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change_settings(monkeypatch, connect_timeout=5, stall_timeout=5, slow_window=0.2, slow_window_bytes=100_000)

    def trickle(exchange: Any) -> None:
        exchange.head(200, {"Content-Length": len(DATA)})
        for offset in range(len(DATA)):
            if exchange.origin.stopping.wait(0.02):
                return
            exchange.body(DATA[offset : offset + 1])

    origin.put("/a", DATA, faults=[trickle])
    assert quiet(one(DATA, origin.url("/a")), root)["sam2"].read_bytes() == DATA
    assert origin.gets() >= 2


def test_retry_after_is_honoured(origin: Origin, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("weightcache._runtime.cancel.Cancel.sleep", lambda self, seconds: slept.append(seconds))
    date = email.utils.formatdate(time.time() + 100, usegmt=True)
    headers: list[Any] = ["17", date, "soon", "-5"]
    origin.put("/a", DATA, faults=[answer(503, {"Retry-After": value}) for value in headers[:2]])
    quiet(one(DATA, origin.url("/a")), root)
    assert slept[0] == 17
    assert 90 < slept[1] <= 100
    slept.clear()
    origin.put("/b", DATA[:-1], faults=[answer(503, {"Retry-After": value}) for value in headers[2:]])
    quiet(one(DATA[:-1], origin.url("/b"), name="b"), root)
    assert all(seconds < 1 for seconds in slept)


def test_backoff_grows_with_jitter_and_starts_again_with_progress(
    origin: Origin, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bounds: list[float] = []
    change_settings(monkeypatch, tries=5, backoff=1.0, backoff_max=6.0)
    monkeypatch.setattr("weightcache._transfer.download.random.uniform", lambda low, high: bounds.append(high) or 0.0)
    faults: list[Fault | None] = [answer(503)] * 4 + [broken(900)] + [answer(503)] * 3
    origin.put("/a", DATA, faults=faults)
    quiet(one(DATA, origin.url("/a")), root)
    assert bounds == [2.0, 4.0, 6.0, 6.0, 2.0, 4.0, 6.0, 6.0]


def test_nobody_there(root: Path) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{held.getsockname()[1]}/a"
        with pytest.raises(DownloadError, match="Connection refused"):
            quiet(one(DATA, url), root)
    with pytest.raises(DownloadError, match="no mirror delivered"):
        quiet(one(DATA, "http://no-such-host.invalid/a?secret"), root)


def test_a_host_that_no_request_can_be_made_to(root: Path) -> None:
    with pytest.raises(DownloadError, match="the request cannot be made"):
        quiet(one(DATA, f"http://{'x' * 300}/a"), root)


def test_an_answer_with_two_lengths(root: Path) -> None:
    def answer(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1,00\r\n\r\nx")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=answer, args=(listener,))
        server.start()
        with pytest.raises(DownloadError, match="Content-Length that is wrong: several numbers that differ"):
            quiet(one(DATA, f"http://127.0.0.1:{listener.getsockname()[1]}/a"), root)
        server.join()


@pytest.mark.parametrize(
    ("target", "reason"),
    [("missing", "No such file"), *((each, "is not a regular file") for each in ("folder", "fifo", "/dev/zero"))],
)
def test_file_urls_name_regular_files(target: str, reason: str, root: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(DownloadError, match=reason):
        quiet(one(DATA, (tmp_path / target).as_uri()), root)


def test_file_urls_of_the_wrong_file(root: Path, tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(DATA[:-1])
    (tmp_path / "other").write_bytes(OTHER)
    for name in ("short", "other"):
        with pytest.raises(IntegrityError):
            quiet(one(DATA, (tmp_path / name).as_uri()), root)
    assert visible(root) == []


def test_a_file_url_goes_on_where_a_mirror_stopped(origin: Origin, root: Path, tmp_path: Path) -> None:
    (tmp_path / "copy").write_bytes(DATA)
    origin.put("/a", DATA, faults=[broken(BLOCK + 9)], always=answer(404))
    weights = quiet(one(DATA, origin.url("/a"), (tmp_path / "copy").as_uri()), root)
    assert weights["sam2"].read_bytes() == DATA
    assert weights.report["sam2"].bytes_fetched == len(DATA)


@pytest.mark.usefixtures("one_connection")
def test_a_hole_in_the_middle_is_filled_alone(origin: Origin, root: Path) -> None:
    data = blob(6 * BLOCK + 5)
    origin.put("/a", data, faults=[broken(5 * BLOCK + 5)], always=answer(404))
    manifest = one(data, origin.url("/a"))
    with pytest.raises(DownloadError):
        quiet(manifest, root)
    [partial] = partials(root)
    with open(partial / sha256(data), "r+b") as stream:
        for block in (0, 2, 3):
            stream.seek(block * BLOCK)
            stream.write(b"\0" * 100)
    origin.files["/a"].always = None
    origin.requests.clear()
    assert quiet(manifest, root)["sam2"].read_bytes() == data
    assert [each.headers.get("Range") for each in origin.requests] == [
        f"bytes=0-{BLOCK - 1}",
        f"bytes={2 * BLOCK}-{3 * BLOCK - 1}",
        f"bytes={3 * BLOCK}-{4 * BLOCK - 1}",
        f"bytes={5 * BLOCK}-",
    ]
    assert origin.sent() == 3 * BLOCK + BLOCK + 5


@pytest.mark.parametrize("ranges", [True, False])
def test_a_server_that_ignores_the_end_of_a_range(ranges: bool, origin: Origin, root: Path) -> None:
    data = blob(4 * BLOCK)

    def too_long(exchange: Any) -> None:
        exchange.head(206, {"Content-Range": f"bytes 0-{len(data) - 1}/{len(data)}", "Content-Length": len(data)})
        exchange.body(data)

    origin.put("/a", data, faults=[broken(3 * BLOCK)], always=answer(404))
    with pytest.raises(DownloadError):
        quiet(one(data, origin.url("/a")), root)
    [partial] = partials(root)
    with open(partial / sha256(data), "r+b") as stream:
        stream.write(b"\0" * 100)
    origin.put("/a", data, always=too_long if ranges else None, ranges=ranges)
    if ranges:
        origin.files["/a"].faults, origin.files["/a"].always = [too_long], None
    assert quiet(one(data, origin.url("/a")), root)["sam2"].read_bytes() == data


def test_tls(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ssl

    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with Origin(tls=context) as origin:
        origin.put("/a", DATA)
        manifest = one(DATA, origin.url("/a"))
        with pytest.raises(DownloadError, match="TLS: certificate verify failed"):
            quiet(manifest, root)
        authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "ca.pem"))
        assert quiet(manifest, root)["sam2"].read_bytes() == DATA


def test_proxies_are_used(origin: Origin, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    origin.put("http://weights.invalid/a", DATA)  # a proxy is asked for the whole URL
    monkeypatch.setenv("http_proxy", origin.url(""))
    monkeypatch.setenv("no_proxy", "")
    assert quiet(one(DATA, "http://weights.invalid/a"), root)["sam2"].read_bytes() == DATA


def test_the_hub(origin: Origin, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "0123456789" * 4
    monkeypatch.setenv("HF_ENDPOINT", origin.url(""))
    origin.put(f"/org/name/resolve/{commit}/a/b c.json", b"{}")
    manifest = {
        "checkpoints": {"c": {"urls": [f"hf://org/name@{commit}"], "files": {"a/b c.json": {"sha256": sha256(b"{}")}}}}
    }
    assert (quiet(manifest, root)["c"] / "a/b c.json").read_bytes() == b"{}"


def test_one_connection_serves_many_files(origin: Origin, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from support import directory

    change_settings(monkeypatch, slow_after=60.0)  # whatever this machine is busy with
    files = {f"{number}": blob(100, number) for number in range(30)}
    ports = set()
    for path, data in files.items():
        origin.put(f"/d/{path}", data, always=lambda x: (ports.add(x.handler.client_address), x.good()))
    quiet(directory(files, origin.url("/d")), root)
    assert len(ports) == 1


def test_failures_are_logged_without_the_query(
    origin: Origin, mirror: Origin, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "weightcache")
    origin.put("/a", DATA, faults=[broken(500)], always=answer(404))
    mirror.put("/b", DATA)
    quiet(one(DATA, origin.url("/a?sig=secret"), mirror.url("/b?sig=secret")), root)
    said = "\n".join(record.getMessage() for record in caplog.records if record.name == "weightcache")
    assert f"{origin.url('/a')}: the connection" in said
    assert "HTTP 404" in said
    assert "secret" not in said


@pytest.mark.usefixtures("one_connection")
def test_a_mirror_that_is_wrong_by_its_header_costs_nothing(origin: Origin, mirror: Origin, root: Path) -> None:
    """What the first mirror delivered is kept when the second one announces another length."""
    origin.put("/a", DATA, faults=[broken(BLOCK + 9)], always=answer(404))
    mirror.put("/b", DATA, always=answer(200, body=b"quota"))
    with pytest.raises(DownloadError):
        quiet(one(DATA, origin.url("/a"), mirror.url("/b")), root)
    origin.files["/a"].always = None
    origin.requests.clear()
    assert quiet(one(DATA, origin.url("/a")), root).report["sam2"].outcome == "resumed"
    assert origin.sent() == len(DATA) - BLOCK


def test_refused_bytes_are_not_asked_for_block_by_block_later(origin: Origin, mirror: Origin, root: Path) -> None:
    origin.put("/a", DATA, always=other_bytes(FLIPPED))
    mirror.put("/b", DATA)
    with pytest.raises(IntegrityError):
        quiet(one(DATA, origin.url("/a")), root)
    origin.requests.clear()
    weights = quiet(one(DATA, origin.url("/a"), mirror.url("/b")), root)
    assert weights["sam2"].read_bytes() == DATA
    assert (origin.gets(), mirror.gets()) == (1, 1)


def test_the_body_of_a_redirect_is_not_read(origin: Origin, root: Path) -> None:
    sent = itertools.count()  # MiB; a socket holds a few

    def endless(exchange: Any) -> None:
        exchange.head(302, {"Location": "/b", "Content-Length": 10**9})
        while not exchange.origin.stopping.is_set() and next(sent) < 256:
            exchange.body(bytes(1 << 20))

    origin.put("/a", DATA, always=endless)
    origin.put("/b", DATA)
    assert quiet(one(DATA, origin.url("/a")), root)["sam2"].read_bytes() == DATA
    assert next(sent) < 64


def test_several_connections_are_served_at_once(origin: Origin, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change_settings(monkeypatch, connections=4, slow_after=0.0, fast_rate=1e15)  # any link is slow
    for module in (transfer_types, scheduler, file_transfer):
        monkeypatch.setattr(module, "PART", BLOCK)
    data, numbers, met = blob(12 * BLOCK), itertools.count(), threading.Barrier(3)

    def together(exchange: Exchange) -> None:
        if 1 <= next(numbers) <= 3:
            met.wait(4.0)  # a stall is longer
        exchange.good()

    origin.put("/a", data, always=together)
    assert quiet(one(data, origin.url("/a")), root)["sam2"].read_bytes() == data
    assert not met.broken
