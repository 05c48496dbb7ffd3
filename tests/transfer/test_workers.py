"""Many connections at work on real files from a real server that gives each of them little."""

from __future__ import annotations

import itertools
import os
import socket
import ssl
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import trustme
import urllib3.connection

from origin import Exchange, Fault, Origin, broken, hang_up, other_bytes, redirect, stalled
from origin import status as answer
from support import MB, blob, change_settings, directory, one, partials, quiet, sha256, visible
from weightcache import DownloadError, IntegrityError
from weightcache._runtime.tuning_constants import Settings
from weightcache._store.partial_directory import BLOCK
from weightcache._store.partial_file import PartialFile
from weightcache._transfer import file_response, workers
from weightcache._transfer.scheduler import Scheduler
from weightcache._transfer.transfer_types import PART

DATA = blob(40 * MB)
SLOW = 8e6  # bytes a second for each connection
SOCKETS = 512 << 10  # bytes that a connection may have on its way when it is cut short


def at_most(connections: int, status: int, times: int = 1 << 30) -> Fault:
    """Refuse a request while that many are served, at most that many times.

    Not while that many are busy: requests that come together would refuse each other, and none would be served.
    """
    slots, refused = threading.Semaphore(connections), itertools.count(1)

    def fault(exchange: Exchange) -> None:
        if slots.acquire(blocking=False):
            try:
                exchange.good()
            finally:
                slots.release()
        elif next(refused) <= times:
            answer(status)(exchange)
        else:
            exchange.good()

    return fault


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("weightcache")]


def clients(origin: Origin) -> set[tuple[str, int]]:
    return {request.client for request in origin.requests}


@pytest.fixture
def small_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a socket take in little beside a reader that has no processor just now; it would be megabytes."""
    options = urllib3.connection.HTTPConnection.default_socket_options or []
    small = (socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKETS // 8)
    monkeypatch.setattr(urllib3.connection.HTTPConnection, "default_socket_options", [*options, small])


@pytest.mark.usefixtures("small_sockets")
def test_a_slow_link_gets_many_connections(origin: Origin, root: Path) -> None:
    origin.put("/a", DATA, rate=SLOW)
    most: list[int] = []
    origin.on_request = lambda _: most.append(origin.busy())
    weights = quiet(one(DATA, origin.url("/a")), root)
    assert weights["sam2"].read_bytes() == DATA
    assert weights.report["sam2"].bytes_fetched == len(DATA)
    assert 4 < max(most) <= Settings.connections
    assert origin.sent() <= len(DATA) + origin.gets() * SOCKETS
    first, *others = (request.headers["Range"] for request in origin.requests)
    assert first == f"bytes=0-{PART - 1}"
    assert all(each.startswith("bytes=") for each in others)
    assert threads() == []


def test_a_connection_serves_part_after_part(origin: Origin, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change_settings(monkeypatch, connections=2)
    origin.put("/a", DATA, rate=2 * SLOW)
    most: list[int] = []
    origin.on_request = lambda _: most.append(origin.busy())
    assert quiet(one(DATA, origin.url("/a")), root)["sam2"].read_bytes() == DATA
    assert max(most) == 2
    # A response that is cut short at the end costs its connection; all the others leave theirs for the next part.
    assert len(clients(origin)) < origin.gets() - 1


def test_a_fast_link_keeps_to_one_connection(origin: Origin, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change_settings(monkeypatch, slow_after=60.0)  # whatever this machine is busy with
    origin.put("/a", DATA)
    assert quiet(one(DATA, origin.url("/a")), root)["sam2"].read_bytes() == DATA
    assert [request.headers["Range"] for request in origin.requests] == [f"bytes=0-{PART - 1}", f"bytes={PART}-"]
    assert len(clients(origin)) == 1


def test_small_files_go_over_few_connections(origin: Origin, root: Path) -> None:
    files = {f"{number}": blob(20_000, number) for number in range(600)}
    for path, data in files.items():
        origin.put(f"/d/{path}", data)
    weights = quiet(directory(files, origin.url("/d")), root)
    assert all((weights["bert"] / path).read_bytes() == data for path, data in files.items())
    assert origin.gets() == 600
    assert len(clients(origin)) <= Settings.connections


def test_several_files_share_the_connections(origin: Origin, root: Path) -> None:
    manifest = one(DATA, origin.url("/a"))
    others = {name: blob(9 * MB, seed) for seed, name in enumerate(["x", "y", "z"], 1)}
    manifest["checkpoints"] |= directory(others, origin.url("/d"))["checkpoints"]
    origin.put("/a", DATA, rate=SLOW)
    for name, data in others.items():
        origin.put(f"/d/{name}", data, rate=SLOW)
    most: list[int] = []
    origin.on_request = lambda _: most.append(origin.busy())
    weights = quiet(manifest, root)
    assert weights["sam2"].read_bytes() == DATA
    assert all((weights["bert"] / name).read_bytes() == data for name, data in others.items())
    assert max(most) <= Settings.connections


FAULTS: dict[str, list[Fault | None]] = {
    "one breaks off": [None, None, broken(BLOCK + 9)],
    "many break off": [None, *[broken(BLOCK + number) for number in range(12)]],
    "many are reset": [None, *[broken(300_000, reset=True)] * 12],
    "many are refused": [None, *[answer(503)] * 4],
    "many must wait": [None, *[answer(429, {"Retry-After": "0"})] * 4],
    "many are hung up on": [None, *[hang_up()] * 12],
    "one is 404": [None, None, answer(404)],
    "one is 416": [None, None, None, answer(416)],
    "one is another file": [None, None, None, other_bytes(blob(40 * MB, 9), '"new"')],
}


@pytest.mark.parametrize("faults", FAULTS.values(), ids=FAULTS)
def test_faults_among_many_connections(faults: list[Fault | None], origin: Origin, root: Path) -> None:
    origin.put("/a", DATA, faults=list(faults), rate=SLOW)
    weights = quiet(one(DATA, origin.url("/a")), root)
    assert weights["sam2"].read_bytes() == DATA
    if not (faults[-1] and "other" in faults[-1].__qualname__):
        assert weights.report["sam2"].bytes_fetched == len(DATA)  # what the others fetched is kept
    assert threads() == []


def test_a_stalled_connection_is_replaced_alone(origin: Origin, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its timeout: an idle connection takes over, and what the others fetched is not fetched again."""
    change_settings(monkeypatch, connect_timeout=5, stall_timeout=600)
    origin.put("/a", DATA, faults=[None, None, stalled(BLOCK + 9), stalled(0)], rate=SLOW)
    weights = quiet(one(DATA, origin.url("/a")), root)
    assert weights["sam2"].read_bytes() == DATA
    assert weights.report["sam2"].bytes_fetched == len(DATA)


