"""What the tests of benchmarks/slowvol share: the bytes of its files, and looks at mounts and processes."""

from __future__ import annotations

import math
import os
import select
from pathlib import Path

from support import blob, sha256

BLOCK = 1 << 20
BLOCKS = 6
DATA = blob((BLOCKS - 1) * BLOCK + 12_345)  # the last block is a short one
SHA256 = sha256(DATA)  # compared instead of DATA, since pytest takes minutes to show how megabytes differ
MINUTE = 60.0  # seconds; not more, since a killed process that reads ends when its read does
FAST = {"block": BLOCK, "latency": 0.0, "stream": math.inf, "total": math.inf}


def mounted(path: Path) -> bool:
    return f" {path} " in Path("/proc/self/mountinfo").read_text()


def digest(path: Path) -> str:
    return sha256(path.read_bytes())


def pread(path: Path, size: int, at: int) -> bytes:
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.pread(fd, size, at)
    finally:
        os.close(fd)


def ended(pid: int) -> int:
    """Return a descriptor that becomes readable when this process is gone."""
    return os.pidfd_open(pid)


def wait_for_end(descriptor: int) -> None:
    assert select.select([descriptor], [], [], 60)[0], "it still runs after a minute"
    os.close(descriptor)
