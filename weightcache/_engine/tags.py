"""What moves: tags, and a manifest that is kept on the Volume. Both are read again after a reload.

A reload costs a request to Modal and fails while a file of the Volume is open, so one is made at most every few
seconds for each root of a container (`Tag.poll`). In between, what the last one showed is used.
"""

from __future__ import annotations

import logging
import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from weightcache._coordination.committed_state import Wanted
from weightcache._coordination.lock import reload_lock, root_lock
from weightcache._coordination.volume import VolumeSession
from weightcache._runtime.owned_descriptors import close_on_interrupt
from weightcache._store import root_checks as store_root
from weightcache._store.inspect import inspect
from weightcache._store.layout import Layout, needs_reload
from weightcache._store.receipts import iter_receipts, receipt_files
from weightcache._store.tags import (
    Publication,
    declared,
    history,
    iter_tags,
    newest,
    next_order,
    write_publication,
)
from weightcache.errors import ManifestError, NotCachedError, VolumeError
from weightcache.manifest import Manifest, Tag
from weightcache.manifest.validate import MODAL_VOLUMES

from .commit_evidence import CommitEvidence

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from weightcache._coordination.volume import Volume
    from weightcache.manifest import Checkpoint, WeightSource

__all__ = ["Publication", "set_tag", "tags"]

_log = logging.getLogger("weightcache")

WAIT = 300.0  # seconds without progress of another process in this container, as in `ensure`
PATIENCE = 2.0  # seconds that a call waits for another of this container before it does without a reload of its own
POLL = 10.0  # seconds between two reloads for a manifest that is kept on the Volume, as for a `Tag`

# By root and container: when the last reload began, and what failed. The clones of a memory snapshot share memory.
_reloads: dict[tuple[str, str], tuple[float, tuple[str, ...]]] = {}


class _BusyError(Exception):
    """Another process or thread of this container has been filling the root for `PATIENCE` seconds."""


def load(
    source: WeightSource, layout: Layout, volume: Volume | None, check: Callable[[], None] = lambda: None
) -> tuple[Manifest, tuple[str, ...]]:
    """Read what ``source`` declares now, after a reload if other containers can change it.

    Args:
        source: A tag, or a manifest in any form.
        layout: The root.
        volume: The Volume of the root. ``None``: what this container sees is used as it is.
        check: Called while this waits; it may raise to end the wait.

    Returns:
        The manifest, and a warning for each reload that failed.

    Raises:
        NotCachedError: The tag has no publication.
        StorageError: The publication is torn or foreign.
        ManifestError: The manifest has problems.
    """
    if not isinstance(source, Tag) and not needs_reload(layout.root, source, has_volume=True):
        return Manifest.load(source), ()
    store_root.check_root(layout)
    poll = source.poll if isinstance(source, Tag) else POLL
    warnings = _refresh(layout, volume, poll, check) if volume is not None else _without_volume(layout, source)
    with reload_lock(layout.root):  # while a Volume reloads it looks empty
        if not isinstance(source, Tag):
            return Manifest.load(source), warnings
        found = newest(layout, source)
    if found is None:
        raise no_publication(layout, source, warnings)
    return Manifest([found.checkpoint], str(source)), warnings


def _without_volume(layout: Layout, source: WeightSource) -> tuple[str, ...]:
    """Return a warning if nothing shows this container that a tag moves."""
    if not (isinstance(source, Tag) and os.path.realpath(layout.root).startswith(MODAL_VOLUMES)):
        return ()
    text = (
        f"root {layout.root} is on a Modal Volume, and no volume= was given: the {source} is read as it was when this "
    )
    return (f"{text}container last reloaded. Add volume=, the modal.Volume that is mounted there",)


