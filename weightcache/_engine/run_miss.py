"""A miss in this container: take the lock, and carry out the steps of the protocol on a real root."""

from __future__ import annotations

import logging
import os
import threading
import time
from typing import TYPE_CHECKING, TypeVar

from weightcache._coordination.lock import Holder, LockWait, root_lock
from weightcache._coordination.volume import VolumeSession
from weightcache._environment import command, in_modal_container
from weightcache._runtime.container_timeout import TimeLimit, modal_time_limit
from weightcache._runtime.owned_descriptors import close_on_interrupt
from weightcache._runtime.start_threads import daemon_threads_allowed
from weightcache._runtime.writer_identity import Writer
from weightcache._size_text import size_text
from weightcache._spans import add_span, span
from weightcache._store import root_checks as store_root
from weightcache._store.inspect import Inspection, inspect
from weightcache._transfer.progress import make_progress
from weightcache._views.weights import Weights
from weightcache.errors import StorageError, VolumeError, lazy_imports
from weightcache.reports import CheckpointReport, Report

from . import miss_protocol
from .checkpoint_task import CheckpointTask
from .commit_evidence import CommitEvidence
from .execute_plan import READ_ONLY, Installer, not_cached
from .plan import plan
from .stale_lock_files import remove_old_notes
from .time_check import TimeCheck, WaitCheck

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from typing import Any

    from weightcache._coordination.lease import Lease, Pause
    from weightcache._store.layout import Layout
    from weightcache.manifest import Checkpoint

    from .ensure_options import EnsureOptions

T = TypeVar("T")

_log = logging.getLogger("weightcache")

JOIN = 0.5  # seconds; a beat that hangs longer may be written after the release, and others wait until it expires
REPORT_EVERY = 10.0  # seconds between two lines that say which container is waited for


@close_on_interrupt
def ensure_on_miss(layout: Layout, checkpoints: Sequence[Checkpoint], options: EnsureOptions) -> Weights:
    """Make every checkpoint ready; see `weightcache.ensure` for results and errors."""
    store_root.check_root(layout)
    calls = VolumeSession(layout.root, options.volume)
    first_looks = [inspect(layout, checkpoint) for checkpoint in checkpoints]
    say = make_progress(options.progress, []).say
    with root_lock(layout.root, wait=options.wait, say=say, check=options.cancel.check) as (holder, waiting):
        add_span("wait", waiting.seconds)
        remove_old_notes(layout.root)
        host = LocalHost(layout, checkpoints, options, calls, holder)
        lease = host.lease()
        lost = miss_protocol.run_sync(miss_protocol.reconcile(host, lease, host))
        if not lost:
            return host.weights(first_looks, waiting, lease)
    detail = host.what_was_lost(lost)
    if calls.has_volume:
        raise VolumeError(
            f"{detail}, {miss_protocol.MAX_ATTEMPTS} times: the volume does not keep what was committed",
            hint="look for another process that deletes or reloads there, and at the volume's own log",
            operation="commit",
        )
    raise StorageError(
        f"{detail}, {miss_protocol.MAX_ATTEMPTS} times",
        hint="look for another process that deletes files in the root",
        path=layout.root,
    )


