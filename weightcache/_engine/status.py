"""`status`: what the root holds, without hashing and without waiting for a download."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from weightcache._store.inspect import look
from weightcache.reports import Status

if TYPE_CHECKING:
    from collections.abc import Sequence

    from weightcache._store.layout import Layout
    from weightcache.manifest import Checkpoint


def statuses(layout: Layout, checkpoints: Sequence[Checkpoint]) -> list[Status]:
    """Inspect every checkpoint; see `weightcache.status`."""
    looks = [look(layout, checkpoint) for checkpoint in checkpoints]
    if any(seen.state != "ready" for seen in looks):
        from weightcache._coordination.lock import reload_gate
        from weightcache._store.root import check_root

        check_root(layout)
        with reload_gate(layout.root):  # while a Volume reloads it looks empty
            looks = [look(layout, checkpoint) for checkpoint in checkpoints]
    return [
        Status(checkpoint.name, seen.state, Path(layout.published(checkpoint)), seen.detail, checkpoint.size)
        for checkpoint, seen in zip(checkpoints, looks, strict=True)
    ]
