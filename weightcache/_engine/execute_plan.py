"""Carry out a plan in one root: copy what the root or this machine has, fetch the rest, verify and publish it.

Nothing here commits or reloads, and no file of the root is open when it returns.
"""

from __future__ import annotations

import os
from collections import defaultdict
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Protocol

from weightcache._environment import command, in_modal_container
from weightcache._runtime import tuning_constants
from weightcache._runtime.writer_identity import Writer
from weightcache._spans import add_bytes, in_phase
from weightcache._store import file_operations as store_files
from weightcache._store import receipts
from weightcache._store import root_checks as store_root
from weightcache._store.partial_directory import Partial, journaled_bytes, sweep
from weightcache._store.partial_file import VanishedError
from weightcache._transfer.download import Job, download
from weightcache._transfer.progress import make_progress
from weightcache.errors import NotCachedError, StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from weightcache._coordination.lock import Holder
    from weightcache._coordination.volume import Volume
    from weightcache._store.file_operations import Hashed
    from weightcache._store.layout import Layout
    from weightcache._store.partial_file import PartialFile
    from weightcache.manifest import File
    from weightcache.reports import Plan

    from .checkpoint_task import CheckpointTask
    from .ensure_options import EnsureOptions
    from .time_check import TimeCheck


class TimeChecks(Protocol):
    """Starts the check of a download; see `LocalHost`."""

    def __call__(self, total: int, *, left: Callable[[], int]) -> TimeCheck | None: ...


# Why a checkpoint cannot be installed, in words:
OFFLINE = "offline=True"
READ_ONLY = "the root is read-only here"
WITHOUT_URL = "it declares no URL"
_SHOWN = 10  # checkpoints in a message; the number of the others is given
_WRONG_SOURCES = 4  # files to hash in vain for one sha256 before it is fetched: planted receipts can name any number


