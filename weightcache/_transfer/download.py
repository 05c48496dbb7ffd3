"""The fetch seam: files in, verified partials out.

The story above hands over `Job`s and learns of each file as it stands complete, verified and durable in its partial.
How the bytes come is decided below: `_schedule` says which connection brings what, `_transfer` keeps the books of one
file, `_mirrors` says who is to blame, and `_threads` does the work. Here the caller's own thread waits for verified
files, closes them, and shows the progress.
"""

from __future__ import annotations

import random
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import TYPE_CHECKING

from weightcache._runtime.cancel import Cancel
from weightcache._runtime.threads import thread_error_hint
from weightcache.errors import DownloadError

from .client import Client
from .mirrors import Retries
from .scheduler import CONNECTIONS, Schedule
from .segments import Job
from .workers import Connection, Hasher, Shared, clock

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from weightcache._coordination.lock import Holder

    from .file_transfer import Transfer
    from .progress import Progress, Track

__all__ = ["RETRIES", "Job", "Retries", "fetch"]

RETRIES = Retries()
JOIN = 0.5  # seconds that the end waits for threads; what still waits for a mirror then is left to its timeout


def fetch(
    jobs: Sequence[Job],
    *,
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
        client = stack.enter_context(closing(Client(stop, connections=CONNECTIONS)))
        shared = Shared(Schedule(jobs, replace(RETRIES, patience=patience), random.uniform, CONNECTIONS), client, stop)
        conductor = _Conductor(shared, progress, holder, cancel)
        stack.callback(conductor.end)
        stack.enter_context(cancel.interrupting(conductor.look))
        conductor.run(on_verified)


class _Conductor:
    """What the caller's thread does while the others work."""

    def __init__(self, shared: Shared, progress: Progress, holder: Holder, cancel: Cancel) -> None:
        self._shared, self._schedule = shared, shared.schedule
        self._progress, self._holder, self._cancel = progress, holder, cancel
        self._threads: list[Hasher | Connection] = []
        self._may_start = True
        self._tracks: dict[Transfer, Track] = {}

    def look(self) -> None:
        """Wake up; called from another thread that cancels."""
        with self._shared.lock:
            self._shared.news.notify()

    def run(self, on_verified: Callable[[Job], None]) -> None:
        self._start(Hasher(self._shared))
        for _ in self._schedule.transfers:
            transfer = self._next_verified()
            transfer.job.partial.seal(transfer.hashed)
            self._show()
            self._progress.close(self._tracks.pop(transfer))
            on_verified(transfer.job)
            with self._shared.lock:
                self._schedule.finished()
                self._shared.work.notify()

    def _start(self, thread: Hasher | Connection) -> bool:
        try:
            thread.start()
        except RuntimeError as error:
            if len(self._threads) > 1:
                return False  # those that run bring everything, later
            raise DownloadError(
                f"a thread of the download cannot be started: {error}",
                hint=thread_error_hint(error),
            ) from None
        self._threads.append(thread)
        return True

    def _next_verified(self) -> Transfer:
        """Wait for the next verified file; start connections and show progress meanwhile."""
        shared, schedule = self._shared, self._schedule
        while True:
            with shared.lock:
                if verified := schedule.next_verified():
                    return verified
                if shared.error:
                    raise shared.error
                if schedule.error and not schedule.next_blocks():  # what is complete is kept
                    raise schedule.error
                wait = schedule.look(clock())
                lacking = schedule.wanted() - (len(self._threads) - 1) if self._may_start else 0
                if lacking <= 0:
                    shared.news.wait(wait)
                    if wait:
                        shared.work.notify()  # somebody idle may take over from a stalled one
            for _ in range(lacking):
                self._may_start = self._may_start and self._start(Connection(shared, len(self._threads)))
            self._cancel.check()
            self._show()

    def _show(self) -> None:
        with self._shared.lock:
            arrived = [(transfer, transfer.arrived) for transfer in self._schedule.open_transfers()]
            notes, self._schedule.notes = self._schedule.notes, []
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
        self._shared.end()
        until = clock() + JOIN
        for thread in self._threads:
            thread.join(max(0.0, until - clock()))
        for track in self._tracks.values():
            self._progress.close(track)
