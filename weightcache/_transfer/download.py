"""The entry of a download: files in, verified partials out.

The engine hands over `Job`s, and is called back for each file that is complete, verified and durable in its partial.
`scheduler` decides which connection fetches what, `file_transfer` keeps the state of one file, `mirrors` decides what
follows from a failure, and `workers` does the work. Here the caller's own thread waits for verified files, closes them,
and shows the progress.
"""

from __future__ import annotations

import random
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

from weightcache._runtime.cancel import Cancel
from weightcache._runtime.start_threads import thread_error_hint
from weightcache.errors import DownloadError

from .mirror_client import Client
from .scheduler import Scheduler
from .shared_state import WorkerState
from .transfer_types import Job
from .workers import Connection, Hasher, clock

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from weightcache._coordination.lock import Holder
    from weightcache._runtime.tuning_constants import Settings

    from .file_transfer import FileTransfer
    from .progress import Progress, Track

__all__ = ["Job", "download"]

JOIN = 0.5  # seconds that the end waits for threads; one that still waits for a mirror then is left to its timeout


def download(
    jobs: Sequence[Job],
    *,
    settings: Settings,
    patience: float,
    progress: Progress,
    holder: Holder,
    cancel: Cancel,
    on_verified: Callable[[Job], None],
) -> None:
    """Fetch every job's file into its partial.

    Args:
        jobs: The files, in the order in which they are hashed.
        settings: Limits and waits.
        patience: Seconds that a mirror which delivered may send nothing before it is given up.
        progress: Shows the progress.
        holder: The lock's, for its heartbeat.
        cancel: Ends the download early.
        on_verified: Called with each job whose file is complete, verified and durable.

    Raises:
        IntegrityError: The first mirror that failed a file delivered wrong bytes, and no other one delivered it.
        DownloadError: No mirror delivered a file, for any other reason; or no thread can be started.
        StorageError: The disk is full or failed.
        VanishedError: A partial was swept or taken by another writer.
    """
    with ExitStack() as stack:
        stop = Cancel()
        client = stack.enter_context(closing(Client(stop, settings)))
        state = WorkerState(Scheduler(jobs, settings, patience, random.uniform), client, stop)
        run = DownloadRun(state, progress, holder, cancel)
        stack.callback(run.end)
        stack.enter_context(cancel.interrupting(run.wake))
        run.run(on_verified)


class DownloadRun:
    """What the caller's thread does while the others work."""

    def __init__(self, state: WorkerState, progress: Progress, holder: Holder, cancel: Cancel) -> None:
        self._state, self._scheduler = state, state.scheduler
        self._progress, self._holder, self._cancel = progress, holder, cancel
        self._threads: list[Hasher | Connection] = []
        self._may_start = True
        self._tracks: dict[FileTransfer, Track] = {}

    def wake(self) -> None:
        """Wake up; called from another thread that cancels."""
        with self._state.lock:
            self._state.caller.notify()

    def run(self, on_verified: Callable[[Job], None]) -> None:
        """Wait for every file, and close it."""
        self._start(Hasher(self._state))
        for _ in self._scheduler.files.transfers:
            transfer = self._next_verified()
            transfer.job.partial.seal(transfer.hashed)
            self._show()
            self._progress.close(self._tracks.pop(transfer))
            on_verified(transfer.job)
            with self._state.lock:
                self._scheduler.files.on_closed()
                self._state.idle.notify()

    def _start(self, thread: Hasher | Connection) -> bool:
        try:
            thread.start()
        except RuntimeError as error:
            if len(self._threads) > 1:
                return False  # the threads that run do all the work, only later
            raise DownloadError(
                f"a thread of the download cannot be started: {error}",
                hint=thread_error_hint(error),
            ) from None
        self._threads.append(thread)
        return True

    def _next_verified(self) -> FileTransfer:
        """Wait for the next verified file; start connections and show progress meanwhile."""
        state, scheduler = self._state, self._scheduler
        while True:
            with state.lock:
                if verified := scheduler.files.next_verified():
                    return verified
                if state.error:
                    raise state.error
                if scheduler.error and not scheduler.next_blocks():  # files that are complete are kept
                    raise scheduler.error
                seconds = scheduler.update(clock())
                more = scheduler.connections_wanted() - (len(self._threads) - 1) if self._may_start else 0
                if more <= 0:
                    state.caller.wait(seconds)
                    if seconds:
                        state.idle.notify()  # an idle connection may take over from a stalled one
            for _ in range(more):
                self._may_start = self._may_start and self._start(Connection(state, len(self._threads)))
            self._cancel.check()
            self._show()

    def _show(self) -> None:
        with self._state.lock:
            present = [(transfer, transfer.counts.present) for transfer in self._scheduler.files.opened()]
            notes = self._scheduler.take_notes()
        for note in notes:
            if self._progress.shows_lines:
                self._progress.say(note)
        for transfer, count in present:
            job = transfer.job
            if transfer not in self._tracks:
                self._tracks[transfer] = self._progress.open(job.checkpoint.name, job.file.path, job.file.size)
            if more := count - self._tracks[transfer].done:
                self._progress.advance(self._tracks[transfer], more)
                self._holder.advance(max(0, more))

    def end(self) -> None:
        """End the threads, whatever happened; none of them touches a partial after this."""
        self._state.end()
        until = clock() + JOIN
        for thread in self._threads:
            thread.join(max(0.0, until - clock()))
        for track in self._tracks.values():
            self._progress.close(track)
