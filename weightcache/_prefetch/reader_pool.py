"""Threads that read files part by part: as many as the storage rewards, and none while a Volume commits or reloads.

What the parts are, and where their bytes go, is the matter of each kind of pool.
"""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod

from weightcache._coordination import background_readers
from weightcache._runtime.start_threads import daemon_threads_allowed

from .page_cost import page_cost
from .parallelism import Parallelism
from .prefetched_file import READ_CHUNK, PrefetchedFile, reason

TYPE_CHECKING = False  # a type checker takes it for true; the top of a module need not import typing's ABCs
if TYPE_CHECKING:
    from collections.abc import Collection
    from types import TracebackType
    from typing import TypeVar

    Pool = TypeVar("Pool", bound="ReaderPool")

_log = logging.getLogger("weightcache")

PAUSE_TIMEOUT = 30.0  # seconds that a pause waits for reads that hang


class ReaderPool(ABC):
    """The threads, and their reads. A context manager that ends the reads and closes every file.

    Args:
        task: What the threads are called after.
        threads: How many reads at once; ``None`` for as many as the storage rewards.
        files: Those that may be open. The caller may change it under the lock ``_changed``.
    """

    def __init__(self, task: str, threads: int | None, files: Collection[PrefetchedFile]) -> None:
        self._task, self._files = task, files
        self._parallelism = Parallelism(threads, threads) if threads else Parallelism()
        self._changed = threading.Condition()
        self._workers = 0
        self._unstarted = self._waiting = 0  # threads that may be started; that wait until they may read
        self._paused = self._reading = 0
        self._closed = False
        self._page_cost_is_known = False

    # What each kind defines.

    @abstractmethod
    def _read_one(self) -> bool:
        """Read the next part. Return whether this thread goes on: it ends if all is read or another thread waits."""

    @abstractmethod
    def _release(self, file: PrefetchedFile) -> None:
        """Let go of what a file that no thread reads does not need. Called under the lock."""

    @abstractmethod
    def _worker_exited(self, problem: str) -> None:
        """Note under the lock that a thread has ended, or could not be started. ``problem``: why, if not as usual."""

    # The threads.

    def _start_worker(self) -> None:
        """Start one more thread, if there may be one more and none is idle."""
        with self._changed:
            if not self._unstarted or self._workers > self._reading:
                return
            self._unstarted -= 1
            self._workers += 1
            number = self._workers
        # A daemon: an interpreter that ends does not wait for a read that hangs.
        name, daemon = f"weightcache-{self._task}-{number}", daemon_threads_allowed()
        try:
            threading.Thread(target=self._work, name=name, daemon=daemon).start()
        except RuntimeError as error:
            _log.info("%s goes on with %d threads: %s", self._task, number - 1, error)
            with self._changed:
                self._unstarted = 0
                self._exit(str(error))

    def _work(self) -> None:
        problem = ""
        try:
            while self._read_one():
                pass
        except Exception as error:  # noqa: BLE001 (no memory for a buffer, say: somebody may be waiting)
            problem = reason(error)
        finally:
            with self._changed:
                self._exit(problem)

    def _exit(self, problem: str) -> None:
        self._workers -= 1
        self._worker_exited(problem)
        self._changed.notify_all()

    def _may_read(self) -> bool:
        """Whether one more read may begin now. Called under the lock."""
        return not self._paused and self._reading < self._parallelism.limit(time.monotonic())

    def _wait_for_turn(self) -> bool:
        """Wait for a change; ``False`` if this thread is not needed, for another one waits. Called under the lock."""
        if not self._paused and self._waiting:
            self._unstarted += 1
            return False
        self._waiting += 1
        self._changed.wait(None if self._paused else self._parallelism.patience(time.monotonic()))
        self._waiting -= 1
        return True

    def _note_new_memory(self, memory: memoryview) -> None:
        """Measure once how long a read into new memory takes for the memory alone."""
        if not self._page_cost_is_known:
            self._page_cost_is_known = True
            self._parallelism.add_page_cost(page_cost(memory, READ_CHUNK))

    def _begin_read(self, file: PrefetchedFile) -> None:
        self._reading += 1
        file.reading += 1

    def _end_read(self, file: PrefetchedFile) -> None:
        self._reading -= 1
        file.reading -= 1
        if not file.reading:
            self._release(file)
        self._changed.notify_all()

    # For a commit, and at the end.

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

    def close(self) -> None:
        """End the reads, and close the files."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            self._close_idle()
        background_readers.unregister(self)

    def _close_idle(self) -> None:
        """Wait for the reads in progress, and close everything that is open on the Volume."""
        if not self._changed.wait_for(lambda: not self._reading, PAUSE_TIMEOUT):
            _log.warning("a read of %s hangs for %g s; its file stays open until it ends", self._task, PAUSE_TIMEOUT)
        for file in list(self._files):
            if not file.reading:
                file.close()

    def forked(self) -> None:
        """In a child process, where no thread of ours runs and a lock may be held for ever: nothing more is read."""
        self._changed = threading.Condition()
        self._workers = self._unstarted = self._waiting = self._reading = self._paused = 0
        for file in self._files:
            file.opening, file.writing, file.reading = threading.Lock(), threading.Lock(), 0
            file.close()

    def __enter__(self: Pool) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
