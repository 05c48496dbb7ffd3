"""A running prefetch: its threads, its callers, and when it must close its files."""

from __future__ import annotations

import logging
import mmap
import os
import threading
import time

from weightcache._coordination import background_readers
from weightcache._size_text import size_text
from weightcache._spans import background_span

from .memory_limit import allocate_memory, free_memory, reservations
from .prefetched_file import CACHE_BUFFER, READ_CHUNK, PrefetchedFile, PrefetchStats, read_chunk, reason
from .reader_pool import ReaderPool

TYPE_CHECKING = False  # a type checker takes it for true; the top of a module need not import typing's ABCs
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from .parallelism import Read

_log = logging.getLogger("weightcache")


class Prefetch(ReaderPool):
    """A prefetch on its way; a context manager that closes it. Made by `prefetch` and `prefetch_files`."""

    def __init__(
        self,
        files: Mapping[str, PrefetchedFile],
        *,
        into_memory: bool,
        threads: int | None,
        skipped: Iterable[str] = (),
    ) -> None:
        super().__init__("prefetch", threads, list(files.values()))
        self._by_path = files
        self._unfinished = list(files.values())  # the last of them is looked at until it is over
        self._into_memory = into_memory
        self._skipped = list(skipped)
        self._began = time.monotonic()
        self._ended = self._began
        self._bytes = 0
        self._buffers = threading.local()
        self._chunks = iter([(file, start) for file in self._files for start in range(0, file.size, READ_CHUNK)])
        if into_memory:
            reservations[id(self)] = allocate_memory(self._unfinished, free_memory())
        self._unstarted = min(self._parallelism.most, sum(file.left for file in self._files if not file.problem))
        self._span = background_span("prefetch")
        if self._unstarted:
            background_readers.register(self)  # before the first file is opened
            self._start_worker()

    # What the threads do.

    def _buffer(self) -> memoryview:
        """Return this thread's own memory, which goes back when the thread ends."""
        if not hasattr(self._buffers, "view"):
            self._buffers.view = memoryview(mmap.mmap(-1, READ_CHUNK if self._into_memory else CACHE_BUFFER))
            if self._into_memory:
                self._note_new_memory(self._buffers.view)
        view: memoryview = self._buffers.view
        return view

    def _read_one(self) -> bool:
        buffer = self._buffer()
        if (found := self._next()) is None:
            return False
        self._start_worker()  # which waits until the storage turns out to be slow: this one is in its read then
        self._read(*found, buffer)
        return True

    def _next(self) -> tuple[PrefetchedFile, int, Read] | None:
        """Return the next chunk when it may be read, or ``None`` if this thread is not needed."""
        with self._changed:
            while not (self._closed or self._may_read()):
                if not self._wait_for_turn():
                    return None
            if not self._closed:
                for file, start in self._chunks:
                    if not file.problem:
                        self._begin_read(file)
                        return file, start, self._parallelism.began(time.monotonic())
            self._unstarted = 0
            return None

    def _read(self, file: PrefetchedFile, start: int, read: Read, buffer: memoryview) -> None:
        count, problem = 0, ""
        try:
            end = min(start + READ_CHUNK, file.size)
            count = read_chunk(file, start, end, buffer, lambda: self._arrived(read))
        except Exception as error:  # noqa: BLE001 (whatever it is, the read is over)
            problem = reason(error)
        ended = time.monotonic()
        with self._changed:
            self._parallelism.ended(read, ended, count)
            self._bytes += count
            self._ended = ended
            self._span.progress(self._bytes, ended)
            file.problem = file.problem or problem
            file.left -= not problem
            if id(self) in reservations:
                taken = file.reserved if file.problem else min(count, file.reserved)
                file.reserved -= taken
                reservations[id(self)] -= taken
            if problem:
                _log.info("prefetch of %s: %s", file.path, problem)
            self._end_read(file)

    def _arrived(self, read: Read) -> None:
        with self._changed:
            self._parallelism.arrived(read)

    def _release(self, file: PrefetchedFile) -> None:
        if file.is_over or self._paused or self._closed:  # the latter two when a read hung, and nobody waited longer
            file.close()
        if file.problem:
            file.forget()

    def _worker_exited(self, problem: str) -> None:
        """With the last thread go those that wait for a file."""
        if self._workers:
            return
        for file in self._files:
            if not file.is_over and not self._closed:
                file.problem = problem
                self._release(file)
        reservations.pop(id(self), None)

    def _is_over(self) -> bool:
        """Whether nothing more will be read. Asked after each of many reads: it must not look at every file."""
        while self._unfinished and self._unfinished[-1].is_over:  # what is over stays so
            self._unfinished.pop()
        return self._closed or not self._unfinished

    # What the caller sees.

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until everything is read or given up.

        Args:
            timeout: Seconds; ``None`` for as long as it takes.

        Returns:
            Whether every file that it set out to read is read whole.
        """
        with self._changed:
            self._changed.wait_for(self._is_over, timeout)
            return all(file.is_whole for file in self._files)

    def path(self, path: str | os.PathLike[str]) -> str:
        """Return where a loader finds a file's bytes: in memory, once they are there, or at the path itself.

        With ``into="memory"`` this waits until the file is read, and returns ``/proc/self/fd/N``, which any loader can
        open, in this process, until the handle is closed or dropped. If the file is not one of this prefetch's, could
        not be read, or has been replaced since, it returns ``path``: slower, and as right.

        Args:
            path: A path as `ensure` returned it, or as it was given to `prefetch_files`.
        """
        file = self._by_path.get(os.path.realpath(path)) if self._into_memory else None
        if file is None:
            return os.fspath(path)
        with self._changed:
            self._changed.wait_for(lambda: self._closed or file.is_over)
        if file.is_replaced():
            return os.fspath(path)
        with self._changed:
            held = not self._closed and file.is_whole and file.memory >= 0
            return f"/proc/self/fd/{file.memory}" if held else os.fspath(path)

    @property
    def stats(self) -> PrefetchStats:
        """How far it is."""
        with self._changed:
            seconds = (self._ended if self._is_over() else time.monotonic()) - self._began
            problems = [f"{file.path}: {file.problem}" for file in self._files if file.problem]
            total = sum(file.size for file in self._files)
            whole = sum(file.is_whole for file in self._files)
            return PrefetchStats(whole, self._bytes, total, seconds, (*self._skipped, *problems))

    def close(self) -> None:
        """End it, close its files, and give back its memory; what a loader has mapped stays until it lets go."""
        super().close()
        for file in self._files:
            file.forget()
        reservations.pop(id(self), None)

    def forked(self) -> None:
        """In a child process, where no thread of ours runs and a lock may be held for ever: nothing more is read."""
        super().forked()
        for file in self._files:
            if not file.is_over:
                file.problem = "the process was forked while it was read"
                file.forget()
        reservations.pop(id(self), None)

    def __del__(self) -> None:
        for file in getattr(self, "_files", ()):
            file.close()
            file.forget()
        reservations.pop(id(self), None)

    def __repr__(self) -> str:
        stats = self.stats
        return f"<Prefetch of {len(self._files)} files: {size_text(stats.bytes)} of {size_text(stats.total)}>"
