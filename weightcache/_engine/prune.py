"""`prune`: delete published versions that no manifest declares, and partials older than a day."""

from __future__ import annotations

import calendar
import logging
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from weightcache._coordination.lock import root_lock
from weightcache._coordination.volume import VolumeSession
from weightcache._runtime.owned_descriptors import close_on_interrupt
from weightcache._store.layout import version_path
from weightcache._store.partial_directory import stale_partials, sweep
from weightcache._store.receipts import iter_receipts, receipt_files
from weightcache._store.root_checks import check_root, find_symlink, refuse_links, refuse_read_only
from weightcache.errors import StorageError, VolumeError

if TYPE_CHECKING:
    from weightcache._coordination.volume import Volume
    from weightcache._store.layout import Layout

_log = logging.getLogger("weightcache")

WAIT = 300.0  # seconds without progress of another process in this container, as in `ensure`
BEGUN = "pruning"  # ending of a receipt whose version directory is being deleted


@close_on_interrupt
def prune_places(
    layout: Layout, kept: set[tuple[str, str]], *, volume: Volume | None, dry_run: bool, older_than: float
) -> list[Path]:
    """Delete what is not ``kept``, a set of (name, full digest); see `weightcache.prune`."""
    calls = VolumeSession(layout.root, volume)
    check_root(layout)
    if not os.path.isdir(layout.root):
        return []
    with root_lock(layout.root, wait=WAIT, say=lambda _: None, check=lambda: None):
        calls.sync()
        if calls.warnings:
            raise _volume_error(calls)
        refuse_links(layout, layout.partials, layout.receipts)
        doomed = [
            (name, digest)
            for name, digest, receipt in iter_receipts(layout)
            if (name, digest) not in kept and _age(receipt) >= older_than and not _is_link(layout, name, digest)
        ]
        begun = [
            (name, digest) for name, digest, _ in iter_receipts(layout, BEGUN) if not _is_link(layout, name, digest)
        ]
        places = [Path(f"{layout.root}/{version_path(name, digest)}") for name, digest in dict.fromkeys(doomed + begun)]
        if dry_run:
            return [*places, *map(Path, stale_partials(layout))]
        refuse_read_only(layout, "prune")
        swept = [Path(path) for path in sweep(layout, set())]
        if places or swept:
            with calls.writing():
                for name, digest in doomed:
                    _withdraw(f"{layout.receipts}/{name}/{digest}")
            _commit(calls)  # no container may serve a hit from a version directory that is half deleted
            with calls.writing():
                for name, digest, receipt in list(iter_receipts(layout, BEGUN)):
                    _delete(layout, name, digest, receipt)
            _commit(calls)
        return [*places, *swept]


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


def _delete(layout: Layout, name: str, digest: str, receipt: dict[str, object]) -> None:
    place = f"{layout.root}/{version_path(name, digest)}"
    if find_symlink(layout, place):
        return
    if not os.path.exists(f"{layout.receipts}/{name}/{digest}.json"):  # else it was published again
        for path in receipt_files(receipt):
            if not find_symlink(layout, os.path.dirname(f"{place}/{path}")):  # what a link leads to is outside the root
                _remove(f"{place}/{path}")
        _remove_empty(place, layout.root)
    _remove(f"{layout.receipts}/{name}/{digest}.{BEGUN}")


def _age(receipt: dict[str, object]) -> float:
    """Return the seconds since the receipt says it was written; 0, so that it is spared, if it does not say."""
    with suppress(ValueError, TypeError, OverflowError):
        return time.time() - calendar.timegm(time.strptime(str(receipt.get("verified")), "%Y-%m-%dT%H:%M:%SZ"))
    return 0.0


def _remove(path: str) -> None:
    try:
        with suppress(FileNotFoundError):
            os.unlink(path)
    except OSError as error:
        raise StorageError.of(error, "delete", path) from None


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