class Installer:
    """Installs checkpoints in one root, for one call."""

    def __init__(
        self,
        layout: Layout,
        options: EnsureOptions,
        holder: Holder,
        time_check: TimeChecks,
    ) -> None:
        self.layout, self._options, self._holder, self._time_check = layout, options, holder, time_check

    @in_phase("verify")
    def examine(self, tasks: Sequence[CheckpointTask]) -> None:
        """Find out which files are right: by a receipt, or by a hash without a receipt or with ``rehash``."""
        self._holder.phase("hashing what is there")
        sizes: dict[str, dict[str, int]] = {}
        to_hash = []
        for task in tasks:
            if task.seen.receipt and not self._options.rehash:
                wrong = {file.path for file in task.seen.wrong}
                sizes[task.checkpoint.name] = {
                    path: size for path, size in task.seen.sizes.items() if path not in wrong
                }
            else:
                sizes[task.checkpoint.name] = {}
                to_hash += [(task.checkpoint, file) for file in task.checkpoint.files]
        for (name, path), size in store_files.verified_sizes(self.layout, to_hash, self._tick).items():
            sizes[name][path] = size
        for task in tasks:
            task.examined(sizes[task.checkpoint.name])

    def _tick(self) -> None:
        self._options.cancel.check()
        self._holder.advance(store_files.HASH_CHUNK)  # waiters must see progress while gigabytes are hashed

    def withdraw_receipts(self, tasks: Sequence[CheckpointTask]) -> bool:
        """Withdraw the receipts of each version directory that changes; return whether there was any."""
        versions = [(task.checkpoint.name, task.checkpoint.digest) for task in tasks]
        paths = [path for version in versions for path in receipts.receipts_of_directory(self.layout, *version)]
        for path in paths:
            receipts.withdraw_receipt(self.layout, path)
        return bool(paths)

    def install(self, plan: Plan, tasks: Sequence[CheckpointTask]) -> None:
        """Carry out the plan of ``tasks``; a checkpoint is installed when its last file is in place."""
        for task in tasks:
            if not task.missing:
                task.installed("adopted")
        with Writer.new(self.layout.root) as writer, ExitStack() as stack:
            partials: dict[str, Partial] = {}  # by full digest: checkpoints with the same files share one
            for task in tasks:
                if task.missing and task.checkpoint.digest not in partials:
                    partial = Partial(self.layout, task.checkpoint, writer)
                    partials[task.checkpoint.digest] = stack.enter_context(partial)
            if to_fetch := self._copy(plan, tasks, partials):
                self._refuse_unfetchable([task for task, _ in to_fetch])
                self._fetch(to_fetch, partials)
            for partial in partials.values():
                partial.discard()

    @in_phase("copy")
    def _copy(
        self, plan: Plan, tasks: Sequence[CheckpointTask], partials: Mapping[str, Partial]
    ) -> list[tuple[CheckpointTask, File]]:
        """Copy what the plan copies, and publish it; return what must be fetched.

        Nothing is published before all copies are made: `publish` must not leave half a checkpoint.
        """
        self._holder.phase("copying")
        pending = {
            self.layout.file(task.checkpoint, file)
            for task in tasks
            for file, step in zip(task.checkpoint.files, plan[task.checkpoint.name].files, strict=True)
            if step.action == "fetch"
        }
        copied: list[tuple[CheckpointTask, File, str, int]] = []
        to_fetch: list[tuple[CheckpointTask, File]] = []
        wrong: dict[str, set[tuple[int, int]]] = defaultdict(set)  # by sha256, which files do not have it
        for task in tasks:
            steps = {step.path: step for step in plan[task.checkpoint.name].files}
            for file in task.missing:
                target = f"{partials[task.checkpoint.digest].path}/{len(copied)}.copy"
                sources = [path for path in steps[file.path].sources if path not in pending]
                most = len(sources) if self._options.offline or not task.checkpoint.urls else _WRONG_SOURCES
                if found := self._copy_file(file, sources, target, wrong[file.sha256], most):
                    copied.append((task, file, target, found.size))
                else:
                    to_fetch.append((task, file))
        for task, file, target, size in copied:
            store_files.publish_file(self.layout, task.checkpoint, file, target)
            task.placed(file, size)
        for task in dict.fromkeys(task for task, *_ in copied):
            if not task.missing:
                task.installed("copied")
        return to_fetch

    def _copy_file(
        self, file: File, sources: Sequence[str], target: str, wrong: set[tuple[int, int]], most: int
    ) -> Hashed | None:
        """Copy or link the first source that has the bytes of ``file`` to ``target``; ``None`` if none has them.

        Others are added to ``wrong``, by device and inode. After ``most`` of them, no other is tried.
        """
        local = self._options.local_sources.get(file.sha256)  # if there is one, it is the last of the sources
        for source in sources if local is None or self._options.may_link else sources[:-1]:
            inode = _inode(source)
            if source != local and (inode is None or inode in wrong or len(wrong) >= most):
                continue
            if found := store_files.link_or_copy(source, target, file.sha256, self._tick):
                return found
            if inode:
                wrong.add(inode)
        if local is None:
            return None
        copied = store_files.copy_file(local, target, self._tick)
        if copied != (file.sha256, file.size):
            raise changed_while_read(local)
        return copied

    def _refuse_unfetchable(self, tasks: Sequence[CheckpointTask]) -> None:
        offline = self._options.offline
        if unfetchable := [task for task in dict.fromkeys(tasks) if offline or not task.checkpoint.urls]:
            raise not_cached(self.layout, unfetchable, OFFLINE if offline else WITHOUT_URL, self._options.volume)

    @in_phase("download")
    def _fetch(self, needs: Sequence[tuple[CheckpointTask, File]], partials: Mapping[str, Partial]) -> None:
        """Fetch each sha256 once; every further file with the same bytes gets a link or a copy."""
        wanted: dict[str, list[tuple[CheckpointTask, File]]] = defaultdict(list)
        for task, file in needs:
            wanted[file.sha256].append((task, file))
        first = {sha256: same[0] for sha256, same in wanted.items()}
        jobs = [Job(task.checkpoint, f, partials[task.checkpoint.digest].file(f)) for task, f in first.values()]
        limits = tuning_constants.DEFAULT
        progress = make_progress(
            self._options.progress,
            [(task.checkpoint, file) for task, file in first.values()],
            line_interval=limits.line_interval,
        )

        def on_verified(job: Job) -> None:
            for task, _ in wanted[job.file.sha256]:
                task.fetched(job.source)
            self._publish_for_all(wanted[job.file.sha256], job.partial)

        if check := self._time_check(sum(job.file.size or 0 for job in jobs), left=lambda: self._left_of(jobs)):
            progress.watch(check.advance)
        self._holder.phase("downloading", progress.total or 0)
        try:
            download(
                jobs,
                settings=limits,
                patience=self._options.patience,
                progress=progress,
                holder=self._holder,
                cancel=self._options.cancel,
                on_verified=on_verified,
            )
        finally:
            progress.end()
            for job in jobs:
                first[job.file.sha256][0].received(job.counts.received)
                add_bytes(job.counts.received)

    def _left_of(self, jobs: Sequence[Job]) -> int:
        """Return how many bytes of ``jobs`` earlier downloads left, by the word of their journals."""
        there = journaled_bytes(self.layout, {job.checkpoint.digest for job in jobs})
        return sum(there.get((job.checkpoint.digest, job.file.sha256), 0) for job in jobs if job.file.size is not None)

    def _publish_for_all(self, needs: Sequence[tuple[CheckpointTask, File]], verified: PartialFile) -> None:
        """Publish a verified file under every name that needs it: renamed to the first one, linked from there.

        Never linked from the partial: after a crash it would be written to, and the published file with it. A name that
        cannot be written does not keep the others from their file.
        """
        published, failure = "", None
        for task, file in needs:
            source = verified.path
            try:
                if published:
                    source = f"{verified.path}.copy"
                    if not store_files.link_or_copy(published, source, file.sha256, self._options.cancel.check):
                        raise VanishedError(published)
                store_files.publish_file(self.layout, task.checkpoint, file, source)
            except StorageError as error:
                failure = failure or error
                continue
            published = published or self.layout.file(task.checkpoint, file)
            task.placed(file, verified.size, resumed=verified.reused > 0)
            if not task.missing:
                task.installed("downloaded")
        if failure:
            raise failure

    def write_receipts(self, tasks: Sequence[CheckpointTask]) -> None:
        """Record what was verified, and remove what is left of its downloads."""
        for task in tasks:
            try:
                receipts.write_receipt(self.layout, task.checkpoint, task.sizes, sorted(set(task.sources)))
            except VanishedError:
                task.lost()
                raise
        store_root.refuse_links(self.layout, self.layout.partials)
        with suppress(StorageError):  # what cannot be swept now is swept later; the weights are there
            sweep(self.layout, {task.checkpoint.digest for task in tasks})


