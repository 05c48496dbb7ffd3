"""What each file needs before its checkpoint is ready, as data: nothing here writes, locks or hashes.

`ensure` makes a plan after it hashed what no receipt speaks for, and `install` carries it out. A dry run makes the same
plan from sizes alone, and returns it.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from weightcache._store import receipts
from weightcache._store.root_checks import find_symlink
from weightcache.reports import CheckpointPlan, FilePlan, Plan

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from weightcache._store.layout import Layout
    from weightcache.manifest import Checkpoint, File


class Contents(NamedTuple):
    """What the version directory of one checkpoint holds.

    Attributes:
        checkpoint: What the manifest declares.
        has_receipt: Whether a receipt speaks for the directory.
        sizes: By path, the bytes of each file that is right, or, if not ``verified``, that may be.
        verified: Whether those files are known to be right, by a receipt or a hash.
    """

    checkpoint: Checkpoint
    has_receipt: bool
    sizes: Mapping[str, int]
    verified: bool


def plan(
    layout: Layout,
    contents: Sequence[Contents],
    *,
    local_sources: Mapping[str, str],
    partial_bytes: Mapping[tuple[str, str], int],
) -> Plan:
    """Say for each file whether it is kept, adopted, copied (and from where) or fetched.

    Each sha256 is fetched once. Every further file with the same bytes is copied from the first one.

    Args:
        layout: The root.
        contents: What it holds of each checkpoint, in manifest order.
        local_sources: As in `EnsureOptions`.
        partial_bytes: By full digest and sha256, the bytes that earlier downloads left. They need not be fetched.
    """
    held = _held_files(layout, contents)
    fetched: dict[str, str] = {}  # by sha256, the first file that is fetched
    checkpoints = {}
    for each in contents:
        files = []
        for file in each.checkpoint.files:
            step = _present(each, file) or _copy(layout, each.checkpoint, file, held, local_sources.get(file.sha256))
            if step is None and file.sha256 in fetched:
                step = FilePlan(file.path, "copy", file.size, sources=(fetched[file.sha256],))
            if step is None:
                fetched[file.sha256] = layout.file(each.checkpoint, file)
                step = _fetch(file, partial_bytes.get((each.checkpoint.digest, file.sha256), 0))
            files.append(step)
        path = Path(layout.published(each.checkpoint))
        checkpoints[each.checkpoint.name] = CheckpointPlan(each.checkpoint.name, path, tuple(files))
    return Plan(checkpoints)


def _held_files(layout: Layout, contents: Sequence[Contents]) -> dict[str, list[str]]:
    """Return sha256 → paths in the root that should have these bytes: by a receipt, or as just found."""
    if all(len(each.sizes) == len(each.checkpoint.files) for each in contents):
        return {}  # nothing is missing, so that no receipt need be read
    held = receipts.files_by_digest(layout)
    for each in contents:  # what was hashed just now has no receipt yet
        for file in each.checkpoint.files:
            if file.path in each.sizes:
                held.setdefault(file.sha256, []).append(layout.file(each.checkpoint, file))
    return held


def _present(contents: Contents, file: File) -> FilePlan | None:
    if (size := contents.sizes.get(file.path)) is None:
        return None
    return FilePlan(file.path, "keep" if contents.has_receipt else "adopt", size, verified=contents.verified)


def _copy(
    layout: Layout, checkpoint: Checkpoint, file: File, held: Mapping[str, Sequence[str]], local: str | None
) -> FilePlan | None:
    """Plan a copy from another name in the root, or from ``local``. A source in the root proves right or is skipped."""
    place, size, sources = layout.file(checkpoint, file), file.size, list[str]()
    for path in dict.fromkeys(held.get(file.sha256, ())):
        found = None if path == place or find_symlink(layout, os.path.dirname(path)) else _size(path)
        if found is not None and file.size in (None, found):
            size = found if size is None else size
            sources.append(path)
    if local is not None:
        sources.append(local)  # the last one, as `install` expects it
    return FilePlan(file.path, "copy", size, sources=tuple(sources)) if sources else None


def _size(path: str) -> int | None:
    """Return the size of a regular file; ``None`` if it does not exist."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def _fetch(file: File, there: int) -> FilePlan:
    rest = None if file.size is None else max(0, file.size - there)
    return FilePlan(file.path, "fetch", file.size, bytes_to_fetch=rest)