def test_the_next_mirror_takes_over_in_the_middle(origin: Origin, mirror: Origin, root: Path) -> None:
    origin.put("/a", DATA, faults=[None] * 3, always=answer(404), rate=SLOW)
    mirror.put("/b", DATA, rate=SLOW)
    weights = quiet(one(DATA, origin.url("/a"), mirror.url("/b")), root)
    assert weights["sam2"].read_bytes() == DATA
    assert weights.report["sam2"].bytes_fetched == len(DATA)
    assert origin.sent() > 0
    assert mirror.sent() < len(DATA)


def test_wrong_bytes_in_parts_are_one_mirrors_fault(origin: Origin, mirror: Origin, root: Path) -> None:
    flipped = DATA[: 30 * MB] + bytes([DATA[30 * MB] ^ 1]) + DATA[30 * MB + 1 :]
    origin.put("/a", flipped, rate=SLOW)
    with pytest.raises(IntegrityError) as caught:
        quiet(one(DATA, origin.url("/a")), root)
    assert caught.value.actual == sha256(flipped)
    assert visible(root) == []
    assert origin.sent() < 1.5 * len(DATA)  # all parts had the same ETag: it is not asked for the whole file again
    mirror.put("/b", DATA)
    assert quiet(one(DATA, origin.url("/a"), mirror.url("/b")), root)["sam2"].read_bytes() == DATA


@pytest.mark.parametrize("size", [True, False])
def test_a_slow_server_without_ranges_is_read_on_one_connection(size: bool, origin: Origin, root: Path) -> None:
    data = DATA[: 12 * MB]
    origin.put("/a", data, ranges=False, rate=SLOW)
    weights = quiet(one(data, origin.url("/a"), size=size), root)
    assert weights["sam2"].read_bytes() == data
    assert weights.report["sam2"].bytes_fetched == len(data)


def test_a_file_of_unknown_size_is_fetched_in_parts_too(origin: Origin, root: Path) -> None:
    origin.put("/a", DATA, rate=SLOW)
    weights = quiet(one(DATA, origin.url("/a"), size=False), root)
    assert weights["sam2"].read_bytes() == DATA
    assert origin.gets() > 4


