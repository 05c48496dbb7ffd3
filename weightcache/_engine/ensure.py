"""What `ensure` and `aensure` do beyond a hit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from weightcache._store.layout import Layout
from weightcache._views.weights import weights_if_ready
from weightcache.manifest import Manifest

from .dry_run import plan_only
from .run_miss import ensure_on_miss

if TYPE_CHECKING:
    import os
    from collections.abc import Collection, Sequence

    from weightcache._views.weights import Weights
    from weightcache.manifest import Checkpoint, ManifestSource
    from weightcache.reports import Plan

    from .ensure_options import EnsureOptions


def on_miss(layout: Layout, checkpoints: Sequence[Checkpoint], options: EnsureOptions) -> Weights | Plan:
    """Make every checkpoint ready, or plan it."""
    return plan_only(layout, checkpoints, options) if options.dry_run else ensure_on_miss(layout, checkpoints, options)


def ensure_with(
    manifest: ManifestSource, root: str | os.PathLike[str], only: Collection[str] | None, options: EnsureOptions
) -> Weights | Plan:
    """Do what `ensure` does, with options that are made and checked already."""
    checkpoints, layout = Manifest.load(manifest).select(only), Layout(root)
    if not (options.rehash or options.dry_run) and (weights := weights_if_ready(layout, checkpoints)) is not None:
        return weights
    return on_miss(layout, checkpoints, options)
