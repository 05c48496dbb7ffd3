"""Which container and process this is, and whether a writer of the past can still be alive.

A pid alone names nobody: pids repeat across containers, and the clones of a memory snapshot share pids, files and
even random state. Everything is therefore read anew at every call. Liveness never rests on a lock, since locks do
nothing between containers.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import stat
import tempfile
from contextlib import suppress
from dataclasses import dataclass

from weightcache.errors import StorageError

from .atomic_replace import replace_file
from .process_start import process_start

_WRITER = re.compile(r"(?P<container>[0-9a-f]{12})-(?P<pid>[0-9]{1,10})-(?P<start>[0-9]{1,20})-(?P<nonce>[0-9a-f]{8})")

_active: set[str] = set()  # nonces of this process's writers that are at work
os.register_at_fork(after_in_child=_active.clear)


def local_directory(root: str) -> str:
    """Return (and make) the directory of this container for locks and notes about ``root``; never inside ``root``.

    A lock file inside a Volume would itself be an open file that blocks ``reload``, and would be committed.

    Raises:
        StorageError: No directory can be made, or somebody else made it.
    """
    real = os.path.realpath(root)
    name = f"weightcache-{os.geteuid()}"
    bases = ["/tmp", "/var/tmp", "/dev/shm"]  # noqa: S108 (the owner is checked)
    with suppress(OSError):  # none can be written to
        bases.insert(0, tempfile.gettempdir())
    for base in bases:
        path = os.path.join(os.path.realpath(base), name)
        if os.path.commonpath([real, path]) == real:
            continue
        try:
            with suppress(FileExistsError):
                os.mkdir(path, 0o700)
            found = os.lstat(path)
        except OSError:
            continue
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            # In a directory that all may write to, somebody else could otherwise lead our files elsewhere.
            raise StorageError(
                f"cannot use {path} for locks: it belongs to somebody else",
                hint="remove it, or set TMPDIR to a directory of your own on the container's disk",
                path=path,
            )
        return path
    raise StorageError(
        f"no container-local directory for locks lies outside root {root}",
        hint="set TMPDIR to a directory on the container's own disk",
        path=root,
    )


def note_path(root: str, suffix: str) -> str:
    """Return the path of a container-local note about ``root``, the same for every spelling of ``root``."""
    key = hashlib.sha256(os.fsencode(os.path.realpath(root))).hexdigest()[:16]  # a path need not be UTF-8
    return os.path.join(local_directory(root), f"{key}.{suffix}")


def write_note(path: str, text: str) -> None:
    """Replace a note's text at once, as its only writer. It need not survive a power cut."""
    fresh = f"{path}.new"  # always the same name, so that the next note removes what a killed process left
    with suppress(FileNotFoundError):
        os.unlink(fresh)
    replace_file(path, text.encode(), fresh, durable=False)


def container_id(root: str) -> str:
    """Return 12 hex digits that name this container; processes that share them see each other's pids.

    They stand for a random text in the container's own temporary directory, and for what differs where two containers
    share or copy that directory: the boot of the kernel, the host name, and the start of the first process of the pid
    namespace. The link ``/proc/self/ns/pid`` would name that namespace, but gVisor before 2025-06 gives every process
    another link. ``MODAL_TASK_ID`` differs between clones of one memory snapshot, which share all the rest.
    """
    machine = (_boot_id(), os.uname().nodename, process_start(1), os.environ.get("MODAL_TASK_ID", ""), _local_id(root))
    return hashlib.sha256(repr(machine).encode()).hexdigest()[:12]


def _boot_id() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as stream:
            return stream.read(64)
    except (OSError, UnicodeDecodeError):
        return ""  # gVisor has none


def _local_id(root: str) -> str:
    try:
        path = os.path.join(local_directory(root), "container")
    except StorageError:
        path = "/"  # neither read nor made: see below
    for _ in range(3):
        with suppress(OSError, UnicodeDecodeError), open(path, encoding="ascii") as stream:
            if local := stream.read(64):
                return local
        fresh = f"{path}.{secrets.token_hex(8)}"
        with suppress(OSError):
            with open(fresh, "w", encoding="ascii") as stream:
                stream.write(secrets.token_hex(16))
            with suppress(FileExistsError):
                os.link(fresh, path)  # the first one wins, whole
            os.unlink(fresh)
    return secrets.token_hex(16)  # no writer can be recognised as dead then, which only costs a copy


@dataclass(frozen=True)
class Writer:
    """One running miss: container, process and a random nonce. Its text names its partials."""

    container: str
    pid: int
    start: int  # clock ticks after boot, /proc/PID/stat field 22 (proc(5)); 0 where there is no /proc
    nonce: str

    @classmethod
    def new(cls, root: str) -> Writer:
        return cls(container_id(root), os.getpid(), process_start(os.getpid()) or 0, secrets.token_hex(4))

    @classmethod
    def parse(cls, text: str) -> Writer | None:
        if not (match := _WRITER.fullmatch(text)):
            return None
        return cls(match["container"], int(match["pid"]), int(match["start"]), match["nonce"])

    def __str__(self) -> str:
        return f"{self.container}-{self.pid}-{self.start}-{self.nonce}"

    def is_here(self, root: str) -> bool:
        """Whether it is a writer of this container."""
        return self.container == container_id(root)

    def is_dead_here(self, root: str) -> bool:
        """Whether it provably does not write any more; of another container's writer nothing is known."""
        if not self.is_here(root):
            return False
        if self.pid == os.getpid() and self.start == (process_start(self.pid) or 0):
            return self.nonce not in _active
        return process_start(self.pid) != self.start

    def __enter__(self) -> Writer:
        _active.add(self.nonce)
        return self

    def __exit__(self, *_: object) -> None:
        _active.discard(self.nonce)
