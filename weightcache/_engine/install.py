"""What one container does for a checkpoint: hash what is there, copy what the root has, fetch the rest, publish.

Nothing here commits or reloads, and nothing is open in the root when it returns.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from contextlib import ExitStack
from typing import TYPE_CHECKING

from weightcache._runtime import settings
from weightcache._runtime.identity import Writer
from weightcache._store import files as store_files
from weightcache._store import receipts
from weightcache._store import root as store_root
from weightcache._store.partial_file import VanishedError
from weightcache._store.partials import Partial, sweep
from weightcache._transfer.download import Job, download
from weightcache._transfer.progress import make_progress
from weightcache.errors import NotCachedError, StorageError
from weightcache.reports import CheckpointReport

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from weightcache._coordination.lock import Holder
    from weightcache._store.inspect import Look
    from weightcache._store.layout import Layout
    from weightcache._store.partial_file import PartialFile
    from weightcache.manifest import Checkpoint, File
    from weightcache.reports import Outcome

    from .options import EnsureOptions


class CheckpointTask:
    """One checkpoint on its way through the story."""

    def __init__(self, checkpoint: Checkpoint, seen: Look) -> None:
        self.checkpoint = checkpoint
        self.seen = seen
        self.missing: list[File] = []
        self.sizes: dict[str, int] = {}  # by path, the bytes of what is right: for the receipt
        self.to_fetch: list[File] = []  # what is missing and nowhere in the root
        self.resumed = False
        self.outcome: Outcome = "hit"
        self.received = 0
        self.sources: list[str] = []
        self.published = False  # whether every file is in place, hashed by us
        self.checked = False  # whether every byte of it was hashed
        self.began = time.monotonic()
        self.ended = self.began

    @property
    def was_wrong(self) -> bool:
        """Whether a published file is replaced, not only added."""
        return self.seen.state not in ("missing", "partial")

    def done(self, outcome: Outcome) -> None:
        if self.outcome == "hit":  # what is brought a second time was brought the first time for nothing
            self.outcome = outcome
        self.published, self.ended = True, time.monotonic()

    def report(self) -> CheckpointReport:
        return CheckpointReport(self.outcome, self.received, self.ended - self.began, tuple(self.sources))


class Installer:
    """Installs checkpoints in one root, for one call."""

    def __init__(self, layout: Layout, options: EnsureOptions, holder: Holder) -> None:
        self.layout, self._options, self._holder = layout, options, holder

    def find_missing(self, todo: Sequence[CheckpointTask]) -> None:
        """Tell which files must be brought. What a receipt speaks for is believed, unless all is to be hashed."""
        self._holder.begin("hashing what is there")
        to_hash = []
        for task in todo:
            task.published, task.resumed = False, False
            if task.seen.receipt and not self._options.rehash:
                wrong = {file.path for file in task.seen.wrong}
                task.sizes = {path: size for path, size in task.seen.sizes.items() if path not in wrong}
            else:
                task.sizes = {}
                to_hash += [(task.checkpoint, file) for file in task.checkpoint.files]
        right = store_files.right_files(self.layout, to_hash, self._tick)
        by_name = {task.checkpoint.name: task for task in todo}
        for (name, path), size in right.items():
            by_name[name].sizes[path] = size
        for task in todo:
            task.missing = [file for file in task.checkpoint.files if file.path not in task.sizes]
            task.checked = True

    def _tick(self) -> None:
        self._options.cancel.check()
        self._holder.advance(store_files.HASH_CHUNK)  # who waits must see that gigabytes are being hashed

    def withdraw_receipts(self, changed: Sequence[CheckpointTask]) -> bool:
        """Take back the receipt of each place that changes; whether there was any."""
        healing = [task for task in changed if task.seen.receipt]
        for task in healing:
            receipts.withdraw_receipt(self.layout, task.checkpoint)
        return bool(healing)

    def install(self, changed: Sequence[CheckpointTask]) -> None:
        """Bring every missing file into its place; a checkpoint is done when its last file is."""
        for task in changed:
            if not task.missing:
                task.done("adopted")
        with Writer.new(self.layout.root) as writer, ExitStack() as stack:
            partials: dict[str, Partial] = {}  # by full digest: checkpoints with the same files share one
            for task in changed:
                if task.missing and task.checkpoint.digest not in partials:
                    partial = Partial(self.layout, task.checkpoint, writer)
                    partials[task.checkpoint.digest] = stack.enter_context(partial)
            self._copy_what_is_here(changed, partials)
            if short := [task for task in changed if task.missing and not task.published]:
                offline = self._options.offline
                unfetchable = short if offline else [task for task in short if not task.checkpoint.urls]
                if unfetchable:
                    raise self.not_cached(
                        unfetchable, "offline=True" if self._options.offline else "it declares no URL"
                    )
                self._fetch(short, partials)
            for partial in partials.values():
                partial.discard()

    def _copy_what_is_here(self, changed: Sequence[CheckpointTask], partials: dict[str, Partial]) -> None:
        """Publish what the root or this machine has; first copy all: half of what was made here helps nobody."""
        held = receipts.held_files(self.layout)
        for task in changed:  # what was hashed just now has no receipt yet
            for file in task.checkpoint.files:
                if file.path in task.sizes:
                    held.setdefault(file.sha256, []).append(self.layout.file(task.checkpoint, file))
        copied: list[tuple[CheckpointTask, File, str]] = []
        self._holder.begin("copying")
        for task in changed:
            task.to_fetch = []
            for file in task.missing:
                target = f"{partials[task.checkpoint.digest].path}/{len(copied)}.copy"
                if self._copy(task, file, target, held):
                    copied.append((task, file, target))
                else:
                    task.to_fetch.append(file)
        for task, file, target in copied:
            store_files.publish(self.layout, task.checkpoint, file, target)
        for task in changed:
            if task.missing and not task.to_fetch:
                task.done("healed" if task.was_wrong else "copied")

    def _copy(self, task: CheckpointTask, file: File, target: str, held: Mapping[str, Sequence[str]]) -> bool:
        sources, own = self._sources(task, file, held), self._options.local_sources.get(file.sha256)
        for source in [*sources, own] if self._options.may_link and own else sources:
            if found := store_files.link_or_copy(source, target, file.sha256, self._tick):
                task.sizes[file.path] = found.size
                return True
        if own is None:
            return False
        copied = store_files.copy(own, target, self._tick)
        if copied != (file.sha256, file.size):
            raise changed_while_read(own)
        task.sizes[file.path] = copied.size
        return True

    def _sources(self, task: CheckpointTask, file: File, held: Mapping[str, Sequence[str]]) -> list[str]:
        """Return where the root holds a file under another name."""
        place = self.layout.file(task.checkpoint, file)
        return [
            path
            for path in held.get(file.sha256, ())
            if path != place and not store_root.leads_out(self.layout, os.path.dirname(path))
        ]

    def _fetch(self, short: list[CheckpointTask], partials: dict[str, Partial]) -> None:
        """Fetch each digest once; whoever needs the same bytes gets a link or a copy."""
        wanted: dict[str, list[tuple[CheckpointTask, File]]] = defaultdict(list)
        for task in short:
            for file in task.to_fetch:
                wanted[file.sha256].append((task, file))
        first = [needs[0] for needs in wanted.values()]
        jobs = [Job(t.checkpoint, f, partials[t.checkpoint.digest].file(f)) for t, f in first]
        limits = settings.DEFAULT
        progress = make_progress(
            self._options.progress, [(t.checkpoint, f) for t, f in first], line_interval=limits.line_interval
        )
        left = {task.checkpoint.name: len(task.to_fetch) for task in short}
        tasks = {task.checkpoint.name: task for task in short}

        def on_verified(job: Job) -> None:
            for task, _ in wanted[job.file.sha256]:
                task.sources.append(job.source)
            self._publish_for_all(wanted[job.file.sha256], job.partial, left)

        self._holder.begin("downloading", progress.total or 0)
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
                tasks[job.checkpoint.name].received += job.counts.received

    def _publish_for_all(
        self, needs: list[tuple[CheckpointTask, File]], verified: PartialFile, left: dict[str, int]
    ) -> None:
        """Publish a verified file in every place that needs it: renamed into the first one, linked from there.

        Never linked from the partial: after a crash it would be written to, and that file is published. A place that
        cannot be written keeps no other one from its file.
        """
        published, failure = "", None
        for task, file in needs:
            source = verified.path
            try:
                if published:
                    source = f"{verified.path}.copy"
                    if not store_files.link_or_copy(published, source, file.sha256, self._options.cancel.check):
                        raise VanishedError(published)
                store_files.publish(self.layout, task.checkpoint, file, source)
            except StorageError as error:
                failure = failure or error
                continue
            published = published or self.layout.file(task.checkpoint, file)
            task.sizes[file.path] = verified.size
            task.resumed |= verified.reused > 0
            left[task.checkpoint.name] -= 1
            if not left[task.checkpoint.name]:
                task.done("healed" if task.was_wrong else "resumed" if task.resumed else "downloaded")
        if failure:
            raise failure

    def write_receipts(self, published: Sequence[CheckpointTask]) -> None:
        """Record what was verified, and sweep what is left of its downloads."""
        for task in published:
            try:
                receipts.write_receipt(self.layout, task.checkpoint, task.sizes, sorted(set(task.sources)))
            except VanishedError:
                task.published = False  # it is not what was hashed any more
                raise
        store_root.refuse_links(self.layout, self.layout.partials)
        sweep(self.layout, {task.checkpoint.digest for task in published})

    def not_cached(self, tasks: Sequence[CheckpointTask], why: str) -> NotCachedError:
        """Return what the caller is told of what cannot be brought."""
        names = tuple(task.checkpoint.name for task in tasks)
        listed = "; ".join(f"{task.checkpoint.name} {task.seen.detail or 'has wrong bytes'}" for task in tasks)
        own = next((task for task in tasks if not task.checkpoint.urls), None)
        return NotCachedError(
            f"not in {self.layout.root}, and {why}: {listed}",
            hint=f"it is declared with urls = []: run `weightcache publish PATH {own.checkpoint.name} --root "
            f"{self.layout.root}` where its bytes are, or bring them to {self.layout.published(own.checkpoint)}"
            if own
            else f"run `weightcache ensure {' '.join(names)} --root {self.layout.root}` with this manifest (-m) where "
            "the root may be written and the network reached",
            checkpoints=names,
        )


def changed_while_read(path: str) -> StorageError:
    """Return what the caller is told of a file that somebody writes to while it is published."""
    return StorageError(
        f"{path} changed while it was read: what was hashed first is not what was there then",
        hint="publish when whatever writes it has ended; nothing was published",
        path=path,
    )
