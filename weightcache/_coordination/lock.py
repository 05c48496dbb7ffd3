"""One miss at a time on one root in one container: a lock for threads, then a kernel lock for processes.

It avoids duplicate downloads, and keeps our files closed while another process commits or reloads. A lock that cannot
be acquired is only a warning (docs/design.md, G3). A crash releases it. Lock files lie on the container's own disk.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from weightcache._runtime import tuning_constants as runtime_settings
from weightcache._runtime.link_count_check import link_counts_are_right
from weightcache._runtime.owned_descriptors import OwnedResource
from weightcache._runtime.writer_identity import note_path, write_note
from weightcache._size_text import size_text
from weightcache.errors import LockTimeoutError, StorageError, WeightCacheError

try:
    from filelock import FileLock, Timeout
except RuntimeError as error:  # it loads a thread pool, which Python 3.10 refuses while it ends
    _without_filelock = str(error)
else:
    _without_filelock = ""

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from weightcache._runtime.tuning_constants import Settings

_log = logging.getLogger("weightcache")

MAX_MISSING_TRIES = 20  # tries after which nobody holds a file that is not there
LONGEST_NOTE = 4096  # characters that are read of a note: a full disk or another program may have left any file there
UNKNOWN_HOLDER = "another process"  # a holder that has no note yet, or can write none

# By root, its holder's handle. Not a `threading.Lock`: Ctrl-C just after it was acquired would leave it locked.
_thread_locks: dict[str, _LockHandle] = {}
os.register_at_fork(after_in_child=_thread_locks.clear)  # the thread that holds it does not exist in the child


def _note(root: str, suffix: str) -> str:
    """Return a note's path, or an empty one where there is no container-local directory."""
    try:
        return note_path(root, suffix)
    except StorageError:
        return ""


class Holder:
    """The note in which the holder of the lock reports its identity and its progress.

    Attributes:
        bytes_done: Bytes downloaded or hashed in all; other containers see it as our progress.
    """

    def __init__(self, root: str, settings: Settings | None = None) -> None:
        self._settings = settings or runtime_settings.DEFAULT
        self._path = _note(root, "holder")
        self._done, self._total, self._doing = 0, 0, "looking"
        self._next = 0.0
        self.bytes_done = 0

    def advance(self, count: int) -> None:
        """Note ``count`` more bytes; the file is written at most once a second."""
        self._done += count
        self.bytes_done += max(0, count)
        if time.monotonic() >= self._next:
            self._write()

    def phase(self, doing: str, total: int = 0) -> None:
        """Note that a phase of the work begins, and how many bytes it will process."""
        self._doing, self._total, self._done = doing, total, 0
        self._write()

    def mirror(self, doing: str, done: int) -> None:
        """Repeat the progress of another container, for which the holder waits."""
        if (doing, done) != (self._doing, self._done):
            self._doing, self._total, self._done = doing, 0, done
            self._write()

    def _write(self) -> None:
        self._next = time.monotonic() + self._settings.lock_beat
        note = {"pid": os.getpid(), "thread": threading.get_ident(), "doing": self._doing}
        with suppress(OSError):  # a full /tmp must not stop a download
            if not self._path:
                return
            write_note(self._path, json.dumps({**note, "done": self._done, "total": self._total}))

    def clear(self) -> None:
        with suppress(OSError):
            os.unlink(self._path)


class LockWait:
    """One caller's wait for the lock.

    Attributes:
        holder: The process that holds the lock, in words; empty before the first `poll`.
        seconds: Seconds waited so far.
    """

    def __init__(
        self,
        root: str,
        wait: float,
        say: Callable[[str], None],
        check: Callable[[], None],
        settings: Settings | None = None,
    ) -> None:
        self._settings = settings or runtime_settings.DEFAULT
        self._note = _note(root, "holder")
        self._lock_path = _note(root, "lock")
        self._root, self._wait, self._say, self._check = root, wait, say, check
        self._began = self._moved = time.monotonic()
        self._next_line = self._began
        self._seen = ""
        self.holder = ""
        self.seconds = 0.0

    def poll(self) -> None:
        """Note that the lock is still held.

        Raises:
            LockTimeoutError: The holder made no progress for ``wait`` seconds.
        """
        self._check()
        now = time.monotonic()
        self.seconds = now - self._began
        text = ""
        with suppress(OSError), open(self._note, encoding="utf-8", errors="replace") as stream:
            text = stream.read(LONGEST_NOTE)
        if text != self._seen:
            self._seen, self._moved = text, now
        words = _in_words(text)
        if words and (self.holder in ("", UNKNOWN_HOLDER) or "(looking)" not in words):  # another waiter
            self.holder = words
        self.holder = self.holder or UNKNOWN_HOLDER
        # A new holder writes its note in a moment; a line that names no process would not help.
        if now >= self._next_line and (self.holder != UNKNOWN_HOLDER or self.seconds >= self._settings.lock_beat):
            self._next_line = now + self._settings.report_interval
            self._say(f"waiting for {self.holder} to fill {self._root} ({self.seconds:.0f} s so far)")
        if now - self._moved >= self._wait:
            raise LockTimeoutError(
                f"waited {self.seconds:.1f} s for {self.holder} to fill {self._root}; "
                f"it made no progress for {self._wait:g} s",
                hint="check what that process does, or call with a larger wait=",
                lock_path=self._lock_path,
                waited=self.seconds,
                holder=self.holder,
            )


