"""`status`: what the root holds, without hashing and without waiting for a download."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from weightcache._store.inspect import inspect
from weightcache.reports import Status

if TYPE_CHECKING:
    from collections.abc import Sequence

    from weightcache._store.layout import Layout
    from weightcache.manifest import Checkpoint


def statuses(layout: Layout, checkpoints: Sequence[Checkpoint]) -> list[Status]:
    """Inspect every checkpoint; see `weightcache.status`."""
    inspections = [inspect(layout, checkpoint) for checkpoint in checkpoints]
    if any(seen.state != "ready" for seen in inspections):
        from weightcache._coordination.lock import reload_lock
        from weightcache._store.root_checks import check_root

        check_root(layout)
        with reload_lock(layout.root):  # while a Volume reloads it looks empty
            inspections = [inspect(layout, checkpoint) for checkpoint in checkpoints]
    return [
        Status(checkpoint.name, seen.state, Path(layout.published(checkpoint)), seen.detail, checkpoint.size)
        for checkpoint, seen in zip(checkpoints, inspections, strict=True)
    ]
