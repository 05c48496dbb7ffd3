"""What one container does for a checkpoint: hash what is there, copy what the root has, fetch the rest, publish.

Nothing here commits or reloads, and nothing is open in the root when it returns.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from contextlib import ExitStack
from typing import TYPE_CHECKING

from weightcache._runtime.identity import Writer
from weightcache._store import files as store_files
from weightcache._store import receipts
from weightcache._store import root as store_root
from weightcache._store.partial_file import VanishedError
from weightcache._store.partials import Partial, sweep
from weightcache._transfer.download import Job, fetch
from weightcache._transfer.progress import make_progress
from weightcache.errors import NotCachedError, StorageError
from weightcache.reports import CheckpointReport

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from weightcache._coordination.lock import Holder
    from weightcache._runtime.cancel import Cancel
    from weightcache._store.inspect import Inspection
    from weightcache._store.layout import Layout
    from weightcache._store.partial_file import PartialFile
    from weightcache._transfer.progress import ProgressCallback
    from weightcache.manifest import Checkpoint, File
    from weightcache.reports import Outcome


class Work:
    """One checkpoint on its way through the story."""

    def __init__(self, checkpoint: Checkpoint, seen: Inspection) -> None:
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


class Bringer:
    """Brings checkpoints into one root, for one call.

    Args:
        own: By sha256, where on this machine the bytes lie that are to be published.
        link: Whether they may be linked instead of copied, because nobody writes to them any more.
    """

    def __init__(
        self,
        layout: Layout,
        holder: Holder,
        offline: bool,
        rehash: bool,
        patience: float,
        progress: bool | ProgressCallback | None,
        cancel: Cancel,
        own: Mapping[str, str],
        link: bool,
    ) -> None:
        self.layout, self._holder, self.own, self._link = layout, holder, own, link
        self._offline, self._rehash, self._progress, self._cancel = offline, rehash, progress, cancel
        self._patience = patience

    def find_missing(self, todo: Sequence[Work]) -> None:
        """Tell which files must be brought. What a receipt speaks for is believed, unless all is to be hashed."""
        self._holder.phase("hashing what is there")
        to_hash = []
        for work in todo:
            work.published, work.resumed = False, False
            if work.seen.receipt and not self._rehash:
                wrong = {file.path for file in work.seen.wrong}
                work.sizes = {path: size for path, size in work.seen.sizes.items() if path not in wrong}
            else:
                work.sizes = {}
                to_hash += [(work.checkpoint, file) for file in work.checkpoint.files]
        right = store_files.verified_sizes(self.layout, to_hash, self._tick)
        by_name = {work.checkpoint.name: work for work in todo}
        for (name, path), size in right.items():
            by_name[name].sizes[path] = size
        for work in todo:
            work.missing = [file for file in work.checkpoint.files if file.path not in work.sizes]
            work.checked = True

    def _tick(self) -> None:
        self._cancel.check()
        self._holder.advance(store_files.HASH_CHUNK)  # who waits must see that gigabytes are being hashed

    def withdraw_receipts(self, changed: Sequence[Work]) -> bool:
        """Take back the receipt of each place that changes; whether there was any."""
        healing = [work for work in changed if work.seen.receipt]
        for work in healing:
            receipts.withdraw_receipt(self.layout, work.checkpoint)
        return bool(healing)

    def bring(self, changed: Sequence[Work]) -> None:
        """Bring every missing file into its place; a checkpoint is done when its last file is."""
        for work in changed:
            if not work.missing:
                work.done("adopted")
        with Writer.new(self.layout.root) as writer, ExitStack() as stack:
            partials: dict[str, Partial] = {}  # by full digest: checkpoints with the same files share one
            for work in changed:
                if work.missing and work.checkpoint.digest not in partials:
                    partial = Partial(self.layout, work.checkpoint, writer)
                    partials[work.checkpoint.digest] = stack.enter_context(partial)
            self._copy_what_is_here(changed, partials)
            if short := [work for work in changed if work.missing and not work.published]:
                unfetchable = short if self._offline else [work for work in short if not work.checkpoint.urls]
                if unfetchable:
                    raise self.not_cached(unfetchable, "offline=True" if self._offline else "it declares no URL")
                self._fetch(short, partials)
            for partial in partials.values():
                partial.discard()

    def _copy_what_is_here(self, changed: Sequence[Work], partials: dict[str, Partial]) -> None:
        """Publish what the root or this machine has; first copy all: half of what was made here helps nobody."""
        held = receipts.files_by_digest(self.layout)
        for work in changed:  # what was hashed just now has no receipt yet
            for file in work.checkpoint.files:
                if file.path in work.sizes:
                    held.setdefault(file.sha256, []).append(self.layout.file(work.checkpoint, file))
        copied: list[tuple[Work, File, str]] = []
        self._holder.phase("copying")
        for work in changed:
            work.to_fetch = []
            for file in work.missing:
                target = f"{partials[work.checkpoint.digest].path}/{len(copied)}.copy"
                if self._copy(work, file, target, held):
                    copied.append((work, file, target))
                else:
                    work.to_fetch.append(file)
        for work, file, target in copied:
            store_files.publish_file(self.layout, work.checkpoint, file, target)
        for work in changed:
            if work.missing and not work.to_fetch:
                work.done("healed" if work.was_wrong else "copied")

    def _copy(self, work: Work, file: File, target: str, held: Mapping[str, Sequence[str]]) -> bool:
        sources, own = self._sources(work, file, held), self.own.get(file.sha256)
        for source in [*sources, own] if self._link and own else sources:
            if found := store_files.link_or_copy(source, target, file.sha256, self._tick):
                work.sizes[file.path] = found.size
                return True
        if own is None:
            return False
        copied = store_files.copy_file(own, target, self._tick)
        if copied != (file.sha256, file.size):
            raise changed_while_read(own)
        work.sizes[file.path] = copied.size
        return True

    def _sources(self, work: Work, file: File, held: Mapping[str, Sequence[str]]) -> list[str]:
        """Return where the root holds a file under another name."""
        place = self.layout.file(work.checkpoint, file)
        return [
            path
            for path in held.get(file.sha256, ())
            if path != place and not store_root.find_symlink(self.layout, os.path.dirname(path))
        ]

    def _fetch(self, short: list[Work], partials: dict[str, Partial]) -> None:
        """Fetch each digest once; whoever needs the same bytes gets a link or a copy."""
        wanted: dict[str, list[tuple[Work, File]]] = defaultdict(list)
        for work in short:
            for file in work.to_fetch:
                wanted[file.sha256].append((work, file))
        first = [needs[0] for needs in wanted.values()]
        jobs = [Job(w.checkpoint, f, partials[w.checkpoint.digest].file(f)) for w, f in first]
        progress = make_progress(self._progress, [(w.checkpoint, f) for w, f in first])
        left = {work.checkpoint.name: len(work.to_fetch) for work in short}
        works = {work.checkpoint.name: work for work in short}

        def on_verified(job: Job) -> None:
            for work, _ in wanted[job.file.sha256]:
                work.sources.append(job.source)
            self._publish_for_all(wanted[job.file.sha256], job.partial, left)

        self._holder.phase("downloading", progress.total or 0)
        try:
            fetch(
                jobs,
                patience=self._patience,
                progress=progress,
                holder=self._holder,
                cancel=self._cancel,
                on_verified=on_verified,
            )
        finally:
            progress.end()
            for job in jobs:
                works[job.checkpoint.name].received += job.received

    def _publish_for_all(self, needs: list[tuple[Work, File]], verified: PartialFile, left: dict[str, int]) -> None:
        """Publish a verified file in every place that needs it: renamed into the first one, linked from there.

        Never linked from the partial: after a crash it would be written to, and that file is published. A place that
        cannot be written keeps no other one from its file.
        """
        published, failure = "", None
        for work, file in needs:
            source = verified.path
            try:
                if published:
                    source = f"{verified.path}.copy"
                    if not store_files.link_or_copy(published, source, file.sha256, self._cancel.check):
                        raise VanishedError(published)
                store_files.publish_file(self.layout, work.checkpoint, file, source)
            except StorageError as error:
                failure = failure or error
                continue
            published = published or self.layout.file(work.checkpoint, file)
            work.sizes[file.path] = verified.size
            work.resumed |= verified.reused > 0
            left[work.checkpoint.name] -= 1
            if not left[work.checkpoint.name]:
                work.done("healed" if work.was_wrong else "resumed" if work.resumed else "downloaded")
        if failure:
            raise failure

    def write_receipts(self, published: Sequence[Work]) -> None:
        """Record what was verified, and sweep what is left of its downloads."""
        for work in published:
            try:
                receipts.write_receipt(self.layout, work.checkpoint, work.sizes, sorted(set(work.sources)))
            except VanishedError:
                work.published = False  # it is not what was hashed any more
                raise
        store_root.refuse_links(self.layout, self.layout.partials)
        sweep(self.layout, {work.checkpoint.digest for work in published})

    def not_cached(self, works: Sequence[Work], why: str) -> NotCachedError:
        """Return what the caller is told of what cannot be brought."""
        names = tuple(work.checkpoint.name for work in works)
        listed = "; ".join(f"{work.checkpoint.name} {work.seen.detail or 'has wrong bytes'}" for work in works)
        own = next((work for work in works if not work.checkpoint.urls), None)
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
