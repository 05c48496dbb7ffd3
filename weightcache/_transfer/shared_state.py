"""What the threads of one download share: the lock, the scheduler, and how they wake each other."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from weightcache._runtime.cancel import Cancel

    from .mirror_client import Client
    from .scheduler import Scheduler

PROGRESS_INTERVAL = 0.1  # seconds between two wake-ups of the caller that shows progress


class WorkerState:
    """What the threads of one download share.

    Attributes:
        lock: Held around every use of the scheduler.
        idle: Notified when an idle connection may find something to do.
        window: Notified when the window has moved.
        hash: Notified when the hasher may find something to do.
        caller: Notified when the caller may find something to do.
        stop: Set when the download is over, well or not. It ends every read and every pause.
        stopped: Whether the download is over. No connection may start to write then.
        error: What ended it: the first exception of any thread.
    """

    def __init__(self, scheduler: Scheduler, client: Client, stop: Cancel) -> None:
        self.scheduler, self.client, self.stop = scheduler, client, stop
        self.lock = threading.Lock()
        self.idle, self.window, self.hash, self.caller = (threading.Condition(self.lock) for _ in range(4))
        self.stopped = False
        self.error: BaseException | None = None
        self._next_progress = 0.0

    def wake_all(self) -> None:
        """Wake every thread; for what happens seldom."""
        for condition in (self.idle, self.window, self.hash, self.caller):
            condition.notify_all()

    def wake(self) -> None:
        """Wake the threads that may have something to do now."""
        if self.stopped or self.error or self.scheduler.is_done or self.scheduler.error:
            self.wake_all()
            return
        self.idle.notify()
        self.window.notify_all()
        self.hash.notify()
        if self.scheduler.files.next_verified():
            self.caller.notify()

    def wake_caller(self, now: float) -> None:
        """Wake the caller to show progress, but not too often."""
        if now >= self._next_progress:
            self._next_progress = now + PROGRESS_INTERVAL
            self.caller.notify()

    def fail(self, error: BaseException) -> None:
        """End the download with an exception."""
        with self.lock:
            self.error = self.error or error
            self.wake_all()

    def end(self) -> None:
        """End all threads; return when none of them can write to a partial any more."""
        with self.lock:
            self.stopped = True
            self.wake_all()
        self.stop.set()
        with self.lock:
            while any(task.is_writing for task in self.scheduler.tasks):
                self.caller.wait()
