"""A cold `ensure` in this container: takes the lock, and does on a real root what the story asks for."""

from __future__ import annotations

import logging
import os
import threading
import time
from typing import TYPE_CHECKING, TypeVar

from weightcache._coordination.lock import Holder, LockWait, root_lock
from weightcache._coordination.volume import VolumeSession
from weightcache._runtime.descriptors import close_on_interrupt
from weightcache._runtime.identity import Writer
from weightcache._runtime.threads import daemon_threads_allowed
from weightcache._store import root as store_root
from weightcache._store.inspect import Inspection, inspect
from weightcache._transfer.progress import make_progress
from weightcache._views.weights import Weights
from weightcache.errors import StorageError, VolumeError
from weightcache.reports import CheckpointReport, Report

from . import reconcile
from .install import Bringer, Work
from .local_notes import remove_old_notes

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence
    from typing import Any

    from weightcache._coordination.kv import LeaseSource
    from weightcache._coordination.lease import Lease, Pause
    from weightcache._coordination.volume import Volume
    from weightcache._runtime.cancel import Cancel
    from weightcache._store.layout import Layout
    from weightcache._transfer.progress import ProgressCallback
    from weightcache.manifest import Checkpoint

T = TypeVar("T")

_log = logging.getLogger("weightcache")

JOIN = 0.5  # seconds; a beat that hangs longer may come after the release, and then others wait until it has expired
REPORT_EVERY = 10.0  # seconds between two lines that say which container is waited for


@close_on_interrupt
def fill(
    layout: Layout,
    checkpoints: Sequence[Checkpoint],
    *,
    volume: Volume | None,
    lease: LeaseSource,
    offline: bool,
    rehash: bool,
    wait: float,
    progress: bool | ProgressCallback | None,
    cancel: Cancel,
    own: Mapping[str, str] | None = None,
    link: bool = False,
    patience: float = 180.0,
) -> Weights:
    """Make every checkpoint ready; see `ensure` for arguments and errors, and `Bringer` for ``own`` and ``link``."""
    store_root.check_root(layout)
    calls = VolumeSession(layout.root, volume)
    first_looks = [inspect(layout, checkpoint) for checkpoint in checkpoints]
    say = make_progress(progress, []).say
    with root_lock(layout.root, wait=wait, say=say, check=cancel.check) as (holder, waiting):
        remove_old_notes(layout.root)
        bringer = Bringer(layout, holder, offline, rehash, patience, progress, cancel, own or {}, link)
        house = _House(layout, checkpoints, calls, bringer, holder, say, cancel, rehash)
        between = None if offline or volume is None else house.lease(volume, lease, wait)
        lost = reconcile.run(reconcile.tell(house, between, house))
        if not lost:
            return house.weights(first_looks, waiting, between)
    detail = house.what_was_lost(lost)
    if calls.has_volume:
        raise VolumeError(
            f"{detail}, {reconcile.ROUNDS} times: the volume does not keep what was committed",
            hint="look for another process that deletes or reloads there, and at the volume's own log",
            operation="commit",
        )
    raise StorageError(
        f"{detail}, {reconcile.ROUNDS} times",
        hint="look for another process that deletes files in the root",
        path=layout.root,
    )


