"""The fetch seam: files in, verified partials out.

The story above hands over `Job`s and learns of each file as it stands complete, verified and durable in its partial.
How the bytes come is decided below: `_scheduler` says which connection brings what, `_transfer` keeps the books of one
file, `_mirrors` says who is to blame, and `_threads` does the work. Here the caller's own thread waits for verified
files, closes them, and shows the progress.
"""

from __future__ import annotations

import random
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

from weightcache._runtime.cancel import Cancel
from weightcache._runtime.threads import remedy
from weightcache.errors import DownloadError

from .client import Client
from .scheduler import Scheduler
from .segments import Job
from .workers import Connection, Hasher, WorkerState, clock

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from weightcache._coordination.lock import Holder
    from weightcache._runtime.settings import Settings

    from .file_transfer import FileTransfer
    from .progress import Progress, Track

__all__ = ["Job", "download"]

JOIN = 0.5  # seconds that the end waits for threads; what still waits for a mirror then is left to its timeout


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
    """Fetch every job's file into its partial; call ``on_verified`` as each one is complete, verified and durable.

    ``patience`` is as `ensure` has it: seconds.

    Raises:
        IntegrityError: The first mirror that failed a file delivered wrong bytes, and no other one helped.
        DownloadError: No mirror delivered a file, for any other reason.
        StorageError: The disk is full or failed.
        VanishedError: A partial was swept or taken by somebody else.
    """
    with ExitStack() as stack:
        stop = Cancel()
        client = stack.enter_context(closing(Client(stop, settings)))
        state = WorkerState(Scheduler(jobs, settings, patience, random.uniform), client, stop)
        download_run = DownloadRun(state, progress, holder, cancel)
        stack.callback(download_run.end)
        stack.enter_context(cancel.interrupting(download_run.look))
        download_run.run(on_verified)


class DownloadRun:
    """What the caller's thread does while the others work."""

    def __init__(self, state: WorkerState, progress: Progress, holder: Holder, cancel: Cancel) -> None:
        self._state, self._scheduler = state, state.scheduler
        self._progress, self._holder, self._cancel = progress, holder, cancel
        self._threads: list[Hasher | Connection] = []
        self._may_start = True
        self._tracks: dict[FileTransfer, Track] = {}

    def look(self) -> None:
        """Wake up; called from another thread that cancels."""
        with self._state.lock:
            self._state.caller.notify()

    def run(self, on_verified: Callable[[Job], None]) -> None:
        self._start(Hasher(self._state))
        for _ in self._scheduler.transfers:
            transfer = self._next_verified()
            transfer.job.partial.finish(transfer.hashed)
            self._show()
            self._progress.close(self._tracks.pop(transfer))
            on_verified(transfer.job)
            with self._state.lock:
                self._scheduler.finished()
                self._state.idle.notify()

    def _start(self, thread: Hasher | Connection) -> bool:
        try:
            thread.start()
        except RuntimeError as error:
            if len(self._threads) > 1:
                return False  # those that run bring everything, later
            raise DownloadError(
                f"a thread of the download cannot be started: {error}",
                hint=remedy(error),
            ) from None
        self._threads.append(thread)
        return True

    def _next_verified(self) -> FileTransfer:
        """Wait for the next verified file; start connections and show progress meanwhile."""
        state, scheduler = self._state, self._scheduler
        while True:
            with state.lock:
                if verified := scheduler.next_verified():
                    return verified
                if state.error:
                    raise state.error
                if scheduler.error and not scheduler.next_blocks():  # what is complete is kept
                    raise scheduler.error
                wait = scheduler.look(clock())
                lacking = scheduler.wanted() - (len(self._threads) - 1) if self._may_start else 0
                if lacking <= 0:
                    state.caller.wait(wait)
                    if wait:
                        state.idle.notify()  # somebody idle may take over from a stalled one
            for _ in range(lacking):
                self._may_start = self._may_start and self._start(Connection(state, len(self._threads)))
            self._cancel.check()
            self._show()

    def _show(self) -> None:
        with self._state.lock:
            arrived = [(transfer, transfer.arrived) for transfer in self._scheduler.open_transfers()]
            notes, self._scheduler.notes = self._scheduler.notes, []
        for note in notes:
            if self._progress.shows_lines:
                self._progress.say(note)
        for transfer, count in arrived:
            job = transfer.job
            if transfer not in self._tracks:
                self._tracks[transfer] = self._progress.open(job.checkpoint.name, job.file.path, job.file.size)
            if more := count - self._tracks[transfer].done:
                self._progress.advance(self._tracks[transfer], more)
                self._holder.advance(max(0, more))

    def end(self) -> None:
        """End the threads, whatever happened; nothing touches a partial after this."""
        self._state.end()
        until = clock() + JOIN
        for thread in self._threads:
            thread.join(max(0.0, until - clock()))
        for track in self._tracks.values():
            self._progress.close(track)
