"""Prefetch: reading weights off the Volume in the background, while Python imports what will load them.

One stream of a network volume is slow, and many at once are fast; every loader of ``.pt`` files uses one. Here a few
threads read aligned chunks of all files, in the order in which they will be wanted. Only the standard library is
imported, since this runs before the heavy imports that it hides behind; and nothing here raises for what the world
does, since a prefetch that failed is a slow start and not a wrong one.
"""

from __future__ import annotations

import logging
import mmap
import os
import stat
import threading
import time
from typing import NamedTuple

from ._look import Layout, look
from ._memory import free_memory
from ._pauses import running
from .errors import WeightCacheError
from .manifest import Manifest

TYPE_CHECKING = False  # a type checker takes it for true; the top of a module need not import typing's ABCs
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence
    from types import TracebackType

    from .manifest import ManifestSource

_log = logging.getLogger("weightcache")

CHUNK = 8 << 20  # bytes: not below the block of a volume, or several threads would wait for one block
PATIENCE = 30.0  # seconds that a pause waits for reads that hang


class PrefetchStats(NamedTuple):
    """How far a prefetch is.

    Attributes:
        files: How many files are read whole.
        bytes: Bytes read.
        total: Bytes of all files that it set out to read.
        seconds: Wall time so far, or until the last byte.
        skipped: Why files are not read, one sentence each.
    """

    files: int
    bytes: int
    total: int
    seconds: float
    skipped: tuple[str, ...]

    @property
    def rate(self) -> float:
        """Bytes a second."""
        return self.bytes / self.seconds if self.seconds else 0.0


