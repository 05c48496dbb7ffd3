"""A running prefetch: its threads, its callers, and when it must close its files."""

from __future__ import annotations

import logging
import mmap
import os
import threading
import time

from weightcache._coordination import background_readers
from weightcache._runtime.start_threads import daemon_threads_allowed
from weightcache._size_text import size_text
from weightcache._spans import background_span

from .memory_limit import allocate_memory, free_memory, reservations
from .parallelism import Parallelism
from .prefetched_file import CACHE_BUFFER, READ_CHUNK, PrefetchedFile, PrefetchStats, read_chunk, reason

TYPE_CHECKING = False  # a type checker takes it for true; the top of a module need not import typing's ABCs
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from types import TracebackType

    from .parallelism import Read

_log = logging.getLogger("weightcache")

PAUSE_TIMEOUT = 30.0  # seconds that a pause waits for reads that hang


class Prefetch:
    """A prefetch on its way; a context manager that closes it. Made by `prefetch` and `prefetch_files`."""

    def __init__(
        self,
        files: Mapping[str, PrefetchedFile],
        *,
        into_memory: bool,
        threads: int | None,
        skipped: Iterable[str] = (),
    ) -> None:
        self._by_path = files
        self._files = list(files.values())
        self._unfinished = list(files.values())  # the last of them is looked at until it is over
        self._into_memory = into_memory
        self._skipped = list(skipped)
        self._began = time.monotonic()
        self._ended = self._began
        self._bytes = 0
        self._closed = False
        self._paused = self._reading = 0
        self._changed = threading.Condition()
        self._chunks = iter([(file, start) for file in self._files for start in range(0, file.size, READ_CHUNK)])
        if into_memory:
            reservations[id(self)] = allocate_memory(self._files, free_memory())
        self._parallelism = Parallelism(threads, threads) if threads else Parallelism()
        self._unstarted = min(self._parallelism.most, sum(file.left for file in self._files if not file.problem))
        self._workers = self._waiting = 0
        self._span = background_span("prefetch")
        if self._unstarted:
            background_readers.register(self)  # before the first file is opened
            self._start_worker()

    def _start_worker(self) -> None:
        """Start one more thread, if there may be one more and none is idle."""
        with self._changed:
            if not self._unstarted or self._workers > self._reading:
                return
            self._unstarted -= 1
            self._workers += 1
            number = self._workers
        # A daemon: an interpreter that ends does not wait for a read that hangs.
        name, daemon = f"weightcache-prefetch-{number}", daemon_threads_allowed()
        thread = threading.Thread(target=self._work, name=name, daemon=daemon)
        try:
            thread.start()
        except RuntimeError as error:
            _log.info("prefetch goes on with %d threads: %s", number - 1, error)
            self._unstarted = 0
            self._worker_exited(str(error))

    # What the threads do.

    def _work(self) -> None:
        problem = ""
        try:
            # Pages of its own, which go back when the thread ends.
            buffer = memoryview(mmap.mmap(-1, READ_CHUNK if self._into_memory else CACHE_BUFFER))
            while (chunk := self._next()) is not None:
                self._start_worker()  # which waits until the storage turns out to be slow: this one is in its read then
                self._read(*chunk, buffer)
        except Exception as error:  # noqa: BLE001 (no memory for the buffer, say: somebody may be waiting)
            problem = reason(error)
        finally:
            self._worker_exited(problem)

    def _next(self) -> tuple[PrefetchedFile, int, Read] | None:
        """Return the next chunk when it may be read, or ``None`` if this thread is not needed."""
        with self._changed:
            while not self._closed and (self._paused or self._reading >= self._parallelism.limit(time.monotonic())):
                if not self._paused and self._waiting:  # one thread that waits is enough
                    self._unstarted += 1
                    return None
                self._waiting += 1
                self._changed.wait(None if self._paused else self._parallelism.patience(time.monotonic()))
                self._waiting -= 1
            if not self._closed:
                for file, start in self._chunks:
                    if not file.problem:
                        self._reading += 1
                        file.reading += 1
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
            self._reading -= 1
            file.reading -= 1
            self._bytes += count
            self._ended = ended
            self._span.progress(self._bytes, ended)
            file.problem = file.problem or problem
            file.left -= not problem
            if id(self) in reservations:
                taken = file.reserved if file.problem else min(count, file.reserved)
                file.reserved -= taken
                reservations[id(self)] -= taken
            if not file.reading:
                self._release_file(file)
            if problem:
                _log.info("prefetch of %s: %s", file.path, problem)
            self._changed.notify_all()

    def _arrived(self, read: Read) -> None:
        with self._changed:
            self._parallelism.arrived(read)

    def _release_file(self, file: PrefetchedFile) -> None:
        """Let go of what a file that no thread reads does not need."""
        if file.is_over or self._paused or self._closed:  # the latter two when a read hung, and nobody waited longer
            file.close()
        if file.problem:
            file.forget()

    def _worker_exited(self, problem: str) -> None:
        """Note that a thread has ended, or never began; with the last one go those that wait for a file."""
        with self._changed:
            self._workers -= 1
            if not self._workers:
                for file in self._files:
                    if not file.is_over and not self._closed:
                        file.problem = problem
                        self._release_file(file)
                reservations.pop(id(self), None)
            self._changed.notify_all()

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
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._close_idle()
        for file in self._files:
            file.forget()
        reservations.pop(id(self), None)
        background_readers.unregister(self)

    def _close_idle(self) -> None:
        """Wait for the reads in progress, and close everything that is open on the Volume."""
        with self._changed:
            if not self._changed.wait_for(lambda: not self._reading, PAUSE_TIMEOUT):
                _log.warning("a read of prefetch hangs for %g s; its file stays open until it ends", PAUSE_TIMEOUT)
            for file in self._files:
                if not file.reading:
                    file.close()

    def pause(self) -> None:
        """Close every file until `resume`; `ensure` calls it before a commit or reload."""
        with self._changed:
            self._paused += 1
        self._close_idle()

    def resume(self) -> None:
        """Go on after a `pause`."""
        with self._changed:
            self._paused -= 1
            self._changed.notify_all()

    def forked(self) -> None:
        """In a child process, where no thread of ours runs and a lock may be held for ever: nothing more is read."""
        self._changed = threading.Condition()
        self._reading = self._paused = 0
        for file in self._files:
            file.opening, file.writing = threading.Lock(), threading.Lock()
            file.close()
            if not file.is_over:
                file.problem = "the process was forked while it was read"
                file.forget()
        reservations.pop(id(self), None)

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
        reservations.pop(id(self), None)

    def __repr__(self) -> str:
        stats = self.stats
        return f"<Prefetch of {len(self._files)} files: {size_text(stats.bytes)} of {size_text(stats.total)}>"