class _House:
    """The story's `House` and `Clock`: none of its coroutines ever suspends."""

    def __init__(
        self,
        layout: Layout,
        checkpoints: Sequence[Checkpoint],
        calls: VolumeSession,
        bringer: Bringer,
        holder: Holder,
        say: Callable[[str], None],
        cancel: Cancel,
        rehash: bool,
    ) -> None:
        self._layout, self._calls, self._bringer, self._holder = layout, calls, bringer, holder
        self._say, self._cancel, self._rehash = say, cancel, rehash
        self._works = [Work(checkpoint, inspect(layout, checkpoint)) for checkpoint in checkpoints]
        self._changed: list[Work] = []  # what is being brought
        self._began = time.monotonic()
        self._next_line = 0.0
        self._vanished = ""  # of ours, while it was written; empty if that went well the last time

    def lease(self, volume: Volume, source: LeaseSource, wait: float) -> Lease | None:
        """Return our part in the leases of the volume, if it has any and something is missing."""
        from weightcache._coordination.kv import open_store
        from weightcache._coordination.lease import Lease

        if not self._todo():
            return None
        try:
            store = open_store(source, volume)
        except Exception as error:  # noqa: BLE001 (a Dict raises whatever it likes; a lease only saves bandwidth)
            self._calls.warn(_without_lease(error))
            return None
        if store is None:
            return None
        task = os.environ.get("MODAL_TASK_ID", "")
        lease = Lease(store, self, f"{task} {Writer.new(self._layout.root)}".strip(), wait=wait)
        lease.done = lambda: self._holder.bytes_done
        return lease

    def now(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        self._cancel.sleep(seconds)

    def _todo(self) -> list[Work]:
        """Look, and return what is not ready."""
        todo = []
        for work in self._works:
            work.seen = inspect(self._layout, work.checkpoint)
            # Without a commit there is no receipt, and what we published is right all the same.
            ready = work.seen.state == "ready" or (work.published and work.seen.state == "unverified")
            if not ready or (self._rehash and not work.checked):
                todo.append(work)
        return todo

    async def look(self) -> list[str]:
        self._cancel.check()
        return list(dict.fromkeys(work.checkpoint.digest for work in self._todo()))

    async def unpushed(self) -> bool:
        return self._calls.is_dirty()

    async def reload(self) -> None:
        if not self._bringer.own:  # which may lie on this Volume, not committed: a reload would discard it
            self._calls.reload()

    async def commit(self) -> bool:
        self._holder.phase("committing")
        return self._calls.commit()

    async def can_write(self) -> bool:
        return not store_root.is_read_only(self._layout)

    async def prepare(self, digests: Sequence[str]) -> bool:
        self._vanished = ""
        self._calls.warn_if_ephemeral()
        store_root.make_root(self._layout)
        todo = [work for work in self._todo() if work.checkpoint.digest in digests]
        self._bringer.find_missing(todo)
        self._changed = [work for work in todo if work.missing or not work.seen.receipt]
        if not self._changed:
            return False
        with self._calls.writing():
            return self._bringer.withdraw_receipts(self._changed)

    async def bring(self) -> None:
        if self._changed:
            with self._calls.writing():
                self._bringer.bring(self._changed)

    async def has_published(self) -> bool:
        return any(work.published for work in self._changed)

    async def write_receipts(self) -> None:
        with self._calls.writing():
            self._bringer.write_receipts([work for work in self._changed if work.published])

    async def give_up(self, digests: Sequence[str]) -> None:
        todo = [work for work in self._works if work.checkpoint.digest in digests]
        self._bringer.find_missing(todo)
        if missing := [work for work in todo if work.missing]:
            raise self._bringer.not_cached(missing, "the root is read-only here")
        for work in todo:
            if not work.seen.receipt:
                name = work.checkpoint.name
                self._calls.warn(
                    f"{name} has no receipt and the root is read-only, so every start hashes it again; "
                    f"run `weightcache ensure {name} --root {self._layout.root}` once where the root may be written"
                )
                work.done("adopted")

    async def waiting(self, lease: Lease, digests: Sequence[str]) -> None:
        other, count = _in_words(lease.holder(digests)), lease.progress(digests)
        self._holder.mirror(f"waiting for {other}", count)
        if self.now() >= self._next_line:
            self._next_line = self.now() + REPORT_EVERY
            far = f", {count / 1e6:.0f} MB so far" if count else ""
            self._say(f"waiting for {other} to fill the Volume of {self._layout.root} ({lease.waited:.0f} s{far})")

    async def alongside(self, beat: Callable[[Pause], Coroutine[Any, Any, None]], work: Coroutine[Any, Any, T]) -> T:
        over = threading.Event()

        async def pause(seconds: float) -> bool:
            return not over.wait(seconds)

        thread = threading.Thread(
            target=lambda: reconcile.run(beat(pause)), name="weightcache-lease", daemon=daemon_threads_allowed()
        )  # a daemon: at the end of the interpreter nobody waits for a Dict
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

    async def vanished(self, what: str) -> None:
        self._vanished = what

    def what_was_lost(self, lost: Sequence[str]) -> str:
        if self._vanished:
            return f"{self._vanished} vanished while it was written"
        work = next(work for work in self._works if work.checkpoint.digest in lost)
        return f"{work.checkpoint.name} {work.seen.detail} after it was ready"

    def weights(self, first_looks: list[Inspection], waiting: LockWait, lease: Lease | None) -> Weights:
        between = lease.waited if lease else 0.0
        waited, holders = (
            waiting.seconds + between,
            [waiting.holder, _in_words(lease.waited_for) if lease and lease.waited else ""],
        )
        reports = {}
        for work, first in zip(self._works, first_looks, strict=True):
            report = work.report()
            if work.outcome == "hit" and first.state != "ready" and waited:
                report = CheckpointReport("waited", 0, waited)
            reports[work.checkpoint.name] = report
        if lease and lease.failure:
            self._calls.warn(_without_lease(lease.failure))
        return Weights(
            {work.checkpoint.name: self._layout.published(work.checkpoint) for work in self._works},
            Report(
                reports,
                self._calls.committed,
                time.monotonic() - self._began,
                waited,
                "; ".join(filter(None, holders)),
                tuple(self._calls.warnings),
            ),
            tuple(work.checkpoint for work in self._works),
            self._layout.root,
        )


def _without_lease(why: object) -> str:
    text = f"{type(why).__name__}: {why}" if isinstance(why, Exception) else str(why)
    refused = text.startswith(("PermissionDeniedError", "AuthError"))
    remedy = "Permit this token to use Dicts, or pass lease=None" if refused else "If that lasts, pass lease=None"
    return f"no lease between containers ({text}): each that starts at the same time may download for itself. {remedy}"


def _in_words(holder: str) -> str:
    """Say who holds a lease: "container ta-123 (process 7)"."""
    task, _, text = holder.rpartition(" ")
    writer = Writer.parse(text)
    if writer is None:
        return "another container"
    return f"container {task or writer.container} (process {writer.pid})"
