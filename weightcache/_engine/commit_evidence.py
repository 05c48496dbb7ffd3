"""The files that prove a commit: what this call published, and which of them only their bytes can prove."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from weightcache._coordination.committed_state import Wanted

if TYPE_CHECKING:
    from collections.abc import Iterable

    from weightcache._store.layout import Layout
    from weightcache.manifest import Checkpoint


class CommitEvidence:
    """Notes the files of checkpoints before they are installed.

    Args:
        layout: The root.
        checkpoints: What is about to be installed.
    """

    def __init__(self, layout: Layout, checkpoints: Iterable[Checkpoint] = ()) -> None:
        self._layout = layout
        paths = (layout.file(checkpoint, file) for checkpoint in checkpoints for file in checkpoint.files)
        self._before = {path: _size(path) for path in paths}

    def files(self, installed: Iterable[Checkpoint]) -> dict[str, Wanted]:
        """Return what the committed state must have of ``installed``: each file, and the receipts that are there."""
        found = {}
        for checkpoint in installed:
            for file in checkpoint.files:
                path = self._layout.file(checkpoint, file)
                if (size := _size(path)) is None:
                    return {}
                sha256 = file.sha256 if size == self._before.get(path) else ""
                found[os.path.relpath(path, self._layout.root)] = Wanted(size, sha256)
            receipt = self._layout.receipt(checkpoint)
            if (size := _size(receipt)) is not None:
                found[os.path.relpath(receipt, self._layout.root)] = Wanted(size)
        return found


def _size(path: str) -> int | None:
    try:
        seen = os.lstat(path)
    except OSError:
        return None
    return seen.st_size if stat.S_ISREG(seen.st_mode) else None