def _inode(path: str) -> tuple[int, int] | None:
    """Return what is the same for all hard links of one file; ``None`` if there is no such file."""
    with suppress(OSError):
        found = os.lstat(path)
        return found.st_dev, found.st_ino
    return None


def not_cached(layout: Layout, tasks: Sequence[CheckpointTask], why: str, volume: Volume | None) -> NotCachedError:
    """Return the error for checkpoints that are missing and cannot be fetched."""
    names = tuple(task.checkpoint.name for task in tasks)
    shown = tasks[:_SHOWN]
    listed = "; ".join(f"{task.checkpoint.name} {task.seen.detail or 'has wrong bytes'}" for task in shown)
    listed += f"; and {len(tasks) - len(shown)} more" if len(tasks) > len(shown) else ""
    own = next((task.checkpoint for task in tasks if not task.checkpoint.urls), None)
    if own:
        upload = f", and then {command(f'push {own.name}', volume=volume)} there" if in_modal_container() else ""
        hint = (
            f"it is declared with urls = []: run `weightcache publish PATH {own.name} --root "
            f"{'DIR' if upload else layout.root}` where its bytes are{upload}, or put them at {layout.published(own)}"
        )
    else:
        several = len(names) > _SHOWN  # then the command is that for all of the manifest: hits cost it nothing
        run = command("ensure" if several else f"ensure {' '.join(names)}", layout.root, volume)
        hint = f"run {run} with this manifest (-m) where the root is writable and the network reachable"
        if in_modal_container():
            hint = f"run {run} with this manifest (-m) on your own machine: it fills the Volume from outside"
    return NotCachedError(f"not in {layout.root}, and {why}: {listed}", hint=hint, checkpoints=names)


def changed_while_read(path: str) -> StorageError:
    """Return the error for a file that something writes to while it is published."""
    return StorageError(
        f"{path} changed while it was read (digests differ)",
        hint="publish when whatever writes it has ended; nothing was published",
        path=path,
    )
