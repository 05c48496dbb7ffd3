"""What a prefetch has open, in memory and at work, and a gate that holds up its reads."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

import weightcache
from origin import Origin
from support import blob, one
from weightcache._prefetch import prefetcher as prefetch_reader
from weightcache._prefetch.prefetched_file import READ_CHUNK

LARGE = blob(2 * READ_CHUNK + 12345)


def descriptors(under: Path) -> list[str]:
    """What this process has open below a path."""
    links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    return [target for link in links if os.path.lexists(link) and (target := os.readlink(link)).startswith(str(under))]


others: set[str] = set()  # what tests of other files left to the garbage collector


def all_memfds() -> list[str]:
    links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    return [link for link in links if os.path.lexists(link) and "memfd:" in os.readlink(link)]


def memfds() -> list[str]:
    return [os.readlink(link) for link in all_memfds() if link not in others]


def readers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("weightcache-prefetch")]


def a_large_one_and_another(origin: Origin) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a manifest of a large file, and one with a second file too: a hit and a miss, once the first is there."""
    origin.put("/large", LARGE)
    origin.put("/b", b"b")
    there, other = one(LARGE, origin.url("/large")), one(b"b", origin.url("/b"), name="b")
    return there, {"checkpoints": {**there["checkpoints"], **other["checkpoints"]}}


class Gate:
    """Holds every read of a file until it is opened: by the test, or (``until_pause``) by a pause that has begun."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str = "large", *, until_pause: bool = False) -> None:
        self.reached, self.go_on = threading.Event(), threading.Event()
        self.reads: list[tuple[str, int]] = []
        read = prefetch_reader.read_chunk

        def gated(file: Any, start: int, *rest: Any) -> int:
            self.reads.append((os.path.basename(file.path), start))
            if file.path.endswith(name):
                file.open()
                self.reached.set()
                assert self.go_on.wait(60)
            return read(file, start, *rest)

        monkeypatch.setattr(prefetch_reader, "read_chunk", gated)
        let_go = weightcache.Prefetch._close_idle

        def letting_go(handle: weightcache.Prefetch) -> None:
            self.go_on.set()
            let_go(handle)

        if until_pause:
            monkeypatch.setattr(weightcache.Prefetch, "_close_idle", letting_go)
