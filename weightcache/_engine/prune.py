"""`prune`: delete published versions that no manifest declares and no tag keeps, and partials older than a day."""

from __future__ import annotations

import calendar
import logging
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from weightcache._coordination.lock import root_lock
from weightcache._coordination.mount_check import check_manifest
from weightcache._coordination.volume import VolumeSession
from weightcache._runtime.owned_descriptors import close_on_interrupt
from weightcache._store.file_operations import remove_file
from weightcache._store.layout import Layout, version_path
from weightcache._store.partial_directory import stale_partials, sweep
from weightcache._store.receipts import iter_receipts, receipt_files, receipted_places
from weightcache._store.root_checks import check_root, find_symlink, refuse_links, refuse_read_only
from weightcache._store.tags import retention
from weightcache.errors import StorageError, VolumeError
from weightcache.manifest import Manifest, Tag

if TYPE_CHECKING:
    from collections.abc import Sequence

    from weightcache._coordination.volume import Volume
    from weightcache.manifest import WeightSource

__all__ = ["prune"]

_log = logging.getLogger("weightcache")

WAIT = 300.0  # seconds without progress of another process in this container, as in `ensure`
BEGUN = "pruning"  # ending of a receipt whose version directory is being deleted


@close_on_interrupt
def prune(
    *manifests: WeightSource,
    root: str | os.PathLike[str],
    volume: Volume | None = None,
    dry_run: bool = True,
    older_than: float = 3600.0,
) -> list[Path]:
    """Delete published version directories that no manifest declares and no tag keeps, and partials older than a day.

    A version directory without a receipt is never touched, nor a file that its receipt does not name. Every tag in the
    root keeps the versions that its last publication says; publications beyond them are deleted too.

    Args:
        *manifests: Every manifest that is in use with this root; at least one. A `Tag` stands for no manifest, where
            only tags are in use. A manifest on the Volume is read after the reload.
        root: As in `ensure`.
        volume: As in `ensure`: reloaded before, and committed after the receipts and again after the files are gone.
        dry_run: Only report what would be deleted.
        older_than: Spare what was verified, or lost a tag, fewer than this many seconds ago: a container with a newer
            manifest may just have published it, and one with an older view may still load it.

    Returns:
        The version directories, publications and partials that were deleted, or would be.

    Raises:
        ManifestError: A manifest has problems; nothing is deleted.
        LockTimeoutError: Another process of this container holds the lock of the root and makes no progress.
        StorageError: Root is no directory, or a tag is torn or cannot be read; then nothing is deleted. Or something
            cannot be read or deleted; the next call deletes what is left.
        VolumeError: The volume could not be reloaded or committed, or a manifest is on a Volume that is not reloaded.
        ValueError: No manifest is given, or ``older_than`` is no number of seconds.
    """
    if not manifests:
        raise ValueError("prune needs every manifest that is in use: what none of them declares is deleted")
    if not 0 <= older_than < float("inf"):
        raise ValueError(f"older_than must be a number of seconds, 0 or more, not {older_than!r}")
    work = _Prune(Layout(root), manifests, older_than)
    for each in manifests:
        check_manifest(work.layout.root, each, volume)
    work.kept()  # a manifest with problems is reported before anything else happens
    calls = VolumeSession(work.layout.root, volume)
    if not check_root(work.layout):
        return []
    with root_lock(work.layout.root, wait=WAIT, say=lambda _: None, check=lambda: None):
        calls.sync()
        if calls.warnings:
            raise _volume_error(calls)
        return work.plan_only() if dry_run else work.delete(calls)


