"""What a container answers to the system calls that weightcache uses, for ``doctor --volume NAME --probe``.

docs/volumes.md has the answers of two builds of gVisor. Which build Modal uses is unknown.
"""

from __future__ import annotations

import ctypes
import errno
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

GAP = 1 << 20  # bytes of a file without a block


def sandbox(home: Path) -> dict[str, Any]:
    """Return the answers in a directory of the Volume, and in one of the container's own disk."""
    with tempfile.TemporaryDirectory() as own:
        return {
            "kernel": _first_line("/proc/version"),
            "boot_id": os.path.exists("/proc/sys/kernel/random/boot_id"),
            "pid_namespace_has_an_id": _call(lambda: os.stat("/proc/self/ns/pid").st_ino > 0),
            "cgroup_files": len(os.listdir("/sys/fs/cgroup")) if os.path.isdir("/sys/fs/cgroup") else None,
            "memfd_create": _call(lambda: os.close(os.memfd_create("probe")), "ok"),
            "on_the_volume": _files(home / "sandbox"),
            "on_its_own_disk": _files(Path(own, "sandbox")),
        }


def _files(folder: Path) -> dict[str, Any]:
    folder.mkdir()
    path = folder / "file"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.ftruncate(descriptor, GAP)
        found = {
            "bytes_used_by_a_gap": os.fstat(descriptor).st_blocks * 512,
            "sync_file_range": _sync_file_range(descriptor),
            "lease": _lease(path),
        }
        path.unlink()
        found["links_of_a_removed_file"] = os.fstat(descriptor).st_nlink
    finally:
        os.close(descriptor)
    (folder / "link").symlink_to(folder)
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
    found["link_opened_without_following"] = _call(lambda: os.close(os.open(folder / "link", flags)), "ok")
    return found


def _lease(path: Path) -> object:
    """Ask for a lease, by which a partial is known to be open nowhere else; this file has one descriptor."""
    import fcntl

    descriptor = os.open(path.with_name("leased"), os.O_RDONLY | os.O_CREAT, 0o600)
    try:
        return _call(lambda: fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK), "ok")
    finally:
        os.close(descriptor)


def _sync_file_range(descriptor: int) -> object:
    """Wait for what was handed over, and hand over the rest, as `WriteBack` does."""
    library = ctypes.CDLL(None, use_errno=True)
    if not hasattr(library, "sync_file_range"):
        return "missing"
    wide = ctypes.c_int64
    failed = library.sync_file_range(ctypes.c_int(descriptor), wide(0), wide(0), ctypes.c_uint(1 | 2))
    return errno.errorcode.get(ctypes.get_errno(), "?") if failed else "ok"


def _first_line(path: str) -> str:
    with suppress(OSError):
        return Path(path).read_text(encoding="utf-8").strip()
    return ""


def _call(act: Callable[[], object], otherwise: object = None) -> object:
    """Return what ``act`` returns, or ``otherwise`` if that is given; the name of its error if it fails."""
    try:
        found = act()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, type(error).__name__)
    return found if otherwise is None else otherwise
