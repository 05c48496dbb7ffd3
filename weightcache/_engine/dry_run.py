"""`ensure(dry_run=True)`: the plan of a call, from names and sizes alone. Writes, locks, reloads and hashes nothing."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from weightcache._coordination.volume import VolumeSession
from weightcache._runtime.owned_descriptors import close_on_interrupt
from weightcache._store.inspect import inspect
from weightcache._store.partial_directory import journaled_bytes
from weightcache._store.root_checks import check_root, find_symlink, is_read_only
from weightcache.reports import Plan

from .execute_plan import OFFLINE, READ_ONLY, WITHOUT_URL
from .plan import Contents, plan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from weightcache._store.layout import Layout
    from weightcache.manifest import Checkpoint
    from weightcache.reports import CheckpointPlan

    from .ensure_options import EnsureOptions


@close_on_interrupt
def plan_only(layout: Layout, checkpoints: Sequence[Checkpoint], options: EnsureOptions) -> Plan:
    """Return what `ensure_on_miss` would do with the same arguments.

    Raises:
        StorageError: The root is no directory, or may not be read.
        TypeError: ``volume`` has no ``commit`` and ``reload``.
    """
    VolumeSession(layout.root, options.volume)
    check_root(layout)
    contents = [_contents(layout, checkpoint, rehash=options.rehash) for checkpoint in checkpoints]
    left = journaled_bytes(layout, {checkpoint.digest for checkpoint in checkpoints})
    found = plan(layout, contents, local_sources=options.local_sources, partial_bytes=left)
    read_only = is_read_only(layout)
    return Plan(
        {
            checkpoint.name: replace(
                step, blocked=_blocked(checkpoint, step, offline=options.offline, read_only=read_only)
            )
            for checkpoint, step in zip(checkpoints, found.values(), strict=True)
        }
    )


def _contents(layout: Layout, checkpoint: Checkpoint, *, rehash: bool) -> Contents:
    """Take each file of the right size for right. `ensure` hashes those that no receipt speaks for."""
    seen = inspect(layout, checkpoint)
    wrong = {file.path for file in seen.wrong}
    sizes = {}
    for file in checkpoint.files:
        path = layout.file(checkpoint, file)
        if file.path not in wrong and (seen.receipt or not find_symlink(layout, os.path.dirname(path))):
            with suppress(OSError):  # another process may replace or delete it at any moment
                sizes[file.path] = os.lstat(path).st_size
    return Contents(checkpoint, seen.receipt, sizes, verified=seen.receipt and not rehash)


def _blocked(checkpoint: Checkpoint, step: CheckpointPlan, *, offline: bool, read_only: bool) -> str:
    """Return why the real call would raise `NotCachedError`; empty if it would not."""
    if read_only and step.action in ("copy", "fetch"):
        return READ_ONLY
    if step.action == "fetch" and offline:
        return OFFLINE
    return WITHOUT_URL if step.action == "fetch" and not checkpoint.urls else ""
