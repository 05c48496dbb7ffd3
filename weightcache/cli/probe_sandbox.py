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
    """Return the answers in a directory of the Volume, and in one of the container's own disk.

    Each call that the sandbox refuses is an answer of its own: the name of its error. The others are still asked.
    """
    return {
        "kernel": _first_line("/proc/version"),
        "boot_id": os.path.exists("/proc/sys/kernel/random/boot_id"),
        "pid_namespace_has_an_id": _call(lambda: os.stat("/proc/self/ns/pid").st_ino > 0),
        "cgroup_files": _call(lambda: len(os.listdir("/sys/fs/cgroup"))),
        "memfd_create": _call(lambda: os.close(os.memfd_create("probe")), "ok"),
        "on_the_volume": _call(lambda: _files(home / "sandbox")),
        "on_its_own_disk": _call(_files_of_its_own),
    }


def _files_of_its_own() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as own:
        return _files(Path(own, "sandbox"))


def _files(folder: Path) -> dict[str, Any]:
    folder.mkdir()
    path, link = folder / "file", folder / "link"
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        return {
            "bytes_used_by_a_gap": _call(lambda: _gap(descriptor)),
            "sync_file_range": _call(lambda: _sync_file_range(descriptor)),
            "lease": _call(lambda: _lease(path)),
            "links_of_a_removed_file": _call(lambda: _links_without_a_name(path, descriptor)),
            "symlink": _call(lambda: link.symlink_to(folder), "ok"),  # if it is refused, there is no link to open
            "link_opened_without_following": _call(lambda: os.close(os.open(link, flags)), "ok"),
        }
    finally:
        os.close(descriptor)


def _gap(descriptor: int) -> int:
    os.ftruncate(descriptor, GAP)
    return os.fstat(descriptor).st_blocks * 512


def _links_without_a_name(path: Path, descriptor: int) -> int:
    path.unlink()
    return os.fstat(descriptor).st_nlink


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
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    return ""


def _call(act: Callable[[], object], otherwise: object = None) -> object:
    """Return what ``act`` returns, or ``otherwise`` if that is given; the name of its error if it fails."""
    try:
        found = act()
    except Exception as error:  # noqa: BLE001 (any error is an answer)
        return errno.errorcode.get(getattr(error, "errno", None) or 0, type(error).__name__)
    return found if otherwise is None else otherwise