class LocalHost:
    """The `Host` and `Clock` of the protocol on a real root: none of its coroutines ever suspends."""

    def __init__(
        self,
        layout: Layout,
        checkpoints: Sequence[Checkpoint],
        options: EnsureOptions,
        calls: VolumeSession,
        holder: Holder,
    ) -> None:
        self._layout, self._options, self._calls, self._holder = layout, options, calls, holder
        self._installer = Installer(layout, options, holder, self._time_check)
        self._say = make_progress(options.progress, []).say
        self._tasks = [CheckpointTask(checkpoint, inspect(layout, checkpoint)) for checkpoint in checkpoints]
        self._changed: list[CheckpointTask] = []  # what is being installed
        self._evidence = CommitEvidence(layout)
        self._began = time.monotonic()
        self._wait_check = WaitCheck(self._time_check)
        self._next_line = 0.0
        self._lost_path = ""  # what was lost while the last installation wrote it; empty if nothing was

    def lease(self) -> Lease | None:
        """Return this call's part in the leases of the Volume; ``None`` without leases or if nothing is missing."""
        with lazy_imports:
            from weightcache._coordination.kv import open_store
            from weightcache._coordination.lease import Lease

        options = self._options
        if options.offline or options.volume is None or not self._todo():
            return None
        try:
            store = open_store(options.lease, options.volume)
        except Exception as error:  # noqa: BLE001 (a Dict raises any error; a lease only saves bandwidth)
            self._calls.warn(_without_lease(error))
            return None
        if store is None:
            return None
        container = os.environ.get("MODAL_TASK_ID", "")
        me = f"{container} {Writer.new(self._layout.root)}".strip()
        return Lease(store, self, me, wait=options.wait, bytes_done=lambda: self._holder.bytes_done)

    def now(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        with span("wait"):
            self._options.cancel.sleep(seconds)

    def _time_check(self, total: int, by: str = "", left: Callable[[], int] = lambda: 0) -> TimeCheck | None:
        """Warn if a download of ``total`` bytes takes longer than this container may run; ``None`` without a limit.

        Args:
            total: Bytes, as far as they are declared.
            by: See `TimeCheck`.
            left: Returns how many of them earlier downloads left. It reads their journals.
        """
        if (seconds := self._options.time_limit) is None:
            limit = modal_time_limit()
        else:
            used = time.monotonic() - self._began
            limit = TimeLimit(seconds - used, "the time limit (on Modal: startup_timeout or timeout)", used)
        there = left() if limit else 0
        return TimeCheck(limit, max(0, total - there), self._calls.warn, left=there, by=by) if limit else None

    def _todo(self) -> list[CheckpointTask]:
        """Inspect the root, and return what is not ready."""
        for task in self._tasks:
            task.inspect(self._layout)
        return [task for task in self._tasks if not task.is_ready(rehash=self._options.rehash)]

    async def missing(self) -> list[str]:
        self._options.cancel.check()
        return list(dict.fromkeys(task.checkpoint.digest for task in self._todo()))

    async def is_dirty(self) -> bool:
        # With local sources there is no reload (see below), so that nothing can be lost, and no commit is needed first.
        return not self._options.local_sources and self._calls.is_dirty()

    async def reload(self) -> None:
        if not self._options.local_sources:  # they may be on this Volume, not committed: a reload would discard them
            self._calls.reload()

    async def commit(self) -> bool:
        self._holder.phase("committing")
        return self._calls.commit(self._evidence.files(t.checkpoint for t in self._changed if t.state == "installed"))

    async def can_write(self) -> bool:
        return not store_root.is_read_only(self._layout)

    async def prepare(self, digests: Sequence[str]) -> bool:
        self._lost_path = ""
        self._calls.warn_if_ephemeral()
        store_root.make_root(self._layout)
        todo = [task for task in self._todo() if task.checkpoint.digest in digests]
        self._installer.examine(todo)
        self._changed = [task for task in todo if task.missing or not task.seen.receipt]
        if not self._changed:
            return False
        self._evidence = CommitEvidence(self._layout, [task.checkpoint for task in self._changed])
        with self._calls.writing():
            return self._installer.withdraw_receipts(self._changed)

    async def install(self) -> None:
        if self._changed:
            contents = [task.contents for task in self._changed]
            # After the receipts are withdrawn, so that a file that must be healed is not planned as a source.
            steps = plan(self._layout, contents, local_sources=self._options.local_sources, partial_bytes={})
            with self._calls.writing():
                self._installer.install(steps, self._changed)

    async def has_published(self) -> bool:
        return any(task.state == "installed" for task in self._changed)

    async def write_receipts(self) -> None:
        with self._calls.writing():
            self._installer.write_receipts([task for task in self._changed if task.state == "installed"])

    async def serve_read_only(self, digests: Sequence[str]) -> None:
        todo = [task for task in self._todo() if task.checkpoint.digest in digests]
        self._installer.examine(todo)
        if missing := [task for task in todo if task.missing]:
            raise not_cached(self._layout, missing, READ_ONLY, self._options.volume)
        for task in todo:
            if not task.seen.receipt:
                name = task.checkpoint.name
                run = command(f"ensure {name}", self._layout.root, self._options.volume)
                self._calls.warn(
                    f"{name} has no receipt and the root is read-only, so every start hashes it again; run {run} once"
                    f"{'' if in_modal_container() else ' where the root is writable'}"
                )
                task.installed("adopted")

    async def waiting(self, lease: Lease, digests: Sequence[str]) -> None:
        other, count = _in_words(lease.holder(digests)), lease.progress(digests)
        self._holder.mirror(f"waiting for {other}", count)
        sizes = {task.checkpoint.digest: task.checkpoint.size or 0 for task in self._tasks}
        self._wait_check.update(sum(sizes[digest] for digest in digests), count, other)
        if self.now() >= self._next_line:
            self._next_line = self.now() + REPORT_EVERY
            far = f", {size_text(count)} so far" if count else ""
            self._say(f"waiting for {other} to fill the Volume of {self._layout.root} ({lease.waited:.0f} s{far})")

    async def with_heartbeat(
        self, beat: Callable[[Pause], Coroutine[Any, Any, None]], work: Coroutine[Any, Any, T]
    ) -> T:
        over = threading.Event()

        async def pause(seconds: float) -> bool:
            return not over.wait(seconds)

        thread = threading.Thread(
            target=lambda: miss_protocol.run_sync(beat(pause)),
            name="weightcache-lease",
            daemon=daemon_threads_allowed(),
        )  # a daemon, so that the end of the interpreter does not wait for a Dict
        try:
            thread.start()
        except RuntimeError as error:
            _log.info("the lease is held without a beat: %s", error)  # others may download too
            return await work
        try:
            return await work
        finally:
            over.set()
            thread.join(JOIN)

    async def on_lost(self, what: str) -> None:
        self._lost_path = what

    def what_was_lost(self, lost: Sequence[str]) -> str:
        if self._lost_path:
            return f"{self._lost_path} was lost while it was written"
        task = next(task for task in self._tasks if task.checkpoint.digest in lost)
        return f"{task.checkpoint.name} {task.seen.detail} after it was ready"

    def weights(self, first_looks: list[Inspection], waiting: LockWait, lease: Lease | None) -> Weights:
        between = lease.waited if lease else 0.0
        waited, holders = (
            waiting.seconds + between,
            [waiting.holder, _in_words(lease.waited_for) if lease and lease.waited else ""],
        )
        reports = {}
        for task, first in zip(self._tasks, first_looks, strict=True):
            report = task.report()
            if task.outcome == "hit" and first.state != "ready" and waited:
                report = CheckpointReport("waited", 0, waited)
            reports[task.checkpoint.name] = report
        if lease and lease.failure:
            self._calls.warn(_without_lease(lease.failure))
        return Weights(
            {task.checkpoint.name: self._layout.published(task.checkpoint) for task in self._tasks},
            Report(
                reports,
                self._calls.committed,
                time.monotonic() - self._began,
                waited,
                "; ".join(filter(None, holders)),
                tuple(self._calls.warnings),
            ),
            tuple(task.checkpoint for task in self._tasks),
            self._layout.root,
        )


def _without_lease(why: object) -> str:
    text = f"{type(why).__name__}: {why}" if isinstance(why, Exception) else str(why)
    refused = text.startswith(("PermissionDeniedError", "AuthError"))
    remedy = "Permit this token to use Dicts, or pass lease=None" if refused else "If that lasts, pass lease=None"
    return f"no lease between containers ({text}): each that starts at the same time may download for itself. {remedy}"


def _in_words(holder: str) -> str:
    """Return the name of a lease's holder as users see it: "container ta-123 (process 7)"."""
    container, _, text = holder.rpartition(" ")
    writer = Writer.parse(text)
    if writer is None:
        return "another container"
    return f"container {container or writer.container} (process {writer.pid})"