def _in_words(note: str) -> str:
    try:
        data = json.loads(note)
        done, total = int(data["done"]), int(data["total"])
        share = size_text(done) + (f" of {size_text(total)}" if total else "") if done or total else ""
        return f"process {data['pid']} ({data['doing']}{share and ' '}{share})"
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return ""


@contextmanager
def root_lock(
    root: str,
    *,
    wait: float,
    say: Callable[[str], None],
    check: Callable[[], None],
    settings: Settings | None = None,
) -> Iterator[tuple[Holder, LockWait]]:
    """Hold the right to fill ``root`` in this container.

    Args:
        root: The root; every spelling of it is the same lock.
        wait: Seconds without any progress of the holder after which waiting ends.
        say: Called at once and then every `Settings.report_interval` seconds with a line that names the holder.
        check: Called while waiting; it may raise to end the wait.
        settings: Time limits; ``None`` for the defaults.

    Raises:
        LockTimeoutError: The holder made no progress for ``wait`` seconds.
    """
    settings = settings or runtime_settings.DEFAULT
    waiting = LockWait(root, wait, say, check, settings)
    held = _LockHandle(_note(root, "lock"), thread_key=os.path.realpath(root))
    try:
        while _thread_locks.setdefault(held.thread_key, held) is not held:
            time.sleep(settings.lock_poll / 10)
            waiting.poll()
        held.lock = _kernel_lock(held.path, waiting.poll, settings.lock_poll)
        holder = Holder(root, settings)
        try:
            holder.phase("looking")
            yield holder, waiting
        finally:
            holder.clear()
    finally:
        held.close_quietly()


class _LockHandle(OwnedResource):
    """What one caller holds: the entry of a root for threads, and a kernel lock for processes."""

    __slots__ = ("lock", "path", "thread_key")

    def __init__(self, path: str, thread_key: str = "") -> None:
        self.path, self.thread_key = path, thread_key
        self.lock: FileLock | None = None
        super().__init__()

    def close_quietly(self) -> None:
        """Release both, and remove the lock's file, which would otherwise stay for each root that was ever used.

        Removed while it is locked: what waits opens the path again for each try, and a lock on a file that has no name
        any more counts for nothing (filelock looks at the number of links; where that is wrong the file stays).
        """
        if self.lock is not None and self.lock.is_locked:
            with suppress(OSError):
                if link_counts_are_right(os.path.dirname(self.path)):
                    os.unlink(self.path)
            with suppress(OSError, RuntimeError):  # gone with its descriptor in any case
                self.lock.release()
        if _thread_locks.get(self.thread_key) is self:
            del _thread_locks[self.thread_key]


@contextmanager
def reload_lock(root: str, settings: Settings | None = None) -> Iterator[None]:
    """Separate inspections from reloads: during a reload a Volume looks empty, so a miss seen then proves nothing.

    Held during a commit or reload, and while a miss is inspected again. Never waits for a download.
    """
    began = time.monotonic()

    def tick() -> None:
        if time.monotonic() - began > 60.0:
            raise LockTimeoutError(
                f"a commit or reload of {root} has not ended for 60 s",
                hint="look at the process that holds the lock",
                lock_path=_note(root, "gate"),
                waited=60.0,
                holder=UNKNOWN_HOLDER,
            )

    held = _LockHandle(_note(root, "gate"))
    try:
        with suppress(LockTimeoutError):  # continue without: it only guards an inspection
            held.lock = _kernel_lock(held.path, tick, (settings or runtime_settings.DEFAULT).lock_poll)
        yield
    finally:
        held.close_quietly()


def _kernel_lock(path: str, tick: Callable[[], None], poll: float) -> FileLock | None:
    """Acquire the kernel lock on ``path``; ``None`` if the file system has none."""
    if not path:
        _log.warning("no container-local directory for locks: going on without; a download may be made twice")
        return None
    if _without_filelock:
        _log.warning("no lock on %s (%s): going on without; a download may be made twice", path, _without_filelock)
        return None
    lock, missing_tries = FileLock(path, fallback_to_soft=False), 0
    while True:
        try:
            lock.acquire(timeout=poll, poll_interval=poll / 2)
            return lock
        except Timeout:
            tick()
            missing_tries = 0 if os.path.lexists(path) else missing_tries + 1
            problem: Exception | str = "the file cannot be made"  # else somebody would hold it
            if missing_tries < MAX_MISSING_TRIES:
                continue
        except WeightCacheError:
            raise
        except (OSError, NotImplementedError, RuntimeError) as error:
            problem = error
        _log.warning("no lock on %s (%s): going on without; a download may be made twice", path, problem)
        return None


@contextmanager
def try_lock(path: str) -> Iterator[bool]:
    """Acquire the lock on ``path`` without waiting, and remove its file at the end; yields whether it was acquired."""
    held = _LockHandle(path)
    try:
        if not _without_filelock:
            with suppress(Timeout, OSError, NotImplementedError, RuntimeError):
                lock = FileLock(path, fallback_to_soft=False)
                lock.acquire(timeout=0)
                held.lock = lock
        yield held.lock is not None
    finally:
        held.close_quietly()