def _refresh(layout: Layout, volume: Volume, poll: float, check: Callable[[], None]) -> tuple[str, ...]:
    """Reload unless the last reload is fewer than ``poll`` seconds ago; return what failed then."""
    key = (os.path.realpath(layout.root), os.environ.get("MODAL_TASK_ID", ""))
    deadline = time.monotonic() + PATIENCE

    def waiting() -> None:
        check()
        if time.monotonic() > deadline:
            raise _BusyError

    def recent() -> tuple[str, ...] | None:
        began, failed = _reloads.get(key, (-float("inf"), ()))
        return failed if time.monotonic() - began < poll else None

    if (failed := recent()) is not None:
        return failed
    try:
        # Under the lock: a download of another process has files open, and what it wrote must be committed first.
        with root_lock(layout.root, wait=WAIT, say=lambda _: None, check=waiting):
            if (failed := recent()) is None:  # another thread may just have reloaded
                calls, began = VolumeSession(layout.root, volume), time.monotonic()
                calls.sync()
                failed = tuple(calls.warnings)
                _reloads[key] = (began, failed)
    except _BusyError:
        return (f"{layout.root} was not reloaded: another process or thread of this container is filling it",)
    return failed


def no_publication(layout: Layout, tag: Tag, warnings: tuple[str, ...]) -> NotCachedError:
    """Return the error for a tag that stands for nothing. ``warnings``: what failed before."""
    others = _some(str(each) for each in iter_tags(layout))
    after = f" ({'; '.join(warnings)})" if warnings else ""
    return NotCachedError(
        f"the {tag} has no publication in {layout.root}{after}; published there: {others or 'nothing'}",
        hint=f"publish one with `weightcache publish PATH {tag.name} --tag {tag.tag}` or publish(tag={tag.tag!r}); "
        "pass volume=, so that this container sees what others committed",
        checkpoints=(tag.name,),
    )


def _some(names: Iterable[str]) -> str:
    """Return the first ten names, for a message: everybody with write access to the Volume can make thousands."""
    found = list(names)
    return ", ".join(found[:10]) + f" and {len(found) - 10} more" * (len(found) > 10)


def incomplete(tag: Tag, layout: Layout, checkpoint: Checkpoint, why: NotCachedError) -> NotCachedError:
    """Return the error for a tag whose version is not in the root, not even after a reload."""
    return NotCachedError(
        f"the {tag} stands for version {checkpoint.version}, and that is not complete in {layout.root}: {why.args[0]}",
        hint=f"publish it again with `weightcache publish PATH {tag.name} --tag {tag.tag}`, or choose another version: "
        f"`weightcache tag {tag.name}` lists them",
        checkpoints=(tag.name,),
    )


def move_tag(layout: Layout, volume: Volume | None, tag: Tag, checkpoint: Checkpoint, keep: int | None) -> bool:
    """Let a tag stand for a version that is published and committed; ``False`` if a prune deleted it meanwhile.

    The commit comes before the reload, because the reload discards what no commit has taken. A reload that fails is a
    warning: then the clock alone orders this publication and those that this container does not see.

    Raises:
        StorageError: The publication cannot be written, or the last one cannot be read.
        VolumeError: No commit took the publication.
        LockTimeoutError: Another process of this container fills the root and makes no progress.
    """
    calls = VolumeSession(layout.root, volume)
    with root_lock(layout.root, wait=WAIT, say=lambda _: None, check=lambda: None):
        if not calls.commit(CommitEvidence(layout).files([checkpoint])):
            raise _not_committed(tag, checkpoint, calls)
        calls.reload()
        last = newest(layout, tag)
        keep = last.keep if keep is None and last else keep
        if last is None or (last.checkpoint.digest, last.keep) != (checkpoint.digest, keep):
            published = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            store_root.refuse_read_only(layout, "publish to")
            store_root.make_root(layout)
            with calls.writing():
                publication = Publication(tag, checkpoint, next_order(layout, tag), published, keep)
                path, size = write_publication(layout, publication)
            written = {os.path.relpath(path, layout.root): Wanted(size)}
            if not calls.commit(written):
                raise _not_committed(tag, checkpoint, calls)
            calls.reload()  # a prune in another container that did not see this publication committed before it
        with reload_lock(layout.root):
            now = newest(layout, tag)
            ready = inspect(layout, checkpoint).state == "ready"
    if now and now.checkpoint.digest != checkpoint.digest:
        _log.warning(
            "the %s stands for version %s, which another container published at the same time, and not for %s",
            tag,
            now.checkpoint.version,
            checkpoint.version,
        )
    return ready