def test_a_server_that_allows_few_connections_gets_few(origin: Origin, root: Path) -> None:
    origin.put("/a", DATA, always=at_most(3, 429), rate=SLOW)
    weights = quiet(one(DATA, origin.url("/a")), root)
    assert weights["sam2"].read_bytes() == DATA
    refused = sum(request.status == 429 for request in origin.requests)
    assert refused <= 2 * Settings.connections


def test_a_redirect_is_asked_for_once(origin: Origin, mirror: Origin, root: Path) -> None:
    origin.put("/a", DATA, always=redirect(mirror.url("/b?sig=1")))
    mirror.put("/b", DATA, rate=SLOW)
    assert quiet(one(DATA, origin.url("/a")), root)["sam2"].read_bytes() == DATA
    assert mirror.gets() > 4
    assert origin.gets() == 1


@pytest.mark.parametrize("connections", [1, Settings.connections])
def test_a_signed_url_that_expires_is_asked_for_again(
    connections: int, origin: Origin, mirror: Origin, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_settings(monkeypatch, connections=connections)
    signature = [0]

    def sign(exchange: Exchange) -> None:
        signature[0] += 1
        redirect(mirror.url(f"/b?sig={signature[0]}"))(exchange)

    def expire(exchange: Exchange) -> None:
        if exchange.request.path.endswith("=1") and mirror.gets() > min(connections, 3):
            answer(403)(exchange)
        else:
            exchange.good()

    origin.put("/a", DATA, always=sign)
    mirror.put("/b", DATA, always=expire, rate=0 if connections == 1 else SLOW)
    weights = quiet(one(DATA, origin.url("/a")), root)
    assert weights["sam2"].read_bytes() == DATA
    assert weights.report["sam2"].bytes_fetched == len(DATA)
    assert origin.gets() >= 2


def test_many_connections_over_tls_read_the_ca_bundle_once(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "ca.pem"))
    reads: list[object] = []
    load = ssl.SSLContext.load_verify_locations
    monkeypatch.setattr(
        ssl.SSLContext, "load_verify_locations", lambda self, *a, **k: (reads.append(k or a), load(self, *a, **k))
    )
    with Origin(tls=context) as origin:
        origin.put("/a", DATA, rate=SLOW)
        assert quiet(one(DATA, origin.url("/a")), root)["sam2"].read_bytes() == DATA
        assert len(clients(origin)) > 4
    assert len(reads) == 1


def test_a_directory_of_certificates(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    folder = tmp_path / "certificates"
    folder.mkdir()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    subprocess.run(["openssl", "rehash", folder], check=True)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(folder))
    with Origin(tls=context) as origin:
        origin.put("/a", b"data")
        assert quiet(one(b"data", origin.url("/a")), root)["sam2"].read_bytes() == b"data"