class _File:
    """One file on its way."""

    def __init__(self, path: str, size: int, modified: int) -> None:
        self.path, self.size, self.modified = path, size, modified
        self.left = -(-size // CHUNK)  # chunks
        self.reading = 0  # threads that read it
        self.problem = ""  # why it is given up
        self.descriptor = -1
        self.opening = threading.Lock()
        self.memory = -1  # a memfd, which stays until the handle is closed
        # The kernel lets one thread at a time write to a file, and the others wait for it busily.
        self.writing = threading.Lock()

    @property
    def is_over(self) -> bool:
        return not self.left or bool(self.problem)

    @property
    def is_whole(self) -> bool:
        return not self.left and not self.problem

    def open(self) -> int:
        """Return a descriptor; it is opened again after a pause, if it is still the same file."""
        with self.opening:
            if self.descriptor < 0:
                descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
                found = os.fstat(descriptor)
                if (found.st_size, found.st_mtime_ns) != (self.size, self.modified):
                    os.close(descriptor)
                    raise ChangedMeanwhileError("it changed while it was read")
                self.descriptor = descriptor
            return self.descriptor

    def make_memory(self) -> None:
        self.memory = os.memfd_create(os.path.basename(self.path)[:200], os.MFD_CLOEXEC)
        os.ftruncate(self.memory, self.size)

    def close(self) -> None:
        """Close what is open on the Volume."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def forget(self) -> None:
        """Give the memory back."""
        with self.writing:  # a read that hung may end now, and must not write to what gets this number next
            if self.memory >= 0:
                os.close(self.memory)
                self.memory = -1


class ChangedMeanwhileError(OSError):
    """The file is another one than when the prefetch began. Never leaves the library."""


class Prefetch:
    """A prefetch on its way; a context manager that closes it. Made by `prefetch` and `prefetch_files`."""

    def __init__(self, files: Sequence[_File], *, into_memory: bool, threads: int, skipped: Iterable[str] = ()) -> None:
        self._files = files
        self._by_path = {os.path.realpath(file.path): file for file in files}
        self._into_memory = into_memory
        self._skipped = list(skipped)
        self._began = time.monotonic()
        self._ended = self._began
        self._bytes = 0
        self._closed = False
        self._paused = self._reading = 0
        self._news = threading.Condition()
        self._pieces = iter([(file, start) for file in files for start in range(0, file.size, CHUNK)])
        if into_memory:
            self._take_memory()
        self._threads = self._start(min(threads, sum(file.left for file in files if not file.problem)))
        if self._threads:
            running.add(self)

    def _take_memory(self) -> None:
        """Make room for each file that fits; the others are not read."""
        free = free_memory()
        for file in self._files:
            if file.size > free:
                file.problem = (
                    f"{file.size / 1e6:.0f} MB do not fit into memory, {max(0.0, free) / 1e6:.0f} MB are free"
                )
                continue
            try:
                file.make_memory()
            except (OSError, AttributeError) as error:  # AttributeError: memfd_create is Linux only
                file.problem = f"no memory for it ({error})"
                file.forget()
                continue
            free -= file.size

    def _start(self, count: int) -> list[threading.Thread]:
        started = []
        for number in range(count):
            # Daemons: an interpreter that ends does not wait for a read that hangs.
            thread = threading.Thread(target=self._work, name=f"weightcache-prefetch-{number}", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                _log.info("prefetch goes on with %d threads: %s", number, error)
                break
            started.append(thread)
        return started

    # What the threads do.

    def _work(self) -> None:
        buffer = memoryview(mmap.mmap(-1, CHUNK))  # pages of its own, which go back when the thread ends
        while (piece := self._next()) is not None:
            file, start = piece
            count, problem = 0, ""
            try:
                count = _read(file, start, min(start + CHUNK, file.size), buffer)
            except OSError as error:
                problem = error.strerror or str(error)
            self._done(file, count, problem)

    def _next(self) -> tuple[_File, int] | None:
        with self._news:
            while self._paused and not self._closed:
                self._news.wait()
            if self._closed:
                return None
            for file, start in self._pieces:
                if not file.problem:
                    self._reading += 1
                    file.reading += 1
                    return file, start
            return None

    def _done(self, file: _File, count: int, problem: str) -> None:
        with self._news:
            self._reading -= 1
            file.reading -= 1
            self._bytes += count
            self._ended = time.monotonic()
            file.problem = file.problem or problem
            file.left -= not problem
            if file.is_over and not file.reading:
                file.close()
            if problem:
                _log.info("prefetch of %s: %s", file.path, problem)
            self._news.notify_all()

    # What the caller sees.

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until everything is read or given up.

        Args:
            timeout: Seconds; ``None`` for as long as it takes.

        Returns:
            Whether every file is read whole.
        """
        with self._news:
            self._news.wait_for(lambda: self._closed or all(file.is_over for file in self._files), timeout)
            return all(file.is_whole for file in self._files)

    def path(self, path: str | os.PathLike[str]) -> str:
        """Return where a loader finds a file's bytes: in memory, once they are there, or at the path itself.

        With ``into="memory"`` this waits until the file is read, and returns ``/proc/self/fd/N``, which any loader can
        open, in this process, until the handle is closed. If the file is not one of this prefetch's, or could not be
        read, it returns ``path``: slower, and as right.

        Args:
            path: A path as `ensure` returned it, or as it was given to `prefetch_files`.
        """
        file = self._by_path.get(os.path.realpath(path))
        if file is None or not self._into_memory:
            return os.fspath(path)
        with self._news:
            self._news.wait_for(lambda: self._closed or file.is_over)
            return f"/proc/self/fd/{file.memory}" if file.is_whole and file.memory >= 0 else os.fspath(path)

    @property
    def stats(self) -> PrefetchStats:
        """How far it is."""
        with self._news:
            over = self._closed or all(file.is_over for file in self._files)
            seconds = (self._ended if over else time.monotonic()) - self._began
            problems = [f"{file.path}: {file.problem}" for file in self._files if file.problem]
            total = sum(file.size for file in self._files)
            whole = sum(file.is_whole for file in self._files)
            return PrefetchStats(whole, self._bytes, total, seconds, (*self._skipped, *problems))

    def close(self) -> None:
        """End it, close its files, and give back its memory; what a loader has mapped stays until it lets go."""
        with self._news:
            self._closed = True
            self._news.notify_all()
        self._let_go()
        for file in self._files:
            file.forget()
        running.discard(self)

    def _let_go(self) -> None:
        """Wait for the reads in progress, and close everything that is open on the Volume."""
        with self._news:
            if not self._news.wait_for(lambda: not self._reading, PATIENCE):
                _log.warning("a read of prefetch hangs for %g s; its file stays open", PATIENCE)
                return
            for file in self._files:
                file.close()

    def pause(self) -> None:
        """Close every file until `resume`; `ensure` calls it before a commit or reload."""
        with self._news:
            self._paused += 1
        self._let_go()

    def resume(self) -> None:
        """Go on after a `pause`."""
        with self._news:
            self._paused -= 1
            self._news.notify_all()

    def _forked(self) -> None:
        """In a child process, where no thread of ours runs and a lock may be held for ever: nothing more is read."""
        self._news = threading.Condition()
        self._reading = self._paused = 0
        for file in self._files:
            file.opening, file.writing = threading.Lock(), threading.Lock()
            file.close()
            if not file.is_over:
                file.problem = "the process was forked while it was read"

    def __enter__(self) -> Prefetch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        for file in getattr(self, "_files", ()):
            file.close()
            file.forget()

    def __repr__(self) -> str:
        stats = self.stats
        return f"<Prefetch of {len(self._files)} files: {stats.bytes / 1e6:.1f} of {stats.total / 1e6:.1f} MB>"


def _read(file: _File, start: int, end: int, buffer: memoryview) -> int:
    """Read a chunk, and keep it if the file is to be in memory. Returns how many bytes there were."""
    descriptor, position = file.open(), start
    while position < end:
        with buffer[: end - position] as target:
            count = os.preadv(descriptor, [target], position)
        if not count:
            raise ChangedMeanwhileError(f"it ends after {position} of {file.size} bytes")
        # Written, and not read straight into a mapping: that costs half as much CPU again, for the page faults.
        with file.writing, buffer[:count] as got:
            if file.memory >= 0:
                _write(file.memory, got, position)
        position += count
    return end - start


def _write(descriptor: int, data: memoryview, position: int) -> None:
    while data:
        count = os.pwrite(descriptor, data, position)
        data, position = data[count:], position + count


def prefetch(
    manifest: ManifestSource,
    *,
    root: str | os.PathLike[str],
    only: Collection[str] | None = None,
    into: str = "cache",
    threads: int = 8,
) -> Prefetch:
    """Begin to read what the root holds of a manifest, in the background and in the manifest's order.

    Called at the top of a module, before the heavy imports. It looks at what is there and does nothing else: on the
    machine that deploys the module, where the root does not exist, it reads nothing. What the world does is no error: a
    manifest that cannot be read, or a file that is gone, is named in ``.stats.skipped``.

    Args:
        manifest: As in `ensure`.
        root: As in `ensure`.
        only: Names of the checkpoints wanted; ``None`` for all.
        into: ``"cache"`` fills the page cache, which serves every loader that takes a path. ``"memory"`` reads into
            memory of this process, whose paths `Prefetch.path` tells; it takes the size of the files, and what does not
            fit is not read.
        threads: How many reads at once.

    Raises:
        ValueError: ``into`` or ``threads`` is none that there is.
    """
    paths: list[str] = []
    skipped: list[str] = []
    try:
        layout = Layout(root)
        for checkpoint in Manifest.load(manifest).select(only):
            seen = look(layout, checkpoint)
            if seen.state in ("ready", "unverified"):
                paths += [layout.file(checkpoint, file) for file in checkpoint.files]
            else:
                skipped.append(f"{checkpoint.name}: {seen.detail}")
    except WeightCacheError as error:
        skipped.append(str(error.args[0]))
    return _begin(paths, into, threads, skipped)


def prefetch_files(*paths: str | os.PathLike[str], into: str = "cache", threads: int = 8) -> Prefetch:
    """Begin to read files, in the background and in this order. See `prefetch` for the arguments.

    Raises:
        ValueError: ``into`` or ``threads`` is none that there is.
        TypeError: A path is none.
    """
    return _begin([os.fspath(path) for path in paths], into, threads, [])


def _begin(paths: Iterable[str], into: str, threads: int, skipped: list[str]) -> Prefetch:
    if into not in ("cache", "memory"):
        raise ValueError(f"into must be 'cache' or 'memory', not {into!r}")
    if type(threads) is not int or threads < 1:
        raise ValueError(f"threads must be a number, 1 or more, not {threads!r}")
    files = []
    for path in dict.fromkeys(paths):
        try:
            found = os.stat(path)
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            skipped.append(f"{path}: {getattr(error, 'strerror', None) or error}")
            continue
        if stat.S_ISREG(found.st_mode):
            files.append(_File(path, found.st_size, found.st_mtime_ns))
        else:
            skipped.append(f"{path}: is no regular file")
    return Prefetch(files, into_memory=into == "memory", threads=threads, skipped=skipped)


def _forked() -> None:
    for each in list(running):
        if isinstance(each, Prefetch):
            each._forked()  # noqa: SLF001


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