class _Prune:
    """One `prune`: what is kept is read again after every reload, because other containers publish and move tags."""

    def __init__(self, layout: Layout, manifests: Sequence[WeightSource], older_than: float) -> None:
        self.layout = layout
        self._manifests, self._older_than = manifests, older_than

    def kept(self) -> set[tuple[str, str]]:
        """Return what the manifests declare, as (name, full digest)."""
        loaded = [Manifest.load(each) for each in self._manifests if not isinstance(each, Tag)]
        return {(checkpoint.name, checkpoint.digest) for manifest in loaded for checkpoint in manifest}

    def _survey(self) -> tuple[list[tuple[str, str]], list[tuple[str, str]], list[str]]:
        """Return the versions to withdraw, those that an earlier prune withdrew, and the expired publications."""
        layout = self.layout
        refuse_links(layout, layout.partials, layout.receipts)
        tagged, expired = retention(layout, self._older_than)
        kept = self.kept() | tagged
        doomed = [
            (name, digest)
            for name, digest, receipt in iter_receipts(layout)
            if (name, digest) not in kept and _age(receipt) >= self._older_than and not _is_link(layout, name, digest)
        ]
        begun = [
            (name, digest) for name, digest, _ in iter_receipts(layout, BEGUN) if not _is_link(layout, name, digest)
        ]
        return doomed, [each for each in begun if each not in kept], expired

    def plan_only(self) -> list[Path]:
        """Return what `delete` would delete."""
        doomed, begun, expired = self._survey()
        return [*self._places(doomed, begun), *map(Path, expired), *map(Path, stale_partials(self.layout))]

    def _places(self, *versions: list[tuple[str, str]]) -> list[Path]:
        found = dict.fromkeys(each for part in versions for each in part)
        return [Path(f"{self.layout.root}/{version_path(name, digest)}") for name, digest in found]

    def delete(self, calls: VolumeSession) -> list[Path]:
        """Withdraw the receipts, commit, delete the files, commit; return what was deleted."""
        layout = self.layout
        refuse_read_only(layout, "prune")
        doomed, begun, expired = self._survey()
        swept = [Path(path) for path in sweep(layout, set())]
        if not (doomed or expired or swept or any(iter_receipts(layout, BEGUN))):
            return []
        with calls.writing():
            for name, digest in doomed:
                _withdraw(f"{layout.receipts}/{name}/{digest}")
            for path in expired:
                remove_file(path)
        _commit(calls)  # no container may serve a hit from a version directory that is half deleted
        calls.reload()
        saved = self._restore(calls)
        left = [each for each in iter_receipts(layout, BEGUN) if each[:2] not in saved]
        published_again = receipted_places(layout, {name for name, *_ in left})
        deleted = set[tuple[str, str]]()
        with calls.writing():
            for name, digest, receipt in left:
                if not _is_link(layout, name, digest):
                    if version_path(name, digest) not in published_again:
                        _delete_files(layout, name, digest, receipt)
                        deleted.add((name, digest))
                    remove_file(f"{layout.receipts}/{name}/{digest}.{BEGUN}")
        _commit(calls)
        places = self._places([each for each in [*doomed, *begun] if each in deleted])
        return [*places, *map(Path, expired), *swept]

    def _restore(self, calls: VolumeSession) -> set[tuple[str, str]]:
        """Give a version its receipt back if a tag keeps it or a manifest declares it.

        Another container tagged or declared it meanwhile, or a prune that was killed withdrew it and the manifest is an
        older one again. A container that tags a version checks its receipt after its own commit. So one of the two sees
        what the other committed.
        """
        tagged, _ = retention(self.layout, self._older_than)
        kept = tagged | self.kept()
        saved = {(name, digest) for name, digest, _ in iter_receipts(self.layout, BEGUN)} & kept
        with calls.writing():
            for name, digest in saved:
                receipt = f"{self.layout.receipts}/{name}/{digest}"
                with suppress(FileNotFoundError):  # it was published again
                    os.replace(f"{receipt}.{BEGUN}", f"{receipt}.json")
        return saved


def _is_link(layout: Layout, name: str, digest: str) -> bool:
    """Whether a version directory is a link or below one. Then it and its receipt are not touched, with a warning."""
    link = find_symlink(layout, f"{layout.root}/{version_path(name, digest)}")
    if link:
        _log.warning("%s is a symbolic link: what it leads to is not pruned", link)
    return bool(link)


def _withdraw(receipt: str) -> None:
    """Withdraw a receipt, but keep it under another name: after a crash it says what is still to be deleted."""
    try:
        os.replace(f"{receipt}.json", f"{receipt}.{BEGUN}")
    except OSError as error:
        raise StorageError.of(error, "withdraw", f"{receipt}.json") from None


def _delete_files(layout: Layout, name: str, digest: str, receipt: dict[str, object]) -> None:
    place = f"{layout.root}/{version_path(name, digest)}"
    for path in receipt_files(receipt):
        if not find_symlink(layout, os.path.dirname(f"{place}/{path}")):  # what a link leads to is outside the root
            remove_file(f"{place}/{path}")
    _remove_empty(place, layout.root)


def _age(receipt: dict[str, object]) -> float:
    """Return the seconds since the receipt says it was written; 0, so that it is spared, if it does not say."""
    with suppress(ValueError, TypeError, OverflowError):
        return time.time() - calendar.timegm(time.strptime(str(receipt.get("verified")), "%Y-%m-%dT%H:%M:%SZ"))
    return 0.0


def _remove_empty(place: str, root: str) -> None:
    """Remove empty directories from ``place`` up to the root; a directory with extra files stays."""
    for folder, _, _ in os.walk(place, topdown=False):
        with suppress(OSError):
            os.rmdir(folder)
    with suppress(OSError):
        if os.path.dirname(place) != root:
            os.rmdir(os.path.dirname(place))


def _commit(calls: VolumeSession) -> None:
    if not calls.commit():
        raise _volume_error(calls)


def _volume_error(calls: VolumeSession) -> VolumeError:
    return VolumeError(
        f"prune stopped: {calls.warnings[-1]}",
        hint="nothing that is declared was touched; call prune again",
        operation=calls.warnings[-1].partition(" ")[0],
    )