def test_bodies_are_read_without_a_copy(origin: Origin, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The read into our own memory is in use: one that copied would cost a tenth of the whole download."""
    copied: list[int] = []
    monkeypatch.setattr("urllib3.HTTPResponse.read1", lambda self, count: copied.append(count))
    origin.put("/a", DATA)
    assert quiet(one(DATA, origin.url("/a")), root)["sam2"].read_bytes() == DATA
    assert copied == []


def test_a_kernel_that_does_not_count_what_is_queued(
    origin: Origin, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(25, "Inappropriate ioctl for device")

    monkeypatch.setattr(file_response.fcntl, "ioctl", refuse)
    origin.put("/a", DATA, rate=SLOW)
    assert quiet(one(DATA, origin.url("/a")), root)["sam2"].read_bytes() == DATA


def test_a_limit_of_one_connection(origin: Origin, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change_settings(monkeypatch, connections=1)
    data = DATA[: 10 * MB]
    origin.put("/a", data, faults=[None, broken(BLOCK + 9)], rate=SLOW)
    most: list[int] = []
    origin.on_request = lambda _: most.append(origin.busy())
    assert quiet(one(data, origin.url("/a")), root)["sam2"].read_bytes() == data
    assert max(most) == 1


def test_a_mirror_that_freezes_is_left_for_the_next_one(
    origin: Origin, mirror: Origin, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that took over from a stalled one is not replaced: its timeout speaks for the mirror."""
    change_settings(monkeypatch, connect_timeout=5, stall_timeout=1.0)
    change_settings(monkeypatch, stalled_after=0.1)
    origin.put("/a", DATA, faults=[None] * 3, always=stalled(0), rate=SLOW)
    mirror.put("/b", DATA)
    weights = quiet(one(DATA, origin.url("/a"), mirror.url("/b")), root)
    assert weights["sam2"].read_bytes() == DATA
    assert weights.report["sam2"].sources == (mirror.url("/b"),)
    assert origin.gets() < 100


def test_a_slow_disk_is_not_a_stalled_mirror(origin: Origin, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change_settings(monkeypatch, stalled_after=0.1)
    write, slow = os.pwrite, [1, 5, 9]

    def pwrite(descriptor: int, data: memoryview, offset: int) -> int:
        if offset // BLOCK in slow:
            slow.remove(offset // BLOCK)
            time.sleep(0.6)  # the stimulus itself
        return write(descriptor, data, offset)

    monkeypatch.setattr("weightcache._store.partial_directory.os.pwrite", pwrite)
    origin.put("/a", DATA, rate=SLOW)
    weights = quiet(one(DATA, origin.url("/a")), root)
    assert weights["sam2"].read_bytes() == DATA
    assert weights.report["sam2"].bytes_fetched == len(DATA)
    assert slow == []


def test_an_empty_file_wakes_who_waits_for_it(origin: Origin, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = workers.Connection.run
    monkeypatch.setattr(workers.Connection, "run", lambda self: (time.sleep(0.05), run(self)))  # after all others wait
    weights = quiet(one(b"", origin.url("/a")), root)
    assert weights["sam2"].read_bytes() == b""
    wrong = one(b"", origin.url("/a"), name="b")
    wrong["checkpoints"]["b"]["sha256"] = sha256(b"not empty")
    with pytest.raises(IntegrityError):
        quiet(wrong, root)


def test_idle_connections_do_not_keep_each_other_awake(
    origin: Origin, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {f"{number}": blob(1000, number) for number in range(200)}
    for path, data in files.items():
        origin.put(f"/d/{path}", data)
    take, finish_file = Scheduler.assign, PartialFile.seal
    asked, storm, slow = [0], threading.Event(), iter([True])

    def counted(self: Scheduler, now: float) -> Any:
        asked[0] += 1
        if asked[0] > 5000:
            storm.set()
        return take(self, now)

    def slowly(self: PartialFile, size: int) -> None:
        if next(slow, False):
            storm.wait(1.0)  # meanwhile every file that may be open is downloaded, and all connections are idle
        finish_file(self, size)

    change_settings(monkeypatch, fast_rate=1e15)
    change_settings(monkeypatch, slow_after=0.0)
    monkeypatch.setattr(Scheduler, "assign", counted)
    monkeypatch.setattr(PartialFile, "seal", slowly)
    assert quiet(directory(files, origin.url("/d")), root).report.bytes_fetched == 200_000
    assert not storm.is_set()


def test_retry_after_holds_for_all_connections(origin: Origin, root: Path) -> None:
    asked: list[float] = []

    def refuse(exchange: Exchange) -> None:
        asked.append(time.monotonic())
        answer(503, {"Retry-After": "1"})(exchange)

    origin.put("/d/x", DATA, rate=SLOW)
    origin.put("/d/y", DATA[:MB], faults=[refuse, None])
    origin.on_request = lambda request: request.path == "/d/y" and asked.append(time.monotonic())
    weights = quiet(directory({"x": DATA, "y": DATA[:MB]}, origin.url("/d")), root)
    assert (weights["bert"] / "y").read_bytes() == DATA[:MB]
    first, _, second = asked
    assert second - first >= 1.0


def test_a_burst_of_refusals(origin: Origin, root: Path) -> None:
    origin.put("/a", DATA, always=at_most(1, 503, times=23), rate=SLOW)
    weights = quiet(one(DATA, origin.url("/a")), root)
    assert weights["sam2"].read_bytes() == DATA
    assert any(request.status == 503 for request in origin.requests)


def test_what_the_partial_holds_is_of_use_to_the_mirror_after_one_without_parts(
    origin: Origin, mirror: Origin, root: Path
) -> None:
    data = blob(6 * BLOCK + 5)
    origin.put("/a", data, faults=[broken(5 * BLOCK)], always=answer(404))
    with pytest.raises(DownloadError):
        quiet(one(data, origin.url("/a")), root)
    [partial] = partials(root)
    with open(partial / sha256(data), "r+b") as stream:
        stream.write(bytes(100))  # a hole at the beginning

    def whole_or_nothing(exchange: Exchange) -> None:
        (answer(416) if "Range" in exchange.request.headers else broken(100_000))(exchange)

    origin.put("/a", data, always=whole_or_nothing)
    mirror.put("/b", data)
    assert quiet(one(data, origin.url("/a"), mirror.url("/b")), root)["sam2"].read_bytes() == data
    assert mirror.sent() <= 2 * BLOCK + 5