def _not_committed(tag: Tag, checkpoint: Checkpoint, calls: VolumeSession) -> VolumeError:
    return VolumeError(
        f"version {checkpoint.version} of {checkpoint.name} is published, and perhaps the {tag} stands for it in this "
        f"container only: {calls.warnings[-1]}",
        hint="close the files that are open on the volume, and call it again before the container stops; "
        "nothing is copied a second time",
        operation="commit",
    )


def check_keep(keep: int | None) -> None:
    """Raise `ValueError` unless ``keep`` is ``None`` or a number of versions."""
    if keep is not None and (type(keep) is not int or keep < 1):
        raise ValueError(f"keep must be a number of versions, 1 or more, or None, not {keep!r}")


@close_on_interrupt
def set_tag(
    tag: Tag, version: str, *, root: str | os.PathLike[str], volume: Volume | None = None, keep: int | None = None
) -> Checkpoint:
    """Let a tag stand for a version that is in the root, for example to roll back. Nothing is copied or hashed.

    Args:
        tag: The tag. It need not exist.
        version: The version, 16 hex digits, or its full digest. `tags` lists the versions that had the tag.
        root: As in `ensure`.
        volume: As in `ensure`. It is committed, then reloaded, and committed again.
        keep: How many versions `prune` keeps for this tag; ``None`` for what the last publication says.

    Returns:
        The checkpoint.

    Raises:
        NotCachedError: The root has no such version with a receipt, or its files are damaged.
        VolumeError: No commit took it.
        StorageError: Root cannot be used, or the last publication of the tag is torn.
        LockTimeoutError: Another process of this container fills the root and makes no progress.
        TypeError, ValueError: An argument is of the wrong kind.
    """
    if not isinstance(tag, Tag):
        raise TypeError(f"tag must be a Tag, not {type(tag).__name__}")
    check_keep(keep)
    layout = Layout(root)
    store_root.check_root(layout)
    store_root.refuse_read_only(layout, "publish to")
    if volume is not None:
        VolumeSession(layout.root, volume)  # checks it
        _refresh(layout, volume, 0.0, lambda: None)
    checkpoint = _version(layout, tag.name, version)
    if not move_tag(layout, volume, tag, checkpoint, keep):
        raise _no_version(layout, tag.name, version)
    return checkpoint


def _version(layout: Layout, name: str, version: str) -> Checkpoint:
    """Return the checkpoint of a version that has a receipt and is complete."""
    if not isinstance(version, str):
        raise TypeError(f"version must be a string, not {type(version).__name__}")
    with reload_lock(layout.root):
        for each, digest, receipt in iter_receipts(layout):
            if each == name and version in (digest, digest[:16]):
                files = {path: {"sha256": pin, "size": size} for path, (pin, size) in receipt_files(receipt).items()}
                single = len(files) == 1 and all(pin["sha256"] == digest for pin in files.values())
                with suppress(ManifestError):  # a receipt that another program wrote
                    checkpoint = declared(name, files, is_directory=not single)
                    # The digest first: a receipt may list the files of another version.
                    if checkpoint.digest == digest and inspect(layout, checkpoint).state == "ready":
                        return checkpoint
    raise _no_version(layout, name, version)


def _no_version(layout: Layout, name: str, version: str) -> NotCachedError:
    known = _some(digest[:16] for each, digest, _ in iter_receipts(layout) if each == name)
    return NotCachedError(
        f"{layout.root} has no complete version {version!r:.100} of {name}; there are: {known or 'none'}",
        hint=f"name one of these versions, or publish the files again with `weightcache publish PATH {name}`",
        checkpoints=(name,),
    )


def tags(*, root: str | os.PathLike[str], volume: Volume | None = None) -> list[Publication]:
    """Return every publication of every tag in the root, by checkpoint and tag, and the last publication first.

    Args:
        root: As in `ensure`; if it does not exist, there are no tags.
        volume: As in `ensure`: reloaded first. ``None``: what this container sees.

    Raises:
        StorageError: A file is torn or is no publication of its tag, or root is no directory.
    """
    layout = Layout(root)
    store_root.check_root(layout)
    if volume is not None:
        VolumeSession(layout.root, volume)
        _refresh(layout, volume, 0.0, lambda: None)
    with reload_lock(layout.root):
        return [publication for tag in iter_tags(layout) for publication in history(layout, tag)]
