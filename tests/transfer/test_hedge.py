"""A connection that is throttled does not hold the file: another one fetches the same block, and the first one wins."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path

import pytest

import weightcache
from origin import Exchange, Origin
from support import blob, one, partials, quiet
from weightcache._runtime.tuning_constants import Settings
from weightcache._transfer import work_stealing

MB = 1 << 20
DATA = blob(24 * MB + 5)


class Throttle:
    """Every answer comes at a usual rate, but for some: those come at a few bytes a second, and never end."""

    def __init__(self, origin: Origin, *numbers: int) -> None:
        self.numbers, self.count, self.slowed = numbers, 0, 0
        self._origin, self._lock = origin, threading.Lock()

    def __call__(self, exchange: Exchange) -> None:
        first, _, last = exchange.request.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        start, end = int(first), int(last or len(DATA) - 1)
        with self._lock:
            self.count += end - start >= MB - 1  # the last five bytes would not be slow
            slow = end - start >= MB - 1 and self.count in self.numbers
            self.slowed += slow
        if not slow:
            exchange.good()
            return
        exchange.head(
            206, {"Content-Range": f"bytes {start}-{end}/{len(DATA)}", "Content-Length": str(end - start + 1)}
        )
        at = start
        while at <= end and not self._origin.stopping.wait(0.05):
            exchange.body(DATA[at : at + 20])
            at += 20


@pytest.mark.parametrize("numbers", [(3,), (9,), (4, 5, 6)], ids=["one", "a late one", "three"])
def test_throttled_connections_hold_nothing(numbers: tuple[int, ...], origin: Origin, root: Path) -> None:
    """At 400 bytes a second a block takes 44 minutes, far beyond the limit of a test."""
    throttle = Throttle(origin, *numbers)
    origin.put("/a", DATA, rate=3e6, always=throttle)
    weights = quiet(one(DATA, origin.url("/a")), root)
    assert weights["sam2"].read_bytes() == DATA
    assert throttle.slowed == len(numbers)
    assert weights.report["sam2"].bytes_fetched <= len(DATA) + Settings.hedge_bytes
    assert partials(root) == []


def test_without_races_the_block_is_waited_for(origin: Origin, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the tests above would pass for another reason."""
    monkeypatch.setattr(work_stealing, "hedge", lambda *arguments: None)
    throttle, ended = Throttle(origin, 3), threading.Event()
    origin.put("/a", DATA, rate=3e6, always=throttle)

    def run() -> None:
        with suppress(weightcache.WeightCacheError):
            quiet(one(DATA, origin.url("/a")), root, patience=0.0)
        ended.set()

    thread = threading.Thread(target=run)
    thread.start()
    assert not ended.wait(5.0)
    origin.stopping.set()  # the slow answer breaks off
    thread.join(60)
    assert ended.is_set()


def test_a_server_without_ranges_is_not_raced(origin: Origin, root: Path) -> None:
    origin.put("/a", DATA, ranges=False, rate=30e6)
    assert quiet(one(DATA, origin.url("/a")), root).report["sam2"].bytes_fetched == len(DATA)
    assert origin.gets() <= 24  # each connection finds out at most once that it gives no parts


def test_a_link_where_all_are_slow_fetches_nothing_twice(origin: Origin, root: Path) -> None:
    data = DATA[: 2 * MB]
    origin.put("/a", data, rate=4e5)
    assert quiet(one(data, origin.url("/a")), root).report["sam2"].bytes_fetched <= 1.1 * len(data)
