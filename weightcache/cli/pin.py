"""``weightcache pin``: what a manifest lacks is found out, shown with where it comes from, and written into it.

A pin is a decision to trust, so each one is shown with its evidence: published by the Hub, or computed here from what a
mirror delivered.
"""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from weightcache._runtime.identity import Writer
from weightcache._store.layout import Layout
from weightcache._store.partials import STAGED
from weightcache._store.root import refuse_links
from weightcache.errors import IntegrityError, ManifestError, StorageError, redacted
from weightcache.manifest.urls import has_ending
from weightcache.manifest.validate import digest_problem, user_path

from .draft import drafts, select
from .toml_edit import ManifestFile, require_tomlkit

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

    from weightcache.manifest import Checkpoint

    from .draft import Draft


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if anything is unpinned")
    parser.add_argument(
        "--check-upstream",
        action="store_true",
        help="change nothing; exit 1 if a mirror no longer has what is pinned, or the Hub's main branch moved on",
    )
    add_common_arguments(parser)


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--expect", metavar="SHA256", help="refuse anything else than this digest")
    parser.add_argument("--print", action="store_true", help="print the entries instead of writing them")
    parser.add_argument("-q", "--quiet", action="store_true", help="show no progress")


def pin(options: argparse.Namespace) -> tuple[list[dict[str, Any]], int]:
    """Complete what is unpinned, or check it; return a row a checkpoint, and the exit code.

    Raises:
        WeightCacheError: The manifest is wrong, or a mirror does not deliver. Nothing was changed.
        ValueError: The options do not go together.
    """
    refuse_odd_digest(options.expect)
    path = user_path(options.manifest)
    file = ManifestFile(path, writes=not (options.check or options.check_upstream or options.print))
    if not file.exists:
        raise ManifestError(path, ["there is no such file"])
    wanted = select(drafts(file.raw, path), options.names)
    if options.check or options.check_upstream:
        for name in ("expect", "print"):
            if getattr(options, name):
                raise ValueError(f"--{name} goes with no --check: nothing is pinned")
    if options.check:
        rows = [{"name": draft.name, "unpinned": draft.unpinned()} for draft in wanted]
        return rows, 1 if any(row["unpinned"] for row in rows) else 0
    if options.check_upstream:
        from . import outdated

        return outdated.check(wanted)
    if options.expect and len(wanted) != 1:
        raise ValueError("--expect is of one checkpoint: name it")
    todo = [draft for draft in wanted if draft.unpinned() or (draft.lacks_sizes() and draft.urls)]
    changed = {draft.name for draft in todo}
    if todo and not options.print:
        require_tomlkit()  # now: what follows may take an hour
    with kept(options.root) as keep:
        for draft in todo:
            bring(draft, keep, options)
            _offer_name(draft)
        for draft in wanted:
            expect(draft, options.expect)
        pinned = [draft.checkpoint() for draft in todo]
        if pinned and not options.print:
            file.complete(pinned)
        if keep is not None:
            keep.land([draft.checkpoint() for draft in wanted], quiet=options.quiet)
    return [row(draft, changed=draft.name in changed) for draft in wanted], 0


def _offer_name(draft: Draft) -> None:
    """Say what a mirror calls a file that is called by the end of its URL, such as a number."""
    for path, pin in draft.pins.items():
        if draft.takes_names and pin.suggested_name not in ("", path) and not has_ending(path):
            draft.warn(f"the server calls it {pin.suggested_name}; `file` in its entry takes a name")


def row(draft: Draft, *, changed: bool) -> dict[str, Any]:
    """Return what is told of a pinned checkpoint."""
    checkpoint = draft.checkpoint()
    return {
        "name": draft.name,
        "changed": changed,
        "digest": checkpoint.digest,
        "urls": [redacted(url) for url in draft.urls],
        "files": {path: {"sha256": p.sha256, "size": p.size, "from": p.evidence} for path, p in draft.pins.items()},
        "warnings": draft.warnings,
        "entry": f"{checkpoint}\n",
    }


def refuse_odd_digest(sha256: str | None) -> None:
    """Refuse what is no digest for ``--expect``, before anything is downloaded to be compared with it."""
    if sha256 is not None and (problem := digest_problem(sha256.lower())):
        raise ValueError(f"--expect: {problem}")


def expect(draft: Draft, sha256: str | None) -> None:
    """Refuse a checkpoint that is not the expected one.

    Raises:
        IntegrityError: It is another one.
    """
    found = draft.checkpoint().digest
    if sha256 is not None and found != sha256.lower():
        foreign = "".join(f"\n  {path} is {pin.foreign}" for path, pin in draft.pins.items() if pin.foreign)
        raise IntegrityError(
            f"checkpoint {draft.name} is not what was expected\n  expected {sha256}\n  actual   {found}{foreign}",
            hint="nothing was changed; ask the publisher, or another mirror",
            checkpoint=draft.name,
            file="",
            attempts=(),
            expected=sha256,
            actual=found,
            url=redacted(draft.urls[0]) if draft.urls else "",
        )


def bring(draft: Draft, keep: Keep | None, options: argparse.Namespace) -> None:
    """Complete a draft with the options of a verb."""
    from .resolve import complete  # not at the top: `status` need not wait for requests

    own = complete(
        draft,
        keep=keep.new if keep else None,
        include=getattr(options, "include", None) or (),
        exclude=getattr(options, "exclude", None) or (),
        expected=options.expect is not None,
        quiet=options.quiet,
    )
    if keep:
        keep.own.update(own)


class Keep:
    """A place in a root for what pinning downloads, until it is published there."""

    def __init__(self, layout: Layout, path: str) -> None:
        self.own: dict[str, str] = {}  # by sha256
        self._layout, self._path = layout, path
        self._count = 0

    def new(self) -> str:
        """Return a path to write to."""
        self._count += 1
        return f"{self._path}/{self._count}.kept"

    def land(self, checkpoints: Sequence[Checkpoint], *, quiet: bool) -> None:
        """Publish in the root: what was downloaded to be pinned is moved there, what was not is fetched."""
        from weightcache._engine.host import fill
        from weightcache._runtime.cancel import Cancel
        from weightcache._views.weights import weights_if_ready

        able = [checkpoint for checkpoint in checkpoints if checkpoint.urls]
        if weights_if_ready(self._layout, able) is None:
            fill(
                self._layout,
                able,
                volume=None,
                lease=None,
                offline=False,
                rehash=False,
                wait=300.0,
                progress=False if quiet else None,
                cancel=Cancel(),
                own=self.own,
                link=True,
            )


@contextmanager
def kept(root: str | None) -> Iterator[Keep | None]:
    """Give a place for downloads in ``root``, if there is one; remove it afterwards."""
    if not root:
        yield None
        return
    layout = Layout(root)
    with Writer.new(layout.root) as writer:  # among the partials, so that it is swept if this process is killed
        path = f"{layout.partials}/{STAGED}.{writer}"
        refuse_links(layout, layout.partials)
        try:
            os.makedirs(path)
        except OSError as error:
            raise StorageError.of(error, "write to", path) from None
        try:
            yield Keep(layout, path)
        finally:
            shutil.rmtree(path, ignore_errors=True)
            with suppress(OSError):  # leave no empty directories where nothing was published
                os.rmdir(layout.partials)
                os.rmdir(layout.home)
