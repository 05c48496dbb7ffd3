"""The story of a cold `ensure`, told once from top to bottom in `_Fill.run`.

look → lock → look again → reload and look again → find out what is missing → take what the root has under another
name → fetch the rest into partials, hashing → publish by rename → commit → receipts → commit → look a last time.

Two commits, because Modal promises no order in which the files of one commit become visible, and a receipt must
never be seen before its data.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

from . import _store
from ._container import Writer
from ._fetch import Job, fetch
from ._lock import Holder, Waiting, exclusive
from ._look import Look, look
from ._partial import Partial, VanishedError, sweep
from ._progress import make_progress
from ._results import CheckpointReport, Report
from ._volume import VolumeCalls
from ._weights import Weights
from .errors import NotCachedError, StorageError, VolumeError, WeightCacheError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._cancel import Cancel
    from ._look import Layout
    from ._progress import ProgressCallback
    from ._results import Outcome
    from ._volume import Volume
    from .manifest import Checkpoint, File

_log = logging.getLogger("weightcache")

ROUNDS = 3  # how often it is begun again after something of ours vanished


class _Work:
    """One checkpoint on its way through the story."""

    def __init__(self, checkpoint: Checkpoint, seen: Look) -> None:
        self.checkpoint = checkpoint
        self.seen = seen
        self.missing: list[File] = []
        self.to_fetch: list[File] = []  # what is missing and nowhere in the root
        self.resumed = False
        self.outcome: Outcome = "hit"
        self.received = 0
        self.sources: list[str] = []
        self.published = False  # whether every file is in place, hashed by us
        self.began = time.monotonic()
        self.ended = self.began

    @property
    def was_wrong(self) -> bool:
        """Whether a published file is replaced, not only added."""
        return self.seen.state not in ("missing", "partial")

    def done(self, outcome: Outcome) -> None:
        self.outcome, self.published, self.ended = outcome, True, time.monotonic()

    def report(self) -> CheckpointReport:
        return CheckpointReport(self.outcome, self.received, self.ended - self.began, tuple(self.sources))


def fill(
    layout: Layout,
    checkpoints: Sequence[Checkpoint],
    *,
    volume: Volume | None,
    offline: bool,
    rehash: bool,
    wait: float,
    progress: bool | ProgressCallback | None,
    cancel: Cancel,
) -> Weights:
    """Make every checkpoint ready; see `ensure` for the arguments and errors."""
    story = _Fill(layout, checkpoints, VolumeCalls(layout.root, volume), offline, rehash, progress, cancel)
    first_looks = [look(layout, checkpoint) for checkpoint in checkpoints]
    say = make_progress(progress, []).say
    with exclusive(layout.root, wait=wait, say=say, check=cancel.check) as (holder, waiting):
        for _ in range(ROUNDS):
            try:
                with Writer.new(layout.root) as writer:
                    story.run(holder, writer)
                if (lost := story.lost()) is None:
                    return story.weights(first_looks, waiting)
                _log.info("%s; looking again", lost)
            except VanishedError as error:
                lost = f"{error} vanished while it was written"
                _log.info("%s; beginning again", lost)
        if story.calls.present:
            raise VolumeError(
                f"{lost}, {ROUNDS} times: the volume does not keep what was committed",
                hint="look for another process that deletes or reloads there, and at the volume's own log",
                operation="commit",
            )
        raise StorageError(
            f"{lost}, {ROUNDS} times",
            hint="look for another process that deletes files in the root",
            path=layout.root,
        )


class _Fill:
    def __init__(
        self,
        layout: Layout,
        checkpoints: Sequence[Checkpoint],
        calls: VolumeCalls,
        offline: bool,
        rehash: bool,
        progress: bool | ProgressCallback | None,
        cancel: Cancel,
    ) -> None:
        self.layout, self.checkpoints, self.calls = layout, checkpoints, calls
        self._offline, self._rehash, self._progress, self._cancel = offline, rehash, progress, cancel
        self._works: list[_Work] = []
        self._earlier: dict[str, _Work] = {}  # what earlier rounds did, for the report
        self._began = time.monotonic()

    def run(self, holder: Holder, writer: Writer) -> None:
        """Do everything once; the caller holds the lock."""
        self._earlier = {work.checkpoint.name: work for work in self._works if work.outcome != "hit"} | self._earlier
        self._works = self._look_again()
        if not (todo := [work for work in self._works if work.seen.state != "ready" or self._rehash]):
            return
        read_only = _store.is_read_only(self.layout)
        if not read_only:
            self.calls.warn_of_place()
            _store.make_root(self.layout)
        holder.begin("hashing what is there")
        self._find_missing(todo, holder)
        changed = [work for work in todo if work.missing or not work.seen.receipt]
        if read_only:
            self._serve_read_only(changed)
            return
        if not changed:
            return
        self.calls.about_to_write()
        self._withdraw_receipts(changed)
        try:
            self._bring(changed, holder, writer)
        except (WeightCacheError, VanishedError):
            # What is complete is kept, with its receipt; and the first error is the one reported.
            with suppress(WeightCacheError, VanishedError):
                self._settle(changed, holder)
            raise
        self._settle(changed, holder)

    def _look_again(self) -> list[_Work]:
        works = [_Work(checkpoint, look(self.layout, checkpoint)) for checkpoint in self.checkpoints]
        if all(work.seen.state == "ready" for work in works) or not self.calls.present:
            return works
        self.calls.refresh()
        return [_Work(checkpoint, look(self.layout, checkpoint)) for checkpoint in self.checkpoints]

    def _find_missing(self, todo: list[_Work], holder: Holder) -> None:
        """Tell which files must be brought. What a receipt speaks for is believed, unless all is to be hashed."""
        to_hash = []
        for work in todo:
            if work.seen.receipt and not self._rehash:
                work.missing = list(work.seen.wrong)
            else:
                to_hash += [(work.checkpoint, file) for file in work.checkpoint.files]

        def tick() -> None:
            self._cancel.check()
            holder.advance(_store.HASH_CHUNK)  # who waits must see that gigabytes are being hashed

        wrong = _store.wrong_files(self.layout, to_hash, tick)
        for work in todo:
            work.missing += [file for file in work.checkpoint.files if (work.checkpoint.name, file.path) in wrong]

    def _serve_read_only(self, changed: list[_Work]) -> None:
        if missing := [work for work in changed if work.missing]:
            raise self._not_cached(missing, "the root is read-only here")
        for work in changed:
            name = work.checkpoint.name
            self.calls.warn(
                f"{name} has no receipt and the root is read-only, so every start hashes it again; "
                f"run `weightcache ensure {name} --root {self.layout.root}` once where the root may be written"
            )
            work.done("adopted")

    def _withdraw_receipts(self, changed: list[_Work]) -> None:
        if healing := [work for work in changed if work.seen.receipt]:
            for work in healing:
                _store.withdraw_receipt(self.layout, work.checkpoint)
            self.calls.commit()  # other containers must not serve a hit from a place that changes
            self.calls.about_to_write()

    def _bring(self, changed: list[_Work], holder: Holder, writer: Writer) -> None:
        """Bring every missing file into its place; a checkpoint is done when its last file is."""
        for work in changed:
            if not work.missing:
                work.done("adopted")
        with ExitStack() as stack:
            partials = {
                work.checkpoint.name: stack.enter_context(Partial(self.layout, work.checkpoint, writer))
                for work in changed
                if work.missing
            }
            self._copy_from_the_root(changed, partials)
            if short := [work for work in changed if work.missing and not work.published]:
                unfetchable = short if self._offline else [work for work in short if not work.checkpoint.urls]
                if unfetchable:
                    raise self._not_cached(unfetchable, "offline=True" if self._offline else "it declares no URL")
                self._fetch(short, partials, holder)
            for work in changed:
                if work.missing:
                    partials[work.checkpoint.name].discard()

    def _copy_from_the_root(self, changed: list[_Work], partials: dict[str, Partial]) -> None:
        held = _store.held_files(self.layout)
        for work in changed:
            lacking = []
            for file in work.missing:
                target = f"{partials[work.checkpoint.name].path}/copy"
                own = self.layout.file(work.checkpoint, file)
                sources = (path for path in held.get(file.sha256, ()) if path != own)
                if any(_store.link_or_copy(source, target, file.sha256, self._cancel.check) for source in sources):
                    _store.publish(self.layout, work.checkpoint, file, target)
                else:
                    lacking.append(file)
            if work.missing and not lacking:
                work.done("healed" if work.was_wrong else "copied")
            work.to_fetch = lacking

    def _fetch(self, short: list[_Work], partials: dict[str, Partial], holder: Holder) -> None:
        """Fetch each digest once; whoever needs the same bytes gets a link or a copy."""
        wanted: dict[str, list[tuple[_Work, File]]] = defaultdict(list)
        for work in short:
            for file in work.to_fetch:
                wanted[file.sha256].append((work, file))
        first = [needs[0] for needs in wanted.values()]
        jobs = [Job(w.checkpoint, f, partials[w.checkpoint.name].file(f)) for w, f in first]
        progress = make_progress(self._progress, [(w.checkpoint, f) for w, f in first])
        left = {work.checkpoint.name: len(work.to_fetch) for work in short}
        works = {work.checkpoint.name: work for work in short}

        def on_verified(job: Job) -> None:
            for work, _ in wanted[job.file.sha256]:
                work.sources.append(job.source)
            self._publish_for_all(wanted[job.file.sha256], job.partial.path, left, resumed=job.partial.reused > 0)

        holder.begin("downloading", progress.total or 0)
        try:
            fetch(jobs, progress=progress, holder=holder, cancel=self._cancel, on_verified=on_verified)
        finally:
            progress.end()
            for job in jobs:
                works[job.checkpoint.name].received += job.received

    def _publish_for_all(
        self, needs: list[tuple[_Work, File]], verified: str, left: dict[str, int], *, resumed: bool
    ) -> None:
        for work, file in needs[1:]:
            copy = f"{verified}.copy"
            if not _store.link_or_copy(verified, copy, file.sha256, self._cancel.check):
                raise VanishedError(verified)
            _store.publish(self.layout, work.checkpoint, file, copy)
        _store.publish(self.layout, needs[0][0].checkpoint, needs[0][1], verified)
        for work, _ in needs:
            work.resumed |= resumed
            left[work.checkpoint.name] -= 1
            if not left[work.checkpoint.name]:
                work.done("healed" if work.was_wrong else "resumed" if work.resumed else "downloaded")

    def _settle(self, changed: list[_Work], holder: Holder) -> None:
        """Commit the data of what is complete, then write the receipts and commit them."""
        if not (published := [work for work in changed if work.published]):
            return
        holder.begin("committing")
        if self.calls.commit():
            self.calls.about_to_write()
            for work in published:
                _store.write_receipt(self.layout, work.checkpoint, sorted(set(work.sources)))
            sweep(self.layout, {work.checkpoint.digest for work in published})
            self.calls.commit()
        # Without a commit no receipt: it could reach another container before its data. The bytes here are right
        # all the same, so they are returned, and the next container adopts them.

    def lost(self) -> str | None:
        """Look a last time: a commit reloads, and a reload may show less than was there."""
        for work in self._works:
            seen = look(self.layout, work.checkpoint)
            settled = seen.state == "ready" or (work.published and seen.state == "unverified")
            if not settled:
                return f"{work.checkpoint.name} {seen.detail} after it was ready"
        return None

    def weights(self, first_looks: list[Look], waiting: Waiting) -> Weights:
        reports = {}
        for work, first in zip(self._works, first_looks, strict=True):
            told = self._earlier.get(work.checkpoint.name, work) if work.outcome == "hit" else work
            report = told.report()
            if told.outcome == "hit" and first.state != "ready" and waiting.seconds:
                report = CheckpointReport("waited", 0, waiting.seconds)
            reports[work.checkpoint.name] = report
        return Weights(
            {work.checkpoint.name: self.layout.published(work.checkpoint) for work in self._works},
            Report(
                reports,
                self.calls.committed,
                time.monotonic() - self._began,
                waiting.seconds,
                waiting.holder,
                tuple(self.calls.warnings),
            ),
        )

    def _not_cached(self, works: list[_Work], why: str) -> NotCachedError:
        names = tuple(work.checkpoint.name for work in works)
        listed = "; ".join(f"{work.checkpoint.name} {work.seen.detail or 'has wrong bytes'}" for work in works)
        own = next((work for work in works if not work.checkpoint.urls), None)
        return NotCachedError(
            f"not in {self.layout.root}, and {why}: {listed}",
            hint="it is declared with urls = []: bring it there under its own place, "
            f"{self.layout.published(own.checkpoint)}"
            if own
            else f"run `weightcache ensure {' '.join(names)} --root {self.layout.root}` where the root may be "
            "written and the network reached",
            checkpoints=names,
        )
